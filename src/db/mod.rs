//! The database: one [`Db`] over SQLite or PostgreSQL, chosen by URL.
//!
//! A query is written once, as a plain diesel expression inside [`on!`](crate::on), which puts it into both arms of
//! [`Conn`]: the compiler checks it against both databases. What truly differs is a `match` in the function that needs it.

mod batch;
mod brief;
pub mod columns;
mod interrupt;
pub mod lately;
mod loan;
pub mod migrate;
mod operation_scope;
pub mod page;
pub mod postgres;
mod prepared;
pub mod rows;
pub mod schema;
mod shared;
pub mod types;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::{Instrumentation, InstrumentationEvent};
use diesel::sqlite::SqliteConnection;
use diesel::{ConnectionError, ConnectionResult, sql_query};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use futures_util::FutureExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::Notify;

use self::batch::Batch;
use self::brief::FEW;
pub use self::brief::{brief, looked_up};
pub use self::interrupt::WithinDeadline;
pub use self::loan::{Leaves, Lent, Loan, Pooled};
pub use self::operation_scope::OperationScope;
pub use self::prepared::{planned_anew, prepared};
use self::shared::{Line, Shared};
use crate::error::{Error, Result};
use crate::limits::Quotas;
use crate::metrics;

/// SQLite behind tokio's blocking pool, but for what is [`brief`].
pub type SqliteConn = SyncConnectionWrapper<SqliteConnection, brief::Place>;

/// How long a request waits for a free connection before it is told to come back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections for those who must not wait behind requests.
const ASIDE: usize = 2;
/// Connections over which many read at once, of those that there may be.
const SHARED: usize = 4;
/// How often a transaction is tried that the database aborted for the sake of another one.
const ATTEMPTS: u32 = 4;

/// Puts one diesel expression into both arms: `on!(conn, |c| users::table.find(id).first(c).await)`.
///
/// Inside of it `Backend` names the arm's backend, for `into_boxed::<Backend>()`.
#[macro_export]
macro_rules! on {
    ($conn:expr, |$c:ident| $body:expr) => {
        match &mut $conn.pooled {
            $crate::db::Pooled::Sqlite(lent) => {
                #[allow(dead_code, reason = "only boxed queries name it")]
                type Backend = diesel::sqlite::Sqlite;
                lent.is_busy = true;
                let $c: &mut $crate::db::SqliteConn = lent;
                let done = $body;
                lent.is_busy = false;
                done
            }
            $crate::db::Pooled::Postgres(loan) => {
                #[allow(dead_code, reason = "only boxed queries name it")]
                type Backend = diesel::pg::Pg;
                loan.set_busy(true);
                let mut $c: &diesel_async::AsyncPgConnection = loan;
                let $c = &mut $c;
                let done = $body;
                loan.set_busy(false);
                done
            }
        }
    };
}

/// How a row that decides over a write is locked until the write is committed.
///
/// There is one order in which rows are locked: users (by id), sessions, projects, tasks, comments and labels. A row that
/// will be changed is locked for that at once: of two that share a lock and both want to change the row, each would wait
/// for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Others may share the lock, and nobody changes the row.
    Share,
    /// The row will be changed.
    Update,
    /// The row will be deleted, and with it what refers to it.
    Delete,
}

/// Loads the rows of a query, `locked!(tx, query, Lock::Share)`, and locks them on PostgreSQL: a change by a transaction
/// that is not committed is waited for, and the rows are those that it leaves. SQLite has one writer, beside which nothing
/// changes.
#[macro_export]
macro_rules! locked {
    ($tx:expr, $query:expr, $lock:expr) => {
        match (&mut $tx.pooled, $lock) {
            ($crate::db::Pooled::Sqlite(c), _) => $query.load(&mut **c).await,
            ($crate::db::Pooled::Postgres(c), $crate::db::Lock::Share) => $query.for_share().load(&mut &**c).await,
            ($crate::db::Pooled::Postgres(c), $crate::db::Lock::Update) => {
                $query.for_no_key_update().load(&mut &**c).await
            }
            ($crate::db::Pooled::Postgres(c), $crate::db::Lock::Delete) => $query.for_update().load(&mut &**c).await,
        }
    };
}

