//! Guarantees of the event log: no event is lost, early or duplicated, and an expired cursor is
//! reported as such.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use fasttrack::db::schema::events as table;
use fasttrack::db::{Conn, migrate};
use fasttrack::error::Error;
use fasttrack::events::{self, EventKind, LogPosition, NewEvent};
use fasttrack::graphql::node;
use fasttrack::id::Id;
use fasttrack::on;
use fasttrack::store::event as store;
use serde_json::{Value, json};

use crate::harness::{Frame, Person, Server, is_postgres, text};

const DAY: Duration = Duration::from_secs(86_400);
const STREAM: &str =
    "subscription ($after: String) { events(after: $after) { id cursor __typename } }";
const PAGE: &str = "query ($after: String) {
    events(first: 100, after: $after) { edges { cursor node { id __typename } } pageInfo { hasNextPage } } }";

fn id(of: &str) -> Option<Id> {
    node::decode(&of.to_owned().into()).map(|(_, id)| id)
}

/// Deletes expired events, as the background job does.
async fn expire(server: &Server) {
    let expired = server.run(async move |app| {
        let mut conn = app.db.conn().await?;
        let done = events::settled_end(&mut conn).await?;
        drop(conn);
        while store::expire(&app.db, app.config.event_retention, app.clock.now(), done).await? {}
        Ok::<_, Error>(())
    });
    expired.await.expect("the retention horizon");
}

/// The ids of all events after a cursor, read page by page.
async fn read(person: &Person, mut after: Value) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let page = person.query(PAGE, json!({ "after": after })).await["events"].clone();
        let edges = page["edges"].as_array().expect("edges").clone();
        ids.extend(edges.iter().map(|edge| text(&edge["node"]["id"])));
        match edges.last() {
            Some(edge) if page["pageInfo"]["hasNextPage"] == true => after = edge["cursor"].clone(),
            _ => return ids,
        }
    }
}

#[tokio::test]
async fn an_expired_cursor_is_reported_with_the_oldest_that_works() {
    let server = Server::with(&[("EVENT_RETENTION_DAYS", "2")]).await;
    let alice = server.person("alice").await;
    let start = alice.now().await;
    let project = alice.project("Apollo").await;
    let (kept, gone) = (
        alice.task(&project, "Kept", json!({})).await,
        alice.task(&project, "Gone", json!({})).await,
    );
    alice.mutate("deleteTask", json!({ "id": gone })).await.ok();
    expire(&server).await;
    assert_eq!(
        read(&alice, json!(start)).await.len(),
        3,
        "no event has expired yet"
    );

    server.advance(3 * DAY);
    let alice = server.login("alice").await;
    alice.comment(&kept, "New").await;
    expire(&server).await;

    let refused = alice.ask(PAGE, json!({ "after": start })).await;
    assert_eq!(refused.codes(), ["CURSOR_EXPIRED"]);
    let oldest = refused.0["errors"][0]["extensions"]["oldestCursor"].clone();
    let before = "query ($before: String) { events(last: 5, before: $before) { nodes { id } } }";
    assert_eq!(
        alice.ask(before, json!({ "before": start })).await.codes(),
        ["CURSOR_EXPIRED"]
    );
    assert_eq!(
        alice
            .subscribe(STREAM, json!({ "after": start }))
            .await
            .end()
            .await,
        "CURSOR_EXPIRED"
    );

    let mut told = alice.subscribe(STREAM, json!({ "after": oldest })).await;
    assert_eq!(
        told.next().await["events"]["__typename"],
        "CommentAddedEvent"
    );
    assert_eq!(read(&alice, oldest).await.len(), 1);
    assert_eq!(
        read(&alice, Value::Null).await.len(),
        1,
        "the log starts there"
    );

    let history = "query ($task: ID!) { task(id: $task) { activity { nodes { __typename } } } }";
    let history =
        alice.query(history, json!({ "task": kept })).await["task"]["activity"]["nodes"].clone();
    assert_eq!(
        history,
        json!([{ "__typename": "TaskCreatedEvent" }, { "__typename": "CommentAddedEvent" }]),
        "an existing task keeps its whole history"
    );
    assert!(
        !server.dump().await.contains("Gone"),
        "nothing is kept about a deleted task"
    );
}

