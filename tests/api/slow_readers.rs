//! Slow readers: how much of an unread answer the server keeps, and for how long.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::harness::{Frame, PATIENCE, Person, Reply, Server};
use crate::http_2::{DATA, Frames, RESET, WINDOW_UPDATE};

/// An answer of slightly more than 1 MB, built from the tasks of [`with_texts`].
const LARGE: &str = "{ tasks(first: 30) { nodes { description } } }";
const LARGE_BYTES: usize = 30 * 40_000;
/// More such answers than one user may leave unread.
const MANY: u32 = 20;
/// Longer than the pauses of a slow reader, but shorter than its whole read.
const DEADLINE: &str = "2";

/// A user with 30 tasks that have long descriptions.
async fn with_texts(server: &Server, username: &str) -> Person {
    let person = server.person(username).await;
    let project = person.project("Apollo").await;
    let text = "\u{1f680}".repeat(10_000);
    for _ in 0..30 {
        person
            .task(&project, "Fly", json!({ "description": text }))
            .await;
    }
    person
}

fn path(query: &str) -> String {
    let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
    format!("/graphql?query={query}")
}

async fn ask(client: &mut Frames, person: &Person, stream: u32, query: &str) {
    let authorization = format!("Bearer {}", person.token());
    client
        .get_as(stream, &path(query), &[("authorization", &authorization)])
        .await;
}

#[tokio::test]
async fn an_unread_export_blocks_no_other_export() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let mut client = Frames::connect(server.address, 0).await;
    ask(&mut client, &alice, 1, "{ exportViewerData }").await;
    assert_eq!(client.next_head().await, (1, true));
    let other = Reply::to(
        bob.post("/graphql")
            .json(&json!({ "query": "{ exportViewerData }" })),
    )
    .await;
    assert_eq!(
        other.body["data"]["exportViewerData"]["account"]["username"], "bob",
        "{}",
        other.body
    );
}

#[tokio::test]
async fn unread_bytes_are_limited_per_user() {
    // With rate limits enabled, because a refusal must also carry the RateLimit headers.
    let many = "100000";
    let server = Server::with(&[
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_CREDENTIALS_PER_MINUTE", many),
        ("RATE_LIMIT_GRAPHQL_PER_MINUTE", many),
        ("RATE_LIMIT_COST_PER_MINUTE", many),
    ])
    .await;
    let (alice, bob) = (
        with_texts(&server, "alice").await,
        with_texts(&server, "bob").await,
    );
    let mut client = Frames::connect(server.address, 0).await;
    let mut taken = Vec::new();
    for number in 0..MANY {
        let stream = 2 * number + 1;
        ask(&mut client, &alice, stream, LARGE).await;
        let (answered, is_ok) = client.next_head().await;
        assert_eq!(answered, stream);
        if is_ok {
            taken.push(stream);
        }
    }
    let bytes = taken.len() * LARGE_BYTES;
    assert!((8 << 20..16 << 20).contains(&bytes), "{bytes} bytes unread");
    let refused = alice.post("/graphql").json(&json!({ "query": LARGE }));
    let refused = Reply::to(refused).await;
    assert_eq!(
        (
            refused.status.as_u16(),
            &refused.body["errors"][0]["extensions"]["code"]
        ),
        (429, &json!("RATE_LIMITED"))
    );
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(
        alice.ask("{ viewer { username } }", json!({})).await.data()["viewer"]["username"],
        "alice"
    );
    assert!(
        bob.ask(LARGE, json!({})).await.codes().is_empty(),
        "other users are not affected"
    );
    // Answers the client cancels no longer count.
    for stream in taken {
        client.send(RESET, 0, stream, &8_u32.to_be_bytes()).await;
    }
    let again = async { while !alice.ask(LARGE, json!({})).await.codes().is_empty() {} };
    timeout(PATIENCE, again).await.expect("room again");
}

