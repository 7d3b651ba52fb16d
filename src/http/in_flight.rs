//! Byte budgets for bodies in flight: per user or address, and for the whole process.
//!
//! Request bodies count from their first byte until they are parsed, responses until the operating
//! system has accepted them. Only bodies larger than [`UNCOUNTED_BYTES`] count. Smaller ones are
//! bounded by the number of connections, and still work when the budget of the process is
//! exhausted.
//!
//! When the request bodies of the process exhaust their budget, the one that has waited longest for
//! its client is evicted: its request fails. Otherwise a few addresses could keep everybody else
//! from sending.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::problem::Problem;
use super::write_timeout::CHUNK_BYTES;
use crate::App;
use crate::error::{Code, Error, Result};
use crate::graphql::MAX_RESPONSE_BYTES;
use crate::limits::ClientKey;
use crate::limits::byte_budget::{BudgetExceeded, ByteBudget, Reservation};
use crate::network::Client;
use crate::store::export;

/// Bodies up to this size do not count, in bytes.
const UNCOUNTED_BYTES: usize = CHUNK_BYTES;
/// Request bytes in the process, and of one address, or of one user on sockets. Over HTTP the user
/// is not known before the body has been read.
const BODY_BYTES: usize = 64 * 1024 * 1024;
const BODY_BYTES_PER_OWNER: usize = 8 * 1024 * 1024;
/// Unread response bytes in the process, and of one user, or one address for an anonymous request.
const RESPONSE_BYTES: usize = 64 * 1024 * 1024;
const RESPONSE_BYTES_PER_OWNER: usize = 16 * 1024 * 1024;
/// Unread bytes of responses with an account export, which are larger than all others. Two may be
/// unread at once, one per user.
const EXPORT_BYTES: usize = 2 * EXPORT_BYTES_PER_OWNER;
const EXPORT_BYTES_PER_OWNER: usize = export::MAX_EXPORT_BYTES + MAX_RESPONSE_BYTES;
/// Minimum average rate at which a client must read a waiting response, in bytes per second.
pub const MIN_BYTES_PER_SECOND: u64 = 8 * 1024;

const TOO_MANY_REQUESTS: &str = "Too many large requests at once. Try again later.";
const TOO_MANY_UNREAD: &str =
    "Too many bytes of earlier responses are unread. Read them, then try again.";

/// The byte budgets of request bodies, responses and exports.
pub struct BodyBudgets {
    bodies: Arc<BodyBudget>,
    responses: Arc<ByteBudget>,
    exports: Arc<ByteBudget>,
}

impl Default for BodyBudgets {
    fn default() -> Self {
        Self {
            bodies: Arc::new(BodyBudget {
                budget: ByteBudget::new(BODY_BYTES, BODY_BYTES_PER_OWNER),
                waiting: Mutex::default(),
            }),
            responses: ByteBudget::new(RESPONSE_BYTES, RESPONSE_BYTES_PER_OWNER),
            exports: ByteBudget::new(EXPORT_BYTES, EXPORT_BYTES_PER_OWNER),
        }
    }
}

impl BodyBudgets {
    /// An empty reservation for a body that starts to arrive.
    pub fn body(&self, owner: ClientKey) -> Arc<BodyReservation> {
        Arc::new(BodyReservation {
            bodies: Arc::clone(&self.bodies),
            reservation: Mutex::new(self.bodies.budget.empty_reservation(owner)),
            is_evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        })
    }

    /// Bytes of request bodies reserved now.
    pub fn body_bytes(&self) -> usize {
        self.bodies.budget.used()
    }

    /// Reserves the bytes of a request that has arrived whole and is not parsed yet. Returns `None`
    /// if it is small.
    pub fn reserve_request(&self, owner: ClientKey, bytes: usize) -> Result<Option<Reservation>> {
        if bytes <= UNCOUNTED_BYTES {
            return Ok(None);
        }
        let reserved = self
            .bodies
            .or_evict(|| self.bodies.budget.reserve(owner, bytes));
        reserved
            .map(Some)
            .map_err(|exceeded| budget_error(exceeded, TOO_MANY_REQUESTS))
    }

