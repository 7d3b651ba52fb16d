//! Cache of the viewers of active sessions, with a TTL of one second. Commits of this instance
//! invalidate it at once.

use crate::access::Viewer;
use crate::db::ttl_cache::{CacheStamp, ShortTtlCache};
use crate::db::{CommitSignal, Db, with_acquire_timeout};
use crate::error::Result;
use crate::id::Id;
use crate::store::session;
use crate::time::Timestamp;

/// Viewers by session id.
#[derive(Default)]
pub struct ViewerCache(ShortTtlCache<Viewer>);

impl ViewerCache {
    /// The viewer of a session, or `None` when it has ended.
    pub async fn viewer(&self, db: &Db, now: Timestamp, session_id: Id) -> Result<Option<Viewer>> {
        let since = CacheStamp::now(db, CommitSignal::Sessions, now);
        if let Some(viewer) = self.0.get(since, session_id) {
            return Ok(Some(viewer));
        }
        let viewer = with_acquire_timeout(async {
            session::viewer(&mut db.conn_for_rows(1).await?, now, session_id).await
        })
        .await?;
        match viewer {
            Some(viewer) => self.0.insert(since, [(session_id, viewer)]),
            None => self.0.remove(session_id),
        }
        Ok(viewer)
    }
}
