//! Answers on their way: what is given has to be taken in time. The streams of an HTTP/2 connection can end without it.
//!
//! A client may leave room for no answer and live on. hyper keeps what is not taken for as long as the connection lasts,
//! so an answer is given part by part, and each part has to be taken before the next: else its stream is reset, or its
//! connection closed if it is of HTTP/1. A client that goes on reading, however long the answer, is waited for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::in_flight::MIN_RATE;

/// How long what was given may still take when the server ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// Bytes that hyper is handed at once: it keeps them when there is room for the first.
pub const PART: usize = 16 * 1024;

tokio::task_local! {
    static STREAM: Arc<Stream>;
}

/// One of a connection's, or all that an HTTP/1 connection has.
#[derive(Default)]
pub struct Stream {
    /// Cancelled by whoever wants it dropped.
    pub dropped: CancellationToken,
    /// Until when what was given has to be taken.
    due: watch::Sender<Option<Instant>>,
}

impl Stream {
    /// The one that this is done for; none over HTTP/1.
    pub fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    /// Waits until something was not taken in time.
    pub async fn stuck(&self, stop: &CancellationToken) {
        let mut given = self.due.subscribe();
        loop {
            let due = *given.borrow_and_update();
            let late = async {
                match due {
                    None => std::future::pending().await,
                    Some(due) => tokio::select! {
                        () = sleep_until(due) => {}
                        () = async { stop.cancelled().await; sleep(GOODBYE).await } => {}
                    },
                }
            };
            tokio::select! {
                () = late => return,
                // The sender is this one's own.
                _ = given.changed() => {}
            }
        }
    }
}

/// Serves each stream until it is done, or dropped.
#[derive(Clone)]
pub struct Streams {
    /// Cancelled when the server is to end.
    pub stop: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, work: F) {
        let (Self { stop }, stream) = (self.clone(), Arc::<Stream>::default());
        tokio::spawn(STREAM.scope(Arc::clone(&stream), async move {
            tokio::select! {
                () = work => {}
                () = stream.dropped.cancelled() => {}
                () = stream.stuck(&stop) => {}
            }
        }));
    }
}

/// The body of an answer, part by part. Each has to be taken within `patience`, and all of them at [`MIN_RATE`] on
/// average: a client that takes less uses its patience up.
pub struct Parts {
    body: Body,
    stream: Arc<Stream>,
    is_http_2: bool,
    /// What it has given and hyper was not handed yet.
    rest: Bytes,
    patience: Duration,
    /// How much of it is left.
    left: Duration,
    /// When the last part was given, and its length.
    given: Option<(Instant, usize)>,
}

impl Parts {
    /// Of this body; where it goes, and how long that may take.
    pub fn new(body: Body, stream: Arc<Stream>, is_http_2: bool, patience: Duration) -> Self {
        Self { body, stream, is_http_2, rest: Bytes::new(), patience, left: patience, given: None }
    }

    /// The caller asks for more only after it has taken everything.
    fn taken(&mut self) {
        if let Some((since, length)) = self.given.take() {
            let earned = Duration::from_millis(length as u64 * 1_000 / MIN_RATE);
            self.left = (self.left.saturating_sub(since.elapsed()) + earned).min(self.patience);
            self.stream.due.send_replace(None);
        }
    }

    fn give(&mut self) -> Bytes {
        let part = self.rest.split_to(self.rest.len().min(PART));
        // The last one over HTTP/1 is let go of at once: what hyper still has is little, and ends with the connection.
        if self.is_http_2 || !self.is_end_stream() {
            let now = Instant::now();
            self.given = Some((now, part.len()));
            self.stream.due.send_replace(Some(now + self.left));
        }
        part
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.taken();
    }
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.taken();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.give()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before anything is given.
        self.body.size_hint()
    }
}
