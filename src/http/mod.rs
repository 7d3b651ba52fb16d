//! The HTTP router and the middleware around every request: request id, log line, metrics and
//! security headers. Each route lives in a submodule; [`accept`] runs the connections below the
//! router.

pub mod accept;
pub mod account_email;
pub mod auth;
pub mod client_ip;
pub mod concurrency_limit;
pub mod fifo_cache;
pub mod graphiql;
pub mod graphql;
pub mod graphql_transport_ws;
pub mod health;
pub mod in_flight;
pub mod negotiate;
pub mod openapi;
pub mod operation;
pub mod origin;
pub mod pace;
pub mod persisted;
pub mod prepared_document;
pub mod problem;
pub mod response;
pub mod slots;
pub mod sse;
pub mod subscription;
pub mod upgrade;
pub mod user_slots;
pub mod websocket;
pub mod write_timeout;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http_body_util::BodyExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tracing::{Instrument, Span};

use crate::App;
use crate::error::{Code, Error};
use crate::graphql::Schema;
use crate::id::Id;
use crate::time::whole_seconds;
use crate::{metrics, telemetry};
pub use accept::{ConnectionHandle, serve};
use auth::AppliedRateLimit;
use origin::{host, is_cross_site};
use problem::Problem;
use write_timeout::CHUNK_BYTES;

const MAX_AUTH_BODY_BYTES: usize = 8 * 1024;
/// Step in which the buffer of a large body grows, in bytes.
const BODY_STEP: usize = 2 * CHUNK_BYTES;
/// Deadline of an `/auth` request, from its first byte to the response. Includes the time to
/// receive the body and to wait for a password hash.
const AUTH_DEADLINE: Duration = Duration::from_secs(8);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Id of a request: the `X-Request-Id` of its response, and the `id` of its log lines.
#[derive(Clone, Debug)]
pub struct RequestId(pub Arc<str>);

/// Marks a request to be shed: no request slot is free, or it would most likely time out while it
/// waits for a permit.
#[derive(Clone, Copy, Debug)]
struct Overloaded;

/// Routes of the public listener.
pub fn router(app: &Arc<App>, schema: Schema) -> Router {
    let service = operation::GraphqlService::new(Arc::clone(app), schema);
    let auth = Router::from(auth::routes()).merge(account_email::pages());
    let auth = auth.layer((
        middleware::from_fn_with_state(Arc::clone(app), reject_cross_site),
        middleware::from_fn_with_state(Arc::clone(app), with_deadline),
    ));
    let auth = auth.with_state(Arc::clone(app));
    let graphql = Router::new()
        .route("/graphql", get(graphql::get).post(graphql::post))
        .with_state(service);
    let mut router = Router::new()
        .merge(health::routes().with_state(Arc::clone(app)))
        .merge(auth)
        .merge(graphql);
    let mut pages = Router::new();
    if app.config.graphiql {
        pages = pages.merge(graphiql::routes());
    }
    if app.config.docs {
        pages = pages.merge(openapi::routes());
    }
    if app.config.graphiql || app.config.docs {
        router = router.merge(pages.layer(middleware::from_fn_with_state(
            Arc::clone(app),
            in_flight::limit_responses,
        )));
    }
    router
        .fallback(async || Problem::new(Code::NotFound, "Not found."))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        // One tuple instead of one `layer` call each: every call clones the service stack again for
        // each request. The outermost layer comes first.
        .layer((
            middleware::from_fn_with_state(Arc::clone(app), observe),
            CatchPanicLayer::custom(panicked),
            cors(&app.config.cors_origins),
        ))
}

/// Routes of the metrics listener.
pub fn metrics_router(app: &Arc<App>) -> Router {
    let app = Arc::clone(app);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let metrics = async move || ([(header::CONTENT_TYPE, kind)], metrics::exposition(&app));
    Router::new().route("/metrics", get(metrics))
}

fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins
        .iter()
        .filter_map(|origin| origin.parse().ok())
        .collect();
    CorsLayer::new()
        .allow_origin(origins)
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::ACCEPT,
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("graphql-require-preflight"),
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([
            REQUEST_ID,
            header::RETRY_AFTER,
            RATE_LIMIT,
            RATE_LIMIT_REMAINING,
            RATE_LIMIT_RESET,
        ])
        .max_age(Duration::from_secs(3_600))
}

/// Sets the `RateLimit-*` headers. `reset` is the time until points become available again.
fn set_rate_limit(headers: &mut HeaderMap, limit: u32, remaining: u32, reset: Duration) {
    headers.insert(RATE_LIMIT, limit.into());
    headers.insert(RATE_LIMIT_REMAINING, remaining.into());
    headers.insert(RATE_LIMIT_RESET, whole_seconds(reset).into());
}

/// Rejects cross-site form posts, which a browser sends without a preflight. Otherwise any page
/// could lock a visitor out with failed logins.
async fn reject_cross_site(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if request.method() == Method::POST
        && is_cross_site(request.uri(), request.headers(), &app.config)
    {
        return Problem::new(
            Code::Forbidden,
            "Cross-site requests are not allowed from this origin.",
        )
        .into_response();
    }
    next.run(request).await
}

/// Applies [`AUTH_DEADLINE`]. Work that has begun runs to its end in a task of its own, even when
/// the deadline passes or the client disconnects.
async fn with_deadline(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (counted, is_post) = (
        AppliedRateLimit::default(),
        request.method() == Method::POST,
    );
    let answered = async {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(counted.clone());
        // No work begins before the body is complete.
        let body = match read_body(body, MAX_AUTH_BODY_BYTES, |_| Ok(())).await {
            Ok(body) => Body::from(body),
            Err(BodyError::TooLarge) => {
                return Problem::bad_body(StatusCode::PAYLOAD_TOO_LARGE).into_response();
            }
            Err(BodyError::Incomplete) => {
                return Problem::bad_body(StatusCode::BAD_REQUEST).into_response();
            }
            Err(BodyError::Refused(error)) => return Problem::from(error).into_response(),
        };
        let work = next.run(Request::from_parts(parts, body)).in_current_span();
        let done = app.writes.spawn(work).await;
        done.unwrap_or_else(|error| Problem::from(Error::internal(error)).into_response())
    };
    let answered = app.with_deadline(AUTH_DEADLINE, answered).await;
    let mut response = answered.unwrap_or_else(|late| Problem::from(late).into_response());
    let headers = response.headers_mut();
    if is_post {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Some(quota) = counted.quota()
        && !headers.contains_key(RATE_LIMIT)
    {
        set_rate_limit(headers, quota.limit, quota.remaining(), quota.reset);
    }
    response
}

/// Why reading a body failed.
enum BodyError {
    /// The body exceeds the limit.
    TooLarge,
    /// The connection failed before the end of the body.
    Incomplete,
    /// The byte budget is exhausted.
    Refused(Error),
}

/// Reads a body of at most `limit` bytes into one buffer. Copies and drops each frame as it
/// arrives, because a frame of one byte keeps its whole read buffer (2 to 4 kB) alive. Calls
/// `admit` with the new size of the buffer before it grows. A large buffer grows in small steps,
/// because doubling it would reserve up to twice as much as has arrived.
async fn read_body(
    mut body: impl http_body::Body<Data = Bytes> + Unpin,
    limit: usize,
    mut admit: impl FnMut(usize) -> Result<(), Error>,
) -> Result<Bytes, BodyError> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        // Trailers are ignored.
        let Ok(data) = frame.map_err(|_| BodyError::Incomplete)?.into_data() else {
            continue;
        };
        if data.len() > limit - read.len() {
            return Err(BodyError::TooLarge);
        }
        let bytes = read.len() + data.len();
        if read.is_empty() && body.is_end_stream() {
            admit(bytes).map_err(BodyError::Refused)?;
            return Ok(data);
        }
        if bytes > read.capacity() {
            let capacity = if bytes <= CHUNK_BYTES {
                bytes.next_power_of_two()
            } else {
                bytes.next_multiple_of(BODY_STEP)
            };
            let capacity = capacity.min(limit);
            admit(capacity).map_err(BodyError::Refused)?;
            read.reserve_exact(capacity - read.len());
        }
        read.extend_from_slice(&data);
    }
    Ok(read.into())
}

