//! Brings a database to this program's schema. Several instances may start at once: one does it, the others wait.

use std::collections::HashSet;

use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;
use diesel::{Connection, QueryableByName, SqliteConnection};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{Conn, Location};
use crate::error::{Error, Result};
use crate::on;

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// The advisory lock that instances starting together take turns at: an arbitrary number, `fasttrack` in base 36.
const POSTGRES_LOCK: i64 = 0x6661_7374_7472_6163;

type Blocking = AsyncConnectionWrapper<AsyncPgConnection>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(QueryableByName)]
struct Applied {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Whether every migration of this program was applied. Both databases have the same.
pub async fn is_complete(conn: &mut Conn) -> Result<bool> {
    let query = diesel::sql_query("SELECT version FROM __diesel_schema_migrations");
    let applied: Vec<Applied> = on!(conn, |c| query.load(c).await)?;
    let applied: HashSet<String> = applied.into_iter().map(|applied| applied.version).collect();
    let known = MigrationSource::<Sqlite>::migrations(&SQLITE).map_err(Error::Internal)?;
    Ok(known.iter().all(|migration| applied.contains(&migration.name().version().to_string())))
}

/// Applies what is missing and says how many migrations that were.
pub async fn up(location: &Location) -> Result<usize> {
    change(location.clone(), false).await
}

/// Takes back the newest migration.
pub async fn down(location: &Location) -> Result<usize> {
    change(location.clone(), true).await
}

async fn change(location: Location, back: bool) -> Result<usize> {
    // diesel's migrations are synchronous on both databases.
    let done = tokio::task::spawn_blocking(move || match location {
        Location::Sqlite(path) => {
            let mut conn = SqliteConnection::establish(&path.to_string_lossy())?;
            conn.batch_execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000")?;
            // A lock of its own for the whole run: each migration inside is then a savepoint.
            conn.immediate_transaction(|conn| run(conn, SQLITE, back))
        }
        Location::Postgres(url) => {
            let mut conn = Blocking::establish(&url)?;
            conn.batch_execute(&format!("SELECT pg_advisory_lock({POSTGRES_LOCK})"))?;
            let done = run(&mut conn, POSTGRES, back);
            conn.batch_execute(&format!("SELECT pg_advisory_unlock({POSTGRES_LOCK})"))?;
            done
        }
    });
    done.await.map_err(Error::internal)?.map_err(Error::Internal)
}

fn run<DB, C>(conn: &mut C, source: impl MigrationSource<DB>, back: bool) -> std::result::Result<usize, Failure>
where
    DB: diesel::backend::Backend,
    C: MigrationHarness<DB>,
{
    if back {
        return conn.revert_last_migration(source).map(|_| 1);
    }
    Ok(conn.run_pending_migrations(source)?.len())
}
