//! GraphQL over HTTP: status codes, headers and content negotiation, and the connections under it.
//! The `graphql-http` audit suite runs in `tests/clients/audit`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fasttrack::error::Code;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Frame, PATIENCE, Server};

const RESPONSE: &str = "application/graphql-response+json";

struct HttpResponse {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl HttpResponse {
    fn code(&self) -> &str {
        self.body["errors"][0]["extensions"]["code"]
            .as_str()
            .unwrap_or_default()
    }
}

async fn post(server: &Server, headers: &[(&str, &str)], body: impl Into<String>) -> HttpResponse {
    let mut request = server.request(Method::POST, "/graphql").body(body.into());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request).await
}

async fn send(request: reqwest::RequestBuilder) -> HttpResponse {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    HttpResponse {
        status,
        headers,
        body: response.json().await.unwrap_or_default(),
    }
}

async fn ask(server: &Server, accept: &str, query: &str) -> HttpResponse {
    let headers = [("content-type", "application/json"), ("accept", accept)];
    post(server, &headers, json!({ "query": query }).to_string()).await
}

#[tokio::test]
async fn each_failure_has_a_status_and_code() {
    let server = Server::start().await;
    let bomb = (0..20)
        .map(|n| format!("fragment f{n} on Query {{ ...f{0} ...f{0} }}", n + 1))
        .collect::<String>();
    let bomb = format!("{{ ...f0 }} {bomb} fragment f20 on Query {{ __typename }}");
    let deep = format!("{{ a(x: {}1{}) }}", "[".repeat(3_000), "]".repeat(3_000));
    let cases = [
        ("{", 400, "GRAPHQL_PARSE_FAILED"),
        ("{ nothing }", 422, "GRAPHQL_VALIDATION_FAILED"),
        (
            "query A { __typename } query B { __typename }",
            422,
            "OPERATION_NAME_REQUIRED",
        ),
        (
            "query ($a: Int!) { user(username: \"x\") { id @skip(if: $a) } }",
            400,
            "BAD_USER_INPUT",
        ),
        ("subscription { events { id } }", 406, "NOT_ACCEPTABLE"),
        (&bomb, 422, "DOCUMENT_TOO_COMPLEX"),
        (&deep, 400, "DOCUMENT_TOO_LARGE"),
    ];
    for (query, status, code) in cases {
        let started = Instant::now();
        let strict = ask(&server, RESPONSE, query).await;
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{query} took {:?}",
            started.elapsed()
        );
        assert_eq!((strict.status, strict.code()), (status, code), "{query}");
        assert!(strict.body.get("data").is_none(), "{query}");
        let id = strict.headers["x-request-id"].to_str().expect("text");
        assert_eq!(strict.body["errors"][0]["extensions"]["requestId"], id);
        let lenient = ask(&server, "application/json", query).await;
        assert_eq!(
            lenient.status,
            if status == 406 { 406 } else { 200 },
            "{query}"
        );
    }
}

#[tokio::test]
async fn cached_validation_rechecks_variable_types() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let document = |name: &str| {
        format!(
            "query {name}($id: ID!, $few: Int, $status: [TaskStatus!], $range: DateTimeRange, $no: Boolean! = false) {{
                task(id: $id) {{ title @skip(if: $no) }}
                tasks(first: $few, filter: {{ status: $status, createdAt: $range }}) {{ nodes {{ id @skip(if: $no) }} }}
            }}"
        )
    };
    let variables = |changes: Value| {
        let mut all = json!({ "id": task, "few": 2, "status": ["TODO"], "range": { "gte": "2020-01-01T00:00:00Z" } });
        all.as_object_mut()
            .expect("an object")
            .extend(changes.as_object().expect("an object").clone());
        all
    };
    let told = |name: String, changes: Value| {
        let (alice, document, variables) = (&alice, document(&name), variables(changes));
        async move {
            let mut answer = alice.ask(&document, variables).await.0;
            for error in answer["errors"].as_array_mut().into_iter().flatten() {
                error["extensions"]["requestId"] = Value::Null;
            }
            answer
        }
    };
    for (number, changes) in [
        json!({ "id": "no id" }),
        json!({ "id": 7 }),
        json!({ "id": null }),
        json!({ "id": [task] }),
        json!({ "id": 1.5 }),
        json!({ "few": 0 }),
        json!({ "few": "2" }),
        json!({ "few": 3_000_000_000_u64 }),
        json!({ "few": null, "no": true }),
        json!({ "status": ["DONE"] }),
        json!({ "status": ["NONE"] }),
        json!({ "status": "TODO" }),
        json!({ "range": { "gte": "yesterday" } }),
        json!({ "range": { "since": "2020-01-01T00:00:00Z" } }),
        json!({ "no": "true" }),
    ]
    .into_iter()
    .enumerate()
    {
        let (fresh, known) = (format!("Fresh{number}"), format!("Known{number}"));
        let usual = told(known.clone(), json!({})).await;
        assert_eq!(
            usual["data"]["tasks"]["nodes"],
            json!([{ "id": task }]),
            "{usual}"
        );
        assert_eq!(told(known.clone(), json!({})).await, usual);
        let expected = told(fresh, changes.clone()).await;
        for _ in 0..2 {
            assert_eq!(
                told(known.clone(), changes.clone()).await,
                expected,
                "{changes}"
            );
        }
        assert_eq!(told(known, json!({})).await, usual);
    }
}

