//! GraphQL over HTTP, following the draft specification (August 2026): POST with
//! `application/json`, GET for queries, responses as `application/graphql-response+json` or
//! `application/json`.
//!
//! Two choices differ from the draft and follow the `graphql-http` audits: malformed requests and
//! missing variable values get status 400, not 422.
//!
//! Batching, multipart bodies and form bodies are not supported. Every "simple request", which a
//! page of another site can make a browser send without a preflight, is rejected (CSRF protection).

use std::net::IpAddr;
use std::sync::Arc;

use async_graphql::parser::types::OperationType;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::concurrency_limit::WaitPolicy;
use super::in_flight::{BodyBudgets, BodyReservation};
use super::negotiate::{Media, accepts_stream, is_json_utf8, negotiate};
use super::operation::{DEADLINE, GraphqlRequest, GraphqlService, client_key};
use super::origin::{is_allowed, is_cross_site_simple};
use super::response::{GraphqlResponse, RequestError, response_dropped, too_large};
use super::sse::{self, StreamClient};
use super::upgrade::Upgrade;
use super::websocket::{self, SocketRequest};
use super::{BodyError, ConnectionHandle, Overloaded, RequestId, read_body, set_rate_limit};
use crate::access::Viewer;
use crate::auth::{self, bearer};
use crate::error::{Code, Error};
use crate::limits::{self, ClientKey};
use crate::network::Client;
use crate::time::whole_seconds;

/// Maximum size of a request body, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// POST: executes one operation.
pub async fn post(
    State(service): State<GraphqlService>,
    client: Client,
    Extension(id): Extension<RequestId>,
    guard: ConnectionHandle,
    request: Request,
) -> Response {
    if request.extensions().get::<Overloaded>().is_some() {
        service.app.metrics.record_refusal(Code::Unavailable);
        return into_http(
            Media::GraphqlResponse,
            GraphqlResponse::from_error(Error::unavailable().into(), &id.0),
            &id.0,
        );
    }
    serve(&service, client, &id, guard, request).await
}

/// GET: executes a query, or opens a WebSocket.
pub async fn get(
    State(service): State<GraphqlService>,
    client: Client,
    Extension(id): Extension<RequestId>,
    guard: ConnectionHandle,
    mut request: Request,
) -> Response {
    let Some(upgrade) = Upgrade::from_request(&mut request) else {
        return serve(&service, client, &id, guard, request).await;
    };
    let headers = request.headers();
    if !is_allowed(request.uri(), headers, &service.app.config) {
        let refused = RequestError::new(
            Code::Forbidden,
            "WebSockets are not allowed from this origin.",
        );
        return into_http(
            Media::GraphqlResponse,
            GraphqlResponse::from_error(refused, &id.0),
            &id.0,
        );
    }
    let authorization = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .map(ToOwned::to_owned);
    websocket::open(
        service,
        upgrade,
        SocketRequest {
            client,
            request_id: id.0,
            authorization,
            guard,
        },
    )
}

async fn serve(
    service: &GraphqlService,
    client: Client,
    id: &RequestId,
    guard: ConnectionHandle,
    request: Request,
) -> Response {
    let Some(media) = negotiate(request.headers()) else {
        let message = "Accept application/graphql-response+json, application/json or, for subscriptions, \
                       text/event-stream.";
        return into_http(
            Media::Json,
            GraphqlResponse::from_error(RequestError::new(Code::NotAcceptable, message), &id.0),
            &id.0,
        );
    };
    match run(service, client, id, media, guard, request).await {
        Ok(response) => response,
        Err(refused) => {
            service.app.metrics.record_refusal(refused.code);
            into_http(
                error_media(media),
                GraphqlResponse::from_error(refused, &id.0),
                &id.0,
            )
        }
    }
}

/// Media type of an error response. A request for an event stream that is rejected before the
/// stream opens gets a status of its own.
fn error_media(media: Media) -> Media {
    if media == Media::EventStream {
        Media::GraphqlResponse
    } else {
        media
    }
}

