//! Connection limits, eviction of idle connections, and probes while all slots are taken.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use url::Url;

use crate::harness::{Database, Frame, PATIENCE, Server, Socket, is_postgres};
use crate::http_2::{DATA, Frames, HEADERS, PING, SETTINGS, WINDOW_UPDATE};

const OPERATION: &str = "GET /graphql?query=%7B__typename%7D HTTP/1.1\r\nhost: x\r\ngraphql-require-preflight: 1\r\n\r\n";
const LIVEZ: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
const READYZ: &str = "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n";

/// Connects from a given loopback address.
async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind((source, 0).into())
        .expect("an address of this machine");
    socket.connect(address).await.expect("a connection")
}

/// A keep-alive connection for sequential requests.
struct Kept(TcpStream);

impl Kept {
    async fn open(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.expect("a connection"))
    }

    /// Connects from another loopback address.
    async fn from(source: Ipv4Addr, address: SocketAddr) -> Self {
        Self(connect_from(source, address).await)
    }

    /// Sends a request; returns the status, or `None` if the server closes the connection instead.
    async fn ask(&mut self, request: &str) -> Option<u16> {
        // If the write fails, reading the answer fails too.
        drop(self.0.write_all(request.as_bytes()).await);
        let answer = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.ok()?);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .expect("a length");
            let mut body = vec![0; length.parse().expect("a number")];
            self.0.read_exact(&mut body).await.ok()?;
            head.split(' ').nth(1).expect("a status").parse().ok()
        };
        timeout(PATIENCE, answer)
            .await
            .expect("an answer before the timeout")
    }

    /// Waits until the server closes the connection.
    async fn closed(mut self) {
        let mut rest = Vec::new();
        drop(
            timeout(PATIENCE, self.0.read_to_end(&mut rest))
                .await
                .expect("the connection closes before the timeout"),
        );
    }
}

#[tokio::test]
async fn the_longest_idle_connection_is_evicted_for_a_new_one() {
    let server = Server::with(&[("MAX_CONNECTIONS", "3")]).await;
    let mut kept = Vec::new();
    for request in [LIVEZ, OPERATION, LIVEZ] {
        let mut one = Kept::open(server.address).await;
        assert_eq!(one.ask(request).await, Some(200));
        kept.push(one);
    }
    assert_eq!(
        kept[0].ask(OPERATION).await,
        Some(200),
        "now the second one has been idle longest"
    );
    let mut new = Kept::open(server.address).await;
    assert_eq!(new.ask(OPERATION).await, Some(200));
    kept.remove(1).closed().await;
    for one in &mut kept {
        assert_eq!(one.ask(OPERATION).await, Some(200));
    }
    assert_eq!(new.ask(OPERATION).await, Some(200));
}

#[tokio::test]
async fn idle_http_2_connections_are_evicted_too() {
    let server = Server::with(&[("MAX_CONNECTIONS", "2")]).await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut client = Frames::connect(server.address, 65_535).await;
        client.get(1, "/livez").await;
        assert_eq!(client.next(HEADERS).await, 1);
        idle.push(client);
    }
    assert_eq!(
        Kept::open(server.address).await.ask(OPERATION).await,
        Some(200)
    );
}

#[tokio::test]
async fn connections_with_unread_responses_make_room() {
    let server = Server::with(&[("MAX_CONNECTIONS", "2")]).await;
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut client = Frames::connect(server.address, 0).await;
        client.get(1, "/livez").await;
        assert_eq!(client.next(HEADERS).await, 1);
        unread.push(client);
    }
    assert_eq!(
        Kept::open(server.address).await.ask(OPERATION).await,
        Some(200)
    );
    unread.remove(0).closed().await;
}

#[tokio::test]
async fn a_connection_whose_response_is_read_is_evicted_after_one_whose_response_is_not() {
    let server = Server::with(&[("MAX_CONNECTIONS", "2")]).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Frames::connect(server.address, 0).await;
        client.get(1, "/docs/openapi.json").await;
        assert_eq!(client.next(HEADERS).await, 1);
        clients.push(client);
    }
    // The first response has several parts. The server passes the next one on when the last byte of
    // this one is read.
    let mut left = 16 * 1024;
    clients[0]
        .send(WINDOW_UPDATE, 0, 1, &16_385_u32.to_be_bytes())
        .await;
    while left > 0 {
        left -= clients[0].next_length(DATA).await.min(left);
    }
    assert_eq!(
        clients[0].next_length(DATA).await,
        1,
        "the first byte of the second part"
    );
    assert_eq!(
        Kept::open(server.address).await.ask(OPERATION).await,
        Some(200)
    );
    clients.remove(1).closed().await;
    clients[0].send(PING, 0, 0, &[0; 8]).await;
    clients[0].next(PING).await;
}

