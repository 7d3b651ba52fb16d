//! Limits of subscriptions: points per event, complexity, number per user, and what slow
//! subscribers may still see.

use std::time::Duration;

use bytes::Bytes;
use fasttrack::db::Conn;
use fasttrack::events::{self, EventKind, NewEvent};
use fasttrack::graphql::node;
use fasttrack::http::concurrency_limit::WaitPolicy;
use fasttrack::id::Id;
use fasttrack::limits::ClientKey;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Response;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Frame, PATIENCE, Person, Server, text};

const STREAM: &str = "subscription ($after: String) { events(after: $after) { id cursor } }";

fn id(of: &str) -> Option<Id> {
    node::decode(&of.to_owned().into()).map(|(_, id)| id)
}

/// Appends events of a project directly to the log, at no cost to any user.
async fn append(server: &Server, owner: &Person, project: &str, count: usize) {
    let event = NewEvent {
        owner_id: id(&owner.id),
        project_id: id(project),
        ..NewEvent::new(EventKind::ProjectUpdated, None, server.app.clock.now())
    };
    let appended = server.run(async move |app| {
        let events: Vec<NewEvent> = (0..count)
            .map(|_| NewEvent {
                id: Id::new(),
                ..event.clone()
            })
            .collect();
        app.db
            .transaction(async |tx: &mut Conn| events::append(tx, &events).await)
            .await
    });
    appended.await.expect("events");
}

async fn used(person: &Person) -> u64 {
    let limit = person.query("{ rateLimit { used } }", json!({})).await;
    limit["rateLimit"]["used"].as_u64().expect("a number")
}

async fn stream(person: &Person, document: &str, variables: Value) -> Response {
    let request = person
        .post("/graphql")
        .header("accept", "text/event-stream");
    request
        .json(&json!({ "query": document, "variables": variables }))
        .send()
        .await
        .expect("an answer")
}

/// Reads a stream to its end: the `id` and data of each event.
async fn rest(stream: Response) -> Vec<(Option<String>, Value)> {
    let text = timeout(PATIENCE, stream.text())
        .await
        .expect("the end before the timeout")
        .expect("a complete stream");
    let events = text
        .split_terminator("\n\n")
        .filter(|event| !event.starts_with(':'));
    let field = |event: &str, name: &str| {
        event
            .lines()
            .find_map(|line| line.strip_prefix(name).map(ToOwned::to_owned))
    };
    let parsed = |event| {
        (
            field(event, "id: "),
            serde_json::from_str(&field(event, "data: ").unwrap_or_default()),
        )
    };
    events
        .map(parsed)
        .map(|(id, data)| (id, data.unwrap_or_default()))
        .collect()
}

const LIMIT: u64 = 60;

async fn limited() -> Server {
    Server::with(&[
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "100"),
        ("RATE_LIMIT_COST_PER_MINUTE", &LIMIT.to_string()),
    ])
    .await
}

#[tokio::test]
async fn delivered_events_have_points_of_their_own_and_a_stream_ends_when_there_are_none() {
    let server = limited().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let mut events = alice.subscribe(STREAM, json!({})).await;
    // The first event shows that the cost of the subscription itself has been charged.
    append(&server, &alice, &project, 1).await;
    events.next().await;
    let before = used(&alice).await;
    append(&server, &alice, &project, 60).await;
    let mut last = Value::Null;
    for _ in 1..LIMIT {
        last = events.next().await["events"]["cursor"].clone();
    }
    let Frame::Message(refused) = events.socket().receive().await else {
        panic!("an end")
    };
    let error = &refused["payload"][0]["extensions"];
    assert_eq!(
        (&refused["type"], &error["code"]),
        (&json!("error"), &json!("RATE_LIMITED")),
        "{refused}"
    );
    assert_eq!(
        error["cursor"], last,
        "the stream can be resumed from there"
    );
    assert!(
        error["retryAfter"].as_u64().is_some_and(|wait| wait > 0),
        "{error}"
    );
    assert_eq!(
        used(&alice).await - before,
        1,
        "what others cause leaves the points for operations alone"
    );

    server.advance(Duration::from_secs(120));
    let mut resumed = alice.subscribe(STREAM, json!({ "after": last })).await;
    assert_ne!(resumed.next().await["events"]["cursor"], last);
}

