//! OpenTelemetry traces, as received by a collector.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::harness::{PATIENCE, Server};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// An OTLP collector that keeps every request.
struct Collector {
    url: String,
    sent: UnboundedReceiver<(HeaderMap, Bytes)>,
}

impl Collector {
    async fn open() -> Self {
        let (sender, sent) = unbounded_channel();
        let take = async move |headers: HeaderMap, body: Bytes| {
            sender.send((headers, body)).expect("a receiver");
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            axum::serve(listener, Router::new().route("/v1/traces", post(take))).await
        });
        Self { url, sent }
    }

    /// All spans received. The server must have stopped.
    fn spans(&mut self) -> Vec<Span> {
        let mut spans = Vec::new();
        while let Ok((headers, body)) = self.sent.try_recv() {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            assert_eq!(headers["x-key"], "a key");
            let sent = ExportTraceServiceRequest::decode(body).expect("OTLP");
            for told in sent.resource_spans {
                let resource = told.resource.expect("a resource");
                assert_eq!(value(&resource.attributes, "service.name"), "tasks");
                spans.extend(told.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }
}

/// The value of an attribute as text; empty if absent.
fn value(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn traced(collector: &Collector, ratio: &str) -> Server {
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20key"),
        ("OTEL_SERVICE_NAME", "tasks"),
        ("OTEL_TRACES_SAMPLER_ARG", ratio),
    ];
    Server::with(&settings).await
}

async fn ask(server: &Server, traceparent: Option<&str>, query: &str) -> u16 {
    let request = server
        .request(Method::POST, "/graphql")
        .json(&json!({ "query": query }));
    let request = match traceparent {
        Some(parent) => request.header("traceparent", parent),
        None => request,
    };
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn request_continues_the_callers_trace() {
    let mut collector = Collector::open().await;
    let server = traced(&collector, "1").await;
    ask(
        &server,
        Some(&format!("00-{TRACE}-{CALLER}-01")),
        "query Hello { __typename }",
    )
    .await;
    ask(&server, Some("00-1-2-01"), "query Alone { __typename }").await;
    ask(&server, None, "{ nothing }").await;
    assert_eq!(
        server
            .request(Method::GET, "/nowhere")
            .send()
            .await
            .expect("an answer")
            .status(),
        404
    );
    server.stop().await.remove().await;

    let spans = collector.spans();
    let named =
        |name: &str| -> Vec<&Span> { spans.iter().filter(|span| span.name == name).collect() };
    let of = |spans: &[&Span], operation: &str| -> Span {
        let mut found = spans
            .iter()
            .filter(|span| value(&span.attributes, "graphql.operation.name") == operation);
        (*found.next().expect(operation)).clone()
    };
    let (requests, operations) = (named("POST /graphql"), named("query"));
    assert_eq!((requests.len(), operations.len()), (3, 3), "{spans:#?}");
    let request = of(&requests, "Hello");
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (TRACE.to_owned(), CALLER.to_owned())
    );
    assert_eq!(request.kind, 2, "SPAN_KIND_SERVER");
    for (name, expected) in [
        ("http.request.method", "POST"),
        ("http.route", "/graphql"),
        ("http.response.status_code", "200"),
        ("graphql.operation.type", "query"),
    ] {
        assert_eq!(value(&request.attributes, name), expected, "{name}");
    }
    let operation = of(&operations, "Hello");
    assert_eq!(
        (&operation.trace_id, &operation.parent_span_id),
        (&request.trace_id, &request.span_id)
    );
    assert!(operation.end_time_unix_nano <= request.end_time_unix_nano);

    let alone = of(&requests, "Alone");
    assert!(
        alone.parent_span_id.is_empty() && hex(&alone.trace_id) != TRACE,
        "a malformed header is ignored"
    );
    let wrong = of(&operations, "");
    assert_eq!(
        value(&wrong.attributes, "error.type"),
        "GRAPHQL_VALIDATION_FAILED"
    );
    assert_eq!(
        wrong.status.map_or(0, |status| status.code),
        0,
        "the caller's error, not the server's"
    );
    let [nowhere] = named("GET")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(value(&nowhere.attributes, "url.path"), "/nowhere");
    assert!(
        !format!("{spans:?}").contains("__typename"),
        "no document is exported"
    );
}

#[tokio::test]
async fn socket_operation_starts_its_own_trace() {
    let mut collector = Collector::open().await;
    let server = traced(&collector, "1").await;
    let alice = server.person("alice").await;
    let mut socket = alice.socket().await;
    for id in ["1", "2"] {
        socket
            .subscribe(id, "query Live { viewer { id } }", json!({}))
            .await;
        socket.receive().await;
        socket.receive().await;
    }
    drop((socket, alice));
    server.stop().await.remove().await;
    let spans = collector.spans();
    let live: Vec<&Span> = spans
        .iter()
        .filter(|span| value(&span.attributes, "graphql.operation.name") == "Live")
        .collect();
    let [first, second] = live[..] else {
        panic!("{spans:#?}")
    };
    assert!(
        first.parent_span_id.is_empty() && first.kind == 2 && first.trace_id != second.trace_id
    );
}

#[tokio::test]
async fn streamed_operation_is_in_the_request_trace() {
    let mut collector = Collector::open().await;
    let server = traced(&collector, "1").await;
    let alice = server.person("alice").await;
    let query = json!({ "query": "query Once { viewer { id } }" });
    let request = alice.post("/graphql").header("accept", "text/event-stream");
    let request = request
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .json(&query);
    let told = request
        .send()
        .await
        .expect("a stream")
        .text()
        .await
        .expect("text");
    assert!(told.contains(&alice.id), "{told}");
    drop(alice);
    server.stop().await.remove().await;
    let spans = collector.spans();
    let once = spans
        .iter()
        .filter(|span| value(&span.attributes, "graphql.operation.name") == "Once");
    let (requests, operations): (Vec<&Span>, Vec<&Span>) =
        once.partition(|span| span.name == "POST /graphql");
    let ([request], [operation]) = (&requests[..], &operations[..]) else {
        panic!("{spans:#?}")
    };
    assert_eq!(hex(&request.trace_id), TRACE);
    assert_eq!(
        (&operation.trace_id, &operation.parent_span_id),
        (&request.trace_id, &request.span_id)
    );
    assert!(operation.end_time_unix_nano <= request.end_time_unix_nano);
}

#[tokio::test]
async fn subscription_start_and_events_are_traced() {
    let mut collector = Collector::open().await;
    let server = traced(&collector, "1").await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let document = "subscription Live($after: String) { commentAdded(after: $after) { task { labels { name } } } }";
    let mut listeners = [
        alice.subscribe(document, json!({})).await,
        alice.subscribe(document, json!({})).await,
    ];
    // Answers with errors are not shared between listeners; error-free ones are.
    for table in [Some("labels"), None] {
        if let Some(table) = table {
            server
                .database()
                .execute(&format!("ALTER TABLE {table} RENAME TO away"))
                .await;
        }
        alice.comment(&task, "Ready").await;
        for listener in &mut listeners {
            assert_eq!(
                listener.answer().await.get("errors").is_some(),
                table.is_some()
            );
        }
        if let Some(table) = table {
            server
                .database()
                .execute(&format!("ALTER TABLE away RENAME TO {table}"))
                .await;
        }
    }
    let refused = "subscription Refused { commentAdded(taskId: \"nonsense\") { id } }";
    assert_eq!(
        alice.subscribe(refused, json!({})).await.end().await,
        "BAD_USER_INPUT"
    );
    let body = json!({ "query": "subscription Streamed { events { id } }" });
    let request = alice.post("/graphql").header("accept", "text/event-stream");
    let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    drop(request.json(&body).send().await.expect("a stream"));
    drop((listeners, alice));
    server.stop().await.remove().await;

    let spans = collector.spans();
    let of = |operation: &str, name: &str| -> Vec<&Span> {
        let named = spans.iter().filter(|span| span.name == name);
        named
            .filter(|span| value(&span.attributes, "graphql.operation.name") == operation)
            .collect()
    };
    assert_eq!(of("Live", "subscription").len(), 2, "{spans:#?}");
    let events = of("Live", "event");
    let failed = events
        .iter()
        .filter(|span| value(&span.attributes, "error.type") == "INTERNAL_SERVER_ERROR")
        .count();
    assert_eq!((events.len(), failed), (3, 2), "{spans:#?}");
    assert!(
        events.iter().all(|span| span.parent_span_id.is_empty()),
        "{spans:#?}"
    );
    let [refused] = of("Refused", "subscription")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(value(&refused.attributes, "error.type"), "BAD_USER_INPUT");
    let ([request], [opened]) = (
        &of("Streamed", "POST /graphql")[..],
        &of("Streamed", "subscription")[..],
    ) else {
        panic!("{spans:#?}")
    };
    assert_eq!(
        (hex(&opened.trace_id), &opened.parent_span_id),
        (TRACE.to_owned(), &request.span_id)
    );
}

#[tokio::test]
async fn sampling_follows_the_callers_decision() {
    let mut collector = Collector::open().await;
    let server = traced(&collector, "0").await;
    ask(&server, None, "{ __typename }").await;
    ask(
        &server,
        Some(&format!("00-{TRACE}-{CALLER}-00")),
        "{ __typename }",
    )
    .await;
    ask(
        &server,
        Some(&format!("00-{TRACE}-{CALLER}-01")),
        "{ __typename }",
    )
    .await;
    server.stop().await.remove().await;
    assert_eq!(
        collector.spans().len(),
        2,
        "only spans of the sampled caller"
    );
}

#[tokio::test]
async fn silent_collector_delays_neither_requests_nor_shutdown() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let server = Server::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]).await;
    let mut slowest = Duration::ZERO;
    // More spans than the queue holds.
    for _ in 0..1500 {
        let began = Instant::now();
        assert_eq!(ask(&server, None, "{ __typename }").await, 200);
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(4), "{slowest:?}");
    let ending = Instant::now();
    let database = server.stop().await;
    let took = ending.elapsed();
    database.remove().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn an_unreachable_collector_is_logged_once_and_the_log_has_the_trace() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = directory.path().join("log");
    let mut program = Command::new(env!("CARGO_BIN_EXE_fasttrack"));
    program.current_dir(directory.path()).env_clear().envs([
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("LOG_FORMAT", "json"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ]);
    let log_file = File::create(&log).expect("a file");
    let mut running = program
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .expect("a program that runs");
    let mut first = String::new();
    let mut output = BufReader::new(running.stdout.take().expect("its output"));
    output.read_line(&mut first).expect("a line");
    let url = first
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .expect("an address")
        .to_owned();
    let http = reqwest::Client::new();
    let began = Instant::now();
    let mut asked = 0;
    while asked < 20
        || std::fs::read_to_string(&log)
            .expect("a log")
            .matches("collector unavailable")
            .count()
            < 1
    {
        let request = http
            .get(format!("{url}/livez"))
            .header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
        assert_eq!(request.send().await.expect("an answer").status(), 200);
        asked += 1;
        assert!(
            began.elapsed() < PATIENCE,
            "no log line about the collector"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = Command::new("kill")
        .arg(running.id().to_string())
        .status()
        .expect("kill");
    assert!(told.success());
    let ended = tokio::task::spawn_blocking(move || running.wait())
        .await
        .expect("a thread")
        .expect("an end");
    assert!(ended.success(), "{ended}");
    let log = std::fs::read_to_string(&log).expect("a log");
    assert_eq!(log.matches("collector unavailable").count(), 1, "{log}");
    assert!(log.contains(&format!("\"trace_id\":\"{TRACE}\"")), "{log}");
}
