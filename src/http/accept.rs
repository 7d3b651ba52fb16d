//! The accept loop: HTTP/1 and HTTP/2 on one port, with a deadline for every step that depends on
//! the client.
//!
//! A connection must send its first request soon and each later one before the idle timeout. Bodies
//! must arrive and responses must be read in time. When all slots are in use, or those of one
//! address or network, the connection that has waited longest for its client is evicted: an idle
//! one, or one whose requests all wait for the client to send a body or to read a response. Among
//! running requests it is the one that has waited longest for its body. A few slots beyond the
//! limit are reserved for health probes: a connection that gets no other slot has one request
//! answered there, with 503 unless it is a probe.

use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
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

use super::Overloaded;
use super::in_flight::{BytesWritten, CountingIo};
use super::pace::{Pace, PacedIo};
use super::slots::{EvictableGuard, Slot, SlotLimits, SlotPool};
use super::write_timeout::{ChunkedBody, ResponseStream, StreamExecutor};
use crate::config::ConnectionLimits;
use crate::id::Id;
use crate::network::Network;

/// Time limit for closing a connection on shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a closing connection is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Sockets and event streams are closed at random moments within this span on shutdown.
const JITTER: Duration = Duration::from_secs(1);
/// Connections beyond the limit, reserved for probes.
const RESERVED_CONNECTIONS: usize = 64;
/// Limit of an IPv6 /48, in multiples of the limit of one address.
const SITE_MULTIPLIER: usize = 4;
/// Running requests of one address: a fraction of the total, but at least this many.
const REQUEST_SHARE: usize = 2;
const MIN_REQUEST_SHARE: usize = 100;
/// HTTP/2 frames of any kind that a connection may send: a sustained rate and a burst. hyper
/// answers PING and SETTINGS frames without a request, so only this limits them. A request takes
/// about three frames. Trusted proxies, whose connections carry many clients, are exempt.
const FRAMES_PER_SECOND: u32 = 10_000;
const FRAMES_BURST: u32 = 20_000;
/// Concurrent streams of an HTTP/2 connection.
const MAX_STREAMS: u32 = 32;
/// Unread responses over HTTP/2, in total and per address. Each takes about 6 KiB, whatever its
/// size.
const UNREAD_RESPONSES: usize = 8 * 1024;
const UNREAD_RESPONSES_PER_ADDRESS: usize = UNREAD_RESPONSES / 8;

/// How long a part of a response may wait for the client to read it.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Send buffer of an HTTP/2 stream, and of the socket in the kernel, in bytes. The kernel would
/// grow its buffer to megabytes, and the server cannot see whether the client has read them.
const STREAM_BUFFER: usize = 64 * 1024;
const SEND_BUFFER: usize = 256 * 1024;

/// Handle of a request that outlives its response head, such as a socket or an event stream.
#[derive(Clone, Debug, Default)]
pub struct ConnectionHandle {
    /// Cancelled on shutdown.
    pub stop: CancellationToken,
    /// Tasks that shutdown waits for.
    pub tasks: TaskTracker,
    /// Cancel it to drop the connection. Over HTTP/2, which shares the connection, it drops the
    /// stream.
    pub connection: CancellationToken,
    /// Bytes written to the connection so far.
    pub written: BytesWritten,
    /// Slot of the connection. A socket keeps it after hyper has released the connection.
    slot: Option<Arc<Slot>>,
}

impl ConnectionHandle {
    /// Waits for shutdown plus a random delay of up to one second, so that clients do not all
    /// reconnect at once.
    pub async fn shutting_down(&self) {
        self.stop.cancelled().await;
        sleep(JITTER * u32::from(Id::new().as_bytes()[15]) / 256).await;
    }

