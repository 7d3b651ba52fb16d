//! Turns to read from the database and to execute. When all have more to do than there is time, some are done in time and
//! the others told at once, instead of all being half done and late.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// So many may wait for each turn, when some have waited for nothing lately.
const QUEUE: usize = 8;
/// How long that is remembered.
const LATELY: Duration = Duration::from_millis(500);

/// One for each operation that is executed.
pub struct Turns {
    permits: Arc<Semaphore>,
    most: usize,
    waiting: AtomicUsize,
    /// When somebody last waited for nothing.
    in_vain: Mutex<Option<Instant>>,
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
        let most = operations.saturating_mul(QUEUE);
        Self { permits, most, waiting: AtomicUsize::new(0), in_vain: Mutex::new(None) }
    }

    /// Waits for a turn, but not for ever, and is counted meanwhile.
    pub async fn turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let turn = self.late_turn(patience).await;
        if turn.is_err() {
            *self.in_vain.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        turn
    }

    /// The same for an operation of a socket, which is not counted: thousands that come back at once may wait long.
    pub async fn late_turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        let turn = tokio::time::timeout(patience, Arc::clone(&self.permits).acquire_owned()).await;
        turn.ok().and_then(std::result::Result::ok).ok_or_else(Error::unavailable)
    }

    /// Whether whoever comes now would wait for nothing, as far as can be told: some did, and there is a queue again. A
    /// queue by itself may be short of work.
    pub fn are_taken(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= self.most
            && self.in_vain.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < LATELY)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn a_turn_is_waited_for_until_that_turns_out_to_be_in_vain() {
        let turns = Turns::new(2);
        let patience = Duration::from_millis(20);
        let held = (turns.turn(patience).await.expect("free"), turns.turn(patience).await.expect("free"));
        let crowd = || join_all((0..2 * QUEUE).map(|_| turns.turn(patience)));
        let look = || async {
            tokio::task::yield_now().await;
            turns.are_taken()
        };
        let (waited, taken) = tokio::join!(crowd(), look());
        assert!(waited.iter().all(Result::is_err) && !taken, "a crowd may be served");
        let (waited, taken) = tokio::join!(crowd(), look());
        assert!(waited.iter().all(Result::is_err) && taken, "one before was not");
        assert!(!turns.are_taken(), "nobody waits");
        drop(held);
        assert!(turns.turn(patience).await.is_ok());
    }
}
