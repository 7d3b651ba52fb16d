//! Slots limit how many connections or requests exist at once, in total and per source.
//!
//! A holder that waits for its client can be evicted: when no slot is free, the holder that has
//! waited longest loses its slot to the new one. The slot moves at once, without waiting until the
//! evicted connection has closed, so that a flood of new connections does not queue.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Prefix length of one customer network in IPv6, and of a site of such networks.
const CUSTOMER_BITS: u32 = 64;
const SITE_BITS: u32 = 48;

#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    /// In total.
    pub total: usize,
    /// For an IPv4 address or an IPv6 /64.
    pub per_address: usize,
    /// For an IPv6 /48.
    pub per_site: usize,
}

impl SlotLimits {
    /// A limit on the total only.
    pub const fn total(total: usize) -> Self {
        Self {
            total,
            per_address: usize::MAX,
            per_site: usize::MAX,
        }
    }
}

/// A set of holders that share a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SlotGroup {
    Address(IpAddr),
    Site(Ipv6Addr),
    All,
}

/// The groups of one holder, narrowest first.
type Groups = [Option<SlotGroup>; 3];

fn groups(source: Option<IpAddr>) -> Groups {
    let network = |address: Ipv6Addr, bits: u32| {
        Ipv6Addr::from(u128::from(address) & (u128::MAX << (128 - bits)))
    };
    match source.map(|address| address.to_canonical()) {
        None => [None, None, Some(SlotGroup::All)],
        Some(IpAddr::V6(address)) => {
            let (customer, site) = (network(address, CUSTOMER_BITS), network(address, SITE_BITS));
            [
                Some(SlotGroup::Address(customer.into())),
                Some(SlotGroup::Site(site)),
                Some(SlotGroup::All),
            ]
        }
        Some(address) => [
            Some(SlotGroup::Address(address)),
            None,
            Some(SlotGroup::All),
        ],
    }
}

/// A limited number of slots.
pub struct SlotPool {
    limits: SlotLimits,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// Sequence number of the next holder that waits.
    next_number: u64,
    /// Only groups with holders, so that the size of the map is bounded by the number of slots in
    /// use.
    groups: HashMap<SlotGroup, GroupMembers>,
}

#[derive(Default)]
struct GroupMembers {
    in_use: usize,
    /// Waiting holders by sequence number, so that the longest wait comes first.
    waiting: BTreeMap<u64, Evictable>,
}

#[derive(Clone)]
struct Evictable {
    slot: Arc<Slot>,
    evicted: CancellationToken,
}

