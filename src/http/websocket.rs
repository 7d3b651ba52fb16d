//! GraphQL over WebSocket with the graphql-transport-ws protocol: queries, mutations and
//! subscriptions on one socket.
//!
//! A socket has two tasks. The reader parses messages and starts operations; the writer sends what
//! they put into a short queue. A client that does not read therefore blocks only its own
//! operations, and is disconnected when a write takes too long. A socket lives as long as its
//! access token. A fresh token in the payload of a `ping` extends it; the end of the session closes
//! it at once.

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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::concurrency_limit::WaitPolicy;
use super::graphql_transport_ws::{ClientMessage, CloseReason, ServerMessage, next, plain};
use super::in_flight::BytesWritten;
use super::operation::{DEADLINE, GraphqlRequest, GraphqlService};
use super::pace::{Pace, PacedIo};
use super::response::{GraphqlResponse, RequestError, response_dropped, too_large};
use super::slots::EvictableGuard;
use super::subscription::{ActiveSubscription, SubscriptionMessage};
use super::upgrade::Upgrade;
use super::user_slots::UserSlot;
use super::{ConnectionHandle, background_span};
use crate::access::Viewer;
use crate::auth::{self, bearer};
use crate::error::{Code, Error};
use crate::events::hub::SessionWatch;
use crate::limits::ClientKey;
use crate::limits::byte_budget::Reservation;
use crate::metrics::Transport;
use crate::network::Client;
use crate::store::event::EventObjects;

/// Maximum size of a client message, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Size of the read and of the write buffer, in bytes. Idle sockets keep both.
const BUFFER_BYTES: usize = 1024;
/// Receive limits: bytes, and messages of any kind including control frames, as a sustained rate
/// and a burst. Reading is delayed beyond them, so that a flood of small messages cannot occupy a
/// core.
const BYTES_PER_SECOND: u32 = 256 * 1024;
const BYTES_BURST: u32 = 1024 * 1024;
const MESSAGES_PER_SECOND: u32 = 100;
const MESSAGES_BURST: u32 = 1_000;
/// Length of the write queue. Each operation may have one more message.
const QUEUE_LENGTH: usize = 16;
/// Time limit of the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for running requests to complete on shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Closes a socket whose session has ended.
const SESSION_ENDED: CloseReason = CloseReason::Forbidden("Forbidden: the session has ended");

/// The request that opens a socket.
pub struct SocketRequest {
    pub client: Client,
    /// Id of the upgrade request.
    pub request_id: Arc<str>,
    /// `Authorization` header of the upgrade request. Browsers cannot set it on a WebSocket.
    pub authorization: Option<String>,
    /// Delays shutdown while the socket is open.
    pub guard: ConnectionHandle,
}

type Socket = WebSocketStream<PacedIo<TokioIo<Upgraded>>>;

/// Accepts a WebSocket upgrade and serves the socket in a task of its own.
pub fn open(service: GraphqlService, upgrade: Upgrade, opening: SocketRequest) -> Response {
    let response = upgrade.response();
    let tasks = opening.guard.tasks.clone();
    let alive = tasks.token();
    let Upgrade {
        connection,
        is_offered,
        ..
    } = upgrade;
    tokio::spawn(async move {
        let connection = match connection.await {
            Ok(connection) => connection,
            Err(error) => return tracing::debug!(cause = %error, "websocket upgrade failed"),
        };
        let connection = PacedIo::new(
            TokioIo::new(connection),
            Pace::new(BYTES_PER_SECOND, BYTES_BURST),
        );
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES))
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES);
        let (sink, stream) = Socket::from_raw_socket(connection, Role::Server, Some(config))
            .await
            .split();
        let (out, queue) = mpsc::channel(QUEUE_LENGTH);
        let (closing, closed) = oneshot::channel();
        let written = opening.guard.written.clone();
        let writer = tokio::spawn(write(
            sink,
            queue,
            closed,
            service.app.config.sockets.write_timeout,
            written,
        ));
        // Spawned again, because the task that waited for the upgrade keeps the memory of that
        // future. The connection state is boxed, because a future stores its arguments twice.
        tasks.spawn(run(
            Box::new(SocketHandler::new(service, opening, out)),
            stream,
            writer,
            closing,
            is_offered,
        ));
        drop(alive);
    });
    response
}

