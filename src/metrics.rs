//! What the server counts and measures, in the text format of OpenMetrics, which Prometheus reads.
//!
//! Labels have few values, whatever clients send: routes of the router, codes of the one table, and of operations the
//! first [`NAMES`] names that somebody who is signed in has had executed without an error; any other name is `other`.
//! What a part counts by itself, such as [`Limits::refused`], is registered here; how full a pool or a queue is, is
//! looked up when somebody asks.

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
use crate::limits::Limits;

/// How many names of operations are told apart.
const NAMES: usize = 200;
/// Longer names are `other`.
const NAME_LENGTH: usize = 80;

/// Names with their values.
pub type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// Seconds, from a millisecond to beyond the deadline of an operation.
pub fn seconds() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

type Seconds<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// How something is carried that stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A WebSocket.
    WebSocket,
    /// Server-sent events.
    EventStream,
}

/// Something that is open; dropped, it no longer counts.
pub struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// An operation that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Executed<'a> {
    /// What the client calls it.
    pub name: Option<&'a str>,
    /// `query`, `mutation` or `subscription`.
    pub kind: &'static str,
    /// The code of its first error.
    pub failure: Option<Code>,
    /// Whether somebody is signed in.
    pub signed_in: bool,
    /// How long it took, of what is not open for as long as the client likes.
    pub took: Option<Duration>,
}

/// Everything that is counted and measured.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<3>, Counter>,
    request_seconds: Seconds<1>,
    operations: Family<Labels<3>, Counter>,
    operation_seconds: Seconds<2>,
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
    /// All at zero.
    pub fn new(db: &Db, limits: &Limits, credentials: &Credentials) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("fasttrack"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            operations: Family::default(),
            operation_seconds: Family::new_with_constructor(seconds),
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
        all.register("build", "What runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        all.register("http_requests", "Requests, by what they were answered", metrics.requests.clone());
        let name = "http_request_duration_seconds";
        all.register(name, "Time until an answer begins", metrics.request_seconds.clone());
        all.register("graphql_operations", "GraphQL operations that have ended", metrics.operations.clone());
        let name = "graphql_operation_duration_seconds";
        all.register(name, "Time to execute a query or a mutation", metrics.operation_seconds.clone());
        all.register("graphql_refusals", "GraphQL requests that were not executed", metrics.refusals.clone());
        all.register("sockets", "WebSockets and event streams that are open", metrics.sockets.clone());
        all.register("socket_closes", "WebSockets that the server has closed", metrics.closes.clone());
        all.register("subscriptions", "Subscriptions that are open", metrics.subscriptions.clone());
        all.register("event_lag_seconds", "Time since the end of the event log was last read", metrics.lag.clone());
        all.register("rate_limit_refusals", "Requests beyond a rate limit", limits.refused.clone());
        let help = "Times that a limit was counted without the configured Redis";
        all.register("rate_limit_fallbacks", help, limits.alone.clone());
        let help = "Bytes that operations have decoded from rows";
        all.register("decoded_bytes", help, limits.decoding.bytes.clone());
        let help = "Bytes reserved for rows by operations that run";
        all.register("decoded_bytes_reserved", help, metrics.decoded.clone());
        let help = "Operations beyond a limit of decoded bytes";
        all.register("decoded_bytes_refusals", help, limits.decoding.refused.clone());
        all.register("password_hashes", "Password hashes that run or wait", metrics.hashes.clone());
        let help = "Password hashes that were not begun because too many waited";
        all.register("password_hash_refusals", help, credentials.refused().clone());
        let name = "password_hash_duration_seconds";
        all.register(name, "Time of a password hash, its wait included", credentials.hash_seconds().clone());
        all.register("db_connections", "Database connections", metrics.connections.clone());
        all.register("db_waiting", "Those who wait for a database connection", metrics.waiting.clone());
        let name = "db_wait_duration_seconds";
        all.register(name, "Time until a database connection is free", db.waits().clone());
        all.register("db_statements", "SQL statements", db.counted_statements().clone());
        metrics.registry = all;
        metrics
    }

    /// A request was answered; `None` for a route that does not exist.
    pub fn answered(&self, method: &Method, route: Option<&str>, status: StatusCode, took: Duration) {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        };
        let route: Cow<'static, str> = route.unwrap_or("none").to_owned().into();
        let status = status.as_str().to_owned().into();
        self.request_seconds.get_or_create(&[("route", route.clone())]).observe(took.as_secs_f64());
        self.requests.get_or_create(&[("method", method.into()), ("route", route), ("status", status)]).inc();
    }

    /// A GraphQL request was not executed.
    pub fn refused(&self, code: Code) {
        self.refusals.get_or_create(&[("code", code.as_str().into())]).inc();
    }

    /// An operation has ended.
    pub fn executed(&self, executed: Executed<'_>) {
        let Executed { name, kind, failure, signed_in, took } = executed;
        let name = self.known(name, signed_in && failure.is_none());
        let outcome = failure.map_or("ok", Code::as_str);
        if let Some(took) = took {
            let labels = [("operation", name.clone()), ("kind", kind.into())];
            self.operation_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let labels = [("operation", name), ("kind", kind.into()), ("outcome", outcome.into())];
        self.operations.get_or_create(&labels).inc();
    }

    /// The name of an operation, if it is one of those that are told apart.
    fn known(&self, name: Option<&str>, may_be_new: bool) -> Cow<'static, str> {
        let Some(name) = name else {
            return "unnamed".into();
        };
        if self.names.read().unwrap_or_else(PoisonError::into_inner).contains(name) {
            return name.to_owned().into();
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if may_be_new && names.len() < NAMES && name.len() <= NAME_LENGTH {
            names.insert(name.to_owned());
            return name.to_owned().into();
        }
        "other".into()
    }

    /// A socket or a stream was opened.
    pub fn socket(&self, transport: Transport) -> Open {
        let transport = match transport {
            Transport::WebSocket => "websocket",
            Transport::EventStream => "sse",
        };
        Open::new(self.sockets.get_or_create_owned(&[("transport", transport.into())]))
    }

    /// The server has closed a socket with this code.
    pub fn closed(&self, code: u16) {
        self.closes.get_or_create(&[("code", code.to_string().into())]).inc();
    }

    /// A subscription was begun.
    pub fn subscription(&self) -> Open {
        Open::new(self.subscriptions.clone())
    }
}

/// All of it as text, with what is looked up now.
pub fn exposition(app: &App) -> String {
    let metrics = &app.metrics;
    let set = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    for fill in app.db.pools() {
        let pool = ("pool", Cow::Borrowed(fill.pool));
        for (state, value) in [("busy", fill.busy), ("idle", fill.idle), ("unopened", fill.unopened)] {
            set(&metrics.connections.get_or_create(&[pool.clone(), ("state", state.into())]), value);
        }
        set(&metrics.waiting.get_or_create(&[pool]), fill.waiting);
    }
    let (running, waiting) = app.credentials.hashing();
    for (state, value) in [("running", running), ("waiting", waiting)] {
        set(&metrics.hashes.get_or_create(&[("state", state.into())]), value);
    }
    set(&metrics.decoded, app.limits.decoding.budget.used());
    metrics.lag.set(app.hub.lag().as_secs_f64());
    let mut out = String::new();
    // Writing to a string does not fail.
    match text::encode(&mut out, &metrics.registry) {
        Ok(()) => out,
        Err(_) => String::new(),
    }
}
