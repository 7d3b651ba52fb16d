//! `fasttrack backup`: a copy of the SQLite file as it is at one moment, also while a server writes to it.
//!
//! The copy takes its name only when it is whole, checked and on the disk; until then, and if anything fails, there is no
//! such file. It is one file without a log beside it: to restore it, put it in the place of the database while no server
//! runs, and remove what is left of the old one, `…-wal` and `…-shm`.

use std::io;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection;
use diesel::sql_types::Text;
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use tempfile::NamedTempFile;

use crate::db::Location;
use crate::error::{Error, Result};

/// Copies the database into a new file and says how many bytes that are.
pub async fn run(database: &Location, to: PathBuf) -> Result<u64> {
    let Location::Sqlite(from) = database else {
        return Err(Error::internal(
            "this is for SQLite. Of PostgreSQL make backups by its own tools, such as `pg_dump --format=custom`",
        ));
    };
    let from = from.clone();
    tokio::task::spawn_blocking(move || copy(&from, &to)).await.map_err(Error::internal)?
}

fn copy(from: &Path, to: &Path) -> Result<u64> {
    let at = |path: &Path, why: &dyn std::fmt::Display| Error::internal(format!("{}: {why}", path.display()));
    if !from.is_file() {
        return Err(at(from, &"there is no such file"));
    }
    if to.exists() {
        return Err(at(to, &"exists already, and is left as it is"));
    }
    let directory = match to.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    // Readable by its owner alone.
    let draft = NamedTempFile::new_in(directory).map_err(|error| at(directory, &error))?;
    let mut source = SqliteConnection::establish(&from.to_string_lossy()).map_err(Error::internal)?;
    source.batch_execute("PRAGMA busy_timeout = 10000")?;
    let name = draft.path().to_string_lossy();
    sql_query("VACUUM INTO ?").bind::<Text, _>(&*name).execute(&mut source)?;
    let found = problems(&mut SqliteConnection::establish(&name).map_err(Error::internal)?)?;
    if !found.is_empty() {
        return Err(at(from, &format!("is damaged, no copy was kept: {}", found.join("; "))));
    }
    draft.as_file().sync_all().map_err(|error| at(to, &error))?;
    let file = draft.persist_noclobber(to).map_err(|error| at(to, &error))?;
    sync(directory).map_err(|error| at(directory, &error))?;
    Ok(file.metadata().map_err(|error| at(to, &error))?.len())
}

/// A name is on the disk when its directory is.
fn sync(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { std::fs::File::open(directory)?.sync_all() } else { Ok(()) }
}

#[derive(QueryableByName)]
struct Finding {
    #[diesel(sql_type = Text)]
    finding: String,
}

/// What SQLite finds wrong with a file: broken pages, and rows that refer to nothing.
pub fn problems(conn: &mut SqliteConnection) -> Result<Vec<String>> {
    let check = sql_query("SELECT quick_check AS finding FROM pragma_quick_check WHERE quick_check <> 'ok'");
    let mut found: Vec<Finding> = check.load(conn)?;
    let orphans = "SELECT 'a row of ' || \"table\" || ' refers to nothing in ' || parent AS finding \
                   FROM pragma_foreign_key_check LIMIT 10";
    found.extend(sql_query(orphans).load::<Finding>(conn)?);
    Ok(found.into_iter().map(|row| row.finding).collect())
}
