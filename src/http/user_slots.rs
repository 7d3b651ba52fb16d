//! Limits how many of something, such as sockets, each user has open on this instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::id::Id;

/// Number of open slots by user.
#[derive(Default)]
pub struct UserSlots(Mutex<HashMap<Id, usize>>);

/// One slot of a user. Dropping it releases the slot.
pub struct UserSlot {
    slots: Arc<UserSlots>,
    user: Id,
}

impl UserSlots {
    /// Takes a slot, unless the user already has `limit` of them.
    pub fn take(self: &Arc<Self>, user: Id, limit: usize) -> Option<UserSlot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(user).or_default();
        (*count < limit).then(|| {
            *count += 1;
            UserSlot {
                slots: Arc::clone(self),
                user,
            }
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
