//! In-process fan-out: one task tails the event log and delivers each event to its subscribers.
//!
//! Each event is read from the database once, regardless of the number of subscribers. An index by
//! task, project and user finds the subscribers that an event may concern. Each subscriber has a
//! bounded queue. When it is full, the hub removes the subscriber, which then catches up from the
//! log by itself. So a slow subscriber uses bounded memory and delays no other.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::mpsc;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::hint::Hints;
use super::{Event, EventKind, LogPosition, settled_after};
use crate::access::Viewer;
use crate::db::{CommitSignal, Db};
use crate::error::Result;
use crate::id::Id;
use crate::time::Timestamp;

/// Capacity of a subscriber's queue. Beyond it, the subscriber catches up from the log.
const QUEUE_LENGTH: usize = 64;
/// Maximum number of events per read, small enough for SQLite to read them inline.
const READ_BATCH: usize = 100;
/// Poll interval without hints. It keeps events and ended sessions of other instances within a
/// second even if hints are lost.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum interval between two reads, so that a read under load returns several events.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(5);
/// Poll interval while an event is written but not settled.
const UNSETTLED_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Maximum bytes of events in all queues together. Beyond it, subscribers catch up from the log.
/// Without this limit, each stalled subscriber could keep 64 events of 100 kB in memory.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// Memory of an event as a multiple of its stored data: the text, its parsed form, and loaded rows.
const BYTES_PER_DATA_BYTE: usize = 3;
/// How long the loaded objects of an event are used.
const OBJECTS_TTL: Duration = Duration::from_secs(1);

/// An event on its way to its subscribers, with the objects that their responses need.
#[derive(Debug)]
pub struct Delivery<T> {
    pub event: Arc<Event>,
    /// The objects that the caller loaded, and when. The lock is kept while they are loaded, so
    /// that one read serves all subscribers.
    objects: tokio::sync::Mutex<Option<(Timestamp, Arc<T>)>>,
    /// Its share of [`MAX_QUEUED_BYTES`].
    _bytes: Option<OwnedSemaphorePermit>,
}

impl<T> Delivery<T> {
    /// A delivery without loaded objects.
    pub fn new(event: Event) -> Self {
        Self {
            event: Arc::new(event),
            objects: tokio::sync::Mutex::default(),
            _bytes: None,
        }
    }

    /// A delivery with objects loaded at `loaded_at`.
    pub fn with(event: Event, loaded_at: Timestamp, objects: T) -> Self {
        let objects = tokio::sync::Mutex::new(Some((loaded_at, Arc::new(objects))));
        Self {
            objects,
            ..Self::new(event)
        }
    }

    /// The objects, loaded by the first subscriber that needs them, and again once they are a
    /// second old: permissions are checked on them, and a stalled subscriber may need them much
    /// later.
    pub async fn objects(
        &self,
        now: Timestamp,
        load: impl Future<Output = Result<T>>,
    ) -> Result<Arc<T>> {
        let mut objects = self.objects.lock().await;
        if let Some((loaded_at, loaded)) = &*objects
            // The clock may have been set back.
            && now.since(*loaded_at).max(loaded_at.since(now)) < OBJECTS_TTL
        {
            return Ok(Arc::clone(loaded));
        }
        let loaded = Arc::new(load.await?);
        *objects = Some((now, Arc::clone(&loaded)));
        Ok(loaded)
    }
}

/// A subscriber's filter, applied before an event is queued.
pub type EventPredicate = Box<dyn Fn(&Event) -> bool + Send + Sync>;

/// The key under which a subscriber is indexed. It narrows down the filters to run per event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    Task(Id),
    Project(Id),
    /// Events that concern the viewer; for an admin, all events.
    Viewer,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Route {
    Task(Id),
    Project(Id),
    User(Id),
    Admins,
}

struct Subscriber<T> {
    viewer: Viewer,
    outlet: Sink<T>,
}