async fn run(
    mut talk: Box<SocketHandler>,
    mut stream: SplitStream<Socket>,
    writer: JoinHandle<SplitSink<Socket, Message>>,
    mut closing: oneshot::Sender<CloseFrame>,
    agreed: bool,
) {
    let app = Arc::clone(&talk.service.app);
    let _open = app.metrics.open_socket(Transport::WebSocket);
    let close = if agreed {
        talk.run(&mut stream, &mut closing).await
    } else {
        Some(CloseReason::WrongProtocol)
    };
    // Aborts the operations that still run.
    drop(talk);
    if let Some(close) = close {
        let close = CloseFrame::from(close);
        app.metrics.record_close(close.code.into());
        // Fails only if the writer has ended.
        drop(closing.send(close));
    } else {
        drop(closing);
    }
    let writing = writer.abort_handle();
    if timeout(CLOSE_TIMEOUT, Box::pin(close_handshake(stream, writer)))
        .await
        .is_err()
    {
        writing.abort();
    }
}

/// Waits until the close frame is written, then reads until the client closes: with unread bytes
/// the connection would be reset and the close frame might be lost. The order matters, because the
/// socket accepts no close frame after it has read the end of the stream.
async fn close_handshake(
    mut stream: SplitStream<Socket>,
    writer: JoinHandle<SplitSink<Socket, Message>>,
) {
    let Ok(sink) = writer.await else { return };
    while let Some(Ok(_)) = stream.next().await {}
    let Ok(socket) = stream.reunite(sink) else {
        return;
    };
    // After a protocol error the bytes are no longer parsed as frames, but the client may still be
    // sending.
    let mut connection = socket.into_inner();
    if connection.shutdown().await.is_ok() {
        let mut ignored = [0; BUFFER_BYTES];
        while matches!(connection.read(&mut ignored).await, Ok(1..)) {}
    }
}

/// A queued message. Its bytes count as unread until it is written.
struct OutboundMessage {
    text: Box<str>,
    reservation: Option<Reservation>,
}

impl From<Box<str>> for OutboundMessage {
    fn from(text: Box<str>) -> Self {
        Self {
            text,
            reservation: None,
        }
    }
}

/// Writes queued messages. Ends when the queue closes, when a close frame is requested, or when the
/// client stops reading.
async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut queue: mpsc::Receiver<OutboundMessage>,
    mut closing: oneshot::Receiver<CloseFrame>,
    patience: Duration,
    written: BytesWritten,
) -> SplitSink<Socket, Message> {
    let frame = loop {
        let outbound = tokio::select! {
            biased;
            frame = &mut closing => break frame,
            outbound = queue.next() => outbound,
        };
        let Some(OutboundMessage { text, reservation }) = outbound else {
            break (&mut closing).await;
        };
        let sent = tokio::select! {
            frame = &mut closing => break frame,
            sent = written.wait_while_progressing(patience, sink.send(message(text))) => sent,
        };
        drop(reservation);
        if !matches!(sent, Some(Ok(()))) {
            return sink;
        }
    };
    let goodbye = async {
        while let Ok(OutboundMessage { text, .. }) = queue.try_recv() {
            sink.feed(message(text)).await?;
        }
        match frame {
            Ok(frame) => sink.send(Message::Close(Some(frame))).await,
            Err(_) => sink.close().await,
        }
    };
    // Best effort: the connection closes either way.
    drop(timeout(CLOSE_TIMEOUT, goodbye).await);
    sink
}

fn message(text: Box<str>) -> Message {
    Message::Text(text.into_string().into())
}

/// Why an access token is rejected.
enum AuthFailure {
    Token,
    Busy,
}

/// The session that a socket is authenticated with.
struct SocketSession {
    viewer: Viewer,
    expires: Instant,
    /// Fires when the session or its user changes.
    watch: SessionWatch<EventObjects>,
    _slot: UserSlot,
}

type RunningOperations = Arc<Mutex<HashMap<String, (u64, AbortHandle)>>>;

/// The protocol state of one socket.
struct SocketHandler {
    service: GraphqlService,
    opening: SocketRequest,
    out: mpsc::Sender<OutboundMessage>,
    session: Option<SocketSession>,
    /// Running operations by id, each with a unique number.
    running: RunningOperations,
    /// Operation tasks. Each returns whether it found its session ended.
    tasks: JoinSet<bool>,
    started: u64,
    /// Set until `connection_init` is accepted: an unauthenticated socket may be evicted for a new
    /// connection.
    waiting: Option<EvictableGuard>,
}

