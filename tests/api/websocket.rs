//! The graphql-transport-ws protocol, frame by frame. The reference client is tested in
//! `tests/clients/sockets`.

use std::time::Duration;

use fasttrack::http::concurrency_limit::WaitPolicy;
use fasttrack::limits::ClientKey;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::harness::{PATIENCE, Person, Server};

/// A socket that shows every message, including pings.
struct Raw(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Raw {
    async fn open(server: &Server) -> Self {
        let mut request = format!("ws://{}/graphql", server.address)
            .into_client_request()
            .expect("a request");
        request.headers_mut().insert(
            "sec-websocket-protocol",
            "graphql-transport-ws".parse().expect("a header"),
        );
        Self(connect_async(request).await.expect("a socket").0)
    }

    async fn greeted(server: &Server, person: &Person) -> Self {
        let mut raw = Self::open(server).await;
        let payload = json!({ "Authorization": format!("Bearer {}", person.token()) });
        raw.send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        assert_eq!(raw.receive().await, Ok(json!({ "type": "connection_ack" })));
        raw
    }

    async fn send(&mut self, message: Value) {
        self.0
            .send(Message::text(message.to_string()))
            .await
            .expect("an open socket");
    }

    async fn subscribe(&mut self, id: &str, query: &str) {
        self.send(json!({ "type": "subscribe", "id": id, "payload": { "query": query } }))
            .await;
    }

    /// The next message, or the close code.
    async fn receive(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(PATIENCE, self.0.next())
                .await
                .expect("a frame before the timeout")
            {
                Some(Ok(Message::Text(text))) => {
                    return Ok(serde_json::from_str(&text).expect("JSON"));
                }
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map_or(1005, |frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.receive().await {
                return code;
            }
        }
    }
}

#[tokio::test]
async fn protocol_violations_have_close_codes() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let operation = json!({ "type": "subscribe", "id": "1", "payload": { "query": "subscription { events { id } }" } });
    for (first, code) in [
        (json!({ "type": "nonsense" }), 4400),
        (
            json!({ "type": "subscribe", "id": "1", "payload": 7 }),
            4400,
        ),
        (operation.clone(), 4401),
        (json!({ "type": "connection_init" }), 4403),
        (
            json!({ "type": "connection_init", "payload": { "Authorization": "Bearer x" } }),
            4403,
        ),
    ] {
        let mut raw = Raw::open(&server).await;
        raw.send(first.clone()).await;
        assert_eq!(raw.closed().await, code, "{first}");
    }
    for (again, code) in [
        (operation.clone(), 4409),
        (json!({ "type": "connection_init" }), 4429),
    ] {
        let mut raw = Raw::greeted(&server, &alice).await;
        raw.send(operation.clone()).await;
        raw.send(again.clone()).await;
        assert_eq!(raw.closed().await, code, "{again}");
    }
}

#[tokio::test]
async fn silent_socket_is_closed_before_and_after_init() {
    let server = Server::with(&[("WS_INIT_SECONDS", "2"), ("WS_PING_SECONDS", "2")]).await;
    let alice = server.person("alice").await;
    assert_eq!(Raw::open(&server).await.closed().await, 4408);
    let mut raw = Raw::greeted(&server, &alice).await;
    for _ in 0..2 {
        assert_eq!(raw.receive().await, Ok(json!({ "type": "ping" })));
        raw.send(json!({ "type": "pong" })).await;
    }
    assert_eq!(raw.closed().await, 4408);
}

#[tokio::test]
async fn socket_closes_when_its_session_or_account_changes() {
    let server = Server::start().await;
    let (alice, root) = (server.person("alice").await, server.admin("root").await);
    let mut raw = Raw::greeted(&server, &alice).await;
    let mut other = Raw::greeted(&server, &server.login("alice").await).await;
    raw.subscribe("1", "subscription { events { id } }").await;
    alice.post("/auth/logout").send().await.expect("an answer");
    assert_eq!(raw.closed().await, 4403);
    // Another session of the same user is not affected.
    other.subscribe("1", "{ __typename }").await;
    assert_eq!(other.receive().await.expect("an answer")["type"], "next");
    root.mutate("updateUser", json!({ "id": alice.id, "role": "ADMIN" }))
        .await
        .ok();
    assert_eq!(other.closed().await, 4403);
}

#[tokio::test]
async fn socket_closes_when_a_streams_original_session_ends() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let fresh = server.login("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    raw.subscribe("1", "subscription { events { id } }").await;
    let payload = json!({ "Authorization": format!("Bearer {}", fresh.token()) });
    raw.send(json!({ "type": "ping", "payload": payload }))
        .await;
    assert_eq!(raw.receive().await, Ok(json!({ "type": "pong" })));
    alice.post("/auth/logout").send().await.expect("an answer");
    assert_eq!(raw.receive().await, Err(4403));
}

#[tokio::test]
async fn ended_session_is_rejected_before_the_event_arrives() {
    // The server does not read the event log here, as on PostgreSQL while an older transaction is
    // open.
    let server = Server::without_jobs().await;
    let root = server.admin("root").await;
    let (ended, changed) = (server.admin("alice").await, server.admin("bob").await);
    let (mut of_ended, mut of_changed) = (
        Raw::greeted(&server, &ended).await,
        Raw::greeted(&server, &changed).await,
    );
    for raw in [&mut of_ended, &mut of_changed] {
        raw.subscribe("1", "{ users { totalCount } }").await;
        assert_eq!(
            raw.receive().await.expect("an answer")["payload"]["data"]["users"]["totalCount"],
            3
        );
        assert_eq!(
            raw.receive().await,
            Ok(json!({ "type": "complete", "id": "1" }))
        );
    }
    ended.post("/auth/logout").send().await.expect("an answer");
    of_ended
        .subscribe(
            "2",
            "mutation { createProject(input: { name: \"x\" }) { project { id } } }",
        )
        .await;
    assert_eq!(of_ended.receive().await, Err(4403));
    assert!(
        !server.dump().await.contains("projects: "),
        "no project was created"
    );
    root.mutate("updateUser", json!({ "id": changed.id, "role": "USER" }))
        .await
        .ok();
    of_changed.subscribe("2", "{ users { totalCount } }").await;
    assert_eq!(of_changed.receive().await, Err(4403));
}

#[tokio::test]
async fn fresh_token_extends_the_socket() {
    let server = Server::with(&[("ACCESS_TOKEN_EXPIRE_MINUTES", "1")]).await;
    let alice = server.person("alice").await;
    // 52 seconds later the token is valid for 8 more seconds.
    server.advance(Duration::from_secs(52));
    let (mut prolonged, mut forgotten) = (
        Raw::greeted(&server, &alice).await,
        Raw::greeted(&server, &alice).await,
    );
    let fresh = server.login("alice").await;
    let payload = json!({ "Authorization": format!("Bearer {}", fresh.token()) });
    prolonged
        .send(json!({ "type": "ping", "payload": payload }))
        .await;
    assert_eq!(prolonged.receive().await, Ok(json!({ "type": "pong" })));
    assert_eq!(forgotten.closed().await, 4403);
    prolonged.subscribe("1", "{ __typename }").await;
    assert_eq!(
        prolonged.receive().await.expect("an answer")["type"],
        "next"
    );
}

#[tokio::test]
async fn shutdown_closes_sockets_with_1012() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    raw.subscribe("1", "subscription { events { id } }").await;
    let stopped = std::thread::spawn(move || drop(server));
    assert_eq!(raw.closed().await, 1012);
    stopped.join().expect("an end");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let server = Server::with(&[("WS_WRITE_SECONDS", "1")]).await;
    let alice = server.person("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    let fields = "fields { name description args { name description } }";
    let query = format!("{{ __schema {{ types {{ name description {fields} }} }} }}");
    let flood = async {
        for number in 0.. {
            let payload = json!({ "query": query });
            let message =
                json!({ "type": "subscribe", "id": number.to_string(), "payload": payload });
            if raw
                .0
                .send(Message::text(message.to_string()))
                .await
                .is_err()
            {
                break;
            }
        }
    };
    timeout(PATIENCE, flood).await.expect("dropped");
}

#[tokio::test]
async fn mutations_on_sockets_can_be_disabled() {
    let server = Server::with(&[("WS_MUTATIONS", "false")]).await;
    let alice = server.person("alice").await;
    let mut raw = Raw::greeted(&server, &alice).await;
    raw.subscribe(
        "1",
        "mutation { createProject(input: { name: \"x\" }) { project { id } } }",
    )
    .await;
    let refused = raw.receive().await.expect("a message");
    assert_eq!(
        (
            &refused["type"],
            &refused["payload"][0]["extensions"]["code"]
        ),
        (&json!("error"), &json!("FORBIDDEN"))
    );
}

#[tokio::test]
async fn cross_site_page_cannot_open_a_socket() {
    let server = Server::with(&[(
        "CORS_ORIGINS",
        "https://app.example.org, capacitor://localhost",
    )])
    .await;
    let (page, app) = (
        ("https://app.example.org", 101),
        ("capacitor://localhost", 101),
    );
    for (origin, status) in [
        ("https://evil.example", 403),
        ("null", 403),
        ("capacitor://evil", 403),
        page,
        app,
    ] {
        let request = server
            .request(Method::GET, "/graphql")
            .header("origin", origin);
        let request = request
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        let request = request
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
        let answer = request
            .header("sec-websocket-protocol", "graphql-transport-ws")
            .send()
            .await;
        assert_eq!(answer.expect("an answer").status(), status, "{origin}");
    }
}

/// A connection after a raw handshake, for frames that no library sends.
struct Frames(TcpStream);

impl Frames {
    async fn open(server: &Server) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // A small buffer, so that data the server does not read blocks the client soon.
        socket.set_send_buffer_size(4_096).expect("a size");
        let mut stream = socket.connect(server.address).await.expect("a connection");
        let handshake = "GET /graphql HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            sec-websocket-protocol: graphql-transport-ws\r\n\r\n";
        stream.write_all(handshake.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("an answer"));
        }
        let answer = String::from_utf8(answer).expect("text").to_lowercase();
        // Key and accept value from RFC 6455, section 1.3.
        assert!(
            answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
            "{answer}"
        );
        Self(stream)
    }

    /// First byte and payload of the next frame, which must be short.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        let next = async {
            let first = self.0.read_u8().await.expect("a frame");
            let length = self.0.read_u8().await.expect("a length");
            let mut payload = vec![0; length.into()];
            self.0.read_exact(&mut payload).await.expect("a payload");
            (first, payload)
        };
        timeout(PATIENCE, next)
            .await
            .expect("a frame before the timeout")
    }
}