#[tokio::test]
async fn end_of_an_emptied_log_is_a_valid_cursor() {
    let retention = [("EVENT_RETENTION_DAYS", "2")];
    let server = Server::with(&retention).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let (kept, gone) = (
        alice.task(&project, "Kept", json!({})).await,
        alice.task(&project, "Gone", json!({})).await,
    );
    alice.mutate("deleteTask", json!({ "id": gone })).await.ok();
    server.advance(3 * DAY);
    expire(&server).await;
    let server = server.again(&retention).await;
    let alice = server.login("alice").await;
    let answer = alice.ask("{ viewer { id } }", json!({})).await.0;
    let cursor = answer["extensions"]["sync"]["cursor"].clone();
    let mut told = alice.subscribe(STREAM, json!({ "after": cursor })).await;
    assert_eq!(read(&alice, cursor.clone()).await, [""; 0]);
    alice.comment(&kept, "New").await;
    assert_eq!(
        read(&alice, cursor).await,
        [text(&told.next().await["events"]["id"])]
    );
}

#[tokio::test]
async fn event_that_failed_to_load_is_delivered_after_resuming() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let label = alice.label(&project, "urgent").await;
    let task = alice
        .task(&project, "Fly", json!({ "labelIds": [label] }))
        .await;
    let document = "subscription ($after: String) {
        commentAdded(after: $after) { cursor task { labels { name } } comment { body } } }";
    let stream = async |after: &Value| {
        let request = alice.post("/graphql").header("accept", "text/event-stream");
        let request = match after.as_str() {
            Some(after) => request.header("last-event-id", after),
            None => request,
        };
        request
            .json(&json!({ "query": document }))
            .send()
            .await
            .expect("a stream")
    };
    let mut socket = alice.socket().await;
    socket.subscribe("1", document, json!({})).await;
    let streamed = stream(&Value::Null).await;
    alice.comment(&task, "told").await;
    let Frame::Message(told) = socket.receive().await else {
        panic!("an end")
    };
    let cursor = told["payload"]["data"]["commentAdded"]["cursor"].clone();

    let fails = if is_postgres() {
        "CAST('lock timeout' || name AS int) = 1"
    } else {
        "json_extract('{}', 'lock timeout' || name) = 1"
    };
    let labels = format!("CREATE VIEW labels AS SELECT * FROM kept WHERE {fails}");
    server
        .database()
        .execute(&format!("ALTER TABLE labels RENAME TO kept; {labels}"))
        .await;
    alice.comment(&task, "missed").await;
    let Frame::Message(failed) = socket.receive().await else {
        panic!("an end")
    };
    assert_eq!(
        (&failed["type"], &failed["payload"][0]["extensions"]["code"]),
        (&json!("error"), &json!("SERVICE_UNAVAILABLE"))
    );
    let text = streamed.text().await.expect("a stream that ends");
    let told = text
        .split_terminator("\n\n")
        .filter(|event| !event.starts_with(':'))
        .collect::<Vec<_>>();
    let [first, failed] = told[..] else {
        panic!("{text}")
    };
    assert!(
        first.contains(&format!("id: {}\n", cursor.as_str().expect("a cursor"))),
        "{first}"
    );
    assert!(failed.contains("SERVICE_UNAVAILABLE"), "{failed}");
    assert!(
        failed.contains(&format!("id: {}\n", cursor.as_str().expect("a cursor"))),
        "the cursor before the missed event: {failed}"
    );

    server
        .database()
        .execute("DROP VIEW labels; ALTER TABLE kept RENAME TO labels")
        .await;
    socket
        .subscribe("2", document, json!({ "after": cursor }))
        .await;
    let Frame::Message(told) = socket.receive().await else {
        panic!("an end")
    };
    assert_eq!(
        told["payload"]["data"]["commentAdded"]["comment"]["body"],
        "missed"
    );
    let mut resumed = stream(&cursor).await;
    let mut text = String::new();
    while !text.contains("missed") {
        let chunk = resumed.chunk().await.expect("a stream").expect("an event");
        text.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
}

