//! Metrics in the OpenMetrics text format, which Prometheus scrapes.
//!
//! Label values are bounded, whatever clients send: routes of the router, known error codes, and
//! the first [`MAX_OPERATION_NAMES`] operation names that signed-in users have executed without an
//! error. Any other name is `other`. Counters that live in another module, such as
//! [`RateLimiter::refused`], are registered here. Gauges of pools and queues are read on each
//! scrape.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::App;
use crate::auth::credential::Credentials;
use crate::db::Db;
use crate::error::Code;
use crate::limits::RateLimiter;

/// Maximum number of operation names with labels of their own.
const MAX_OPERATION_NAMES: usize = 200;
/// Maximum length of such a name, in bytes.
const MAX_NAME_LENGTH: usize = 80;

/// Label names with their values.
pub type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// A histogram of seconds, from one millisecond to beyond the deadline of an operation.
pub fn duration_histogram() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    ])
}

type DurationFamily<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Transport of a long-lived connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A WebSocket.
    WebSocket,
    /// Server-sent events.
    EventStream,
}

/// Counts something open in a gauge until it is dropped.
pub struct OpenGauge(Gauge);

impl OpenGauge {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A completed operation.
#[derive(Clone, Copy, Debug)]
pub struct OperationOutcome<'a> {
    /// The operation name.
    pub name: Option<&'a str>,
    /// `query`, `mutation` or `subscription`.
    pub kind: &'static str,
    /// The code of its first error.
    pub failure: Option<Code>,
    /// Whether the viewer is authenticated.
    pub signed_in: bool,
    /// The duration. `None` for a subscription, which the client may keep open.
    pub duration: Option<Duration>,
}

/// All metrics of the server.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<3>, Counter>,
    request_seconds: DurationFamily<1>,
    operations: Family<Labels<3>, Counter>,
    operation_seconds: DurationFamily<2>,
    refusals: Family<Labels<1>, Counter>,
    sockets: Family<Labels<1>, Gauge>,
    closes: Family<Labels<1>, Counter>,
    subscriptions: Gauge,
    lag: Gauge<f64, AtomicU64>,
    connections: Family<Labels<2>, Gauge>,
    waiting: Family<Labels<1>, Gauge>,
    decoded: Gauge,
    hashes: Family<Labels<1>, Gauge>,
    names: RwLock<HashSet<String>>,
}

impl Metrics {
    pub fn new(db: &Db, limits: &RateLimiter, credentials: &Credentials) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("fasttrack"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(duration_histogram),
            operations: Family::default(),
            operation_seconds: Family::new_with_constructor(duration_histogram),
            refusals: Family::default(),
            sockets: Family::default(),
            closes: Family::default(),
            subscriptions: Gauge::default(),
            lag: Gauge::default(),
            connections: Family::default(),
            waiting: Family::default(),
            decoded: Gauge::default(),
            hashes: Family::default(),
            names: RwLock::default(),
        };
        let mut all = std::mem::take(&mut metrics.registry);
        all.register(
            "build",
            "Build information",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        all.register(
            "http_requests",
            "HTTP requests by response status",
            metrics.requests.clone(),
        );
        let name = "http_request_duration_seconds";
        all.register(
            name,
            "Time until the response begins",
            metrics.request_seconds.clone(),
        );
        all.register(
            "graphql_operations",
            "Completed GraphQL operations",
            metrics.operations.clone(),
        );
        let name = "graphql_operation_duration_seconds";
        all.register(
            name,
            "Execution time of queries and mutations",
            metrics.operation_seconds.clone(),
        );
        all.register(
            "graphql_refusals",
            "GraphQL requests rejected before execution",
            metrics.refusals.clone(),
        );
        all.register(
            "sockets",
            "Open WebSockets and event streams",
            metrics.sockets.clone(),
        );
        all.register(
            "socket_closes",
            "WebSockets closed by the server",
            metrics.closes.clone(),
        );
        all.register(
            "subscriptions",
            "Open subscriptions",
            metrics.subscriptions.clone(),
        );
        all.register(
            "event_lag_seconds",
            "Time since the end of the event log was last reached",
            metrics.lag.clone(),
        );
        all.register(
            "rate_limit_refusals",
            "Requests rejected by a rate limit",
            limits.refused.clone(),
        );
        let help = "Requests counted locally because Redis was unavailable";
        all.register("rate_limit_fallbacks", help, limits.local_fallbacks.clone());
        let help = "Bytes decoded from database rows";
        all.register("decoded_bytes", help, limits.decoding.bytes.clone());
        let help = "Bytes reserved for rows by running operations";
        all.register("decoded_bytes_reserved", help, metrics.decoded.clone());
        let help = "Operations rejected by a limit on decoded bytes";
        all.register(
            "decoded_bytes_refusals",
            help,
            limits.decoding.refused.clone(),
        );
        all.register(
            "password_hashes",
            "Running and waiting password hashes",
            metrics.hashes.clone(),
        );
        let help = "Password hashes rejected because too many were waiting";
        all.register(
            "password_hash_refusals",
            help,
            credentials.refused().clone(),
        );
        let name = "password_hash_duration_seconds";
        all.register(
            name,
            "Duration of a password hash, including its wait",
            credentials.hash_seconds().clone(),
        );
        all.register(
            "db_connections",
            "Database connections by state",
            metrics.connections.clone(),
        );
        all.register(
            "db_waiting",
            "Tasks waiting for a database connection",
            metrics.waiting.clone(),
        );
        let name = "db_wait_duration_seconds";
        all.register(
            name,
            "Time until a database connection is acquired",
            db.waits().clone(),
        );
        all.register(
            "db_statements",
            "SQL statements executed",
            db.counted_statements().clone(),
        );
        metrics.registry = all;
        metrics
    }

