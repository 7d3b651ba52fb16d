//! Documents that came lately, and what was made of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was made of documents, by their text or hash. When there is no more room, the oldest make some.
pub struct Recent<V> {
    room: usize,
    kept: Mutex<Kept<V>>,
}

struct Kept<V> {
    taken: usize,
    known: HashMap<Arc<str>, V>,
    order: VecDeque<(Arc<str>, usize)>,
}

impl<V: Clone> Recent<V> {
    /// Nothing yet, and so much room.
    pub fn new(room: usize) -> Self {
        Self { room, kept: Mutex::new(Kept { taken: 0, known: HashMap::new(), order: VecDeque::new() }) }
    }

    /// What is kept under this key.
    pub fn get(&self, key: &str) -> Option<V> {
        self.lock().known.get(key).cloned()
    }

    /// Keeps something that takes so much room, if there is that much and nothing under the key.
    pub fn keep(&self, key: &str, size: usize, value: V) {
        let mut kept = self.lock();
        if size > self.room || kept.known.contains_key(key) {
            return;
        }
        while kept.taken + size > self.room {
            let Some((oldest, size)) = kept.order.pop_front() else { break };
            kept.known.remove(&oldest);
            kept.taken -= size;
        }
        let key: Arc<str> = key.into();
        kept.taken += size;
        kept.order.push_back((Arc::clone(&key), size));
        kept.known.insert(key, value);
    }

    fn lock(&self) -> MutexGuard<'_, Kept<V>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let recent = Recent::new(5);
        for (key, size) in [("a", 2), ("b", 2), ("a", 1), ("c", 6), ("d", 3)] {
            recent.keep(key, size, key.to_owned());
        }
        assert_eq!(["a", "b", "c", "d"].map(|key| recent.get(key).is_some()), [false, true, false, true]);
    }
}
