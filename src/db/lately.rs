//! What was read a moment ago, and holds for a second.
//!
//! What this instance changes is heeded at once: the commit of it makes everything worthless that was read before. What
//! another instance changes is heeded after a second, or when its event is told if that rings the bell here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Bell, Db};
use crate::id::Id;
use crate::time::Timestamp;

/// How long it holds.
const FRESH: Duration = Duration::from_secs(1);
/// So much is remembered before that is forgotten which is not fresh.
const MANY: usize = 10_000;

/// Rows that were read lately, by id.
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

/// When something was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    at: Timestamp,
    /// How often there had been a change.
    changes: u64,
}

impl Since {
    /// Now; to be taken before anything is read, so that what changes meanwhile makes it worthless.
    pub fn now(db: &Db, bell: Bell, now: Timestamp) -> Self {
        Self { at: now, changes: db.changes(bell) }
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
    /// What is known of a row.
    pub fn one(&self, now: Since, id: Id) -> Option<V> {
        self.lock().get(&id)?.at(now)
    }

    /// What is known of these rows.
    pub fn all(&self, now: Since, ids: &[Id]) -> HashMap<Id, V> {
        let known = self.lock();
        ids.iter().filter_map(|id| Some((*id, known.get(id)?.at(now)?))).collect()
    }

    /// Remembers what was read, asked for at that time.
    pub fn remember(&self, since: Since, rows: impl IntoIterator<Item = (Id, V)>) {
        let mut known = self.lock();
        if known.len() >= MANY {
            known.retain(|_, known| known.since.holds(since));
        }
        known.extend(rows.into_iter().map(|(id, value)| (id, Known { value, since })));
    }

    /// There is no such row.
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
    fn what_was_read_holds_for_a_second_and_until_there_is_a_change() {
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
        assert_eq!(known(since(-1, 1)), None, "the clock was put back");
        assert_eq!(known(since(0, 2)), None);
        lately.forget(id);
        assert_eq!(known(since(0, 1)), None);
    }

    #[test]
    fn what_holds_no_more_makes_room() {
        let lately = Lately::default();
        let since = |changes| Since { at: Timestamp::default(), changes };
        lately.remember(since(1), (0..MANY).map(|number| (Id::new(), number)));
        lately.remember(since(2), [(Id::new(), 0)]);
        assert_eq!(lately.lock().len(), 1);
    }
}
