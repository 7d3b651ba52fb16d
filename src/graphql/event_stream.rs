//! The stream behind every subscription: it replays the event log after a cursor, then follows live
//! events.
//!
//! The listener is registered before the log is read, so that no event is lost between the two; an
//! event that arrives both ways is recognized by its position. Permissions are checked for each
//! event, against the current rows.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::Context;
use futures_util::stream::{BoxStream, Empty, empty, unfold};
use futures_util::{Stream, StreamExt};

use super::RequestContext;
use super::event::{check_cursor, check_retained};
use super::notification::Notification;
use crate::App;
use crate::access::Viewer;
use crate::error::{Error, Result};
use crate::events::hub::{Delivery, Listener, Topic};
use crate::events::{Event, LogPosition, retention_horizon, settled_end};
use crate::store::event::{self, EventColumns, EventCriteria, EventObjects, LogRange, can_see};
use crate::store::task::TaskColumns;

/// Events per read of the log while catching up. The size starts small and doubles up to the
/// maximum.
const FIRST_BATCH: usize = 20;
const MAX_BATCH: usize = 100;
/// Bytes of replayed events that a subscriber buffers, plus at most one event. The rest is read
/// again later: a client that does not read must not keep a hundred events of 100 kB in memory.
const MAX_KEPT_BYTES: usize = 128 * 1024;

/// An event to deliver to a subscriber, with its objects loaded.
#[derive(Clone)]
pub struct SubscriptionEvent {
    pub event: Arc<Event>,
    /// The rows that the event is resolved from.
    pub objects: Arc<EventObjects>,
    /// The subscriber's notification of the event, for `notificationAdded` only.
    pub notification: Option<Notification>,
    /// A position just before this event: a stream that resumes from it starts with this event.
    pub before: LogPosition,
    delivery: Arc<Delivery<EventObjects>>,
}

impl SubscriptionEvent {
    /// Reloads objects that are more than a second old. `None` if the viewer may no longer see the
    /// event.
    pub async fn refresh(mut self, app: &App, viewer: &Viewer) -> Result<Option<Self>> {
        let objects = objects(app, &self.delivery).await?;
        if !Arc::ptr_eq(&objects, &self.objects) {
            if !can_see(viewer, &self.event, objects.task.as_deref()) {
                return Ok(None);
            }
            self.objects = objects;
        }
        Ok(Some(self))
    }
}

async fn objects(app: &App, delivery: &Delivery<EventObjects>) -> Result<Arc<EventObjects>> {
    let load = async { EventObjects::for_event(&mut app.db.conn().await?, &delivery.event).await };
    // Boxed, because it rarely has to load anything.
    Box::pin(delivery.objects(app.clock.now(), load)).await
}

/// The stream of a subscription. It ends with the first error.
pub type EventStream = BoxStream<'static, Result<SubscriptionEvent>>;

/// Hands the stream from a subscription's resolver to the transport. async-graphql executes the
/// operation once, which checks it and its arguments; each event is then resolved by
/// [`super::EventSchema`].
#[derive(Clone)]
pub struct SubscriptionHandle {
    after: Option<Arc<str>>,
    stream: Arc<Mutex<Option<EventStream>>>,
}

impl SubscriptionHandle {
    /// A cursor given here, such as `Last-Event-ID`, takes precedence over the `after` argument.
    pub fn resume_after(after: Option<&str>) -> Self {
        Self {
            after: after.map(Arc::from),
            stream: Arc::default(),
        }
    }