impl SocketHandler {
    fn new(
        service: GraphqlService,
        opening: SocketRequest,
        out: mpsc::Sender<OutboundMessage>,
    ) -> Self {
        let waiting = opening.guard.allow_eviction();
        Self {
            service,
            opening,
            out,
            session: None,
            running: Arc::default(),
            tasks: JoinSet::new(),
            started: 0,
            waiting,
        }
    }

    /// Serves the socket until one side or the writer ends it. Returns the close frame to send, if
    /// this side ends it. Rare branches are boxed to keep this future small, because there may be
    /// many idle sockets.
    async fn run(
        &mut self,
        stream: &mut SplitStream<Socket>,
        closing: &mut oneshot::Sender<CloseFrame>,
    ) -> Option<CloseReason> {
        let settings = self.service.app.config.sockets;
        let guard = self.opening.guard.clone();
        let greet_by = Instant::now() + settings.init_timeout;
        let mut ping_at = Instant::now() + settings.ping_interval;
        let mut awaits_pong = false;
        let (mut pace, mut paused) = (Pace::new(MESSAGES_PER_SECOND, MESSAGES_BURST), None);
        loop {
            let due = self
                .session
                .as_ref()
                .map_or(greet_by, |session| session.expires.min(ping_at));
            let next = paused.map_or(due, |until| due.min(until));
            tokio::select! {
                () = guard.stop.cancelled() => {
                    guard.shutting_down().await;
                    // Subscriptions observe the shutdown themselves. Requests that have begun are
                    // completed.
                    let answered = async { while self.tasks.join_next().await.is_some() {} };
                    drop(timeout(DRAIN_TIMEOUT, answered).await);
                    return Some(CloseReason::Restarting);
                }
                () = guard.connection.cancelled() => return Some(CloseReason::Unavailable),
                () = closing.closed() => return None,
                Some(over) = self.tasks.join_next() => {
                    if over.is_ok_and(|session_ended| session_ended) {
                        return Some(SESSION_ENDED);
                    }
                }
                () = session_changed(&mut self.session) => {
                    if let Some(close) = Box::pin(self.recheck_session()).await {
                        return Some(close);
                    }
                }
                message = stream.next(), if paused.is_none() => {
                    awaits_pong = false;
                    paused = pace.draw(Instant::now(), 1);
                    let text = match message {
                        None => return None,
                        Some(Ok(Message::Text(text))) => text,
                        Some(Ok(Message::Binary(_))) => return Some(CloseReason::Invalid("Invalid message: not text")),
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Close(_) | Message::Frame(_))) => return None,
                        Some(Err(error)) => return CloseReason::from_read_error(&error),
                    };
                    if let Err(close) = Box::pin(self.handle_message(&text)).await {
                        return Some(close);
                    }
                }
                () = sleep_until(next) => {
                    paused = paused.filter(|until| *until > Instant::now());
                    if due > Instant::now() {
                        continue;
                    }
                    let Some(session) = &self.session else {
                        return Some(CloseReason::TimedOut("Connection initialisation timeout"));
                    };
                    if session.expires <= Instant::now() {
                        return Some(CloseReason::Forbidden("The access token has expired"));
                    }
                    if awaits_pong {
                        return Some(CloseReason::TimedOut("No pong"));
                    }
                    self.send(plain::PING).await;
                    awaits_pong = true;
                    ping_at = Instant::now() + settings.ping_interval;
                }
            }
        }
    }

    async fn send(&mut self, text: impl Into<Box<str>>) {
        // Fails only if the writer has ended, which the loop detects.
        drop(self.out.send(text.into().into()).await);
    }

    async fn handle_message(&mut self, text: &str) -> Result<(), CloseReason> {
        match ClientMessage::parse(text).map_err(CloseReason::Invalid)? {
            ClientMessage::ConnectionInit(_) if self.session.is_some() => {
                return Err(CloseReason::TooManyInitRequests);
            }
            ClientMessage::ConnectionInit(authorization) => {
                let authorization = authorization.or_else(|| self.opening.authorization.clone());
                let authorization = authorization.ok_or(CloseReason::Forbidden(
                    "Forbidden: an access token is required",
                ))?;
                self.session = Some(self.authenticate(&authorization).await?);
                self.waiting = None;
                self.send(plain::ACK).await;
            }
            ClientMessage::Pong => {}
            ClientMessage::Ping(authorization) => {
                if let Some(authorization) = authorization {
                    self.renew_session(&authorization).await?;
                }
                self.send(plain::PONG).await;
            }
            ClientMessage::Subscribe { id, request } => {
                let viewer = self
                    .session
                    .as_ref()
                    .ok_or(CloseReason::Unauthorized)?
                    .viewer;
                self.start(id, request, viewer).await?;
            }
            ClientMessage::Complete { id } => {
                if let Some((_, task)) = lock(&self.running).remove(&id) {
                    task.abort();
                }
            }
        }
        Ok(())
    }

    /// Authenticates the socket: checks the token, takes one of the user's socket slots and watches
    /// the session.
    async fn authenticate(&self, authorization: &str) -> Result<SocketSession, CloseReason> {
        let (viewer, expires) = self.verify_token(authorization).await?;
        let limit = self.service.app.config.sockets.per_user;
        let slot = self
            .service
            .sockets
            .take(viewer.id, limit)
            .ok_or(CloseReason::TooManySockets)?;
        let watch = self.watch(viewer).await?;
        Ok(SocketSession {
            viewer,
            expires,
            watch,
            _slot: slot,
        })
    }

    /// Replaces the access token with a fresh one of the same user.
    async fn renew_session(&mut self, authorization: &str) -> Result<(), CloseReason> {
        let Some(current) = self.session.as_ref().map(|session| session.viewer) else {
            return Err(CloseReason::Unauthorized);
        };
        let (viewer, expires) = self.verify_token(authorization).await?;
        if viewer.id != current.id {
            return Err(CloseReason::Forbidden(
                "Forbidden: the token belongs to another user",
            ));
        }
        let watch = if viewer == current {
            None
        } else {
            Some(self.watch(viewer).await?)
        };
        if let Some(session) = &mut self.session {
            session.expires = expires;
            session.viewer = viewer;
            if let Some(watch) = watch {
                session.watch = watch;
            }
        }
        Ok(())
    }

    async fn verify_token(&self, authorization: &str) -> Result<(Viewer, Instant), CloseReason> {
        let examined = self
            .try_verify_token(authorization)
            .instrument(background_span(&self.opening.request_id, None));
        examined.await.map_err(|refusal| match refusal {
            AuthFailure::Token => {
                CloseReason::Forbidden("Forbidden: the access token is not valid")
            }
            AuthFailure::Busy => CloseReason::Unavailable,
        })
    }

    async fn try_verify_token(
        &self,
        authorization: &str,
    ) -> Result<(Viewer, Instant), AuthFailure> {
        let app = &self.service.app;
        let token = bearer(authorization).ok_or(AuthFailure::Token)?;
        let now = app.clock.now();
        let viewer = auth::authenticate(app, token).await;
        // Rate limited like an HTTP request: by user, or by address if the token is not valid.
        let known = viewer.as_ref().ok().copied();
        self.service
            .count_request(known, self.opening.client.address)
            .await
            .map_err(|_| AuthFailure::Busy)?;
        let viewer = viewer.map_err(|error| match error.into_client().0 {
            Code::Unauthenticated => AuthFailure::Token,
            _ => AuthFailure::Busy,
        })?;
        let access = app
            .credentials
            .verify_access(now, token)
            .ok_or(AuthFailure::Token)?;
        Ok((viewer, Instant::now() + access.expires_at.since(now)))
    }

    /// Subscribes to changes of the session, then checks that it is still active. This order misses
    /// no change.
    async fn watch(&self, viewer: Viewer) -> Result<SessionWatch<EventObjects>, CloseReason> {
        let app = &self.service.app;
        let watch = app.hub.watch_session(viewer);
        match app
            .sessions
            .viewer(&app.db, app.clock.now(), viewer.session_id)
            .await
        {
            Ok(Some(found)) if found == viewer => Ok(watch),
            Ok(_) => Err(SESSION_ENDED),
            Err(error) => {
                background_span(&self.opening.request_id, None).in_scope(|| error.into_client());
                Err(CloseReason::Unavailable)
            }
        }
    }

    /// Checks the session after a change. Returns why the socket must close, or `None` if the
    /// viewer is the same.
    async fn recheck_session(&mut self) -> Option<CloseReason> {
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

    async fn start(
        &mut self,
        id: String,
        json: Box<str>,
        viewer: Viewer,
    ) -> Result<(), CloseReason> {
        let limit = self.service.app.config.sockets.operations_per_socket;
        let mut operation = OperationRunner {
            service: self.service.clone(),
            out: self.out.clone(),
            request_id: Arc::clone(&self.opening.request_id),
            stop: self.opening.guard.stop.clone(),
            client: self.opening.client.clone(),
            viewer,
        };
        self.started += 1;
        let number = self.started;
        let refused = {
            // Locked until the operation is registered, so that it cannot end before that.
            let mut running = lock(&self.running);
            if running.contains_key(&id) {
                return Err(CloseReason::Duplicate(id));
            }
            let reserved = if running.len() < limit {
                let bytes = self
                    .service
                    .app
                    .in_flight
                    .reserve_request(ClientKey::User(viewer.id), json.len());
                bytes.map_err(RequestError::from)
            } else {
                let message = format!("A socket may have at most {limit} running operations.");
                Err(RequestError::new(Code::RateLimited, message))
            };
            match reserved {
                Err(refused) => refused,
                Ok(reservation) => {
                    // Boxed: used once, in a long-lived task.
                    let request = Box::new(UnparsedRequest {
                        json,
                        _reservation: reservation,
                    });
                    let (noted, named) = (Arc::clone(&self.running), id.clone());
                    let task = self.tasks.spawn(async move {
                        let end = operation.run(&named, request).await;
                        // Unregistered before the last message, because a client may reuse the id
                        // as soon as it has read that message.
                        remove_operation(&noted, &named, number);
                        match end {
                            OperationEnd::Message(last) => {
                                drop(operation.out.send(last.into()).await)
                            }
                            OperationEnd::HandedOver => {}
                            OperationEnd::SessionEnded => return true,
                        }
                        false
                    });
                    running.insert(id.clone(), (number, task));
                    return Ok(());
                }
            }
        };
        self.send(operation.error(&id, refused)).await;
        Ok(())
    }
}

