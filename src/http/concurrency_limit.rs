//! Concurrency limit with fair shares and load shedding.
//!
//! An operation first acquires a permit from the share of its owner, then one of the server. The
//! owner is a user, or an address for an anonymous request. An owner who floods the server waits
//! behind their own operations, while other owners find free permits. Beyond the capacity of the
//! server, excess requests are rejected early so that admitted ones meet their deadline.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::db::OperationScope;
use crate::error::{Code, Error, Result};
use crate::limits::ClientKey;
use crate::metrics::Labels;

/// One owner may hold this fraction of the permits and of the database connections...
const SHARE: usize = 4;
/// ...but at least this many, if there are as many: a web page sends a few requests at once.
const MIN_SHARE: usize = 2;
/// Waiting operations per permit that are expected to be served.
const QUEUE_PER_PERMIT: usize = 8;
/// HTTP requests of one owner that may wait for their share. Each of them occupies a request slot.
const OWNER_QUEUE: usize = 100;
/// Operations of one owner on sockets that may wait for their share: all subscriptions of a client
/// that reconnects, and as many again.
const OWNER_SOCKET_QUEUE: usize = 400;
/// Concurrent mutations on SQLite. They mostly wait for the disk, in one group commit.
const SQLITE_WRITES: usize = 100;
/// How long a timeout counts as a sign of overload.
const OVERLOAD_MEMORY: Duration = Duration::from_millis(500);
/// When a rejected owner should try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How an operation waits for its permits.
#[derive(Clone, Copy, Debug)]
pub enum WaitPolicy {
    /// Briefly, and not behind too many others of the same owner: an HTTP request.
    Request,
    /// Longer, and behind more of them: an operation on a socket. When many clients reconnect at
    /// once, waiting is better than reconnecting again.
    Socket,
    /// As long, but without a limit of its own: an event for an open subscription. The limit on
    /// subscriptions bounds how many wait.
    Event,
}

impl WaitPolicy {
    const fn timeout(self) -> Duration {
        match self {
            Self::Request => Duration::from_millis(500),
            Self::Socket | Self::Event => Duration::from_secs(10),
        }
    }
}

/// Permits for the operations of this instance.
pub struct ConcurrencyLimit {
    permits: Arc<Semaphore>,
    /// For mutations, where they are counted separately.
    writes: Option<Arc<Semaphore>>,
    /// Operations that wait for one of `permits`, up to the number that is expected to be served.
    /// The rest waits uncounted.
    queue: Semaphore,
    last_timeout: Mutex<Option<Instant>>,
    shares: Arc<Shares>,
    /// Rejections, by limit.
    rejected: Family<Labels<1>, Counter>,
}

/// The shares of the owners that have operations now.
struct Shares {
    by_owner: Mutex<HashMap<ClientKey, Arc<Share>>>,
    operations: usize,
    writes: usize,
    connections: usize,
}

/// What one owner may use at once.
struct Share {
    operations: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    queue: Semaphore,
    socket_queue: Semaphore,
}

/// A share in use. The last one to be dropped removes it.
struct ShareGuard {
    shares: Arc<Shares>,
    owner: ClientKey,
    share: Arc<Share>,
}

/// The right to execute one operation.
pub struct Permit {
    _own: OwnedSemaphorePermit,
    _server: OwnedSemaphorePermit,
    guard: ShareGuard,
}

impl Permit {
    /// The database connections, deadline and search budget of the operation. The permit is
    /// released when the last part of the operation ends, including a write whose client has
    /// disconnected.
    pub fn scope(self, deadline: Duration, search_bytes: u64) -> OperationScope {
        let connections = Arc::clone(&self.guard.share.connections);
        OperationScope::new(
            connections,
            std::time::Instant::now() + deadline,
            Arc::new(self),
            search_bytes,
        )
    }
}

const fn share_of(total: usize) -> usize {
    let share = total / SHARE;
    let share = if share < MIN_SHARE { MIN_SHARE } else { share };
    if share < total { share } else { total }
}

impl Shares {
    fn of(self: &Arc<Self>, owner: ClientKey) -> ShareGuard {
        let share = self
            .lock()
            .entry(owner)
            .or_insert_with(|| Arc::new(self.share()))
            .clone();
        ShareGuard {
            shares: Arc::clone(self),
            owner,
            share,
        }
    }

