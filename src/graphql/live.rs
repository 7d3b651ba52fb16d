//! From a cursor to now and on: the stream behind every subscription.
//!
//! The listener is registered first and the log is read after it, so that nothing falls between the two; what comes by
//! both ways is recognised by its place in the log. Rights are asked for each event, of the rows as they are then.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::unfold;

use super::Caller;
use super::event::{Told, within};
use crate::access::Viewer;
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::events::hub::{Delivery, Listener, Topic};
use crate::events::{Position, floor, settled_end};
use crate::store::event::{self, Filter, Objects, Stretch, sees};
use crate::store::session;
use crate::time::Timestamp;

/// How many events are read from the log at once while catching up.
const BATCH: usize = 100;

struct Follower {
    caller: Caller,
    viewer: Viewer,
    filter: Arc<Filter>,
    deep: bool,
    position: Position,
    listener: Listener<Objects>,
    behind: bool,
    caught_up: VecDeque<Arc<Delivery<Objects>>>,
}

/// Every event that passes the filter and that the viewer may see: after the position, or from now on. What else hangs
/// on it is loaded beforehand where the operation is going to ask for it (`deep`), so that of many subscribers none
/// waits in the middle of its answer.
pub async fn follow(
    caller: &Caller,
    filter: Filter,
    after: Option<Position>,
    deep: bool,
) -> Result<impl Stream<Item = Result<Told>> + use<>> {
    let (caller, viewer, filter) = (caller.clone(), *caller.viewer()?, Arc::new(filter));
    let listener = listen(&caller, viewer, &filter);
    let position = {
        let app = caller.app();
        let mut conn = app.db.conn().await?;
        // A socket may have been opened long ago. From here on the listener tells when the session ends.
        still_signed_in(&mut conn, app.clock.now(), &viewer).await?;
        match after {
            Some(position) => within(floor(&mut conn).await?, position)?,
            None => settled_end(&mut conn).await?,
        }
    };
    let follower = Follower {
        caller,
        viewer,
        filter,
        deep,
        position,
        listener,
        behind: after.is_some(),
        caught_up: VecDeque::new(),
    };
    Ok(unfold(Some(follower), async |follower| {
        let mut follower = follower?;
        match follower.next().await {
            Ok(told) => Some((Ok(told), Some(follower))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

fn listen(caller: &Caller, viewer: Viewer, filter: &Arc<Filter>) -> Listener<Objects> {
    let topic = match (filter.task_id, filter.project_id) {
        (Some(task), _) => Topic::Task(task),
        (None, Some(project)) => Topic::Project(project),
        (None, None) => Topic::Viewer,
    };
    let filter = Arc::clone(filter);
    caller.app().hub.listen(viewer, topic, Box::new(move |event| filter.matches(event)))
}

/// UNAUTHENTICATED once the session has ended or the viewer has become another kind of person.
async fn still_signed_in(conn: &mut Conn, now: Timestamp, viewer: &Viewer) -> Result<()> {
    let present = session::viewer(conn, now, viewer.session_id).await?;
    if present.as_ref() == Some(viewer) { Ok(()) } else { Err(Error::unauthenticated()) }
}

impl Follower {
    /// What is rare is on the heap: there may be many of these, and they mostly wait.
    async fn next(&mut self) -> Result<Told> {
        self.caller.renew(None);
        loop {
            if let Some(delivery) = self.caught_up.pop_front() {
                self.position = delivery.event.position();
                if let Some(told) = self.tell(&delivery).await? {
                    return Ok(told);
                }
            } else if self.behind {
                Box::pin(self.catch_up()).await?;
            } else if let Some(delivery) = self.listener.next().await {
                if delivery.event.position() <= self.position {
                    continue;
                }
                self.position = delivery.event.position();
                if let Some(told) = self.tell(&delivery).await? {
                    return Ok(told);
                }
            } else {
                Box::pin(self.listen_again()).await?;
            }
        }
    }

    async fn catch_up(&mut self) -> Result<()> {
        let stretch = Stretch { after: Some(self.position), before: None, limit: BATCH, backward: false };
        let mut conn = self.caller.app().db.conn().await?;
        let events = event::page(&mut conn, &self.viewer, &self.filter, stretch).await?;
        // Asked after it: what has expired since then may be missing from what was read before.
        within(floor(&mut conn).await?, self.position)?;
        self.behind = events.len() == BATCH;
        self.caught_up = events.into_iter().map(|event| Arc::new(Delivery::new(event))).collect();
        Ok(())
    }

    /// After falling behind, or after something changed about the viewer: goes on only if the session still holds.
    async fn listen_again(&mut self) -> Result<()> {
        let app = self.caller.app();
        self.position = self.position.max(self.listener.until());
        self.listener = listen(&self.caller, self.viewer, &self.filter);
        still_signed_in(&mut app.db.conn().await?, app.clock.now(), &self.viewer).await?;
        self.behind = true;
        Ok(())
    }

    async fn tell(&self, delivery: &Arc<Delivery<Objects>>) -> Result<Option<Told>> {
        let objects = match delivery.objects.get() {
            Some(objects) => objects,
            None => Box::pin(self.load(delivery)).await?,
        };
        if !sees(&self.viewer, &delivery.event, objects.task.as_deref()) {
            return Ok(None);
        }
        if self.deep {
            Box::pin(objects.attached(&self.caller.app().db, &delivery.event)).await?;
        }
        self.caller.renew(Some(Arc::clone(delivery)));
        Ok(Some(Told::new(&delivery.event, &objects.snapshot, objects.task.as_ref())))
    }

    async fn load<'a>(&self, delivery: &'a Delivery<Objects>) -> Result<&'a Objects> {
        let load = async || Objects::of(&mut self.caller.app().db.conn().await?, &delivery.event).await;
        delivery.objects.get_or_try_init(load).await
    }
}
