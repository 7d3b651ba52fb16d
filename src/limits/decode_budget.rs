//! The budget of bytes decoded from rows: per operation, per owner, and for the process.
//!
//! Bytes are counted while rows are read, and stay reserved until the operation ends, however it
//! ends. Only reads in the task of the operation are counted. A write runs in a task of its own, so
//! that no budget can stop it halfway.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::ClientKey;
use super::byte_budget::{BudgetExceeded, ByteBudget, Reservation};
use crate::error::{Code, Error};
use crate::metrics::Labels;

/// Bytes that one operation may decode. The largest response has 4 MiB.
pub const OPERATION_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that the operations of one user, or of one address for anonymous requests, may reserve at
/// once.
pub const OWNER_BYTES: usize = 2 * OPERATION_BYTES;
/// Bytes that all operations may reserve at once.
pub const PROCESS_BYTES: usize = 8 * OPERATION_BYTES;
/// Bytes that an operation may decode without a reservation. Few operations exceed this.
const FREE_BYTES: usize = 64 * 1024;
/// Step in which it reserves bytes after that.
const RESERVATION_STEP: usize = 256 * 1024;

tokio::task_local! {
    static METER: Option<Arc<Meter>>;
}

pub struct DecodeBudget {
    /// Bytes reserved now.
    pub budget: Arc<ByteBudget>,
    /// Bytes decoded so far.
    pub bytes: Counter,
    /// Operations that exceeded a limit, by limit.
    pub refused: Family<Labels<1>, Counter>,
}

impl Default for DecodeBudget {
    fn default() -> Self {
        let refused = Family::<Labels<1>, Counter>::default();
        for limit in ["operation", "owner", "process"] {
            drop(refused.get_or_create(&[("limit", limit.into())]));
        }
        Self {
            budget: ByteBudget::new(PROCESS_BYTES, OWNER_BYTES),
            bytes: Counter::default(),
            refused,
        }
    }
}

impl DecodeBudget {
    /// Runs an operation and counts what it decodes against the budget.
    pub async fn with_meter<T>(&self, owner: ClientKey, operation: impl Future<Output = T>) -> T {
        let meter = Meter {
            decoded: AtomicUsize::new(0),
            reserved: AtomicUsize::new(0),
            reservation: Mutex::new(self.budget.reserve(owner, 0).ok()),
            bytes: self.bytes.clone(),
            refused: self.refused.clone(),
        };
        METER.scope(Some(Arc::new(meter)), operation).await
    }
}

/// Runs work outside the budget, because it has a limit of its own, such as an export.
pub async fn without_meter<T>(work: impl Future<Output = T>) -> T {
    METER.scope(None, work).await
}

/// The meter of the current operation, if any.
pub fn current() -> Option<Arc<Meter>> {
    METER.try_with(Option::clone).ok().flatten()
}

/// Why an operation may decode no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// It has reached the limit of one operation.
    #[error("the operation decodes more than {OPERATION_BYTES} bytes")]
    Operation,
    /// The owner or the process has reached its limit.
    #[error(transparent)]
    Busy(#[from] BudgetExceeded),
}

impl From<OverBudget> for Error {
    fn from(over: OverBudget) -> Self {
        match over {
            OverBudget::Operation => Self::refused(
                Code::DocumentTooComplex,
                "The operation reads more than 16 MiB. Request less data.",
            ),
            OverBudget::Busy(exceeded) => exceeded.into(),
        }
    }
}

/// Counts what one operation decodes.
pub struct Meter {
    decoded: AtomicUsize,
    reserved: AtomicUsize,
    reservation: Mutex<Option<Reservation>>,
    bytes: Counter,
    refused: Family<Labels<1>, Counter>,
}

