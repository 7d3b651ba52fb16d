//! How many of something each user has open on this instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::id::Id;

/// What users have open, by user.
#[derive(Default)]
pub struct UserSlots(Mutex<HashMap<Id, usize>>);

/// One of a user's slots, given back when it is dropped.
pub struct UserSlot {
    slots: Arc<UserSlots>,
    user: Id,
}

impl UserSlots {
    /// Takes one more slot, unless the user has as many as are allowed.
    pub fn take(self: &Arc<Self>, user: Id, limit: usize) -> Option<UserSlot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(user).or_default();
        (*count < limit).then(|| {
            *count += 1;
            UserSlot { slots: Arc::clone(self), user }
        })
    }
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        let mut counts = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user);
            }
        }
    }
}