async fn run(
    service: &GraphqlService,
    client: Client,
    id: &RequestId,
    media: Media,
    guard: ConnectionHandle,
    request: Request,
) -> Result<Response, RequestError> {
    let (parts, body) = request.into_parts();
    let get = parts.method == Method::GET || parts.method == Method::HEAD;
    if get && is_cross_site_simple(&parts.uri, &parts.headers, &service.app.config) {
        let message = "Possible cross-site request: send the header `GraphQL-Require-Preflight: 1`, or use POST.";
        return Err(RequestError::new(Code::Forbidden, message));
    }
    if !get && !is_json_utf8(&parts.headers) {
        return Err(RequestError::new(
            Code::UnsupportedMediaType,
            "Send `Content-Type: application/json` in UTF-8.",
        ));
    }
    // The body is read before a permit is acquired, so that a slow client holds none.
    let body = if get {
        // Dropped now: an unread body would fill buffers while the operation runs.
        drop(body);
        None
    } else {
        Some(read_request_body(body, &service.app.in_flight, client.address).await)
    };
    let owner = owner(service, &parts.headers, &client);
    let mut permit = match service
        .app
        .concurrency
        .acquire(owner, WaitPolicy::Request)
        .await
    {
        Ok(permit) => permit,
        Err(error) => return Ok(shed_response(service, owner, error, media, id).await),
    };
    let viewer = viewer(service, &parts.headers).await?;
    service.count_request(viewer, client.address).await?;
    let graphql_request = match body {
        Some(body) => GraphqlRequest::from_json(parse_json(&body?.0)?)?,
        None => request_from_query(parts.uri.query().unwrap_or_default())?,
    };
    let owner = client_key(viewer, client.address);
    let operation = service.admit(graphql_request, viewer, client).await?;
    match operation.kind {
        OperationType::Mutation if get => {
            return Err(RequestError::new(
                Code::MethodNotAllowed,
                "Mutations require POST.",
            ));
        }
        OperationType::Mutation => match service
            .app
            .concurrency
            .acquire_write(permit, WaitPolicy::Request)
            .await
        {
            Ok(write) => permit = write,
            Err(error) => return Ok(shed_response(service, owner, error, media, id).await),
        },
        OperationType::Subscription if accepts_stream(&parts.headers) => {
            let listener = StreamClient {
                viewer,
                request_id: Arc::clone(&id.0),
                guard,
            };
            // Boxed: subscriptions are rare compared to operations with one response.
            let opened = sse::subscribe(service, operation, &parts.headers, listener);
            return Box::pin(permit.scope(DEADLINE, 0).run(opened)).await;
        }
        OperationType::Subscription => {
            let message = "Subscriptions require a WebSocket or `Accept: text/event-stream`.";
            return Err(RequestError::new(Code::NotAcceptable, message));
        }
        OperationType::Query => {}
    }
    let (standing, kind) = (operation.charge.quota, operation.kind);
    let answer = service.execute(operation, viewer, &id.0, permit).await;
    let is_export = answer.is_export;
    let response = match media {
        Media::EventStream => sse::single_response(&answer, &id.0),
        _ => into_http(media, answer, &id.0),
    };
    let mut response = service
        .app
        .in_flight
        .count_body(owner, is_export, response)
        .unwrap_or_else(|error| {
            // A retry would execute the mutation twice.
            let refused = if kind == OperationType::Mutation {
                response_dropped()
            } else {
                error.into()
            };
            service.app.metrics.record_refusal(refused.code);
            into_http(
                error_media(media),
                GraphqlResponse::from_error(refused, &id.0),
                &id.0,
            )
        });
    if let Some((standing, _)) = standing {
        set_rate_limit(
            response.headers_mut(),
            standing.limit,
            standing.remaining(),
            standing.reset,
        );
    }
    Ok(response)
}

/// Response to a request that got no permit. A 429 carries the `RateLimit-*` headers of the owner,
/// like every other response.
async fn shed_response(
    service: &GraphqlService,
    owner: ClientKey,
    error: Error,
    media: Media,
    id: &RequestId,
) -> Response {
    let refused = RequestError::from(error);
    service.app.metrics.record_refusal(refused.code);
    let is_limited = refused.code == Code::RateLimited;
    let mut response = into_http(
        error_media(media),
        GraphqlResponse::from_error(refused, &id.0),
        &id.0,
    );
    if is_limited {
        match service
            .app
            .rate_limiter
            .spend(
                limits::RateLimitBucket::Cost,
                owner,
                0,
                service.app.clock.now(),
            )
            .await
        {
            Ok(Some(quota)) => set_rate_limit(
                response.headers_mut(),
                quota.limit,
                quota.remaining(),
                quota.reset,
            ),
            Err(Error::RateLimited { limit, retry_after }) => {
                set_rate_limit(response.headers_mut(), limit, 0, retry_after);
            }
            Ok(None) | Err(_) => {}
        }
    }
    response
}

