//! From a cursor to now and on: the stream behind every subscription.
//!
//! The listener is registered first and the log is read after it, so that nothing falls between the two; what comes by
//! both ways is recognised by its place in the log. Rights are asked for each event, of the rows as they are then.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::Context;
use futures_util::stream::{BoxStream, Empty, empty, unfold};
use futures_util::{Stream, StreamExt};

use super::Caller;
use super::event::within;
use super::notification::Notification;
use crate::App;
use crate::access::Viewer;
use crate::error::{Error, Result};
use crate::events::hub::{Delivery, Listener, Topic};
use crate::events::{Event, Position, floor, settled_end};
use crate::store::event::{self, EventColumns, Filter, Objects, Stretch, sees};
use crate::store::task::TaskColumns;

/// How many events are read from the log at once while catching up: few at first, then more.
const FIRST_BATCH: usize = 20;
const MAX_BATCH: usize = 100;
/// Bytes of events that a subscriber keeps of what it has read, and one event more. What is over is read again later: a
/// subscriber that does not read must not hold a hundred events of 100 kB.
const MAX_KEPT_BYTES: usize = 128 * 1024;

/// An event that a subscriber is to be told of, its objects loaded; with the notification where that is what is told.
#[derive(Clone)]
pub struct Happening {
    /// The event.
    pub event: Arc<Event>,
    /// The rows it is answered from.
    pub objects: Arc<Objects>,
    /// What came of it into the subscriber's inbox.
    pub notification: Option<Notification>,
    /// A position from which the stream goes on with this event.
    pub before: Position,
    delivery: Arc<Delivery<Objects>>,
}

impl Happening {
    /// The event with objects that are at most a second old; nothing if the viewer may no longer see it.
    pub async fn current(mut self, app: &App, viewer: &Viewer) -> Result<Option<Self>> {
        let objects = objects(app, &self.delivery).await?;
        if !Arc::ptr_eq(&objects, &self.objects) {
            if !sees(viewer, &self.event, objects.task.as_deref()) {
                return Ok(None);
            }
            self.objects = objects;
        }
        Ok(Some(self))
    }
}

async fn objects(app: &App, delivery: &Delivery<Objects>) -> Result<Arc<Objects>> {
    let load = async { Objects::of(&mut app.db.conn().await?, &delivery.event).await };
    // On the heap: mostly they are there.
    Box::pin(delivery.objects(app.clock.now(), load)).await
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
        let position = |cursor| Caller::of(ctx).app().cursors.decode(cursor);
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
    /// How many events are read at once while it is behind.
    batch: usize,
    caught_up: VecDeque<Arc<Delivery<Objects>>>,
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
            Some(position) => within(&app.cursors, floor(&mut conn).await?, position)?,
            None => settled_end(&mut conn).await?,
        }
    };
    let (behind, batch, caught_up) = (after.is_some(), FIRST_BATCH, VecDeque::new());
    let follower = Follower { app, viewer, filter, position, listener, behind, batch, caught_up };
    // On the heap: a stream keeps room for its state more than once.
    Ok(unfold(Some(Box::new(follower)), async |follower| {
        let mut follower = follower?;
        match follower.next().await {
            Ok(happening) => Some((Ok(happening), Some(follower))),
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
    async fn next(&mut self) -> Result<Happening> {
        loop {
            let delivery = if let Some(delivery) = self.caught_up.pop_front() {
                delivery
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
            let before = std::mem::replace(&mut self.position, delivery.event.position());
            let objects = objects(&self.app, &delivery).await?;
            if sees(&self.viewer, &delivery.event, objects.task.as_deref()) {
                let event = Arc::clone(&delivery.event);
                return Ok(Happening { event, objects, notification: None, before, delivery });
            }
        }
    }

    async fn catch_up(&mut self) -> Result<()> {
        let stretch = Stretch { after: Some(self.position), before: None, limit: self.batch, backward: false };
        let now = self.app.clock.now();
        let mut conn = self.app.db.conn().await?;
        let events = event::page(&mut conn, &self.viewer, &self.filter, stretch, EventColumns::Full).await?;
        // Asked after it: what has expired since then may be missing from what was read before.
        within(&self.app.cursors, floor(&mut conn).await?, self.position)?;
        drop(conn);
        let mut loaded = Objects::of_all(&self.app.db, events, TaskColumns::Full).await?;
        let (read, kept) = (loaded.len(), kept(&loaded));
        loaded.truncate(kept);
        self.behind = read == self.batch || kept < read;
        self.batch = if kept < read { kept } else { (2 * self.batch).min(MAX_BATCH) };
        let delivery = |(event, objects)| Arc::new(Delivery::with(event, now, objects));
        self.caught_up = loaded.into_iter().map(delivery).collect();
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
}

/// How many of these events a subscriber keeps, with the rows that they are answered from: at least one.
fn kept(loaded: &[(Event, Objects)]) -> usize {
    let mut bytes = 0;
    let fits = |(event, objects): &&(Event, Objects)| {
        let fits = bytes < MAX_KEPT_BYTES;
        bytes += event.data.len() + objects.text_bytes();
        fits
    };
    loaded.iter().take_while(fits).count()
}