    /// Records a response. `route` is `None` if no route matched.
    pub fn record_request(
        &self,
        method: &Method,
        route: Option<&str>,
        status: StatusCode,
        took: Duration,
    ) {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        };
        let route: Cow<'static, str> = route.unwrap_or("none").to_owned().into();
        let status = status.as_str().to_owned().into();
        self.request_seconds
            .get_or_create(&[("route", route.clone())])
            .observe(took.as_secs_f64());
        self.requests
            .get_or_create(&[
                ("method", method.into()),
                ("route", route),
                ("status", status),
            ])
            .inc();
    }

    /// Records a GraphQL request that was not executed.
    pub fn record_refusal(&self, code: Code) {
        self.refusals
            .get_or_create(&[("code", code.as_str().into())])
            .inc();
    }

    /// Records a completed operation.
    pub fn record_operation(&self, executed: OperationOutcome<'_>) {
        let OperationOutcome {
            name,
            kind,
            failure,
            signed_in,
            duration: took,
        } = executed;
        let name = self.operation_label(name, signed_in && failure.is_none());
        let outcome = failure.map_or("ok", Code::as_str);
        if let Some(took) = took {
            let labels = [("operation", name.clone()), ("kind", kind.into())];
            self.operation_seconds
                .get_or_create(&labels)
                .observe(took.as_secs_f64());
        }
        let labels = [
            ("operation", name),
            ("kind", kind.into()),
            ("outcome", outcome.into()),
        ];
        self.operations.get_or_create(&labels).inc();
    }

    /// The label for an operation name.
    fn operation_label(&self, name: Option<&str>, may_be_new: bool) -> Cow<'static, str> {
        let Some(name) = name else {
            return "unnamed".into();
        };
        if self
            .names
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(name)
        {
            return name.to_owned().into();
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if may_be_new && names.len() < MAX_OPERATION_NAMES && name.len() <= MAX_NAME_LENGTH {
            names.insert(name.to_owned());
            return name.to_owned().into();
        }
        "other".into()
    }

    /// Counts an open socket or event stream until the guard is dropped.
    pub fn open_socket(&self, transport: Transport) -> OpenGauge {
        let transport = match transport {
            Transport::WebSocket => "websocket",
            Transport::EventStream => "sse",
        };
        OpenGauge::new(
            self.sockets
                .get_or_create_owned(&[("transport", transport.into())]),
        )
    }

    /// Records the close code of a socket that the server closes.
    pub fn record_close(&self, code: u16) {
        self.closes
            .get_or_create(&[("code", code.to_string().into())])
            .inc();
    }

    /// Counts an open subscription until the guard is dropped.
    pub fn open_subscription(&self) -> OpenGauge {
        OpenGauge::new(self.subscriptions.clone())
    }
}

/// All metrics as text. Updates the gauges first.
pub fn exposition(app: &App) -> String {
    let metrics = &app.metrics;
    let set = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    for fill in app.db.pools() {
        let pool = ("pool", Cow::Borrowed(fill.pool));
        for (state, value) in [
            ("busy", fill.busy),
            ("idle", fill.idle),
            ("unopened", fill.unopened),
        ] {
            set(
                &metrics
                    .connections
                    .get_or_create(&[pool.clone(), ("state", state.into())]),
                value,
            );
        }
        set(&metrics.waiting.get_or_create(&[pool]), fill.waiting);
    }
    let (running, waiting) = app.credentials.hash_load();
    for (state, value) in [("running", running), ("waiting", waiting)] {
        set(
            &metrics.hashes.get_or_create(&[("state", state.into())]),
            value,
        );
    }
    set(&metrics.decoded, app.rate_limiter.decoding.budget.used());
    metrics.lag.set(app.hub.lag().as_secs_f64());
    let mut out = String::new();
    // Writing to a string cannot fail.
    match text::encode(&mut out, &metrics.registry) {
        Ok(()) => out,
        Err(_) => String::new(),
    }
}