/// The owner whose share of the concurrency limit a request uses: the user of a validly signed
/// token, otherwise the address. Does not query the database, because that would be work before the
/// permit.
fn owner(service: &GraphqlService, headers: &HeaderMap, client: &Client) -> ClientKey {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(bearer);
    let access = token.and_then(|token| {
        service
            .app
            .credentials
            .verify_access(service.app.clock.now(), token)
    });
    access.map_or_else(
        || ClientKey::address(client.address),
        |access| ClientKey::User(access.user_id),
    )
}

/// The viewer of a request, or `None` without an `Authorization` header.
pub async fn viewer(
    service: &GraphqlService,
    headers: &HeaderMap,
) -> Result<Option<Viewer>, Error> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let token = value
        .to_str()
        .ok()
        .and_then(bearer)
        .ok_or_else(Error::unauthenticated)?;
    auth::authenticate(&service.app, token).await.map(Some)
}

/// Reads a body. Its bytes count against the budget of the address until the body is parsed.
async fn read_request_body(
    body: axum::body::Body,
    in_flight: &BodyBudgets,
    address: IpAddr,
) -> Result<(Bytes, Arc<BodyReservation>), RequestError> {
    let reservation = in_flight.body(ClientKey::address(address));
    let read = read_body(reservation.receive(body), MAX_BODY_BYTES, |bytes| {
        reservation.admit(bytes)
    })
    .await;
    let read = read.map_err(|error| match error {
        BodyError::TooLarge => {
            RequestError::new(Code::PayloadTooLarge, "The request body exceeds 256 KiB.")
        }
        BodyError::Incomplete => {
            RequestError::new(Code::BadRequest, "The request body is incomplete.")
        }
        BodyError::Refused(error) => error.into(),
    });
    Ok((read?, reservation))
}

/// Reads the parameters of a GET request. `variables` and `extensions` are JSON.
fn request_from_query(query: &str) -> Result<GraphqlRequest, RequestError> {
    let mut members = Map::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let value = match &*name {
            "query" | "operationName" => Value::String(value.into_owned()),
            "variables" | "extensions" if value.is_empty() => Value::Null,
            "variables" | "extensions" => parse_json(&Bytes::copy_from_slice(value.as_bytes()))?,
            _ => continue,
        };
        if members.insert(name.into_owned(), value).is_some() {
            return Err(RequestError::new(
                Code::BadRequest,
                "A query parameter occurs twice.",
            ));
        }
    }
    GraphqlRequest::from_json(Value::Object(members))
}

fn parse_json(bytes: &Bytes) -> Result<Value, RequestError> {
    let read = serde_json::from_slice(bytes);
    read.map_err(|error| {
        RequestError::new(
            Code::BadRequest,
            format!("Invalid JSON at line {}.", error.line()),
        )
    })
}

/// Builds the HTTP response: status, headers and body.
fn into_http(media: Media, answer: GraphqlResponse, request_id: &str) -> Response {
    let Some(body) = answer.to_body() else {
        return into_http(
            media,
            GraphqlResponse::from_error(too_large(), request_id),
            request_id,
        );
    };
    let status = status(media, &answer);
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, media.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            headers.insert("accept-post", HeaderValue::from_static("application/json"));
        }
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    if let Some(wait) = answer.retry_after {
        headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
        if let Some(limit) = answer.rate_limit {
            set_rate_limit(headers, limit, 0, wait);
        }
    }
    response
}

fn status(media: Media, answer: &GraphqlResponse) -> StatusCode {
    let code = answer.code().unwrap_or(Code::Internal);
    let number = match (answer.is_executed(), media) {
        (true, Media::GraphqlResponse) if answer.has_errors() => 294,
        (true, _) => 200,
        (false, Media::Json) if code.is_document_error() => 200,
        (false, _) => code.status(),
    };
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
