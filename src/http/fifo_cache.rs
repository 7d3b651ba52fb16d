//! Cache bounded by size, first in, first out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Values by key. Each has a size; the oldest entries are evicted when the total exceeds the
/// capacity.
pub struct FifoCache<V> {
    capacity: usize,
    state: Mutex<CacheState<V>>,
}

struct CacheState<V> {
    size: usize,
    values: HashMap<Arc<str>, V>,
    order: VecDeque<(Arc<str>, usize)>,
}

impl<V: Clone> FifoCache<V> {
    /// An empty cache with this capacity.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::new(CacheState {
                size: 0,
                values: HashMap::new(),
                order: VecDeque::new(),
            }),
        }
    }

    pub fn get(&self, key: &str) -> Option<V> {
        self.lock().values.get(key).cloned()
    }

    /// Stores a value of this size, unless the key exists or the value exceeds the capacity.
    pub fn insert(&self, key: &str, size: usize, value: V) {
        let mut state = self.lock();
        if size > self.capacity || state.values.contains_key(key) {
            return;
        }
        while state.size + size > self.capacity {
            let Some((oldest, size)) = state.order.pop_front() else {
                break;
            };
            state.values.remove(&oldest);
            state.size -= size;
        }
        let key: Arc<str> = key.into();
        state.size += size;
        state.order.push_back((Arc::clone(&key), size));
        state.values.insert(key, value);
    }

    fn lock(&self) -> MutexGuard<'_, CacheState<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_are_evicted() {
        let recent = FifoCache::new(5);
        for (key, size) in [("a", 2), ("b", 2), ("a", 1), ("c", 6), ("d", 3)] {
            recent.insert(key, size, key.to_owned());
        }
        assert_eq!(
            ["a", "b", "c", "d"].map(|key| recent.get(key).is_some()),
            [false, true, false, true]
        );
    }
}
