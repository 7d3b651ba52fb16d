//! Schema migrations. If several instances start at once, one migrates and the others wait.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;
use diesel::{Connection, QueryableByName, SqliteConnection, sql_query};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::postgres::{BoxError, PgConnector};
use super::{Conn, Location};
use crate::error::{Error, Result};
use crate::on;

pub(crate) const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// The key of the advisory lock that serializes migrations: arbitrary, the ASCII bytes `fasttrac`.
const POSTGRES_LOCK: i64 = 0x6661_7374_7472_6163;

/// Raises the epoch of event positions if the log was restored from another server.
///
/// Such a log can be ahead of this server's transaction ids, and new events would sort before old
/// ones. From here on, `events_epoch()` is the newest position in the log.
const RAISE_EVENTS_EPOCH: &str = "DO $$
DECLARE newest bigint := (SELECT max(xid) FROM events);
BEGIN
    IF newest >= events_epoch() + pg_snapshot_xmax(pg_current_snapshot())::text::bigint THEN
        EXECUTE format('CREATE OR REPLACE FUNCTION events_epoch() RETURNS bigint
            LANGUAGE sql IMMUTABLE PARALLEL SAFE AS ''SELECT %s::bigint''', newest);
    END IF;
END $$";

type BlockingConn = AsyncConnectionWrapper<AsyncPgConnection>;

/// Applies pending migrations and returns their number.
pub async fn up(location: &Location) -> Result<usize> {
    migrate(location.clone(), false).await
}

/// Reverts the newest migration.
pub async fn down(location: &Location) -> Result<usize> {
    migrate(location.clone(), true).await
}

/// The versions embedded in this program, oldest first. Both backends have the same.
pub fn known_versions() -> Result<Vec<String>> {
    let migrations = MigrationSource::<Sqlite>::migrations(&SQLITE).map_err(Error::Internal)?;
    let mut versions: Vec<String> = migrations
        .iter()
        .map(|it| it.name().version().to_string())
        .collect();
    versions.sort();
    Ok(versions)
}

/// The versions applied to the database, oldest first.
pub async fn applied_versions(conn: &mut Conn) -> Result<Vec<String>> {
    let versions = sql_query("SELECT version FROM __diesel_schema_migrations ORDER BY version");
    let versions: Vec<AppliedMigration> = on!(conn, |c| versions.load(c).await)?;
    Ok(versions.into_iter().map(|row| row.version).collect())
}

/// Whether every embedded migration is applied. Newer versions in the database do no harm.
pub async fn is_complete(conn: &mut Conn) -> Result<bool> {
    let applied = applied_versions(conn).await?;
    Ok(known_versions()?
        .iter()
        .all(|version| applied.contains(version)))
}

#[derive(QueryableByName)]
struct AppliedMigration {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Runs on a blocking thread, because diesel's migrations are synchronous.
async fn migrate(location: Location, back: bool) -> Result<usize> {
    let done = match location {
        Location::Sqlite(path) => tokio::task::spawn_blocking(move || {
            create_private(&path)?;
            let mut conn = SqliteConnection::establish(&path.to_string_lossy())?;
            conn.batch_execute(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; \
                 PRAGMA checkpoint_fullfsync = ON; PRAGMA busy_timeout = 10000",
            )?;
            // One write lock for the whole run. Each migration inside becomes a savepoint.
            conn.immediate_transaction(|conn| run(conn, SQLITE, back))
        }),
        Location::Postgres(url) => {
            let conn = PgConnector::parse(&url)
                .map_err(Error::Internal)?
                .connect()
                .await
                .map_err(Error::internal)?;
            tokio::task::spawn_blocking(move || {
                let mut conn = BlockingConn::from(conn);
                conn.batch_execute(&format!("SELECT pg_advisory_lock({POSTGRES_LOCK})"))?;
                let done = run(&mut conn, POSTGRES, back);
                if done.is_ok() && !back {
                    conn.batch_execute(RAISE_EVENTS_EPOCH)?;
                }
                conn.batch_execute(&format!("SELECT pg_advisory_unlock({POSTGRES_LOCK})"))?;
                done
            })
        }
    };
    done.await
        .map_err(Error::internal)?
        .map_err(Error::Internal)
}

/// Creates a missing database file with mode 0600, since SQLite would make it world-readable.
/// SQLite gives `-wal` and `-shm` the same mode. An existing file keeps its mode.
fn create_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn run<DB, C>(
    conn: &mut C,
    source: impl MigrationSource<DB>,
    back: bool,
) -> std::result::Result<usize, BoxError>
where
    DB: diesel::backend::Backend,
    C: MigrationHarness<DB>,
{
    if back {
        return conn.revert_last_migration(source).map(|_| 1);
    }
    Ok(conn.run_pending_migrations(source)?.len())
}
