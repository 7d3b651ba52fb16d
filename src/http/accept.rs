//! The accept loop: HTTP/1 and HTTP/2 on one port, with a deadline for everything a client may be slow at.
//!
//! A connection has to bring its first request soon, and the next one not too late; a body has to arrive, and whoever
//! does not read is dropped. When all places are taken, the connection that has waited longest for its first request
//! makes room, and among the requests in work the one that has waited longest for its body: thousands of half-open
//! requests hold up nobody but each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response, Version};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::TooMany;
use super::stream::{Parts, Stream, Streams};
use crate::config::Connections;
use crate::id::Id;

/// How long the place of whoever was shown out is waited for.
const ROOM: Duration = Duration::from_secs(1);
/// How long a connection may take to say goodbye, and how often that is looked at.
const GOODBYE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);
/// On shutdown sockets and streams are closed over this span.
const JITTER: Duration = Duration::from_secs(1);
/// What is sent to a connection that there is no room for.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What a request that goes on after its answer has begun (a socket, a stream of events) holds on to.
#[derive(Clone, Debug, Default)]
pub struct Lifeline {
    /// Cancelled when the server is to end.
    pub stop: CancellationToken,
    /// The server waits for these before it ends.
    pub tasks: TaskTracker,
    /// Cancelled by whoever wants the connection dropped; over HTTP/2, which carries others too, the stream.
    pub connection: CancellationToken,
    /// The connection's place, which a socket keeps when hyper is done with the connection.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl Lifeline {
    /// Waits until the server is to end, and a part of a second more: another one each, so that not all clients are back
    /// at the same moment.
    pub async fn ended(&self) {
        self.stop.cancelled().await;
        sleep(JITTER * u32::from(Id::new().as_bytes()[15]) / 256).await;
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Lifeline {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// Room for so many at once. When there is none left, whoever has waited longest for its client makes some.
struct Room {
    places: Arc<Semaphore>,
    waiting: Mutex<Queue>,
}

/// Those who wait for their clients by number, the longest first.
#[derive(Default)]
struct Queue {
    next: u64,
    shown_out: BTreeMap<u64, CancellationToken>,
}

impl Room {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(most)), waiting: Mutex::default() })
    }

    /// A place for one more: a free one, or that of whoever has waited longest.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        let (_, longest) = self.waiting().shown_out.pop_first()?;
        longest.cancel();
        timeout(ROOM, Arc::clone(&self.places).acquire_owned()).await.ok()?.ok()
    }

    /// Whoever has a place waits for its client as long as it keeps this, and leaves when the token is cancelled.
    fn wait(self: &Arc<Self>, shown_out: CancellationToken) -> Waiting {
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        waiting.shown_out.insert(number, shown_out);
        Waiting { room: Arc::clone(self), number }
    }

    fn waiting(&self) -> MutexGuard<'_, Queue> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting {
    room: Arc<Room>,
    number: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.room.waiting().shown_out.remove(&self.number);
    }
}

struct Server {
    router: Router,
    limits: Connections,
    /// For connections, which wait for their first request.
    places: Arc<Room>,
    /// For requests in work, which wait for their bodies.
    turns: Arc<Room>,
    builder: Builder<Streams>,
    draining: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Serves until `stop` is cancelled, then lets the requests in flight finish and the sockets say goodbye. From `draining`
/// on, clients are told to make new connections elsewhere: those of HTTP/2 here.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Connections,
    draining: CancellationToken,
    stop: CancellationToken,
) {
    let mut builder = Builder::new(Streams { patience: limits.idle, stop: stop.clone() });
    // The deadlines below hold for both versions, so HTTP/1 needs none of its own.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(32 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(100)
        .max_header_list_size(16 * 1024);
    let server = Arc::new(Server {
        router,
        places: Room::new(limits.most),
        turns: Room::new(limits.requests),
        limits,
        builder,
        draining,
        stop: stop.clone(),
        tasks: TaskTracker::new(),
    });
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                server.tasks.spawn(Arc::clone(&server).admit(stream, peer));
            }
            // Of one connection that went away again, or too many open files: neither ends the server.
            Err(error) => {
                tracing::warn!(cause = %error, "cannot accept");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    server.tasks.close();
    server.tasks.wait().await;
}