    /// Reserves the bytes of a message. Returns `None` if it is small.
    pub fn reserve(&self, owner: ClientKey, bytes: usize) -> Result<Option<Reservation>> {
        reserve(&self.responses, owner, bytes, TOO_MANY_UNREAD)
    }

    /// Counts the body of a response until it is read.
    pub fn count_body(
        &self,
        owner: ClientKey,
        is_export: bool,
        response: Response,
    ) -> Result<Response> {
        let budget = if is_export {
            &self.exports
        } else {
            &self.responses
        };
        let bytes = response.body().size_hint().exact().unwrap_or_default();
        let reserved = reserve(
            budget,
            owner,
            usize::try_from(bytes).unwrap_or(usize::MAX),
            TOO_MANY_UNREAD,
        )?;
        Ok(match reserved {
            None => response,
            Some(reservation) => {
                let budget = Arc::clone(budget);
                response.map(|body| {
                    Body::new(UnreadBody {
                        body,
                        rest: Bytes::new(),
                        budget,
                        owner,
                        reservation,
                    })
                })
            }
        })
    }
}

/// The budget of request bodies, with the bodies that can be evicted.
struct BodyBudget {
    budget: Arc<ByteBudget>,
    waiting: Mutex<WaitingBodies>,
}

#[derive(Default)]
struct WaitingBodies {
    /// Sequence number of the next body that waits.
    next: u64,
    /// Bodies with reserved bytes that wait for their next frame, the longest wait first.
    by_age: BTreeMap<u64, Arc<BodyReservation>>,
}

impl BodyBudget {
    fn waiting(&self) -> MutexGuard<'_, WaitingBodies> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves bytes. If the budget of the process is exhausted, waiting bodies are evicted.
    fn or_evict<T>(
        &self,
        mut reserve: impl FnMut() -> Result<T, BudgetExceeded>,
    ) -> Result<T, BudgetExceeded> {
        loop {
            match reserve() {
                Err(BudgetExceeded::Process) if self.evict() => {}
                reserved => return reserved,
            }
        }
    }

    /// Evicts the body that has waited longest. Its bytes are released at once. Returns whether
    /// there was one.
    fn evict(&self) -> bool {
        let mut waiting = self.waiting();
        let Some((_, longest)) = waiting.by_age.pop_first() else {
            return false;
        };
        longest.is_evicted.store(true, Ordering::Relaxed);
        drop(waiting);
        longest.reservation().shrink(usize::MAX);
        longest.waker.wake();
        true
    }
}

/// The reservation of a request body.
pub struct BodyReservation {
    bodies: Arc<BodyBudget>,
    reservation: Mutex<Reservation>,
    /// Changes only under the lock of the waiting bodies.
    is_evicted: AtomicBool,
    waker: AtomicWaker,
}

impl BodyReservation {
    fn reservation(&self) -> MutexGuard<'_, Reservation> {
        self.reservation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows to `bytes` in total.
    pub fn admit(&self, bytes: usize) -> Result<()> {
        if bytes <= UNCOUNTED_BYTES {
            return Ok(());
        }
        let grown = self.bodies.or_evict(|| {
            let mut reservation = self.reservation();
            let more = bytes.saturating_sub(reservation.bytes());
            reservation.grow(more)
        });
        grown.map_err(|exceeded| budget_error(exceeded, TOO_MANY_REQUESTS))
    }

    /// Receives a body. Reading it fails once it is evicted.
    pub fn receive(self: &Arc<Self>, body: Body) -> ReceivedBody {
        ReceivedBody {
            body,
            reservation: Arc::clone(self),
            number: None,
        }
    }
}

/// A request body that may be evicted while it waits for its next frame.
pub struct ReceivedBody {
    body: Body,
    reservation: Arc<BodyReservation>,
    /// Its number among the bodies that wait.
    number: Option<u64>,
}

