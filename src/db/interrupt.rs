//! Cancels an SQLite statement at the deadline of its operation, or when the operation is dropped.
//!
//! diesel 2.3 offers neither `sqlite3_interrupt` nor a progress handler, and calling them directly
//! is unsafe. It does offer SQL functions in Rust: a condition on many rows includes
//! [`WithinDeadline`], which SQLite calls for each row on the thread of the statement, and whose
//! error ends the statement. The rows that a statement returns are checked too ([`super::rows`]).
//! PostgreSQL has `statement_timeout`.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::result::{DatabaseErrorKind, Error};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::Bool;
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel::{QueryResult, define_sql_function};

use super::OperationScope;
use crate::backend_sql;

/// Time limit of one statement, as `statement_timeout` on PostgreSQL.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows between two readings of the clock.
const ROWS_PER_CLOCK_READ: u32 = 64;
/// PostgreSQL's message, which [`crate::error`] recognizes.
const TIMEOUT_MESSAGE: &str = "canceling statement due to statement timeout";

thread_local! {
    static LIMIT: RefCell<Option<StatementLimit>> = const { RefCell::new(None) };
}

struct StatementLimit {
    deadline: Instant,
    is_abandoned: Arc<AtomicBool>,
    rows: Cell<u32>,
}

/// Cancels the statement when dropped. Kept by the future that waits for its result.
pub(super) struct CancelGuard(Arc<AtomicBool>);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Wraps a statement, to be run on another thread, so that it observes the limits of the current
/// operation.
pub(super) fn with_limit<R>(
    statement: impl FnOnce() -> R,
) -> (Option<CancelGuard>, impl FnOnce() -> R) {
    let is_abandoned = Arc::new(AtomicBool::new(false));
    let deadline = OperationScope::current()
        .map(|scope| scope.deadline().min(Instant::now() + STATEMENT_TIMEOUT));
    let waiter = deadline.map(|_| CancelGuard(Arc::clone(&is_abandoned)));
    let statement = move || {
        let limit = deadline.map(|deadline| StatementLimit {
            deadline,
            is_abandoned,
            rows: Cell::new(0),
        });
        LIMIT.set(limit);
        let done = statement();
        LIMIT.set(None);
        done
    };
    (waiter, statement)
}

/// Fails if the statement on this thread must end. Called for each row.
pub(super) fn check() -> QueryResult<()> {
    let may_go_on = LIMIT.with_borrow(|limit| {
        limit.as_ref().is_none_or(
            |StatementLimit {
                 deadline,
                 is_abandoned,
                 rows,
             }| {
                rows.set(rows.get().wrapping_add(1));
                !is_abandoned.load(Ordering::Relaxed)
                    && (!rows.get().is_multiple_of(ROWS_PER_CLOCK_READ)
                        || Instant::now() < *deadline)
            },
        )
    });
    if may_go_on {
        Ok(())
    } else {
        Err(Error::DatabaseError(
            DatabaseErrorKind::Unknown,
            Box::new(TIMEOUT_MESSAGE.to_owned()),
        ))
    }
}

define_sql_function! {
    fn within_deadline() -> Bool;
}

#[derive(Debug)]
struct DeadlineCheck;

impl ToSql<Bool, Sqlite> for DeadlineCheck {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        check().map_err(|_| TIMEOUT_MESSAGE)?;
        out.set_value(1_i32);
        Ok(IsNull::No)
    }
}

/// Registers the function with a connection.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    within_deadline_utils::register_nondeterministic_impl(conn, || DeadlineCheck)
}

backend_sql! {
    /// True for every row until the deadline. Make it the first condition of a statement that may
    /// visit many rows.
    WithinDeadline: Bool,
    postgres "true",
    sqlite "within_deadline()"
}

#[cfg(test)]
mod tests {
    use diesel::dsl::sql;
    use diesel::sql_types::BigInt;

    use super::super::rows::RunQueryDsl;
    use super::super::{Db, Location};
    use super::*;
    use crate::error::{Code, Error, Result};
    use crate::on;

    fn database() -> (tempfile::TempDir, Db) {
        let directory = tempfile::tempdir().expect("a directory");
        let db = Db::open(&Location::Sqlite(directory.path().join("a.db")), 1).expect("a database");
        (directory, db)
    }

    fn scope(deadline: Duration) -> OperationScope {
        let connections = Arc::new(tokio::sync::Semaphore::new(1));
        OperationScope::new(connections, Instant::now() + deadline, Arc::new(()), 0)
    }

    /// An endless statement that returns no row.
    async fn count(db: &Db) -> Result<i64> {
        let rows = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                     SELECT count(*) FROM n WHERE within_deadline())";
        let mut conn = db.conn().await?;
        Ok(on!(conn, |c| diesel::select(sql::<BigInt>(rows))
            .get_result::<i64>(c)
            .await)?)
    }

    /// An endless statement that returns rows.
    async fn load(db: &Db) -> Result<i64> {
        let rows = "i FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)";
        let mut conn = db.conn().await?;
        let rows = on!(conn, |c| diesel::select(sql::<BigInt>(rows))
            .load::<i64>(c)
            .await)?;
        Ok(rows.len() as i64)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_statement_ends_at_the_deadline_of_its_operation() {
        let (_directory, db) = database();
        let deadline = Duration::from_millis(50);
        for ended in [
            scope(deadline).run(count(&db)).await,
            scope(deadline).run(load(&db)).await,
        ] {
            assert!(
                matches!(
                    ended,
                    Err(Error::Refused {
                        code: Code::Unavailable,
                        ..
                    })
                ),
                "{ended:?}"
            );
        }
        // The connection remains usable.
        let mut conn = db.conn().await.expect("a connection");
        let one = on!(conn, |c| diesel::select(sql::<BigInt>(
            "1 WHERE within_deadline()"
        ))
        .get_result::<i64>(c)
        .await);
        assert_eq!(one, Ok(1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_statement_ends_when_nobody_waits_for_it() {
        let (_directory, db) = database();
        let abandoned = tokio::spawn({
            let db = db.clone();
            async move { scope(Duration::from_secs(60)).run(count(&db)).await }
        });
        while db.statements() == 0 {
            tokio::task::yield_now().await;
        }
        abandoned.abort();
        // There is one connection, and its statement occupies it until it ends.
        let ended = async { while db.conn().await.is_err() {} };
        tokio::time::timeout(Duration::from_secs(4), ended)
            .await
            .expect("the statement ends");
    }
}
