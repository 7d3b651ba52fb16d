//! `fasttrack`: a GraphQL server for task management, over SQLite or PostgreSQL. This page is the map of the house; what
//! a client can do is in the README and in the descriptions of the schema.
//!
//! # The idea in four sentences
//!
//! A **noun** has two files of the same name: `graphql/task.rs` (what a client can say about tasks, in the order of the
//! SDL) and `store/task.rs` (what the database does about them). A **read** is one query; a **write** is one
//! transaction that changes rows *and appends its event*, so that an event can neither be forgotten nor lie. **Who may**
//! is one table, [`access::allowed`], quoted by guards on fields and asked again where the rows are read. **Live** is a
//! reader of the event log; whoever commits only rings a bell.
//!
//! # Who sees whom
//!
//! ```text
//! main → server → http → { auth, graphql } → store → { events, db }
//! ```
//!
//! Each may use what is to its right, and none what is to its left. What stands beside the line may be used from
//! everywhere: [`access`] (who may), [`error`] (what a client is told), [`config`], [`id`], [`time`], [`network`],
//! [`limits`], [`telemetry`], [`metrics`], which reads how full the parts are, and [`admission`], which `http` asks. Of
//! the line these know no more than shapes: the column types of [`db`], and in [`config`] those of settings, such as
//! [`store::lockout::LockoutPolicy`]. Four are started by `main` and work on the line from outside: [`jobs`], [`mail`], which
//! `store` queues for and [`jobs`] runs, [`demo`], and [`admin`].
//!
//! | module | what lives there |
//! |---|---|
//! | [`server`] | the parts that run, and the order in which they end |
//! | [`http`] | the router on one page, with what stands around every request; [`http::problem`] documents; [`http::health`] |
//! | [`http::accept`], [`http::slots`], [`http::h2_streams`], [`http::client_ip`], [`http::origin`] | connections and their deadlines; how many there may be, and who is evicted; streams of HTTP/2; from which address a request comes, and from which page |
//! | [`http::auth`], [`http::account_email`] | the `/auth` routes: sign-up, tokens, mailed links |
//! | [`http::operation`], [`http::persisted`], [`http::response`] | a GraphQL operation from its words to its answer, the same for every transport |
//! | [`http::concurrency_limit`] | how many operations run at once, each owner's share of them, and load shedding |
//! | [`http::in_flight`] | bytes of bodies and of answers that are not read yet, and how many of them there may be |
//! | [`http::prepared_document`], [`http::fifo_cache`] | documents that were read lately, and which of their operations are known to be valid |
//! | [`http::subscription`] | a subscription: opened once, then told event by event, everybody who asked the same at once |
//! | [`http::graphql`], [`http::negotiate`] | GraphQL over HTTP |
//! | [`http::websocket`], [`http::graphql_transport_ws`], [`http::sse`] | GraphQL over WebSocket and over server-sent events |
//! | [`http::graphiql`], [`http::openapi`] | GraphiQL; the OpenAPI document of the `/auth` routes, with a page that shows it |
//! | [`admission`] | what a document may ask for, and what it costs, before it is executed |
//! | [`limits`] | rate limits, counted here or in Redis; byte budgets: [`limits::byte_budget`], and [`limits::decode_budget`] for rows |
//! | [`metrics`] | what is counted and measured, for Prometheus |
//! | [`telemetry`] | the log, and traces for a collector |
//! | [`auth`] | from a token to its [`access::Viewer`], by the session in [`auth::sessions`]; password hashes and tokens in [`auth::credential`] |
//! | [`graphql`] | the nouns' types, queries, inputs, mutations and subscriptions; guards, global ids, connections, loaders |
//! | [`graphql::batch`], [`graphql::json`] | a short cut for plain selections: all objects of a level at once, straight into JSON |
//! | [`graphql::root_fast_path`] | the same for a whole query of one root field, past the library |
//! | [`graphql::null_propagation`] | what the library leaves undone of an answer: its order, and where a null goes up |
//! | [`store`] | the nouns' rows, reads and transactions; [`store::value`] and [`store::password`] have what was checked, such as a `Title` |
//! | [`store::account`], [`store::session`], [`store::token`], [`store::lockout`], [`store::email_change`], [`store::audit`], [`store::export`] | the life of an account, its sessions and mailed tokens, what is kept of it |
//! | [`store::notification`], [`store::mention`] | inboxes, and who is named in a comment |
//! | [`store::search`] | search in text that users write: linear, over a bounded amount |
//! | [`store::task_list`] | lists of tasks: filters, orders, a page at a time, for many parents at once |
//! | [`store::mail`], [`mail`] | the mail queue; its words and its sending |
//! | [`events`] | the log (transactional outbox), [`events::hub`], which tails it and fans out, and [`events::hint`] between instances |
//! | [`db`] | [`db::Db`], [`db::Conn`] and [`on!`]; types, tables, migrations, keyset paging; for SQLite `group_commit` commits for many at once and folds the log beside them, `sqlite_executor` says on which thread it works, and [`db::rows`] makes rows on that one; `pipeline` reads for many at once from PostgreSQL; [`db::ttl_cache`] has what holds for a second |
//! | [`admin::backup`], [`admin::relocate`] | a copy of SQLite while it is in use; everything carried over to PostgreSQL |
//! | [`admin::settings`], [`admin::doctor`] | what is wrong with the settings, and with what they lead to |
//! | [`jobs`] | what happens on time: mail, inboxes, clearing away |
//!
//! There is no layer that only forwards: no repository trait with one implementation, no queries in resolvers, no rights
//! in bodies.
//!
//! # `updateTask`, step by step
//!
//! 1. [`http::graphql::post`] resolves the viewer once (token → session → role, by [`auth::sessions`]).
//!    [`http::operation`] has the document measured by [`admission`] and paid for, and puts the viewer into a
//!    [`graphql::RequestContext`], with fresh loaders.
//! 2. `update_task` in [`graphql::task`] has the description, the guard and the input. It parses the input into
//!    [`store::task::TaskChanges`], where an absent field differs from null, and runs the write by
//!    [`graphql::payload::run_mutation`]: in a task of its own, so that a client that goes away cannot cut it in half. Faults
//!    become `userErrors`, everything else a top-level error.
//! 3. [`store::task::update`] reads the row as the viewer sees it, asks the table and applies the changes. One statement
//!    then writes the row where its version, the viewer's session and their role are still the same, and appends the
//!    event. If somebody was faster, or there is more than one event, a transaction locks the viewer and the row first.
//!    After the commit [`db::Db::transaction`] rings the bell.
//!
//! # A task is assigned → its subscriber, in four files
//!
//! 1. [`store::task`] writes the row, the event and the mail to the assignee in one transaction.
//! 2. [`events`] keeps the log in the order of commits. On PostgreSQL that is `(transaction, row)`, and only what is
//!    below the oldest transaction still open is read, so that a slow one is never skipped; SQLite has one writer.
//! 3. [`events::hub`] tails the log, finds the subscribers by the people whom the event concerns and puts it into their
//!    bounded queues. The bell makes it prompt, for what another instance wrote a hint ([`events::hint`]), and a slow
//!    poll makes it certain.
//! 4. [`graphql::event_stream`] asks the rights again for each event and yields it; with `after`, or when its queue ran over, it
//!    reads the log first. [`graphql::event`] says what the event looks like. [`http::subscription`] answers it once for
//!    all who asked in the same words, unless a resolver wanted to know who asks.
//!
//! # What is in an inbox
//!
//! [`store::notification::recipients`] says whom an event notifies, from the event and its snapshot alone; who is
//! mentioned in a comment is found when it is written ([`store::mention`]) and kept in the snapshot. A job follows the
//! tail of the log and makes the rows, together with the place in the log that it has come to; of several instances one
//! succeeds. `notificationAdded` is a reader of the log like every subscription, which asks the same function and waits
//! until the row is there, so that whoever was told of a notification finds it and can mark it as read.
//!
//! # How to add a noun
//!
//! 1. `migrations/{sqlite,postgres}/<time>_<what>/` with the same names on both sides, and the table in [`db::schema`].
//! 2. `store/<noun>.rs`: the row, its `Resource` for [`access`], its reads (`by_ids`, `page`, `count`) and its writes.
//! 3. An [`access::Action`] for each right and its line in [`access::allowed`]: the match has no wildcard.
//! 4. `graphql/<noun>.rs`: type, connection, queries, mutations. Give it a number in [`graphql::node::NodeType`] and an arm in
//!    `node`, its loads in [`graphql::loader`], and merge its roots in [`graphql`].
//! 5. `cargo run -- schema > schema.graphql`.
//!
//! # How to add a mutation
//!
//! Input, payload and resolver in `graphql/<noun>.rs`, written like their neighbours: the resolver parses and calls one
//! function of `store/<noun>.rs`, which is one transaction that asks [`access::Viewer::require`] of the row it has just
//! read and appends its event. What the caller can put right is an [`error::UserError`] with a [`error::UserErrorCode`]; list
//! those in the mutation's description. Then print the schema as above.
//!
//! # How to add an event
//!
//! A kind with a number of its own in [`events::EventKind`] (numbers are never used twice; from 100 on they are for the
//! server alone). Whoever writes it fills in whom and what it concerns, by the functions in [`store::event`]; who may
//! see it is [`store::event::can_see`] and the same rule as a query in [`store::event::page`], to be changed together. In
//! [`graphql::event`] it needs a type in `events!`, an arm in `Event::of` and a value of `EventType`.
//!
//! # One query text for two databases
//!
//! A [`db::Conn`] is a connection to either. [`on!`] puts a plain diesel expression into both arms of a match, so the
//! compiler checks each query against both backends:
//!
//! ```text
//! let task = on!(conn, |c| tasks::table.find(id).select(Task::as_select()).first(c).await)?;
//! ```
//!
//! A boxed query is built inside of it, by `into_boxed::<Backend>()`; conditions that several queries share are macros
//! next to them (`narrow!`). [`db::types::sql`] has the column types that the databases keep differently: an
//! [`id::Id`] is a `uuid` or 16 bytes, a [`time::Timestamp`] a `timestamptz` or microseconds. An expression that is
//! spelled differently is a `backend_sql!` item, and what truly differs (a row lock) is one `match` where it is needed.
//! Whatever depends on a locale is decided here and not there: text is folded by [`store::value`] before it is kept or
//! compared, and keys are ordered byte by byte.
//!
//! # How paging works
//!
//! A place in a list is the value that it is ordered by and the row's id ([`db::page::RowPosition`]); a cursor is that
//! place under a tag of its list and order. `keyset!` turns a [`db::page::PageWindow`] into one range of an index,
//! `(value, id) > (?, ?)`, of one row more than asked for, which tells whether there is another page. Whoever sees
//! several ranges (own projects, tasks assigned elsewhere) has each walked by its own index, and
//! [`db::page::PageWindow::page`] merges them. For nested lists [`db::page::lateral`] runs the bounded query once for each
//! parent in one statement, so that "ten tasks of each of a hundred projects" is one round trip, and loaders collect
//! the parents. `totalCount` is a query of its own, run only when it is selected.

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
use http::in_flight::InFlight;
use limits::RateLimiter;
use metrics::Metrics;
use store::user::ProfileCache;
use telemetry::TraceExporter;
use time::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A database that has not answered the tail of the log for so long is taken to be silent.
const DATABASE_STALL_LIMIT: Duration = Duration::from_millis(1_600);

