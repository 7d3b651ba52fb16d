//! PostgreSQL connections that pipeline the reads of many requests.
//!
//! A statement is sent while others still wait for their results, so one wake-up of server and
//! database serves several. Only short reads are pipelined: a slow statement would delay those
//! behind it, and a transaction needs a connection of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::ConnectionResult;
use diesel_async::AsyncPgConnection;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// A pipelined connection and a token that is cancelled when it ends.
#[derive(Clone)]
pub struct PipelinedConn {
    conn: Arc<AsyncPgConnection>,
    ended: CancellationToken,
}

impl PipelinedConn {
    pub(super) fn new(conn: AsyncPgConnection, ended: CancellationToken) -> Self {
        Self {
            conn: Arc::new(conn),
            ended,
        }
    }

    pub(super) fn conn(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

pub(super) type Connect =
    Box<dyn Fn() -> BoxFuture<'static, ConnectionResult<PipelinedConn>> + Send + Sync>;

/// A fixed number of connections, used round-robin.
pub(super) struct PipelinedPool {
    connect: Connect,
    conns: Vec<Mutex<Option<PipelinedConn>>>,
    next: AtomicUsize,
}

impl PipelinedPool {
    /// Connects lazily.
    pub(super) fn new(count: usize, connect: Connect) -> Self {
        Self {
            connect,
            conns: (0..count).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// The next connection, reconnected if it has ended.
    pub(super) async fn get(&self) -> ConnectionResult<PipelinedConn> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.conns.len();
        let mut line = self.conns[next].lock().await;
        match &*line {
            Some(line) if !line.ended.is_cancelled() => Ok(line.clone()),
            _ => Ok(line.insert((self.connect)().await?).clone()),
        }
    }

    /// Drops the connections; reads in progress keep theirs until they end.
    pub(super) async fn close(&self) {
        for line in &self.conns {
            *line.lock().await = None;
        }
    }
}
