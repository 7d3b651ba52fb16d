//! From a cursor to now and on: the stream behind every subscription.
//!
//! The listener is registered first and the log is read after it, so that nothing falls between the two; what comes by
//! both ways is recognised by its place in the log. Rights are asked for each event, of the rows as they are then.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_graphql::Context;
use futures_util::stream::{BoxStream, Empty, empty, unfold};
use futures_util::{Stream, StreamExt};
use tokio::sync::OnceCell;

use super::Caller;
use super::event::{position, within};
use super::notification::Notification;
use crate::App;
use crate::access::Viewer;
use crate::error::{Error, Result};
use crate::events::hub::{Delivery, Listener, Topic};
use crate::events::{Position, floor, settled_end};
use crate::store::event::{self, EventColumns, Filter, Objects, Stretch, sees};
use crate::store::task::TaskColumns;

/// How many events are read from the log at once while catching up.
const BATCH: usize = 100;
/// For how long what was loaded with them is taken to be so.
const FRESH: Duration = Duration::from_secs(1);

/// An event that a subscriber is to be told of, its objects loaded; with the notification where that is what is told.
#[derive(Clone)]
pub struct Happening {
    /// The event.
    pub delivery: Arc<Delivery<Objects>>,
    /// What came of it into the subscriber's inbox.
    pub notification: Option<Notification>,
}

/// What happens, as it happens; it ends with the first error.
pub type Happenings = BoxStream<'static, Result<Happening>>;

/// Where a subscription's resolver leaves what it opened, and how it is opened: the library's executor checks a
/// subscription and its arguments, and each event is answered by [`super::Telling`].
#[derive(Clone)]
pub struct Opening {
    after: Option<Arc<str>>,
    opened: Arc<Mutex<Option<Happenings>>>,
}

impl Opening {
    /// To go on after this cursor if it is given, whatever the document says.
    pub fn after(after: Option<&str>) -> Self {
        Self { after: after.map(Arc::from), opened: Arc::default() }
    }

    /// What was opened.
    pub fn take(&self) -> Option<Happenings> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where the subscription of this operation begins, if not now.
    pub fn begin(ctx: &Context<'_>, after: Option<String>) -> Result<Option<Position>> {
        let Self { after: resumed, .. } = ctx.data_unchecked();
        resumed.as_deref().or(after.as_deref()).map(position).transpose()
    }

    /// Leaves what the subscription of this operation opened. Nothing comes by the library's stream.
    pub fn leave<T>(ctx: &Context<'_>, happenings: impl Stream<Item = Result<Happening>> + Send + 'static) -> Empty<T> {
        let Self { opened, .. } = ctx.data_unchecked();
        *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(happenings.boxed());
        empty()
    }
}

struct Follower {
    app: Arc<App>,
    viewer: Viewer,
    filter: Arc<Filter>,
    position: Position,
    listener: Listener<Objects>,
    behind: bool,
    caught_up: VecDeque<Arc<Delivery<Objects>>>,
    /// When the objects of those were loaded.
    loaded: Instant,
}

