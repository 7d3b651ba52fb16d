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

const FRESH: Duration = Duration::from_secs(1);
/// Expired entries are evicted when the cache has this many.
const MANY: usize = 10_000;

/// Rows by id, with the stamp of their read.
pub struct Lately<V>(Mutex<HashMap<Id, Known<V>>>);

struct Known<V> {
    value: V,
    since: Since,
}

impl<V: Clone> Known<V> {
    fn at(&self, now: Since) -> Option<V> {
        self.since.holds(now).then(|| self.value.clone())
    }
}

/// The time and generation of a read, which decide whether its result is still fresh.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    at: Timestamp,
    /// The generation of the commit signal at that time.
    changes: u64,
}

impl Since {
    /// The current stamp. Take it before reading: a change during the read then invalidates the
    /// result.
    pub fn now(db: &Db, signal: CommitSignal, now: Timestamp) -> Self {
        Self { at: now, changes: db.generation(signal) }
    }

    fn holds(self, now: Self) -> bool {
        self.changes == now.changes && self.at <= now.at && now.at < self.at.plus(FRESH)
    }
}

impl<V> Default for Lately<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Clone> Lately<V> {
    /// The entry for this id, if it is fresh.
    pub fn one(&self, now: Since, id: Id) -> Option<V> {
        self.lock().get(&id)?.at(now)
    }

    /// The fresh entries among these ids.
    pub fn all(&self, now: Since, ids: &[Id]) -> HashMap<Id, V> {
        let known = self.lock();
        ids.iter().filter_map(|id| Some((*id, known.get(id)?.at(now)?))).collect()
    }

    /// Stores rows that were read after `since` was taken.
    pub fn remember(&self, since: Since, rows: impl IntoIterator<Item = (Id, V)>) {
        let mut known = self.lock();
        if known.len() >= MANY {
            known.retain(|_, known| known.since.holds(since));
        }
        known.extend(rows.into_iter().map(|(id, value)| (id, Known { value, since })));
    }

    /// Removes an entry whose row does not exist.
    pub fn forget(&self, id: Id) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Known<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_fresh_for_a_second_and_until_a_change() {
        let (lately, id) = (Lately::default(), Id::new());
        let since = |micros: i64, changes| Since { at: Timestamp::from_micros(micros), changes };
        let second = 1_000_000;
        lately.remember(since(0, 1), [(id, 'a')]);
        let known = |now| {
            let one = lately.one(now, id);
            assert_eq!(lately.all(now, &[id, Id::new()]), one.map(|value| (id, value)).into_iter().collect());
            one
        };
        assert_eq!(known(since(0, 1)), Some('a'));
        assert_eq!(known(since(second - 1, 1)), Some('a'));
        assert_eq!(known(since(second, 1)), None);
        assert_eq!(known(since(-1, 1)), None, "the clock was set back");
        assert_eq!(known(since(0, 2)), None);
        lately.forget(id);
        assert_eq!(known(since(0, 1)), None);
    }

    #[test]
    fn expired_entries_are_evicted() {
        let lately = Lately::default();
        let since = |changes| Since { at: Timestamp::default(), changes };
        lately.remember(since(1), (0..MANY).map(|number| (Id::new(), number)));
        lately.remember(since(2), [(Id::new(), 0)]);
        assert_eq!(lately.lock().len(), 1);
    }
}
