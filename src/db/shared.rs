//! Connections to PostgreSQL over which many read at once.
//!
//! A statement goes out while others still wait for their answers (pipelining), so that server and database are woken
//! once for several of them. What takes long would hold up what comes after it, and a transaction is its own: both have
//! a connection to themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::ConnectionResult;
use diesel_async::AsyncPgConnection;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// A connection, and when it has ended.
#[derive(Clone)]
pub struct Line {
    conn: Arc<AsyncPgConnection>,
    ended: CancellationToken,
}

impl Line {
    pub(super) fn new(conn: AsyncPgConnection, ended: CancellationToken) -> Self {
        Self { conn: Arc::new(conn), ended }
    }

    pub(super) fn conn(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

/// Makes a connection.
pub(super) type Connect = Box<dyn Fn() -> BoxFuture<'static, ConnectionResult<Line>> + Send + Sync>;

/// Some connections, taken in turns.
pub(super) struct Shared {
    connect: Connect,
    lines: Vec<Mutex<Option<Line>>>,
    next: AtomicUsize,
}

impl Shared {
    /// So many; nothing is connected yet.
    pub(super) fn new(count: usize, connect: Connect) -> Self {
        Self { connect, lines: (0..count).map(|_| Mutex::default()).collect(), next: AtomicUsize::new(0) }
    }

    /// The next connection, made anew if it has ended.
    pub(super) async fn get(&self) -> ConnectionResult<Line> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.lines.len();
        let mut line = self.lines[next].lock().await;
        match &*line {
            Some(line) if !line.ended.is_cancelled() => Ok(line.clone()),
            _ => Ok(line.insert((self.connect)().await?).clone()),
        }
    }

    /// Ends them, once nobody reads any more.
    pub(super) async fn close(&self) {
        for line in &self.lines {
            *line.lock().await = None;
        }
    }
}
