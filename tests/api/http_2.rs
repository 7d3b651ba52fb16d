//! HTTP/2, where one connection carries many requests: clients that do not read, and graceful
//! shutdown with GOAWAY.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{PATIENCE, Server};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;

/// A client that sends raw frames (RFC 9113), to do what no library allows.
pub(crate) struct Frames(TcpStream);

impl Frames {
    /// Connects with the given initial flow control window.
    pub(crate) async fn connect(address: SocketAddr, window: u32) -> Self {
        Self::over(
            TcpStream::connect(address).await.expect("a connection"),
            window,
        )
        .await
    }

    /// Starts HTTP/2 on an open connection, with the given initial flow control window.
    pub(crate) async fn over(mut stream: TcpStream, window: u32) -> Self {
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .expect("sent");
        let mut client = Self(stream);
        client
            .send(
                SETTINGS,
                0,
                0,
                &[&[0, 4], &window.to_be_bytes()[..]].concat(),
            )
            .await;
        client
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.try_send(kind, flags, stream, payload)
            .await
            .expect("sent");
    }

    /// Sends a frame; fails if the server has closed the connection.
    pub(crate) async fn try_send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let length = u32::try_from(payload.len())
            .expect("a short frame")
            .to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.0.write_all(&frame).await
    }

    pub(crate) async fn get(&mut self, stream: u32, path: &str) {
        self.get_as(stream, path, &[]).await;
    }

    pub(crate) async fn get_as(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) {
        self.begin(stream, "GET", path, more, 5).await;
    }

    /// Sends the head of a request; DATA frames follow.
    pub(crate) async fn post(&mut self, stream: u32, path: &str) {
        self.begin(
            stream,
            "POST",
            path,
            &[("content-type", "application/json")],
            4,
        )
        .await;
    }

    async fn begin(
        &mut self,
        stream: u32,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        flags: u8,
    ) {
        let mut head = Vec::new();
        for (name, value) in [
            &[
                (":method", method),
                (":scheme", "http"),
                (":authority", "x"),
                (":path", path),
            ],
            more,
        ]
        .concat()
        {
            // A literal header field without Huffman coding (RFC 7541, sections 6.2.2 and 5.1).
            head.push(0);
            for text in [name, value] {
                match text.len().checked_sub(127) {
                    None => head.push(text.len() as u8),
                    Some(rest) if rest < 128 => head.extend([127, rest as u8]),
                    Some(rest) => head.extend([
                        127,
                        (rest % 128) as u8 | 128,
                        u8::try_from(rest / 128).expect("short"),
                    ]),
                }
                head.extend(text.as_bytes());
            }
        }
        self.send(HEADERS, flags, stream, &head).await;
    }

    /// Waits until the answer on this stream or the connection ends.
    pub(crate) async fn ended(&mut self, stream: u32) {
        let ended = async {
            let mut head = [0; 9];
            while self.0.read_exact(&mut head).await.is_ok() {
                let [a, b, c, came, _, of @ ..] = head;
                let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                if (came, u32::from_be_bytes(of)) == (HEADERS, stream)
                    || self.0.read_exact(&mut payload).await.is_err()
                {
                    return;
                }
            }
        };
        timeout(PATIENCE, ended)
            .await
            .expect("the stream ends before the timeout");
    }

    /// Waits for the next frame of this type and returns its stream.
    pub(crate) async fn next(&mut self, kind: u8) -> u32 {
        self.next_frame(kind).await.0
    }

    /// Waits for the next frame of this type and returns its payload.
    pub(crate) async fn next_payload(&mut self, kind: u8) -> Vec<u8> {
        self.next_frame(kind).await.1
    }

    /// Waits until the server closes the connection.
    pub(crate) async fn closed(mut self) {
        let mut rest = Vec::new();
        drop(
            timeout(PATIENCE, self.0.read_to_end(&mut rest))
                .await
                .expect("the connection closes before the timeout"),
        );
    }

    /// Waits for the next frame of this type and returns its length.
    pub(crate) async fn next_length(&mut self, kind: u8) -> usize {
        self.next_frame(kind).await.1.len()
    }

    /// Stream of the next HEADERS frame, and whether its status is 200 (RFC 7541, appendix A).
    pub(crate) async fn next_head(&mut self) -> (u32, bool) {
        let (stream, head) = self.next_frame(HEADERS).await;
        // A dynamic table size update may come first.
        (
            stream,
            head.iter().find(|byte| **byte & 0xe0 != 0x20) == Some(&0x88),
        )
    }

    async fn next_frame(&mut self, kind: u8) -> (u32, Vec<u8>) {
        let next = async {
            loop {
                let mut head = [0; 9];
                self.0
                    .read_exact(&mut head)
                    .await
                    .expect("an open connection");
                let [a, b, c, came, _, stream @ ..] = head;
                let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                self.0
                    .read_exact(&mut payload)
                    .await
                    .expect("a whole frame");
                if came == kind {
                    return (u32::from_be_bytes(stream), payload);
                }
            }
        };
        timeout(PATIENCE, next)
            .await
            .expect("a frame before the timeout")
    }
}

