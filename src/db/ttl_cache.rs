//! Cache with a TTL of one second.
//!
//! A local commit that raises the signal invalidates it at once. Changes by other instances show
//! after the TTL, or earlier if their event arrives first and raises the signal here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{CommitSignal, Db};
use crate::id::Id;
use crate::time::Timestamp;

const TTL: Duration = Duration::from_secs(1);
/// Expired entries are evicted when the cache has this many.
const EVICTION_THRESHOLD: usize = 10_000;

/// Rows by id, with the stamp of their read.
pub struct ShortTtlCache<V>(Mutex<HashMap<Id, CachedValue<V>>>);

struct CachedValue<V> {
    value: V,
    stamp: CacheStamp,
}

impl<V: Clone> CachedValue<V> {
    fn fresh(&self, now: CacheStamp) -> Option<V> {
        self.stamp.is_valid_at(now).then(|| self.value.clone())
    }
}

/// The time and generation of a read, which decide whether its result is still fresh.
#[derive(Clone, Copy, Debug)]
pub struct CacheStamp {
    at: Timestamp,
    /// The generation of the commit signal at that time.
    generation: u64,
}

impl CacheStamp {
    /// The current stamp. Take it before reading: a change during the read then invalidates the
    /// result.
    pub fn now(db: &Db, signal: CommitSignal, now: Timestamp) -> Self {
        Self {
            at: now,
            generation: db.generation(signal),
        }
    }

    fn is_valid_at(self, now: Self) -> bool {
        self.generation == now.generation && self.at <= now.at && now.at < self.at.plus(TTL)
    }
}

impl<V> Default for ShortTtlCache<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Clone> ShortTtlCache<V> {
    /// The entry for this id, if it is fresh.
    pub fn get(&self, now: CacheStamp, id: Id) -> Option<V> {
        self.lock().get(&id)?.fresh(now)
    }

    /// The fresh entries among these ids.
    pub fn get_many(&self, now: CacheStamp, ids: &[Id]) -> HashMap<Id, V> {
        let cached = self.lock();
        ids.iter()
            .filter_map(|id| Some((*id, cached.get(id)?.fresh(now)?)))
            .collect()
    }

    /// Stores rows that were read after `since` was taken.
    pub fn insert(&self, since: CacheStamp, rows: impl IntoIterator<Item = (Id, V)>) {
        let mut cached = self.lock();
        if cached.len() >= EVICTION_THRESHOLD {
            cached.retain(|_, cached| cached.stamp.is_valid_at(since));
        }
        cached.extend(rows.into_iter().map(|(id, value)| {
            (
                id,
                CachedValue {
                    value,
                    stamp: since,
                },
            )
        }));
    }

    /// Removes an entry whose row does not exist.
    pub fn remove(&self, id: Id) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, CachedValue<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_fresh_for_a_second_and_until_a_change() {
        let (cache, id) = (ShortTtlCache::default(), Id::new());
        let since = |micros: i64, changes| CacheStamp {
            at: Timestamp::from_micros(micros),
            generation: changes,
        };
        let second = 1_000_000;
        cache.insert(since(0, 1), [(id, 'a')]);
        let cached = |now| {
            let one = cache.get(now, id);
            assert_eq!(
                cache.get_many(now, &[id, Id::new()]),
                one.map(|value| (id, value)).into_iter().collect()
            );
            one
        };
        assert_eq!(cached(since(0, 1)), Some('a'));
        assert_eq!(cached(since(second - 1, 1)), Some('a'));
        assert_eq!(cached(since(second, 1)), None);
        assert_eq!(cached(since(-1, 1)), None, "the clock was set back");
        assert_eq!(cached(since(0, 2)), None);
        cache.remove(id);
        assert_eq!(cached(since(0, 1)), None);
    }

    #[test]
    fn expired_entries_are_evicted() {
        let cache = ShortTtlCache::default();
        let since = |changes| CacheStamp {
            at: Timestamp::default(),
            generation: changes,
        };
        cache.insert(
            since(1),
            (0..EVICTION_THRESHOLD).map(|number| (Id::new(), number)),
        );
        cache.insert(since(2), [(Id::new(), 0)]);
        assert_eq!(cache.lock().len(), 1);
    }
}