impl SlotPool {
    pub fn new(limits: SlotLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
        })
    }

    /// Returns a free slot for this address, or the slot of the holder that has waited longest for
    /// its client. Without an address, only the total is limited.
    pub fn acquire(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Arc<Slot>> {
        let groups = groups(source);
        let mut state = self.state();
        // An eviction from the narrowest full group frees a slot in all wider ones.
        let full = groups
            .iter()
            .flatten()
            .find(|group| state.in_use(group) >= self.limit(group));
        if let Some(group) = full
            && !state.evict(group)
        {
            return None;
        }
        for group in groups.iter().flatten() {
            state.groups.entry(*group).or_default().in_use += 1;
        }
        drop(state);
        Some(Arc::new(Slot {
            pool: Arc::clone(self),
            groups,
            is_evicted: AtomicBool::new(false),
        }))
    }

    const fn limit(&self, group: &SlotGroup) -> usize {
        match group {
            SlotGroup::Address(_) => self.limits.per_address,
            SlotGroup::Site(_) => self.limits.per_site,
            SlotGroup::All => self.limits.total,
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    fn in_use(&self, group: &SlotGroup) -> usize {
        self.groups.get(group).map_or(0, |members| members.in_use)
    }

    /// Evicts the member of a group that has waited longest. Returns whether there was one.
    fn evict(&mut self, group: &SlotGroup) -> bool {
        let longest = self
            .groups
            .get(group)
            .and_then(|members| members.waiting.first_key_value());
        let Some((number, Evictable { slot, evicted })) =
            longest.map(|(number, one)| (*number, one.clone()))
        else {
            return false;
        };
        self.stop_waiting(number, &slot.groups);
        slot.is_evicted.store(true, Ordering::Relaxed);
        self.release(&slot.groups);
        evicted.cancel();
        true
    }

    fn stop_waiting(&mut self, number: u64, groups: &Groups) {
        for group in groups.iter().flatten() {
            if let Some(members) = self.groups.get_mut(group) {
                members.waiting.remove(&number);
            }
        }
    }

    fn release(&mut self, groups: &Groups) {
        for group in groups.iter().flatten() {
            if let Some(members) = self.groups.get_mut(group) {
                members.in_use -= 1;
                if members.in_use == 0 {
                    self.groups.remove(group);
                }
            }
        }
    }
}

/// One slot. It is released when its last holder drops it.
pub struct Slot {
    pool: Arc<SlotPool>,
    groups: Groups,
    /// Whether the slot has been given to another holder. Changes only under the lock of the pool.
    is_evicted: AtomicBool,
}

impl Slot {
    /// Marks the holder as waiting for its client while the guard is alive. Cancels the token if
    /// the holder is evicted.
    pub fn allow_eviction(self: &Arc<Self>, evicted: CancellationToken) -> EvictableGuard {
        let mut state = self.pool.state();
        let number = state.next_number;
        state.next_number += 1;
        if self.is_evicted.load(Ordering::Relaxed) {
            evicted.cancel();
        } else {
            for group in self.groups.iter().flatten() {
                let one = Evictable {
                    slot: Arc::clone(self),
                    evicted: evicted.clone(),
                };
                state
                    .groups
                    .entry(*group)
                    .or_default()
                    .waiting
                    .insert(number, one);
            }
        }
        drop(state);
        EvictableGuard {
            slot: Arc::clone(self),
            number,
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the pool, which refers back to this slot.
        f.debug_struct("Slot")
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if !self.is_evicted.load(Ordering::Relaxed) {
            state.release(&self.groups);
        }
    }
}

/// Marks a holder as waiting for its client.
pub struct EvictableGuard {
    slot: Arc<Slot>,
    number: u64,
}

impl EvictableGuard {
    /// Starts the wait again, because the client has sent or read something.
    pub fn restart(&mut self) {
        let mut state = self.slot.pool.state();
        let number = state.next_number;
        state.next_number += 1;
        for group in self.slot.groups.iter().flatten() {
            if let Some(members) = state.groups.get_mut(group)
                && let Some(one) = members.waiting.remove(&self.number)
            {
                members.waiting.insert(number, one);
            }
        }
        self.number = number;
    }
}

impl Drop for EvictableGuard {
    fn drop(&mut self) {
        // This guard still holds the slot, so no slot is dropped under the lock.
        self.slot
            .pool
            .state()
            .stop_waiting(self.number, &self.slot.groups);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn ipv6_counts_by_64_and_by_48_and_mapped_addresses_as_ipv4() {
        let pool = SlotPool::new(SlotLimits {
            total: 100,
            per_address: 2,
            per_site: 3,
        });
        let _customer = [
            pool.acquire(address("2001:db8:1:1::1")),
            pool.acquire(address("2001:db8:1:1:ffff::2")),
        ];
        assert!(
            pool.acquire(address("2001:db8:1:1::3")).is_none(),
            "the /64 is at its limit"
        );
        let neighbor = pool.acquire(address("2001:db8:1:2::1"));
        assert!(neighbor.is_some());
        assert!(
            pool.acquire(address("2001:db8:1:3::1")).is_none(),
            "the /48 is at its limit"
        );
        assert!(
            pool.acquire(address("2001:db8:2:1::1")).is_some(),
            "another /48"
        );
        drop(neighbor);
        assert!(pool.acquire(address("2001:db8:1:3::1")).is_some());
        let _v4 = [
            pool.acquire(address("192.0.2.1")),
            pool.acquire(address("::ffff:192.0.2.1")),
        ];
        assert!(pool.acquire(address("192.0.2.1")).is_none());
        assert!(pool.acquire(address("192.0.2.2")).is_some());
        assert!(pool.acquire(None).is_some());
    }

    #[test]
    fn the_one_that_has_waited_longest_gives_up_its_slot_once() {
        let pool = SlotPool::new(SlotLimits {
            total: 2,
            per_address: 2,
            per_site: 2,
        });
        let hold = |source: &str| {
            let (slot, evicted) = (
                pool.acquire(address(source)).expect("a slot"),
                CancellationToken::new(),
            );
            (slot.allow_eviction(evicted.clone()), slot, evicted)
        };
        let (first, second) = (hold("192.0.2.1"), hold("192.0.2.2"));
        let third = pool.acquire(address("192.0.2.3"));
        assert!(third.is_some() && first.2.is_cancelled() && !second.2.is_cancelled());
        let late = CancellationToken::new();
        let _again = first.1.allow_eviction(late.clone());
        assert!(
            late.is_cancelled(),
            "an evicted connection does not wait again"
        );
        drop(second.0);
        assert!(pool.acquire(None).is_none(), "no holder waits");
        drop(first.1);
        drop(first.0);
        assert!(
            pool.acquire(None).is_none(),
            "an evicted holder frees nothing"
        );
        drop((second.1, third, _again));
        assert!(
            pool.state().groups.is_empty(),
            "nothing is kept of sources that are gone"
        );
    }

    #[test]
    fn a_wait_that_starts_again_is_the_shortest() {
        let pool = SlotPool::new(SlotLimits::total(2));
        let hold = || {
            let (slot, evicted) = (
                pool.acquire(None).expect("a slot"),
                CancellationToken::new(),
            );
            (slot.allow_eviction(evicted.clone()), evicted)
        };
        let (mut first, second) = (hold(), hold());
        first.0.restart();
        let third = hold();
        assert!(second.1.is_cancelled() && !first.1.is_cancelled());
        third
            .0
            .slot
            .pool
            .acquire(None)
            .expect("the slot of the first");
        assert!(first.1.is_cancelled());
        first.0.restart();
        drop((first, second, third));
        assert!(pool.state().groups.is_empty());
    }

    proptest! {
        #[test]
        fn no_limit_is_exceeded_and_whoever_can_have_a_slot_gets_one(
            steps in prop::collection::vec((0..4_u8, 0..6_u16, any::<prop::sample::Index>()), 0..120)
        ) {
            let limits = SlotLimits { total: 5, per_address: 2, per_site: 3 };
            let pool = SlotPool::new(limits);
            struct Holder { source: IpAddr, slot: Arc<Slot>, evicted: CancellationToken, waiting: Option<EvictableGuard> }
            let mut holders: Vec<Holder> = Vec::new();
            for (step, source, index) in steps {
                // Two sites with three networks each.
                let source: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, source / 3, source % 3, 0, 0, 0, 1).into();
                match step {
                    0 | 1 => {
                        let at_limit = |group: &SlotGroup| {
                            let members = holders.iter().filter(|one| groups(Some(one.source)).contains(&Some(*group)));
                            members.count() >= pool.limit(group)
                        };
                        let full = groups(Some(source)).into_iter().flatten().find(at_limit);
                        let can_evict = full.is_none_or(|group| {
                            holders.iter().any(|one| one.waiting.is_some() && groups(Some(one.source)).contains(&Some(group)))
                        });
                        let slot = pool.acquire(Some(source));
                        prop_assert_eq!(slot.is_some(), can_evict);
                        holders.retain(|one| !one.evicted.is_cancelled());
                        holders.extend(slot.map(|slot| {
                            Holder { source, slot, evicted: CancellationToken::new(), waiting: None }
                        }));
                    }
                    2 if !holders.is_empty() => {
                        let one = index.get_mut(&mut holders);
                        one.waiting = match one.waiting.take() {
                            Some(_) => None,
                            None => Some(one.slot.allow_eviction(one.evicted.clone())),
                        };
                    }
                    3 if !holders.is_empty() => drop(holders.swap_remove(index.index(holders.len()))),
                    _ => {}
                }
                for group in holders.iter().flat_map(|one| groups(Some(one.source))).flatten() {
                    prop_assert!(pool.state().in_use(&group) <= pool.limit(&group));
                }
                prop_assert_eq!(pool.state().in_use(&SlotGroup::All), holders.len());
            }
            holders.clear();
            prop_assert!(pool.state().groups.is_empty());
        }
    }
}
