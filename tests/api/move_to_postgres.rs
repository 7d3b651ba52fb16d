//! `fasttrack move` from SQLite to PostgreSQL: ids, sessions, cursors and inboxes survive.

use std::collections::BTreeSet;

use fasttrack::admin::relocate;
use fasttrack::db::Location;
use serde_json::{Value, json};

use crate::harness::{Database, MAIL_WAITS, Person, Reply, Scenario, Server, empty, text};

const LOG: &str = "query ($after: String) { events(first: 100, after: $after) {
    nodes { __typename id cursor occurredAt actor { id } }
} }";
const INBOX: &str = "{ viewer { id email unreadCount notifications(first: 100) { nodes { id kind task { id } } } } }";
const TASKS: &str = "{ tasks(first: 100) { nodes {
    id title description status dueAt version createdAt labels { id name } assignee { id } comments { nodes { id body } }
} } }";
const LIVE: &str =
    "subscription ($after: String) { events(after: $after) { __typename id cursor } }";

/// A user who returns to the moved server with their existing tokens.
async fn returned(server: &Server, person: &Person) -> Person {
    let reply = Reply::to(
        server
            .nobody()
            .post("/auth/refresh")
            .json(&json!({ "refresh_token": person.refresh_token })),
    );
    let reply = reply.await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    server.nobody().with_tokens(&reply.body)
}

fn names(cursors: &Value) -> Vec<String> {
    let nodes = cursors["events"]["nodes"].as_array().expect("events");
    nodes.iter().map(|event| text(&event["cursor"])).collect()
}

#[tokio::test]
async fn move_keeps_ids_sessions_cursors_and_inboxes() {
    let Some(target) = Database::bare().await else {
        return;
    };
    let server = Server::on(Database::sqlite().await, &MAIL_WAITS).await;
    let seen = server.person("carol").await.now().await;
    let life = Scenario::populate(&server).await;
    let before = life.bob.query(LOG, json!({ "after": seen })).await;
    let (inbox, tasks) = (
        life.bob.query(INBOX, json!({})).await,
        life.alice.query(TASKS, json!({})).await,
    );
    let source = server.stop().await;

    let rows = source.rows().await;
    assert_eq!(
        empty(&rows),
        BTreeSet::new(),
        "an empty table proves nothing: fill it in `Life`"
    );
    let moved = relocate::run(&source.location(), &target.location())
        .await
        .expect("a move");
    let counts = |name: &str| {
        moved
            .tables
            .iter()
            .find(|table| table.name == name)
            .map(|table| table.rows)
    };
    for (table, rows) in &rows {
        assert_eq!(counts(table), Some(rows.len() as u64), "{table}");
    }
    assert_eq!(moved.tables.len(), rows.len());
    assert_eq!(source.rows().await, rows, "the source is unchanged");
    source.remove().await;

    let server = Server::on(target, &MAIL_WAITS).await;
    assert!(server.is_signed_in(life.alice.token()).await);
    let (alice, bob) = (
        returned(&server, &life.alice).await,
        returned(&server, &life.bob).await,
    );
    assert_eq!(bob.query(LOG, json!({ "after": seen })).await, before);
    assert_eq!(bob.query(INBOX, json!({})).await, inbox);
    assert_eq!(alice.query(TASKS, json!({})).await, tasks);

    // Follow the log from an old cursor across the move to new events.
    let mut live = bob.subscribe(LIVE, json!({ "after": seen })).await;
    for cursor in names(&before) {
        assert_eq!(live.next().await["events"]["cursor"], *cursor);
    }
    let comment = alice.comment(&life.task, "Are we there, @bob?").await;
    let told = live.next().await["events"].clone();
    assert_eq!(told["__typename"], "CommentAddedEvent");
    let after = bob
        .query(LOG, json!({ "after": names(&before).last() }))
        .await;
    assert_eq!(
        names(&after),
        [text(&told["cursor"])],
        "new events come after the old ones: {comment}"
    );
    Scenario::settle(&server).await;
    let unread = |answer: &Value| answer["viewer"]["unreadCount"].as_i64();
    let now = bob.query(INBOX, json!({})).await;
    assert_eq!(unread(&now), unread(&inbox).map(|count| count + 1), "{now}");
}

