//! Database access: one [`Db`] over SQLite or PostgreSQL, chosen by URL.
//!
//! This module has connections, pools, transactions, paging and migrations. The queries are in
//! `store`.
//!
//! A query is written once, as a plain diesel expression inside [`on!`](crate::on). The macro
//! expands it for both backends of [`Conn`], so the compiler checks it against both. The few
//! statements that differ use a `match` in the function that needs them.

pub mod columns;
mod group_commit;
mod interrupt;
pub mod migrate;
mod operation_scope;
pub mod page;
mod pipeline;
mod pool_guard;
pub mod postgres;
pub mod rows;
pub mod schema;
mod sqlite_executor;
mod statement_cache;
pub mod ttl_cache;
pub mod types;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::{Instrumentation, InstrumentationEvent};
use diesel::sqlite::SqliteConnection;
use diesel::{ConnectionError, ConnectionResult, sql_query};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use futures_util::FutureExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::Notify;

use self::group_commit::GroupCommit;
pub use self::interrupt::WithinDeadline;
pub use self::operation_scope::OperationScope;
use self::pipeline::{PipelinedConn, PipelinedPool};
pub use self::pool_guard::{Detach, PgConn, PoolGuard, PooledConn};
use self::sqlite_executor::INLINE_ROWS;
pub use self::sqlite_executor::{inline_if_few, run_inline};
pub use self::statement_cache::{cached, uncached};
use crate::error::{Error, Result};
use crate::limits::StorageQuotas;
use crate::metrics;

/// SQLite on tokio's blocking pool, except for [`run_inline`] statements, which run inline.
pub type SqliteConn = SyncConnectionWrapper<SqliteConnection, sqlite_executor::SqliteExecutor>;

/// How long a request waits for a free connection before it fails as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections of the background pool, for work that must not wait behind requests.
const BACKGROUND_CONNECTIONS: usize = 2;
/// Maximum number of pipelined connections, each shared by many reads.
const PIPELINED_CONNECTIONS: usize = 4;
/// Maximum attempts of a transaction that the database aborts (serialization failure, deadlock).
const MAX_ATTEMPTS: u32 = 4;

/// Expands a diesel expression for both backends:
/// `on!(conn, |c| users::table.find(id).first(c).await)`.
///
/// Inside it, `Backend` is the backend of the current arm, for `into_boxed::<Backend>()`.
#[macro_export]
macro_rules! on {
    ($conn:expr, |$c:ident| $body:expr) => {
        match &mut $conn.pooled {
            $crate::db::PooledConn::Sqlite(guard) => {
                #[allow(dead_code, reason = "only boxed queries name it")]
                type Backend = diesel::sqlite::Sqlite;
                guard.is_busy = true;
                let $c: &mut $crate::db::SqliteConn = guard;
                let done = $body;
                guard.is_busy = false;
                done
            }
            $crate::db::PooledConn::Postgres(conn) => {
                #[allow(dead_code, reason = "only boxed queries name it")]
                type Backend = diesel::pg::Pg;
                conn.set_busy(true);
                let mut $c: &diesel_async::AsyncPgConnection = conn;
                let $c = &mut $c;
                let done = $body;
                conn.set_busy(false);
                done
            }
        }
    };
}

/// The row lock that a write takes, until commit, on a row it depends on.
///
/// To avoid deadlocks, rows are locked in one order: users (by id), sessions, projects,
/// tasks, comments, labels. A row that will change is locked with [`Lock::Update`] at once: two
/// transactions that upgrade a shared lock would deadlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// The row is only read and must not change. Other transactions may share the lock.
    Share,
    /// The row will be changed.
    Update,
    /// The row will be deleted, with the rows that refer to it.
    Delete,
}

/// Loads the rows of a query and, on PostgreSQL, locks them:
/// `select_locked!(tx, query, Lock::Share)`.
///
/// The statement waits for uncommitted changes to these rows and returns the committed result.
/// SQLite needs no row locks, since it has a single writer.
#[macro_export]
macro_rules! select_locked {
    ($tx:expr, $query:expr, $lock:expr) => {
        match (&mut $tx.pooled, $lock) {
            ($crate::db::PooledConn::Sqlite(c), _) => $query.load(&mut **c).await,
            ($crate::db::PooledConn::Postgres(c), $crate::db::Lock::Share) => {
                $query.for_share().load(&mut &**c).await
            }
            ($crate::db::PooledConn::Postgres(c), $crate::db::Lock::Update) => {
                $query.for_no_key_update().load(&mut &**c).await
            }
            ($crate::db::PooledConn::Postgres(c), $crate::db::Lock::Delete) => {
                $query.for_update().load(&mut &**c).await
            }
        }
    };
}

