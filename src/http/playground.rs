//! GraphiQL, served by the binary itself: the files that `playground/` builds are compiled in.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use rust_embed::RustEmbed;

/// The built page; empty when it was not built before the binary.
#[derive(RustEmbed)]
#[folder = "playground/dist"]
#[allow_missing = true]
struct Files;

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self' data:; connect-src 'self' ws: wss:; worker-src 'self' blob:; base-uri 'none'; \
     form-action 'self'; frame-ancestors 'none'",
);

/// What is shown when the page was not built.
const FALLBACK: &str = include_str!("playground.html");

/// `/graphiql` and its files.
pub fn routes() -> Router {
    Router::new().route("/graphiql", get(page)).route("/graphiql/", get(page)).route(
        "/graphiql/{*path}",
        get(async |Path(path): Path<String>| file(&path, "public, max-age=31536000, immutable")),
    )
}

async fn page() -> Response {
    if Files::get("index.html").is_some() {
        return file("index.html", "no-cache");
    }
    ([(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(FALLBACK_POLICY))], Html(FALLBACK)).into_response()
}

/// The fallback page is one file with its script and style in it.
const FALLBACK_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(path: &str, caching: &'static str) -> Response {
    let Some(file) = Files::get(path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kind = file.metadata.mimetype().to_owned();
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, caching.to_owned())];
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], headers, file.data.into_owned()).into_response()
}
