//! A minimal graphql-transport-ws client that exposes every frame.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::PATIENCE;

/// An open WebSocket.
pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// A received frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Message(Value),
    /// The connection closed, with its code.
    Closed(Option<u16>),
}

impl Socket {
    /// Opens a socket without `connection_init`.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let mut request = format!("ws://{address}/graphql")
            .into_client_request()
            .expect("a request");
        request.headers_mut().insert(
            "sec-websocket-protocol",
            "graphql-transport-ws".parse().expect("a header"),
        );
        let (stream, _) = connect_async(request).await.expect("a socket");
        Self(stream)
    }

    /// Sends `connection_init` and waits for the acknowledgment.
    pub(crate) async fn init(&mut self, token: Option<&str>) {
        let payload = token.map(|token| json!({ "Authorization": format!("Bearer {token}") }));
        self.send(
            json!({ "type": "connection_init", "payload": payload.unwrap_or_else(|| json!({})) }),
        )
        .await;
        assert_eq!(
            self.receive().await,
            Frame::Message(json!({ "type": "connection_ack" }))
        );
    }

    /// Starts an operation.
    pub(crate) async fn subscribe(&mut self, id: &str, document: &str, variables: Value) {
        let payload = json!({ "query": document, "variables": variables });
        self.send(json!({ "id": id, "type": "subscribe", "payload": payload }))
            .await;
    }

    /// Sends a protocol message.
    pub(crate) async fn send(&mut self, message: Value) {
        self.0
            .send(Message::text(message.to_string()))
            .await
            .expect("an open socket");
    }

    /// The next frame, except pings and pongs.
    pub(crate) async fn receive(&mut self) -> Frame {
        loop {
            let message = timeout(PATIENCE, self.0.next())
                .await
                .expect("a frame before the timeout");
            match message {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).expect("JSON");
                    // Either side may ping at any time.
                    if message["type"] != "ping" && message["type"] != "pong" {
                        return Frame::Message(message);
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    return Frame::Closed(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Frame::Closed(None),
            }
        }
    }
}

/// An operation on a socket of its own.
pub(crate) struct Subscription {
    socket: Socket,
    id: String,
}

impl Subscription {
    pub(crate) fn new(socket: Socket, id: &str) -> Self {
        Self {
            socket,
            id: id.to_owned(),
        }
    }

    /// The underlying socket.
    pub(crate) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// The data of the next event. To check that an event is not delivered, check which one comes
    /// instead.
    pub(crate) async fn next(&mut self) -> Value {
        let answer = self.answer().await;
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"].clone()
    }

    /// The next result, including errors.
    pub(crate) async fn answer(&mut self) -> Value {
        match self.socket.receive().await {
            Frame::Message(message) if message["type"] == "next" && message["id"] == *self.id => {
                message["payload"].clone()
            }
            other => panic!("instead of an event came {other:?}"),
        }
    }

    /// How the operation ended: the code of its last error, `complete`, or `closed`.
    pub(crate) async fn end(&mut self) -> String {
        match self.socket.receive().await {
            Frame::Closed(_) => "closed".to_owned(),
            Frame::Message(message) if message["type"] == "complete" => "complete".to_owned(),
            Frame::Message(message) => {
                let errors = if message["type"] == "error" {
                    &message["payload"]
                } else {
                    &message["payload"]["errors"]
                };
                let code = errors[0]["extensions"]["code"].as_str();
                code.unwrap_or_else(|| panic!("instead of the end came {message}"))
                    .to_owned()
            }
        }
    }
}
