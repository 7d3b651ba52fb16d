//! Metrics of the whole server, produced through its router and sockets.

use std::collections::BTreeSet;

use fasttrack::{http, metrics};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Frame, PASSWORD, PATIENCE, Person, Reply, Server};

/// The current metrics in text format.
struct Exposition(String);

impl Exposition {
    async fn by(server: &Server) -> Self {
        Self(server.run(async |app| metrics::exposition(&app)).await)
    }

    /// The value of a series; zero if it is absent.
    fn value(&self, series: &str) -> f64 {
        let line = self.0.lines().find_map(|line| {
            line.strip_prefix("fasttrack_")?
                .strip_prefix(series)?
                .strip_prefix(' ')
        });
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until these series have these values and returns all metrics.
    async fn once(server: &Server, expected: &[(&str, f64)]) -> Self {
        let told = async {
            loop {
                let told = Self::by(server).await;
                if expected
                    .iter()
                    .all(|(series, value)| told.value(series) == *value)
                {
                    return told;
                }
            }
        };
        timeout(PATIENCE, told).await.expect("in time")
    }

    /// Number of series whose name starts with `start`.
    fn count(&self, start: &str) -> usize {
        self.0
            .lines()
            .filter(|line| {
                line.strip_prefix("fasttrack_")
                    .is_some_and(|line| line.starts_with(start))
            })
            .count()
    }
}

async fn ask(person: &Person, query: &str, name: &str) -> Value {
    let body = json!({ "query": query, "operationName": name });
    Reply::to(person.post("/graphql").json(&body)).await.body
}

#[tokio::test]
async fn requests_and_operations_are_counted_by_route_name_and_outcome() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    for _ in 0..3 {
        ask(&alice, "query Me { viewer { id } }", "Me").await;
    }
    ask(
        &alice,
        "query Me { tasks(first: 1000) { totalCount } }",
        "Me",
    )
    .await;
    ask(
        &alice,
        "mutation Make { createProject(input: { name: \"x\" }) { project { id } } }",
        "Make",
    )
    .await;
    ask(&alice, "query Me { nothing }", "Me").await;
    ask(&alice, "query Me {", "Me").await;
    alice.query("{ viewer { id } }", json!({})).await;
    Reply::to(server.request(Method::GET, "/nowhere")).await;
    Reply::to(server.request(Method::from_bytes(b"BREW").expect("a method"), "/graphql")).await;
    let told = Exposition::by(&server).await;
    let operations = |name: &str, kind: &str, outcome: &str| {
        told.value(&format!(
            "graphql_operations_total{{operation=\"{name}\",kind=\"{kind}\",outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!(operations("Me", "query", "ok"), 3.0, "{}", told.0);
    assert_eq!(
        operations("Me", "query", "BAD_USER_INPUT"),
        1.0,
        "{}",
        told.0
    );
    assert_eq!(operations("Me", "query", "GRAPHQL_VALIDATION_FAILED"), 1.0);
    assert_eq!(operations("Make", "mutation", "ok"), 1.0);
    // Logging a person in sends one unnamed query.
    assert_eq!(operations("unnamed", "query", "ok"), 2.0);
    assert_eq!(
        told.value("graphql_refusals_total{code=\"GRAPHQL_PARSE_FAILED\"}"),
        1.0
    );
    assert_eq!(
        told.value("graphql_operation_duration_seconds_count{operation=\"Me\",kind=\"query\"}"),
        5.0
    );
    let most =
        "graphql_operation_duration_seconds_bucket{le=\"10.0\",operation=\"Me\",kind=\"query\"}";
    assert_eq!(told.value(most), 5.0, "{}", told.0);
    let requests = |method: &str, route: &str, status: u16| {
        told.value(&format!(
            "http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}}"
        ))
    };
    assert_eq!(requests("POST", "/auth/register", 201), 1.0);
    assert_eq!(requests("GET", "none", 404), 1.0);
    assert_eq!(requests("other", "/graphql", 405), 1.0);
    assert_eq!(
        told.value("http_request_duration_seconds_count{route=\"/auth/login\"}"),
        1.0
    );
}

#[tokio::test]
async fn every_metric_is_documented() {
    // Most series appear only after their first event.
    let limits = [
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "3"),
    ];
    let server = Server::with(&limits).await;
    let alice = server.person("alice").await;
    ask(&alice, "{", "").await;
    for _ in 0..2 {
        server
            .post(
                "/auth/login",
                json!({ "username": "nobody", "password": PASSWORD }),
            )
            .await;
    }
    let mut socket = alice.socket().await;
    socket.send(json!({ "type": "nonsense" })).await;
    while socket.receive().await != Frame::Closed(Some(4400)) {}
    let told = Exposition::once(&server, &[("sockets{transport=\"websocket\"}", 0.0)]).await;
    let types = told
        .0
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE fasttrack_")?.split_once(' '));
    let made: BTreeSet<String> = types
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md");
    let page = std::fs::read_to_string(page).expect("docs/reference/metrics.md");
    let first = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let named = first
        .flat_map(|cell| cell.split("`, `"))
        .map(|name| name.trim_end_matches('`').to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), made);
}

#[tokio::test]
async fn clients_cannot_add_metric_series() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let long = "x".repeat(81);
    // Anonymous and failing operations do not take up any of the limited names.
    ask(
        &server.nobody(),
        "query Stranger { __typename }",
        "Stranger",
    )
    .await;
    ask(&alice, "query Wrong { nothing }", "Wrong").await;
    ask(&alice, &format!("query {long} {{ __typename }}"), &long).await;
    let before = Exposition::by(&server).await;
    assert_eq!(
        before.value("graphql_operations_total{operation=\"other\",kind=\"query\",outcome=\"ok\"}"),
        2.0
    );
    for number in 0..230 {
        let name = format!("Name{number}");
        ask(&alice, &format!("query {name} {{ __typename }}"), &name).await;
        Reply::to(server.request(Method::GET, &format!("/{name}"))).await;
    }
    let told = Exposition::by(&server).await;
    assert_eq!(told.count("graphql_operations_total{operation=\"Name"), 200);
    assert_eq!(
        told.value("graphql_operations_total{operation=\"other\",kind=\"query\",outcome=\"ok\"}"),
        32.0
    );
    assert_eq!(
        told.count("http_requests_total{method=\"GET\""),
        1,
        "{}",
        told.0
    );
}