/// Everything that a running server shares.
pub struct App {
    /// The settings.
    pub config: Config,
    /// The present.
    pub clock: Clock,
    /// The database.
    pub db: Db,
    /// The live side of the event log.
    pub hub: Hub<store::event::EventObjects>,
    /// Positions in the log, as clients get them.
    pub cursors: CursorCodec,
    /// What instances tell one another of the log.
    pub hints: Arc<Hints>,
    /// How far into the log the inboxes are made, by this instance or another.
    pub inbox: watch::Sender<LogPosition>,
    /// Passwords and tokens.
    pub credentials: Credentials,
    /// Whom the sessions in use speak for.
    pub sessions: ViewerCache,
    /// The names of people.
    pub profiles: ProfileCache,
    /// Rate limits.
    pub rate_limiter: RateLimiter,
    /// What is counted and measured.
    pub metrics: Metrics,
    /// What is told to a collector of traces.
    pub traces: TraceExporter,
    /// How many operations run at once.
    pub concurrency: ConcurrencyLimit,
    /// Bytes on their way from and to clients.
    pub in_flight: InFlight,
    /// What was last found out about the parts that the server depends on.
    pub readiness: Readiness,
    /// Writes under way, which go on when their client goes away.
    pub writes: TaskTracker,
    /// Cancelled when the server is told to end.
    pub draining: CancellationToken,
}

impl App {
    /// Opens the database and sets everything up; nothing runs yet.
    pub fn open(config: Config, clock: Clock) -> Result<Arc<Self>> {
        let mut db = Db::open(&config.database, config.database_connections)?;
        db.quotas = config.quotas;
        let is_embedded = !db.is_postgres();
        let credentials = Credentials::new(&config)?;
        let limits = RateLimiter::new(config.rate_limits, config.redis()?);
        let Config { connections, database_connections, .. } = &config;
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
            concurrency: ConcurrencyLimit::new(connections.operations, *database_connections, is_embedded, rejected),
            in_flight: InFlight::default(),
            readiness: Readiness::default(),
            writes: TaskTracker::new(),
            draining: CancellationToken::new(),
            clock,
            config,
        }))
    }

    /// Waits for what is done with the database: until the deadline, or until the database is silent, which the tail of
    /// the log notices because it asks something all the time.
    pub async fn with_deadline<T>(&self, deadline: Duration, work: impl Future<Output = T>) -> Result<T> {
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
