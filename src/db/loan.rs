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
use super::shared::Line;

/// A connection from a pool of either backend.
pub enum Pooled {
    Sqlite(Lent<Object<SqliteConn>>),
    Postgres(Loan),
}

/// A PostgreSQL connection.
pub enum Loan {
    /// Exclusive, as transactions and long reads need it.
    Own(Box<Lent<Object<AsyncPgConnection>>>),
    /// Pipelined: shared with other short reads.
    Shared(Line),
}

impl Loan {
    /// Records whether a statement is running.
    #[doc(hidden)]
    pub fn set_busy(&mut self, is_busy: bool) {
        if let Self::Own(lent) = self {
            lent.is_busy = is_busy;
        }
    }
}

impl Deref for Loan {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        match self {
            Self::Own(lent) => lent,
            Self::Shared(line) => line.conn(),
        }
    }
}

/// An exclusive connection. If it is dropped while a statement runs, it returns to the pool only
/// after the statement has ended.
pub struct Lent<O: Leaves> {
    conn: Option<O>,
    #[doc(hidden)]
    pub is_busy: bool,
    /// The permit of the owner's share, released after the connection.
    share: Option<OwnedSemaphorePermit>,
}

impl<O: Leaves> Lent<O> {
    pub(super) const fn new(conn: O, share: Option<OwnedSemaphorePermit>) -> Self {
        Self { conn: Some(conn), is_busy: false, share }
    }

    /// Detaches the connection from its pool.
    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    pub(super) fn take(mut self) -> O::Target {
        self.conn.take().expect("lent").leave()
    }

    /// Closes the connection instead of returning it: its transaction is in an unknown state.
    pub(super) fn discard(mut self) {
        self.end(false);
    }

    /// Keeps the slot in the pool until all statements sent over the connection have ended.
    fn end(&mut self, is_reused: bool) {
        if let Some(mut conn) = self.conn.take() {
            let share = self.share.take();
            tokio::spawn(async move {
                let _share = share;
                // An empty batch ends after everything sent before it.
                let ended = conn.batch_execute("").await;
                if !is_reused || ended.is_err() {
                    drop(conn.leave());
                }
            });
        }
    }
}

impl<O: Leaves> Deref for Lent<O> {
    type Target = O::Target;

    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    fn deref(&self) -> &O::Target {
        self.conn.as_ref().expect("lent")
    }
}

impl<O: Leaves> DerefMut for Lent<O> {
    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    fn deref_mut(&mut self) -> &mut O::Target {
        self.conn.as_mut().expect("lent")
    }
}

impl<O: Leaves> Drop for Lent<O> {
    fn drop(&mut self) {
        if self.is_busy {
            self.end(O::IS_REUSED);
        }
    }
}

/// A pooled connection that can be detached from its pool.
pub trait Leaves: DerefMut<Target: SimpleAsyncConnection + Sized + Send> + Send + 'static {
    /// Whether the pool reuses the connection after an abandoned statement.
    const IS_REUSED: bool;

    /// Detaches the connection, which frees its slot.
    fn leave(self) -> Self::Target;
}

impl Leaves for Object<SqliteConn> {
    /// The thread of the statement drops its reference to the connection slightly after its lock,
    /// a state that the pool does not expect.
    const IS_REUSED: bool = false;

    fn leave(self) -> SqliteConn {
        Self::take(self)
    }
}

impl Leaves for Object<AsyncPgConnection> {
    const IS_REUSED: bool = true;

    fn leave(self) -> AsyncPgConnection {
        Self::take(self)
    }
}