#[tokio::test]
async fn connections_whose_request_does_not_arrive_make_room() {
    let server = Server::with(&[("MAX_CONNECTIONS", "2")]).await;
    let first = half_sent(Ipv4Addr::LOCALHOST, &server).await;
    let _second = half_sent(Ipv4Addr::LOCALHOST, &server).await;
    assert_eq!(
        Kept::open(server.address).await.ask(OPERATION).await,
        Some(200)
    );
    first.closed().await;
}

#[tokio::test]
async fn an_address_leaves_no_more_than_its_share_of_http_2_responses_unread() {
    const STREAMS: u32 = 32;
    const PER_ADDRESS: u32 = 1_024;
    let server = Server::start().await;
    let open = async |source: u8| {
        let stream = connect_from(Ipv4Addr::new(127, 0, 0, source), server.address).await;
        let mut client = Frames::over(stream, 0).await;
        for number in 0..STREAMS {
            client.get(2 * number + 1, "/livez").await;
        }
        for _ in 0..STREAMS {
            client.next(HEADERS).await;
        }
        client
    };
    let mut elsewhere = open(2).await;
    let mut unread = Vec::new();
    for _ in 0..=PER_ADDRESS / STREAMS {
        unread.push(open(1).await);
    }
    unread.remove(0).closed().await;
    for client in unread.iter_mut().chain([&mut elsewhere]) {
        client.send(PING, 0, 0, &[0; 8]).await;
        client.next(PING).await;
    }
    let mut client = Frames::connect(server.address, 0).await;
    let settings = client.next_payload(SETTINGS).await;
    let streams = settings
        .chunks(6)
        .find(|setting| setting[..2] == [0, 3])
        .expect("a limit on streams");
    assert_eq!(streams[2..], STREAMS.to_be_bytes());
}