#[tokio::test]
async fn event_count_is_limited_by_retention() {
    let server = Server::with(&[("EVENT_RETENTION_COUNT", "5")]).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for number in 0..12 {
        alice.task(&project, &number.to_string(), json!({})).await;
    }
    expire(&server).await;
    let nodes = alice
        .query(
            "{ events { nodes { ... on TaskCreatedEvent { task { title } } } } }",
            json!({}),
        )
        .await;
    let titles: Vec<String> = (7..12).map(|number| number.to_string()).collect();
    let titles: Vec<Value> = titles
        .iter()
        .map(|title| json!({ "task": { "title": title } }))
        .collect();
    assert_eq!(nodes["events"]["nodes"], json!(titles));
}

#[tokio::test]
async fn nothing_expires_before_the_inboxes_have_read_it() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({})).await;
    server.advance(30 * DAY);
    let more = server.run(async move |app| {
        store::expire(
            &app.db,
            app.config.event_retention,
            app.clock.now(),
            LogPosition::default(),
        )
        .await
    });
    assert!(!more.await.expect("an answer"));
    let alice = server.login("alice").await;
    assert_eq!(read(&alice, Value::Null).await.len(), 1);
}

#[tokio::test]
async fn a_quiet_stream_outlives_the_retention_and_a_lagging_one_ends_with_an_error() {
    let server = Server::with(&[
        ("EVENT_RETENTION_DAYS", "1"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "10000"),
    ])
    .await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let document =
        "subscription ($after: String) { commentAdded(after: $after) { comment { body } } }";
    let mut quiet = alice.subscribe(document, json!({})).await;
    alice.comment(&task, "first").await;
    assert_eq!(
        quiet.next().await["commentAdded"]["comment"]["body"],
        "first"
    );

    // No event for this stream for longer than the retention period.
    for _ in 0..3 {
        server.advance(DAY);
        alice.task(&project, "Another", json!({})).await;
        expire(&server).await;
    }
    // More events than the queue holds, so the stream catches up from the log at the last position
    // it processed.
    let many = NewEvent {
        owner_id: id(&alice.id),
        project_id: id(&project),
        task_id: id(&task),
        ..NewEvent::new(EventKind::CommentAdded, None, server.app.clock.now())
    };
    let written = server.run(async move |app| {
        let many: Vec<NewEvent> = (0..100)
            .map(|_| NewEvent {
                id: Id::new(),
                ..many.clone()
            })
            .collect();
        app.db
            .transaction(async |tx: &mut Conn| events::append(tx, &many).await)
            .await
    });
    written.await.expect("a hundred events");
    for _ in 0..100 {
        assert_eq!(quiet.next().await["commentAdded"]["comment"], Value::Null);
    }
}

#[tokio::test]
async fn events_missing_from_a_query_come_after_its_cursor() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let seen = |answer: &Value| -> HashSet<String> {
        let nodes = answer["data"]["project"]["tasks"]["nodes"]
            .as_array()
            .expect("tasks");
        nodes.iter().map(|task| text(&task["id"])).collect()
    };
    let document = "query ($id: ID!) { project(id: $id) { tasks(first: 100) { nodes { id } } } }";
    let stream =
        "subscription ($after: String) { events(after: $after, filter: { types: [TASK_CREATED] }) {
        ... on TaskCreatedEvent { task { id title } } } }";
    let writers = (0..4).map(|writer| {
        let (alice, project) = (alice.clone(), project.clone());
        async move {
            for number in 0..10 {
                let input = json!({ "projectId": project, "title": format!("{writer}-{number}") });
                let create = "mutation ($input: CreateTaskInput!) { createTask(input: $input) { task { id } } }";
                assert!(alice.ask(create, json!({ "input": input })).await.codes().is_empty());
            }
        }
    });
    let reader = async {
        for _ in 0..5 {
            let answer = alice.ask(document, json!({ "id": project })).await;
            let mut known = seen(&answer.0);
            let cursor = answer.0["extensions"]["sync"]["cursor"].clone();
            let mut told = alice.subscribe(stream, json!({ "after": cursor })).await;
            while known.len() < 40 {
                known.insert(text(&told.next().await["events"]["task"]["id"]));
            }
        }
    };
    let ((), _) = tokio::join!(reader, futures_util::future::join_all(writers));

    let made = alice
        .ask(
            "mutation { createProject(input: { name: \"x\" }) { project { id } } }",
            json!({}),
        )
        .await;
    assert!(
        made.0["extensions"]["sync"]["cursor"].is_string(),
        "{}",
        made.0
    );
    let mut socket = alice.socket().await;
    socket.subscribe("1", "{ viewer { id } }", json!({})).await;
    let Frame::Message(next) = socket.receive().await else {
        panic!("no answer")
    };
    assert!(
        next["payload"]["extensions"]["sync"]["cursor"].is_string(),
        "also on a socket: {next}"
    );
}