impl Server {
    async fn admit(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr) {
        if let Some(place) = self.places.place().await {
            self.connection(stream, peer, place).await;
        } else {
            // Whether it is read is the client's affair.
            drop(timeout(ROOM, stream.write_all(FULL)).await);
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        // Answers are written in one piece; waiting for more would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(cause = %error, "no nodelay");
        }
        let lifeline = Lifeline {
            stop: self.stop.clone(),
            tasks: self.tasks.clone(),
            connection: CancellationToken::new(),
            _place: Some(Arc::new(place)),
        };
        let waiting = Mutex::new(Some(self.places.wait(lifeline.connection.clone())));
        let activity = Arc::new(Activity::default());
        let started = Instant::now();
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            if activity.begun.fetch_add(1, Ordering::Relaxed) == 0 {
                waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
                if request.version() == Version::HTTP_2 {
                    activity.http_2.cancel();
                }
            }
            let busy = Busy::new(&activity);
            let (server, lifeline) = (Arc::clone(&self), lifeline.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, peer, lifeline, busy).await) }
        });
        let mut connection = pin!(self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut is_leaving = false;
        let mut stopping = None;
        loop {
            // While stopping, whether the last request is answered is looked at now and then.
            let due = stopping.map_or_else(|| activity.due(started, &self.limits), |_| Instant::now() + TICK);
            tokio::select! {
                served = connection.as_mut() => {
                    if let Err(error) = served {
                        tracing::debug!(cause = %error, "connection");
                    }
                    break;
                }
                () = async { activity.http_2.cancelled().await; self.draining.cancelled().await }, if !is_leaving => {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.stop.cancelled(), if stopping.is_none() => {
                    stopping = Some(Instant::now() + GOODBYE);
                    connection.as_mut().graceful_shutdown();
                    if activity.begun.load(Ordering::Relaxed) == 0 {
                        break;
                    }
                }
                () = lifeline.connection.cancelled() => break,
                () = sleep_until(due) => {
                    // Of HTTP/2 the client has to agree to the end: one that does not is not waited for.
                    let said = stopping.is_some_and(|until| until <= Instant::now() && !activity.is_busy());
                    if said || activity.due(started, &self.limits) <= Instant::now() {
                        break;
                    }
                }
            }
        }
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        mut lifeline: Lifeline,
        busy: Busy,
    ) -> Response<Body> {
        // A probe has to know whether the server lives, above all when it is busy.
        let probe = matches!(request.uri().path(), "/livez" | "/readyz");
        let turn = if probe { None } else { self.turns.place().await };
        if turn.is_none() && !probe {
            request.extensions_mut().insert(TooMany);
        }
        let stream = Stream::current();
        if let Some(stream) = &stream {
            lifeline.connection = stream.dropped.clone();
        }
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(lifeline);
        let due = Instant::now() + self.limits.body;
        let request = request.map(|body| Body::new(Arriving { body, due, turns: Arc::clone(&self.turns), late: None }));
        let Ok(response) = self.router.clone().call(request).await;
        response.map(|body| {
            let body = match stream {
                Some(stream) => Body::new(Parts { body, stream, rest: Bytes::new() }),
                None => body,
            };
            Body::new(Counted { body, _busy: busy })
        })
    }
}

/// What goes on on a connection.
#[derive(Default)]
struct Activity {
    /// Cancelled when it turns out to be that.
    http_2: CancellationToken,
    begun: AtomicUsize,
    running: AtomicUsize,
    ended: Mutex<Option<Instant>>,
}

impl Activity {
    fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// Until when something has to happen.
    fn due(&self, started: Instant, limits: &Connections) -> Instant {
        if self.begun.load(Ordering::Relaxed) == 0 {
            return started + limits.headers;
        }
        if self.is_busy() {
            return Instant::now() + limits.idle;
        }
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.unwrap_or(started) + limits.idle
    }
}

/// A request that is not fully answered yet.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a request, as long as it arrives in time and nobody else needs the room.
struct Arriving {
    body: Incoming,
    due: Instant,
    turns: Arc<Room>,
    /// Once it has been waited for.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Waits until a body is late, or is to make room.
async fn late(due: Instant, turns: Arc<Room>) {
    let shown_out = CancellationToken::new();
    let _waiting = turns.wait(shown_out.clone());
    tokio::select! {
        () = sleep_until(due) => {}
        () = shown_out.cancelled() => {}
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Self { due, turns, late: lateness, .. } = &mut *self;
        let lateness = lateness.get_or_insert_with(|| Box::pin(late(*due, Arc::clone(turns))));
        lateness.as_mut().poll(cx).map(|()| Some(Err("the body is late".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer; while it lasts, the connection is busy.
struct Counted {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
