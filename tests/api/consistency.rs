//! Consistency of the SDL, database schema, settings, deployment examples and module dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Text};
use diesel_async::RunQueryDsl;
use fasttrack::db::{Db, Location, migrate};
use fasttrack::{config, graphql, on};
use serde_json::{Value, json};

use crate::harness::{Database, Server, is_postgres, text};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn schema_graphql_is_up_to_date() {
    assert!(
        read("schema.graphql") == graphql::sdl(),
        "run `cargo run -- schema > schema.graphql`"
    );
}

#[test]
fn schema_graphql_parses() {
    // async-graphql writes a deprecation reason unescaped, so quotation marks would break the SDL.
    async_graphql::parser::parse_schema(graphql::sdl()).expect("no quotation marks in a reason");
}

/// Every named element of the schema with its description.
fn described(kind: &Value, found: &mut Vec<(String, Value)>) {
    let name = text(&kind["name"]);
    found.push((name.clone(), kind["description"].clone()));
    for members in ["fields", "inputFields", "enumValues"] {
        for member in kind[members].as_array().into_iter().flatten() {
            let path = format!("{name}.{}", text(&member["name"]));
            found.push((path.clone(), member["description"].clone()));
            for argument in member["args"].as_array().into_iter().flatten() {
                found.push((
                    format!("{path}({})", text(&argument["name"])),
                    argument["description"].clone(),
                ));
            }
        }
    }
}

#[tokio::test]
async fn everything_in_the_schema_is_described() {
    let server = Server::start().await;
    let document = "{ __schema { types {
        name description
        fields(includeDeprecated: true) { name description args { name description } }
        inputFields { name description }
        enumValues(includeDeprecated: true) { name description }
    } } }";
    let schema = server.nobody().query(document, json!({})).await;
    let mut found = Vec::new();
    for kind in schema["__schema"]["types"].as_array().expect("types") {
        // Types and directives of GraphQL itself are described in the specification.
        if !text(&kind["name"]).starts_with("__") && kind["name"] != "ID" {
            described(kind, &mut found);
        }
    }
    assert!(found.len() > 300, "{} names", found.len());
    let silent = found
        .iter()
        .filter(|(_, words)| words.as_str().is_none_or(|words| words.trim().is_empty()));
    assert_eq!(
        silent.map(|(name, _)| name).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
}

/// Columns by table and name: SQL type and nullability.
type Columns = BTreeMap<(String, String), (String, bool)>;

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    column_name: String,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Bool)]
    nullable: bool,
}

const POSTGRES_COLUMNS: &str = "SELECT table_name::text, column_name::text, data_type::text AS kind, \
    is_nullable = 'YES' AS nullable FROM information_schema.columns WHERE table_schema = 'public'";
const SQLITE_COLUMNS: &str = "SELECT m.name AS table_name, c.name AS column_name, c.type AS kind, \
    c.\"notnull\" = 0 AND c.pk = 0 AS nullable \
    FROM sqlite_master m JOIN pragma_table_xinfo(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'";

/// The columns as created by the migrations.
async fn made(location: &Location) -> Columns {
    let db = Db::open(location, 1).expect("a database");
    let mut conn = db.conn().await.expect("a connection");
    let query = diesel::sql_query(if is_postgres() {
        POSTGRES_COLUMNS
    } else {
        SQLITE_COLUMNS
    });
    let columns: Vec<Column> = on!(conn, |c| query.load(c).await).expect("columns");
    let columns = columns
        .into_iter()
        .filter(|column| column.table_name != "__diesel_schema_migrations");
    columns
        .map(|column| {
            (
                (column.table_name, column.column_name),
                (column.kind, column.nullable),
            )
        })
        .collect()
}

/// The columns as declared in `schema.rs`, with their SQL types on this database.
fn declared_columns() -> Columns {
    let source = read("src/db/schema.rs");
    let mut columns = Columns::new();
    let mut table = "";
    let lines = source.lines().map(str::trim);
    for line in lines.filter(|line| !line.starts_with("joinable!")) {
        if let Some((name, _)) = line.split_once(" (").filter(|_| line.ends_with(") {")) {
            table = name;
        } else if let Some((column, kind)) = line.trim_end_matches(',').split_once(" -> ") {
            let inner = kind
                .strip_prefix("Nullable<")
                .and_then(|kind| kind.strip_suffix('>'));
            let (postgres, sqlite) = match inner.unwrap_or(kind) {
                "Uuid" => ("uuid", "BLOB"),
                "Text" => ("text", "TEXT"),
                "Instant" => ("timestamp with time zone", "INTEGER"),
                "SmallInt" => ("smallint", "INTEGER"),
                "Integer" => ("integer", "INTEGER"),
                "BigInt" => ("bigint", "INTEGER"),
                "Bool" => ("boolean", "INTEGER"),
                "Binary" => ("bytea", "BLOB"),
                other => panic!("{table}.{column} has an unknown type: {other}"),
            };
            let kind = if is_postgres() { postgres } else { sqlite };
            columns.insert(
                (table.to_owned(), column.to_owned()),
                (kind.to_owned(), inner.is_some()),
            );
        }
    }
    columns
}