impl ReceivedBody {
    fn wait(&mut self) {
        // Without a reservation, giving it up would free nothing.
        if self.number.is_none() && self.reservation.reservation().bytes() > 0 {
            let mut waiting = self.reservation.bodies.waiting();
            let number = waiting.next;
            waiting.next += 1;
            waiting.by_age.insert(number, Arc::clone(&self.reservation));
            self.number = Some(number);
        }
    }

    fn stop_waiting(&mut self) {
        if let Some(number) = self.number.take() {
            self.reservation.bodies.waiting().by_age.remove(&number);
        }
    }
}

impl Drop for ReceivedBody {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl HttpBody for ReceivedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() {
            self.reservation.waker.register(cx.waker());
            self.wait();
        } else {
            self.stop_waiting();
        }
        if self.reservation.is_evicted.load(Ordering::Relaxed) {
            return Poll::Ready(Some(Err(axum::Error::new("request body given up"))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn reserve(
    budget: &Arc<ByteBudget>,
    owner: ClientKey,
    bytes: usize,
    message: &'static str,
) -> Result<Option<Reservation>> {
    if bytes <= UNCOUNTED_BYTES {
        return Ok(None);
    }
    budget
        .reserve(owner, bytes)
        .map(Some)
        .map_err(|exceeded| budget_error(exceeded, message))
}

/// RATE_LIMITED if the owner exceeds its limit, SERVICE_UNAVAILABLE if the process does.
fn budget_error(exceeded: BudgetExceeded, message: &'static str) -> Error {
    match exceeded {
        BudgetExceeded::Owner => Error::Refused {
            code: Code::RateLimited,
            message: message.into(),
            retry_after: Some(Duration::from_secs(1)),
        },
        BudgetExceeded::Process => Error::unavailable(),
    }
}

/// Counts the responses of routes without authentication by the address of the client.
pub async fn limit_responses(
    State(app): State<Arc<App>>,
    client: Client,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    let counted = app
        .in_flight
        .count_body(ClientKey::address(client.address), false, response);
    counted.unwrap_or_else(|error| Problem::from(error).into_response())
}

/// A body that is passed on in parts. Each part is a copy that is counted separately, so that the
/// whole is released as soon as the last part has been passed on.
struct UnreadBody {
    body: Body,
    rest: Bytes,
    budget: Arc<ByteBudget>,
    owner: ClientKey,
    /// For the bytes that are not passed on yet.
    reservation: Reservation,
}

impl HttpBody for UnreadBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx))
                .map(|frame| frame.map(Frame::into_data))
            {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.rest.len().min(CHUNK_BYTES);
        let bytes = self.rest[..length].to_vec();
        self.rest.advance(length);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        self.reservation.shrink(length);
        // If another response took the bytes first, this part goes uncounted.
        let reservation = self.budget.reserve(self.owner, length).ok();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(ReservedBytes {
            bytes,
            _reservation: reservation,
        })))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Called before the first part is passed on.
        self.body.size_hint()
    }
}

/// Bytes with their reservation, which is released when the last reference is dropped.
struct ReservedBytes {
    bytes: Vec<u8>,
    _reservation: Option<Reservation>,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Attaches a reservation to bytes. It is released when the last reference is dropped.
pub fn reserved_bytes(bytes: Vec<u8>, reservation: Option<Reservation>) -> Bytes {
    match reservation {
        None => bytes.into(),
        some => Bytes::from_owner(ReservedBytes {
            bytes,
            _reservation: some,
        }),
    }
}

/// Number of bytes written to a connection so far.
#[derive(Clone, Debug, Default)]
pub struct BytesWritten(Arc<AtomicU64>);

impl BytesWritten {
    /// Waits for a write while the client keeps reading. Returns `None` if it stops.
    pub async fn wait_while_progressing<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        let enough = (patience.as_secs() * MIN_BYTES_PER_SECOND / 2).max(1);
        loop {
            let before = self.0.load(Ordering::Relaxed);
            match timeout(patience, work.as_mut()).await {
                Ok(done) => return Some(done),
                Err(_) if self.0.load(Ordering::Relaxed) - before >= enough => {}
                Err(_) => return None,
            }
        }
    }
}

