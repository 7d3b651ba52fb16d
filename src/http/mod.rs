//! The server's doors: the router on one page, with what stands around every request.

pub mod auth;
pub mod graphql;
pub mod playground;
pub mod problem;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tracing::Instrument;

use crate::App;
use crate::error::Code;
use crate::graphql::Schema;
use crate::id::Id;
use problem::Problem;

const AUTH_BODY: usize = 8 * 1024;
const GRAPHQL_BODY: usize = 256 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Everything that is served.
pub fn router(app: &Arc<App>, schema: Schema) -> Router {
    let graphql = graphql::Door { app: Arc::clone(app), schema };
    let auth = auth::routes().layer(DefaultBodyLimit::max(AUTH_BODY)).with_state(Arc::clone(app));
    let graphql = Router::new()
        .route("/graphql", get(graphql::socket).post(graphql::post))
        .layer(DefaultBodyLimit::max(GRAPHQL_BODY))
        .with_state(graphql);
    let mut router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready).with_state(Arc::clone(app)))
        .merge(auth)
        .merge(graphql);
    if app.config.graphiql {
        router = router.merge(playground::routes());
    }
    router
        .fallback(async || Problem::new(Code::NotFound, "There is nothing here."))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(cors(&app.config.cors_origins))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(around))
}

/// Serves until the token is cancelled, then lets the requests in flight finish.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// Whether the server can do its work: the database answers.
async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.db.ping().await {
        Ok(()) => "ready".into_response(),
        Err(error) => Problem::from(error).into_response(),
    }
}

fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    CorsLayer::new()
        .allow_origin(origins)
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::ACCEPT, header::AUTHORIZATION, header::CONTENT_TYPE])
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
        .max_age(Duration::from_secs(3_600))
}

/// A panic is a defect: the client learns that it happened and nothing more, the log has the rest.
fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let cause = cause.downcast_ref::<&str>().copied().map(ToOwned::to_owned);
    let cause = cause.unwrap_or_else(|| "a panic".to_owned());
    Problem::from(crate::error::Error::internal(cause)).into_response()
}

/// Around every request: an id, a line in the log, and the headers that keep browsers careful.
async fn around(request: Request, next: Next) -> Response {
    let id = Id::new().to_string();
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request",
        id,
        method = %request.method(),
        route,
        operation = tracing::field::Empty,
    );
    let started = tokio::time::Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_micros() as f64 / 1000.0);
    span.in_scope(|| tracing::info!(status, ms, "answered"));
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}