#[tokio::test]
async fn a_partial_response_has_its_own_status() {
    let server = Server::start().await;
    let query = "{ rateLimit { limit } user(username: \"nobody\") { id } }";
    assert_eq!(ask(&server, RESPONSE, "{ __typename }").await.status, 200);
    let partial = ask(&server, RESPONSE, query).await;
    assert_eq!((partial.status, partial.code()), (294, "UNAUTHENTICATED"));
    assert_eq!(
        partial.body["data"],
        json!({ "rateLimit": null, "user": null })
    );
    assert_eq!(ask(&server, "application/json", query).await.status, 200);
}

#[tokio::test]
async fn content_types_are_negotiated() {
    let server = Server::start().await;
    let body = r#"{"query":"{ __typename }"}"#;
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
    ] {
        let told = post(&server, &[("content-type", content_type)], body).await;
        assert_eq!(
            (told.status, told.code()),
            (415, "UNSUPPORTED_MEDIA_TYPE"),
            "{content_type}"
        );
    }
    let json = ("content-type", "application/json");
    assert_eq!(
        post(&server, &[json, ("accept", "text/html")], body)
            .await
            .status,
        406
    );
    assert_eq!(post(&server, &[json], "{").await.code(), "BAD_REQUEST");
    assert_eq!(
        post(&server, &[json], format!("[{body}]")).await.code(),
        "BAD_REQUEST"
    );
    let large = json!({ "query": "{ __typename }", "variables": { "x": "x".repeat(300_000) } });
    let told = post(&server, &[json], large.to_string()).await;
    assert_eq!((told.status, told.code()), (413, "PAYLOAD_TOO_LARGE"));
    let told = post(&server, &[json, ("authorization", "Bearer nonsense")], body).await;
    assert_eq!((told.status, told.code()), (401, "UNAUTHENTICATED"));
    assert_eq!(told.headers["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn accepting_anything_gets_a_stream_for_subscriptions_only() {
    let server = Server::start().await;
    let anything =
        "application/graphql-response+json, application/json, text/event-stream, multipart/mixed";
    for (accept, query, expected) in [
        (
            anything,
            "{ __typename }",
            "application/graphql-response+json; charset=utf-8",
        ),
        (
            anything,
            "subscription { events { id } }",
            "text/event-stream; charset=utf-8",
        ),
        (
            "text/event-stream",
            "{ __typename }",
            "text/event-stream; charset=utf-8",
        ),
    ] {
        assert_eq!(
            ask(&server, accept, query).await.headers["content-type"],
            expected,
            "{accept}: {query}"
        );
    }
}

#[tokio::test]
async fn a_query_or_mutation_over_sse_is_one_event_and_complete() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    for (query, data) in [
        (
            "mutation { createProject(input: { name: \"Apollo\" }) { project { name } } }",
            json!({ "createProject": { "project": { "name": "Apollo" } } }),
        ),
        (
            "{ projects { nodes { name } } }",
            json!({ "projects": { "nodes": [{ "name": "Apollo" }] } }),
        ),
    ] {
        let request = alice.post("/graphql").header("accept", "text/event-stream");
        let answer = request
            .json(&json!({ "query": query }))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        let text = answer.text().await.expect("a stream that ends");
        let events: Vec<&str> = text
            .split_terminator("\n\n")
            .filter(|event| !event.starts_with(':'))
            .collect();
        let [next, "event: complete\ndata: "] = events[..] else {
            panic!("{text}")
        };
        let next = next
            .strip_prefix("event: next\ndata: ")
            .unwrap_or_else(|| panic!("{text}"));
        assert_eq!(
            serde_json::from_str::<Value>(next).expect("JSON")["data"],
            data
        );
    }
}

