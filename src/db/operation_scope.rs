//! The database budget of one operation: a share of the connections, a deadline, and the bytes its
//! searches may read.
//!
//! The scope is a task-local value, so queries need no extra parameter: [`Db`](super::Db) takes a
//! permit of the share before it takes a connection. Work outside an operation, such as a job, is
//! not limited.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

tokio::task_local! {
    static SCOPE: OperationScope;
}

/// The budget of one operation. Cheap to clone.
#[derive(Clone)]
pub struct OperationScope(Arc<ScopeInner>);

struct ScopeInner {
    connections: Arc<Semaphore>,
    deadline: Instant,
    _permit: Arc<dyn Any + Send + Sync>,
    /// Remaining bytes of text that searches may read.
    search_bytes: AtomicU64,
}

impl OperationScope {
    /// `connections` is the owner's share, for which all operations of a user or client address
    /// compete. `permit` is kept until every part of the operation has ended. `search_bytes` limits
    /// the text that its searches read.
    pub fn new(
        connections: Arc<Semaphore>,
        deadline: Instant,
        permit: Arc<dyn Any + Send + Sync>,
        search_bytes: u64,
    ) -> Self {
        Self(Arc::new(ScopeInner {
            connections,
            deadline,
            _permit: permit,
            search_bytes: search_bytes.into(),
        }))
    }

    /// Draws bytes from the search budget of the current operation and returns whether enough were
    /// left. Always true outside an operation, where only the limit per search applies.
    pub fn draw_search_bytes(bytes: u64) -> bool {
        Self::current().is_none_or(|Self(scope)| {
            let draw = |left: u64| left.checked_sub(bytes);
            scope
                .search_bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, draw)
                .is_ok()
        })
    }

    /// The scope of the operation on this task, if any.
    pub fn current() -> Option<Self> {
        SCOPE.try_with(Self::clone).ok()
    }

    /// Runs `work` in this scope.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> T {
        SCOPE.scope(self, work).await
    }

    /// Wraps `work` so that it runs in the current scope on another task, too.
    pub fn inherit<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
        let scope = Self::current();
        async move {
            match scope {
                Some(scope) => scope.run(work).await,
                None => work.await,
            }
        }
    }

    pub fn deadline(&self) -> Instant {
        self.0.deadline
    }
}

/// Waits for a permit of the share, until the deadline of the operation.
pub(super) async fn acquire() -> Result<Option<OwnedSemaphorePermit>> {
    let Some(OperationScope(scope)) = OperationScope::current() else {
        return Ok(None);
    };
    let permit = Arc::clone(&scope.connections).acquire_owned();
    match tokio::time::timeout_at(scope.deadline.into(), permit).await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        _ => Err(Error::unavailable()),
    }
}