fn migrations(database: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(root("migrations").join(database)).expect("migrations");
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

#[tokio::test]
async fn migrations_match_the_schema_and_are_reversible() {
    let database = Database::fresh().await;
    let location = Location::parse(database.url()).expect("a location");
    assert_eq!(made(&location).await, declared_columns());
    let count = migrations("sqlite").len();
    for _ in 0..count {
        migrate::down(&location)
            .await
            .expect("a migration that goes down");
    }
    assert_eq!(made(&location).await, Columns::new(), "no tables are left");
    assert_eq!(
        migrate::up(&location).await.expect("migrations that go up"),
        count
    );
    assert_eq!(migrate::up(&location).await.expect("nothing to do"), 0);
    assert_eq!(made(&location).await, declared_columns());
    database.remove().await;
}

#[test]
fn both_databases_have_the_same_migrations() {
    assert_eq!(migrations("sqlite"), migrations("postgres"));
}

/// The top-level modules from the outside in. Each may use those of later rows, and no other of its
/// own row.
const ORDER: [&[&str]; 11] = [
    &["main"],
    &["server", "jobs", "admin", "demo"],
    &["mail"],
    &["http"],
    &["admission"],
    &["auth", "graphql"],
    &["store"],
    &["events"],
    &["telemetry"],
    BASE,
    &["network"],
];

/// Modules that may use each other: ids and timestamps are column types of `db`, and errors,
/// settings, limits and metrics share types.
const BASE: &[&str] = &[
    "access", "config", "db", "error", "id", "limits", "metrics", "time",
];

/// Exceptions, as (user, used): settings use the types and maximums of the code that they configure,
/// and metrics export the counters of password hashing.
const EXCEPTIONS: [(&str, &str); 3] =
    [("config", "http"), ("config", "store"), ("metrics", "auth")];

/// The modules that `lib.rs` declares.
fn top_level_modules() -> Vec<String> {
    let source = read("src/lib.rs");
    let declared = source.lines().filter_map(|line| {
        line.strip_prefix("pub ")
            .unwrap_or(line)
            .strip_prefix("mod ")
    });
    let mut modules: Vec<String> = declared
        .filter_map(|line| Some(line.strip_suffix(';')?.to_owned()))
        .collect();
    modules.sort();
    modules
}

#[test]
fn the_map_in_lib_lists_every_module() {
    let source = read("src/lib.rs");
    let map: Vec<&str> = source
        .lines()
        .filter(|line| line.starts_with("//!"))
        .collect();
    assert!(
        map.len() <= 40,
        "{} lines: details belong in docs/internals",
        map.len()
    );
    let links = map.iter().flat_map(|line| line.split("[`").skip(1));
    let mut listed: Vec<&str> = links
        .filter_map(|link| Some(link.split_once("`]")?.0))
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, top_level_modules(), "each module once");
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names that follow `crate::` in code: one, or each in braces. Comments may refer to any module.
fn used_modules(source: &str) -> BTreeSet<String> {
    let code: Vec<&str> = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let mut used = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let names = path
            .strip_prefix('{')
            .map_or(path, |group| group.split('}').next().unwrap_or_default());
        let count = if path.starts_with('{') { usize::MAX } else { 1 };
        for name in names.split(',').take(count) {
            used.insert(
                name.trim_start()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    used
}

#[test]
fn modules_use_only_modules_further_in() {
    let ordered = ORDER.into_iter().flatten().copied();
    let mut ordered: Vec<&str> = ordered.filter(|module| *module != "main").collect();
    ordered.sort_unstable();
    assert_eq!(ordered, top_level_modules(), "each module has its row");

    let row = |module: &str| ORDER.iter().position(|modules| modules.contains(&module));
    let mut files = Vec::new();
    sources(&root("src"), &mut files);
    let (mut outward, mut excepted) = (Vec::new(), BTreeSet::new());
    for file in files {
        let path = file
            .strip_prefix(root("src"))
            .expect("a source")
            .to_string_lossy()
            .into_owned();
        let module = path.split(['/', '.']).next().unwrap_or_default();
        // `lib.rs` declares the modules and assembles `App` from all of them.
        let Some(own) = row(module) else { continue };
        for used in used_modules(&std::fs::read_to_string(&file).expect("a source")) {
            let Some(other) = row(&used).filter(|_| used != module) else {
                continue;
            };
            if other > own || BASE.contains(&module) && BASE.contains(&used.as_str()) {
                continue;
            }
            if let Some(exception) = EXCEPTIONS
                .into_iter()
                .find(|exception| *exception == (module, used.as_str()))
            {
                excepted.insert(exception);
            } else {
                outward.push(format!("{path} uses {used}"));
            }
        }
    }
    assert_eq!(outward, Vec::<String>::new());
    assert_eq!(
        excepted,
        BTreeSet::from(EXCEPTIONS),
        "no exception is obsolete"
    );
}

#[test]
fn env_example_lists_every_setting_once() {
    let example = read(".env.example");
    let names = example
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once('='));
    let names: Vec<&str> = names
        .map(|(name, _)| name)
        .filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        })
        .collect();
    let known: BTreeSet<&str> = config::SETTING_NAMES.into_iter().collect();
    assert_eq!(names.iter().copied().collect::<BTreeSet<_>>(), known);
    assert_eq!(names.len(), known.len(), "one line each");
}

