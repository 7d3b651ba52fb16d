//! The accept loop: HTTP/1 and HTTP/2 on one port, with a deadline for everything a client may be slow at.
//!
//! A connection has to bring its first request soon, and the next one not too late; a body has to arrive, and whoever
//! does not read is dropped. When all slots are taken, or those of a client's address or network, the connection that has
//! waited longest for its client is evicted, idle ones included; among the requests in work it is the one that has waited
//! longest for its body. A few slots beyond the limit are reserved for probes: a connection that finds no other slot has
//! one request answered there, with 503 if it is no probe.

use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
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
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::TooMany;
use super::in_flight::{Counting, Written};
use super::slots::{Slot, SlotLimits, SlotPool, Waiting};
use super::stream::{Parts, Stream, Streams};
use crate::config::Connections;
use crate::id::Id;
use crate::network::Network;

/// How long a connection may take to say goodbye, and how often that is looked at.
const GOODBYE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);
/// On shutdown sockets and streams are closed over this span.
const JITTER: Duration = Duration::from_secs(1);
/// Connections beyond the limit, for probes.
const RESERVED: usize = 64;
/// Connections of an IPv6 /48, in those of an address.
const SITE: usize = 4;

/// How long what was given of an answer may wait to be taken.
const STUCK: Duration = Duration::from_secs(30);
/// Bytes of an answer that HTTP/2 may hold of a stream, and the system of a connection: it would grow to megabytes, of
/// which nobody sees whether the client has read them.
const STREAM_BUFFER: usize = 64 * 1024;
const SEND_BUFFER: usize = 256 * 1024;

/// What a request that goes on after its answer has begun (a socket, a stream of events) holds on to.
#[derive(Clone, Debug, Default)]
pub struct Lifeline {
    /// Cancelled when the server is to end.
    pub stop: CancellationToken,
    /// The server waits for these before it ends.
    pub tasks: TaskTracker,
    /// Cancelled by whoever wants the connection dropped; over HTTP/2, which carries others too, the stream.
    pub connection: CancellationToken,
    /// How much the connection has taken.
    pub written: Written,
    /// The connection's slot, which a socket keeps when hyper is done with the connection.
    slot: Option<Arc<Slot>>,
}

impl Lifeline {
    /// Waits until the server is to end, and a part of a second more: another one each, so that not all clients are back
    /// at the same moment.
    pub async fn ended(&self) {
        self.stop.cancelled().await;
        sleep(JITTER * u32::from(Id::new().as_bytes()[15]) / 256).await;
    }

    /// Says that the connection waits for its client as long as the guard is kept: it may be evicted meanwhile, by
    /// cancelling `connection`.
    pub fn wait(&self) -> Option<Waiting> {
        self.slot.as_ref().map(|slot| slot.wait(self.connection.clone()))
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Lifeline {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

struct Server {
    router: Router,
    limits: Connections,
    /// Proxies, which have as many connections as they like.
    trusted: Vec<Network>,
    /// For connections, which wait for their next request.
    connections: Arc<SlotPool>,
    /// For connections beyond those, of which each is answered one request.
    reserved: Arc<SlotPool>,
    /// For requests in work, which wait for their bodies.
    requests: Arc<SlotPool>,
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
    trusted: Vec<Network>,
    draining: CancellationToken,
    stop: CancellationToken,
) {
    let mut builder = Builder::new(Streams { stop: stop.clone() });
    // The deadlines below hold for both versions, so HTTP/1 needs none of its own.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(32 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(100)
        .max_send_buf_size(STREAM_BUFFER)
        .max_header_list_size(16 * 1024);
    let server = Arc::new(Server {
        router,
        trusted,
        connections: SlotPool::new(SlotLimits {
            total: limits.most,
            per_address: limits.per_address,
            per_site: limits.per_address.saturating_mul(SITE),
        }),
        reserved: SlotPool::new(SlotLimits::total(RESERVED)),
        requests: SlotPool::new(SlotLimits::total(limits.requests)),
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
                // Here and not in the task, so that who came first waits for longest.
                if let Some(activity) = server.admit(peer) {
                    server.tasks.spawn(Arc::clone(&server).connection(stream, peer, activity));
                }
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
    /// A slot for a connection, which waits for its first request from now on.
    fn admit(&self, peer: SocketAddr) -> Option<Arc<Activity>> {
        let address: IpAddr = peer.ip().to_canonical();
        let is_trusted = self.trusted.iter().any(|network| network.contains(address));
        let slot = self.connections.acquire((!is_trusted).then_some(address));
        let is_reserved = slot.is_none();
        // A newcomer always gets a reserved slot: its holder can be evicted at any time.
        let slot = slot.or_else(|| self.reserved.acquire(None))?;
        let lifeline = Lifeline {
            stop: self.stop.clone(),
            tasks: self.tasks.clone(),
            connection: CancellationToken::new(),
            written: Written::default(),
            slot: Some(slot),
        };
        Some(Arc::new(Activity::new(lifeline, is_reserved)))
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, activity: Arc<Activity>) {
        // Answers are written in one piece; waiting for more would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(cause = %error, "no nodelay");
        }
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
            tracing::debug!(cause = %error, "no limit of the send buffer");
        }
        let (lifeline, is_reserved) = (activity.lifeline.clone(), activity.is_reserved);
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let busy = Busy::new(&activity, request.version());
            let (server, lifeline) = (Arc::clone(&self), lifeline.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, peer, lifeline, busy).await) }
        });
        let stream = TokioIo::new(Counting { io: stream, written: lifeline.written.clone() });
        let mut connection = pin!(self.builder.serve_connection_with_upgrades(stream, service));
        let mut stuck = pin!(activity.stream.stuck(&self.stop));
        let mut is_leaving = false;
        let mut stopping = None;
        loop {
            // While stopping, whether the last request is answered is looked at now and then.
            let due = stopping.map_or_else(|| activity.due(&self.limits), |_| Instant::now() + TICK);
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
                () = activity.begun.cancelled(), if is_reserved && !is_leaving => {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.stop.cancelled(), if stopping.is_none() => {
                    stopping = Some(Instant::now() + GOODBYE);
                    connection.as_mut().graceful_shutdown();
                    if !activity.begun.is_cancelled() {
                        break;
                    }
                }
                () = lifeline.connection.cancelled() => break,
                () = stuck.as_mut() => break,
                () = sleep_until(due) => {
                    // Of HTTP/2 the client has to agree to the end: one that does not is not waited for.
                    let said = stopping.is_some_and(|until| until <= Instant::now() && !activity.is_busy());
                    if said || activity.due(&self.limits) <= Instant::now() {
                        break;
                    }
                }
            }
        }
        activity.end();
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
        let slot = if probe || busy.0.is_reserved { None } else { self.requests.acquire(None) };
        if slot.is_none() && !probe {
            request.extensions_mut().insert(TooMany);
        }
        let stream = Stream::current();
        if let Some(stream) = &stream {
            lifeline.connection = stream.dropped.clone();
        }
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(lifeline);
        let due = Instant::now() + self.limits.body;
        let request = request.map(|body| Body::new(Arriving { body, due, slot: slot.clone(), late: None }));
        let Ok(response) = self.router.clone().call(request).await;
        let (is_http_2, patience) = (stream.is_some(), STUCK.min(self.limits.idle));
        let stream = stream.unwrap_or_else(|| Arc::clone(&busy.0.stream));
        response.map(|body| Body::new(Counted { body: Parts::new(body, stream, is_http_2, patience), _busy: busy }))
    }
}