/// A database connection. By convention a connection inside a transaction is named `tx`.
pub struct Conn {
    #[doc(hidden)]
    pub pooled: PooledConn,
    signals: SignalSet,
}

/// The signals that a commit raises, indexed by [`CommitSignal`].
type SignalSet = [bool; 4];

/// A signal raised after a commit, for readers of the changed data on this instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitSignal {
    /// New events, for the reader of the event log.
    Log = 0,
    /// New outgoing mail, for the job that sends it.
    Mail = 1,
    /// Internal events, which concern sessions and accounts: invalidates the session cache.
    Sessions = 2,
    /// Profiles changed: invalidates the profile cache.
    Profiles = 3,
}

impl Conn {
    const fn new(pooled: PooledConn) -> Self {
        Self {
            pooled,
            signals: [false; 4],
        }
    }

    /// Raises the signal when this transaction commits. A rollback raises nothing.
    pub fn signal_on_commit(&mut self, signal: CommitSignal) {
        self.signals[signal as usize] = true;
    }

    /// Whether this is PostgreSQL, for the few statements that differ.
    pub const fn is_postgres(&self) -> bool {
        matches!(self.pooled, PooledConn::Postgres(_))
    }

    async fn execute(&mut self, sql: &str) -> Result<()> {
        Ok(on!(self, |c| c.batch_execute(sql).await)?)
    }

    /// Like `execute`, with a cached prepared statement.
    async fn execute_prepared(&mut self, sql: &'static str) -> Result<()> {
        on!(self, |c| diesel_async::RunQueryDsl::execute(
            cached(sql_query(sql)),
            c
        )
        .await)?;
        Ok(())
    }

    /// Closes the connection, whose transaction is in an unknown state, instead of reusing it.
    fn discard(self) {
        match self.pooled {
            PooledConn::Sqlite(guard) => guard.discard(),
            PooledConn::Postgres(PgConn::Exclusive(guard)) => guard.discard(),
            PooledConn::Postgres(PgConn::Pipelined(_)) => {}
        }
    }
}

#[derive(Clone)]
enum Pools {
    Sqlite {
        writer: Arc<GroupCommit>,
        readers: Pool<SqliteConn>,
    },
    Postgres {
        exclusive: Pool<AsyncPgConnection>,
        pipelined: Arc<PipelinedPool>,
    },
}

/// The body of a transaction: an async closure whose future is `Send`, which a bound on `AsyncFn`
/// alone cannot express.
pub trait Work<'r, T>: Fn(&'r mut Conn) -> Self::Running {
    type Running: Future<Output = Result<T>> + Send;
}

impl<'r, T, F, R> Work<'r, T> for F
where
    F: Fn(&'r mut Conn) -> R,
    R: Future<Output = Result<T>> + Send,
{
    type Running = R;
}

/// Limits database work on the path of every request to the connection timeout.
pub async fn with_acquire_timeout<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ACQUIRE_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| {
            tracing::warn!("database timeout");
            Err(Error::unavailable())
        })
}

/// The database and its pools. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    /// How much accounts and projects may hold.
    pub quotas: StorageQuotas,
    pools: Pools,
    /// The background pool, for work that must not wait behind requests.
    background: Pools,
    /// The dedicated connection of the readiness check.
    health_check: Pools,
    statements: Counter,
    waits: Histogram,
    signals: Arc<[Notify; 4]>,
    /// The generation of each signal: how often it was raised.
    generations: Arc<[AtomicU64; 4]>,
}

/// The location of the database, parsed from `DATABASE_URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// An SQLite file, created if missing.
    Sqlite(PathBuf),
    /// The connection URL of a PostgreSQL server, as for libpq.
    Postgres(String),
}

