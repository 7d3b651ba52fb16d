//! Connections on loan, and what becomes of one whose borrower goes away in the middle of a statement.
//!
//! The statement runs on, in a thread or on the server. Until it ends, its connection keeps its place in the pool: there
//! are never more statements than connections, whether somebody waits for them or not, and nobody is lent a connection
//! on which their own would wait for it.

use std::ops::{Deref, DerefMut};

use diesel_async::pooled_connection::deadpool::Object;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::sync::OwnedSemaphorePermit;

use super::SqliteConn;
use super::shared::Line;

/// A connection on loan from its pool.
pub enum Pooled {
    /// To the embedded database.
    Sqlite(Lent<Object<SqliteConn>>),
    /// To a PostgreSQL server.
    Postgres(Loan),
}

/// A connection to PostgreSQL.
pub enum Loan {
    /// For nobody else meanwhile.
    Own(Box<Lent<Object<AsyncPgConnection>>>),
    /// For others too.
    Shared(Line),
}

impl Loan {
    /// Notes whether a statement is under way.
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

/// A connection that is its borrower's alone.
pub struct Lent<O: Leaves> {
    conn: Option<O>,
    #[doc(hidden)]
    pub is_busy: bool,
    /// Of the owner's share, returned after the connection.
    share: Option<OwnedSemaphorePermit>,
}

impl<O: Leaves> Lent<O> {
    pub(super) const fn new(conn: O, share: Option<OwnedSemaphorePermit>) -> Self {
        Self { conn: Some(conn), is_busy: false, share }
    }

    /// Takes it out of its pool for good.
    #[expect(clippy::expect_used, reason = "it is there until it is dropped")]
    pub(super) fn take(mut self) -> O::Target {
        self.conn.take().expect("lent").leave()
    }

    /// Closes it instead of giving it back: the way out of a transaction in an unknown state.
    pub(super) fn discard(mut self) {
        self.end(false);
    }

    /// Has its place taken until what was sent over it has ended.
    fn end(&mut self, is_reused: bool) {
        if let Some(mut conn) = self.conn.take() {
            let share = self.share.take();
            tokio::spawn(async move {
                let _share = share;
                // Nothing to do, which is done after what was sent before.
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

/// A pool's connection that can leave it.
pub trait Leaves: DerefMut<Target: SimpleAsyncConnection + Sized + Send> + Send + 'static {
    /// Whether it is given back after a statement that nobody waited for.
    const IS_REUSED: bool;

    /// Leaves its place to another.
    fn leave(self) -> Self::Target;
}

impl Leaves for Object<SqliteConn> {
    /// The thread of the statement holds it a little longer than its lock, which the pool does not expect.
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
