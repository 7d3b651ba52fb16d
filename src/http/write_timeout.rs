//! Write timeouts of responses, per HTTP/2 stream or HTTP/1 connection.
//!
//! A client can stop reading and keep its connection open, and hyper buffers the unread data as
//! long as the connection lives. A response is therefore written in parts, and each must be
//! accepted before a deadline. Otherwise the HTTP/2 stream is reset, or the HTTP/1 connection
//! closed. A client that keeps reading is never cut off, however long the response.

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

use super::in_flight::MIN_BYTES_PER_SECOND;

/// Time limit for unread parts after shutdown has begun.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Size of one part, in bytes. hyper buffers a whole part as soon as there is space for its first
/// byte.
pub const CHUNK_BYTES: usize = 16 * 1024;

tokio::task_local! {
    static STREAM: Arc<ResponseStream>;
}

/// One HTTP/2 stream, or the one response at a time of an HTTP/1 connection.
#[derive(Default)]
pub struct ResponseStream {
    /// Cancel it to drop the stream.
    pub cancelled: CancellationToken,
    /// Deadline for the current part, while one is pending.
    write_deadline: watch::Sender<Option<Instant>>,
}

impl ResponseStream {
    /// The HTTP/2 stream of the current task. `None` over HTTP/1.
    pub fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    /// Waits until a part misses its deadline.
    pub async fn stalled(&self, stop: &CancellationToken) {
        let mut given = self.write_deadline.subscribe();
        loop {
            let due = *given.borrow_and_update();
            let late = async {
                match due {
                    None => std::future::pending().await,
                    Some(due) => tokio::select! {
                        () = sleep_until(due) => {}
                        () = async { stop.cancelled().await; sleep(FLUSH_TIMEOUT).await } => {}
                    },
                }
            };
            tokio::select! {
                () = late => return,
                // Never fails: this struct owns the sender.
                _ = given.changed() => {}
            }
        }
    }
}

/// Runs each HTTP/2 stream until it completes or is dropped.
#[derive(Clone)]
pub struct StreamExecutor {
    /// Cancelled on shutdown.
    pub stop: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, work: F) {
        let (Self { stop }, stream) = (self.clone(), Arc::<ResponseStream>::default());
        tokio::spawn(STREAM.scope(Arc::clone(&stream), async move {
            tokio::select! {
                () = work => {}
                () = stream.cancelled.cancelled() => {}
                () = stream.stalled(&stop) => {}
            }
        }));
    }
}

/// A response body, passed on in parts. Each part must be accepted within `patience`, and the whole
/// at [`MIN_BYTES_PER_SECOND`] on average: a client that reads more slowly uses up its patience.
pub struct ChunkedBody {
    body: Body,
    stream: Arc<ResponseStream>,
    is_http_2: bool,
    /// Received from the body, but not passed on to hyper yet.
    rest: Bytes,
    patience: Duration,
    /// How much of `patience` is left.
    remaining: Duration,
    /// When the last part was passed on, and its length.
    last_chunk: Option<(Instant, usize)>,
}

impl ChunkedBody {
    pub fn new(
        body: Body,
        stream: Arc<ResponseStream>,
        is_http_2: bool,
        patience: Duration,
    ) -> Self {
        Self {
            body,
            stream,
            is_http_2,
            rest: Bytes::new(),
            patience,
            remaining: patience,
            last_chunk: None,
        }
    }

    /// hyper polls for more only after it has accepted the last part.
    fn on_taken(&mut self) {
        if let Some((since, length)) = self.last_chunk.take() {
            let earned = Duration::from_millis(length as u64 * 1_000 / MIN_BYTES_PER_SECOND);
            self.remaining =
                (self.remaining.saturating_sub(since.elapsed()) + earned).min(self.patience);
            self.stream.write_deadline.send_replace(None);
        }
    }

    fn next_chunk(&mut self) -> Bytes {
        let part = self.rest.split_to(self.rest.len().min(CHUNK_BYTES));
        // The last part over HTTP/1 has no deadline: hyper holds little then, and that ends with
        // the connection.
        if self.is_http_2 || !self.is_end_stream() {
            let now = Instant::now();
            self.last_chunk = Some((now, part.len()));
            self.stream
                .write_deadline
                .send_replace(Some(now + self.remaining));
        }
        part
    }
}

impl Drop for ChunkedBody {
    fn drop(&mut self) {
        self.on_taken();
    }
}

impl HttpBody for ChunkedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.on_taken();
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
        Poll::Ready(Some(Ok(Frame::data(self.next_chunk()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Called before the first part is passed on.
        self.body.size_hint()
    }
}
