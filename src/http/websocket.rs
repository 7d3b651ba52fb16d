//! GraphQL over WebSocket, by the graphql-transport-ws protocol: queries, mutations and subscriptions on one socket.
//!
//! A socket has two tasks: one reads, one writes what the other and the running operations have put into a short queue.
//! So a client that does not read holds up its own operations only, and is dropped when a write takes too long. It lives
//! as long as its token; a fresh one in the payload of a `ping` prolongs it, the end of its session ends it at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use axum::response::Response;
use futures_channel::mpsc;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::answer::{Answer, Refused, too_large, unsent};
use super::concurrency_limit::Wait;
use super::in_flight::Written;
use super::operation::{DEADLINE, Door, Words};
use super::pace::{Pace, PacedIo};
use super::protocol::{Close, Incoming, Outgoing, next, plain};
use super::slots::Waiting;
use super::subscription::{Subscription, Told};
use super::upgrade::Upgrade;
use super::user_slots::UserSlot;
use super::{Lifeline, later};
use crate::access::Viewer;
use crate::auth::{self, bearer};
use crate::error::{Code, Error};
use crate::events::hub::Watch;
use crate::limits::Who;
use crate::limits::byte_budget::Reservation;
use crate::metrics::Transport;
use crate::network::Client;
use crate::store::event::Objects;

/// Bytes of a message from the client.
const MAX_MESSAGE: usize = 64 * 1024;
/// What is read or written at once: idle sockets keep this much of each.
const BUFFER: usize = 1024;
/// What a client may send: bytes, and messages of any kind, control frames included. Sustained for each second, and at
/// once. A socket that sends more is read later, so that no flood of small messages can take a core.
const BYTES_PER_SECOND: u32 = 256 * 1024;
const BYTES_AT_ONCE: u32 = 1024 * 1024;
const MESSAGES_PER_SECOND: u32 = 100;
const MESSAGES_AT_ONCE: u32 = 1_000;
/// Messages that wait to be written, and one more of each operation.
const QUEUE: usize = 16;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long the requests that run on a socket may take to be answered when the server ends.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Why a socket is closed whose session no longer holds.
const SESSION_ENDED: Close = Close::Forbidden("Forbidden: the session has ended");

/// Who opens a socket.
pub struct Opening {
    /// What it is and from where.
    pub client: Client,
    /// The id of the request that it began as.
    pub request_id: Arc<str>,
    /// The `Authorization` of that request: for programs, browsers cannot send one.
    pub authorization: Option<String>,
    /// What holds the server up while the socket is open.
    pub lifeline: Lifeline,
}

type Socket = WebSocketStream<PacedIo<TokioIo<Upgraded>>>;

/// Turns a request into a socket.
pub fn open(door: Door, upgrade: Upgrade, opening: Opening) -> Response {
    let response = upgrade.response();
    let tasks = opening.lifeline.tasks.clone();
    let alive = tasks.token();
    let Upgrade { connection, is_offered, .. } = upgrade;
    tokio::spawn(async move {
        let connection = match connection.await {
            Ok(connection) => connection,
            Err(error) => return tracing::debug!(cause = %error, "no socket"),
        };
        let connection = PacedIo::new(TokioIo::new(connection), Pace::new(BYTES_PER_SECOND, BYTES_AT_ONCE));
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER);
        let (sink, stream) = Socket::from_raw_socket(connection, Role::Server, Some(config)).await.split();
        let (out, queue) = mpsc::channel(QUEUE);
        let (closing, closed) = oneshot::channel();
        let written = opening.lifeline.written.clone();
        let writer = tokio::spawn(write(sink, queue, closed, door.app.config.sockets.write, written));
        // A task of its own, because the one that waited for the upgrade keeps the room that this took; the
        // conversation on the heap, because a future keeps its arguments twice.
        tasks.spawn(run(Box::new(Talk::new(door, opening, out)), stream, writer, closing, is_offered));
        drop(alive);
    });
    response
}