/// A connection; one inside a transaction is called `tx`.
pub struct Conn {
    #[doc(hidden)]
    pub pooled: Pooled,
    rings: Rings,
}

/// Which bells a commit rings.
type Rings = [bool; 4];

/// Who waits for a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// The tail of the event log.
    Log = 0,
    /// The job that sends mail.
    Mail = 1,
    /// Whoever remembers sessions.
    Sessions = 2,
    /// Whoever remembers the names of people.
    Profiles = 3,
}

impl Conn {
    const fn new(pooled: Pooled) -> Self {
        Self { pooled, rings: [false; 4] }
    }

    /// Marks the transaction as one that somebody waits for: its commit rings the bell.
    pub fn ring_on_commit(&mut self, bell: Bell) {
        self.rings[bell as usize] = true;
    }

    /// Whether this is PostgreSQL, for the few statements that differ.
    pub const fn is_postgres(&self) -> bool {
        matches!(self.pooled, Pooled::Postgres(_))
    }

    async fn execute(&mut self, sql: &str) -> Result<()> {
        Ok(on!(self, |c| c.batch_execute(sql).await)?)
    }

    /// The same for one statement that is sent often.
    async fn execute_prepared(&mut self, sql: &'static str) -> Result<()> {
        on!(self, |c| diesel_async::RunQueryDsl::execute(prepared(sql_query(sql)), c).await)?;
        Ok(())
    }

    /// Does not give the connection back, which has a transaction in an unknown state.
    fn discard(self) {
        match self.pooled {
            Pooled::Sqlite(lent) => lent.discard(),
            Pooled::Postgres(Loan::Own(lent)) => lent.discard(),
            Pooled::Postgres(Loan::Shared(_)) => {}
        }
    }
}

#[derive(Clone)]
enum Pools {
    Sqlite { writer: Arc<Batch>, readers: Pool<SqliteConn> },
    Postgres { own: Pool<AsyncPgConnection>, shared: Arc<Shared> },
}

/// What runs inside a transaction: an async closure whose future may move between threads. (The bound on `AsyncFn` alone
/// cannot say the latter.)
pub trait Work<'r, T>: Fn(&'r mut Conn) -> Self::Running {
    /// The closure's future.
    type Running: Future<Output = Result<T>> + Send;
}

impl<'r, T, F, R> Work<'r, T> for F
where
    F: Fn(&'r mut Conn) -> R,
    R: Future<Output = Result<T>> + Send,
{
    type Running = R;
}

/// Does not wait for a database that does not answer, where everybody has to pass.
pub async fn soon<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ACQUIRE_TIMEOUT, work).await.unwrap_or_else(|_| {
        tracing::warn!("the database does not answer");
        Err(Error::unavailable())
    })
}

/// The database and its pools; cheap to clone.
#[derive(Clone)]
pub struct Db {
    /// How much accounts and projects may hold.
    pub quotas: Quotas,
    pools: Pools,
    /// Where those find a connection who must not wait behind requests.
    aside: Pools,
    /// The connection of the readiness check, which shares none with anybody.
    check: Pools,
    statements: Counter,
    waits: Histogram,
    bells: Arc<[Notify; 4]>,
    /// How often each bell was rung.
    changes: Arc<[AtomicU64; 4]>,
}

/// Where the database is, read from `DATABASE_URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file, created when missing.
    Sqlite(PathBuf),
    /// A server, as a libpq connection URL.
    Postgres(String),
}

impl Location {
    /// Reads `sqlite://path`, `sqlite:path`, `postgres://…` or `postgresql://…`.
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

/// Counts the statements a connection sends.
struct Count(Counter);

impl Instrumentation for Count {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if matches!(event, InstrumentationEvent::StartQuery { .. }) {
            self.0.inc();
        }
    }
}

