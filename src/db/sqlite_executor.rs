//! The thread on which an SQLite statement runs.
//!
//! SQLite blocks its thread, so a statement runs on tokio's blocking pool by default. The round
//! trip to that pool takes longer than a lookup by key, so statements known to be short run inline,
//! on the async thread. Commits and checkpoints write many pages and sync; they run on threads of
//! low priority.

use std::error::Error;
use std::future::ready;
use std::sync::LazyLock;

use diesel_async::sync_connection_wrapper::SpawnBlocking;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::{self, Runtime};

use super::interrupt::with_limit;

/// Maximum number of rows read inline. It blocks the async thread for about as long as parsing a
/// request or serializing a response.
pub(super) const INLINE_ROWS: usize = 100;

/// Niceness of the low-priority threads: on a busy machine each gets about a tenth of the CPU time
/// of a normal thread. A higher value delays writes by more than reads gain. Linux only: elsewhere
/// niceness applies to the whole process.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
/// Low-priority threads: one for commits, one for checkpoints.
const LOW_PRIORITY_THREADS: usize = 2;

#[derive(Clone, Copy)]
enum RunMode {
    Inline,
    LowPriority,
}

tokio::task_local! {
    static MODE: RunMode;
}

/// A runtime of its own, because a thread cannot lower its niceness again.
#[expect(
    clippy::expect_used,
    reason = "without drivers there is nothing to fail"
)]
static LOW_PRIORITY: LazyLock<Runtime> = LazyLock::new(|| {
    let mut threads = runtime::Builder::new_current_thread();
    threads
        .max_blocking_threads(LOW_PRIORITY_THREADS)
        .thread_name("disk");
    #[cfg(target_os = "linux")]
    threads.on_thread_start(|| {
        use rustix::process::{getpriority_process, setpriority_process};
        // Priority is an optimization, so a failure is ignored.
        let _ = getpriority_process(None)
            .and_then(|others| setpriority_process(None, others + NICENESS));
    });
    threads.build().expect("a runtime for its threads alone")
});

/// Runs SQLite statements inline. They must touch few rows, found via an index: no scan, no sync.
pub async fn run_inline<T>(statements: impl Future<Output = T>) -> T {
    MODE.scope(RunMode::Inline, statements).await
}

/// Runs SQLite statements that write many pages and sync on the low-priority threads.
pub(super) async fn run_low_priority<T>(statements: impl Future<Output = T>) -> T {
    MODE.scope(RunMode::LowPriority, statements).await
}

/// Reads `rows` rows via an index, inline if they are few.
pub async fn inline_if_few<T>(rows: usize, statement: impl Future<Output = T>) -> T {
    if rows <= INLINE_ROWS {
        run_inline(statement).await
    } else {
        statement.await
    }
}

/// Selects the thread: the blocking pool, the current one, or a low-priority one.
#[derive(Clone, Copy, Debug)]
pub struct SqliteExecutor;

impl SpawnBlocking for SqliteExecutor {
    fn spawn_blocking<'a, R: Send + 'static>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn Error + Send + Sync>>> {
        match MODE.try_with(|manner| *manner) {
            Ok(RunMode::Inline) => ready(Ok(task())).boxed(),
            Ok(RunMode::LowPriority) => LOW_PRIORITY
                .spawn_blocking(task)
                .map(|done| done.map_err(Into::into))
                .boxed(),
            Err(_) => {
                let (waiter, task) = with_limit(task);
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
    async fn inline_work_stays_on_its_thread_and_the_rest_does_not() {
        async fn place() -> ThreadId {
            SqliteExecutor
                .spawn_blocking(|| current().id())
                .await
                .expect("no panic")
        }
        let here = current().id();
        assert_eq!(run_inline(place()).await, here);
        assert_eq!(
            (
                inline_if_few(INLINE_ROWS, place()).await,
                inline_if_few(INLINE_ROWS + 1, place()).await == here
            ),
            (here, false)
        );
        assert_ne!(place().await, here);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn disk_work_has_low_priority_and_nothing_else_has() {
        async fn niceness() -> i32 {
            let asked =
                SqliteExecutor.spawn_blocking(|| rustix::process::getpriority_process(None));
            asked.await.expect("no panic").expect("a niceness")
        }
        let ours = run_inline(niceness()).await;
        assert_eq!(
            (run_low_priority(niceness()).await, niceness().await),
            ((ours + NICENESS).min(19), ours)
        );
    }
}