#[tokio::test]
async fn move_is_atomic() {
    let (Some(target), source) = (Database::bare().await, Database::sqlite().await) else {
        return;
    };
    let (from, to) = (source.location(), target.location());
    let mail =
        "INSERT INTO mails (id, kind, recipient, data, created_at, next_attempt_at, attempts)
        VALUES (zeroblob(16), 70000, 'a@example.org', '', 0, 0, 0)";
    source.execute(mail).await;
    let refused = async || relocate::run(&from, &to).await.expect_err("a refusal");
    assert!(format!("{:?}", refused().await).contains("mails.kind"));
    let rows = target.rows().await;
    assert!(
        rows.iter()
            .all(|(table, rows)| rows.is_empty() || table == "projections"),
        "{rows:?}"
    );

    source.execute("UPDATE mails SET kind = 1").await;
    target.execute("CREATE TABLE others (id int)").await;
    assert!(
        format!("{:?}", refused().await).contains("others"),
        "a target with foreign tables"
    );
    target.execute("DROP TABLE others").await;

    source
        .execute("DELETE FROM __diesel_schema_migrations WHERE version = '20261121000001'")
        .await;
    assert!(
        format!("{:?}", refused().await).contains("version"),
        "a source with an older schema"
    );
    source
        .execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('20261121000001')")
        .await;

    relocate::run(&from, &to).await.expect("a move");
    relocate::run(&from, &to)
        .await
        .expect("a repeated move, because the target is unused");
    let server = Server::on(target, &[]).await;
    server.person("alice").await;
    let target = server.stop().await;
    assert!(
        format!("{:?}", refused().await).contains("in use"),
        "a target in use"
    );
    assert_eq!(target.rows().await["users"].len(), 1);
    target.remove().await;
    source.remove().await;
}

#[tokio::test]
async fn move_refuses_an_open_database_and_unsupported_directions() {
    let nowhere = Location::Postgres("postgres://nobody@127.0.0.1:1/nothing".to_owned());
    let server = Server::on(Database::sqlite().await, &[]).await;
    let alice = server.person("alice").await;
    let from = server.database().location();
    let refused = async |from: &Location, to: &Location| {
        let error = relocate::run(from, to).await.expect_err("a refusal");
        format!("{error:?}")
    };
    assert!(
        refused(&from, &nowhere)
            .await
            .contains("Stop the server first")
    );
    assert!(server.is_signed_in(alice.token()).await);
    alice.project("Apollo").await;
    assert!(
        refused(&nowhere, &from)
            .await
            .contains("only from SQLite to PostgreSQL")
    );
    assert!(refused(&from, &from).await.contains("fasttrack backup"));
    assert!(refused(&nowhere, &nowhere).await.contains("pg_dump"));
    let missing = server.database().location();
    let Location::Sqlite(path) = missing else {
        panic!("SQLite")
    };
    let missing = path.with_file_name("missing.db");
    assert!(
        refused(&Location::Sqlite(missing.clone()), &nowhere)
            .await
            .contains("no such file")
    );
    assert!(!missing.exists());
}

#[test]
fn move_copies_keys_without_overwriting() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let from = Location::Sqlite(path("old.db"));
    let to = Location::Sqlite(path("new.db"));
    let carry = |settings: &'static [(&str, &str)]| {
        let lookup = |name: &str| {
            settings
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        };
        relocate::copy_keys(&lookup, &from, &to)
    };
    assert!(
        carry(&[]).contains("every session ends"),
        "there are no keys to move"
    );
    std::fs::write(path("old.secrets"), "the keys").expect("a file");
    assert!(carry(&[("SECRET_KEY", "a"), ("REFRESH_SECRET_KEY", "b")]).contains("Keep SECRET_KEY"));
    assert!(!path("new.secrets").exists());
    for _ in 0..2 {
        assert!(carry(&[]).contains("sessions stay valid"));
    }
    assert_eq!(
        std::fs::read_to_string(path("new.secrets")).expect("a copy"),
        "the keys"
    );
    std::fs::write(path("new.secrets"), "other keys").expect("a file");
    assert!(carry(&[]).contains("every session ends"));
    assert_eq!(
        std::fs::read_to_string(path("new.secrets")).expect("the others"),
        "other keys"
    );
}