async fn run(
    mut talk: Box<Talk>,
    mut stream: SplitStream<Socket>,
    writer: JoinHandle<SplitSink<Socket, Message>>,
    mut closing: oneshot::Sender<CloseFrame>,
    agreed: bool,
) {
    let app = Arc::clone(&talk.door.app);
    let _open = app.metrics.socket(Transport::WebSocket);
    let close = if agreed { talk.until_end(&mut stream, &mut closing).await } else { Some(Close::WrongProtocol) };
    // Whatever still runs ends with it.
    drop(talk);
    if let Some(close) = close {
        let close = CloseFrame::from(close);
        app.metrics.closed(close.code.into());
        // Only a writer that is gone already does not take it.
        drop(closing.send(close));
    } else {
        drop(closing);
    }
    let writing = writer.abort_handle();
    if timeout(GOODBYE, Box::pin(goodbye(stream, writer))).await.is_err() {
        writing.abort();
    }
}

/// Waits for the close frame to be written, then reads until the client closes: with unread bytes the connection would be
/// reset and the close frame might be lost. Not at once, because the socket takes no close frame after it has read the end.
async fn goodbye(mut stream: SplitStream<Socket>, writer: JoinHandle<SplitSink<Socket, Message>>) {
    let Ok(sink) = writer.await else { return };
    while let Some(Ok(_)) = stream.next().await {}
    let Ok(socket) = stream.reunite(sink) else { return };
    // After an error nothing more is read as frames, but the client may still be sending.
    let mut connection = socket.into_inner();
    if connection.shutdown().await.is_ok() {
        let mut ignored = [0; BUFFER];
        while matches!(connection.read(&mut ignored).await, Ok(1..)) {}
    }
}

/// A message to be written, which counts as unread until it is.
struct Outbound {
    text: Box<str>,
    reservation: Option<Reservation>,
}

impl From<Box<str>> for Outbound {
    fn from(text: Box<str>) -> Self {
        Self { text, reservation: None }
    }
}

/// Writes what is queued; ends with the queue, with a close frame, or when the client does not go on reading.
async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut queue: mpsc::Receiver<Outbound>,
    mut closing: oneshot::Receiver<CloseFrame>,
    patience: Duration,
    written: Written,
) -> SplitSink<Socket, Message> {
    let frame = loop {
        let outbound = tokio::select! {
            biased;
            frame = &mut closing => break frame,
            outbound = queue.next() => outbound,
        };
        let Some(Outbound { text, reservation }) = outbound else {
            break (&mut closing).await;
        };
        let sent = tokio::select! {
            frame = &mut closing => break frame,
            sent = written.while_reading(patience, sink.send(message(text))) => sent,
        };
        drop(reservation);
        if !matches!(sent, Some(Ok(()))) {
            return sink;
        }
    };
    let goodbye = async {
        while let Ok(Outbound { text, .. }) = queue.try_recv() {
            sink.feed(message(text)).await?;
        }
        match frame {
            Ok(frame) => sink.send(Message::Close(Some(frame))).await,
            Err(_) => sink.close().await,
        }
    };
    // Whether it arrives, the client will see.
    drop(timeout(GOODBYE, goodbye).await);
    sink
}

fn message(text: Box<str>) -> Message {
    Message::Text(text.into_string().into())
}

/// Why a greeting is not answered, or a token not taken.
enum Refusal {
    Token,
    Busy,
}

/// Whom a socket speaks for, and until when.
struct Session {
    viewer: Viewer,
    expires: Instant,
    /// Ends when something changes about the session or its user.
    watch: Watch<Objects>,
    _slot: UserSlot,
}

type Running = Arc<Mutex<HashMap<String, (u64, AbortHandle)>>>;

/// One conversation.
struct Talk {
    door: Door,
    opening: Opening,
    out: mpsc::Sender<Outbound>,
    session: Option<Session>,
    /// The operations by their ids, each with a number that no other has.
    running: Running,
    /// Each says whether its session was found to have ended.
    tasks: JoinSet<bool>,
    started: u64,
    /// Until the greeting: a silent socket may be evicted for a new connection.
    waiting: Option<Waiting>,
}

