//! The live side of the log: one task tails it and hands each event to the subscribers it may concern.
//!
//! One read of the database per event, however many listen. Subscribers are found by the people an event concerns, so
//! that one which concerns few wakes few. Each has a bounded queue; when it is full the subscriber is marked as behind
//! and catches up from the log by itself, so a slow reader costs bounded memory and holds up nobody.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Event, Kind, Position, settled_after};
use crate::access::Viewer;
use crate::db::{Bell, Db};
use crate::error::Result;
use crate::id::Id;

/// Events that wait for a subscriber before it has to catch up from the log.
const QUEUE: usize = 64;
/// How many events are read at once.
const BATCH: i64 = 500;
/// Without any hint the log is looked at this often: what another instance wrote is told, and sessions it ended are over,
/// within a second.
const POLL: Duration = Duration::from_millis(500);
/// While an event is written but not settled, this often.
const UNSETTLED_POLL: Duration = Duration::from_millis(5);

/// An event on its way to its subscribers, with room for what they all need to tell it, loaded once by the first.
#[derive(Debug)]
pub struct Delivery<T> {
    /// The event.
    pub event: Event,
    /// Whatever the layer above loads for it.
    pub objects: OnceCell<T>,
}

impl<T> Delivery<T> {
    /// An event with nothing loaded yet.
    pub fn new(event: Event) -> Self {
        Self { event, objects: OnceCell::new() }
    }
}

/// Which events a subscriber takes, asked before anything is queued.
pub type Wants = Box<dyn Fn(&Event) -> bool + Send + Sync>;

struct Subscriber<T> {
    viewer: Viewer,
    wants: Wants,
    queue: mpsc::Sender<Arc<Delivery<T>>>,
}

struct Index<T> {
    next: u64,
    subscribers: HashMap<u64, Subscriber<T>>,
    by_user: HashMap<Id, HashSet<u64>>,
    admins: HashSet<u64>,
}

impl<T> Index<T> {
    fn remove(&mut self, id: u64) {
        let Some(subscriber) = self.subscribers.remove(&id) else {
            return;
        };
        self.admins.remove(&id);
        if let Some(ids) = self.by_user.get_mut(&subscriber.viewer.id) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_user.remove(&subscriber.viewer.id);
            }
        }
    }

    /// Whom an event concerns: its people and every ADMIN. Whether they may see it is asked when it is told.
    fn concerned(&self, event: &Event) -> HashSet<u64> {
        let people = [event.owner_id, event.assignee_id, event.previous_assignee_id];
        let people = people.iter().flatten().filter_map(|person| self.by_user.get(person)).flatten();
        people.chain(&self.admins).copied().collect()
    }
}

/// The subscribers of this instance; cheap to clone.
pub struct Hub<T> {
    index: Arc<Mutex<Index<T>>>,
    delivered: Arc<AtomicU64>,
    reached: Arc<watch::Sender<Position>>,
    /// When the tail was last at the end of the log.
    at_end: Arc<Mutex<Instant>>,
}

impl<T> Clone for Hub<T> {
    fn clone(&self) -> Self {
        Self {
            index: Arc::clone(&self.index),
            delivered: Arc::clone(&self.delivered),
            reached: Arc::clone(&self.reached),
            at_end: Arc::clone(&self.at_end),
        }
    }
}

impl<T> Default for Hub<T> {
    fn default() -> Self {
        let index = Index { next: 0, subscribers: HashMap::new(), by_user: HashMap::new(), admins: HashSet::new() };
        let reached = Arc::new(watch::Sender::new(Position::default()));
        let at_end = Arc::new(Mutex::new(Instant::now()));
        Self { index: Arc::new(Mutex::new(index)), delivered: Arc::new(AtomicU64::new(0)), reached, at_end }
    }
}

/// What a subscriber reads from. Dropped, it is forgotten by the hub.
pub struct Listener<T> {
    hub: Hub<T>,
    id: u64,
    queue: mpsc::Receiver<Arc<Delivery<T>>>,
}

impl<T> Listener<T> {
    /// The next event; `None` once the subscriber fell behind or its session ended, when it may [`Hub::listen`] anew.
    pub async fn next(&mut self) -> Option<Arc<Delivery<T>>> {
        self.queue.recv().await
    }
}