impl Db {
    /// Opens the pools; nothing is connected yet.
    pub fn open(location: &Location, connections: usize) -> Result<Self> {
        let (statements, uncounted) = (Counter::default(), Counter::default());
        let (pools, aside, check) = match location {
            Location::Sqlite(path) => {
                let path = path.to_string_lossy().into_owned();
                let writer = sqlite_pool(&path, 1, &statements, SQLITE_WRITER)?;
                // What it sends is no operation's.
                let folder = sqlite_pool(&path, 1, &uncounted, SQLITE_FOLDER)?;
                let writer = Arc::new(Batch::new(writer, folder));
                let readers = |size, statements| sqlite_pool(&path, size, statements, SQLITE_READER);
                let pools = |readers| Pools::Sqlite { writer: Arc::clone(&writer), readers };
                let check = pools(readers(1, &uncounted)?);
                (pools(readers(connections, &statements)?), pools(readers(ASIDE, &statements)?), check)
            }
            Location::Postgres(url) => {
                let shared = Arc::new(postgres_shared(url, SHARED.min(connections), &statements)?);
                let pools = |size, statements| {
                    let own = postgres_pool(url, size, statements)?;
                    Ok::<_, Error>(Pools::Postgres { own, shared: Arc::clone(&shared) })
                };
                (pools(connections, &statements)?, pools(ASIDE, &statements)?, pools(1, &uncounted)?)
            }
        };
        let (waits, bells, changes) = (metrics::seconds(), Arc::default(), Arc::default());
        Ok(Self { quotas: Quotas::default(), pools, aside, check, statements, waits, bells, changes })
    }

    /// How many connections to PostgreSQL a server has that keeps so many: beside them those that many read over, those
    /// for its own work, one for the readiness check, and one to listen on.
    pub const fn connections(kept: usize) -> usize {
        let shared = if kept < SHARED { kept } else { SHARED };
        kept + shared + ASIDE + 2
    }

    /// The same database by a few connections of its own: for the tail of the log and the jobs, which go on when requests
    /// hold all others.
    pub fn aside(&self) -> Self {
        Self { pools: self.aside.clone(), ..self.clone() }
    }

    /// The same database by the connection of the readiness check, whose statements are no operation's.
    pub fn for_check(&self) -> Self {
        Self { pools: self.check.clone(), ..self.clone() }
    }

    /// How often a bell was rung, as far as this instance knows: what was read before is worth nothing after.
    pub fn changes(&self, bell: Bell) -> u64 {
        self.changes[bell as usize].load(Ordering::Acquire)
    }

    /// A connection for reading, of the share of the operation's [`OperationScope`].
    pub async fn conn(&self) -> Result<Conn> {
        let share = operation_scope::acquire().await?;
        let pooled = match &self.pools {
            Pools::Sqlite { readers, .. } => Pooled::Sqlite(Lent::new(self.acquire(readers.get()).await?, share)),
            Pools::Postgres { own, .. } => {
                Pooled::Postgres(Loan::Own(Box::new(Lent::new(self.acquire(own.get()).await?, share))))
            }
        };
        Ok(Conn::new(pooled))
    }

    /// A connection for reading so many rows that an index leads to: if they are few, perhaps one that others read over
    /// too.
    pub async fn conn_for(&self, rows: usize) -> Result<Conn> {
        match &self.pools {
            Pools::Postgres { shared, .. } if rows <= FEW => {
                Ok(Conn::new(Pooled::Postgres(Loan::Shared(self.acquire(shared.get()).await?))))
            }
            _ => self.conn().await,
        }
    }

