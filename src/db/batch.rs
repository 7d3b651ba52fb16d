//! One commit for many transactions of SQLite, which has one writer and waits for the disk at each commit.
//!
//! Whoever comes while others wait for the writer does not commit: what it did stays in the open transaction, and the last
//! of them commits for all (group commit). Nobody is told of a success before that commit, and who fails goes back to
//! the savepoint it began with. So each is atomic and durable by itself, and the disk is waited for once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel_async::pooled_connection::deadpool::Pool;
use tokio::sync::{Mutex, oneshot};

use super::{Conn, Db, Open, Pooled, Rings, SqliteConn, Work, brief};
use crate::error::{Error, Result};

/// So many transactions are committed at once at most.
const MOST: usize = 100;

/// The writer of SQLite with the transaction that is open on it.
pub(super) struct Batch {
    pub(super) pool: Pool<SqliteConn>,
    group: Arc<Mutex<Group>>,
    /// How many wait for their turn.
    waiting: AtomicUsize,
}

/// What is done and not committed. Without a connection there is no open transaction.
#[derive(Default)]
struct Group {
    conn: Option<Conn>,
    members: Vec<oneshot::Sender<()>>,
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Batch {
    pub(super) fn new(pool: Pool<SqliteConn>) -> Self {
        Self { pool, group: Arc::default(), waiting: AtomicUsize::new(0) }
    }

    /// Runs `work` and waits until it is committed. Dropped in the middle of its work it takes the whole group with it,
    /// none of which was told of a success.
    pub(super) async fn join<T>(&self, db: &Db, work: &(impl for<'r> Work<'r, T> + Sync), is_brief: bool) -> Result<T> {
        let mut group = {
            let _waiting = Waiting::new(&self.waiting);
            db.acquire(async { Ok::<_, std::convert::Infallible>(self.group.lock().await) }).await?
        };
        let mut open = match group.conn.take() {
            Some(conn) => Open(Some(conn)),
            None => {
                // Whoever took the connection with it has left these behind.
                group.members.clear();
                let mut open = Open(Some(Conn::new(Pooled::Sqlite(db.acquire(self.pool.get()).await?))));
                open.conn().execute("BEGIN IMMEDIATE").await?;
                open
            }
        };
        let is_first = group.members.is_empty();
        let before = open.conn().rings;
        if !is_first {
            brief(open.conn().execute("SAVEPOINT member")).await?;
        }
        let done = if is_brief { brief(work(open.conn())).await } else { work(open.conn()).await };
        match done {
            Ok(value) => {
                if !is_first {
                    brief(open.conn().execute("RELEASE member")).await?;
                }
                let (told, committed) = oneshot::channel();
                group.members.push(told);
                if group.members.len() >= MOST || self.waiting.load(Ordering::Relaxed) == 0 {
                    commit(db, &mut group, open).await?;
                } else {
                    group.conn = Some(open.close());
                    if is_first {
                        self.commit_later(db);
                    }
                }
                drop(group);
                committed.await.map(|()| value).map_err(|_| Error::unavailable())
            }
            Err(error) => {
                open.conn().rings = before;
                if is_first {
                    if open.conn().execute("ROLLBACK").await.is_ok() {
                        open.close();
                    }
                } else if open.conn().execute("ROLLBACK TO member; RELEASE member").await.is_ok() {
                    // The first sees to it that what is left is committed.
                    group.conn = Some(open.close());
                }
                Err(error)
            }
        }
    }

    /// Commits when all who wait now have done their work: turns are taken in the order in which they were asked for.
    fn commit_later(&self, db: &Db) {
        let (group, db) = (Arc::clone(&self.group), db.clone());
        tokio::spawn(async move {
            let mut group = group.lock().await;
            let result = match group.conn.take() {
                Some(conn) => commit(&db, &mut group, Open(Some(conn))).await,
                None => {
                    // Whoever took the connection with it has left these behind.
                    group.members.clear();
                    Ok(())
                }
            };
            if let Err(error) = result {
                error.told();
            }
        });
    }
}

/// Commits what the group has done, and tells its members.
async fn commit(db: &Db, group: &mut Group, mut open: Open) -> Result<()> {
    let members = std::mem::take(&mut group.members);
    if let Err(error) = open.conn().execute("COMMIT").await {
        if open.conn().execute("ROLLBACK").await.is_ok() {
            open.close();
        }
        return Err(error);
    }
    let rings: Rings = open.close().rings;
    db.ring_all(rings);
    for member in members {
        // Whoever has gone away does not hear of it.
        let _ = member.send(());
    }
    Ok(())
}
