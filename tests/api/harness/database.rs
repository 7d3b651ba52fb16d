//! A fresh database for each test: migrated once, then copied.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use diesel::{Connection, RunQueryDsl, SqliteConnection};
use fasttrack::db::{Location, migrate};
use fasttrack::id::Id;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};
use url::Url;

/// Held while the template is made, by whichever of the tests' processes comes first.
const LOCK: i64 = 0x7465_6d70_6c61_7465;

/// A database that is removed with its test.
pub struct Database {
    url: String,
    kept: Kept,
}

#[derive(diesel::QueryableByName)]
struct Text {
    #[diesel(sql_type = diesel::sql_types::Text)]
    text: String,
}

enum Kept {
    Sqlite(TempDir),
    Postgres {
        server: Url,
        name: String,
    },
    /// Somebody else's, who removes it.
    Elsewhere,
}

/// The PostgreSQL server to test on, if one is named.
fn server() -> Option<Url> {
    let url = std::env::var("TEST_DATABASE_URL").ok().filter(|url| url.starts_with("postgres"))?;
    Some(url.parse().expect("TEST_DATABASE_URL is a URL"))
}

/// Whether the tests run on PostgreSQL.
pub fn is_postgres() -> bool {
    server().is_some()
}

impl Database {
    /// A database at this version's schema, with nothing in it.
    pub async fn fresh() -> Self {
        match server() {
            Some(server) => {
                let (template, name) = (postgres_template(&server).await, format!("fasttrack_test_{}", Id::new()));
                run(&server, &format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\"")).await;
                let url = on(&server, &name);
                Self { url, kept: Kept::Postgres { server, name } }
            }
            None => {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let file = directory.path().join("fasttrack.db");
                std::fs::write(&file, sqlite_template().await).expect("a copy of the template");
                Self { url: format!("sqlite://{}", file.display()), kept: Kept::Sqlite(directory) }
            }
        }
    }

    /// The same database, for a second server.
    pub fn shared(&self) -> Self {
        Self { url: self.url.clone(), kept: Kept::Elsewhere }
    }

    /// Its `DATABASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Every row of every table, as text.
    pub async fn dump(&self) -> String {
        match &self.kept {
            Kept::Sqlite(directory) => {
                let mut conn = SqliteConnection::establish(&directory.path().join("fasttrack.db").to_string_lossy());
                let conn = conn.as_mut().expect("the file");
                let tables: Vec<String> =
                    diesel::sql_query("SELECT name AS text FROM sqlite_schema WHERE type = 'table'")
                        .load::<Text>(conn)
                        .expect("tables")
                        .into_iter()
                        .map(|row| row.text)
                        .collect();
                let mut dump = String::new();
                for table in tables {
                    let columns: Vec<Text> =
                        diesel::sql_query(format!("SELECT name AS text FROM pragma_table_info('{table}')"))
                            .load(conn)
                            .expect("columns");
                    for Text { text: column } in columns {
                        let values = format!("SELECT coalesce(CAST({column} AS TEXT), '') AS text FROM {table}");
                        let values: Vec<Text> = diesel::sql_query(values).load(conn).unwrap_or_default();
                        dump.extend(values.into_iter().map(|row| format!("{table}.{column} = {}\n", row.text)));
                    }
                }
                dump
            }
            Kept::Postgres { server, name } => {
                let client = connect(&on(server, name).parse().expect("a URL")).await;
                let tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'";
                let mut dump = String::new();
                for table in client.query(tables, &[]).await.expect("tables") {
                    let table: String = table.get(0);
                    let rows = client.query(&format!("SELECT t::text FROM \"{table}\" t"), &[]).await.expect("rows");
                    dump.extend(rows.iter().map(|row| format!("{table}: {}\n", row.get::<_, String>(0))));
                }
                dump
            }
            Kept::Elsewhere => unreachable!("ask whoever keeps it"),
        }
    }

    /// Removes it with all that is in it.
    pub async fn remove(self) {
        match self.kept {
            Kept::Sqlite(directory) => directory.close().expect("the temporary directory can be removed"),
            Kept::Postgres { server, name } => {
                run(&server, &format!("DROP DATABASE \"{name}\" WITH (FORCE)")).await;
            }
            Kept::Elsewhere => {}
        }
    }
}

/// The bytes of a migrated file.
async fn sqlite_template() -> &'static [u8] {
    static TEMPLATE: OnceCell<Vec<u8>> = OnceCell::const_new();
    let make = async || {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("template.db");
        migrate::up(&Location::Sqlite(file.clone())).await.expect("migrations that apply");
        std::fs::read(&file).expect("a migrated file")
    };
    TEMPLATE.get_or_init(make).await
}

/// The name of a migrated database. It says what the migrations were, so it can stay for the next run.
async fn postgres_template(server: &Url) -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let make = async || {
        let name = format!("fasttrack_template_{:016x}", hash_of(Path::new("migrations/postgres")));
        let client = connect(server).await;
        client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.expect("the lock");
        let made = client.query("SELECT FROM pg_database WHERE datname = $1", &[&name]).await.expect("an answer");
        if made.is_empty() {
            // Under another name first: a run that is broken off must not leave half a template.
            let draft = format!("{name}_draft");
            run(server, &format!("DROP DATABASE IF EXISTS \"{draft}\"")).await;
            run(server, &format!("CREATE DATABASE \"{draft}\"")).await;
            migrate::up(&Location::Postgres(on(server, &draft))).await.expect("migrations that apply");
            run(server, &format!("ALTER DATABASE \"{draft}\" RENAME TO \"{name}\"")).await;
        }
        name
    };
    TEMPLATE.get_or_init(make).await
}

fn hash_of(directory: &Path) -> u64 {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let migrations = std::fs::read_dir(directory).expect("migrations").map(|entry| entry.expect("an entry").path());
    let mut migrations: Vec<_> = migrations.collect();
    migrations.sort();
    let mut hasher = DefaultHasher::new();
    for migration in migrations {
        (migration.file_name(), std::fs::read(migration.join("up.sql")).expect("up.sql")).hash(&mut hasher);
    }
    hasher.finish()
}

/// The URL of another database on the same server. Nothing in it has to survive a power cut.
fn on(server: &Url, database: &str) -> String {
    let mut url = server.clone();
    url.set_path(database);
    url.query_pairs_mut().append_pair("options", "-csynchronous_commit=off");
    url.into()
}

async fn connect(server: &Url) -> Client {
    let (client, connection) = tokio_postgres::connect(server.as_str(), NoTls).await.expect("the PostgreSQL server");
    tokio::spawn(connection);
    client
}

async fn run(server: &Url, statement: &str) {
    let done = connect(server).await.batch_execute(statement).await;
    done.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}