    /// Waits for a connection, but not for ever.
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
                tracing::warn!(cause = %error, "no database connection");
                Err(Error::unavailable())
            }
            Err(_) => {
                tracing::warn!("every database connection is busy");
                Err(Error::unavailable())
            }
        }
    }

    /// Runs `work` in a transaction that is committed when it succeeds and rolled back when it fails.
    ///
    /// `work` runs again when the database aborted it for the sake of another transaction. A transaction that is
    /// dropped in the middle takes its connection with it.
    pub fn transaction<'a, T, F>(&'a self, work: F) -> impl Future<Output = Result<T>> + Send + 'a
    where
        F: AsyncFn(&mut Conn) -> Result<T> + for<'r> Work<'r, T> + Send + Sync + 'a,
        T: Send + 'a,
    {
        self.attempts(work, false)
    }

    /// The same for work whose statements are [`brief`].
    pub fn brief_transaction<'a, T, F>(&'a self, work: F) -> impl Future<Output = Result<T>> + Send + 'a
    where
        F: AsyncFn(&mut Conn) -> Result<T> + for<'r> Work<'r, T> + Send + Sync + 'a,
        T: Send + 'a,
    {
        self.attempts(work, true)
    }

    #[expect(clippy::manual_async_fn, reason = "`Send` is promised here, where the compiler can see it")]
    fn attempts<'a, T, F>(&'a self, work: F, is_brief: bool) -> impl Future<Output = Result<T>> + Send + 'a
    where
        F: for<'r> Work<'r, T> + Send + Sync + 'a,
        T: Send + 'a,
    {
        async move {
            let mut attempt = 1;
            loop {
                match self.attempt(&work, is_brief).await {
                    Err(Error::Aborted(_)) if attempt < ATTEMPTS => attempt += 1,
                    done => return done,
                }
            }
        }
    }

    async fn attempt<T>(&self, work: &(impl for<'r> Work<'r, T> + Sync), is_brief: bool) -> Result<T> {
        match &self.pools {
            Pools::Sqlite { writer, .. } => writer.join(self, work, is_brief).await,
            Pools::Postgres { own, .. } => {
                let share = operation_scope::acquire().await?;
                let own = self.acquire(own.get()).await?;
                let own = Loan::Own(Box::new(Lent::new(own, share)));
                let mut open = Open(Some(Conn::new(Pooled::Postgres(own))));
                open.conn().execute("BEGIN").await?;
                let done = match work(open.conn()).await {
                    Ok(value) => open.conn().execute("COMMIT").await.map(|()| value),
                    Err(error) => Err(error),
                };
                if done.is_ok() {
                    self.ring_all(open.close().rings);
                } else if open.conn().execute("ROLLBACK").await.is_ok() {
                    open.close();
                }
                done
            }
        }
    }

    /// Rings a bell: something was committed that is waited for.
    pub fn ring(&self, bell: Bell) {
        self.changes[bell as usize].fetch_add(1, Ordering::AcqRel);
        self.bells[bell as usize].notify_one();
    }

    fn ring_all(&self, rings: Rings) {
        for bell in [Bell::Sessions, Bell::Profiles, Bell::Log, Bell::Mail] {
            if rings[bell as usize] {
                self.ring(bell);
            }
        }
    }

    /// Waits until a commit has rung the bell since the last time.
    pub async fn rung(&self, bell: Bell) {
        self.bells[bell as usize].notified().await;
    }

    /// Whether this is PostgreSQL, which several instances may share.
    pub const fn is_postgres(&self) -> bool {
        matches!(self.pools, Pools::Postgres { .. })
    }

    /// Has PostgreSQL tell everybody who listens on a channel.
    pub async fn notify(&self, channel: &str, message: &str) -> Result<()> {
        self.conn().await?.execute(&format!("NOTIFY {channel}, '{message}'")).await
    }

    /// A connection of PostgreSQL's own to listen on a channel; it does not go back to the pool.
    pub async fn listen(&self, channel: &str) -> Result<AsyncPgConnection> {
        let mut conn = self.conn().await?;
        conn.execute(&format!("LISTEN {channel}")).await?;
        match conn.pooled {
            Pooled::Postgres(Loan::Own(lent)) => Ok(lent.take()),
            _ => Err(Error::internal("no channels here")),
        }
    }

    /// How many statements were sent since the start.
    pub fn statements(&self) -> u64 {
        self.statements.get()
    }

    /// The same, as it is counted.
    pub const fn counted_statements(&self) -> &Counter {
        &self.statements
    }

    /// How long was waited for connections.
    pub const fn waits(&self) -> &Histogram {
        &self.waits
    }

    /// How full the pools are.
    pub fn pools(&self) -> Vec<Fill> {
        let pools = match &self.pools {
            Pools::Sqlite { writer, readers } => vec![("writer", writer.pool.status()), ("readers", readers.status())],
            Pools::Postgres { own, .. } => vec![("all", own.status())],
        };
        let fill = pools.into_iter().map(|(pool, status)| Fill {
            pool,
            busy: status.size.saturating_sub(status.available),
            idle: status.available,
            unopened: status.max_size.saturating_sub(status.size),
            waiting: status.waiting,
        });
        fill.collect()
    }

    /// Closes the pools; on SQLite the log is folded into the database file first.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { writer, readers } => {
                readers.close();
                if let Ok(pooled) = self.acquire(writer.pool.get()).await
                    && let Err(error) = Conn::new(Pooled::Sqlite(Lent::new(pooled, None)))
                        .execute("PRAGMA wal_checkpoint(TRUNCATE)")
                        .await
                {
                    tracing::warn!(cause = ?error, "checkpoint failed");
                }
                writer.close();
            }
            Pools::Postgres { own, shared } => {
                own.close();
                shared.close().await;
            }
        }
        for pools in [&self.aside, &self.check] {
            match pools {
                Pools::Sqlite { readers, .. } => readers.close(),
                Pools::Postgres { own, .. } => own.close(),
            }
        }
    }
}

