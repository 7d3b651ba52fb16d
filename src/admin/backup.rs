//! `fasttrack backup`: a consistent copy of the SQLite database, also while a server writes to it.
//!
//! The copy gets its final name only after it is complete, checked and synced to disk. If anything
//! fails, no file is left. The copy is a single file without a write-ahead log. To restore it,
//! replace the database file while no server runs, and delete the old `…-wal` and `…-shm` files.

use std::io;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection;
use diesel::sql_types::Text;
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use tempfile::NamedTempFile;

use crate::db::Location;
use crate::error::{Error, Result};

/// Copies the database into a new file and returns its size in bytes.
pub async fn run(database: &Location, to: PathBuf) -> Result<u64> {
    let Location::Sqlite(from) = database else {
        return Err(Error::internal(
            "this command is for SQLite only. Back up PostgreSQL with its own tools, such as `pg_dump --format=custom`",
        ));
    };
    let from = from.clone();
    tokio::task::spawn_blocking(move || copy(&from, &to))
        .await
        .map_err(Error::internal)?
}

fn copy(from: &Path, to: &Path) -> Result<u64> {
    let at = |path: &Path, why: &dyn std::fmt::Display| {
        Error::internal(format!("{}: {why}", path.display()))
    };
    if !from.is_file() {
        return Err(at(from, &"no such file"));
    }
    if to.exists() {
        return Err(at(to, &"the file already exists"));
    }
    let directory = match to.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    // Created with mode 0600.
    let draft = NamedTempFile::new_in(directory).map_err(|error| at(directory, &error))?;
    let mut source =
        SqliteConnection::establish(&from.to_string_lossy()).map_err(Error::internal)?;
    source.batch_execute("PRAGMA busy_timeout = 10000")?;
    let name = draft.path().to_string_lossy();
    sql_query("VACUUM INTO ?")
        .bind::<Text, _>(&*name)
        .execute(&mut source)?;
    let found = check_integrity(&mut SqliteConnection::establish(&name).map_err(Error::internal)?)?;
    if !found.is_empty() {
        return Err(at(
            from,
            &format!(
                "the database is damaged, no copy was made: {}",
                found.join("; ")
            ),
        ));
    }
    draft.as_file().sync_all().map_err(|error| at(to, &error))?;
    let file = draft
        .persist_noclobber(to)
        .map_err(|error| at(to, &error))?;
    sync(directory).map_err(|error| at(directory, &error))?;
    Ok(file.metadata().map_err(|error| at(to, &error))?.len())
}

/// Syncs the directory, which makes the new name durable.
fn sync(directory: &Path) -> io::Result<()> {
    if cfg!(unix) {
        std::fs::File::open(directory)?.sync_all()
    } else {
        Ok(())
    }
}

#[derive(QueryableByName)]
struct FindingRow {
    #[diesel(sql_type = Text)]
    finding: String,
}

/// Problems that SQLite finds in a file: damaged pages and violated foreign keys (at most 10).
pub fn check_integrity(conn: &mut SqliteConnection) -> Result<Vec<String>> {
    let check = sql_query(
        "SELECT quick_check AS finding FROM pragma_quick_check WHERE quick_check <> 'ok'",
    );
    let mut found: Vec<FindingRow> = check.load(conn)?;
    let orphans = "SELECT 'a row of ' || \"table\" || ' refers to a missing row of ' || parent AS finding \
                   FROM pragma_foreign_key_check LIMIT 10";
    found.extend(sql_query(orphans).load::<FindingRow>(conn)?);
    Ok(found.into_iter().map(|row| row.finding).collect())
}