impl Talk {
    fn new(door: Door, opening: Opening, out: mpsc::Sender<Outbound>) -> Self {
        let waiting = opening.lifeline.wait();
        Self { door, opening, out, session: None, running: Arc::default(), tasks: JoinSet::new(), started: 0, waiting }
    }

    /// Talks until one side ends it, which may be the writer; the reason if it is this one. What is rare is on the heap
    /// while it lasts: there may be many sockets, and they mostly wait.
    async fn until_end(
        &mut self,
        stream: &mut SplitStream<Socket>,
        closing: &mut oneshot::Sender<CloseFrame>,
    ) -> Option<Close> {
        let settings = self.door.app.config.sockets;
        let lifeline = self.opening.lifeline.clone();
        let greet_by = Instant::now() + settings.init;
        let mut ping_at = Instant::now() + settings.ping;
        let mut awaits_pong = false;
        let (mut pace, mut paused) = (Pace::new(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE), None);
        loop {
            let due = self.session.as_ref().map_or(greet_by, |session| session.expires.min(ping_at));
            let next = paused.map_or(due, |until| due.min(until));
            tokio::select! {
                () = lifeline.stop.cancelled() => {
                    lifeline.ended().await;
                    // Subscriptions have ended by themselves; whatever else was begun is answered.
                    let answered = async { while self.tasks.join_next().await.is_some() {} };
                    drop(timeout(LAST_ANSWERS, answered).await);
                    return Some(Close::Restarting);
                }
                () = lifeline.connection.cancelled() => return Some(Close::Unavailable),
                () = closing.closed() => return None,
                Some(over) = self.tasks.join_next() => {
                    if over.is_ok_and(|session_ended| session_ended) {
                        return Some(SESSION_ENDED);
                    }
                }
                () = ended(&mut self.session) => {
                    if let Some(close) = Box::pin(self.look_again()).await {
                        return Some(close);
                    }
                }
                message = stream.next(), if paused.is_none() => {
                    awaits_pong = false;
                    paused = pace.draw(Instant::now(), 1);
                    let text = match message {
                        None => return None,
                        Some(Ok(Message::Text(text))) => text,
                        Some(Ok(Message::Binary(_))) => return Some(Close::Invalid("Invalid message: not text")),
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Close(_) | Message::Frame(_))) => return None,
                        Some(Err(error)) => return Close::after(&error),
                    };
                    if let Err(close) = Box::pin(self.hear(&text)).await {
                        return Some(close);
                    }
                }
                () = sleep_until(next) => {
                    paused = paused.filter(|until| *until > Instant::now());
                    if due > Instant::now() {
                        continue;
                    }
                    let Some(session) = &self.session else {
                        return Some(Close::TimedOut("Connection initialisation timeout"));
                    };
                    if session.expires <= Instant::now() {
                        return Some(Close::Forbidden("The access token has expired"));
                    }
                    if awaits_pong {
                        return Some(Close::TimedOut("No pong"));
                    }
                    self.say(plain::PING).await;
                    awaits_pong = true;
                    ping_at = Instant::now() + settings.ping;
                }
            }
        }
    }

    async fn say(&mut self, text: impl Into<Box<str>>) {
        // Without a writer the conversation is over, which the loop notices.
        drop(self.out.send(text.into().into()).await);
    }

    async fn hear(&mut self, text: &str) -> Result<(), Close> {
        match Incoming::parse(text).map_err(Close::Invalid)? {
            Incoming::ConnectionInit(_) if self.session.is_some() => return Err(Close::GreetedTwice),
            Incoming::ConnectionInit(payload) => {
                let token = authorization(&payload).or(self.opening.authorization.as_deref());
                let authorization = token.ok_or(Close::Forbidden("Forbidden: send an access token"))?.to_owned();
                self.session = Some(self.greeted(&authorization).await?);
                self.waiting = None;
                self.say(plain::ACK).await;
            }
            Incoming::Pong => {}
            Incoming::Ping(payload) => {
                if let Some(authorization) = authorization(&payload) {
                    self.prolong(authorization).await?;
                }
                self.say(plain::PONG).await;
            }
            Incoming::Subscribe { id, payload } => {
                let viewer = self.session.as_ref().ok_or(Close::Unauthorized)?.viewer;
                self.start(id, payload, viewer).await?;
            }
            Incoming::Complete { id } => {
                if let Some((_, task)) = lock(&self.running).remove(&id) {
                    task.abort();
                }
            }
        }
        Ok(())
    }

    /// Checks a token; one of the user's sockets and a watch on the session come with it.
    async fn greeted(&self, authorization: &str) -> Result<Session, Close> {
        let (viewer, expires) = self.check(authorization).await?;
        let most = self.door.app.config.sockets.per_user;
        let slot = self.door.sockets.take(viewer.id, most).ok_or(Close::TooMany)?;
        let watch = self.watch(viewer).await?;
        Ok(Session { viewer, expires, watch, _slot: slot })
    }

    /// A fresh token of the same user takes the place of the old one.
    async fn prolong(&mut self, authorization: &str) -> Result<(), Close> {
        let Some(held) = self.session.as_ref().map(|session| session.viewer) else {
            return Err(Close::Unauthorized);
        };
        let (viewer, expires) = self.check(authorization).await?;
        if viewer.id != held.id {
            return Err(Close::Forbidden("Forbidden: the token is of another user"));
        }
        let watch = if viewer == held { None } else { Some(self.watch(viewer).await?) };
        if let Some(session) = &mut self.session {
            session.expires = expires;
            session.viewer = viewer;
            if let Some(watch) = watch {
                session.watch = watch;
            }
        }
        Ok(())
    }

    async fn check(&self, authorization: &str) -> Result<(Viewer, Instant), Close> {
        let examined = self.examine(authorization).instrument(later(&self.opening.request_id, None));
        examined.await.map_err(|refusal| match refusal {
            Refusal::Token => Close::Forbidden("Forbidden: the access token is not valid"),
            Refusal::Busy => Close::Unavailable,
        })
    }

    async fn examine(&self, authorization: &str) -> Result<(Viewer, Instant), Refusal> {
        let app = &self.door.app;
        let token = bearer(authorization).ok_or(Refusal::Token)?;
        let now = app.clock.now();
        let viewer = auth::viewer(app, token).await;
        // Like a request: of the user, or of the address where the token is not good.
        let known = viewer.as_ref().ok().copied();
        self.door.enter(known, self.opening.client.address).await.map_err(|_| Refusal::Busy)?;
        let viewer = viewer.map_err(|error| match error.told().0 {
            Code::Unauthenticated => Refusal::Token,
            _ => Refusal::Busy,
        })?;
        let access = app.credentials.access(now, token).ok_or(Refusal::Token)?;
        Ok((viewer, Instant::now() + access.expires_at.since(now)))
    }

    /// Listens for the end of the session first and asks whether it still lasts after that, so that no end is missed.
    async fn watch(&self, viewer: Viewer) -> Result<Watch<Objects>, Close> {
        let app = &self.door.app;
        let watch = app.hub.watch(viewer);
        match app.sessions.viewer(&app.db, app.clock.now(), viewer.session_id).await {
            Ok(Some(found)) if found == viewer => Ok(watch),
            Ok(_) => Err(SESSION_ENDED),
            Err(error) => {
                later(&self.opening.request_id, None).in_scope(|| error.told());
                Err(Close::Unavailable)
            }
        }
    }

    /// Something has changed about the session or its user: goes on if they are as before.
    async fn look_again(&mut self) -> Option<Close> {
        let viewer = self.session.as_ref()?.viewer;
        match self.watch(viewer).await {
            Ok(watch) => {
                if let Some(session) = &mut self.session {
                    session.watch = watch;
                }
                None
            }
            Err(close) => Some(close),
        }
    }

    async fn start(&mut self, id: String, payload: Value, viewer: Viewer) -> Result<(), Close> {
        let words = Words::of(payload).map_err(|_| Close::Invalid("Invalid message: no GraphQL request"))?;
        // Needed once, in a task that lasts.
        let words = Box::new(words);
        let most = self.door.app.config.sockets.subscriptions;
        let mut operation = Runner {
            door: self.door.clone(),
            out: self.out.clone(),
            request_id: Arc::clone(&self.opening.request_id),
            stop: self.opening.lifeline.stop.clone(),
            client: self.opening.client.clone(),
            viewer,
        };
        self.started += 1;
        let number = self.started;
        let full = {
            // Held until the operation is noted, so that it cannot be over before that.
            let mut running = lock(&self.running);
            if running.contains_key(&id) {
                return Err(Close::Duplicate(id));
            }
            if running.len() < most {
                let (noted, named) = (Arc::clone(&self.running), id.clone());
                let task = self.tasks.spawn(async move {
                    let end = operation.run(&named, words).await;
                    // Before the last message: a client may reuse the id as soon as it has read that.
                    forget(&noted, &named, number);
                    match end {
                        End::Told(last) => drop(operation.out.send(last.into()).await),
                        End::Elsewhere => {}
                        End::SessionEnded => return true,
                    }
                    false
                });
                running.insert(id.clone(), (number, task));
                return Ok(());
            }
            operation
        };
        let message = format!("A socket may have at most {most} operations at once.");
        self.say(full.error(&id, Refused::new(Code::RateLimited, message))).await;
        Ok(())
    }
}