impl Location {
    /// Parses `sqlite://path`, `sqlite:path`, `postgres://…` or `postgresql://…`.
    ///
    /// In-memory SQLite is refused: each connection would open its own database.
    pub fn parse(url: &str) -> Option<Self> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Some(Self::Postgres(url.to_owned()));
        }
        let path = url.strip_prefix("sqlite:")?;
        let path = path.strip_prefix("//").unwrap_or(path);
        let path = path.split('?').next().unwrap_or_default();
        (!path.is_empty() && path != ":memory:").then(|| Self::Sqlite(path.into()))
    }
}

/// Counts the statements of a connection.
struct StatementCounter(Counter);

impl Instrumentation for StatementCounter {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if matches!(event, InstrumentationEvent::StartQuery { .. }) {
            self.0.inc();
        }
    }
}

impl Db {
    /// Creates the pools. Connections are opened on first use.
    pub fn open(location: &Location, connections: usize) -> Result<Self> {
        let (statements, uncounted) = (Counter::default(), Counter::default());
        let (pools, aside, check) = match location {
            Location::Sqlite(path) => {
                let path = path.to_string_lossy().into_owned();
                let writer = sqlite_pool(&path, 1, &statements, SQLITE_WRITER)?;
                // Checkpoints belong to no operation, so they are not counted.
                let checkpoint_pool = sqlite_pool(&path, 1, &uncounted, SQLITE_CHECKPOINT)?;
                let writer = Arc::new(GroupCommit::new(writer, checkpoint_pool));
                let readers =
                    |size, statements| sqlite_pool(&path, size, statements, SQLITE_READER);
                let pools = |readers| Pools::Sqlite {
                    writer: Arc::clone(&writer),
                    readers,
                };
                let check = pools(readers(1, &uncounted)?);
                (
                    pools(readers(connections, &statements)?),
                    pools(readers(BACKGROUND_CONNECTIONS, &statements)?),
                    check,
                )
            }
            Location::Postgres(url) => {
                let shared = Arc::new(pipelined_pool(
                    url,
                    PIPELINED_CONNECTIONS.min(connections),
                    &statements,
                )?);
                let pools = |size, statements| {
                    let own = exclusive_pool(url, size, statements)?;
                    Ok::<_, Error>(Pools::Postgres {
                        exclusive: own,
                        pipelined: Arc::clone(&shared),
                    })
                };
                (
                    pools(connections, &statements)?,
                    pools(BACKGROUND_CONNECTIONS, &statements)?,
                    pools(1, &uncounted)?,
                )
            }
        };
        let (waits, bells, changes) = (
            metrics::duration_histogram(),
            Arc::default(),
            Arc::default(),
        );
        Ok(Self {
            quotas: StorageQuotas::default(),
            pools,
            background: aside,
            health_check: check,
            statements,
            waits,
            signals: bells,
            generations: changes,
        })
    }

    /// The maximum number of PostgreSQL connections of a server whose main pool has `count`: the
    /// main, pipelined and background connections, the readiness check, and one for `LISTEN`.
    pub const fn connections(count: usize) -> usize {
        let shared = if count < PIPELINED_CONNECTIONS {
            count
        } else {
            PIPELINED_CONNECTIONS
        };
        count + shared + BACKGROUND_CONNECTIONS + 2
    }

    /// The same database via the background pool. The event log reader and the jobs use it, so that
    /// they make progress while requests occupy the main pool.
    pub fn background_pool(&self) -> Self {
        Self {
            pools: self.background.clone(),
            ..self.clone()
        }
    }

    /// The same database via the connection of the readiness check. Its statements are not counted.
    pub fn health_check_pool(&self) -> Self {
        Self {
            pools: self.health_check.clone(),
            ..self.clone()
        }
    }

    /// The generation of a signal on this instance. Data cached under another generation is stale.
    pub fn generation(&self, signal: CommitSignal) -> u64 {
        self.generations[signal as usize].load(Ordering::Acquire)
    }

    /// A connection for reading. It counts against the share of the current [`OperationScope`].
    pub async fn conn(&self) -> Result<Conn> {
        let share = operation_scope::acquire().await?;
        let pooled = match &self.pools {
            Pools::Sqlite { readers, .. } => {
                PooledConn::Sqlite(PoolGuard::new(self.acquire(readers.get()).await?, share))
            }
            Pools::Postgres { exclusive: own, .. } => PooledConn::Postgres(PgConn::Exclusive(
                Box::new(PoolGuard::new(self.acquire(own.get()).await?, share)),
            )),
        };
        Ok(Conn::new(pooled))
    }