/// What goes on on a connection.
struct Activity {
    lifeline: Lifeline,
    /// Whether it is one that is answered one request.
    is_reserved: bool,
    started: Instant,
    /// Cancelled by the first request.
    begun: CancellationToken,
    /// Cancelled when it turns out to be that.
    http_2: CancellationToken,
    /// The answer over HTTP/1, one after the other.
    stream: Arc<Stream>,
    requests: Mutex<Requests>,
}

/// The requests of a connection.
struct Requests {
    /// Those that are not fully answered yet.
    running: usize,
    /// When the last one ended.
    ended: Option<Instant>,
    /// While there is none.
    waiting: Option<Waiting>,
    is_over: bool,
}

impl Activity {
    fn new(lifeline: Lifeline, is_reserved: bool) -> Self {
        let requests = Requests { running: 0, ended: None, waiting: lifeline.wait(), is_over: false };
        Self {
            lifeline,
            is_reserved,
            started: Instant::now(),
            begun: CancellationToken::new(),
            http_2: CancellationToken::new(),
            stream: Arc::default(),
            requests: Mutex::new(requests),
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_busy(&self) -> bool {
        self.requests().running > 0
    }

    /// Until when something has to happen.
    fn due(&self, limits: &Connections) -> Instant {
        if !self.begun.is_cancelled() || self.is_reserved {
            return self.started + limits.headers;
        }
        let requests = self.requests();
        match requests.ended {
            Some(ended) if requests.running == 0 => ended + limits.idle,
            _ => Instant::now() + limits.idle,
        }
    }

    /// From now on it waits for nobody: what goes on without hyper, such as a socket, sees to that by itself.
    fn end(&self) {
        let mut requests = self.requests();
        requests.is_over = true;
        requests.waiting = None;
    }
}

/// A request that is not fully answered yet.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>, version: Version) -> Self {
        if version == Version::HTTP_2 {
            activity.http_2.cancel();
        }
        activity.begun.cancel();
        let mut requests = activity.requests();
        requests.running += 1;
        if !activity.is_reserved {
            requests.waiting = None;
        }
        drop(requests);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        requests.running -= 1;
        if requests.running == 0 {
            requests.ended = Some(Instant::now());
            if !requests.is_over && requests.waiting.is_none() {
                requests.waiting = self.0.lifeline.wait();
            }
        }
    }
}

/// The body of a request, as long as it arrives in time and nobody else needs the room.
struct Arriving {
    body: Incoming,
    due: Instant,
    /// That of the request; a probe has none.
    slot: Option<Arc<Slot>>,
    /// Once it has been waited for.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Waits until a body is late, or its request is evicted.
async fn late(due: Instant, slot: Option<Arc<Slot>>) {
    let evicted = CancellationToken::new();
    let _waiting = slot.map(|slot| slot.wait(evicted.clone()));
    tokio::select! {
        () = sleep_until(due) => {}
        () = evicted.cancelled() => {}
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
        let Self { due, slot, late: lateness, .. } = &mut *self;
        let lateness = lateness.get_or_insert_with(|| Box::pin(late(*due, slot.clone())));
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
    body: Parts,
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