/// How an operation ends.
enum End {
    /// With this message.
    Told(Box<str>),
    /// It goes on elsewhere when the server ends, so nothing says that it is complete.
    Elsewhere,
    /// With the session that it was begun in. The socket ends, too, also where another session has prolonged it: its
    /// client comes back and begins the operation again.
    SessionEnded,
}

/// What a running operation needs.
struct Runner {
    door: Door,
    out: mpsc::Sender<Outbound>,
    request_id: Arc<str>,
    stop: CancellationToken,
    client: Client,
    viewer: Viewer,
}

impl Runner {
    /// Runs an operation; its last message is for the caller to send.
    async fn run(&mut self, id: &str, words: Box<Words>) -> End {
        // On the heap while it lasts: this task lives as long as its subscription, and is one of many.
        let span = later(&self.request_id, None);
        let mut subscription = match Box::pin(self.begin(id, words).instrument(span)).await {
            Ok(subscription) => subscription,
            Err(end) => return end,
        };
        loop {
            let told = tokio::select! {
                () = self.stop.cancelled() => return End::Elsewhere,
                told = subscription.next() => told,
            };
            match told {
                Some(Told::Event { payload, .. }) => {
                    if let Err(refused) = self.send(next(id, &payload)).await {
                        return End::Told(self.error(id, refused));
                    }
                }
                Some(Told::Failed { answer, .. }) if answer.ends_session() => return End::SessionEnded,
                Some(Told::Failed { answer, .. }) => return Box::pin(self.answered(id, answer, false)).await,
                None => return complete(id),
            }
        }
    }