/// Builds a frame from its first byte (FIN, three reserved bits, opcode) and payload, with an
/// all-zero mask.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let length = match u8::try_from(length) {
        Ok(short @ 0..126) => vec![0x80 | short],
        _ => [
            &[0x80 | 126][..],
            &u16::try_from(length).expect("a short frame").to_be_bytes(),
        ]
        .concat(),
    };
    [&[first][..], &length, &[0; 4], payload].concat()
}

#[tokio::test]
async fn invalid_frames_close_with_rfc_6455_codes() {
    let server = Server::without_jobs().await;
    let unmasked = [&[0x81, 2][..], b"{}"].concat();
    let ping = "x".repeat(126);
    for (title, frames, code) in [
        ("invalid UTF-8", frame(0x81, b"\xff"), 1007),
        (
            "invalid UTF-8 in fragments",
            [frame(0x01, b"\xc3"), frame(0x80, b"\xff")].concat(),
            1007,
        ),
        (
            "invalid UTF-8 in a close frame",
            frame(0x88, b"\x03\xe8\xff"),
            1007,
        ),
        (
            "a character in two fragments",
            [frame(0x01, b"\xc3"), frame(0x80, b"\xbc")].concat(),
            4400,
        ),
        ("an unmasked frame", unmasked, 1002),
        ("a reserved bit", frame(0xc1, b"{}"), 1002),
        ("a reserved bit of a control frame", frame(0xa9, b""), 1002),
        ("an unknown data frame", frame(0x83, b""), 1002),
        ("an unknown control frame", frame(0x8b, b""), 1002),
        (
            "a control frame that is too long",
            frame(0x89, ping.as_bytes()),
            1002,
        ),
        (
            "a close frame that is too long",
            frame(0x88, [b"\x03\xe8", ping.as_bytes()].concat().as_slice()),
            1002,
        ),
        ("a fragment of a control frame", frame(0x09, b""), 1002),
        ("a continuation of nothing", frame(0x80, b""), 1002),
        (
            "a message within another",
            [frame(0x01, b"{"), frame(0x81, b"}")].concat(),
            1002,
        ),
        (
            "a close frame without a whole code",
            frame(0x88, b"\x03"),
            1002,
        ),
        (
            "a message that is too long",
            [frame(0x01, &[32; 65_000]), frame(0x80, &[32; 65_000])].concat(),
            1009,
        ),
    ] {
        for more in [0, 60_000] {
            let mut raw = Frames::open(&server).await;
            // Bytes sent after the violation must not reset the connection before the close code is
            // read.
            let sent = [frames.clone(), vec![0x55; more]].concat();
            let (mut read, mut write) = raw.0.split();
            drop(write.write_all(&sent).await);
            drop(write.shutdown().await);
            let mut got = Vec::new();
            timeout(PATIENCE, read.read_to_end(&mut got))
                .await
                .expect("the end before the timeout")
                .expect(title);
            let close = got.windows(2).position(|at| at[0] == 0x88);
            let close = close.unwrap_or_else(|| {
                panic!(
                    "{title} and {more} bytes: {:?}",
                    String::from_utf8_lossy(&got)
                )
            });
            assert_eq!(
                u16::from_be_bytes([got[close + 2], got[close + 3]]),
                code,
                "{title} and {more} bytes"
            );
        }
    }
}

