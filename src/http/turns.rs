//! Turns to read from the database and to execute. When all have more to do than there is time, some are done in time and
//! the others told at once, instead of all being half done and late.

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
    turns: Arc<Semaphore>,
    /// Places to wait in. Who finds none waits too, and is not counted.
    queue: Semaphore,
    /// When somebody last waited for nothing.
    in_vain: Mutex<Option<Instant>>,
}

impl Turns {
    /// So many at once.
    pub fn new(operations: usize) -> Self {
        let queue = operations.saturating_mul(QUEUE).min(Semaphore::MAX_PERMITS);
        Self { turns: Arc::new(Semaphore::new(operations)), queue: Semaphore::new(queue), in_vain: Mutex::default() }
    }

    /// Waits for a turn, but not for ever.
    pub async fn turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        let _place = self.queue.try_acquire();
        let turn = tokio::time::timeout(patience, Arc::clone(&self.turns).acquire_owned()).await;
        turn.ok().and_then(std::result::Result::ok).ok_or_else(|| {
            *self.in_vain.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            Error::unavailable()
        })
    }

    /// Whether whoever comes now would wait for nothing, as far as can be told: some did, and there is a queue again. A
    /// queue by itself may be short of work.
    pub fn are_taken(&self) -> bool {
        self.queue.available_permits() == 0
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
