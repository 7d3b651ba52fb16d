//! What probes ask: whether the process lives, and whether it can do its work.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::App;
use crate::db::migrate;

/// How long the database may take to answer: a probe does not wait for ever.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long ago this instance may have come to the end of the event log; it looks twice a second.
const LAG: Duration = Duration::from_secs(10);

/// `/livez` and `/readyz`.
pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/livez", get(async || "ok")).route("/readyz", get(ready))
}

/// Which parts are in order. Why one is not, the log says.
#[derive(Serialize)]
struct Report {
    /// Whether requests should come here.
    ready: bool,
    /// `draining` from the moment the server is told to end.
    server: &'static str,
    /// `away` when it does not answer.
    database: &'static str,
    /// `behind` when migrations are missing. Newer ones are no fault: another instance has made them.
    schema: &'static str,
    /// `behind` when the event log is not read to its end.
    events: &'static str,
    /// `away` when it does not answer. The server works without it: each instance counts for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let schema = async { migrate::is_complete(&mut app.db.aside().conn().await?).await };
    let (schema, redis) = tokio::join!(tokio::time::timeout(PATIENCE, schema), app.limits.redis_answers());
    let schema = match schema {
        Ok(Ok(complete)) => Some(complete),
        Ok(Err(error)) => {
            error.told();
            None
        }
        Err(_) => None,
    };
    let (draining, behind) = (app.draining.is_cancelled(), app.hub.lag() > LAG);
    let report = Report {
        ready: schema == Some(true) && !draining && !behind,
        server: if draining { "draining" } else { "ok" },
        database: if schema.is_some() { "ok" } else { "away" },
        schema: match schema {
            Some(true) => "ok",
            Some(false) => "behind",
            None => "unknown",
        },
        events: if behind { "behind" } else { "ok" },
        redis: redis.map(|answers| if answers { "ok" } else { "away" }),
    };
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(report)).into_response()
}