/// A request whose body does not arrive. Returns when the server waits for the body.
async fn half_sent(source: Ipv4Addr, server: &Server) -> Kept {
    let mut one = Kept::from(source, server.address).await;
    let head = "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 26\r\n\
        expect: 100-continue\r\n\r\n";
    one.0.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = [0; 25];
    timeout(PATIENCE, one.0.read_exact(&mut answer))
        .await
        .expect("in time")
        .expect("an answer");
    assert_eq!(
        String::from_utf8_lossy(&answer),
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    one
}

#[tokio::test]
async fn an_address_has_no_more_than_its_share_of_the_requests() {
    const PER_ADDRESS: usize = 100;
    let server = Server::with(&[("MAX_REQUESTS_IN_FLIGHT", "200")]).await;
    let mut elsewhere = half_sent(Ipv4Addr::new(127, 0, 0, 2), &server).await;
    let mut half_sent_ones = Vec::new();
    for _ in 0..=PER_ADDRESS {
        half_sent_ones.push(half_sent(Ipv4Addr::LOCALHOST, &server).await);
    }
    assert_eq!(
        half_sent_ones.remove(0).ask("").await,
        Some(400),
        "the address made room of its own requests"
    );
    let body = r#"{"query":"{ __typename }"}"#;
    assert_eq!(elsewhere.ask(body).await, Some(200));
    assert_eq!(half_sent_ones.remove(0).ask(body).await, Some(200));
}

#[tokio::test]
async fn a_flood_of_http_2_control_frames_is_read_slowly() {
    const SECONDS: u64 = 3;
    let server = Server::without_jobs().await;
    let ping = [&[0, 0, 8, PING, 0, 0, 0, 0, 0][..], &[0; 8]].concat();
    let settings = vec![0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    let unknown = vec![0, 0, 0, 77, 0, 0, 0, 0, 0];
    for (title, frame) in [
        ("PING", ping),
        ("SETTINGS", settings),
        ("an unknown type", unknown),
    ] {
        let socket = TcpSocket::new_v4().expect("a socket");
        // A small buffer, so that data the server does not read blocks the client soon.
        socket.set_send_buffer_size(4_096).expect("a size");
        let stream = socket.connect(server.address).await.expect("a connection");
        let (mut read, mut write) = stream.into_split();
        write
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .expect("sent");
        let flood = frame.repeat(1_000);
        let mut sent = 0;
        let flooding = async {
            loop {
                sent += write
                    .write(&flood[sent % flood.len()..])
                    .await
                    .expect("sent");
            }
        };
        let mut answers = vec![0; 64 * 1024];
        let reading =
            async { while read.read(&mut answers).await.expect("an open connection") > 0 {} };
        tokio::select! {
            () = flooding => {}
            () = reading => panic!("{title}: the server closed"),
            // The rate is what the test is about.
            () = tokio::time::sleep(Duration::from_secs(SECONDS)) => {}
        }
        let frames = sent / frame.len();
        println!("{title}: {frames} frames accepted in {SECONDS} seconds");
        // A burst, the rate, and what fits into the buffers of both sides.
        assert!(
            sent < (20_000 + 10_000 * SECONDS as usize) * frame.len() + 1_000_000,
            "{title}: {frames} frames"
        );
    }
}

#[tokio::test]
async fn many_idle_connections_do_not_block_new_ones() {
    // Both ends of each connection count toward this process's limit of open files.
    let server = Server::with(&[("MAX_CONNECTIONS", "300")]).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        let mut one = Kept::open(server.address).await;
        assert_eq!(one.ask(LIVEZ).await, Some(200));
        idle.push(one);
    }
    for _ in 0..50 {
        let mut one = Kept::open(server.address).await;
        assert_eq!(one.ask(OPERATION).await, Some(200));
        idle.push(one);
    }
}

#[tokio::test]
async fn connections_are_limited_per_address() {
    let settings = [
        ("MAX_CONNECTIONS", "100"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "2"),
        ("WS_INIT_SECONDS", "60"),
    ];
    let server = Server::with(&settings).await;
    let alice = server.person("alice").await;
    let _sockets = [alice.socket().await, alice.socket().await];
    assert_eq!(
        Kept::open(server.address).await.ask(OPERATION).await,
        Some(503)
    );
    let mut elsewhere = Kept::from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
    assert_eq!(elsewhere.ask(OPERATION).await, Some(200));

    let settings = [settings[0], settings[1], ("TRUSTED_PROXIES", "127.0.0.1")];
    let behind_a_proxy = Server::with(&settings).await;
    let mut kept = Vec::new();
    for _ in 0..5 {
        let mut one = Kept::open(behind_a_proxy.address).await;
        assert_eq!(one.ask(OPERATION).await, Some(200));
        kept.push(one);
    }
    for one in &mut kept {
        assert_eq!(
            one.ask(OPERATION).await,
            Some(200),
            "proxies are exempt from the limit per address"
        );
    }
}

#[tokio::test]
async fn an_address_at_its_limit_evicts_its_own_idle_connections() {
    let server = Server::with(&[
        ("MAX_CONNECTIONS", "100"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "2"),
    ])
    .await;
    let mut elsewhere = Kept::from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
    assert_eq!(
        elsewhere.ask(OPERATION).await,
        Some(200),
        "from now on the longest idle connection"
    );
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut one = Kept::open(server.address).await;
        assert_eq!(one.ask(OPERATION).await, Some(200));
        kept.push(one);
    }
    kept.remove(0).closed().await;
    assert_eq!(elsewhere.ask(OPERATION).await, Some(200));
}

#[tokio::test]
async fn probes_are_answered_when_all_slots_are_taken() {
    let server = Server::with(&[("MAX_CONNECTIONS", "2"), ("HEADER_TIMEOUT_SECONDS", "60")]).await;
    let alice = server.person("alice").await;
    let _sockets = [alice.socket().await, alice.socket().await];
    let answered = async || {
        for (request, status) in [(LIVEZ, 200), (READYZ, 200), (OPERATION, 503)] {
            let mut one = Kept::open(server.address).await;
            assert_eq!(one.ask(request).await, Some(status), "{request}");
            one.closed().await;
        }
        let mut client = Frames::connect(server.address, 65_535).await;
        client.get(1, "/readyz").await;
        assert_eq!(client.next(HEADERS).await, 1);
    };
    answered().await;
    // Reserved slots are not held by clients that connect and send nothing.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(Kept::open(server.address).await);
    }
    answered().await;
}