#[tokio::test]
async fn sse_stream_without_points_ends_with_a_resume_cursor() {
    let server = limited().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let start = alice.now().await;
    append(&server, &alice, &project, 100).await;
    let told = rest(stream(&alice, STREAM, json!({ "after": start })).await).await;
    let [.., (last, _), (cursor, refused)] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(
        refused["errors"][0]["extensions"]["code"], "RATE_LIMITED",
        "{refused}"
    );
    assert_eq!(refused["errors"][0]["extensions"]["cursor"], json!(last));
    assert_eq!(cursor, last, "a browser's EventSource resumes from there");
    assert_eq!(told.len() as u64, LIMIT + 1);
    server.advance(Duration::from_secs(120));
    // Resuming returns the rest, starting with the refused event.
    let mut resumed = alice.subscribe(STREAM, json!({ "after": cursor })).await;
    for _ in 0..100 - (told.len() - 1) {
        resumed.next().await;
    }
}

#[tokio::test]
async fn first_refused_event_is_not_lost() {
    let server = limited().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let start = alice.now().await;
    append(&server, &alice, &project, 61).await;
    rest(stream(&alice, STREAM, json!({ "after": start })).await).await;
    let stream = stream(&alice, "subscription { events { id } }", json!({})).await;
    append(&server, &alice, &project, 1).await;
    let told = rest(stream).await;
    let [(Some(cursor), refused)] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(refused["errors"][0]["extensions"]["code"], "RATE_LIMITED");
    server.advance(Duration::from_secs(120));
    alice
        .subscribe(STREAM, json!({ "after": cursor }))
        .await
        .next()
        .await;
}

#[tokio::test]
async fn subscriptions_have_lower_complexity_limits() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let task = alice
        .task(&alice.project("Apollo").await, "Fly", json!({}))
        .await;
    let nodes = |first: usize| format!("comments(first: {first}) {{ nodes {{ id }} }}");
    let values = |fields: usize| {
        format!(
            "comments(first: 100) {{ nodes {{ {} }} }}",
            "id ".repeat(fields)
        )
    };
    for (fields, is_allowed) in [
        (
            nodes(66)
                + &nodes(66).replace("comments", "a: comments")
                + &nodes(66).replace("comments", "b: comments"),
            true,
        ),
        (
            nodes(67)
                + &nodes(67).replace("comments", "a: comments")
                + &nodes(67).replace("comments", "b: comments"),
            false,
        ),
        (values(18), true),
        (values(19), false),
    ] {
        let query = format!("query ($id: ID!) {{ task(id: $id) {{ {fields} }} }}");
        assert!(
            alice
                .ask(&query, json!({ "id": task }))
                .await
                .codes()
                .is_empty(),
            "{fields}"
        );
        let subscription = format!("subscription {{ commentAdded {{ task {{ {fields} }} }} }}");
        let mut streamed = stream(&alice, &subscription, json!({})).await;
        if is_allowed {
            assert_eq!(
                streamed.chunk().await.expect("a stream").as_deref(),
                Some(&b":\n\n"[..]),
                "{fields}"
            );
            continue;
        }
        let refused: Value = streamed.json().await.expect("JSON");
        assert_eq!(
            refused["errors"][0]["extensions"]["code"],
            "DOCUMENT_TOO_COMPLEX"
        );
        assert_eq!(
            alice.subscribe(&subscription, json!({})).await.end().await,
            "DOCUMENT_TOO_COMPLEX"
        );
    }
}

#[tokio::test]
async fn subscription_variables_are_limited() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let document = "subscription ($after: String, $search: String) { events(after: $after) {
        ... on TaskCreatedEvent { task { project { tasks(first: 1, filter: { search: $search }) { nodes { id } } } } } } }";
    for (search, code) in [(100, None), (9_000, Some("VARIABLES_TOO_LARGE"))] {
        // Undeclared variables are not kept and do not count.
        let variables = json!({ "search": "x".repeat(search), "unknown": "x".repeat(20_000) });
        let mut streamed = stream(&alice, document, variables.clone()).await;
        let first = streamed
            .chunk()
            .await
            .expect("a stream")
            .expect("a beginning");
        match code {
            None => assert_eq!(first.as_ref(), b":\n\n"),
            Some(code) => {
                assert!(String::from_utf8_lossy(&first).contains(code), "{first:?}");
                assert_eq!(alice.subscribe(document, variables).await.end().await, code);
            }
        }
    }
}

