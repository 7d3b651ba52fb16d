//! Memory used by request bodies, however a client splits them into frames or packets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;

use axum::body::{Body, Bytes};
use axum::http::Request;
use fasttrack::{graphql, http};
use futures_util::future::{join_all, select_all};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use crate::harness::{PATIENCE, Program, Server};
use crate::http_2::{DATA, Frames};

/// Upper bound for the growth of the server's memory, in KiB.
const TOO_MUCH: usize = 8 * 1024;

/// A body of one-byte frames that counts how many are alive.
struct OneByOne {
    left: usize,
    kept: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// A frame's buffer. A real frame keeps the whole read buffer alive, not just its one byte.
struct Piece(Arc<AtomicUsize>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        b" "
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl http_body::Body for OneByOne {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.most
            .fetch_max(self.kept.load(Ordering::SeqCst), Ordering::SeqCst);
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        self.kept.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(Piece(Arc::clone(
            &self.kept,
        )))))))
    }
}

#[tokio::test]
async fn body_frames_are_released_as_they_are_read() {
    let server = Server::without_jobs().await;
    for (path, bytes, status) in [
        ("/graphql", 200_000, 400),
        ("/graphql", 300_000, 413),
        ("/auth/login", 8_000, 400),
        ("/auth/login", 9_000, 413),
    ] {
        let (kept, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let body = OneByOne {
            left: bytes,
            kept: Arc::clone(&kept),
            most: Arc::clone(&most),
        };
        let request = Request::post(path)
            .header("content-type", "application/json")
            .body(Body::new(body));
        let answered = server.run(async move |app| {
            let answer = http::router(&app, graphql::schema(true))
                .oneshot(request.expect("a request"))
                .await;
            let answer = answer.expect("an answer");
            let status = answer.status().as_u16();
            answer.into_body().collect().await.expect("a whole answer");
            status
        });
        assert_eq!(answered.await, status, "{path}: {bytes}");
        assert!(
            most.load(Ordering::SeqCst) <= 1,
            "{path}: {most:?} frames alive at once"
        );
        assert_eq!(kept.load(Ordering::SeqCst), 0, "{path}");
    }
}

/// Sends `count` pieces, each as a packet of its own. Stops early if the server closes the
/// connection.
fn send_one_by_one(stream: &mut TcpStream, piece: &[u8], count: usize) {
    stream.set_nodelay(true).expect("TCP_NODELAY is set");
    for _ in 0..count {
        match stream.write_all(piece) {
            Ok(()) => thread::yield_now(),
            Err(error) => {
                assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ),
                    "{error}"
                );
                return;
            }
        }
    }
}

/// Sends a body in one-byte chunks and returns the status line.
fn chunked(address: SocketAddr, path: &str, count: usize) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    send_one_by_one(&mut stream, b"1\r\n \r\n", count);
    stream.write_all(b"0\r\n\r\n").expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Growth of peak memory, in KiB, while `at_once` bodies of `pieces` pieces each are sent
/// concurrently.
async fn growth<F: Future<Output = ()>>(
    program: &Program,
    at_once: usize,
    pieces: usize,
    send: impl Fn(usize) -> F,
) -> Option<usize> {
    // Exclude one-time setup by the first request.
    send(10).await;
    let before = program.peak_memory()?;
    join_all((0..at_once).map(|_| send(pieces))).await;
    // The kernel updates its counters in batches.
    Some(program.peak_memory()?.saturating_sub(before))
}

#[tokio::test]
async fn a_body_in_one_byte_chunks_uses_memory_for_its_bytes_only() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (program, address) = Program::server(directory.path(), &[("RATE_LIMIT_ENABLED", "false")]);
    for (path, count) in [("/graphql", 60_000), ("/auth/login", 8_000)] {
        for at_once in [1, 4] {
            let grown = growth(&program, at_once, count, async |count| {
                let status =
                    tokio::task::spawn_blocking(move || chunked(address, path, count)).await;
                assert_eq!(status.expect("no panic"), "HTTP/1.1 400");
            });
            let grown = grown.await.unwrap_or_default();
            println!("{path}, {at_once} at once: {grown} KiB");
            assert!(grown <= TOO_MUCH, "{path}: {grown} KiB for {at_once}");
        }
    }
}

