//! A fresh database for each test, copied from a migrated template.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use diesel_async::SimpleAsyncConnection;
use fasttrack::db::{Conn, Db, Location, PooledConn, migrate};
use fasttrack::id::Id;
use fasttrack::on;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use url::Url;

use super::PATIENCE;

/// Advisory lock for creating the template, because several test processes may start at once.
const LOCK: i64 = 0x7465_6d70_6c61_7465;

/// Rows by table; each row maps column names to values.
pub(crate) type Rows = BTreeMap<String, Vec<serde_json::Map<String, serde_json::Value>>>;

/// A test database. [`Database::remove`] deletes it.
pub(crate) struct Database {
    url: String,
    kept: Storage,
}

/// An open PostgreSQL transaction of the test, which blocks others.
pub(crate) struct OpenTransaction {
    client: Client,
}

impl OpenTransaction {
    /// Waits until `count` statements on this database wait for a lock.
    pub(crate) async fn blocked(&self, count: i64) {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting = async {
            loop {
                // Within a transaction PostgreSQL caches the statistics view; clear the cache.
                self.execute("SELECT pg_stat_clear_snapshot()").await;
                if self
                    .client
                    .query_one(query, &[])
                    .await
                    .expect("a count")
                    .get::<_, i64>(0)
                    >= count
                {
                    break;
                }
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .expect("statements waiting for a lock");
    }

    pub(crate) async fn execute(&self, statements: &str) {
        self.client
            .batch_execute(statements)
            .await
            .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    pub(crate) async fn commit(self) {
        self.execute("COMMIT").await;
    }
}

#[derive(diesel::QueryableByName)]
struct Text {
    #[diesel(sql_type = diesel::sql_types::Text)]
    text: String,
}

enum Storage {
    Sqlite(TempDir),
    Postgres {
        server: Url,
        name: String,
    },
    /// A database that is removed by its owner.
    Elsewhere,
}

/// The PostgreSQL server to test on, if `TEST_DATABASE_URL` names one.
fn server() -> Option<Url> {
    let url = std::env::var("TEST_DATABASE_URL")
        .ok()
        .filter(|url| url.starts_with("postgres"))?;
    Some(url.parse().expect("TEST_DATABASE_URL is a URL"))
}

/// Whether the tests run on PostgreSQL.
pub(crate) fn is_postgres() -> bool {
    server().is_some()
}

impl Database {
    /// An empty database with the current schema.
    pub(crate) async fn fresh() -> Self {
        match server() {
            Some(server) => {
                let template = postgres_template(&server).await;
                Self::on(server, &format!("TEMPLATE \"{template}\"")).await
            }
            None => Self::sqlite().await,
        }
    }

    /// The same database, for a second server. It is not removed with this value.
    pub(crate) fn shared(&self) -> Self {
        Self {
            url: self.url.clone(),
            kept: Storage::Elsewhere,
        }
    }

    /// Like [`Database::fresh`], but always on SQLite.
    pub(crate) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("fasttrack.db");
        std::fs::write(&file, sqlite_template().await).expect("a copy of the template");
        Self {
            url: format!("sqlite://{}", file.display()),
            kept: Storage::Sqlite(directory),
        }
    }

    /// A PostgreSQL database without tables; `None` when the tests run on SQLite.
    pub(crate) async fn bare() -> Option<Self> {
        Some(Self::on(server()?, "TEMPLATE template0").await)
    }

    async fn on(server: Url, like: &str) -> Self {
        let name = format!("fasttrack_test_{}", Id::new());
        run(&server, &format!("CREATE DATABASE \"{name}\" {like}")).await;
        let url = on(&server, &name);
        Self {
            url,
            kept: Storage::Postgres { server, name },
        }
    }

    /// The value for `DATABASE_URL`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn location(&self) -> Location {
        Location::parse(&self.url).expect("a location")
    }

    pub(crate) async fn execute(&self, statements: &str) {
        let db = Db::open(&self.location(), 1).expect("a database");
        let done = match &mut db.conn().await.expect("a connection").pooled {
            PooledConn::Sqlite(c) => {
                c.batch_execute(&format!("PRAGMA query_only = OFF; {statements}"))
                    .await
            }
            PooledConn::Postgres(c) => (&mut &**c).batch_execute(statements).await,
        };
        done.unwrap_or_else(|error| panic!("{statements}: {error}"));
        db.close().await;
    }

    /// Opens a PostgreSQL transaction and runs statements in it, without committing.
    pub(crate) async fn begin(&self, statements: &str) -> OpenTransaction {
        let client = connect(&self.url.parse().expect("a URL")).await;
        client
            .batch_execute(&format!("BEGIN; {statements}"))
            .await
            .expect("a transaction");
        OpenTransaction { client }
    }

    /// The number that a query returns.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        let db = Db::open(&self.location(), 1).expect("a database");
        let mut conn = db.conn().await.expect("a connection");
        let query = format!("SELECT CAST(({query}) AS text) AS text");
        let found = texts(&mut conn, &query).await;
        drop(conn);
        db.close().await;
        found[0]
            .parse()
            .unwrap_or_else(|_| panic!("{query} finds {found:?}"))
    }

    /// Bytes stored permanently. On PostgreSQL the tables in `updated` do not count: their old row
    /// versions are removed by autovacuum.
    pub(crate) async fn stored_bytes(&self, updated: &[&str]) -> i64 {
        if !self.url.starts_with("postgres") {
            return self.number("(SELECT sum(pgsize) FROM dbstat)").await;
        }
        let updated = updated
            .iter()
            .map(|table| format!("'{table}'"))
            .collect::<Vec<_>>()
            .join(", ");
        self.number(&format!(
            "SELECT sum(pg_total_relation_size(quote_ident(tablename)::regclass)) FROM pg_tables
             WHERE schemaname = 'public' AND tablename NOT IN ({updated})"
        ))
        .await
    }

