//! Where SQLite does its work.
//!
//! It blocks the thread that it runs on, so a statement goes to a thread of tokio's blocking pool, and its rows come back
//! from there. That takes longer than looking a row up by its key does: what is known to be brief is done on the spot.

use std::error::Error;
use std::future::ready;

use diesel_async::sync_connection_wrapper::SpawnBlocking;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

/// So many rows keep a thread no longer than a request that is read or an answer that is written.
pub(super) const FEW: usize = 100;

tokio::task_local! {
    static BRIEF: ();
}

/// Statements in here are done on the spot: of few rows that are found by an index, no scan and no wait for the disk.
pub async fn brief<T>(statements: impl Future<Output = T>) -> T {
    BRIEF.scope((), statements).await
}

/// Reads so many rows that an index leads to, on the spot if they are few.
pub async fn looked_up<T>(rows: usize, statement: impl Future<Output = T>) -> T {
    if rows <= FEW { brief(statement).await } else { statement.await }
}

/// The blocking pool, or the spot.
#[derive(Clone, Copy, Debug)]
pub struct Place;

impl SpawnBlocking for Place {
    fn spawn_blocking<'a, R: Send + 'static>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn Error + Send + Sync>>> {
        if BRIEF.try_with(|()| ()).is_ok() {
            return ready(Ok(task())).boxed();
        }
        tokio::task::spawn_blocking(task).map(|done| done.map_err(Into::into)).boxed()
    }

    fn get_runtime() -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{ThreadId, current};

    use super::*;

    #[tokio::test]
    async fn what_is_brief_is_done_on_the_spot_and_the_rest_elsewhere() {
        async fn place() -> ThreadId {
            Place.spawn_blocking(|| current().id()).await.expect("no panic")
        }
        let here = current().id();
        assert_eq!(brief(place()).await, here);
        assert_eq!((looked_up(FEW, place()).await, looked_up(FEW + 1, place()).await == here), (here, false));
        assert_ne!(place().await, here);
    }
}