#[tokio::test]
async fn unread_socket_bytes_count_toward_the_limit() {
    let server = Server::with(&[("WS_WRITE_SECONDS", "60")]).await;
    let alice = with_texts(&server, "alice").await;
    let mut deaf = Vec::new();
    for _ in 0..2 {
        let mut socket = alice.socket().await;
        for number in 0..MANY {
            socket
                .subscribe(&number.to_string(), LARGE, json!({}))
                .await;
        }
        deaf.push(socket);
    }
    let mut socket = alice.socket().await;
    let refused = async {
        for number in 0.. {
            socket
                .subscribe(&number.to_string(), LARGE, json!({}))
                .await;
            let Frame::Message(message) = socket.receive().await else {
                panic!("no message")
            };
            if message["type"] == "error" {
                return message["payload"][0]["extensions"]["code"].clone();
            }
            assert!(
                matches!(socket.receive().await, Frame::Message(message) if message["type"] == "complete")
            );
        }
        Value::Null
    };
    assert_eq!(
        timeout(PATIENCE, refused).await.expect("a refusal"),
        "RATE_LIMITED"
    );
    drop(deaf);
    let again = async { while !alice.ask(LARGE, json!({})).await.codes().is_empty() {} };
    timeout(PATIENCE, again).await.expect("room again");
}

/// Connects with a small receive buffer.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .set_recv_buffer_size(16 * 1024)
        .expect("a small buffer");
    socket.connect(address).await.expect("a connection")
}

/// Reads `bytes` bytes at about 200 kB/s.
async fn read_slowly(stream: &mut TcpStream, mut bytes: usize) {
    let mut piece = vec![0; 16 * 1024];
    while bytes > 0 {
        // The slow pace is what the test is about.
        sleep(Duration::from_millis(80)).await;
        let most = bytes.min(piece.len());
        stream
            .read_exact(&mut piece[..most])
            .await
            .expect("an open connection");
        bytes -= most;
    }
}

#[tokio::test]
async fn slow_but_steady_http_1_reader_is_served() {
    let server = Server::with(&[("KEEP_ALIVE_SECONDS", DEADLINE)]).await;
    let alice = with_texts(&server, "alice").await;
    let mut stream = narrow(server.address).await;
    let head = format!(
        "GET {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ngraphql-require-preflight: 1\r\n\r\n",
        path(LARGE),
        alice.token()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    read_slowly(&mut stream, LARGE_BYTES).await;
}

#[tokio::test]
async fn a_slow_reader_over_http_2_is_not_cut_off() {
    let server = Server::with(&[("KEEP_ALIVE_SECONDS", DEADLINE)]).await;
    let alice = with_texts(&server, "alice").await;
    let mut client = Frames::connect(server.address, 16 * 1024).await;
    ask(&mut client, &alice, 1, LARGE).await;
    let mut left = LARGE_BYTES;
    while left > 0 {
        let length = client.next_length(DATA).await;
        left = left.saturating_sub(length);
        sleep(Duration::from_millis(80)).await;
        let length = u32::try_from(length).expect("a frame").to_be_bytes();
        for stream in [0, 1] {
            client.send(WINDOW_UPDATE, 0, stream, &length).await;
        }
    }
}

#[tokio::test]
async fn a_slow_reader_over_a_websocket_is_not_cut_off() {
    let server = Server::with(&[("WS_WRITE_SECONDS", DEADLINE)]).await;
    let alice = with_texts(&server, "alice").await;
    let mut stream = narrow(server.address).await;
    let head = "GET /graphql HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
        sec-websocket-protocol: graphql-transport-ws\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let payload = json!({ "Authorization": format!("Bearer {}", alice.token()) });
    let query = json!({ "query": LARGE });
    for message in [
        json!({ "type": "connection_init", "payload": payload }),
        json!({ "type": "subscribe", "id": "1", "payload": query }),
    ] {
        let text = message.to_string();
        let length = u16::try_from(text.len())
            .expect("a short message")
            .to_be_bytes();
        // A text frame with an all-zero mask.
        let frame = [&[0x81, 0xfe], &length[..], &[0; 4], text.as_bytes()].concat();
        stream.write_all(&frame).await.expect("sent");
    }
    read_slowly(&mut stream, LARGE_BYTES).await;
}