    /// Takes the stream that the resolver left.
    pub fn take_stream(&self) -> Option<EventStream> {
        self.stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// The position after which the subscription starts; `None` means now.
    pub fn start_position(ctx: &Context<'_>, after: Option<String>) -> Result<Option<LogPosition>> {
        let Self { after: resumed, .. } = ctx.data_unchecked();
        let position = |cursor| RequestContext::of(ctx).app().cursors.decode(cursor);
        resumed
            .as_deref()
            .or(after.as_deref())
            .map(position)
            .transpose()
    }

    /// Leaves the stream of this operation. The stream that async-graphql gets is empty.
    pub fn set_stream<T>(
        ctx: &Context<'_>,
        events: impl Stream<Item = Result<SubscriptionEvent>> + Send + 'static,
    ) -> Empty<T> {
        let Self { stream: opened, .. } = ctx.data_unchecked();
        *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(events.boxed());
        empty()
    }
}

struct LogFollower {
    app: Arc<App>,
    viewer: Viewer,
    filter: Arc<EventCriteria>,
    position: LogPosition,
    listener: Listener<EventObjects>,
    is_behind: bool,
    /// Events per read while behind.
    batch: usize,
    caught_up: VecDeque<Arc<Delivery<EventObjects>>>,
}

/// Follows every event that matches the filter and that the viewer may see, after the position or
/// from now on.
pub async fn follow(
    caller: &RequestContext,
    filter: EventCriteria,
    after: Option<LogPosition>,
) -> Result<impl Stream<Item = Result<SubscriptionEvent>> + use<>> {
    let (app, viewer, filter) = (
        Arc::clone(caller.app()),
        *caller.viewer()?,
        Arc::new(filter),
    );
    let listener = listen(&app, viewer, &filter);
    // The socket may have been open for long. From here on the listener reports the end of the
    // session.
    check_session(&app, &viewer).await?;
    let position = {
        let mut conn = app.db.conn().await?;
        match after {
            Some(position) => check_cursor(&mut conn, &app.cursors, position).await?,
            None => settled_end(&mut conn).await?,
        }
    };
    let (behind, batch, caught_up) = (after.is_some(), FIRST_BATCH, VecDeque::new());
    let follower = LogFollower {
        app,
        viewer,
        filter,
        position,
        listener,
        is_behind: behind,
        batch,
        caught_up,
    };
    // Boxed, because `unfold` has room for its state more than once.
    Ok(unfold(Some(Box::new(follower)), async |follower| {
        let mut follower = follower?;
        match follower.next().await {
            Ok(event) => Some((Ok(event), Some(follower))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

fn listen(app: &App, viewer: Viewer, filter: &Arc<EventCriteria>) -> Listener<EventObjects> {
    let topic = match (filter.task_id, filter.project_id) {
        (Some(task), _) => Topic::Task(task),
        (None, Some(project)) => Topic::Project(project),
        (None, None) => Topic::Viewer,
    };
    let filter = Arc::clone(filter);
    app.hub
        .listen(viewer, topic, Box::new(move |event| filter.matches(event)))
}

/// Fails with UNAUTHENTICATED if the session has ended or the viewer's role has changed.
async fn check_session(app: &App, viewer: &Viewer) -> Result<()> {
    let present = app
        .sessions
        .viewer(&app.db, app.clock.now(), viewer.session_id)
        .await?;
    if present.as_ref() == Some(viewer) {
        Ok(())
    } else {
        Err(Error::unauthenticated())
    }
}

impl LogFollower {
    /// Rare steps are boxed: there can be many followers, and most of them only wait.
    async fn next(&mut self) -> Result<SubscriptionEvent> {
        loop {
            let delivery = if let Some(delivery) = self.caught_up.pop_front() {
                delivery
            } else if self.is_behind {
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
            if can_see(&self.viewer, &delivery.event, objects.task.as_deref()) {
                let event = Arc::clone(&delivery.event);
                return Ok(SubscriptionEvent {
                    event,
                    objects,
                    notification: None,
                    before,
                    delivery,
                });
            }
        }
    }

    async fn catch_up(&mut self) -> Result<()> {
        let stretch = LogRange {
            after: Some(self.position),
            before: None,
            limit: self.batch,
            backward: false,
        };
        let now = self.app.clock.now();
        let mut conn = self.app.db.conn().await?;
        let events = event::page(
            &mut conn,
            &self.viewer,
            &self.filter,
            stretch,
            EventColumns::Full,
        )
        .await?;
        // Checked after the read, because events that expired meanwhile may be missing from it.
        check_retained(
            &self.app.cursors,
            retention_horizon(&mut conn).await?,
            self.position,
        )?;
        drop(conn);
        let mut loaded = EventObjects::for_events(&self.app.db, events, TaskColumns::Full).await?;
        let (read, keep) = (loaded.len(), events_to_keep(&loaded));
        loaded.truncate(keep);
        self.is_behind = read == self.batch || keep < read;
        self.batch = if keep < read {
            keep
        } else {
            (2 * self.batch).min(MAX_BATCH)
        };
        let delivery = |(event, objects)| Arc::new(Delivery::with(event, now, objects));
        self.caught_up = loaded.into_iter().map(delivery).collect();
        Ok(())
    }

    /// Registers a new listener after an overflow or a change of the viewer. Fails if the session
    /// is no longer valid.
    async fn listen_again(&mut self) -> Result<()> {
        let app = &self.app;
        self.position = self.position.max(self.listener.last_position());
        self.listener = listen(app, self.viewer, &self.filter);
        check_session(app, &self.viewer).await?;
        self.is_behind = true;
        Ok(())
    }
}

/// Number of these events, with the rows loaded for them, that fit into the buffer; at least one.
fn events_to_keep(loaded: &[(Event, EventObjects)]) -> usize {
    let mut bytes = 0;
    let fits = |(event, objects): &&(Event, EventObjects)| {
        let fits = bytes < MAX_KEPT_BYTES;
        bytes += event.data.len() + objects.text_bytes();
        fits
    };
    loaded.iter().take_while(fits).count()
}