/// The fastest of 20 readiness probes, with the status and body of the last.
async fn probe(server: &Server) -> (Duration, u16, Value) {
    let mut shortest = Duration::MAX;
    let mut last = (0, Value::Null);
    for _ in 0..20 {
        let began = Instant::now();
        let answer = server
            .request(Method::GET, "/readyz")
            .send()
            .await
            .expect("an answer");
        let status = answer.status().as_u16();
        last = (status, answer.json().await.expect("JSON"));
        shortest = shortest.min(began.elapsed());
    }
    (shortest, last.0, last.1)
}

/// A TCP proxy for PostgreSQL that can be stalled.
struct Relay {
    url: Url,
    stalled: watch::Sender<bool>,
}

impl Relay {
    async fn before(server: &mut Url) -> Self {
        let behind = (
            server.host_str().expect("a host").to_owned(),
            server.port().unwrap_or(5432),
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        server
            .set_port(Some(listener.local_addr().expect("an address").port()))
            .expect("a port");
        let (stalled, watched) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(behind.clone()).await else {
                    continue;
                };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(carry(from_client, to_server, watched.clone()));
                tokio::spawn(carry(from_server, to_client, watched.clone()));
            }
        });
        Self {
            url: server.clone(),
            stalled,
        }
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut stalled: watch::Receiver<bool>,
) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        if stalled.wait_for(|is_stalled| !is_stalled).await.is_err()
            || to.write_all(&bytes[..length]).await.is_err()
        {
            return;
        }
    }
}

const PROMPT: Duration = Duration::from_millis(10);

#[tokio::test]
async fn readiness_check_has_its_own_connection() {
    let server = Server::start().await;
    probe(&server).await;
    // Take all other connections: those for requests, and those for the event log and background
    // jobs.
    let held = server.run(async |app| {
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(app.db.background_pool().conn().await.expect("a connection"));
        }
        for _ in 0..app.config.database_connections {
            held.push(app.db.conn().await.expect("a connection"));
        }
        held
    });
    let held = held.await;
    let statements = server.app.db.statements();
    let (took, status, told) = probe(&server).await;
    assert_eq!((status, &told["ready"]), (200, &json!(true)), "{told}");
    assert!(took < PROMPT, "{took:?}");
    assert_eq!(
        server.app.db.statements(),
        statements,
        "a probe executes no statement"
    );
    server.run(async move |_| drop(held)).await;
}

#[tokio::test]
async fn a_silent_redis_delays_no_probe() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let url = format!("redis://{}", silent.local_addr().expect("an address"));
    let server = Server::with(&[("REDIS_URL", &url)]).await;
    let (took, status, told) = probe(&server).await;
    assert_eq!((status, &told["redis"]), (200, &json!("away")), "{told}");
    assert!(took < PROMPT, "{took:?}");
}

#[tokio::test]
async fn a_silent_database_delays_no_probe_and_is_reported() {
    if !is_postgres() {
        // SQLite runs in this process and cannot be unreachable.
        return;
    }
    let database = Database::fresh().await;
    let relay = Relay::before(&mut database.url().parse().expect("a URL")).await;
    let server = Server::on(database, &[("DATABASE_URL", relay.url.as_str())]).await;
    let (_, status, told) = probe(&server).await;
    assert_eq!(status, 200, "{told}");
    relay.stalled.send_replace(true);
    let told_of = async {
        loop {
            let (took, status, told) = probe(&server).await;
            assert!(took < PROMPT, "{took:?}");
            if status == 503 {
                return told;
            }
        }
    };
    let told = timeout(PATIENCE, told_of)
        .await
        .expect("a report of the outage");
    assert_eq!(
        (&told["ready"], &told["database"]),
        (&json!(false), &json!("away")),
        "{told}"
    );
    relay.stalled.send_replace(false);
    // Awaited, because the proxy runs on this test's thread.
    server.stop().await.remove().await;
}

#[tokio::test]
async fn a_silent_socket_is_evicted() {
    let server = Server::with(&[("MAX_CONNECTIONS", "2"), ("WS_INIT_SECONDS", "60")]).await;
    let mut silent = vec![
        Socket::open(server.address).await,
        Socket::open(server.address).await,
    ];
    let mut new = Kept::open(server.address).await;
    assert_eq!(new.ask(OPERATION).await, Some(200));
    let first = timeout(PATIENCE, silent.remove(0).receive())
        .await
        .expect("an end");
    assert!(matches!(first, Frame::Closed(_)), "{first:?}");
}
