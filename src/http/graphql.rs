//! GraphQL over HTTP, and over WebSocket by the graphql-transport-ws protocol.

use std::net::SocketAddr;
use std::sync::Arc;

use async_graphql::{Data, Request, ServerError};
use async_graphql_axum::{GraphQLProtocol, GraphQLWebSocket};
use axum::Json;
use axum::extract::{ConnectInfo, FromRequest, State, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::problem::Problem;
use crate::App;
use crate::access::Viewer;
use crate::auth::{self, bearer};
use crate::error::{Code, Error, Result};
use crate::graphql::{Caller, Schema};
use crate::limits::{Door as Limited, Who};

/// What the GraphQL routes share.
#[derive(Clone)]
pub struct Door {
    /// The server.
    pub app: Arc<App>,
    /// The schema.
    pub schema: Schema,
}

/// An operation in a POST body.
pub async fn post(
    State(door): State<Door>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    request: axum::extract::Request,
) -> Response {
    let viewer = match admit(&door.app, peer, &headers).await {
        Ok(viewer) => viewer,
        Err(error) => return refused(error),
    };
    let request = match Json::<Request>::from_request(request, &()).await {
        Ok(Json(request)) => request,
        Err(rejection) => {
            let status = rejection.status();
            return (
                status,
                failure(Code::BadRequest, "Send a JSON object with `query`, `variables` and `operationName`."),
            )
                .into_response();
        }
    };
    if let Some(name) = &request.operation_name {
        tracing::Span::current().record("operation", name.chars().take(80).collect::<String>());
    }
    let mut response = door.schema.execute(request.data(Caller::new(door.app, viewer))).await;
    response.errors.truncate(MAX_ERRORS);
    response.errors.iter_mut().for_each(complete);
    Json(response).into_response()
}

const MAX_ERRORS: usize = 10;

/// Errors of the library itself come without a code: what it refuses before execution is a document at fault.
fn complete(error: &mut ServerError) {
    let coded = error.extensions.as_ref().is_some_and(|extensions| extensions.get("code").is_some());
    if !coded {
        let code = if error.path.is_empty() { Code::ValidationFailed } else { Code::BadUserInput };
        error.extensions.get_or_insert_default().set("code", code.as_str());
    }
}

/// Who asks, and whether they may ask now.
async fn admit(app: &Arc<App>, peer: SocketAddr, headers: &HeaderMap) -> Result<Option<Viewer>> {
    let viewer = match headers.get(header::AUTHORIZATION) {
        None => None,
        Some(value) => {
            let token = value.to_str().ok().and_then(bearer).ok_or_else(Error::unauthenticated)?;
            Some(auth::viewer(app, token).await?)
        }
    };
    let who = viewer.map_or_else(|| Who::address(peer.ip()), |viewer| Who::User(viewer.id));
    app.limits.admit(Limited::Graphql, who, app.clock.now())?;
    Ok(viewer)
}

fn failure(code: Code, message: &str) -> Json<Value> {
    Json(serde_json::json!({ "errors": [{ "message": message, "extensions": { "code": code.as_str() } }] }))
}

/// The whole request is refused: GraphQL's form of an error, with the status and headers of HTTP's.
fn refused(error: Error) -> Response {
    let (code, message, retry_after) = error.told();
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, failure(code, &message)).into_response();
    if code == Code::Unauthenticated {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(wait) = retry_after {
        let seconds = wait.as_millis().div_ceil(1000).max(1).to_string();
        response.headers_mut().insert(header::RETRY_AFTER, seconds.parse().unwrap_or(HeaderValue::from_static("1")));
    }
    response
}

/// A socket for subscriptions. The token comes in the payload of `connection_init`, as `Authorization`.
pub async fn socket(
    State(door): State<Door>,
    headers: HeaderMap,
    protocol: std::result::Result<GraphQLProtocol, StatusCode>,
    upgrade: std::result::Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let (Ok(protocol), Ok(upgrade)) = (protocol, upgrade) else {
        let message = "Send operations by POST, or open a WebSocket with the subprotocol graphql-transport-ws.";
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")], failure(Code::BadRequest, message))
            .into_response();
    };
    if !same_site(&door.app, &headers) {
        return Problem::new(Code::Forbidden, "This origin may not open a socket.").into_response();
    }
    upgrade.protocols(["graphql-transport-ws"]).max_message_size(64 * 1024).on_upgrade(move |stream| {
        let app = Arc::clone(&door.app);
        GraphQLWebSocket::new(stream, door.schema.clone(), protocol)
            .on_connection_init(move |payload: Value| async move {
                let token =
                    payload.get("Authorization").or_else(|| payload.get("authorization")).and_then(Value::as_str);
                let viewer = match token {
                    Some(value) => {
                        let token = bearer(value).ok_or_else(Error::unauthenticated)?;
                        Some(auth::viewer(&app, token).await?)
                    }
                    None => None,
                };
                let mut data = Data::default();
                data.insert(Caller::new(app, viewer));
                Ok(data)
            })
            .serve()
    })
}

/// Browsers name the page that opens a socket: it must be ours or a listed one. Others name none.
fn same_site(app: &App, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let own = origin.split_once("://").map(|(_, authority)| authority);
    (own.is_some() && own == host) || app.config.cors_origins.iter().any(|listed| listed == origin)
}