impl<T> Drop for Listener<T> {
    fn drop(&mut self) {
        self.hub.lock().remove(self.id);
    }
}

impl<T: Send + Sync + 'static> Hub<T> {
    /// Follows the log from its present end until the token is cancelled.
    pub async fn tail(self, db: Db, stop: CancellationToken) {
        let Some(mut position) = self.begin(&db, &stop).await else {
            return;
        };
        loop {
            let wait = match self.catch_up(&db, &mut position).await {
                Ok(true) => UNSETTLED_POLL,
                Ok(false) => POLL,
                Err(error) => {
                    let (code, ..) = error.told();
                    tracing::warn!(code = code.as_str(), "cannot read the event log");
                    POLL
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = db.rung(Bell::Log) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        // Whoever still listens is told that nothing more comes.
        let mut index = self.lock();
        let ids: Vec<u64> = index.subscribers.keys().copied().collect();
        ids.into_iter().for_each(|id| index.remove(id));
    }

    async fn begin(&self, db: &Db, stop: &CancellationToken) -> Option<Position> {
        loop {
            let end = async { super::settled_end(&mut db.conn().await?).await };
            match end.await {
                Ok(position) => {
                    self.reached.send_replace(position);
                    return Some(position);
                }
                Err(error) => {
                    error.told();
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Hands on what is new; whether more is written that is not settled yet.
    async fn catch_up(&self, db: &Db, position: &mut Position) -> Result<bool> {
        loop {
            let (events, unsettled) = settled_after(&mut db.conn().await?, *position, BATCH).await?;
            let full = events.len() as i64 == BATCH;
            for event in events {
                *position = event.position();
                self.hand_on(event);
            }
            self.reached.send_if_modified(|reached| std::mem::replace(reached, *position) != *position);
            if !full {
                *self.at_end.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                return Ok(unsettled);
            }
        }
    }

    fn hand_on(&self, event: Event) {
        let mut index = self.lock();
        match event.kind {
            Kind::SessionEnded | Kind::UserChanged => {
                let ids = event.owner_id.and_then(|user| index.by_user.get(&user)).cloned().unwrap_or_default();
                for id in ids {
                    let ended = index.subscribers.get(&id).is_some_and(|subscriber| {
                        event.session_id.is_none_or(|session| session == subscriber.viewer.session_id)
                    });
                    if ended {
                        index.remove(id);
                    }
                }
            }
            _ => {
                let concerned = index.concerned(&event);
                let delivery = Arc::new(Delivery::new(event));
                for id in concerned {
                    let Some(subscriber) = index.subscribers.get(&id) else {
                        continue;
                    };
                    if !(subscriber.wants)(&delivery.event) {
                        continue;
                    }
                    match subscriber.queue.try_send(Arc::clone(&delivery)) {
                        Ok(()) => {
                            self.delivered.fetch_add(1, Ordering::Relaxed);
                        }
                        // Behind, or gone: what is queued is still read, then the subscriber catches up from the log.
                        Err(_) => index.remove(id),
                    }
                }
            }
        }
    }
}

impl<T> Hub<T> {
    /// Begins to queue events for a viewer.
    pub fn listen(&self, viewer: Viewer, wants: Wants) -> Listener<T> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut index = self.lock();
        let id = index.next;
        index.next += 1;
        index.subscribers.insert(id, Subscriber { viewer, wants, queue: sender });
        index.by_user.entry(viewer.id).or_default().insert(id);
        if viewer.is_admin() {
            index.admins.insert(id);
        }
        drop(index);
        Listener { hub: self.clone(), id, queue }
    }

    /// How far the tail has come: for those who read the log themselves, and need not ask when.
    pub fn reached(&self) -> watch::Receiver<Position> {
        self.reached.subscribe()
    }

    /// How long ago the tail was at the end of the log: how late events may be that have not been told.
    pub fn lag(&self) -> Duration {
        self.at_end.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        self.lock().subscribers.len()
    }

    fn lock(&self) -> MutexGuard<'_, Index<T>> {
        // Nothing in here panics half-way through a change.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
