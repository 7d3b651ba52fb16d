//! Liveness and readiness probes.
//!
//! A probe runs no check of its own. A monitor checks the database and Redis once a second over
//! separate connections, and a probe returns its latest result. Any number of probes therefore
//! costs nothing, and an unresponsive dependency delays none.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::db::migrate;

/// Interval between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a database check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Age at which a result is no longer valid, because the monitor itself does not run.
const STALE_AFTER: Duration = Duration::from_secs(5);
/// Maximum time since this instance last reached the end of the event log. It polls twice a second.
const MAX_EVENT_LAG: Duration = Duration::from_secs(10);

/// Latest check results of the dependencies.
#[derive(Debug, Default)]
pub struct Readiness {
    database: watch::Sender<Option<DatabaseCheck>>,
    /// Whether Redis answers, if it is configured.
    redis: watch::Sender<Option<bool>>,
}

#[derive(Clone, Copy, Debug)]
struct DatabaseCheck {
    at: Instant,
    /// Whether all migrations are applied, or `None` if the database did not answer.
    is_migrated: Option<bool>,
}

/// Checks the dependencies once a second until `stop` is cancelled.
pub async fn monitor(app: Arc<App>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = check_database(&app) => {}
        () = check_redis(&app) => {}
    }
}

async fn check_database(app: &App) {
    let (db, mut ticks) = (app.db.health_check_pool(), check_interval());
    loop {
        ticks.tick().await;
        let check = async { migrate::is_complete(&mut db.conn().await?).await };
        let is_migrated = match timeout(CHECK_TIMEOUT, check).await {
            Ok(Ok(is_migrated)) => Some(is_migrated),
            Ok(Err(error)) => {
                error.into_client();
                None
            }
            Err(_) => None,
        };
        app.readiness.database.send_replace(Some(DatabaseCheck {
            at: Instant::now(),
            is_migrated,
        }));
    }
}

async fn check_redis(app: &App) {
    let mut ticks = check_interval();
    loop {
        ticks.tick().await;
        app.readiness
            .redis
            .send_replace(app.rate_limiter.ping_redis().await);
    }
}

fn check_interval() -> tokio::time::Interval {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// `/livez` and `/readyz`.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
}

/// Body of a readiness response. The reason for a failure is in the log.
#[derive(Serialize)]
struct ReadinessReport {
    /// Whether the instance should receive requests.
    ready: bool,
    /// `draining` once shutdown has begun.
    server: &'static str,
    /// `away` if it does not answer.
    database: &'static str,
    /// `behind` if migrations are missing. Newer ones, applied by another instance, are accepted.
    schema: &'static str,
    /// `behind` if the end of the event log has not been reached recently.
    events: &'static str,
    /// `away` if it does not answer. The server works without it: each instance counts its own rate
    /// limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    // No result exists yet only just after startup.
    let mut found = app.readiness.database.subscribe();
    let found = timeout(CHECK_TIMEOUT, found.wait_for(Option::is_some)).await;
    let checked = found
        .ok()
        .and_then(|found| *found.ok()?)
        .filter(|checked| checked.at.elapsed() < STALE_AFTER);
    let schema = checked.and_then(|checked| checked.is_migrated);
    let redis = app
        .rate_limiter
        .uses_redis()
        .then(|| app.readiness.redis.borrow().unwrap_or_default());
    let (draining, behind) = (app.draining.is_cancelled(), app.hub.lag() > MAX_EVENT_LAG);
    let report = ReadinessReport {
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
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))],
        Json(report),
    )
        .into_response()
}
