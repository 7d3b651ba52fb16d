//! Turns to read from the database and to execute. When all have more to do than there is time, some are done in time and
//! the others told at once, instead of all being half done and late.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// So many may wait for each turn, when some have waited for nothing lately.
const QUEUE: usize = 8;
/// So many may write to SQLite at once: they wait for the disk together and compute one after the other.
const WRITING: usize = 100;
/// How long it is remembered that somebody waited for nothing.
const LATELY: Duration = Duration::from_millis(500);

/// One for each operation that is executed.
pub struct Turns {
    turns: Arc<Semaphore>,
    /// For those who write, where that is something else.
    writing: Option<Arc<Semaphore>>,
    /// Places to wait in. Who finds none waits too, and is not counted.
    queue: Semaphore,
    /// When somebody last waited for nothing.
    in_vain: Mutex<Option<Instant>>,
}

impl Turns {
    /// So many at once; whether the database is one that is computed here, too.
    pub fn new(operations: usize, is_embedded: bool) -> Self {
        let queue = operations.saturating_mul(QUEUE).min(Semaphore::MAX_PERMITS);
        Self {
            turns: Arc::new(Semaphore::new(operations)),
            writing: is_embedded.then(|| Arc::new(Semaphore::new(WRITING.max(operations)))),
            queue: Semaphore::new(queue),
            in_vain: Mutex::default(),
        }
    }

    /// Waits for a turn, but not for ever.
    pub async fn turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        self.wait(&self.turns, patience).await
    }

    /// Goes on with a turn to write in place of this one, if those are counted by themselves: most of it is waiting, which
    /// keeps nobody from reading.
    pub async fn write(&self, turn: OwnedSemaphorePermit, patience: Duration) -> Result<OwnedSemaphorePermit> {
        let Some(writing) = &self.writing else { return Ok(turn) };
        drop(turn);
        self.wait(writing, patience).await
    }

    async fn wait(&self, turns: &Arc<Semaphore>, patience: Duration) -> Result<OwnedSemaphorePermit> {
        let _place = self.queue.try_acquire();
        let turn = tokio::time::timeout(patience, Arc::clone(turns).acquire_owned()).await;
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
        let turns = Turns::new(2, false);
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

    #[tokio::test]
    async fn who_writes_to_an_embedded_database_keeps_nobody_from_reading() {
        let patience = Duration::from_millis(20);
        for is_embedded in [false, true] {
            let turns = Turns::new(1, is_embedded);
            let turn = turns.turn(patience).await.expect("free");
            let _writing = turns.write(turn, patience).await.expect("free");
            assert_eq!(turns.turn(patience).await.is_ok(), is_embedded);
        }
    }
}