#[test]
fn the_settings_page_has_one_row_for_each_setting() {
    let page = read("docs/reference/settings.md");
    let first = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let named: Vec<&str> = first
        .flat_map(|cell| cell.split("`, `"))
        .map(|name| name.trim_end_matches('`'))
        .collect();
    let known: BTreeSet<&str> = config::SETTING_NAMES.into_iter().collect();
    assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), known);
    assert_eq!(named.len(), known.len(), "one row each");
}

#[test]
fn dockerfile_copies_every_target_in_the_manifest() {
    let (ignored, recipe, manifest) = (
        read(".dockerignore"),
        read("Dockerfile"),
        read("Cargo.toml"),
    );
    let mut needed = vec!["src".to_owned(), "migrations".to_owned()];
    let mut kind = "";
    for line in manifest.lines() {
        match line {
            "[[bench]]" => kind = "benches",
            "[[test]]" => kind = "tests",
            "[[example]]" => kind = "examples",
            _ if line.starts_with("name = ") && !kind.is_empty() => {
                needed.push(std::mem::take(&mut kind).to_owned())
            }
            _ => {}
        }
    }
    assert!(needed.contains(&"benches".to_owned()), "{needed:?}");
    for directory in needed {
        assert!(
            recipe.contains(&format!("\nCOPY {directory} {directory}\n")),
            "Dockerfile: {directory}"
        );
        assert!(
            ignored.contains(&format!("\n!{directory}\n")),
            ".dockerignore: {directory}"
        );
    }
}

#[test]
fn deployment_examples_trust_only_private_proxies() {
    for file in [
        "docker-compose.yml",
        "deploy/three-nodes/compose.yml",
        "deploy/kubernetes.yaml",
    ] {
        let text = read(file);
        let trusted = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix("TRUSTED_PROXIES:"));
        let trusted = trusted
            .unwrap_or_else(|| panic!("{file} names TRUSTED_PROXIES"))
            .trim()
            .trim_matches('"');
        let bits = trusted
            .split_once('/')
            .map_or(32, |(_, bits)| bits.parse().expect("a width"));
        assert!(trusted.starts_with("${") || bits >= 24, "{file}: {trusted}");
    }
    assert!(read("deploy/kubernetes.yaml").contains("kind: NetworkPolicy"));
}

#[test]
fn deployment_examples_use_existing_settings() {
    for file in [
        "docker-compose.yml",
        "deploy/three-nodes/compose.yml",
        "deploy/kubernetes.yaml",
    ] {
        let text = read(file);
        let names = text
            .lines()
            .filter_map(|line| line.trim_start().split_once(':'))
            .map(|(name, _)| name);
        let names = names.filter(|name| {
            name.contains('_') && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        });
        let names: BTreeSet<&str> = names
            .filter(|name| !name.starts_with("POSTGRES_"))
            .collect();
        assert!(names.contains("PUBLIC_URL"), "{file}");
        let unknown: Vec<_> = names
            .iter()
            .filter(|name| !config::SETTING_NAMES.contains(name))
            .collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}