#[tokio::test]
async fn get_executes_queries_and_rejects_cross_site_requests() {
    let server = Server::start().await;
    let get = |query: &str| {
        server
            .request(Method::GET, "/graphql")
            .query(&[("query", query)])
    };
    assert_eq!(
        send(get("{ __typename }")).await.body["data"]["__typename"],
        "Query"
    );
    let mutation = send(get("mutation { __typename }")).await;
    assert_eq!(
        (mutation.status, mutation.code()),
        (405, "METHOD_NOT_ALLOWED")
    );
    assert_eq!(mutation.headers["allow"], "POST");
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("origin", "https://evil.example"),
    ] {
        let told = send(get("{ __typename }").header(name, value)).await;
        assert_eq!((told.status, told.code()), (403, "FORBIDDEN"), "{name}");
    }
}

#[tokio::test]
async fn every_response_has_security_headers() {
    let server = Server::with(&[
        ("PUBLIC_URL", "https://tasks.example.org"),
        ("ALLOWED_HOSTS", "tasks.example.org"),
    ])
    .await;
    let named =
        |path: &str, host: &str| send(server.request(Method::GET, path).header("host", host));
    let answer = named("/nowhere", "tasks.example.org:443").await;
    assert_eq!(answer.status, 404);
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("strict-transport-security", "max-age=31536000"),
        (
            "content-security-policy",
            "default-src 'none'; frame-ancestors 'none'",
        ),
    ] {
        assert_eq!(answer.headers[name], value);
    }
    assert!(!answer.headers.contains_key("server"));
    assert_eq!(named("/nowhere", "evil.example").await.status, 403);
    assert_eq!(named("/livez", "10.0.0.7").await.status, 200);
}

#[tokio::test]
async fn introspection_works_only_where_enabled() {
    let server = Server::with(&[
        ("INTROSPECTION_ENABLED", "false"),
        ("GRAPHIQL_ENABLED", "false"),
    ])
    .await;
    for query in [
        "{ __schema { types { name } } }",
        "{ __type(name: \"Query\") { name } }",
    ] {
        assert_eq!(
            ask(&server, RESPONSE, query).await.code(),
            "GRAPHQL_VALIDATION_FAILED"
        );
    }
    let told = ask(&server, RESPONSE, "{ viewr { id } }").await;
    assert!(
        !told.body.to_string().contains("Did you mean"),
        "{}",
        told.body
    );
    assert_eq!(
        server
            .request(Method::GET, "/graphiql")
            .send()
            .await
            .expect("an answer")
            .status(),
        404
    );
}

#[test]
fn every_error_code_is_documented() {
    let page = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/reference/error-codes.md"
    ));
    let page = page.expect("docs/reference/error-codes.md");
    let table = page
        .split("\n\n")
        .find(|part| part.starts_with("| code | HTTP |"))
        .expect("a table");
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), Code::ALL.len());
    for (row, code) in rows.into_iter().zip(Code::ALL) {
        assert_eq!(Code::parse(code.as_str()), Some(code));
        assert!((400..600).contains(&code.status()) && !code.description().is_empty());
        // Footnotes mark codes that also occur with other statuses.
        let note = match code {
            Code::BadRequest => " ¹",
            _ if code.is_document_error() => " ²",
            _ => "",
        };
        let begin = format!("| `{}` | {}{note} | ", code.as_str(), code.status());
        assert!(row.starts_with(&begin), "{row} instead of {begin}…");
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// Reads until the server closes the connection.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset counts as closing.
    drop(
        timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .expect("the connection closes before the timeout"),
    );
    bytes
}

#[tokio::test]
async fn half_open_requests_do_not_block_others() {
    // Each takes two file descriptors, because both ends are in this process.
    let half_open = 2_000;
    let server = Server::with(&[
        ("MAX_CONNECTIONS", "1000"),
        ("HEADER_TIMEOUT_SECONDS", "10"),
    ])
    .await;
    let mut connections = Vec::with_capacity(half_open);
    for _ in 0..half_open {
        let mut stream = connect(server.address).await;
        drop(
            stream
                .write_all(b"POST /graphql HTTP/1.1\r\nhost: x\r\nx-slow: ")
                .await,
        );
        connections.push(stream);
    }
    for _ in 0..20 {
        let started = Instant::now();
        assert_eq!(ask(&server, RESPONSE, "{ __typename }").await.status, 200);
        assert!(
            started.elapsed() < Duration::from_secs(4),
            "{:?}",
            started.elapsed()
        );
    }
    // Connections that were not evicted are closed by the header timeout.
    assert!(
        rest(connections.last_mut().expect("the last one"))
            .await
            .is_empty()
    );
}

