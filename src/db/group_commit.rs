//! Group commit for SQLite: concurrent transactions share one commit, and thus one sync to disk.
//!
//! SQLite has one writer and syncs at each commit. A transaction that finishes while others wait
//! for the writer leaves its changes in the open SQLite transaction; the last one commits for all.
//! Each member but the first runs in a savepoint, to which its failure rolls back, and none returns
//! success before the commit. Each is therefore atomic and durable on its own.
//!
//! The checkpoint of the write-ahead log is here too, because it has to pause the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel_async::pooled_connection::deadpool::Pool;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, oneshot};

use super::sqlite_executor::{run_inline, run_low_priority};
use super::{Conn, Db, PoolGuard, PooledConn, SignalSet, SqliteConn, TransactionGuard, Work};
use crate::error::{Error, Result};

/// Maximum number of transactions in a group.
const MAX_GROUP_SIZE: usize = 100;
/// Transactions between checkpoints.
const CHECKPOINT_AFTER: usize = 400;
/// Checkpoint passes concurrent with the writer. Each copies what was written during the last one.
const MAX_CONCURRENT_CHECKPOINTS: usize = 2;

/// The SQLite writer and its open transaction.
pub(super) struct GroupCommit {
    pub(super) pool: Pool<SqliteConn>,
    /// The connection for checkpoints.
    checkpoint_pool: Pool<SqliteConn>,
    group: Mutex<CommitGroup>,
    /// Transactions that wait for the writer.
    waiting: AtomicUsize,
}

/// The members that have finished their work and wait for the commit.
#[derive(Default)]
struct CommitGroup {
    /// The connection with the open transaction, if one is open.
    conn: Option<Conn>,
    members: Vec<oneshot::Sender<()>>,
    /// Transactions committed since the last checkpoint.
    since_checkpoint: usize,
    is_checkpointing: bool,
}

struct QueuedGuard<'a>(&'a AtomicUsize);