/// Every event that passes the filter and that the viewer may see: after the position, or from now on.
pub async fn follow(
    caller: &Caller,
    filter: Filter,
    after: Option<Position>,
) -> Result<impl Stream<Item = Result<Happening>> + use<>> {
    let (app, viewer, filter) = (Arc::clone(caller.app()), *caller.viewer()?, Arc::new(filter));
    let listener = listen(&app, viewer, &filter);
    // A socket may have been opened long ago. From here on the listener tells when the session ends.
    still_signed_in(&app, &viewer).await?;
    let position = {
        let mut conn = app.db.conn().await?;
        match after {
            Some(position) => within(floor(&mut conn).await?, position)?,
            None => settled_end(&mut conn).await?,
        }
    };
    let (behind, caught_up, loaded) = (after.is_some(), VecDeque::new(), Instant::now());
    let follower = Follower { app, viewer, filter, position, listener, behind, caught_up, loaded };
    // On the heap: a stream keeps room for its state more than once.
    Ok(unfold(Some(Box::new(follower)), async |follower| {
        let mut follower = follower?;
        match follower.next().await {
            Ok(delivery) => Some((Ok(Happening { delivery, notification: None }), Some(follower))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

fn listen(app: &App, viewer: Viewer, filter: &Arc<Filter>) -> Listener<Objects> {
    let topic = match (filter.task_id, filter.project_id) {
        (Some(task), _) => Topic::Task(task),
        (None, Some(project)) => Topic::Project(project),
        (None, None) => Topic::Viewer,
    };
    let filter = Arc::clone(filter);
    app.hub.listen(viewer, topic, Box::new(move |event| filter.matches(event)))
}

/// UNAUTHENTICATED once the session has ended or the viewer has become another kind of person.
async fn still_signed_in(app: &App, viewer: &Viewer) -> Result<()> {
    let present = app.sessions.viewer(&app.db, app.clock.now(), viewer.session_id).await?;
    if present.as_ref() == Some(viewer) { Ok(()) } else { Err(Error::unauthenticated()) }
}

impl Follower {
    /// What is rare is on the heap: there may be many of these, and they mostly wait.
    async fn next(&mut self) -> Result<Arc<Delivery<Objects>>> {
        loop {
            let delivery = if let Some(delivery) = self.caught_up.pop_front() {
                // Rights are asked of the rows as they are now, also of a client that reads slowly.
                if self.loaded.elapsed() < FRESH {
                    delivery
                } else {
                    Arc::new(Delivery::new((*delivery.event).clone()))
                }
            } else if self.behind {
                Box::pin(self.catch_up()).await?;
                continue;
            } else if let Some(delivery) = self.listener.next().await {
                if delivery.event.position() <= self.position {
                    continue;
                }
                delivery
            } else {
                Box::pin(self.listen_again()).await?;
                continue;
            };
            self.position = delivery.event.position();
            if self.may_see(&delivery).await? {
                return Ok(delivery);
            }
        }
    }

    async fn catch_up(&mut self) -> Result<()> {
        let stretch = Stretch { after: Some(self.position), before: None, limit: BATCH, backward: false };
        let mut conn = self.app.db.conn().await?;
        let events = event::page(&mut conn, &self.viewer, &self.filter, stretch, EventColumns::Full).await?;
        // Asked after it: what has expired since then may be missing from what was read before.
        within(floor(&mut conn).await?, self.position)?;
        drop(conn);
        self.behind = events.len() == BATCH;
        let tasks = Objects::of_all(&self.app.db, &events, TaskColumns::Full).await?;
        self.loaded = Instant::now();
        let loaded = events.into_iter().map(|event| {
            let task = event.task_id.and_then(|id| tasks.get(&id).cloned());
            let objects = Objects::with(&event, task);
            Arc::new(Delivery { objects: OnceCell::new_with(Some(objects)), ..Delivery::new(event) })
        });
        self.caught_up = loaded.collect();
        Ok(())
    }

    /// After falling behind, or after something changed about the viewer: goes on only if the session still holds.
    async fn listen_again(&mut self) -> Result<()> {
        let app = &self.app;
        self.position = self.position.max(self.listener.until());
        self.listener = listen(app, self.viewer, &self.filter);
        still_signed_in(app, &self.viewer).await?;
        self.behind = true;
        Ok(())
    }

    async fn may_see(&self, delivery: &Delivery<Objects>) -> Result<bool> {
        let objects = match delivery.objects.get() {
            Some(objects) => objects,
            None => Box::pin(self.load(delivery)).await?,
        };
        Ok(sees(&self.viewer, &delivery.event, objects.task.as_deref()))
    }

    async fn load<'a>(&self, delivery: &'a Delivery<Objects>) -> Result<&'a Objects> {
        let load = async || Objects::of(&mut self.app.db.conn().await?, &delivery.event).await;
        delivery.objects.get_or_try_init(load).await
    }
}