/// A connection that counts the bytes written to it.
pub struct CountingIo<S> {
    pub io: S,
    pub written: BytesWritten,
}

impl<S> CountingIo<S> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.0.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountingIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountingIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn owner(number: u8) -> ClientKey {
        ClientKey::Address([number; 8])
    }

    fn answer(bytes: usize) -> Response {
        Response::new(Body::from(vec![b'x'; bytes]))
    }

    #[tokio::test]
    async fn bytes_count_until_their_last_piece_is_dropped() {
        let in_flight = BodyBudgets::default();
        let counted = in_flight
            .count_body(owner(1), false, answer(100_000))
            .expect("room");
        assert_eq!(in_flight.responses.used(), 100_000);
        let mut body = counted.into_body();
        let first = body
            .frame()
            .await
            .expect("a piece")
            .expect("no error")
            .into_data()
            .expect("data");
        assert_eq!(
            (first.len(), in_flight.responses.used()),
            (CHUNK_BYTES, 100_000)
        );
        drop(first);
        assert_eq!(in_flight.responses.used(), 100_000 - CHUNK_BYTES);
        let mut pieces = Vec::new();
        while let Some(piece) = body.frame().await {
            pieces.push(piece.expect("no error").into_data().expect("data"));
        }
        assert_eq!(
            pieces.iter().map(Bytes::len).sum::<usize>(),
            100_000 - CHUNK_BYTES
        );
        drop(body);
        assert_eq!(
            in_flight.responses.used(),
            100_000 - CHUNK_BYTES,
            "the parts are still alive"
        );
        drop(pieces);
        assert_eq!(in_flight.responses.used(), 0);
    }

    #[test]
    fn one_owner_and_all_together_leave_no_more_unread_than_their_limits() {
        let in_flight = BodyBudgets::default();
        let code = |counted: Result<Response>| counted.err().map(|error| error.into_client().0);
        let mut counted = Vec::new();
        for number in 0..4 {
            for _ in 0..4 {
                counted.push(
                    in_flight
                        .count_body(owner(number), false, answer(MAX_RESPONSE_BYTES))
                        .expect("room"),
                );
            }
            if number < 3 {
                assert_eq!(
                    code(in_flight.count_body(owner(number), false, answer(UNCOUNTED_BYTES + 1))),
                    Some(Code::RateLimited)
                );
            }
        }
        assert_eq!(
            code(in_flight.count_body(owner(9), false, answer(UNCOUNTED_BYTES + 1))),
            Some(Code::Unavailable)
        );
        counted.push(
            in_flight
                .count_body(owner(9), false, answer(UNCOUNTED_BYTES))
                .expect("small ones go on"),
        );
        counted.push(
            in_flight
                .count_body(owner(1), true, answer(EXPORT_BYTES_PER_OWNER))
                .expect("exports count separately"),
        );
        assert_eq!(
            code(in_flight.count_body(owner(1), true, answer(UNCOUNTED_BYTES + 1))),
            Some(Code::RateLimited)
        );
        counted.push(
            in_flight
                .count_body(owner(2), true, answer(EXPORT_BYTES_PER_OWNER))
                .expect("one export unread leaves room for another"),
        );
        drop(counted);
        assert_eq!(
            (in_flight.responses.used(), in_flight.exports.used()),
            (0, 0)
        );
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_not_waited_for() {
        let (written, patience) = (BytesWritten::default(), Duration::from_millis(10));
        assert_eq!(
            written
                .wait_while_progressing(patience, std::future::pending::<()>())
                .await,
            None
        );
        assert_eq!(
            written
                .wait_while_progressing(patience, std::future::ready(1))
                .await,
            Some(1)
        );
    }
}