/// Sends only the head of a POST, so that the request is in progress.
async fn half_sent(server: &Server, path: &str) -> TcpStream {
    let mut stream = connect(server.address).await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 26"
    );
    stream
        .write_all(format!("{head}\r\nexpect: 100-continue\r\n\r\n").as_bytes())
        .await
        .expect("sent");
    let mut told = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut told))
        .await
        .expect("in time")
        .expect("an answer");
    assert_eq!(
        String::from_utf8_lossy(&told),
        "HTTP/1.1 100 Continue\r\n\r\n",
        "the server waits for the body"
    );
    stream
}

#[tokio::test]
async fn half_sent_requests_are_evicted_oldest_first() {
    let server = Server::with(&[("MAX_REQUESTS_IN_FLIGHT", "2")]).await;
    let mut half_sent_ones = Vec::new();
    for path in [
        "/graphql",
        "/auth/login",
        "/graphql",
        "/graphql",
        "/graphql",
    ] {
        half_sent_ones.push(half_sent(&server, path).await);
    }
    for _ in 0..5 {
        assert_eq!(ask(&server, RESPONSE, "{ __typename }").await.status, 200);
    }
    let mut newest = half_sent_ones.pop().expect("five");
    newest
        .write_all(br#"{"query":"{ __typename }"}"#)
        .await
        .expect("sent");
    let mut answer = [0; 12];
    timeout(PATIENCE, newest.read_exact(&mut answer))
        .await
        .expect("in time")
        .expect("an answer");
    assert_eq!(
        &answer, b"HTTP/1.1 200",
        "one slot was enough for the other requests"
    );
    for mut oldest in half_sent_ones {
        assert!(rest(&mut oldest).await.starts_with(b"HTTP/1.1 400"));
    }
}

#[tokio::test]
async fn open_sockets_count_as_connections() {
    let server = Server::with(&[("MAX_CONNECTIONS", "2"), ("WS_INIT_SECONDS", "60")]).await;
    let alice = server.person("alice").await;
    let mut sockets = [alice.socket().await, alice.socket().await];
    let mut refused = connect(server.address).await;
    refused
        .write_all(b"GET /graphql HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("sent");
    assert!(rest(&mut refused).await.starts_with(b"HTTP/1.1 503"));
    sockets[0].send(json!({ "type": "nonsense" })).await;
    assert_eq!(sockets[0].receive().await, Frame::Closed(Some(4400)));
    let let_in = async {
        loop {
            let mut next = connect(server.address).await;
            drop(
                next.write_all(b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    .await,
            );
            if rest(&mut next).await.starts_with(b"HTTP/1.1 404") {
                return;
            }
        }
    };
    timeout(PATIENCE, let_in)
        .await
        .expect("the slot of the closed socket");
}

#[tokio::test]
async fn slow_clients_are_disconnected() {
    let settings = [
        ("HEADER_TIMEOUT_SECONDS", "1"),
        ("BODY_TIMEOUT_SECONDS", "1"),
        ("KEEP_ALIVE_SECONDS", "1"),
    ];
    let server = Server::with(&settings).await;
    for begun in ["", "P", "PRI * HTTP/2.0\r\n", "GET /livez HTTP/1.1\r\n"] {
        let mut stream = connect(server.address).await;
        stream.write_all(begun.as_bytes()).await.expect("sent");
        assert!(rest(&mut stream).await.is_empty(), "{begun:?}");
    }
    let mut idle = connect(server.address).await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /li")
        .await
        .expect("sent");
    assert!(rest(&mut idle).await.starts_with(b"HTTP/1.1 200"));
    for path in ["/graphql", "/auth/login"] {
        let mut late = connect(server.address).await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
        );
        late.write_all(head.as_bytes()).await.expect("sent");
        assert!(rest(&mut late).await.starts_with(b"HTTP/1.1 400"), "{path}");
    }
}

#[tokio::test]
async fn http_2_works_with_prior_knowledge() {
    let server = Server::start().await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    let answer = client
        .post(format!("http://{}/graphql", server.address))
        .json(&json!({ "query": "{ __typename }" }))
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        (answer.version(), answer.status().as_u16()),
        (reqwest::Version::HTTP_2, 200)
    );
}

#[tokio::test]
async fn trusted_documents_are_identified_by_id() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(
        file.path(),
        json!({ "GetTasks": "{ __typename }" }).to_string(),
    )
    .expect("written");
    let server = Server::with(&[("TRUSTED_DOCUMENTS", &file.path().to_string_lossy())]).await;
    let hash = "7F56E67DD21AB3F30D1FF8B7BED08893F0A0DB86449836189B361DD1E56DDB4B";
    for (id, status) in [("GetTasks", 200), (hash, 200), ("gettasks", 403)] {
        let body =
            json!({ "extensions": { "persistedQuery": { "version": 1, "sha256Hash": id } } });
        assert_eq!(server.post("/graphql", body).await.status, status, "{id}");
    }
}
