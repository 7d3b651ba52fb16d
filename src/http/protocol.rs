//! The words of graphql-transport-ws: messages of both sides, and the codes a socket is closed with.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Utf8Bytes};

/// As the subprotocol is negotiated.
pub const NAME: &str = "graphql-transport-ws";
/// Characters of an operation's id.
const MAX_ID: usize = 128;
/// Bytes of the reason in a close frame (RFC 6455 section 5.5).
const MAX_REASON: usize = 123;

/// What a client says.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// The greeting, with the access token.
    ConnectionInit(Map<String, Value>),
    /// Asks for a sign of life; may bring a fresh token.
    Ping(Map<String, Value>),
    /// A sign of life.
    Pong,
    /// Begins an operation.
    Subscribe {
        /// How both sides will call it.
        id: String,
        /// The request.
        payload: Value,
    },
    /// Wants no more of an operation.
    Complete {
        /// Which one.
        id: String,
    },
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    id: Option<String>,
    payload: Option<Value>,
}

impl Incoming {
    /// Reads a text frame; `Err` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Raw { r#type, id, payload } = serde_json::from_str(text).map_err(|_| "Invalid message")?;
        let id = || match id {
            Some(id) if !id.is_empty() && id.chars().nth(MAX_ID).is_none() => Ok(id),
            _ => Err("Invalid message: `id` must have 1 to 128 characters"),
        };
        match (&*r#type, payload) {
            ("subscribe", Some(payload @ Value::Object(_))) => Ok(Self::Subscribe { id: id()?, payload }),
            ("complete", _) => Ok(Self::Complete { id: id()? }),
            ("connection_init", payload) => Ok(Self::ConnectionInit(map(payload)?)),
            ("ping", payload) => Ok(Self::Ping(map(payload)?)),
            ("pong", payload) => map(payload).map(|_| Self::Pong),
            ("subscribe", _) => Err("Invalid message: `payload` must be an object"),
            _ => Err("Invalid message: unknown `type`"),
        }
    }
}

fn map(payload: Option<Value>) -> Result<Map<String, Value>, &'static str> {
    match payload {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err("Invalid message: `payload` must be an object"),
    }
}

/// What the server says.
#[derive(Debug, Serialize)]
pub struct Outgoing<'a, T> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<T>,
}

impl<'a, T: Serialize> Outgoing<'a, T> {
    /// A message about an operation.
    pub fn about(id: &'a str, r#type: &'static str, payload: Option<T>) -> Box<str> {
        // Of what is sent, nothing is no JSON.
        serde_json::to_string(&Self { r#type, id: Some(id), payload }).unwrap_or_default().into()
    }
}

/// What happened, told to a subscription: the JSON of the answer is written already.
pub fn next(id: &str, payload: &str) -> Box<str> {
    let id = Value::from(id);
    format!(r#"{{"type":"next","id":{id},"payload":{payload}}}"#).into()
}

/// The messages without anything in them.
pub mod plain {
    /// The greeting is answered.
    pub const ACK: &str = r#"{"type":"connection_ack"}"#;
    /// A sign of life is asked for.
    pub const PING: &str = r#"{"type":"ping"}"#;
    /// A sign of life.
    pub const PONG: &str = r#"{"type":"pong"}"#;
}

/// Why the server closes a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    /// What was sent is no message of the protocol.
    Invalid(&'static str),
    /// An operation before the greeting was answered.
    Unauthorized,
    /// No token, a wrong one, or one that is good no longer.
    Forbidden(&'static str),
    /// The client speaks another protocol.
    WrongProtocol,
    /// No greeting came, or no sign of life.
    TimedOut(&'static str),
    /// The id of an operation is taken.
    Duplicate(String),
    /// A second greeting.
    GreetedTwice,
    /// A message of more bytes than are read.
    TooLarge,
    /// A frame that breaks RFC 6455.
    ProtocolError,
    /// A text that is not UTF-8.
    NotUtf8,
    /// The server is going down; another one takes over, or this one comes back.
    Restarting,
    /// This user has as many sockets as may be.
    TooMany,
    /// The server cannot do what it should.
    Unavailable,
}

impl Close {
    /// Why a socket is closed on which reading failed; nothing if the connection is gone.
    pub const fn after(error: &Error) -> Option<Self> {
        match error {
            Error::Capacity(_) => Some(Self::TooLarge),
            Error::Protocol(_) => Some(Self::ProtocolError),
            Error::Utf8(_) => Some(Self::NotUtf8),
            _ => None,
        }
    }
}

impl From<Close> for CloseFrame {
    fn from(close: Close) -> Self {
        let (code, reason): (u16, Cow<'static, str>) = match close {
            Close::Invalid(what) => (4400, what.into()),
            Close::Unauthorized => (4401, "Unauthorized".into()),
            Close::Forbidden(why) => (4403, why.into()),
            Close::WrongProtocol => (4406, "Subprotocol not acceptable".into()),
            Close::TimedOut(what) => (4408, what.into()),
            Close::Duplicate(id) => (4409, format!("Subscriber for {id} already exists").into()),
            Close::GreetedTwice => (4429, "Too many initialisation requests".into()),
            Close::TooLarge => (1009, "A message may have at most 64 KiB".into()),
            Close::ProtocolError => (1002, "Protocol error".into()),
            Close::NotUtf8 => (1007, "Invalid UTF-8".into()),
            Close::Restarting => (1012, "Service restart".into()),
            Close::TooMany => (1013, "Too many sockets".into()),
            Close::Unavailable => (1013, "Try again later".into()),
        };
        let end = reason.floor_char_boundary(MAX_REASON);
        Self { code: code.into(), reason: Utf8Bytes::from(&reason[..end]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_strictly() {
        for wrong in [
            "",
            "[]",
            "nonsense",
            r#"{"id":"1"}"#,
            r#"{"type":"next","id":"1"}"#,
            r#"{"type":"subscribe","payload":{}}"#,
            r#"{"type":"subscribe","id":"","payload":{}}"#,
            r#"{"type":"subscribe","id":"1"}"#,
            r#"{"type":"subscribe","id":1,"payload":{}}"#,
            r#"{"type":"complete"}"#,
            r#"{"type":"connection_init","payload":[]}"#,
            r#"{"type":"ping","payload":"x"}"#,
        ] {
            assert!(Incoming::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Incoming::parse(r#"{"type":"pong","payload":null}"#), Ok(Incoming::Pong));
        assert_eq!(Incoming::parse(r#"{"type":"complete","id":"1"}"#), Ok(Incoming::Complete { id: "1".into() }));
        assert!(Incoming::parse(&format!(r#"{{"type":"complete","id":"{}"}}"#, "x".repeat(129))).is_err());
    }

    #[test]
    fn reasons_fit_into_a_close_frame() {
        let frame = CloseFrame::from(Close::Duplicate("ü".repeat(128)));
        assert_eq!(u16::from(frame.code), 4409);
        assert!(frame.reason.len() <= MAX_REASON);
    }
}
