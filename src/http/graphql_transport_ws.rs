//! Messages and close codes of the graphql-transport-ws protocol. [`super::websocket`] serves the
//! connections.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Utf8Bytes};

/// Name of the WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "graphql-transport-ws";
/// Maximum length of an operation id, in characters.
const MAX_ID: usize = 128;
/// Maximum size of the reason in a close frame, in bytes (RFC 6455 section 5.5).
const MAX_REASON: usize = 123;

/// A message from a client.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// Authenticates the socket, with the `Authorization` of the payload.
    ConnectionInit(Option<String>),
    /// Requests a pong. The payload may carry a fresh access token as `Authorization`.
    Ping(Option<String>),
    /// Answers a ping, or keeps the connection alive.
    Pong,
    /// Starts an operation.
    Subscribe {
        /// Id of the operation, chosen by the client.
        id: String,
        /// The GraphQL request as JSON text. It is parsed when the operation has a permit, because
        /// the parsed form can take 17 times the memory, and many operations may wait.
        request: Box<str>,
    },
    /// Stops an operation.
    Complete {
        /// Id of the operation.
        id: String,
    },
}

#[derive(Deserialize)]
struct RawMessage<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    id: Option<String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// The members of a GraphQL request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestMembers<'a> {
    #[serde(borrow)]
    query: Option<&'a RawValue>,
    #[serde(borrow)]
    operation_name: Option<&'a RawValue>,
    #[serde(borrow)]
    variables: Option<&'a RawValue>,
    #[serde(borrow)]
    extensions: Option<&'a RawValue>,
}

impl ClientMessage {
    /// Parses a text frame. The error is the reason of the close frame.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let RawMessage {
            r#type,
            id,
            payload,
        } = serde_json::from_str(text).map_err(|_| "Invalid message")?;
        let payload = payload.map(RawValue::get);
        let id = || match id {
            Some(id) if !id.is_empty() && id.chars().nth(MAX_ID).is_none() => Ok(id),
            _ => Err("Invalid message: `id` must have 1 to 128 characters"),
        };
        match &*r#type {
            "complete" => return Ok(Self::Complete { id: id()? }),
            "subscribe" | "connection_init" | "ping" | "pong" => {}
            _ => return Err("Invalid message: unknown `type`"),
        }
        if payload.is_some_and(|payload| !payload.starts_with('{')) {
            return Err("Invalid message: `payload` must be an object");
        }
        match (&*r#type, payload) {
            ("subscribe", Some(request)) if is_request(request) => Ok(Self::Subscribe {
                id: id()?,
                request: request.into(),
            }),
            ("subscribe", Some(_)) => Err("Invalid message: not a GraphQL request"),
            ("subscribe", None) => Err("Invalid message: `payload` must be an object"),
            ("connection_init", payload) => Ok(Self::ConnectionInit(authorization(payload)?)),
            ("ping", payload) => Ok(Self::Ping(authorization(payload)?)),
            _ => Ok(Self::Pong),
        }
    }
}

/// Whether the members of a GraphQL request have the right types.
fn is_request(request: &str) -> bool {
    let is = |member: Option<&RawValue>, first: char| {
        member.is_none_or(|member| member.get().starts_with(first))
    };
    serde_json::from_str(request).is_ok_and(|members: RequestMembers<'_>| {
        is(members.query, '"')
            && is(members.operation_name, '"')
            && is(members.variables, '{')
            && is(members.extensions, '{')
    })
}

/// The `Authorization` in a payload, spelled as in HTTP/1 or as in HTTP/2.
fn authorization(payload: Option<&str>) -> Result<Option<String>, &'static str> {
    let Some(payload) = payload else {
        return Ok(None);
    };
    let mut members: Map<String, Value> =
        serde_json::from_str(payload).map_err(|_| "Invalid message")?;
    Ok(
        match members
            .remove("Authorization")
            .or_else(|| members.remove("authorization"))
        {
            Some(Value::String(authorization)) => Some(authorization),
            _ => None,
        },
    )
}

/// A message from the server.
#[derive(Debug, Serialize)]
pub struct ServerMessage<'a, T> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<T>,
}

impl<'a, T: Serialize> ServerMessage<'a, T> {
    /// A message about an operation.
    pub fn with_id(id: &'a str, r#type: &'static str, payload: Option<T>) -> Box<str> {
        // Serializing these types cannot fail.
        serde_json::to_string(&Self {
            r#type,
            id: Some(id),
            payload,
        })
        .unwrap_or_default()
        .into()
    }
}