impl<'a> QueuedGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for QueuedGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GroupCommit {
    pub(super) fn new(pool: Pool<SqliteConn>, checkpoint_pool: Pool<SqliteConn>) -> Self {
        Self {
            pool,
            checkpoint_pool,
            group: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(super) fn close(&self) {
        self.pool.close();
        self.checkpoint_pool.close();
    }

    /// Runs `work` and waits until it is committed.
    ///
    /// Dropping the future during `work` closes the connection and fails the whole group, of which
    /// no member has returned success yet.
    pub(super) async fn run<T>(
        self: &Arc<Self>,
        db: &Db,
        work: &(impl for<'r> Work<'r, T> + Sync),
        is_inline: bool,
    ) -> Result<T> {
        let mut group = {
            let _waiting = QueuedGuard::new(&self.waiting);
            db.acquire(async { Ok::<_, std::convert::Infallible>(self.group.lock().await) })
                .await?
        };
        let mut open = match group.conn.take() {
            Some(conn) => TransactionGuard(Some(conn)),
            None => {
                // Left behind when a dropped member closed the connection: dropping the senders
                // fails their transactions.
                group.members.clear();
                let mut open = TransactionGuard(Some(Conn::new(PooledConn::Sqlite(
                    PoolGuard::new(db.acquire(self.pool.get()).await?, None),
                ))));
                open.conn().execute("BEGIN IMMEDIATE").await?;
                open
            }
        };
        let is_first = group.members.is_empty();
        let before = open.conn().signals;
        if !is_first {
            run_inline(open.conn().execute_prepared("SAVEPOINT member")).await?;
        }
        let done = if is_inline {
            run_inline(work(open.conn())).await
        } else {
            work(open.conn()).await
        };
        match done {
            Ok(value) => {
                if !is_first {
                    run_inline(open.conn().execute_prepared("RELEASE member")).await?;
                }
                let (confirm, committed) = oneshot::channel();
                group.members.push(confirm);
                if group.members.len() >= MAX_GROUP_SIZE
                    || self.waiting.load(Ordering::Relaxed) == 0
                {
                    self.commit(db, &mut group, open).await?;
                } else {
                    group.conn = Some(open.close());
                    if is_first {
                        self.schedule_commit(db);
                    }
                }
                drop(group);
                committed
                    .await
                    .map(|()| value)
                    .map_err(|_| Error::unavailable())
            }
            Err(error) => {
                open.conn().signals = before;
                if is_first {
                    if open.conn().execute("ROLLBACK").await.is_ok() {
                        open.close();
                    }
                } else if open
                    .conn()
                    .execute("ROLLBACK TO member; RELEASE member")
                    .await
                    .is_ok()
                {
                    // The rest of the group is committed by the task that its first member spawned.
                    group.conn = Some(open.close());
                }
                Err(error)
            }
        }
    }

    /// Commits after all transactions that wait now have done their work: the mutex is fair (FIFO).
    fn schedule_commit(self: &Arc<Self>, db: &Db) {
        let (batch, db) = (Arc::clone(self), db.clone());
        tokio::spawn(async move {
            if let Err(error) = batch.commit_open(&db, &mut *batch.group.lock().await).await {
                error.into_client();
            }
        });
    }

    /// Commits the open transaction, if there is one.
    async fn commit_open(self: &Arc<Self>, db: &Db, group: &mut CommitGroup) -> Result<()> {
        match group.conn.take() {
            Some(conn) => self.commit(db, group, TransactionGuard(Some(conn))).await,
            None => {
                // Left behind when a dropped member closed the connection.
                group.members.clear();
                Ok(())
            }
        }
    }

    /// Commits the group and notifies its members.
    async fn commit(
        self: &Arc<Self>,
        db: &Db,
        group: &mut CommitGroup,
        mut open: TransactionGuard,
    ) -> Result<()> {
        let members = std::mem::take(&mut group.members);
        if let Err(error) = run_low_priority(open.conn().execute("COMMIT")).await {
            if open.conn().execute("ROLLBACK").await.is_ok() {
                open.close();
            }
            return Err(error);
        }
        let rings: SignalSet = open.close().signals;
        db.signal_all(rings);
        group.since_checkpoint += members.len();
        for member in members {
            // The receiver is gone if the request was canceled.
            let _ = member.send(());
        }
        if group.since_checkpoint >= CHECKPOINT_AFTER && !group.is_checkpointing {
            (group.since_checkpoint, group.is_checkpointing) = (0, true);
            tokio::spawn(Arc::clone(self).checkpoint(db.clone()));
        }
        Ok(())
    }

    /// Checkpoints the write-ahead log: most of it concurrently with the writer, the rest while the
    /// writer pauses. Once everything is copied, SQLite restarts the log from its beginning.
    fn checkpoint(self: Arc<Self>, db: Db) -> BoxFuture<'static, ()> {
        async move {
            let folded = async {
                const CHECKPOINT: &str = "PRAGMA wal_checkpoint(PASSIVE)";
                let mut checkpoint_pool = Conn::new(PooledConn::Sqlite(PoolGuard::new(
                    db.acquire(self.checkpoint_pool.get()).await?,
                    None,
                )));
                for _ in 0..MAX_CONCURRENT_CHECKPOINTS {
                    run_low_priority(checkpoint_pool.execute(CHECKPOINT)).await?;
                }
                let mut group = self.group.lock().await;
                self.commit_open(&db, &mut group).await?;
                checkpoint_pool.execute(CHECKPOINT).await
            };
            if let Err(error) = folded.await {
                error.into_client();
            }
            self.group.lock().await.is_checkpointing = false;
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use diesel::dsl::sql;
    use diesel::sql_types::{BigInt, Text};
    use diesel::{Connection, RunQueryDsl, SqliteConnection};
    use futures_util::future::join_all;

    use super::super::{Location, Pools};
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_wal_is_checkpointed_beside_the_writer_and_restarted() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.db");
        let db = Db::open(&Location::Sqlite(file.clone()), 2).expect("a database");
        let written = async |sql: &'static str| {
            db.transaction(async move |tx: &mut Conn| tx.execute(sql).await)
                .await
                .expect("written");
        };
        written("CREATE TABLE a (b BLOB)").await;
        for _ in 0..4 * CHECKPOINT_AFTER / 40 {
            join_all((0..40).map(|_| written("INSERT INTO a VALUES (zeroblob(3500))"))).await;
        }
        let Pools::Sqlite { writer, .. } = &db.pools else {
            panic!("not SQLite")
        };
        while writer.group.lock().await.is_checkpointing {
            tokio::task::yield_now().await;
        }
        let alone = directory.path().join("alone.db");
        std::fs::copy(&file, &alone).expect("a copy of the file without its WAL");
        let mut alone = SqliteConnection::establish(&alone.to_string_lossy()).expect("a database");
        let check = diesel::select(sql::<Text>(
            "(SELECT integrity_check FROM pragma_integrity_check)",
        ));
        assert_eq!(check.first::<String>(&mut alone).expect("a check"), "ok");
        let rows: i64 = diesel::select(sql::<BigInt>("(SELECT count(*) FROM a)"))
            .first(&mut alone)
            .expect("a count");
        assert!(
            rows >= 3 * CHECKPOINT_AFTER as i64,
            "{rows} rows are in the file"
        );
        // Each row fills a page of 4 KiB: without a restart the WAL would have all of them.
        let log = std::fs::metadata(directory.path().join("a.db-wal"))
            .expect("a log")
            .len();
        assert!(
            log < 4096 * 3 * CHECKPOINT_AFTER as u64,
            "the WAL has {log} bytes"
        );
    }
}
