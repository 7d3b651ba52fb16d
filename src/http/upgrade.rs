//! The WebSocket opening handshake (RFC 6455 section 4.2).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use axum::body::Body;
use axum::extract::Request;
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::upgrade::OnUpgrade;

use super::graphql_transport_ws::SUBPROTOCOL;

/// The GUID that a server appends to the key of the client (RFC 6455 section 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A request to upgrade to WebSocket.
pub struct Upgrade {
    key: HeaderValue,
    /// Whether the client offers the supported subprotocol.
    pub is_offered: bool,
    /// The upgraded connection, available once the response is sent.
    pub connection: OnUpgrade,
}

impl Upgrade {
    /// Takes the handshake from a request. Returns `None` if the request is no valid upgrade.
    pub fn from_request(request: &mut Request) -> Option<Self> {
        let headers = request.headers();
        let is_upgrade = request.version() == Version::HTTP_11
            && request.method() == Method::GET
            && has_value(headers, &header::CONNECTION, "upgrade")
            && has_value(headers, &header::UPGRADE, "websocket")
            && has_value(headers, &header::SEC_WEBSOCKET_VERSION, "13");
        if !is_upgrade {
            return None;
        }
        let key = headers.get(header::SEC_WEBSOCKET_KEY)?.clone();
        let is_offered = has_value(headers, &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
        let connection = request.extensions_mut().remove()?;
        Some(Self {
            key,
            is_offered,
            connection,
        })
    }

    /// The 101 response that switches protocols.
    pub fn response(&self) -> Response<Body> {
        let accepted = digest(
            &SHA1_FOR_LEGACY_USE_ONLY,
            &[self.key.as_bytes(), KEY_SUFFIX.as_bytes()].concat(),
        );
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accepted) = HeaderValue::try_from(STANDARD.encode(accepted)) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
        }
        if self.is_offered {
            headers.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(SUBPROTOCOL),
            );
        }
        response
    }
}

/// Whether the comma-separated values of a header contain `value`.
fn has_value(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|values| values.to_str().ok());
    values
        .flat_map(|values| values.split(','))
        .any(|given| given.trim().eq_ignore_ascii_case(value))
}