/// A request that waits for its permit, as JSON text. Its bytes count until it is parsed.
struct UnparsedRequest {
    json: Box<str>,
    _reservation: Option<Reservation>,
}

impl UnparsedRequest {
    fn parse(self) -> Result<GraphqlRequest, RequestError> {
        let invalid = |_| RequestError::new(Code::BadRequest, "The payload is not valid JSON.");
        GraphqlRequest::from_json(serde_json::from_str(&self.json).map_err(invalid)?)
    }
}

/// Outcome of an operation.
enum OperationEnd {
    /// Its last message.
    Message(Box<str>),
    /// The server is shutting down. No `complete` is sent, so that the client subscribes again
    /// elsewhere.
    HandedOver,
    /// Its session has ended. The socket closes too, even if another session has extended it: the
    /// client reconnects and starts the operation again.
    SessionEnded,
}

/// Context of a running operation.
struct OperationRunner {
    service: GraphqlService,
    out: mpsc::Sender<OutboundMessage>,
    request_id: Arc<str>,
    stop: CancellationToken,
    client: Client,
    viewer: Viewer,
}

impl OperationRunner {
    /// Runs an operation. The caller sends the last message.
    async fn run(&mut self, id: &str, request: Box<UnparsedRequest>) -> OperationEnd {
        // Boxed: this task lives as long as its subscription, and there are many.
        let span = background_span(&self.request_id, None);
        let mut subscription = match Box::pin(self.begin(id, request).instrument(span)).await {
            Ok(subscription) => subscription,
            Err(end) => return end,
        };
        loop {
            let message = tokio::select! {
                () = self.stop.cancelled() => return OperationEnd::HandedOver,
                message = subscription.next() => message,
            };
            match message {
                Some(SubscriptionMessage::Event { payload, .. }) => {
                    if let Err(refused) = self.send(next(id, &payload)).await {
                        return OperationEnd::Message(self.error(id, refused));
                    }
                }
                Some(SubscriptionMessage::Failed { answer, .. }) if answer.ends_session() => {
                    return OperationEnd::SessionEnded;
                }
                Some(SubscriptionMessage::Failed { answer, .. }) => {
                    return Box::pin(self.send_response(id, answer, false)).await;
                }
                None => return complete(id),
            }
        }
    }

