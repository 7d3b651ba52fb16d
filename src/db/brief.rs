//! Where SQLite does its work.
//!
//! It blocks the thread that it runs on, so a statement goes to a thread of tokio's blocking pool, and its rows come back
//! from there. That takes longer than looking a row up by its key does: what is known to be brief is done on the spot. What
//! writes whole pages and waits for the disk gives way to everything else.

use std::error::Error;
use std::future::ready;
use std::sync::LazyLock;

use diesel_async::sync_connection_wrapper::SpawnBlocking;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::{self, Runtime};

use super::interrupt::limited;

/// So many rows keep a thread no longer than a request that is read or an answer that is written.
pub(super) const FEW: usize = 100;

/// How much nicer the threads are that give way: where all cores are taken, each has a tenth of what others have. Half of the
/// reads beside writers are answered a fifth sooner by it; with more, those who write wait longer than reads gain. Elsewhere
/// than on Linux a whole process is as nice as one of its threads.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
/// One commits while another folds the log.
const GIVING_WAY: usize = 2;

#[derive(Clone, Copy)]
enum Manner {
    Brief,
    GivingWay,
}

tokio::task_local! {
    static MANNER: Manner;
}

/// Threads that never lose their niceness, so they are nobody else's.
#[expect(clippy::expect_used, reason = "without drivers there is nothing to fail")]
static BEHIND: LazyLock<Runtime> = LazyLock::new(|| {
    let mut threads = runtime::Builder::new_current_thread();
    threads.max_blocking_threads(GIVING_WAY).thread_name("disk");
    #[cfg(target_os = "linux")]
    threads.on_thread_start(|| {
        use rustix::process::{getpriority_process, setpriority_process};
        // It works without, too.
        let _ = getpriority_process(None).and_then(|others| setpriority_process(None, others + NICE));
    });
    threads.build().expect("a runtime for its threads alone")
});

/// Statements in here are done on the spot: of few rows that are found by an index, no scan and no wait for the disk.
pub async fn brief<T>(statements: impl Future<Output = T>) -> T {
    MANNER.scope(Manner::Brief, statements).await
}

/// Statements in here write many pages and wait for the disk: they are done on threads that give way to all others.
pub async fn giving_way<T>(statements: impl Future<Output = T>) -> T {
    MANNER.scope(Manner::GivingWay, statements).await
}

/// Reads so many rows that an index leads to, on the spot if they are few.
pub async fn looked_up<T>(rows: usize, statement: impl Future<Output = T>) -> T {
    if rows <= FEW { brief(statement).await } else { statement.await }
}

/// The blocking pool, the spot, or behind all others.
#[derive(Clone, Copy, Debug)]
pub struct Place;

impl SpawnBlocking for Place {
    fn spawn_blocking<'a, R: Send + 'static>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn Error + Send + Sync>>> {
        match MANNER.try_with(|manner| *manner) {
            Ok(Manner::Brief) => ready(Ok(task())).boxed(),
            Ok(Manner::GivingWay) => BEHIND.spawn_blocking(task).map(|done| done.map_err(Into::into)).boxed(),
            Err(_) => {
                let (waiter, task) = limited(task);
                let running = tokio::task::spawn_blocking(task);
                async move {
                    let _waiter = waiter;
                    running.await.map_err(Into::into)
                }
                .boxed()
            }
        }
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

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_waits_for_the_disk_gives_way_and_nothing_else_does() {
        async fn niceness() -> i32 {
            let asked = Place.spawn_blocking(|| rustix::process::getpriority_process(None));
            asked.await.expect("no panic").expect("a niceness")
        }
        let ours = brief(niceness()).await;
        assert_eq!((giving_way(niceness()).await, niceness().await), ((ours + NICE).min(19), ours));
    }
}
