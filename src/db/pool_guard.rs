//! Guards for pooled connections, which handle futures dropped in the middle of a statement.
//!
//! Such a statement runs on, in a thread (SQLite) or on the server (PostgreSQL). Until it ends, its
//! connection keeps its slot in the pool. So there are never more running statements than
//! connections, and no other request gets a connection that is still busy.

use std::ops::{Deref, DerefMut};

use diesel_async::pooled_connection::deadpool::Object;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::sync::OwnedSemaphorePermit;

use super::SqliteConn;
use super::pipeline::PipelinedConn;

/// A connection from a pool of either backend.
pub enum PooledConn {
    Sqlite(PoolGuard<Object<SqliteConn>>),
    Postgres(PgConn),
}

/// A PostgreSQL connection.
pub enum PgConn {
    /// Exclusive, as transactions and long reads need it.
    Exclusive(Box<PoolGuard<Object<AsyncPgConnection>>>),
    /// Pipelined: shared with other short reads.
    Pipelined(PipelinedConn),
}

impl PgConn {
    /// Records whether a statement is running.
    #[doc(hidden)]
    pub fn set_busy(&mut self, is_busy: bool) {
        if let Self::Exclusive(lent) = self {
            lent.is_busy = is_busy;
        }
    }
}

impl Deref for PgConn {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        match self {
            Self::Exclusive(lent) => lent,
            Self::Pipelined(line) => line.conn(),
        }
    }
}

/// An exclusive connection. If it is dropped while a statement runs, it returns to the pool only
/// after the statement has ended.
pub struct PoolGuard<O: Detach> {
    conn: Option<O>,
    #[doc(hidden)]
    pub is_busy: bool,
    /// The permit of the owner's share, released after the connection.
    share: Option<OwnedSemaphorePermit>,
}

impl<O: Detach> PoolGuard<O> {
    pub(super) const fn new(conn: O, share: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            conn: Some(conn),
            is_busy: false,
            share,
        }
    }

    /// Detaches the connection from its pool.
    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    pub(super) fn take(mut self) -> O::Target {
        self.conn.take().expect("lent").detach()
    }

    /// Closes the connection instead of returning it: its transaction is in an unknown state.
    pub(super) fn discard(mut self) {
        self.retire(false);
    }

    /// Keeps the slot in the pool until all statements sent over the connection have ended.
    fn retire(&mut self, is_reused: bool) {
        if let Some(mut conn) = self.conn.take() {
            let share = self.share.take();
            tokio::spawn(async move {
                let _share = share;
                // An empty batch ends after everything sent before it.
                let ended = conn.batch_execute("").await;
                if !is_reused || ended.is_err() {
                    drop(conn.detach());
                }
            });
        }
    }
}

impl<O: Detach> Deref for PoolGuard<O> {
    type Target = O::Target;

    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    fn deref(&self) -> &O::Target {
        self.conn.as_ref().expect("lent")
    }
}

impl<O: Detach> DerefMut for PoolGuard<O> {
    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    fn deref_mut(&mut self) -> &mut O::Target {
        self.conn.as_mut().expect("lent")
    }
}

impl<O: Detach> Drop for PoolGuard<O> {
    fn drop(&mut self) {
        if self.is_busy {
            self.retire(O::IS_REUSABLE);
        }
    }
}

/// A pooled connection that can be detached from its pool.
pub trait Detach: DerefMut<Target: SimpleAsyncConnection + Sized + Send> + Send + 'static {
    /// Whether the pool reuses the connection after an abandoned statement.
    const IS_REUSABLE: bool;

    /// Detaches the connection, which frees its slot.
    fn detach(self) -> Self::Target;
}

impl Detach for Object<SqliteConn> {
    /// The thread of the statement drops its reference to the connection slightly after its lock,
    /// a state that the pool does not expect.
    const IS_REUSABLE: bool = false;

    fn detach(self) -> SqliteConn {
        Self::take(self)
    }
}

impl Detach for Object<AsyncPgConnection> {
    const IS_REUSABLE: bool = true;

    fn detach(self) -> AsyncPgConnection {
        Self::take(self)
    }
}