#[tokio::test]
async fn unread_response_is_reset_and_the_connection_survives() {
    let server = Server::with(&[("KEEP_ALIVE_SECONDS", "2")]).await;
    for window in [0, 1, 20_000] {
        let mut client = Frames::connect(server.address, window).await;
        client.get(1, "/docs/openapi.json").await;
        assert_eq!(client.next(HEADERS).await, 1);
        assert_eq!(client.next(RESET).await, 1, "{window}");
        client.send(PING, 0, 0, &[0; 8]).await;
        client.next(PING).await;
        client.get(3, "/livez").await;
        assert_eq!(client.next(HEADERS).await, 3, "{window}");
    }
}

#[tokio::test]
async fn unread_event_stream_is_reset_and_the_connection_survives() {
    let server = Server::with(&[("WS_WRITE_SECONDS", "1")]).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let path = format!(
        "/graphql?query=subscription%7Bevents(after:%22{}%22)%7Bid%7D%7D",
        alice.now().await
    );
    let authorization = format!("Bearer {}", alice.token());
    let mut client = Frames::connect(server.address, 0).await;
    client
        .get_as(
            1,
            &path,
            &[
                ("accept", "text/event-stream"),
                ("authorization", &authorization),
            ],
        )
        .await;
    assert_eq!(client.next(HEADERS).await, 1);
    // More events than fit into the send buffer.
    for _ in 0..12 {
        alice.task(&project, "Fly", json!({})).await;
    }
    assert_eq!(client.next(RESET).await, 1);
    client.get(3, "/livez").await;
    assert_eq!(client.next(HEADERS).await, 3);
}

#[tokio::test]
async fn unread_response_does_not_delay_shutdown() {
    let server = Server::start().await;
    let mut client = Frames::connect(server.address, 0).await;
    for (stream, path) in [(1, "/docs/openapi.json"), (3, "/livez")] {
        client.get(stream, path).await;
        assert_eq!(client.next(HEADERS).await, stream);
    }
    // On drop, the harness checks that everything ended on its own.
    drop(server);
    drop(client);
}

#[tokio::test]
async fn a_draining_server_sends_goaway_and_finishes_open_requests() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let stream = TcpStream::connect(server.address)
        .await
        .expect("a connection");
    let builder = http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let query = format!(
        "query=subscription%7Bevents(after:%22{}%22)%7B__typename%7D%7D",
        alice.now().await
    );
    let request = Request::get(format!("http://{}/graphql?{query}", server.address))
        .header("accept", "text/event-stream")
        .header("authorization", format!("Bearer {}", alice.token()))
        .body(Empty::<Bytes>::new());
    let answer = client
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    let mut events = answer.into_body();
    let mut next = async || {
        let frame = timeout(PATIENCE, events.frame())
            .await
            .expect("in time")
            .expect("no end")
            .expect("no error");
        String::from_utf8_lossy(frame.data_ref().expect("data")).into_owned()
    };
    assert_eq!(next().await, ":\n\n");
    server.app.draining.cancel();
    let refused = async {
        let request = || {
            Request::get("http://x/livez")
                .body(Empty::new())
                .expect("a request")
        };
        while let Ok(answer) = client.send_request(request()).await {
            assert_eq!(answer.status(), 200, "requests before GOAWAY are answered");
        }
    };
    timeout(PATIENCE, refused).await.expect("GOAWAY");
    alice.task(&project, "Fly", json!({})).await;
    let event = next().await;
    assert!(event.contains("TaskCreatedEvent"), "{event}");
    drop(events);
    timeout(PATIENCE, connection)
        .await
        .expect("the connection closes before the timeout")
        .expect("no panic")
        .expect("a clean close");
}
