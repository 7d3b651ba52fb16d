//! Operating the server: probes, load shedding, logging, and graceful shutdown.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fasttrack::db::migrate;
use fasttrack::http::concurrency_limit::{Permit, WaitPolicy};
use fasttrack::limits::ClientKey;
use fasttrack::metrics;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::harness::{Frame, PASSWORD, PATIENCE, Person, Reply, Server, text};

async fn ready(server: &Server) -> (u16, Value) {
    let reply = Reply::to(server.request(Method::GET, "/readyz")).await;
    (reply.status.as_u16(), reply.body)
}

/// Waits until the readiness check returns this status.
async fn ready_when(server: &Server, status: u16) -> (u16, Value) {
    let found = async {
        loop {
            let found = ready(server).await;
            if found.0 == status {
                return found;
            }
        }
    };
    timeout(PATIENCE, found)
        .await
        .expect("the status before the timeout")
}

#[tokio::test]
async fn readiness_is_reported_part_by_part() {
    let server = Server::start().await;
    let good =
        json!({ "ready": true, "server": "ok", "database": "ok", "schema": "ok", "events": "ok" });
    assert_eq!(ready(&server).await, (200, good.clone()));
    let database = server.app.config.database.clone();
    migrate::down(&database)
        .await
        .expect("the newest migration goes down");
    let (status, told) = ready_when(&server, 503).await;
    assert_eq!(
        (status, &told["ready"], &told["schema"]),
        (503, &json!(false), &json!("behind")),
        "{told}"
    );
    migrate::up(&database).await.expect("and up again");
    assert_eq!(ready_when(&server, 200).await, (200, good));
    server.app.draining.cancel();
    let (status, told) = ready(&server).await;
    assert_eq!(
        (status, &told["ready"], &told["server"]),
        (503, &json!(false), &json!("draining")),
        "{told}"
    );
    assert_eq!(
        server
            .request(Method::GET, "/livez")
            .send()
            .await
            .expect("an answer")
            .status(),
        200
    );
}

#[tokio::test]
async fn missing_redis_is_reported_and_a_busy_server_is_ready() {
    let server = Server::with(&[
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("DATABASE_CONNECTIONS", "1"),
    ])
    .await;
    let (status, told) = ready(&server).await;
    assert_eq!((status, &told["redis"]), (200, &json!("away")), "{told}");
    let held = HeldConnection::connection(&server).await;
    // Probes do not queue behind requests.
    let (status, told) = ready(&server).await;
    assert_eq!(
        (status, &told["database"], &told["schema"]),
        (200, &json!("ok"), &json!("ok")),
        "{told}"
    );
    held.release();
}

/// The server's only permit, taken by an unrelated address.
async fn only_permit(server: &Server) -> Permit {
    let owner = ClientKey::address(Ipv4Addr::LOCALHOST.into());
    server
        .app
        .concurrency
        .acquire(owner, WaitPolicy::Request)
        .await
        .expect("a permit")
}

