//! `fasttrack`: a GraphQL server for task management on SQLite or PostgreSQL.
//!
//! The modules from the outside in. Each may use those below it; those from `access` to `time`
//! share types and may use each other. A test checks the direction and lists the exceptions.
//!
//! - [`server`]: the running server, and the order of shutdown
//! - [`jobs`]: background jobs: event log tail, mail, inboxes, purging
//! - [`admin`]: operator commands: backup, move to PostgreSQL, checks of settings and environment
//! - [`demo`]: sample data for `fasttrack demo`
//! - [`mail`]: composing mail, and sending it via SMTP
//! - [`http`]: connections, router, `/auth` routes, and GraphQL over HTTP, WebSocket and SSE
//! - [`admission`]: complexity limits on GraphQL documents, before they are executed
//! - [`auth`]: from an access token to its viewer; password hashes and tokens
//! - [`graphql`]: the schema: types, resolvers, guards, loaders, batch execution
//! - [`store`]: rows, queries and write transactions of each domain object
//! - [`events`]: the event log (transactional outbox), its hub, and hints between instances
//! - [`telemetry`]: logs and traces
//! - [`access`]: the permission table
//! - [`config`]: the settings
//! - [`db`]: connections, transactions, migrations, paging, and `on!`: one query for two databases
//! - [`error`]: errors, and what clients see of them
//! - [`id`]: ids of rows (UUID version 7)
//! - [`limits`]: rate limits, storage quotas and byte budgets
//! - [`metrics`]: metrics for Prometheus
//! - [`time`]: timestamps and the clock
//! - [`network`]: client addresses and address ranges
//!
//! A request enters through `http`, where `auth` resolves its token to a viewer and `admission`
//! limits its document; `graphql` executes it with the reads and write transactions of `store`.
//! A write appends its event in the same transaction. `events::hub` tails the log and delivers each
//! event to its listeners; `graphql::event_stream` checks permissions, and `http` responds.
//!
//! More is in `docs/internals/architecture.md`.

pub mod access;
pub mod admin;
pub mod admission;
pub mod auth;
pub mod config;
pub mod db;
pub mod demo;
pub mod error;
pub mod events;
pub mod graphql;
pub mod http;
pub mod id;
pub mod jobs;
pub mod limits;
pub mod mail;
pub mod metrics;
pub mod network;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod time;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth::credential::Credentials;
use auth::sessions::ViewerCache;
use config::Config;
use db::Db;
use error::{Error, Result};
use events::LogPosition;
use events::cursor::CursorCodec;
use events::hint::Hints;
use events::hub::Hub;
use futures_util::future::{Either, select};
use http::concurrency_limit::ConcurrencyLimit;
use http::health::Readiness;
use http::in_flight::BodyBudgets;
use limits::RateLimiter;
use metrics::Metrics;
use store::user::ProfileCache;
use telemetry::TraceExporter;
use time::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time without a response to the event log tail after which the database counts as stalled.
const DATABASE_STALL_LIMIT: Duration = Duration::from_millis(1_600);

/// The shared state of a server.
pub struct App {
    pub config: Config,
    pub clock: Clock,
    pub db: Db,
    /// Delivers new events of the log to subscriptions.
    pub hub: Hub<store::event::EventObjects>,
    /// Encrypts event log positions into cursors for clients, and decrypts them.
    pub cursors: CursorCodec,
    /// Notifies other instances of new events.
    pub hints: Arc<Hints>,
    /// Consumer offset of the inboxes: notifications exist for all events up to this position.
    pub inbox: watch::Sender<LogPosition>,
    /// Hashes passwords, and issues and verifies tokens.
    pub credentials: Credentials,
    /// Caches the viewers of active sessions.
    pub sessions: ViewerCache,
    /// Caches public user profiles.
    pub profiles: ProfileCache,
    pub rate_limiter: RateLimiter,
    pub metrics: Metrics,
    /// Exports spans to an OpenTelemetry collector, if one is configured.
    pub traces: TraceExporter,
    /// Limits how many operations run at once.
    pub concurrency: ConcurrencyLimit,
    /// Limits the bytes of request and response bodies in memory.
    pub in_flight: BodyBudgets,
    /// Latest check results of the database and Redis.
    pub readiness: Readiness,
    /// Running mutations. They complete even if the client disconnects; shutdown waits for them.
    pub writes: TaskTracker,
    /// Cancelled when shutdown begins.
    pub draining: CancellationToken,
}

impl App {
    /// Opens the database and creates the shared state. Starts no jobs and no listeners.
    pub fn open(config: Config, clock: Clock) -> Result<Arc<Self>> {
        let mut db = Db::open(&config.database, config.database_connections)?;
        db.quotas = config.quotas;
        let is_embedded = !db.is_postgres();
        let credentials = Credentials::new(&config)?;
        let limits = RateLimiter::new(config.rate_limits, config.redis()?);
        let Config {
            connections,
            database_connections,
            ..
        } = &config;
        let rejected = limits.refused.clone();
        Ok(Arc::new(Self {
            metrics: Metrics::new(&db, &limits, &credentials),
            traces: TraceExporter::open(config.traces.as_ref())?,
            db,
            hub: Hub::default(),
            cursors: CursorCodec::new(&config.secret_key)?,
            hints: Arc::new(Hints::new(config.redis()?)),
            inbox: watch::Sender::default(),
            credentials,
            sessions: ViewerCache::default(),
            profiles: ProfileCache::default(),
            rate_limiter: limits,
            concurrency: ConcurrencyLimit::new(
                connections.operations,
                *database_connections,
                is_embedded,
                rejected,
            ),
            in_flight: BodyBudgets::default(),
            readiness: Readiness::default(),
            writes: TaskTracker::new(),
            draining: CancellationToken::new(),
            clock,
            config,
        }))
    }

    /// Runs database work until the deadline, or until the database stalls. The event log tail,
    /// which polls it continuously, notices that first.
    pub async fn with_deadline<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        let since = Instant::now();
        let late = async {
            while since.elapsed() < deadline && self.hub.stalled_for() < DATABASE_STALL_LIMIT {
                tokio::time::sleep(DATABASE_STALL_LIMIT / 8).await;
            }
        };
        match select(pin!(work), pin!(late)).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(Error::unavailable()),
        }
    }
}