#[tokio::test]
async fn message_flood_is_throttled() {
    let server = Server::with(&[("WS_PING_SECONDS", "1")]).await;
    let alice = server.person("alice").await;
    let text = |message: Value| frame(0x81, message.to_string().as_bytes());
    let operation = json!({ "type": "subscribe", "id": "1", "payload": { "query": "subscription { events { id } }" } });
    let churn = [
        text(operation),
        text(json!({ "type": "complete", "id": "1" })),
    ]
    .concat();
    for (title, flood, most) in [
        ("pongs", frame(0x8a, &[0; 125]), 1_000_000),
        ("pings", frame(0x89, &[0; 125]), 1_000_000),
        (
            "pongs of graphql-transport-ws",
            text(json!({ "type": "pong", "payload": { "x": "x".repeat(80) } })),
            1_000_000,
        ),
        ("subscriptions that are opened and closed", churn, 1_000_000),
        (
            "empty fragments",
            [
                frame(0x01, b""),
                frame(0x00, b"").repeat(10_000),
                frame(0x80, br#"{"type":"pong"}"#),
            ]
            .concat(),
            3_500_000,
        ),
    ] {
        let mut raw = Frames::open(&server).await;
        let payload = json!({ "Authorization": format!("Bearer {}", alice.token()) });
        raw.0
            .write_all(&text(
                json!({ "type": "connection_init", "payload": payload }),
            ))
            .await
            .expect("sent");
        assert_eq!(raw.next().await.1, br#"{"type":"connection_ack"}"#);
        let (mut read, mut write) = raw.0.split();
        let mut sent = 0;
        let flooding = async {
            loop {
                sent += write
                    .write(&flood[sent % flood.len()..])
                    .await
                    .expect("sent");
            }
        };
        let mut got = Vec::new();
        let three_seconds = async {
            while got
                .windows(15)
                .filter(|part| part == br#"{"type":"ping"}"#)
                .count()
                < 3
            {
                assert!(
                    read.read_buf(&mut got).await.expect("an open socket") > 0,
                    "{title}: the server closed"
                );
            }
        };
        tokio::select! {
            () = flooding => {}
            taken = timeout(PATIENCE, three_seconds) => taken.expect("three pings before the timeout"),
        }
        println!("{title}: {sent} bytes accepted in three seconds");
        assert!(
            sent < most,
            "{title}: {sent} bytes accepted in three seconds"
        );
    }
}

/// Resident memory of this process, in KiB; `None` where the system does not report it.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[tokio::test]
async fn operations_that_wait_take_the_memory_of_their_text() {
    // A socket may send 1 MiB at once.
    const SOCKETS: usize = 9;
    const OPERATIONS: usize = 16;
    let server = Server::with(&[("MAX_OPERATIONS_AT_ONCE", "8")]).await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let owner = |person: &Person| {
        let access = server
            .app
            .credentials
            .verify_access(server.app.clock.now(), person.token());
        ClientKey::User(access.expect("a good token").user_id)
    };
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(Raw::greeted(&server, &alice).await);
    }
    let acquire = || {
        server
            .app
            .concurrency
            .acquire(owner(&alice), WaitPolicy::Request)
    };
    let held = (
        acquire().await.expect("a permit"),
        acquire().await.expect("a permit"),
    );
    // 64 KiB of JSON take more than 1 MiB when parsed.
    let values = vec![json!({ "a": 0 }); 7_900];
    let payload = json!({ "query": "{ __typename }", "variables": { "v": values } });
    let before = resident();
    for raw in &mut sockets {
        for number in 0..OPERATIONS {
            raw.send(json!({ "type": "subscribe", "id": number.to_string(), "payload": payload }))
                .await;
        }
        // The server reads the messages of a socket in order.
        raw.send(json!({ "type": "ping" })).await;
    }
    let mut refused = 0;
    for raw in &mut sockets {
        loop {
            let message = raw.receive().await.expect("a message");
            match message["type"].as_str() {
                Some("pong") => break,
                Some("error") => {
                    assert_eq!(
                        message["payload"][0]["extensions"]["code"], "RATE_LIMITED",
                        "{message}"
                    );
                    refused += 1;
                }
                _ => panic!("{message}"),
            }
        }
    }
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        println!("{refused} refused, the others take {grown} KiB");
        assert!(grown < 64 * 1024, "{grown} KiB");
    }
    let waiting = SOCKETS * OPERATIONS - refused;
    assert!(
        (130..135).contains(&waiting),
        "{waiting} operations wait: 8 MiB of text"
    );
    let mut his = Raw::greeted(&server, &bob).await;
    his.send(json!({ "type": "subscribe", "id": "1", "payload": payload }))
        .await;
    assert_eq!(
        his.receive().await.expect("an answer")["payload"][0]["extensions"]["code"],
        "VARIABLES_TOO_LARGE"
    );
    drop(held);
    let mut answered = 0;
    for raw in &mut sockets {
        raw.send(
            json!({ "type": "subscribe", "id": "last", "payload": { "query": "{ __typename }" } }),
        )
        .await;
        loop {
            let message = raw.receive().await.expect("a message");
            match message["type"].as_str() {
                Some("complete") => break,
                Some("next") => {}
                _ => {
                    assert_eq!(
                        message["payload"][0]["extensions"]["code"], "VARIABLES_TOO_LARGE",
                        "{message}"
                    );
                    answered += 1;
                }
            }
        }
    }
    assert!(answered > 0, "operations that waited are executed");
}

#[tokio::test]
async fn the_operations_of_a_user_that_wait_are_limited_and_harm_nobody_else() {
    const MAX_WAITING: usize = 400;
    let server = Server::with(&[
        ("MAX_OPERATIONS_AT_ONCE", "8"),
        ("WS_OPERATIONS_PER_SOCKET", "500"),
    ])
    .await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let access = server
        .app
        .credentials
        .verify_access(server.app.clock.now(), alice.token());
    let owner = ClientKey::User(access.expect("a good token").user_id);
    let (mut hers, mut his) = (
        Raw::greeted(&server, &alice).await,
        Raw::greeted(&server, &bob).await,
    );
    let acquire = || server.app.concurrency.acquire(owner, WaitPolicy::Request);
    let held = (
        acquire().await.expect("a permit"),
        acquire().await.expect("a permit"),
    );
    for number in 0..=MAX_WAITING {
        hers.subscribe(&number.to_string(), "{ __typename }").await;
    }
    let refused = hers.receive().await.expect("a message");
    assert_eq!(
        (
            &refused["type"],
            &refused["payload"][0]["extensions"]["code"]
        ),
        (&json!("error"), &json!("RATE_LIMITED"))
    );
    // Sooner than the operations that wait are given up.
    drop(held);
    his.subscribe("1", "{ __typename }").await;
    assert_eq!(his.receive().await.expect("an answer")["type"], "next");
    let mut answered = 0;
    while answered < MAX_WAITING {
        match hers.receive().await.expect("a message")["type"].as_str() {
            Some("next") => answered += 1,
            Some("complete") => {}
            other => panic!("{other:?}"),
        }
    }
}