    /// Opens a subscription. For any other operation, executes it, sends the response and returns
    /// how it ended.
    async fn begin(
        &mut self,
        id: &str,
        request: Box<UnparsedRequest>,
    ) -> Result<Box<ActiveSubscription>, OperationEnd> {
        let admitted = async {
            let concurrency = &self.service.app.concurrency;
            let permit = concurrency
                .acquire(ClientKey::User(self.viewer.id), WaitPolicy::Socket)
                .await?;
            let operation = self.admit(request.parse()?).await?;
            let permit = match operation.kind {
                OperationType::Mutation => {
                    concurrency
                        .acquire_write(permit, WaitPolicy::Socket)
                        .await?
                }
                _ => permit,
            };
            Ok::<_, RequestError>((permit, operation))
        };
        let (permit, operation) = admitted.await.map_err(|refused| {
            self.service.app.metrics.record_refusal(refused.code);
            match refused.code {
                Code::Unauthenticated => OperationEnd::SessionEnded,
                _ => OperationEnd::Message(self.error(id, refused)),
            }
        })?;
        if operation.kind == OperationType::Subscription {
            let (request_id, viewer) = (Arc::clone(&self.request_id), Some(self.viewer));
            let slot = self
                .service
                .subscription_slot(viewer)
                .map_err(|refused| OperationEnd::Message(self.error(id, refused)))?;
            let opened = self
                .service
                .subscribe(operation, slot, None, viewer, request_id);
            return match permit.scope(DEADLINE, 0).run(opened).await {
                Ok(subscription) => Ok(Box::new(subscription)),
                Err(answer) if answer.ends_session() => Err(OperationEnd::SessionEnded),
                Err(answer) => Err(failed(id, &answer)),
            };
        }
        let is_mutation = operation.kind == OperationType::Mutation;
        let answer = self
            .service
            .execute(operation, Some(self.viewer), &self.request_id, permit)
            .await;
        Err(self.send_response(id, answer, is_mutation).await)
    }