/// Compares the feed with a naive reader (`id > last`) while writers keep transactions open.
#[tokio::test]
async fn concurrent_writers_lose_no_event_unlike_a_naive_reader() {
    const WRITERS: u64 = 32;
    const EACH: u64 = 6;
    let server = Server::with(&[("DATABASE_CONNECTIONS", "40")]).await;
    let alice = server.person("alice").await;
    let start = alice.now().await;
    let mut told = alice.subscribe(STREAM, json!({ "after": start })).await;
    let (owner, running) = (id(&alice.id), Arc::new(AtomicBool::new(true)));

    let going_on = Arc::clone(&running);
    let naive = server.run(async move |app| {
        let (mut last, mut seen) = (0, Vec::new());
        loop {
            // Check before reading the log, so that the last read comes after the last commit.
            let over = !AtomicBool::load(&going_on, Ordering::SeqCst);
            let mut conn = app.db.conn().await?;
            let next = table::table
                .filter(table::seq.gt(last))
                .order_by(table::seq)
                .select((table::seq, table::id));
            let next: Vec<(i64, Id)> = on!(conn, |c| next.load(c).await)?;
            for (seq, id) in next {
                last = seq;
                seen.push(id);
            }
            if over {
                return Ok::<_, Error>(seen);
            }
            tokio::task::yield_now().await;
        }
    });
    let writers = (0..WRITERS).map(|writer| {
        server.run(async move |app| {
            let mut written = Vec::new();
            for number in 0..EACH {
                let event = NewEvent {
                    owner_id: owner,
                    ..NewEvent::new(EventKind::ProjectDeleted, None, app.clock.now())
                };
                // Every eighth writer keeps its transaction open while the others commit.
                let held = if writer % 8 == 0 {
                    400 + 100 * number
                } else {
                    (writer * 7 + number * 13) % 20
                };
                let held = if is_postgres() {
                    Duration::from_millis(held)
                } else {
                    Duration::ZERO
                };
                let work = async |tx: &mut Conn| {
                    events::append(tx, std::slice::from_ref(&event)).await?;
                    tokio::time::sleep(held).await;
                    Ok(())
                };
                while app.db.transaction(work).await.is_err() {}
                written.push(event.id);
            }
            written
        })
    });
    let writing = async {
        let written = futures_util::future::join_all(writers).await;
        running.store(false, Ordering::SeqCst);
        written.into_iter().flatten().collect::<HashSet<Id>>()
    };
    let streaming = async {
        let mut ids = Vec::new();
        for _ in 0..WRITERS * EACH {
            ids.push(text(&told.next().await["events"]["id"]));
        }
        ids
    };
    let (naive, written, streamed) = tokio::join!(naive, writing, streaming);
    let global = |id: &Id| node::encode(node::NodeType::Event, *id).to_string();
    let expected: HashSet<String> = written.iter().map(global).collect();
    assert_eq!(
        streamed.iter().cloned().collect::<HashSet<_>>(),
        expected,
        "every event exactly once"
    );
    assert_eq!(streamed.len(), expected.len(), "none twice");
    assert_eq!(
        read(&alice, json!(start)).await,
        streamed,
        "the query returns the same order"
    );
    let naive: HashSet<Id> = naive.expect("an answer").into_iter().collect();
    let lost = written.difference(&naive).count();
    assert_eq!(lost > 0, is_postgres(), "the naive reader lost {lost}");
}