    /// Marks the connection as waiting for its client while the guard is alive. It may be evicted
    /// meanwhile, which cancels `connection`.
    pub fn allow_eviction(&self) -> Option<EvictableGuard> {
        self.slot
            .as_ref()
            .map(|slot| slot.allow_eviction(self.connection.clone()))
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for ConnectionHandle {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

struct AcceptLoop {
    router: Router,
    limits: ConnectionLimits,
    /// Proxies without a limit per address.
    trusted: Vec<Network>,
    /// For connections. One that waits for its next request can be evicted.
    connections: Arc<SlotPool>,
    /// For connections beyond those. Each gets one response.
    reserved: Arc<SlotPool>,
    /// For running requests. One that waits for its body can be evicted.
    requests: Arc<SlotPool>,
    /// For responses over HTTP/2 that the client has not read. The connection of the one that has
    /// waited longest can be evicted.
    unread: Arc<SlotPool>,
    builder: Builder<StreamExecutor>,
    draining: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Serves until `stop` is cancelled, then completes the requests in flight and closes sockets. From
/// `draining` on, clients are asked to open new connections elsewhere; for HTTP/2 this happens
/// here, with GOAWAY.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    trusted: Vec<Network>,
    draining: CancellationToken,
    stop: CancellationToken,
) {
    let mut builder = Builder::new(StreamExecutor { stop: stop.clone() });
    // The deadlines below apply to both versions, so HTTP/1 needs no timeout of its own.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(32 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(STREAM_BUFFER)
        .max_header_list_size(16 * 1024);
    let requests_of_one = (limits.requests / REQUEST_SHARE).max(MIN_REQUEST_SHARE);
    let server = Arc::new(AcceptLoop {
        router,
        trusted,
        connections: SlotPool::new(SlotLimits {
            total: limits.max,
            per_address: limits.per_address,
            per_site: limits.per_address.saturating_mul(SITE_MULTIPLIER),
        }),
        reserved: SlotPool::new(SlotLimits::total(RESERVED_CONNECTIONS)),
        requests: SlotPool::new(SlotLimits {
            total: limits.requests,
            per_address: requests_of_one,
            per_site: requests_of_one.saturating_mul(SITE_MULTIPLIER),
        }),
        unread: SlotPool::new(SlotLimits {
            total: UNREAD_RESPONSES,
            per_address: UNREAD_RESPONSES_PER_ADDRESS,
            per_site: UNREAD_RESPONSES_PER_ADDRESS * SITE_MULTIPLIER,
        }),
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
                // Admitted before the task is spawned, to keep the order of arrival.
                if let Some(activity) = server.admit(peer) {
                    server
                        .tasks
                        .spawn(Arc::clone(&server).serve_connection(stream, peer, activity));
                }
            }
            // A client that disconnected at once, or too many open files: the server goes on.
            Err(error) => {
                tracing::warn!(cause = %error, "accept failed");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    server.tasks.close();
    server.tasks.wait().await;
}

impl AcceptLoop {
    /// Takes a slot for a new connection, which then waits for its first request.
    fn admit(&self, peer: SocketAddr) -> Option<Arc<ConnectionActivity>> {
        let address: IpAddr = peer.ip().to_canonical();
        let is_trusted = self.trusted.iter().any(|network| network.contains(address));
        let source = (!is_trusted).then_some(address);
        let slot = self.connections.acquire(source);
        let is_reserved = slot.is_none();
        // This succeeds even when all are in use: the holder of a reserved slot can be evicted at
        // any time.
        let slot = slot.or_else(|| self.reserved.acquire(None))?;
        let guard = ConnectionHandle {
            stop: self.stop.clone(),
            tasks: self.tasks.clone(),
            connection: CancellationToken::new(),
            written: BytesWritten::default(),
            slot: Some(slot),
        };
        Some(Arc::new(ConnectionActivity::new(
            guard,
            source,
            is_reserved,
        )))
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        activity: Arc<ConnectionActivity>,
    ) {
        // Responses are written in one piece, so delaying small packets only adds latency.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(cause = %error, "setting TCP_NODELAY failed");
        }
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
            tracing::debug!(cause = %error, "setting SO_SNDBUF failed");
        }
        let (guard, is_reserved) = (activity.guard.clone(), activity.is_reserved);
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let busy = RequestGuard::new(&activity, request.version());
            let (server, guard) = (Arc::clone(&self), guard.clone());
            async move {
                Ok::<_, std::convert::Infallible>(
                    server.serve_request(request, peer, guard, busy).await,
                )
            }
        });
        let stream = match activity.source {
            Some(_) => PacedIo::frames(stream, Pace::new(FRAMES_PER_SECOND, FRAMES_BURST)),
            None => PacedIo::unlimited(stream),
        };
        let stream = TokioIo::new(CountingIo {
            io: stream,
            written: guard.written.clone(),
        });
        let mut connection = pin!(self.builder.serve_connection_with_upgrades(stream, service));
        let mut stuck = pin!(activity.stream.stalled(&self.stop));
        let mut is_leaving = false;
        let mut stopping = None;
        loop {
            // While stopping, poll for the end of the last request.
            let due = stopping.map_or_else(
                || activity.next_deadline(&self.limits),
                |_| Instant::now() + CHECK_INTERVAL,
            );
            tokio::select! {
                served = connection.as_mut() => {
                    if let Err(error) = served {
                        tracing::debug!(cause = %error, "connection failed");
                    }
                    break;
                }
                () = async { activity.http_2.cancelled().await; self.draining.cancelled().await }, if !is_leaving => {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = activity.first_request.cancelled(), if is_reserved && !is_leaving => {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.stop.cancelled(), if stopping.is_none() => {
                    stopping = Some(Instant::now() + CLOSE_TIMEOUT);
                    connection.as_mut().graceful_shutdown();
                    if !activity.first_request.is_cancelled() {
                        break;
                    }
                }
                () = guard.connection.cancelled() => break,
                () = stuck.as_mut() => break,
                () = sleep_until(due) => {
                    // An HTTP/2 client has to close the connection too. Do not wait for one that
                    // does not.
                    let said = stopping.is_some_and(|until| until <= Instant::now() && !activity.is_busy());
                    if said || activity.next_deadline(&self.limits) <= Instant::now() {
                        break;
                    }
                }
            }
        }
        activity.close();
    }

    async fn serve_request(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        mut guard: ConnectionHandle,
        busy: RequestGuard,
    ) -> Response<Body> {
        // Probes need an answer above all when the server is overloaded.
        let probe = matches!(request.uri().path(), "/livez" | "/readyz");
        let slot = if probe || busy.activity.is_reserved {
            None
        } else {
            self.requests.acquire(busy.activity.source)
        };
        if slot.is_none() && !probe {
            request.extensions_mut().insert(Overloaded);
        }
        let stream = ResponseStream::current();
        if let Some(stream) = &stream {
            guard.connection = stream.cancelled.clone();
        }
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(guard);
        let due = Instant::now() + self.limits.body_timeout;
        let busy = Arc::new(busy);
        let waiting = Arc::clone(&busy);
        let request = request.map(|body| {
            Body::new(DeadlineBody {
                body,
                due,
                slot: slot.clone(),
                late: None,
                busy: waiting,
            })
        });
        let Ok(response) = self.router.clone().call(request).await;
        let (is_http_2, patience) = (
            stream.is_some(),
            WRITE_STALL_TIMEOUT.min(self.limits.idle_timeout),
        );
        let stream = stream.unwrap_or_else(|| Arc::clone(&busy.activity.stream));
        // The response waits for the client from here on. Its body changes that if it has nothing
        // to read.
        busy.set_waits(true);
        let unread = if is_http_2 && !response.body().is_end_stream() {
            self.unread(&busy.activity)
        } else {
            None
        };
        response.map(|body| {
            Body::new(BusyBody {
                body: ChunkedBody::new(body, stream, is_http_2, patience),
                is_polled: false,
                unread,
                busy,
            })
        })
    }

    /// Takes a slot for a response that the client has to read. Evicting it closes the connection:
    /// hyper would keep a stream that is only reset until the client reads the reset.
    fn unread(&self, activity: &ConnectionActivity) -> Option<EvictableGuard> {
        let slot = self.unread.acquire(activity.source)?;
        Some(slot.allow_eviction(activity.guard.connection.clone()))
    }
}

/// State of a connection.
struct ConnectionActivity {
    guard: ConnectionHandle,
    /// Address that the limits per address apply to. Trusted proxies have none.
    source: Option<IpAddr>,
    /// Whether it uses a reserved slot and gets one response.
    is_reserved: bool,
    started: Instant,
    /// Cancelled when the first request arrives.
    first_request: CancellationToken,
    /// Cancelled when the connection turns out to use HTTP/2.
    http_2: CancellationToken,
    /// The response in flight over HTTP/1, one at a time.
    stream: Arc<ResponseStream>,
    requests: Mutex<RequestCounts>,
}

/// The requests of a connection.
struct RequestCounts {
    /// Requests without a complete response.
    running: usize,
    /// Those of them that wait for the client: for a part of the body to arrive, or for a part of
    /// the response to be read.
    waits: usize,
    /// When the last response was completed.
    ended: Option<Instant>,
    /// Set while all running requests wait for the client, which includes that none is running.
    waiting: Option<EvictableGuard>,
    is_closed: bool,
}

impl ConnectionActivity {
    fn new(guard: ConnectionHandle, source: Option<IpAddr>, is_reserved: bool) -> Self {
        let requests = RequestCounts {
            running: 0,
            waits: 0,
            ended: None,
            waiting: guard.allow_eviction(),
            is_closed: false,
        };
        Self {
            guard,
            source,
            is_reserved,
            started: Instant::now(),
            first_request: CancellationToken::new(),
            http_2: CancellationToken::new(),
            stream: Arc::default(),
            requests: Mutex::new(requests),
        }
    }

    fn requests(&self) -> MutexGuard<'_, RequestCounts> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_busy(&self) -> bool {
        self.requests().running > 0
    }

    /// Deadline for the next activity.
    fn next_deadline(&self, limits: &ConnectionLimits) -> Instant {
        if !self.first_request.is_cancelled() || self.is_reserved {
            return self.started + limits.header_timeout;
        }
        let requests = self.requests();
        match requests.ended {
            Some(ended) if requests.running == 0 => ended + limits.idle_timeout,
            _ => Instant::now() + limits.idle_timeout,
        }
    }

    /// Changes what the requests of the connection wait for. It may be evicted if all of them wait
    /// for the client, and always on a reserved slot.
    fn change(&self, change: impl FnOnce(&mut RequestCounts)) {
        let mut requests = self.requests();
        change(&mut requests);
        if requests.is_closed {
            return;
        }
        if requests.waits < requests.running && !self.is_reserved {
            requests.waiting = None;
        } else if let Some(waiting) = &mut requests.waiting {
            waiting.restart();
        } else {
            requests.waiting = self.guard.allow_eviction();
        }
    }

    /// Hyper is done with the connection, so it is no longer evictable here. A socket that
    /// continues on it manages its own deadlines.
    fn close(&self) {
        let mut requests = self.requests();
        requests.is_closed = true;
        requests.waiting = None;
    }
}

/// Marks a request without a complete response.
struct RequestGuard {
    activity: Arc<ConnectionActivity>,
    /// Whether it waits for the client. Changes only under the lock of the activity.
    waits: AtomicBool,
}

impl RequestGuard {
    fn new(activity: &Arc<ConnectionActivity>, version: Version) -> Self {
        if version == Version::HTTP_2 {
            activity.http_2.cancel();
        }
        activity.first_request.cancel();
        activity.change(|requests| requests.running += 1);
        Self {
            activity: Arc::clone(activity),
            waits: AtomicBool::new(false),
        }
    }

    /// Changes whether the request waits for the client. If it did and still does, the client has
    /// sent or read something, and the wait starts again.
    fn set_waits(&self, waits: bool) {
        self.activity.change(|requests| {
            let waited = self.waits.swap(waits, Ordering::Relaxed);
            requests.waits = requests.waits - usize::from(waited) + usize::from(waits);
        });
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let waits = *self.waits.get_mut();
        self.activity.change(|requests| {
            requests.running -= 1;
            requests.waits -= usize::from(waits);
            if requests.running == 0 {
                requests.ended = Some(Instant::now());
            }
        });
    }
}

/// A request body that fails when it is late or when its request is evicted.
struct DeadlineBody {
    body: Incoming,
    due: Instant,
    /// Slot of the request. Probes have none.
    slot: Option<Arc<Slot>>,
    /// Set while the next frame is waited for.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    busy: Arc<RequestGuard>,
}

/// Waits until the body is late or the request is evicted.
async fn deadline_or_eviction(due: Instant, slot: Option<Arc<Slot>>) {
    let evicted = CancellationToken::new();
    let _waiting = slot.map(|slot| slot.allow_eviction(evicted.clone()));
    tokio::select! {
        () = sleep_until(due) => {}
        () = evicted.cancelled() => {}
    }
}

impl HttpBody for DeadlineBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            // The next wait is a new one: a client that sends is evicted after one that does not.
            if self.late.take().is_some() {
                self.busy.set_waits(false);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Self {
            due,
            slot,
            late: lateness,
            busy,
            ..
        } = &mut *self;
        let lateness = lateness.get_or_insert_with(|| {
            busy.set_waits(true);
            Box::pin(deadline_or_eviction(*due, slot.clone()))
        });
        lateness
            .as_mut()
            .poll(cx)
            .map(|()| Some(Err("request body timed out".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for DeadlineBody {
    fn drop(&mut self) {
        if self.late.is_some() {
            self.busy.set_waits(false);
        }
    }
}

/// A response body that keeps its connection marked as busy. The request waits for the client
/// unless the body has nothing to read, such as an event stream between two events.
struct BusyBody {
    body: ChunkedBody,
    is_polled: bool,
    /// Over HTTP/2, until the body first has nothing to read.
    unread: Option<EvictableGuard>,
    busy: Arc<RequestGuard>,
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // The first frame follows the head at once: the wait has just begun.
        if self.is_polled || polled.is_pending() {
            self.busy.set_waits(polled.is_ready());
            match &mut self.unread {
                Some(unread) if polled.is_ready() => unread.restart(),
                unread => *unread = None,
            }
        }
        self.is_polled = true;
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