    async fn admit(
        &self,
        graphql_request: GraphqlRequest,
    ) -> Result<super::operation::Operation, RequestError> {
        let app = &self.service.app;
        // Session changes arrive with the event log, which may lag, so the session is checked here
        // too.
        let present = app
            .sessions
            .viewer(&app.db, app.clock.now(), self.viewer.session_id)
            .await?;
        if present != Some(self.viewer) {
            return Err(Error::unauthenticated().into());
        }
        self.service
            .count_request(Some(self.viewer), self.client.address)
            .await?;
        let operation = self
            .service
            .admit(graphql_request, Some(self.viewer), self.client.clone())
            .await?;
        if operation.kind == OperationType::Mutation && !self.service.app.config.sockets.mutations {
            return Err(RequestError::new(
                Code::Forbidden,
                "Mutations over WebSocket are disabled. Use POST.",
            ));
        }
        Ok(operation)
    }

    /// Sends the only or last response of an operation.
    async fn send_response(
        &mut self,
        id: &str,
        answer: GraphqlResponse,
        is_mutation: bool,
    ) -> OperationEnd {
        if !answer.is_executed() {
            return failed(id, &answer);
        }
        let Some(text) = answer.to_text() else {
            return OperationEnd::Message(self.error(id, too_large()));
        };
        match self.send(next(id, &text)).await {
            Ok(()) => complete(id),
            // A retry would execute the mutation twice.
            Err(_) if is_mutation => OperationEnd::Message(self.error(id, response_dropped())),
            Err(refused) => OperationEnd::Message(self.error(id, refused)),
        }
    }

    /// Queues a message, unless the user has too many unread bytes.
    async fn send(&mut self, text: Box<str>) -> Result<(), RequestError> {
        let reservation = self
            .service
            .app
            .in_flight
            .reserve(ClientKey::User(self.viewer.id), text.len())?;
        // Fails only if the writer has ended.
        drop(self.out.send(OutboundMessage { text, reservation }).await);
        Ok(())
    }

    fn error(&self, id: &str, refused: RequestError) -> Box<str> {
        let answer = GraphqlResponse::from_error(refused, &self.request_id);
        ServerMessage::with_id(id, "error", Some(answer.errors()))
    }
}

fn complete(id: &str) -> OperationEnd {
    OperationEnd::Message(ServerMessage::<()>::with_id(id, "complete", None))
}

fn failed(id: &str, answer: &GraphqlResponse) -> OperationEnd {
    OperationEnd::Message(ServerMessage::with_id(id, "error", Some(answer.errors())))
}

/// Waits for a change of the session. Never returns without a session.
async fn session_changed(session: &mut Option<SocketSession>) {
    match session {
        Some(session) => session.watch.ended().await,
        None => std::future::pending().await,
    }
}

fn lock(
    running: &RunningOperations,
) -> std::sync::MutexGuard<'_, HashMap<String, (u64, AbortHandle)>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unregisters an operation that has ended, unless another one reuses its id.
fn remove_operation(running: &RunningOperations, id: &str, number: u64) {
    let mut running = lock(running);
    if running
        .get(id)
        .is_some_and(|(current, _)| *current == number)
    {
        running.remove(id);
    }
}