/// How many of a pool's connections are in use.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// What it is for: the `writer` and the `readers` of SQLite, or `all`.
    pub pool: &'static str,
    /// On loan.
    pub busy: usize,
    /// Connected, and free.
    pub idle: usize,
    /// Not connected yet.
    pub unopened: usize,
    /// Who waits for one.
    pub waiting: usize,
}

/// A connection with a transaction open on it: dropped half-way, it is closed and not reused.
struct Open(Option<Conn>);

impl Open {
    #[expect(clippy::expect_used, reason = "it is there until `close` consumes the guard")]
    fn conn(&mut self) -> &mut Conn {
        self.0.as_mut().expect("open until closed")
    }

    #[expect(clippy::expect_used, reason = "consumes the guard")]
    fn close(mut self) -> Conn {
        self.0.take().expect("open until closed")
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            conn.discard();
        }
    }
}

// FULL: an acknowledged write survives a power cut. One writer at a time, so its lock is never waited for in SQLite. The
// log is folded into the file beside it, and by itself only after 64 MB of what are no small transactions. On macOS a
// disk is told to write by `fullfsync` alone; elsewhere it says nothing.
const SQLITE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; \
     PRAGMA checkpoint_fullfsync = ON; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; \
     PRAGMA cache_size = -16000; PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 16000";
const SQLITE_FOLDER: &str = "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON; \
     PRAGMA busy_timeout = 5000";
// 4 MB hold the inner pages of the indexes of a million tasks; what else is read the system has in memory too.
const SQLITE_READER: &str = "PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; PRAGMA cache_size = -4000; \
     PRAGMA temp_store = MEMORY; PRAGMA query_only = ON";
// PostgreSQL looks for a deadlock after a second: a lock is waited for longer, so that a deadlock is found, and tried again.
const POSTGRES: &str = "SET statement_timeout = '5s'; SET lock_timeout = '2s'; \
     SET idle_in_transaction_session_timeout = '10s'; SET timezone = 'UTC'";

/// Makes connections by `connect`, which knows where to, and begins each with `setup`.
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
            begin(&mut conn, setup, statements).await.map(|()| conn)
        }
        .boxed()
    });
    AsyncDieselConnectionManager::new_with_config("", config)
}

/// Begins a connection by its settings, and counts its statements from then on.
async fn begin(conn: &mut impl AsyncConnection, setup: &str, statements: Counter) -> ConnectionResult<()> {
    conn.batch_execute(setup).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    conn.set_instrumentation(Count(statements));
    Ok(())
}

fn sqlite_pool(path: &str, size: usize, statements: &Counter, setup: &'static str) -> Result<Pool<SqliteConn>> {
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
    Pool::builder(manager).max_size(size).build().map_err(Error::internal)
}

fn postgres_shared(url: &str, size: usize, statements: &Counter) -> Result<Shared> {
    let (server, statements) = (postgres::Server::parse(url).map_err(Error::Internal)?, statements.clone());
    let connect = move || {
        let (server, statements) = (server.clone(), statements.clone());
        async move {
            let (mut conn, ended) = server.connect_noting_its_end().await?;
            begin(&mut conn, POSTGRES, statements).await?;
            Ok(Line::new(conn, ended))
        }
        .boxed()
    };
    Ok(Shared::new(size, Box::new(connect)))
}

fn postgres_pool(url: &str, size: usize, statements: &Counter) -> Result<Pool<AsyncPgConnection>> {
    let server = postgres::Server::parse(url).map_err(Error::Internal)?;
    let manager = manager(statements, POSTGRES, move || {
        let server = server.clone();
        async move { server.connect().await }
    });
    Pool::builder(manager).max_size(size).build().map_err(Error::internal)
}
