//! Bytes on their way between clients and the server: how many of them are held, for one user or address and for all.
//!
//! Bodies count from their first byte until they are parsed, answers until the system has taken them. Only what has more
//! than [`SMALL`] bytes counts: smaller ones are bounded by the number of connections, and go on when the budget of the
//! process is exhausted.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Buf, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::problem::Problem;
use super::stream::PART;
use crate::App;
use crate::error::{Code, Error, Result};
use crate::graphql::MAX_BYTES;
use crate::limits::Who;
use crate::limits::byte_budget::{ByteBudget, Exceeded, Reservation};
use crate::network::Client;
use crate::store::export;

/// What has so many bytes does not count.
const SMALL: usize = PART;
/// Bytes of bodies in the process, and of one address: who sends them is not known yet.
const BODIES: usize = 64 * 1024 * 1024;
const BODIES_OF_ONE: usize = 8 * 1024 * 1024;
/// Bytes of unread answers in the process, and of one user, or one address when nobody is signed in.
const ANSWERS: usize = 64 * 1024 * 1024;
const ANSWERS_OF_ONE: usize = 16 * 1024 * 1024;
/// The same for answers with an export in them, which are larger than all others: two at once, one of each user.
const EXPORTS: usize = 2 * EXPORTS_OF_ONE;
const EXPORTS_OF_ONE: usize = export::MAX_BYTES + MAX_BYTES;
/// What a client has to take each second at least, on average, of an answer that waits for it.
pub const MIN_RATE: u64 = 8 * 1024;

/// The budgets for what is in flight.
pub struct InFlight {
    bodies: Arc<ByteBudget>,
    answers: Arc<ByteBudget>,
    exports: Arc<ByteBudget>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self {
            bodies: ByteBudget::new(BODIES, BODIES_OF_ONE),
            answers: ByteBudget::new(ANSWERS, ANSWERS_OF_ONE),
            exports: ByteBudget::new(EXPORTS, EXPORTS_OF_ONE),
        }
    }
}

impl InFlight {
    /// A reservation for a body that begins to arrive.
    pub fn body(&self, owner: Who) -> Reservation {
        self.bodies.none(owner)
    }

    /// Whether a body may grow to so many bytes.
    pub fn admit(&self, reservation: &mut Reservation, bytes: usize) -> Result<()> {
        if bytes <= SMALL {
            return Ok(());
        }
        let more = bytes.saturating_sub(reservation.bytes());
        let message = "Too many large requests of this address arrive at once. Try again later.";
        reservation.grow(more).map_err(|exceeded| refused(exceeded, message))
    }

    /// Counts a message; none if it is small.
    pub fn reserve(&self, owner: Who, bytes: usize) -> Result<Option<Reservation>> {
        reserve(&self.answers, owner, bytes)
    }

    /// Counts the body of an answer until it is read.
    pub fn hold(&self, owner: Who, is_export: bool, response: Response) -> Result<Response> {
        let budget = if is_export { &self.exports } else { &self.answers };
        let bytes = response.body().size_hint().exact().unwrap_or_default();
        let reserved = reserve(budget, owner, usize::try_from(bytes).unwrap_or(usize::MAX))?;
        Ok(match reserved {
            None => response,
            Some(reservation) => {
                let budget = Arc::clone(budget);
                response.map(|body| Body::new(UnreadBody { body, rest: Bytes::new(), budget, owner, reservation }))
            }
        })
    }
}

fn reserve(budget: &Arc<ByteBudget>, owner: Who, bytes: usize) -> Result<Option<Reservation>> {
    if bytes <= SMALL {
        return Ok(None);
    }
    let message = "Too many bytes of earlier answers are unread. Read them, then try again.";
    budget.reserve(owner, bytes).map(Some).map_err(|exceeded| refused(exceeded, message))
}

/// RATE_LIMITED for an owner over its limit; SERVICE_UNAVAILABLE when the process is.
fn refused(exceeded: Exceeded, message: &'static str) -> Error {
    match exceeded {
        Exceeded::Owner => Error::Refused {
            code: Code::RateLimited,
            message: message.into(),
            retry_after: Some(Duration::from_secs(1)),
        },
        Exceeded::Process => Error::unavailable(),
    }
}

/// Counts the answers of routes that belong to nobody, by the address of the client.
pub async fn limit(State(app): State<Arc<App>>, client: Client, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let held = app.in_flight.hold(Who::address(client.address), false, response);
    held.unwrap_or_else(|error| Problem::from(error).into_response())
}