impl Meter {
    /// Counts bytes before they are decoded.
    pub fn count(&self, bytes: usize) -> Result<(), OverBudget> {
        let decoded = self
            .decoded
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        let counted = if decoded > OPERATION_BYTES {
            Err(OverBudget::Operation)
        } else if decoded > FREE_BYTES + self.reserved.load(Ordering::Relaxed) {
            self.reserve(decoded - FREE_BYTES).map_err(OverBudget::from)
        } else {
            return Ok(());
        };
        if let Err(over) = counted {
            let limit = match over {
                OverBudget::Operation => "operation",
                OverBudget::Busy(BudgetExceeded::Owner) => "owner",
                OverBudget::Busy(BudgetExceeded::Process) => "process",
            };
            self.refused.get_or_create(&[("limit", limit.into())]).inc();
        }
        counted
    }

    fn reserve(&self, bytes: usize) -> Result<(), BudgetExceeded> {
        let mut reservation = self
            .reservation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(reservation) = reservation.as_mut() {
            let missing = bytes.saturating_sub(reservation.bytes());
            if missing > 0 {
                reservation
                    .grow(missing.next_multiple_of(RESERVATION_STEP))
                    .or_else(|_| reservation.grow(missing))?;
                self.reserved.store(reservation.bytes(), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bytes.inc_by(*self.decoded.get_mut() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    fn count(bytes: usize) -> Result<(), OverBudget> {
        current().expect("a meter").count(bytes)
    }

    #[tokio::test]
    async fn an_operation_holds_what_it_decodes_until_it_ends() {
        let decoding = DecodeBudget::default();
        let (owner, used) = (ClientKey::User(Id::new()), || decoding.budget.used());
        decoding
            .with_meter(owner, async {
                assert_eq!(
                    (count(FREE_BYTES), used()),
                    (Ok(()), 0),
                    "small reads are free"
                );
                assert_eq!((count(1), used()), (Ok(()), RESERVATION_STEP));
                assert_eq!(
                    (count(RESERVATION_STEP), used()),
                    (Ok(()), 2 * RESERVATION_STEP)
                );
                assert!(without_meter(async { current().is_none() }).await);
                assert_eq!(
                    (count(2 * RESERVATION_STEP), used()),
                    (Ok(()), 4 * RESERVATION_STEP)
                );
                assert_eq!(count(OPERATION_BYTES), Err(OverBudget::Operation));
            })
            .await;
        assert_eq!(
            (used(), decoding.bytes.get()),
            (
                0,
                (FREE_BYTES + 1 + 3 * RESERVATION_STEP + OPERATION_BYTES) as u64
            )
        );
        assert!(current().is_none(), "no meter outside an operation");
    }

    #[tokio::test]
    async fn operations_together_hold_no_more_than_their_owner_and_the_process_may() {
        let decoding = DecodeBudget::default();
        let (owner, other) = (ClientKey::User(Id::new()), ClientKey::User(Id::new()));
        let reservation = decoding.budget.reserve(owner, OWNER_BYTES).expect("free");
        let long = || async { count(FREE_BYTES + 1) };
        assert_eq!(
            decoding.with_meter(owner, long()).await,
            Err(OverBudget::Busy(BudgetExceeded::Owner))
        );
        assert_eq!(decoding.with_meter(other, long()).await, Ok(()));
        let others: Vec<_> = (0..3)
            .map(|_| {
                decoding
                    .budget
                    .reserve(ClientKey::User(Id::new()), OWNER_BYTES)
                    .expect("free")
            })
            .collect();
        assert_eq!(
            decoding.with_meter(other, long()).await,
            Err(OverBudget::Busy(BudgetExceeded::Process))
        );
        assert_eq!(
            decoding
                .with_meter(other, async { count(FREE_BYTES) })
                .await,
            Ok(()),
            "small reads are free"
        );
        drop((reservation, others));
        let aborted = decoding.with_meter(owner, async {
            assert_eq!(count(OPERATION_BYTES / 2), Ok(()));
            assert!(decoding.budget.used_by(&owner) > 0);
            std::future::pending::<()>().await;
        });
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, aborted)
                .await
                .is_err()
        );
        assert_eq!(
            decoding.budget.used(),
            0,
            "an aborted operation releases its bytes"
        );
        assert_eq!(decoding.with_meter(owner, long()).await, Ok(()));
        assert_eq!(decoding.budget.used(), 0);
    }
}