#[tokio::test]
async fn a_body_in_one_byte_http_2_frames_uses_memory_for_its_bytes_only() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (program, address) = Program::server(directory.path(), &[("RATE_LIMIT_ENABLED", "false")]);
    for (path, count) in [("/graphql", 60_000), ("/auth/login", 8_000)] {
        for at_once in [1, 4] {
            let grown = growth(&program, at_once, count, async |count| {
                let mut client = Frames::connect(address, 65_535).await;
                client.post(1, path).await;
                for _ in 0..count {
                    // The server closes a connection with too many unread frames.
                    if client.try_send(DATA, 0, 1, b" ").await.is_err() {
                        return;
                    }
                }
                drop(client.try_send(DATA, 1, 1, b"").await);
                client.ended(1).await;
            });
            let grown = grown.await.unwrap_or_default();
            println!("{path}, {at_once} at once: {grown} KiB");
            assert!(grown <= TOO_MUCH, "{path}: {grown} KiB for {at_once}");
        }
    }
}

#[tokio::test]
async fn a_message_in_one_byte_continuation_frames_uses_memory_for_its_bytes_only() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (program, address) = Program::server(directory.path(), &[("WS_INIT_SECONDS", "60")]);
    let send = move |count: usize| {
        let mut stream = TcpStream::connect(address).expect("a connection");
        let head = "GET /graphql HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
            sec-websocket-protocol: graphql-transport-ws\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("sent");
        // The start of a text message, then continuations: each with an all-zero mask and one
        // space.
        send_one_by_one(&mut stream, &[0x01, 0x81, 0, 0, 0, 0, b' '], 1);
        send_one_by_one(&mut stream, &[0x00, 0x81, 0, 0, 0, 0, b' '], count);
        // Empty frames count too.
        send_one_by_one(&mut stream, &[0x00, 0x80, 0, 0, 0, 0], count);
        send_one_by_one(&mut stream, &[0x80, 0x80, 0, 0, 0, 0], 1);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the socket closes");
        assert!(
            answer.starts_with(b"HTTP/1.1 101")
                && answer.windows(2).any(|code| code == 4400_u16.to_be_bytes())
        );
    };
    for at_once in [1, 4] {
        let grown = growth(&program, at_once, 60_000, async |count| {
            tokio::task::spawn_blocking(move || send(count))
                .await
                .expect("no panic");
        });
        let grown = grown.await.unwrap_or_default();
        println!("{at_once} at once: {grown} KiB");
        assert!(grown <= TOO_MUCH, "{grown} KiB for {at_once}");
    }
}