    /// Opens a subscription, or executes and answers what is none.
    async fn begin(&mut self, id: &str, words: Box<Words>) -> Result<Box<Subscription>, End> {
        let admitted = async {
            let concurrency = &self.door.app.concurrency;
            let permit = concurrency.acquire(Who::User(self.viewer.id), Wait::Socket).await?;
            let operation = self.admitted(*words).await?;
            let permit = match operation.kind {
                OperationType::Mutation => concurrency.acquire_write(permit, Wait::Socket).await?,
                _ => permit,
            };
            Ok::<_, Refused>((permit, operation))
        };
        let (permit, operation) = admitted.await.map_err(|refused| {
            self.door.app.metrics.refused(refused.code);
            match refused.code {
                Code::Unauthenticated => End::SessionEnded,
                _ => End::Told(self.error(id, refused)),
            }
        })?;
        if operation.kind == OperationType::Subscription {
            let (request_id, viewer) = (Arc::clone(&self.request_id), Some(self.viewer));
            let slot = self.door.subscription_slot(viewer).map_err(|refused| End::Told(self.error(id, refused)))?;
            let opened = self.door.subscribe(operation, slot, None, viewer, request_id);
            return match permit.scope(DEADLINE, 0).run(opened).await {
                Ok(subscription) => Ok(Box::new(subscription)),
                Err(answer) if answer.ends_session() => Err(End::SessionEnded),
                Err(answer) => Err(failed(id, &answer)),
            };
        }
        let is_mutation = operation.kind == OperationType::Mutation;
        let answer = self.door.execute(operation, Some(self.viewer), &self.request_id, permit).await;
        Err(self.answered(id, answer, is_mutation).await)
    }