    /// All rows of all tables, in unspecified order.
    pub(crate) async fn rows(&self) -> Rows {
        let db = Db::open(&self.location(), 1).expect("a database");
        let mut conn = db.conn().await.expect("a connection");
        let tables = if conn.is_postgres() {
            "SELECT tablename::text AS text FROM pg_tables WHERE schemaname = 'public'"
        } else {
            "SELECT name AS text FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        };
        let mut rows = Rows::new();
        for table in texts(&mut conn, tables).await {
            if table == "__diesel_schema_migrations" {
                continue;
            }
            let select = if conn.is_postgres() {
                format!("SELECT row_to_json(t)::text AS text FROM \"{table}\" t")
            } else {
                let columns = format!("SELECT name AS text FROM pragma_table_info('{table}')");
                let columns = texts(&mut conn, &columns).await.into_iter();
                let value = |name| {
                    format!(
                        "'{name}', CASE typeof({name}) WHEN 'blob' THEN hex({name}) ELSE {name} END"
                    )
                };
                let object = columns.map(value).collect::<Vec<_>>().join(", ");
                format!("SELECT json_object({object}) AS text FROM {table}")
            };
            let read = |row: &String| serde_json::from_str(row).expect("a JSON object");
            let mut found = texts(&mut conn, &select).await;
            found.sort();
            rows.insert(table, found.iter().map(read).collect());
        }
        rows
    }

    /// All rows as text.
    pub(crate) async fn dump(&self) -> String {
        let rows = self.rows().await.into_iter();
        rows.flat_map(|(table, rows)| {
            rows.into_iter()
                .map(move |row| format!("{table}: {row:?}\n"))
        })
        .collect()
    }

    /// Deletes the database.
    pub(crate) async fn remove(self) {
        match self.kept {
            Storage::Sqlite(directory) => directory
                .close()
                .expect("the temporary directory can be removed"),
            Storage::Postgres { server, name } => {
                run(&server, &format!("DROP DATABASE \"{name}\" WITH (FORCE)")).await;
            }
            Storage::Elsewhere => {}
        }
    }
}

async fn texts(conn: &mut Conn, query: &str) -> Vec<String> {
    use diesel_async::RunQueryDsl;
    let query = diesel::sql_query(query);
    let rows: Vec<Text> = on!(conn, |c| query.load(c).await).expect("rows");
    rows.into_iter().map(|row| row.text).collect()
}

/// The bytes of a migrated SQLite file.
async fn sqlite_template() -> &'static [u8] {
    static TEMPLATE: OnceCell<Vec<u8>> = OnceCell::const_new();
    let make = async || {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("template.db");
        migrate::up(&Location::Sqlite(file.clone()))
            .await
            .expect("migrations that apply");
        std::fs::read(&file).expect("a migrated file")
    };
    TEMPLATE.get_or_init(make).await
}

/// The name of a migrated template database. It contains a hash of the migrations, so later runs
/// can reuse it.
async fn postgres_template(server: &Url) -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let make = async || {
        let name = format!(
            "fasttrack_template_{:016x}",
            hash_of(Path::new("migrations/postgres"))
        );
        let client = connect(server).await;
        client
            .execute("SELECT pg_advisory_lock($1)", &[&LOCK])
            .await
            .expect("the lock");
        let made = client
            .query("SELECT FROM pg_database WHERE datname = $1", &[&name])
            .await
            .expect("an answer");
        if made.is_empty() {
            // Create it under a temporary name: an interrupted run must not leave an incomplete
            // template.
            let draft = format!("{name}_draft");
            run(server, &format!("DROP DATABASE IF EXISTS \"{draft}\"")).await;
            run(server, &format!("CREATE DATABASE \"{draft}\"")).await;
            migrate::up(&Location::Postgres(on(server, &draft)))
                .await
                .expect("migrations that apply");
            run(
                server,
                &format!("ALTER DATABASE \"{draft}\" RENAME TO \"{name}\""),
            )
            .await;
        }
        name
    };
    TEMPLATE.get_or_init(make).await
}

fn hash_of(directory: &Path) -> u64 {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let migrations = std::fs::read_dir(directory)
        .expect("migrations")
        .map(|entry| entry.expect("an entry").path());
    let mut migrations: Vec<_> = migrations.collect();
    migrations.sort();
    let mut hasher = DefaultHasher::new();
    for migration in migrations {
        (
            migration.file_name(),
            std::fs::read(migration.join("up.sql")).expect("up.sql"),
        )
            .hash(&mut hasher);
    }
    hasher.finish()
}

/// URL of another database on the same server. Turns off `synchronous_commit`, because test data
/// need not survive a crash.
fn on(server: &Url, database: &str) -> String {
    let mut url = server.clone();
    url.set_path(database);
    url.query_pairs_mut()
        .append_pair("options", "-csynchronous_commit=off");
    url.into()
}

async fn connect(server: &Url) -> Client {
    let (client, connection) = tokio_postgres::connect(server.as_str(), NoTls)
        .await
        .expect("the PostgreSQL server");
    tokio::spawn(connection);
    client
}

async fn run(server: &Url, statement: &str) {
    let done = connect(server).await.batch_execute(statement).await;
    done.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}