/// The channel to a subscriber.
enum Sink<T> {
    Events(EventQueue<T>),
    /// Signals only the end of the viewer's session, by being dropped.
    End(#[expect(dead_code, reason = "dropping it is the signal")] oneshot::Sender<Infallible>),
}

struct EventQueue<T> {
    topic: Topic,
    predicate: EventPredicate,
    queue: mpsc::Sender<Arc<Delivery<T>>>,
    last_position: Arc<OnceLock<LogPosition>>,
}

impl<T> Subscriber<T> {
    fn routes(&self) -> impl Iterator<Item = Route> + use<T> {
        let (first, second) = match &self.outlet {
            Sink::End(_) => (None, None),
            Sink::Events(events) => match events.topic {
                Topic::Task(id) => (Some(Route::Task(id)), None),
                Topic::Project(id) => (Some(Route::Project(id)), None),
                Topic::Viewer => (
                    Some(Route::User(self.viewer.id)),
                    self.viewer.is_admin().then_some(Route::Admins),
                ),
            },
        };
        first.into_iter().chain(second)
    }
}

struct SubscriberIndex<T> {
    next_id: u64,
    /// The newest event delivered.
    position: LogPosition,
    subscribers: HashMap<u64, Subscriber<T>>,
    by_user: HashMap<Id, HashSet<u64>>,
    by_route: HashMap<Route, HashSet<u64>>,
}

fn remove_id<K: Eq + Hash>(map: &mut HashMap<K, HashSet<u64>>, key: &K, id: u64) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

impl<T> SubscriberIndex<T> {
    fn add(&mut self, subscriber: Subscriber<T>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.by_user
            .entry(subscriber.viewer.id)
            .or_default()
            .insert(id);
        for route in subscriber.routes() {
            self.by_route.entry(route).or_default().insert(id);
        }
        self.subscribers.insert(id, subscriber);
        id
    }

    fn remove(&mut self, id: u64) {
        let Some(subscriber) = self.subscribers.remove(&id) else {
            return;
        };
        remove_id(&mut self.by_user, &subscriber.viewer.id, id);
        for route in subscriber.routes() {
            remove_id(&mut self.by_route, &route, id);
        }
        if let Sink::Events(events) = &subscriber.outlet {
            // Set once: a subscriber is removed once.
            let _ = events.last_position.set(self.position);
        }
    }