#[tokio::test]
async fn events_written_by_one_instance_reach_another() {
    let server = Server::start().await;
    let other = server.beside().await;
    let alice = server.person("alice").await;
    let elsewhere = other.login("alice").await;
    let mut told = elsewhere.subscribe(STREAM, json!({})).await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({})).await;
    assert_eq!(
        told.next().await["events"]["__typename"],
        "TaskCreatedEvent"
    );
}

#[tokio::test]
async fn restored_log_continues_after_its_end() {
    if !is_postgres() {
        // SQLite's log is numbered by row, so positions move with the file.
        return;
    }
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "Old", json!({})).await;
    // As if the log came from a server with a much higher transaction id.
    let shifted = server.run(async move |app| {
        let shift = diesel::update(table::table).set(table::xid.eq(table::xid + (1 << 40)));
        let mut conn = app.db.conn().await?;
        on!(conn, |c| shift.execute(c).await)?;
        migrate::up(&app.config.database).await
    });
    assert_eq!(shifted.await.expect("an answer"), 0);
    let server = server.again(&[]).await;
    let alice = server.login("alice").await;
    let log = alice.query(PAGE, json!({})).await["events"]["edges"].clone();
    assert_eq!(log.as_array().map(Vec::len), Some(1), "{log}");
    let cursor = log[0]["cursor"].clone();
    let mut told = alice.subscribe(STREAM, json!({ "after": cursor })).await;
    alice.task(&project, "New", json!({})).await;
    let new = told.next().await["events"].clone();
    let place = |cursor: &Value| {
        server
            .app
            .cursors
            .decode(cursor.as_str().unwrap_or_default())
            .expect("a cursor")
    };
    assert!(place(&new["cursor"]) > place(&cursor));
    assert_eq!(read(&alice, cursor).await, [text(&new["id"])]);
}

#[tokio::test]
async fn a_cursor_is_opaque_and_cannot_be_forged() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    alice.project("Apollo").await;
    let anonymous = server.nobody().ask("{ __typename }", json!({})).await.0;
    assert!(
        anonymous["extensions"]["cost"].is_u64() && anonymous["extensions"].get("sync").is_none(),
        "{anonymous}"
    );

    let answer = alice.ask("{ viewer { id } }", json!({})).await.0;
    let cursor = text(&answer["extensions"]["sync"]["cursor"]);
    let bytes = URL_SAFE_NO_PAD.decode(&cursor).expect("base64");
    let position = server.app.cursors.decode(&cursor).expect("a position");
    assert!(
        !bytes
            .windows(8)
            .any(|part| part == position.seq.to_be_bytes()),
        "the sequence number is not readable"
    );
    // As after the restore of an older copy.
    let beyond = server.app.cursors.encode(LogPosition {
        seq: position.seq + 1,
        ..position
    });
    let forged = URL_SAFE_NO_PAD.encode([&bytes[..31], &[bytes[31] ^ 1]].concat());
    let plain = URL_SAFE_NO_PAD.encode(
        [
            &b"e"[..],
            &position.xid.to_be_bytes(),
            &position.seq.to_be_bytes(),
        ]
        .concat(),
    );
    for (cursor, code) in [
        (&forged, "BAD_USER_INPUT"),
        (&plain, "CURSOR_EXPIRED"),
        (&beyond, "CURSOR_EXPIRED"),
    ] {
        let refused = alice.ask(PAGE, json!({ "after": cursor })).await;
        assert_eq!(refused.code(), code);
        assert_eq!(
            alice
                .subscribe(STREAM, json!({ "after": cursor }))
                .await
                .end()
                .await,
            code
        );
        let request = alice
            .post("/graphql")
            .header("accept", "text/event-stream")
            .header("last-event-id", cursor);
        let stream = request
            .json(&json!({ "query": STREAM }))
            .send()
            .await
            .expect("an answer");
        assert!(
            stream.text().await.expect("a stream").contains(code),
            "{code}"
        );
        if let Some(oldest) = refused.0["errors"][0]["extensions"].get("oldestCursor") {
            alice.query(PAGE, json!({ "after": oldest })).await;
        }
    }
}