/// A `next` message. `payload` is already serialized JSON.
pub fn next(id: &str, payload: &str) -> Box<str> {
    let id = Value::from(id);
    format!(r#"{{"type":"next","id":{id},"payload":{payload}}}"#).into()
}

/// Messages without id and payload.
pub mod plain {
    pub const ACK: &str = r#"{"type":"connection_ack"}"#;
    pub const PING: &str = r#"{"type":"ping"}"#;
    pub const PONG: &str = r#"{"type":"pong"}"#;
}

/// Why the server closes a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The message does not follow the protocol.
    Invalid(&'static str),
    /// An operation was started before `connection_init` was acknowledged.
    Unauthorized,
    /// The access token is missing, invalid or expired, or its session has ended.
    Forbidden(&'static str),
    /// The client does not offer the subprotocol.
    WrongProtocol,
    /// No `connection_init` or no pong arrived in time.
    TimedOut(&'static str),
    /// The id of an operation is in use.
    Duplicate(String),
    /// A second `connection_init`.
    TooManyInitRequests,
    /// A message exceeds the size limit.
    TooLarge,
    /// A frame violates RFC 6455.
    ProtocolError,
    /// A text frame is not UTF-8.
    NotUtf8,
    /// The server shuts down. The client should reconnect.
    Restarting,
    /// The user has too many open sockets.
    TooManySockets,
    /// The server is overloaded, or a service that it depends on fails.
    Unavailable,
}

impl CloseReason {
    /// The close code for a read error, or `None` if the connection is gone.
    pub const fn from_read_error(error: &Error) -> Option<Self> {
        match error {
            Error::Capacity(_) => Some(Self::TooLarge),
            Error::Protocol(_) => Some(Self::ProtocolError),
            Error::Utf8(_) => Some(Self::NotUtf8),
            _ => None,
        }
    }
}

impl From<CloseReason> for CloseFrame {
    fn from(close: CloseReason) -> Self {
        let (code, reason): (u16, Cow<'static, str>) = match close {
            CloseReason::Invalid(what) => (4400, what.into()),
            CloseReason::Unauthorized => (4401, "Unauthorized".into()),
            CloseReason::Forbidden(why) => (4403, why.into()),
            CloseReason::WrongProtocol => (4406, "Subprotocol not acceptable".into()),
            CloseReason::TimedOut(what) => (4408, what.into()),
            CloseReason::Duplicate(id) => {
                (4409, format!("Subscriber for {id} already exists").into())
            }
            CloseReason::TooManyInitRequests => (4429, "Too many initialisation requests".into()),
            CloseReason::TooLarge => (1009, "Message exceeds 64 KiB".into()),
            CloseReason::ProtocolError => (1002, "Protocol error".into()),
            CloseReason::NotUtf8 => (1007, "Invalid UTF-8".into()),
            CloseReason::Restarting => (1012, "Service restart".into()),
            CloseReason::TooManySockets => (1013, "Too many sockets".into()),
            CloseReason::Unavailable => (1013, "Try again later".into()),
        };
        let end = reason.floor_char_boundary(MAX_REASON);
        Self {
            code: code.into(),
            reason: Utf8Bytes::from(&reason[..end]),
        }
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
            r#"{"type":"subscribe","id":"1","payload":{"query":7}}"#,
            r#"{"type":"subscribe","id":"1","payload":{"variables":[]}}"#,
            r#"{"type":"subscribe","id":"1","payload":{"extensions":""}}"#,
        ] {
            assert!(ClientMessage::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            ClientMessage::parse(r#"{"type":"pong","payload":null}"#),
            Ok(ClientMessage::Pong)
        );
        assert_eq!(
            ClientMessage::parse(r#"{"type":"complete","id":"1"}"#),
            Ok(ClientMessage::Complete { id: "1".into() })
        );
        let request = r#"{ "query": "{ a }", "variables": null, "other": [7] }"#;
        assert_eq!(
            ClientMessage::parse(&format!(
                r#"{{"type":"subscribe","id":"1","payload": {request} }}"#
            )),
            Ok(ClientMessage::Subscribe {
                id: "1".into(),
                request: request.into()
            })
        );
        for name in ["Authorization", "authorization"] {
            let init = format!(r#"{{"type":"connection_init","payload":{{"{name}":"Bearer x"}}}}"#);
            assert_eq!(
                ClientMessage::parse(&init),
                Ok(ClientMessage::ConnectionInit(Some("Bearer x".into())))
            );
        }
        assert!(
            ClientMessage::parse(&format!(
                r#"{{"type":"complete","id":"{}"}}"#,
                "x".repeat(129)
            ))
            .is_err()
        );
    }

    #[test]
    fn reasons_fit_into_a_close_frame() {
        let frame = CloseFrame::from(CloseReason::Duplicate("ü".repeat(128)));
        assert_eq!(u16::from(frame.code), 4409);
        assert!(frame.reason.len() <= MAX_REASON);
    }
}