    async fn admitted(&self, words: Words) -> Result<super::operation::Operation, Refused> {
        let app = &self.door.app;
        // The end of a session is heard of with the log, which may be late.
        let present = app.sessions.viewer(&app.db, app.clock.now(), self.viewer.session_id).await?;
        if present != Some(self.viewer) {
            return Err(Error::unauthenticated().into());
        }
        self.door.enter(Some(self.viewer), self.client.address).await?;
        let operation = self.door.admit(words, Some(self.viewer), self.client.clone()).await?;
        if operation.kind == OperationType::Mutation && !self.door.app.config.sockets.mutations {
            return Err(Refused::new(Code::Forbidden, "Send mutations by POST: this server takes none on sockets."));
        }
        Ok(operation)
    }

    /// Tells an answer after which there is no more.
    async fn answered(&mut self, id: &str, answer: Answer, is_mutation: bool) -> End {
        if !answer.is_executed() {
            return failed(id, &answer);
        }
        let Some(text) = answer.to_text() else {
            return End::Told(self.error(id, too_large()));
        };
        match self.send(next(id, &text)).await {
            Ok(()) => complete(id),
            // A client that tries again would do it twice.
            Err(_) if is_mutation => End::Told(self.error(id, unsent())),
            Err(refused) => End::Told(self.error(id, refused)),
        }
    }

    /// Queues a message, unless too much of what this user was sent is unread.
    async fn send(&mut self, text: Box<str>) -> Result<(), Refused> {
        let reservation = self.door.app.in_flight.reserve(Who::User(self.viewer.id), text.len())?;
        // Without a writer the conversation is over.
        drop(self.out.send(Outbound { text, reservation }).await);
        Ok(())
    }

    fn error(&self, id: &str, refused: Refused) -> Box<str> {
        let answer = Answer::refused(refused, &self.request_id);
        Outgoing::about(id, "error", Some(answer.errors()))
    }
}

fn complete(id: &str) -> End {
    End::Told(Outgoing::<()>::about(id, "complete", None))
}

fn failed(id: &str, answer: &Answer) -> End {
    End::Told(Outgoing::about(id, "error", Some(answer.errors())))
}

/// Waits for a change of the session; for ever while there is none.
async fn ended(session: &mut Option<Session>) {
    match session {
        Some(session) => session.watch.ended().await,
        None => std::future::pending().await,
    }
}

fn authorization(payload: &Map<String, Value>) -> Option<&str> {
    payload.get("Authorization").or_else(|| payload.get("authorization")).and_then(Value::as_str)
}

fn lock(running: &Running) -> std::sync::MutexGuard<'_, HashMap<String, (u64, AbortHandle)>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets an operation that is over, unless its id is another one's by now.
fn forget(running: &Running, id: &str, number: u64) {
    let mut running = lock(running);
    if running.get(id).is_some_and(|(held, _)| *held == number) {
        running.remove(id);
    }
}