#[tokio::test]
async fn sockets_and_subscriptions_are_counted_while_they_are_open() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let mut socket = alice.socket().await;
    socket
        .subscribe("1", "subscription Live { events { id } }", json!({}))
        .await;
    let body = json!({ "query": "subscription { events { id } }" });
    let stream = alice
        .post("/graphql")
        .header("accept", "text/event-stream")
        .json(&body)
        .send()
        .await
        .expect("a stream");
    let [websockets, streams] = [
        "sockets{transport=\"websocket\"}",
        "sockets{transport=\"sse\"}",
    ];
    let told = Exposition::once(
        &server,
        &[(websockets, 1.0), (streams, 1.0), ("subscriptions", 2.0)],
    )
    .await;
    assert!(told.value("event_lag_seconds") < 5.0, "{}", told.0);
    drop(stream);
    let mut refused = alice.socket().await;
    refused.send(json!({ "type": "nonsense" })).await;
    while refused.receive().await != Frame::Closed(Some(4400)) {}
    drop((socket, refused));
    let told = Exposition::once(
        &server,
        &[(websockets, 0.0), (streams, 0.0), ("subscriptions", 0.0)],
    )
    .await;
    assert_eq!(
        told.value("socket_closes_total{code=\"4400\"}"),
        1.0,
        "{}",
        told.0
    );
    let ended = "graphql_operations_total{operation=\"Live\",kind=\"subscription\",outcome=\"ok\"}";
    assert_eq!(told.value(ended), 1.0, "{}", told.0);
}

#[tokio::test]
async fn limits_hashing_and_database_have_metrics() {
    let limited = [
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", "2"),
    ];
    let server =
        Server::with(&[limited[0], limited[1], ("REDIS_URL", "redis://127.0.0.1:1")]).await;
    for _ in 0..4 {
        server
            .post(
                "/auth/login",
                json!({ "username": "nobody", "password": PASSWORD }),
            )
            .await;
    }
    let told = Exposition::by(&server).await;
    assert_eq!(
        told.value("rate_limit_refusals_total{limit=\"credentials\"}"),
        2.0
    );
    assert_eq!(told.value("rate_limit_fallbacks_total"), 4.0);
    assert_eq!(told.value("password_hash_duration_seconds_count"), 2.0);
    assert_eq!(told.value("password_hashes{state=\"running\"}"), 0.0);
    assert!(
        told.value("db_statements_total") > 0.0
            && told.value("db_wait_duration_seconds_count") > 0.0
    );
    let pool = if crate::harness::is_postgres() {
        "all"
    } else {
        "readers"
    };
    let state = |state: &str| {
        told.value(&format!(
            "db_connections{{pool=\"{pool}\",state=\"{state}\"}}"
        ))
    };
    assert_eq!(
        state("busy") + state("idle") + state("unopened"),
        8.0,
        "{}",
        told.0
    );
    assert!(
        told.0.contains("fasttrack_build_info{version="),
        "{}",
        told.0
    );
    assert!(told.0.ends_with("# EOF\n"));
}

#[tokio::test]
async fn metrics_are_served_on_their_own_address_only() {
    let server = Server::start().await;
    assert_eq!(
        Reply::to(server.request(Method::GET, "/metrics"))
            .await
            .status,
        404
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let limits = server.app.config.connections;
    let served = tokio::spawn(http::serve(
        listener,
        http::metrics_router(&server.app),
        limits,
        vec![],
        stop.clone(),
        stop.clone(),
    ));
    let get = async |path: &str| {
        reqwest::get(format!("http://{address}{path}"))
            .await
            .expect("an answer")
    };
    let told = get("/metrics").await;
    assert!(
        told.headers()["content-type"]
            .to_str()
            .expect("text")
            .starts_with("application/openmetrics-text")
    );
    assert!(
        told.text()
            .await
            .expect("text")
            .contains("fasttrack_http_requests_total")
    );
    for path in ["/graphql", "/auth/login", "/readyz"] {
        assert_eq!(get(path).await.status(), 404, "{path}");
    }
    stop.cancel();
    served.await.expect("an end");
}
