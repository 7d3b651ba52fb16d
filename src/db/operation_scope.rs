//! What one operation may use of the database: its owner's share of the connections, until a deadline.
//!
//! It is a task-local value, so that no query has to be handed it: [`Db`](super::Db) takes a connection of the share
//! before one of the pool. Work outside of an operation, such as a job, is not limited.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

tokio::task_local! {
    static SCOPE: OperationScope;
}

/// What one operation may use; cheap to clone.
#[derive(Clone)]
pub struct OperationScope(Arc<Inner>);

struct Inner {
    connections: Arc<Semaphore>,
    deadline: Instant,
    _permit: Arc<dyn Any + Send + Sync>,
    /// Bytes of text that the operation's searches may still read.
    search_bytes: AtomicU64,
}

impl OperationScope {
    /// A share of the connections until a deadline, what its searches may read, and the permit that the operation holds until all of it has ended.
    pub fn new(
        connections: Arc<Semaphore>,
        deadline: Instant,
        permit: Arc<dyn Any + Send + Sync>,
        search_bytes: u64,
    ) -> Self {
        Self(Arc::new(Inner { connections, deadline, _permit: permit, search_bytes: search_bytes.into() }))
    }

    /// Draws on what the searches of the current operation may read. False when there is not enough left; without an
    /// operation each search is limited by itself alone.
    pub fn draw_search_bytes(bytes: u64) -> bool {
        Self::current().is_none_or(|Self(scope)| {
            let draw = |left: u64| left.checked_sub(bytes);
            scope.search_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, draw).is_ok()
        })
    }

    /// The scope of the operation that runs on this task, if any.
    pub fn current() -> Option<Self> {
        SCOPE.try_with(Self::clone).ok()
    }

    /// Runs a part of the operation.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> T {
        SCOPE.scope(self, work).await
    }

    /// A part of the current operation that is run on another task.
    pub fn inherited<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
        let scope = Self::current();
        async move {
            match scope {
                Some(scope) => scope.run(work).await,
                None => work.await,
            }
        }
    }

    /// When the operation is given up.
    pub fn deadline(&self) -> Instant {
        self.0.deadline
    }
}

/// Waits for a connection of the owner's share. Operations of the same owner wait for each other, until their deadline.
pub(super) async fn acquire() -> Result<Option<OwnedSemaphorePermit>> {
    let Some(OperationScope(scope)) = OperationScope::current() else { return Ok(None) };
    let permit = Arc::clone(&scope.connections).acquire_owned();
    match tokio::time::timeout_at(scope.deadline.into(), permit).await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        _ => Err(Error::unavailable()),
    }
}