#[tokio::test]
async fn half_sent_bodies_are_limited_per_address() {
    let server = Server::start().await;
    let connect = async |source: u8| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket
            .bind(([127, 0, 0, source], 0).into())
            .expect("an address of this machine");
        socket.connect(server.address).await.expect("a connection")
    };
    let begin = async |source: u8, length: usize, sent: usize| {
        let mut stream = connect(source).await;
        let head = format!(
            "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        let query = r#"{"query":"{ __typename }"}"#;
        let body = " ".repeat(sent - query.len()) + query;
        // The server may refuse the request before the whole body is sent.
        drop(stream.write_all((head + &body).as_bytes()).await);
        stream
    };
    let status = async |mut stream: tokio::net::TcpStream| {
        let mut answer = [0; 12];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.expect("an answer in time").expect("an answer");
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    // 8 MiB hold slightly more than 33 of these; part of each may still be in flight.
    let mut half_sent = Vec::new();
    for _ in 0..50 {
        half_sent.push(begin(1, 255_000, 250_000).await);
    }
    let refused = async {
        loop {
            match &*status(begin(1, 250_000, 250_000).await).await {
                // Of those that met at the limit several may have been refused, and left room.
                "200" => half_sent.push(begin(1, 255_000, 250_000).await),
                other => return other.to_owned(),
            }
        }
    };
    assert_eq!(
        tokio::time::timeout(PATIENCE, refused)
            .await
            .expect("a refusal"),
        "429"
    );
    assert_eq!(
        status(begin(1, 100, 100).await).await,
        "200",
        "a small body is still accepted"
    );
    assert_eq!(
        status(begin(2, 250_000, 250_000).await).await,
        "200",
        "other addresses are not affected"
    );
    drop(half_sent);
    let again = async { while status(begin(1, 250_000, 250_000).await).await != "200" {} };
    tokio::time::timeout(PATIENCE, again)
        .await
        .expect("room again");
}

#[tokio::test]
async fn bodies_that_do_not_arrive_make_room_for_others_in_the_budget_of_the_process() {
    /// Addresses that fill the budget of the process, and the bodies that fill that of one.
    const ADDRESSES: u8 = 8;
    const BODIES: usize = 32;
    let server = Server::start().await;
    let connect = async |source: u8| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket
            .bind(([127, 0, 1, source], 0).into())
            .expect("an address of this machine");
        socket.connect(server.address).await.expect("a connection")
    };
    let post = async |source: u8, sent: usize, length: usize| {
        let mut stream = connect(source).await;
        let head = format!(
            "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        let body = r#"{"query":"{ __typename }"}"#.to_owned() + &" ".repeat(sent - 26);
        stream
            .write_all((head + &body).as_bytes())
            .await
            .expect("sent");
        stream
    };
    let status = async |stream: &mut tokio::net::TcpStream| {
        let mut answer = [0; 12];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.expect("an answer in time").expect("an answer");
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    let mut half_sent = Vec::new();
    for source in 1..=ADDRESSES {
        for _ in 0..BODIES {
            half_sent.push(post(source, 250_000, 255_000).await);
        }
    }
    let arrived = async {
        while server.app.in_flight.body_bytes() < 64 << 20 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived)
        .await
        .expect("the budget is exhausted");
    for _ in 0..3 {
        assert_eq!(status(&mut post(100, 250_000, 250_000).await).await, "200");
    }
    let first = select_all(half_sent.iter_mut().map(|stream| Box::pin(status(stream))))
        .await
        .0;
    assert_eq!(first, "400", "a body that has waited is given up");
}

#[tokio::test]
async fn a_body_that_arrives_in_pieces_is_given_up_after_one_that_does_not_arrive() {
    let server = Server::with(&[("MAX_REQUESTS_IN_FLIGHT", "2")]).await;
    let query = r#"{"query":"{ __typename }"}"#;
    let (piece, rest) = (" ".repeat(20_000), " ".repeat(20_000) + query);
    let begin = async || {
        let mut stream = tokio::net::TcpStream::connect(server.address)
            .await
            .expect("a connection");
        let length = piece.len() + rest.len();
        let head = format!(
            "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             expect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = [0; 25];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.expect("an answer in time").expect("an answer");
        assert_eq!(
            &answer, b"HTTP/1.1 100 Continue\r\n\r\n",
            "the server waits for the body"
        );
        stream
    };
    let status = async |stream: &mut tokio::net::TcpStream| {
        let mut answer = [0; 12];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.expect("an answer in time").expect("an answer");
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    let (mut slow, mut silent) = (begin().await, begin().await);
    slow.write_all(piece.as_bytes()).await.expect("sent");
    let arrived = async {
        while server.app.in_flight.body_bytes() < piece.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived)
        .await
        .expect("the piece arrives");
    let _third = begin().await;
    assert_eq!(status(&mut silent).await, "400");
    slow.write_all(rest.as_bytes()).await.expect("sent");
    assert_eq!(status(&mut slow).await, "200");
}