#[tokio::test]
async fn subscriptions_are_limited_per_user() {
    let server = Server::with(&[("WS_SUBSCRIPTIONS_PER_USER", "3")]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let mut one = alice.subscribe(STREAM, json!({})).await;
    let mut other = alice.subscribe(STREAM, json!({})).await;
    append(&server, &alice, &project, 1).await;
    one.next().await;
    other.next().await;
    let streamed = stream(&alice, STREAM, json!({})).await;
    assert_eq!(streamed.status(), 200);
    assert_eq!(stream(&alice, STREAM, json!({})).await.status(), 429);
    assert_eq!(
        alice.subscribe(STREAM, json!({})).await.end().await,
        "RATE_LIMITED"
    );
    assert_eq!(
        stream(&bob, STREAM, json!({})).await.status(),
        200,
        "the limit is per user"
    );
    other
        .socket()
        .send(json!({ "type": "complete", "id": "1" }))
        .await;
    let freed = async { while stream(&alice, STREAM, json!({})).await.status() != 200 {} };
    timeout(PATIENCE, freed).await.expect("one less");
}

#[tokio::test]
async fn stalled_subscriber_sees_nothing_after_losing_access() {
    let server = Server::with(&[("WS_WRITE_SECONDS", "60")]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let after = bob.now().await;
    let mut reading = bob
        .subscribe(
            "subscription ($after: String) { events(after: $after) { id } }",
            json!({}),
        )
        .await;

    // Over HTTP/2 the client limits how much it is sent, here to 1 KiB.
    let connection = TcpStream::connect(server.address)
        .await
        .expect("a connection");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(1_024)
        .initial_connection_window_size(65_535);
    let (mut client, connection) = builder
        .handshake(TokioIo::new(connection))
        .await
        .expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let document =
        "subscription($after:String){events(after:$after){__typename ...on StatusChangedEvent{
        task{description comments(last:5){nodes{body}}}}}}";
    let query = url_encoded(&[
        ("query", document),
        ("variables", &json!({ "after": after }).to_string()),
    ]);
    let request = Request::get(format!("http://{}/graphql?{query}", server.address))
        .header("accept", "text/event-stream")
        .header("authorization", format!("Bearer {}", bob.token()))
        .body(Empty::<Bytes>::new());
    let answer = client
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    let mut stalled = answer.into_body();

    for number in 0..30 {
        let status = if number % 2 == 0 {
            "IN_PROGRESS"
        } else {
            "TODO"
        };
        alice
            .mutate("updateTask", json!({ "id": task, "status": status }))
            .await
            .ok();
        // A client that reads causes the rows of each event to be loaded, for all subscribers.
        reading.next().await;
    }
    alice
        .mutate("updateTask", json!({ "id": task, "assigneeId": null }))
        .await
        .ok();
    alice.comment(&task, "secret").await;
    server.advance(Duration::from_secs(2));

    let mut text = String::new();
    while !text.contains("TaskUnassignedEvent") {
        let frame = timeout(PATIENCE, stalled.frame())
            .await
            .expect("in time")
            .expect("no end")
            .expect("no error");
        text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
    }
    let told = text.matches("StatusChangedEvent").count();
    assert!(
        (1..30).contains(&told),
        "{told} events were delivered before"
    );
    assert!(!text.contains("secret"), "{text}");
    drop((stalled, client));
    timeout(PATIENCE, connection)
        .await
        .expect("the connection closes before the timeout")
        .expect("no panic")
        .expect("a clean close");
}

fn url_encoded(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .finish()
}

#[tokio::test]
async fn subscription_execution_waits_for_a_permit() {
    let server = Server::with(&[("MAX_OPERATIONS_AT_ONCE", "1")]).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let mut events = alice.subscribe(STREAM, json!({})).await;
    let mut same = alice.subscribe(STREAM, json!({})).await;
    let permit = server
        .app
        .concurrency
        .acquire(ClientKey::address([127, 0, 0, 1].into()), WaitPolicy::Event)
        .await;
    let permit = permit.expect("a permit");
    append(&server, &alice, &project, 1).await;
    // The log contains the event, but no permit is available to execute it.
    alice.now().await;
    assert!(
        timeout(Duration::from_millis(500), events.next())
            .await
            .is_err(),
        "no permit is available"
    );
    drop(permit);
    assert_eq!(
        text(&events.next().await["events"]["id"]),
        text(&same.next().await["events"]["id"])
    );
}
