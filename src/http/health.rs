//! What probes ask: whether the process lives, and whether it can do its work.
//!
//! Nothing is asked for a probe. A monitor checks the database and Redis once a second, over connections of its own, and a
//! probe is answered what it found last: so any number of probes costs nothing, and a part that is silent delays none.

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

/// How often the parts are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the database may take to answer a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// What was found so long ago says nothing any more: the monitor itself does not run.
const STALE: Duration = Duration::from_secs(5);
/// How long ago this instance may have come to the end of the event log; it looks twice a second.
const LAG: Duration = Duration::from_secs(10);

/// What was last found out about the parts that the server depends on.
#[derive(Debug, Default)]
pub struct Readiness {
    database: watch::Sender<Option<Checked>>,
    /// Whether Redis answers, if there is to be one.
    redis: watch::Sender<Option<bool>>,
}

#[derive(Clone, Copy, Debug)]
struct Checked {
    at: Instant,
    /// Whether all migrations were applied; nothing if the database did not answer.
    is_migrated: Option<bool>,
}

/// Checks the parts once a second until `stop` is cancelled.
pub async fn monitor(app: Arc<App>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = check_database(&app) => {}
        () = check_redis(&app) => {}
    }
}

async fn check_database(app: &App) {
    let (db, mut ticks) = (app.db.for_check(), ticks());
    loop {
        ticks.tick().await;
        let check = async { migrate::is_complete(&mut db.conn().await?).await };
        let is_migrated = match timeout(CHECK_TIMEOUT, check).await {
            Ok(Ok(is_migrated)) => Some(is_migrated),
            Ok(Err(error)) => {
                error.told();
                None
            }
            Err(_) => None,
        };
        app.readiness.database.send_replace(Some(Checked { at: Instant::now(), is_migrated }));
    }
}

async fn check_redis(app: &App) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        app.readiness.redis.send_replace(app.limits.redis_answers().await);
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

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
    // Only right after the start nothing is known yet.
    let mut found = app.readiness.database.subscribe();
    let found = timeout(CHECK_TIMEOUT, found.wait_for(Option::is_some)).await;
    let checked = found.ok().and_then(|found| *found.ok()?).filter(|checked| checked.at.elapsed() < STALE);
    let schema = checked.and_then(|checked| checked.is_migrated);
    let redis = app.limits.has_redis().then(|| app.readiness.redis.borrow().unwrap_or_default());
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