    /// The subscribers that an event may concern. Their permissions are checked when they respond.
    fn candidates(&self, event: &Event) -> Vec<u64> {
        let people = [
            event.owner_id,
            event.assignee_id,
            event.previous_assignee_id,
        ];
        let people = people.into_iter().flatten().map(Route::User);
        let things = [
            event.task_id.map(Route::Task),
            event.project_id.map(Route::Project),
            Some(Route::Admins),
        ];
        let routes = people.chain(things.into_iter().flatten());
        let mut ids: Vec<u64> = routes
            .filter_map(|route| self.by_route.get(&route))
            .flat_map(HashSet::iter)
            .copied()
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The subscribers of this instance. Cheap to clone.
pub struct Hub<T> {
    index: Arc<Mutex<SubscriberIndex<T>>>,
    queued_bytes: Arc<Semaphore>,
    tail_position: Arc<watch::Sender<Option<LogPosition>>>,
    tail_status: Arc<Mutex<TailStatus>>,
}

/// The health of the tailing task.
struct TailStatus {
    /// When the database last responded. `None` while the task does not run.
    last_read_at: Option<Instant>,
    /// When the task last reached the end of the log.
    caught_up_at: Instant,
}

impl<T> Clone for Hub<T> {
    fn clone(&self) -> Self {
        let (index, reached) = (Arc::clone(&self.index), Arc::clone(&self.tail_position));
        Self {
            index,
            queued_bytes: Arc::clone(&self.queued_bytes),
            tail_position: reached,
            tail_status: Arc::clone(&self.tail_status),
        }
    }
}

impl<T> Default for Hub<T> {
    fn default() -> Self {
        let index = SubscriberIndex {
            next_id: 0,
            position: LogPosition::default(),
            subscribers: HashMap::new(),
            by_user: HashMap::new(),
            by_route: HashMap::new(),
        };
        let pulse = Arc::new(Mutex::new(TailStatus {
            last_read_at: None,
            caught_up_at: Instant::now(),
        }));
        let queued_bytes = Arc::new(Semaphore::new(MAX_QUEUED_BYTES));
        Self {
            index: Arc::new(Mutex::new(index)),
            queued_bytes,
            tail_position: Arc::default(),
            tail_status: pulse,
        }
    }
}

/// A subscription to the hub, ended by dropping it.
struct SubscriberGuard<T> {
    hub: Hub<T>,
    id: u64,
}

impl<T> Drop for SubscriberGuard<T> {
    fn drop(&mut self) {
        self.hub.lock().remove(self.id);
    }
}

/// The receiving end of a subscriber's queue.
pub struct Listener<T> {
    queue: mpsc::Receiver<Arc<Delivery<T>>>,
    last_position: Arc<OnceLock<LogPosition>>,
    _guard: SubscriberGuard<T>,
}

impl<T> Listener<T> {
    /// The next event. `None` after the subscriber fell behind or its session ended; the caller may
    /// then [`Hub::listen`] again.
    pub async fn next(&mut self) -> Option<Arc<Delivery<T>>> {
        self.queue.next().await
    }

    /// After [`next`](Self::next) returned `None`: the position up to which all wanted events were
    /// queued.
    pub fn last_position(&self) -> LogPosition {
        self.last_position.get().copied().unwrap_or_default()
    }
}

/// Waits for the end of a session.
pub struct SessionWatch<T> {
    end: oneshot::Receiver<Infallible>,
    _guard: SubscriberGuard<T>,
}

impl<T> SessionWatch<T> {
    /// Returns when the session has ended or its user has changed.
    pub async fn ended(&mut self) {
        if !self.end.is_terminated() {
            // Nothing is ever sent.
            let _ = (&mut self.end).await;
        }
    }
}

impl<T: Send + Sync + 'static> Hub<T> {
    /// Tails the log from its current end until the token is cancelled.
    pub async fn tail(self, db: Db, hints: Arc<Hints>, stop: CancellationToken) {
        let Some(mut position) = self.start_position(&db, &stop).await else {
            return;
        };
        loop {
            let next = tokio::time::Instant::now() + MIN_READ_INTERVAL;
            let wait = match self.catch_up(&db, &mut position).await {
                Ok(true) => UNSETTLED_POLL_INTERVAL,
                Ok(false) => POLL_INTERVAL,
                Err(error) => {
                    let (code, ..) = error.into_client();
                    tracing::warn!(code = code.as_str(), "cannot read the event log");
                    POLL_INTERVAL
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = db.signalled(CommitSignal::Log) => hints.send(),
                () = hints.received() => {}
                () = tokio::time::sleep(wait) => {}
            }
            tokio::time::sleep_until(next).await;
        }
        self.tail_status().last_read_at = None;
        // Ends the remaining listeners.
        let mut index = self.lock();
        let ids: Vec<u64> = index.subscribers.keys().copied().collect();
        ids.into_iter().for_each(|id| index.remove(id));
    }

    async fn start_position(&self, db: &Db, stop: &CancellationToken) -> Option<LogPosition> {
        loop {
            let end = async { super::end(&mut db.conn().await?).await };
            match end.await {
                Ok(position) => {
                    self.lock().position = position;
                    self.tail_position.send_replace(Some(position));
                    return Some(position);
                }
                Err(error) => {
                    error.into_client();
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Delivers new events. Returns whether more are written but not settled yet.
    async fn catch_up(&self, db: &Db, position: &mut LogPosition) -> Result<bool> {
        loop {
            let (events, unsettled) =
                settled_after(&mut db.conn().await?, *position, READ_BATCH).await?;
            self.tail_status().last_read_at = Some(Instant::now());
            let full = events.len() == READ_BATCH;
            if events.iter().any(|event| event.kind.is_internal()) {
                db.signal(CommitSignal::Sessions);
            }
            for event in events {
                *position = event.position();
                self.dispatch(event);
            }
            self.tail_position
                .send_if_modified(|reached| reached.replace(*position) != Some(*position));
            if !full {
                self.tail_status().caught_up_at = Instant::now();
                return Ok(unsettled);
            }
        }
    }

    fn dispatch(&self, event: Event) {
        let mut index = self.lock();
        let position = event.position();
        match event.kind {
            EventKind::SessionEnded | EventKind::UserChanged => {
                let ids = event
                    .owner_id
                    .and_then(|user| index.by_user.get(&user))
                    .cloned()
                    .unwrap_or_default();
                for id in ids {
                    let ended = index.subscribers.get(&id).is_some_and(|subscriber| {
                        event
                            .session_id
                            .is_none_or(|session| session == subscriber.viewer.session_id)
                    });
                    if ended {
                        index.remove(id);
                    }
                }
            }
            _ => {
                let concerned = index.candidates(&event);
                let bytes = event.data.len().saturating_mul(BYTES_PER_DATA_BYTE);
                let bytes = u32::try_from(bytes.min(MAX_QUEUED_BYTES)).unwrap_or(u32::MAX);
                let bytes = Arc::clone(&self.queued_bytes)
                    .try_acquire_many_owned(bytes)
                    .ok();
                let fits = bytes.is_some();
                let delivery = Arc::new(Delivery {
                    _bytes: bytes,
                    ..Delivery::new(event)
                });
                for id in concerned {
                    let Some(Subscriber {
                        outlet: Sink::Events(events),
                        ..
                    }) = index.subscribers.get_mut(&id)
                    else {
                        continue;
                    };
                    // The subscriber is behind or gone. It still reads its queue, then catches up
                    // from the log.
                    if (events.predicate)(&delivery.event)
                        && !(fits && events.queue.try_send(Arc::clone(&delivery)).is_ok())
                    {
                        index.remove(id);
                    }
                }
            }
        }
        index.position = position;
    }
}

impl<T> Hub<T> {
    /// Starts queueing events for a viewer.
    pub fn listen(&self, viewer: Viewer, topic: Topic, wants: EventPredicate) -> Listener<T> {
        let (sender, queue) = mpsc::channel(QUEUE_LENGTH);
        let until = Arc::new(OnceLock::new());
        let events = EventQueue {
            topic,
            predicate: wants,
            queue: sender,
            last_position: Arc::clone(&until),
        };
        Listener {
            queue,
            last_position: until,
            _guard: self.register(viewer, Sink::Events(events)),
        }
    }

    /// Starts watching for the end of a viewer's session.
    pub fn watch_session(&self, viewer: Viewer) -> SessionWatch<T> {
        let (dropped, end) = oneshot::channel();
        SessionWatch {
            end,
            _guard: self.register(viewer, Sink::End(dropped)),
        }
    }

    fn register(&self, viewer: Viewer, outlet: Sink<T>) -> SubscriberGuard<T> {
        let id = self.lock().add(Subscriber { viewer, outlet });
        SubscriberGuard {
            hub: self.clone(),
            id,
        }
    }

    /// The position that the tail has reached, once it has started. It notifies consumers that read
    /// the log themselves.
    pub fn tail_position(&self) -> watch::Receiver<Option<LogPosition>> {
        self.tail_position.subscribe()
    }

    /// Time since the tail was at the end of the log: the maximum delay of undelivered events.
    pub fn lag(&self) -> Duration {
        self.tail_status().caught_up_at.elapsed()
    }

    /// Time since the database responded to the tail, which polls at least twice a second.
    pub fn stalled_for(&self) -> Duration {
        self.tail_status()
            .last_read_at
            .map_or(Duration::ZERO, |answered| answered.elapsed())
    }

    fn tail_status(&self) -> MutexGuard<'_, TailStatus> {
        self.tail_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn subscribers(&self) -> usize {
        self.lock().subscribers.len()
    }

    fn lock(&self) -> MutexGuard<'_, SubscriberIndex<T>> {
        // Poison is ignored: no code panics in the middle of a change.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;

    fn event(seq: i64, owner: Id, bytes: usize) -> Event {
        Event {
            seq,
            xid: 0,
            id: Id::new(),
            kind: EventKind::TaskUpdated,
            occurred_at: Timestamp::from_micros(0),
            actor_id: None,
            owner_id: Some(owner),
            project_id: None,
            task_id: None,
            comment_id: None,
            assignee_id: None,
            previous_assignee_id: None,
            session_id: None,
            data: "x".repeat(bytes),
        }
    }

    #[tokio::test]
    async fn queued_events_take_bounded_memory_and_the_rest_is_read_from_the_log() {
        let (hub, viewer) = (
            Hub::<()>::default(),
            Viewer {
                id: Id::new(),
                session_id: Id::new(),
                role: Role::User,
            },
        );
        let mut listener = hub.listen(viewer, Topic::Viewer, Box::new(|_| true));
        let bytes = MAX_QUEUED_BYTES / BYTES_PER_DATA_BYTE / 4;
        (1..=5).for_each(|seq| hub.dispatch(event(seq, viewer.id, bytes)));
        let mut queued = Vec::new();
        while let Some(delivery) = listener.next().await {
            queued.push(delivery.event.seq);
        }
        assert_eq!(
            (queued, listener.last_position().seq),
            (vec![1, 2, 3, 4], 4)
        );
        let mut listener = hub.listen(viewer, Topic::Viewer, Box::new(|_| true));
        hub.dispatch(event(6, viewer.id, bytes));
        assert!(
            listener.next().await.is_some(),
            "what was delivered is freed"
        );
    }

    #[tokio::test]
    async fn objects_are_loaded_once_and_again_when_they_are_older_than_a_second() {
        let delivery = Delivery::<u32>::new(event(1, Id::new(), 0));
        let start = Timestamp::from_micros(10_000_000);
        let at = async |now: Timestamp, value| {
            *delivery
                .objects(now, async { Ok(value) })
                .await
                .expect("objects")
        };
        assert_eq!(at(start, 1).await, 1);
        assert_eq!(at(start.plus(OBJECTS_TTL / 2), 2).await, 1);
        assert_eq!(at(start.plus(OBJECTS_TTL), 3).await, 3);
        assert_eq!(
            at(start.minus(OBJECTS_TTL), 4).await,
            4,
            "the clock was set back"
        );
    }
}