#[tokio::test]
async fn a_request_that_gets_no_permit_in_time_is_refused() {
    let server = Server::with(&[("MAX_OPERATIONS_AT_ONCE", "1")]).await;
    let alice = server.person("alice").await;
    let ask = || {
        Reply::to(
            alice
                .post("/graphql")
                .json(&json!({ "query": "{ tasks { totalCount } }" })),
        )
    };
    let held = only_permit(&server).await;
    let refused = ask().await;
    assert_eq!(
        (refused.status.as_u16(), &refused.headers["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    drop(held);
    assert_eq!(ask().await.body["data"]["tasks"]["totalCount"], 0);
}

#[tokio::test]
async fn requests_are_shed_before_they_are_read_while_others_time_out() {
    let origin = "https://app.example.org";
    let settings = [
        ("MAX_OPERATIONS_AT_ONCE", "1"),
        ("CORS_ORIGINS", origin),
        ("TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let server = Server::with(&settings).await;
    let nobody = server.nobody();
    let held = only_permit(&server).await;
    let ask = async |number: usize| {
        let begun = Instant::now();
        let request = nobody.post("/graphql").header("origin", origin);
        let request = request.header("x-forwarded-for", format!("198.51.100.{number}"));
        let reply = Reply::to(request.json(&json!({ "query": "{ __typename }" }))).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.headers["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        assert_eq!(
            reply.body["errors"][0]["extensions"]["code"],
            "SERVICE_UNAVAILABLE"
        );
        assert_eq!(
            reply.body["errors"][0]["extensions"]["requestId"],
            reply.headers["x-request-id"].to_str().unwrap()
        );
        assert_eq!(reply.headers["access-control-allow-origin"], origin);
        begun.elapsed()
    };
    // After some timeouts, at most eight requests may wait for the only permit; further ones are
    // shed.
    let is_shed = async {
        while join_all((0..30).map(ask)).await.into_iter().min() >= Some(Duration::from_millis(500))
        {
        }
    };
    timeout(PATIENCE, is_shed)
        .await
        .expect("some requests are shed");
    drop(held);
    assert_eq!(
        nobody.query("{ __typename }", json!({})).await["__typename"],
        "Query"
    );
}

/// The log output of all servers in this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock()
            .expect("an unpoisoned lock")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn errors_on_sockets_and_streams_are_logged_under_the_reported_id() {
    tracing_subscriber::fmt().json().with_writer(|| Log).init();
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let query = "query Look($id: ID!) { task(id: $id) { labels { name } } }";
    let subscription = "subscription Live { commentAdded { task { labels { name } } } }";
    let stream = async |query: &str| {
        let request = alice.post("/graphql").header("accept", "text/event-stream");
        let body = json!({ "query": query, "variables": { "id": task } });
        request.json(&body).send().await.expect("a stream")
    };
    let told = |answer: &Value| {
        assert_eq!(
            answer["errors"][0]["extensions"]["code"], "INTERNAL_SERVER_ERROR",
            "{answer}"
        );
        text(&answer["errors"][0]["extensions"]["requestId"])
    };
    let mut ids = Vec::new();
    let mut listener = alice.subscribe(subscription, json!({})).await;
    let mut streamed = stream(subscription).await;
    server
        .database()
        .execute("ALTER TABLE labels RENAME TO away")
        .await;
    // Wait until all four subscriptions are registered.
    while server.app.hub.subscribers() < 4 {
        tokio::task::yield_now().await;
    }
    alice.comment(&task, "Ready").await;
    ids.push(("Live", told(&listener.answer().await)));
    let mut next = String::new();
    while !next.contains("data: ") {
        let chunk = streamed.chunk().await.expect("a stream").expect("an event");
        next.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    let data = |events: &str| -> Value {
        let line = events
            .lines()
            .find_map(|line| line.strip_prefix("data: "))
            .expect("an event");
        serde_json::from_str(line).expect("JSON")
    };
    ids.push(("Live", told(&data(&next))));
    ids.push((
        "Look",
        told(&data(&stream(query).await.text().await.expect("text"))),
    ));
    let mut socket = alice.socket().await;
    socket.subscribe("1", query, json!({ "id": task })).await;
    let Frame::Message(answer) = socket.receive().await else {
        panic!("no answer")
    };
    ids.push(("Look", told(&answer["payload"])));
    server
        .database()
        .execute("ALTER TABLE away RENAME TO labels")
        .await;

    let log = String::from_utf8(LOG.lock().expect("an unpoisoned lock").clone()).expect("text");
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for (operation, id) in ids {
        let is_it = |line: &&Value| line["level"] == "ERROR" && line["span"]["id"] == *id;
        let line = lines
            .iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("no entry of {operation} {id} in {log}"));
        assert_eq!(
            (&line["span"]["name"], &line["span"]["operation"]),
            (&json!("request"), &json!(operation))
        );
    }
}

/// Holds the server's only database connection, so that every request waits.
struct HeldConnection(Arc<Notify>);

impl HeldConnection {
    async fn connection(server: &Server) -> Self {
        let (held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (is_held, released) = (Arc::clone(&held), Arc::clone(&release));
        let app = Arc::clone(&server.app);
        // On the server's runtime, because database connections belong to it.
        server
            .run(async move |_| {
                tokio::spawn(async move {
                    let conn = app.db.conn().await;
                    is_held.notify_one();
                    released.notified().await;
                    drop(conn);
                });
            })
            .await;
        held.notified().await;
        Self(release)
    }

    /// Waits until a request waits for the connection.
    async fn awaited(server: &Server) {
        let awaited = server.run(async |app| {
            while app.db.pools().iter().all(|pool| pool.waiting == 0) {
                tokio::task::yield_now().await;
            }
        });
        timeout(PATIENCE, awaited).await.expect("a waiting request");
    }

    fn release(&self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn auth_writes_complete_after_disconnect() {
    let server = Server::with(&[("DATABASE_CONNECTIONS", "1"), ("LOCKOUT_FAILURES", "1")]).await;
    server.person("alice").await;
    let held = HeldConnection::connection(&server).await;
    let mut leaving = TcpStream::connect(server.address)
        .await
        .expect("a connection");
    let body = json!({ "username": "alice", "password": "Wrong-Horse-7" }).to_string();
    let head = "POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    leaving.write_all(request.as_bytes()).await.expect("sent");
    HeldConnection::awaited(&server).await;
    drop(leaving);
    // Later requests are answered, so the server has noticed the disconnect.
    for _ in 0..10 {
        assert_eq!(
            server
                .request(Method::GET, "/livez")
                .send()
                .await
                .expect("an answer")
                .status(),
            200
        );
    }
    held.release();
    let done = server.run(async |app| {
        while !app.writes.is_empty() {
            tokio::task::yield_now().await;
        }
    });
    timeout(PATIENCE, done).await.expect("an end");
    let locked = server
        .post(
            "/auth/login",
            json!({ "username": "alice", "password": PASSWORD }),
        )
        .await;
    assert_eq!(locked.body["code"], "LOCKED_OUT", "the failure was counted");
}

#[tokio::test]
async fn requests_beyond_the_limit_get_the_usual_error_and_are_counted() {
    let settings = [
        ("DATABASE_CONNECTIONS", "1"),
        ("MAX_REQUESTS_IN_FLIGHT", "1"),
        ("ALLOWED_HOSTS", "127.0.0.1"),
    ];
    let server = Server::with(&settings).await;
    let alice = server.person("alice").await;
    let held = HeldConnection::connection(&server).await;
    let asking = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.query("{ tasks { totalCount } }", json!({})).await })
    };
    HeldConnection::awaited(&server).await;
    let query = json!({ "query": "{ tasks { totalCount } }" });
    let refused = Reply::to(alice.post("/graphql").json(&query)).await;
    let id = refused.headers["x-request-id"].to_str().expect("text");
    assert_eq!(
        (refused.status.as_u16(), &refused.headers["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert_eq!(
        refused.body["errors"][0]["extensions"],
        json!({ "code": "SERVICE_UNAVAILABLE", "requestId": id, "retryAfter": 1 })
    );
    let refused = server
        .post(
            "/auth/login",
            json!({ "username": "alice", "password": "x" }),
        )
        .await;
    assert_eq!(
        (refused.status.as_u16(), &refused.headers["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert_eq!(refused.body["code"], "SERVICE_UNAVAILABLE");
    assert!(
        refused.headers.contains_key("x-request-id")
            && refused.headers.contains_key("x-content-type-options")
    );
    let elsewhere = Reply::to(
        alice
            .post("/graphql")
            .json(&query)
            .header("host", "evil.example"),
    )
    .await;
    assert_eq!(elsewhere.status, 403);
    assert_eq!(
        server
            .request(Method::GET, "/livez")
            .send()
            .await
            .expect("an answer")
            .status(),
        200
    );
    let told = server.run(async |app| metrics::exposition(&app)).await;
    for route in ["/graphql", "/auth/login"] {
        let counted =
            format!("http_requests_total{{method=\"POST\",route=\"{route}\",status=\"503\"}} 1\n");
        assert!(told.contains(&counted), "{told}");
    }
    held.release();
    assert_eq!(asking.await.expect("no panic")["tasks"]["totalCount"], 0);
}

#[tokio::test]
async fn stream_that_cannot_start_gets_503() {
    let server = Server::with(&[("DATABASE_CONNECTIONS", "1")]).await;
    let alice = server.person("alice").await;
    let stream = async || {
        let request = alice.post("/graphql").header("accept", "text/event-stream");
        request
            .json(&json!({ "query": "subscription { events { id } }" }))
            .send()
            .await
            .expect("an answer")
    };
    let held = HeldConnection::connection(&server).await;
    let refused = stream().await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    held.release();
    assert_eq!(stream().await.status(), 200);
}

#[tokio::test]
async fn shutdown_answers_open_requests_without_errors() {
    let server = Server::with(&[("DATABASE_CONNECTIONS", "1")]).await;
    let alice = server.person("alice").await;
    let (mut socket, mut listening) = (alice.socket().await, alice.socket().await);
    listening
        .subscribe("1", "subscription { events { id } }", json!({}))
        .await;
    // Operations on a socket start in order: the answer to this query shows that the subscription
    // has started.
    listening
        .subscribe("2", "{ viewer { id } }", json!({}))
        .await;
    assert!(
        matches!(listening.receive().await, Frame::Message(message) if message["type"] == "next")
    );
    assert!(
        matches!(listening.receive().await, Frame::Message(message) if message["type"] == "complete")
    );
    let mut late = TcpStream::connect(server.address)
        .await
        .expect("a connection");
    let body = json!({ "query": "{ __typename }" }).to_string();
    let (first, rest) = body.split_at(5);
    let head = "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue";
    late.write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{first}", body.len()).as_bytes())
        .await
        .expect("sent");
    let mut expected = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    timeout(PATIENCE, late.read_exact(&mut expected))
        .await
        .expect("in time")
        .expect("the server waits for the rest");
    let held = HeldConnection::connection(&server).await;
    socket
        .subscribe("1", "{ viewer { username } }", json!({}))
        .await;
    // The second operation needs no connection of its own; its answer shows that the first one has
    // started.
    socket.subscribe("2", "{ __typename }", json!({})).await;
    let mut answers: HashMap<String, Vec<Value>> = HashMap::new();
    let mut receive = async |id: &str| {
        while answers.get(id).is_none_or(|told| told.len() < 2) {
            let Frame::Message(message) = socket.receive().await else {
                panic!("closed without an answer")
            };
            answers
                .entry(text(&message["id"]))
                .or_default()
                .push(message);
        }
        answers[id].clone()
    };
    receive("2").await;
    let (app, address) = (Arc::clone(&server.app), server.address);
    let ended = std::thread::spawn(move || drop(server));
    app.draining.cancelled().await;
    late.write_all(rest.as_bytes()).await.expect("sent");
    held.release();
    let answer = receive("1").await;
    assert_eq!(
        answer[0]["payload"]["data"]["viewer"]["username"], "alice",
        "{answer:?}"
    );
    assert_eq!(answer[1]["type"], "complete");
    assert_eq!(socket.receive().await, Frame::Closed(Some(1012)));
    assert_eq!(
        listening.receive().await,
        Frame::Closed(Some(1012)),
        "neither an error nor `complete` is sent"
    );
    let mut answer = String::new();
    timeout(PATIENCE, late.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("Query"),
        "{answer}"
    );
    assert!(
        TcpStream::connect(address).await.is_err(),
        "the server no longer accepts connections"
    );
    // On drop, the harness checks that everything ended on its own.
    ended.join().expect("an end");
}

#[tokio::test]
async fn draining_server_answers_until_drain_seconds_have_passed() {
    let server = Server::with(&[("DRAIN_SECONDS", "3")]).await;
    let alice = server.person("alice").await;
    let mut socket = alice.socket().await;
    let (app, address) = (Arc::clone(&server.app), server.address);
    let client = reqwest::Client::new();
    let ready = async || {
        client
            .get(format!("http://{address}/readyz"))
            .send()
            .await
            .expect("an answer")
    };
    let answer = ready().await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers().get("connection")),
        (200, None)
    );
    let began = Instant::now();
    let ended = std::thread::spawn(move || drop(server));
    app.draining.cancelled().await;
    let answer = ready().await;
    let said = answer
        .headers()
        .get("connection")
        .map(|said| said.to_str().expect("a word"));
    assert_eq!(
        (answer.status().as_u16(), said),
        (503, Some("close")),
        "a kept-alive connection could be closed in the middle of a request"
    );
    socket.subscribe("1", "{ __typename }", json!({})).await;
    assert!(matches!(socket.receive().await, Frame::Message(message) if message["type"] == "next"));
    assert!(
        matches!(socket.receive().await, Frame::Message(message) if message["type"] == "complete")
    );
    assert_eq!(socket.receive().await, Frame::Closed(Some(1012)));
    assert!(began.elapsed() >= Duration::from_secs(3));
    ended.join().expect("an end");
}

#[tokio::test]
async fn concurrent_export_gets_503() {
    let server = Server::with(&[("DATABASE_CONNECTIONS", "1")]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let export = |person: &Person| {
        Reply::to(
            person
                .post("/graphql")
                .json(&json!({ "query": "{ exportViewerData }" })),
        )
    };
    let held = HeldConnection::connection(&server).await;
    let (one, other) = (std::pin::pin!(export(&alice)), std::pin::pin!(export(&bob)));
    let (first, second) = futures_util::future::select(one, other)
        .await
        .factor_first();
    held.release();
    assert_eq!(
        (
            first.status.as_u16(),
            first.headers.contains_key("retry-after")
        ),
        (503, true),
        "{}",
        first.body
    );
    assert!(second.await.body["data"]["exportViewerData"]["account"].is_object());
    assert_eq!(
        export(&alice).await.status,
        200,
        "the other export has ended"
    );
}
