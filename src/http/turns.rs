//! Turns to read from the database and to execute. When all have more to do than there is time, some are done in time and
//! the others told at once, instead of all being half done and late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// So many wait for each turn before nobody else is let in to wait.
const QUEUE: usize = 8;

/// One for each operation that is executed.
pub struct Turns {
    permits: Arc<Semaphore>,
    most: usize,
    waiting: AtomicUsize,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    /// So many at once.
    pub fn new(operations: usize) -> Self {
        let permits = Arc::new(Semaphore::new(operations));
        Self { permits, most: operations.saturating_mul(QUEUE), waiting: AtomicUsize::new(0) }
    }

    /// Waits for a turn, but not for ever, and is counted meanwhile.
    pub async fn turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.late_turn(patience).await
    }

    /// The same for an operation of a socket, which is not counted: thousands that come back at once may wait long.
    pub async fn late_turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        let turn = tokio::time::timeout(patience, Arc::clone(&self.permits).acquire_owned()).await;
        turn.ok().and_then(std::result::Result::ok).ok_or_else(Error::unavailable)
    }

    /// Whether so many wait already that whoever comes now would wait for nothing.
    pub fn are_taken(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= self.most
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_and_the_queue_ends() {
        let turns = Turns::new(2);
        let held = (turns.turn(Duration::ZERO).await.expect("free"), turns.turn(Duration::ZERO).await.expect("free"));
        assert!(!turns.are_taken());
        let wait = || turns.turn(Duration::from_secs(1));
        let full = async {
            tokio::task::yield_now().await;
            turns.are_taken()
        };
        let (waited, full) = tokio::join!(join_all((0..2 * QUEUE).map(|_| wait())), full);
        assert!(full && waited.iter().all(Result::is_err) && !turns.are_taken());
        drop(held);
        assert!(wait().await.is_ok());
    }
}