/// Turns a panic into a 500 response without details. The cause goes to the log.
fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let cause = cause.downcast_ref::<&str>().copied().map(ToOwned::to_owned);
    let cause = cause.unwrap_or_else(|| "panic".to_owned());
    Problem::from(Error::internal(cause)).into_response()
}

/// Whether the requested host is in `ALLOWED_HOSTS`. Probes are exempt, because they connect by
/// address.
fn is_allowed_host(request: &Request, hosts: &[String]) -> bool {
    if hosts.is_empty() || matches!(request.uri().path(), "/livez" | "/readyz") {
        return true;
    }
    let named = host(request.uri(), request.headers()).unwrap_or_default();
    let name = match named.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => named,
    };
    hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

/// Adds the request id, log line, metrics, trace span and security headers to every request.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id: Arc<str> = Id::new().to_string().into();
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let method = request.method().clone();
    // HTTP/1.1 connections persist unless one side sends `Connection: close` (RFC 9112 section
    // 9.6). HTTP/2 uses GOAWAY instead.
    let is_kept = request.version() == Version::HTTP_11;
    let is_allowed = is_allowed_host(&request, &app.config.allowed_hosts);
    let is_operation = route == Some("/graphql") && method == Method::POST;
    if is_operation && app.concurrency.should_shed() {
        request.extensions_mut().insert(Overloaded);
    }
    if is_allowed && request.extensions().get::<Overloaded>().is_some() {
        // Shedding must stay cheap under overload: the body is not read and no line is logged.
        let mut response = match is_operation {
            true => next.run(request).await,
            false => Problem::from(Error::unavailable()).into_response(),
        };
        app.metrics
            .record_request(&method, route, response.status(), Duration::ZERO);
        add_headers(&app, &mut response, &id, is_kept);
        return response;
    }
    let span = tracing::info_span!(
        "request",
        %id,
        %method,
        route = route.unwrap_or("-"),
        operation = tracing::field::Empty,
        trace_id = tracing::field::Empty,
    );
    let traced = app.traces.request_span(&request, route);
    if let Some(traced) = &traced {
        span.record("trace_id", traced.trace_id());
    }
    let started = tokio::time::Instant::now();
    let mut response = if is_allowed {
        telemetry::in_span(traced.as_ref(), next.run(request).instrument(span.clone())).await
    } else {
        Problem::new(Code::Forbidden, "This host name is not allowed.").into_response()
    };
    let took = started.elapsed();
    app.metrics
        .record_request(&method, route, response.status(), took);
    if let Some(traced) = traced {
        traced.record_response(&response, &id);
    }
    let (status, ms) = (response.status().as_u16(), took.as_micros() as f64 / 1000.0);
    span.in_scope(|| tracing::info!(status, ms, "request completed"));
    add_headers(&app, &mut response, &id, is_kept);
    response
}

/// Span for work after the response has begun, on a socket or an event stream. Its log lines carry
/// the id of the request.
fn background_span(id: &str, operation: Option<&str>) -> Span {
    let operation = operation.map(|name| &name[..name.floor_char_boundary(80)]);
    tracing::info_span!("request", %id, operation)
}

fn add_headers(app: &App, response: &mut Response, id: &str, is_kept: bool) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    if app.config.public_url.starts_with("https://") {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000"),
        );
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'",
        ));
    if is_kept && app.draining.is_cancelled() {
        // Makes the client open its next connection elsewhere, so that no request meets a
        // connection that is about to close.
        headers
            .entry(header::CONNECTION)
            .or_insert(HeaderValue::from_static("close"));
    }
}
