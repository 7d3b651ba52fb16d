//! Whom the sessions in use speak for, remembered for a second.
//!
//! What this instance changes about a session or its user is heeded at once: the commit of it makes everything worthless
//! that was read before. What another instance changes is heeded when its event is told, and after a second in any case.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::access::Viewer;
use crate::db::{Db, soon};
use crate::error::Result;
use crate::id::Id;
use crate::store::session;
use crate::time::Timestamp;

/// How long a session is taken to hold.
const FRESH: Duration = Duration::from_secs(1);
/// So many are remembered before those are forgotten that are not fresh.
const MANY: usize = 10_000;

/// The sessions that were looked at lately.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<Id, Known>>);

struct Known {
    viewer: Viewer,
    at: Timestamp,
    /// How often sessions had changed when it was read.
    changes: u64,
}

impl Known {
    fn is_fresh(&self, now: Timestamp, changes: u64) -> bool {
        self.changes == changes && self.at <= now && now < self.at.plus(FRESH)
    }
}

impl Sessions {
    /// Whom a session speaks for, if it still does.
    pub async fn viewer(&self, db: &Db, now: Timestamp, session_id: Id) -> Result<Option<Viewer>> {
        // Before it is read: what changes meanwhile makes it worthless.
        let changes = db.sessions_changed();
        let known = self.lock().get(&session_id).filter(|known| known.is_fresh(now, changes)).map(|known| known.viewer);
        if known.is_some() {
            return Ok(known);
        }
        let viewer = soon(async { session::viewer(&mut db.conn_for(1).await?, now, session_id).await }).await?;
        let mut sessions = self.lock();
        if let Some(viewer) = viewer {
            if sessions.len() >= MANY {
                sessions.retain(|_, known| known.is_fresh(now, changes));
            }
            sessions.insert(session_id, Known { viewer, at: now, changes });
        } else {
            sessions.remove(&session_id);
        }
        Ok(viewer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