    /// A connection for reading `rows` rows via an index. On PostgreSQL a small read gets a
    /// pipelined connection, which does not count against the operation's share.
    pub async fn conn_for_rows(&self, rows: usize) -> Result<Conn> {
        match &self.pools {
            Pools::Postgres {
                pipelined: shared, ..
            } if rows <= INLINE_ROWS => Ok(Conn::new(PooledConn::Postgres(PgConn::Pipelined(
                self.acquire(shared.get()).await?,
            )))),
            _ => self.conn().await,
        }
    }

    /// Waits for a connection, up to [`ACQUIRE_TIMEOUT`].
    async fn acquire<T, E: std::fmt::Display>(
        &self,
        get: impl Future<Output = std::result::Result<T, E>>,
    ) -> Result<T> {
        let since = Instant::now();
        let conn = tokio::time::timeout(ACQUIRE_TIMEOUT, get).await;
        self.waits.observe(since.elapsed().as_secs_f64());
        match conn {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(error)) => {
                tracing::warn!(cause = %error, "cannot connect to the database");
                Err(Error::unavailable())
            }
            Err(_) => {
                tracing::warn!("database connection pool exhausted");
                Err(Error::unavailable())
            }
        }
    }

    /// Runs `work` in a transaction: commits on `Ok`, rolls back on `Err`.
    ///
    /// Retries `work`, up to 4 attempts in all, when the database aborts the transaction.
    /// Dropping the future in the middle of a transaction closes the connection.
    pub fn transaction<'a, T, F>(&'a self, work: F) -> impl Future<Output = Result<T>> + Send + 'a
    where
        F: AsyncFn(&mut Conn) -> Result<T> + for<'r> Work<'r, T> + Send + Sync + 'a,
        T: Send + 'a,
    {
        self.run_with_retries(work, false)
    }

    /// Like [`transaction`](Self::transaction), for work whose statements are all [`run_inline`].
    pub fn inline_transaction<'a, T, F>(
        &'a self,
        work: F,
    ) -> impl Future<Output = Result<T>> + Send + 'a
    where
        F: AsyncFn(&mut Conn) -> Result<T> + for<'r> Work<'r, T> + Send + Sync + 'a,
        T: Send + 'a,
    {
        self.run_with_retries(work, true)
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "`Send` is promised here, where the compiler can see it"
    )]
    fn run_with_retries<'a, T, F>(
        &'a self,
        work: F,
        is_inline: bool,
    ) -> impl Future<Output = Result<T>> + Send + 'a
    where
        F: for<'r> Work<'r, T> + Send + Sync + 'a,
        T: Send + 'a,
    {
        async move {
            let mut attempt = 1;
            loop {
                match self.run_once(&work, is_inline).await {
                    Err(Error::Aborted(_)) if attempt < MAX_ATTEMPTS => attempt += 1,
                    done => return done,
                }
            }
        }
    }

    async fn run_once<T>(
        &self,
        work: &(impl for<'r> Work<'r, T> + Sync),
        is_inline: bool,
    ) -> Result<T> {
        match &self.pools {
            Pools::Sqlite { writer, .. } => writer.run(self, work, is_inline).await,
            Pools::Postgres { exclusive: own, .. } => {
                let share = operation_scope::acquire().await?;
                let own = self.acquire(own.get()).await?;
                let own = PgConn::Exclusive(Box::new(PoolGuard::new(own, share)));
                let mut open = TransactionGuard(Some(Conn::new(PooledConn::Postgres(own))));
                open.conn().execute("BEGIN").await?;
                let done = match work(open.conn()).await {
                    Ok(value) => open.conn().execute("COMMIT").await.map(|()| value),
                    Err(error) => Err(error),
                };
                if done.is_ok() {
                    self.signal_all(open.close().signals);
                } else if open.conn().execute("ROLLBACK").await.is_ok() {
                    open.close();
                }
                done
            }
        }
    }

    /// Raises a signal: its data has changed.
    pub fn signal(&self, signal: CommitSignal) {
        self.generations[signal as usize].fetch_add(1, Ordering::AcqRel);
        self.signals[signal as usize].notify_one();
    }

    fn signal_all(&self, rings: SignalSet) {
        for signal in [
            CommitSignal::Sessions,
            CommitSignal::Profiles,
            CommitSignal::Log,
            CommitSignal::Mail,
        ] {
            if rings[signal as usize] {
                self.signal(signal);
            }
        }
    }

    /// Waits for the signal. A signal raised since the last call completes it at once.
    pub async fn signalled(&self, signal: CommitSignal) {
        self.signals[signal as usize].notified().await;
    }

    /// Whether this is PostgreSQL, which several instances may share.
    pub const fn is_postgres(&self) -> bool {
        matches!(self.pools, Pools::Postgres { .. })
    }

    /// Sends a PostgreSQL `NOTIFY`. The message is not escaped.
    pub async fn notify(&self, channel: &str, message: &str) -> Result<()> {
        self.conn()
            .await?
            .execute(&format!("NOTIFY {channel}, '{message}'"))
            .await
    }

    /// A PostgreSQL connection that executes `LISTEN`. It leaves the pool for good.
    pub async fn listen(&self, channel: &str) -> Result<AsyncPgConnection> {
        let mut conn = self.conn().await?;
        conn.execute(&format!("LISTEN {channel}")).await?;
        match conn.pooled {
            PooledConn::Postgres(PgConn::Exclusive(guard)) => Ok(guard.take()),
            _ => Err(Error::internal("LISTEN needs PostgreSQL")),
        }
    }

    /// The number of statements sent since the start.
    pub fn statements(&self) -> u64 {
        self.statements.get()
    }

    /// The counter of statements, for the metrics registry.
    pub const fn counted_statements(&self) -> &Counter {
        &self.statements
    }

    /// Seconds spent waiting for connections.
    pub const fn waits(&self) -> &Histogram {
        &self.waits
    }

    /// The current use of the pools.
    pub fn pools(&self) -> Vec<PoolStatus> {
        let pools = match &self.pools {
            Pools::Sqlite { writer, readers } => vec![
                ("writer", writer.pool.status()),
                ("readers", readers.status()),
            ],
            Pools::Postgres { exclusive: own, .. } => vec![("all", own.status())],
        };
        let fill = pools.into_iter().map(|(pool, status)| PoolStatus {
            pool,
            busy: status.size.saturating_sub(status.available),
            idle: status.available,
            unopened: status.max_size.saturating_sub(status.size),
            waiting: status.waiting,
        });
        fill.collect()
    }

    /// Closes the pools. On SQLite it first checkpoints the write-ahead log and truncates it.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { writer, readers } => {
                readers.close();
                if let Ok(pooled) = self.acquire(writer.pool.get()).await
                    && let Err(error) = Conn::new(PooledConn::Sqlite(PoolGuard::new(pooled, None)))
                        .execute("PRAGMA wal_checkpoint(TRUNCATE)")
                        .await
                {
                    tracing::warn!(cause = ?error, "checkpoint failed");
                }
                writer.close();
            }
            Pools::Postgres {
                exclusive: own,
                pipelined: shared,
            } => {
                own.close();
                shared.close().await;
            }
        }
        for pools in [&self.background, &self.health_check] {
            match pools {
                Pools::Sqlite { readers, .. } => readers.close(),
                Pools::Postgres { exclusive: own, .. } => own.close(),
            }
        }
    }
}