/// A body that is given piece by piece. Each piece is a copy that is counted by itself, so that the whole is let go of as
/// soon as the last one is given.
struct UnreadBody {
    body: Body,
    rest: Bytes,
    budget: Arc<ByteBudget>,
    owner: Who,
    /// Of what is not given yet.
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
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.rest.len().min(PART);
        let bytes = self.rest[..length].to_vec();
        self.rest.advance(length);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        self.reservation.shrink(length);
        // If another answer was faster, the piece goes uncounted.
        let reservation = self.budget.reserve(self.owner, length).ok();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(Counted { bytes, _reservation: reservation })))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before anything is given.
        self.body.size_hint()
    }
}

/// Bytes that are counted as long as something holds them.
struct Counted {
    bytes: Vec<u8>,
    _reservation: Option<Reservation>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that are counted by the reservation as long as something holds them.
pub fn counted(bytes: Vec<u8>, reservation: Option<Reservation>) -> Bytes {
    match reservation {
        None => bytes.into(),
        some => Bytes::from_owner(Counted { bytes, _reservation: some }),
    }
}

/// How many bytes a connection has taken so far.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<AtomicU64>);

impl Written {
    /// Waits for what is written to the connection as long as the client goes on reading; nothing if it does not.
    pub async fn while_reading<T>(&self, patience: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let enough = (patience.as_secs() * MIN_RATE / 2).max(1);
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

/// A connection that counts the bytes that it takes.
pub struct Counting<S> {
    /// The connection.
    pub io: S,
    /// How many it has taken.
    pub written: Written,
}

impl<S> Counting<S> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.0.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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

    fn owner(number: u8) -> Who {
        Who::Address([number; 8])
    }

    fn answer(bytes: usize) -> Response {
        Response::new(Body::from(vec![b'x'; bytes]))
    }

    #[tokio::test]
    async fn bytes_count_until_the_last_piece_of_them_is_let_go_of() {
        let in_flight = InFlight::default();
        let held = in_flight.hold(owner(1), false, answer(100_000)).expect("room");
        assert_eq!(in_flight.answers.used(), 100_000);
        let mut body = held.into_body();
        let first = body.frame().await.expect("a piece").expect("no error").into_data().expect("data");
        assert_eq!((first.len(), in_flight.answers.used()), (PART, 100_000));
        drop(first);
        assert_eq!(in_flight.answers.used(), 100_000 - PART);
        let mut pieces = Vec::new();
        while let Some(piece) = body.frame().await {
            pieces.push(piece.expect("no error").into_data().expect("data"));
        }
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 100_000 - PART);
        drop(body);
        assert_eq!(in_flight.answers.used(), 100_000 - PART, "somebody still has them");
        drop(pieces);
        assert_eq!(in_flight.answers.used(), 0);
    }

    #[test]
    fn one_owner_and_all_together_leave_no_more_unread_than_their_limits() {
        let in_flight = InFlight::default();
        let code = |held: Result<Response>| held.err().map(|error| error.told().0);
        let mut held = Vec::new();
        for number in 0..4 {
            for _ in 0..4 {
                held.push(in_flight.hold(owner(number), false, answer(MAX_BYTES)).expect("room"));
            }
            if number < 3 {
                assert_eq!(code(in_flight.hold(owner(number), false, answer(SMALL + 1))), Some(Code::RateLimited));
            }
        }
        assert_eq!(code(in_flight.hold(owner(9), false, answer(SMALL + 1))), Some(Code::Unavailable));
        held.push(in_flight.hold(owner(9), false, answer(SMALL)).expect("small ones go on"));
        held.push(in_flight.hold(owner(1), true, answer(EXPORTS_OF_ONE)).expect("an export counts by itself"));
        assert_eq!(code(in_flight.hold(owner(1), true, answer(SMALL + 1))), Some(Code::RateLimited));
        held.push(
            in_flight.hold(owner(2), true, answer(EXPORTS_OF_ONE)).expect("one export unread leaves room for another"),
        );
        drop(held);
        assert_eq!((in_flight.answers.used(), in_flight.exports.used()), (0, 0));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_not_waited_for() {
        let (written, patience) = (Written::default(), Duration::from_millis(10));
        assert_eq!(written.while_reading(patience, std::future::pending::<()>()).await, None);
        assert_eq!(written.while_reading(patience, std::future::ready(1)).await, Some(1));
    }
}