    fn share(&self) -> Share {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Share {
            operations: semaphore(self.operations),
            writes: semaphore(self.writes),
            connections: semaphore(self.connections),
            queue: Semaphore::new(OWNER_QUEUE),
            socket_queue: Semaphore::new(OWNER_SOCKET_QUEUE),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientKey, Arc<Share>>> {
        self.by_owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ShareGuard {
    fn drop(&mut self) {
        let mut shares = self.shares.lock();
        // Guards are created under the same lock. With two references, the one of the map and this
        // one, no other guard exists.
        if Arc::strong_count(&self.share) == 2
            && let Entry::Occupied(share) = shares.entry(self.owner)
        {
            share.remove();
        }
    }
}

impl ConcurrencyLimit {
    /// Limits concurrent operations, and the share of each owner in them and in the database
    /// connections.
    pub fn new(
        operations: usize,
        connections: usize,
        is_embedded: bool,
        rejected: Family<Labels<1>, Counter>,
    ) -> Self {
        let queue = operations
            .saturating_mul(QUEUE_PER_PERMIT)
            .min(Semaphore::MAX_PERMITS);
        let writes = SQLITE_WRITES.max(operations);
        let shares = Shares {
            by_owner: Mutex::default(),
            operations: share_of(operations),
            writes: share_of(writes),
            connections: share_of(connections),
        };
        Self {
            permits: Arc::new(Semaphore::new(operations)),
            writes: is_embedded.then(|| Arc::new(Semaphore::new(writes))),
            queue: Semaphore::new(queue),
            last_timeout: Mutex::default(),
            shares: Arc::new(shares),
            rejected,
        }
    }

    /// Waits for a permit from the share of the owner first, so that only operations that may run
    /// wait for a permit of the server.
    pub async fn acquire(&self, owner: ClientKey, wait: WaitPolicy) -> Result<Permit> {
        let guard = self.shares.of(owner);
        let own = Arc::clone(&guard.share.operations);
        self.acquire_both(guard, own, &self.permits, wait, false)
            .await
    }

    /// Exchanges the permit for a write permit, where those are counted separately: a mutation
    /// mostly waits for the disk, which should not block reads.
    pub async fn acquire_write(&self, permit: Permit, wait: WaitPolicy) -> Result<Permit> {
        let Some(writes) = &self.writes else {
            return Ok(permit);
        };
        let Permit {
            guard,
            _own,
            _server,
        } = permit;
        drop((_own, _server));
        let own = Arc::clone(&guard.share.writes);
        self.acquire_both(guard, own, writes, wait, true).await
    }

    async fn acquire_both(
        &self,
        guard: ShareGuard,
        own: Arc<Semaphore>,
        server: &Arc<Semaphore>,
        wait: WaitPolicy,
        is_write: bool,
    ) -> Result<Permit> {
        let deadline = Instant::now() + wait.timeout();
        let own = match Arc::clone(&own).try_acquire_owned() {
            Ok(own) => own,
            Err(_) => {
                let queue = match wait {
                    WaitPolicy::Request => Some(&guard.share.queue),
                    // A mutation has been parsed by now, so it takes more memory than its text.
                    WaitPolicy::Socket if is_write => Some(&guard.share.queue),
                    WaitPolicy::Socket => Some(&guard.share.socket_queue),
                    WaitPolicy::Event => None,
                };
                let _queued = queue
                    .map(|queue| queue.try_acquire().map_err(|_| self.reject()))
                    .transpose()?;
                acquired(own, deadline).await.ok_or_else(|| self.reject())?
            }
        };
        let _queued = self.queue.try_acquire();
        let Some(server) = acquired(Arc::clone(server), deadline).await else {
            *self
                .last_timeout
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            return Err(Error::unavailable());
        };
        Ok(Permit {
            _own: own,
            _server: server,
            guard,
        })
    }

    /// The error for an owner with too many concurrent operations.
    fn reject(&self) -> Error {
        self.rejected
            .get_or_create(&[("limit", "operations".into())])
            .inc();
        Error::Refused {
            code: Code::RateLimited,
            message: "Too many concurrent operations. Try again when one of them has completed."
                .into(),
            retry_after: Some(RETRY_AFTER),
        }
    }

    /// Whether a request that arrives now would most likely time out: others did moments ago, and
    /// the queue is full again. A full queue alone may be a short burst.
    pub fn should_shed(&self) -> bool {
        self.queue.available_permits() == 0
            && self
                .last_timeout
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_some_and(|at| at.elapsed() < OVERLOAD_MEMORY)
    }

    /// Number of owners with running operations.
    pub fn owners(&self) -> usize {
        self.shares.lock().len()
    }
}

async fn acquired(semaphore: Arc<Semaphore>, deadline: Instant) -> Option<OwnedSemaphorePermit> {
    timeout_at(deadline, semaphore.acquire_owned())
        .await
        .ok()
        .and_then(std::result::Result::ok)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    fn limit(operations: usize, is_embedded: bool) -> ConcurrencyLimit {
        ConcurrencyLimit::new(operations, 8, is_embedded, Family::default())
    }

    fn owner(number: usize) -> ClientKey {
        ClientKey::address(std::net::Ipv4Addr::from(number as u32).into())
    }

    fn code(refused: Result<Permit>) -> Code {
        match refused {
            Err(Error::Refused { code, .. }) => code,
            _ => panic!("not refused"),
        }
    }

    #[tokio::test]
    async fn requests_are_shed_when_the_queue_is_full_soon_after_a_timeout() {
        let limit = limit(2, false);
        let permits = (
            limit
                .acquire(owner(0), WaitPolicy::Request)
                .await
                .expect("free"),
            limit
                .acquire(owner(0), WaitPolicy::Request)
                .await
                .expect("free"),
        );
        let crowd = || {
            join_all(
                (1..=2 * QUEUE_PER_PERMIT).map(|n| limit.acquire(owner(n), WaitPolicy::Request)),
            )
        };
        let watch = || async {
            tokio::task::yield_now().await;
            limit.should_shed()
        };
        let (waited, shed) = tokio::join!(crowd(), watch());
        assert!(
            waited.iter().all(Result::is_err) && !shed,
            "a burst may be served"
        );
        let (waited, shed) = tokio::join!(crowd(), watch());
        assert!(
            waited.iter().all(Result::is_err) && shed,
            "an earlier one timed out"
        );
        assert!(!limit.should_shed(), "the queue is empty");
        drop(permits);
        assert!(limit.acquire(owner(1), WaitPolicy::Request).await.is_ok());
    }

    #[tokio::test]
    async fn a_writer_to_an_embedded_database_does_not_keep_others_from_reading() {
        for is_embedded in [false, true] {
            let limit = limit(1, is_embedded);
            let permit = limit
                .acquire(owner(0), WaitPolicy::Request)
                .await
                .expect("free");
            let _writing = limit
                .acquire_write(permit, WaitPolicy::Request)
                .await
                .expect("free");
            assert_eq!(
                limit.acquire(owner(1), WaitPolicy::Request).await.is_ok(),
                is_embedded
            );
        }
    }

    #[tokio::test]
    async fn an_owner_gets_a_share_and_others_find_the_rest_free() {
        let limit = limit(8, false);
        let free = |n| {
            limit
                .acquire(owner(n), WaitPolicy::Request)
                .now_or_never()
                .and_then(Result::ok)
        };
        let permits = (free(0).expect("free"), free(0).expect("free"));
        assert!(free(0).is_none() && free(1).is_some());
        let crowd =
            join_all((0..OWNER_QUEUE + 1).map(|_| limit.acquire(owner(0), WaitPolicy::Request)));
        let (waited, others) = tokio::join!(crowd, async { [1, 2, 3].map(|n| free(n).is_some()) });
        assert_eq!(others, [true; 3], "other owners do not wait");
        assert!(
            waited
                .into_iter()
                .all(|refused| code(refused) == Code::RateLimited)
        );
        assert_eq!(
            limit
                .rejected
                .get_or_create(&[("limit", "operations".into())])
                .get(),
            OWNER_QUEUE as u64 + 1
        );
        drop(permits);
        assert!(free(0).is_some());
        assert_eq!(limit.owners(), 0, "an idle owner takes no memory");
    }

    #[test]
    fn a_share_is_a_quarter_but_never_nothing() {
        assert_eq!([1, 2, 4, 8, 32, 100].map(share_of), [1, 2, 2, 2, 8, 25]);
    }
}