/// Connections of a pool by state.
#[derive(Clone, Copy, Debug)]
pub struct PoolStatus {
    /// The name of the pool: `writer` and `readers` on SQLite, `all` on PostgreSQL.
    pub pool: &'static str,
    pub busy: usize,
    /// Open and free.
    pub idle: usize,
    /// May still be opened.
    pub unopened: usize,
    /// Tasks that wait for a connection.
    pub waiting: usize,
}

/// A connection with an open transaction. Dropping it closes the connection instead of reusing it.
struct TransactionGuard(Option<Conn>);

impl TransactionGuard {
    #[expect(
        clippy::expect_used,
        reason = "it is there until `close` consumes the guard"
    )]
    fn conn(&mut self) -> &mut Conn {
        self.0.as_mut().expect("open until closed")
    }

    #[expect(clippy::expect_used, reason = "consumes the guard")]
    fn close(mut self) -> Conn {
        self.0.take().expect("open until closed")
    }
}

impl Drop for TransactionGuard {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            conn.discard();
        }
    }
}

// `synchronous = FULL`: an acknowledged write survives a power cut. There is one writer, so nothing
// waits for SQLite's write lock. Checkpoints run on their own connection; the automatic one, after
// 16,000 pages (64 MB), is for large transactions. `fullfsync` makes macOS flush the disk's write
// cache and has no effect elsewhere.
const SQLITE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; \
     PRAGMA checkpoint_fullfsync = ON; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; \
     PRAGMA cache_size = -16000; PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 16000";
