//! A limit on the bytes that the process, and each owner in it, may reserve at once.
//!
//! A [`Reservation`] is released when it is dropped, however its work ends.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ClientKey;
use crate::error::Error;

/// Which limit a reservation would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetExceeded {
    /// The limit of the owner.
    #[error("the byte budget of the owner is exhausted")]
    Owner,
    /// The limit of the process.
    #[error("the byte budget of the process is exhausted")]
    Process,
}

impl From<BudgetExceeded> for Error {
    fn from(_: BudgetExceeded) -> Self {
        Self::unavailable()
    }
}

/// A budget of bytes, in total and per owner.
#[derive(Debug)]
pub struct ByteBudget<K: Eq + Hash = ClientKey> {
    limit: usize,
    owner_limit: usize,
    usage: Mutex<Usage<K>>,
}

#[derive(Debug)]
struct Usage<K> {
    total: usize,
    /// Only owners with reserved bytes, so that the size of the map is bounded by the budget.
    owners: HashMap<K, usize>,
}

impl<K: Clone + Eq + Hash> ByteBudget<K> {
    pub fn new(limit: usize, owner_limit: usize) -> Arc<Self> {
        let usage = Mutex::new(Usage {
            total: 0,
            owners: HashMap::new(),
        });
        Arc::new(Self {
            limit,
            owner_limit,
            usage,
        })
    }

    /// Reserves bytes for an owner, all or none. A reservation of zero bytes always succeeds and
    /// may grow.
    pub fn reserve(
        self: &Arc<Self>,
        owner: K,
        bytes: usize,
    ) -> Result<Reservation<K>, BudgetExceeded> {
        let mut reservation = self.empty_reservation(owner);
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// An empty reservation, which may grow.
    pub fn empty_reservation(self: &Arc<Self>, owner: K) -> Reservation<K> {
        Reservation {
            budget: Arc::clone(self),
            owner,
            bytes: 0,
        }
    }

    /// Bytes reserved by all owners.
    pub fn used(&self) -> usize {
        self.lock().total
    }

    /// Bytes reserved by one owner.
    pub fn used_by(&self, owner: &K) -> usize {
        self.lock().owners.get(owner).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Usage<K>> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, owner: &K, bytes: usize) -> Result<(), BudgetExceeded> {
        let mut usage = self.lock();
        let own = usage.owners.get(owner).copied().unwrap_or_default();
        if bytes > self.owner_limit.saturating_sub(own) {
            return Err(BudgetExceeded::Owner);
        }
        if bytes > self.limit.saturating_sub(usage.total) {
            return Err(BudgetExceeded::Process);
        }
        usage.total += bytes;
        *usage.owners.entry(owner.clone()).or_default() += bytes;
        Ok(())
    }

    fn release(&self, owner: &K, bytes: usize) {
        let mut usage = self.lock();
        usage.total -= bytes;
        if let Some(own) = usage.owners.get_mut(owner) {
            *own -= bytes;
            if *own == 0 {
                usage.owners.remove(owner);
            }
        }
    }
}

/// Reserved bytes of a [`ByteBudget`]. Dropping it releases them.
#[derive(Debug)]
pub struct Reservation<K: Clone + Eq + Hash = ClientKey> {
    budget: Arc<ByteBudget<K>>,
    owner: K,
    bytes: usize,
}

impl<K: Clone + Eq + Hash> Reservation<K> {
    /// Number of reserved bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reserves more bytes, all or none.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BudgetExceeded> {
        if bytes > 0 {
            self.budget.take(&self.owner, bytes)?;
            self.bytes += bytes;
        }
        Ok(())
    }

    /// Releases some of its bytes, at most all.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        if bytes > 0 {
            self.bytes -= bytes;
            self.budget.release(&self.owner, bytes);
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Reservation<K> {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_owner_and_the_process_hold_no_more_than_their_limits() {
        let budget = ByteBudget::new(100, 60);
        let mut first = budget.reserve(1, 50).expect("within both limits");
        assert_eq!(first.grow(11), Err(BudgetExceeded::Owner));
        assert_eq!(
            budget.reserve(1, 11).err(),
            Some(BudgetExceeded::Owner),
            "the limit covers all reservations of an owner"
        );
        let second = budget.reserve(2, 50).expect("within both limits");
        assert_eq!(budget.reserve(3, 1).err(), Some(BudgetExceeded::Process));
        assert!(budget.reserve(3, 0).is_ok());
        assert_eq!(
            (budget.used(), budget.used_by(&1), budget.used_by(&3)),
            (100, 50, 0)
        );
        first.shrink(20);
        assert_eq!((first.bytes(), budget.used()), (30, 80));
        drop(second);
        assert_eq!((budget.used(), first.grow(30)), (30, Ok(())));
        first.shrink(usize::MAX);
        assert_eq!(
            (budget.used(), budget.lock().owners.len()),
            (0, 0),
            "owners without bytes take no memory"
        );
    }

    #[test]
    fn a_reservation_is_released_by_a_panic_and_by_a_task_that_is_aborted() {
        let budget = ByteBudget::new(100, 100);
        let panicked = std::panic::catch_unwind(|| {
            let _reservation = budget.reserve(1, 70);
            assert_eq!(budget.used(), 0, "panics");
        });
        assert!(panicked.is_err());
        assert_eq!(budget.used(), 0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let reservation = budget.reserve(1, 70);
            let task = tokio::spawn(async move {
                let _reservation = reservation;
                std::future::pending::<()>().await;
            });
            tokio::task::yield_now().await;
            assert_eq!(budget.used(), 70);
            task.abort();
            assert!(task.await.is_err());
        });
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #[test]
        fn what_is_used_is_what_reservations_hold(steps in prop::collection::vec((0..4_usize, 0..3_u8, 0..80_usize), 0..60)) {
            let budget = ByteBudget::new(100, 60);
            let mut reservations: Vec<Reservation<u8>> = Vec::new();
            for (step, owner, bytes) in steps {
                match step {
                    0 => reservations.extend(budget.reserve(owner, bytes)),
                    1 => drop(reservations.pop()),
                    2 => drop(reservations.first_mut().map(|first| first.grow(bytes))),
                    _ => reservations.iter_mut().for_each(|each| each.shrink(bytes / 4)),
                }
                let sum = |owner: u8| -> usize {
                    reservations.iter().filter(|each| each.owner == owner).map(Reservation::bytes).sum()
                };
                prop_assert_eq!(budget.used(), (0..3).map(sum).sum::<usize>());
                prop_assert!(budget.used() <= 100);
                for owner in 0..3 {
                    prop_assert_eq!(budget.used_by(&owner), sum(owner));
                    prop_assert!(sum(owner) <= 60);
                }
            }
            drop(reservations);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