const SQLITE_CHECKPOINT: &str = "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON; \
     PRAGMA busy_timeout = 5000";
// 4 MB hold the interior index pages of a million tasks. The operating system caches the rest.
const SQLITE_READER: &str = "PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; PRAGMA cache_size = -4000; \
     PRAGMA temp_store = MEMORY; PRAGMA query_only = ON";
// `lock_timeout` exceeds PostgreSQL's `deadlock_timeout` of one second, so that a deadlock is
// detected and the transaction retried.
const POSTGRES: &str = "SET statement_timeout = '5s'; SET lock_timeout = '2s'; \
     SET idle_in_transaction_session_timeout = '10s'; SET timezone = 'UTC'";

/// A pool manager that opens connections with `connect` and runs `setup` on each.
fn manager<C, F>(
    statements: &Counter,
    setup: &'static str,
    connect: impl Fn() -> F + Send + Sync + 'static,
) -> AsyncDieselConnectionManager<C>
where
    C: AsyncConnection + 'static,
    F: Future<Output = ConnectionResult<C>> + Send + 'static,
{
    let statements = statements.clone();
    let mut config = ManagerConfig::<C>::default();
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(move |_| {
        let (connecting, statements) = (connect(), statements.clone());
        async move {
            let mut conn = connecting.await?;
            set_up(&mut conn, setup, statements).await.map(|()| conn)
        }
        .boxed()
    });
    AsyncDieselConnectionManager::new_with_config("", config)
}

/// Applies the settings to a new connection and starts counting its statements.
async fn set_up(
    conn: &mut impl AsyncConnection,
    setup: &str,
    statements: Counter,
) -> ConnectionResult<()> {
    conn.batch_execute(setup)
        .await
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    conn.set_instrumentation(StatementCounter(statements));
    Ok(())
}

fn sqlite_pool(
    path: &str,
    size: usize,
    statements: &Counter,
    setup: &'static str,
) -> Result<Pool<SqliteConn>> {
    let path: Arc<str> = path.into();
    let manager = manager(statements, setup, move || {
        let path = Arc::clone(&path);
        async move {
            let mut conn = SqliteConn::establish(&path).await?;
            let registered = conn.spawn_blocking(interrupt::register).await;
            registered.map_err(ConnectionError::CouldntSetupConfiguration)?;
            Ok(conn)
        }
    });
    Pool::builder(manager)
        .max_size(size)
        .build()
        .map_err(Error::internal)
}

fn pipelined_pool(url: &str, size: usize, statements: &Counter) -> Result<PipelinedPool> {
    let (server, statements) = (
        postgres::PgConnector::parse(url).map_err(Error::Internal)?,
        statements.clone(),
    );
    let connect = move || {
        let (server, statements) = (server.clone(), statements.clone());
        async move {
            let (mut conn, ended) = server.connect_with_end_token().await?;
            set_up(&mut conn, POSTGRES, statements).await?;
            Ok(PipelinedConn::new(conn, ended))
        }
        .boxed()
    };
    Ok(PipelinedPool::new(size, Box::new(connect)))
}

fn exclusive_pool(url: &str, size: usize, statements: &Counter) -> Result<Pool<AsyncPgConnection>> {
    let server = postgres::PgConnector::parse(url).map_err(Error::Internal)?;
    let manager = manager(statements, POSTGRES, move || {
        let server = server.clone();
        async move { server.connect().await }
    });
    Pool::builder(manager)
        .max_size(size)
        .build()
        .map_err(Error::internal)
}
