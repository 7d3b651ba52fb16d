//! The streams of HTTP/2 connections, each of which can end without its connection.
//!
//! A client may leave room for no answer and live on. hyper keeps what is not taken for as long as the connection lasts,
//! so whatever an answer gives has to be taken in time; else its stream is reset.

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

/// How long what was given may still take when the server ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// Bytes that hyper is handed at once: it keeps them when there is room for the first.
const PART: usize = 16 * 1024;

tokio::task_local! {
    static STREAM: Arc<Stream>;
}

/// One of a connection's.
#[derive(Default)]
pub struct Stream {
    /// Cancelled by whoever wants it dropped.
    pub dropped: CancellationToken,
    /// Since when something waits to be taken.
    given: watch::Sender<Option<Instant>>,
}

impl Stream {
    /// The one that this is done for; none over HTTP/1.
    pub fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    fn waits(&self, something: bool) {
        self.given.send_if_modified(|since| {
            let is_new = since.is_some() != something;
            if is_new {
                *since = something.then(Instant::now);
            }
            is_new
        });
    }

    /// Waits until something was not taken in time.
    async fn stuck(&self, patience: Duration, stop: &CancellationToken) {
        let mut given = self.given.subscribe();
        loop {
            let since = *given.borrow_and_update();
            let late = async {
                match since {
                    None => std::future::pending().await,
                    Some(since) => tokio::select! {
                        () = sleep_until(since + patience) => {}
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
    /// How long what was given may wait to be taken.
    pub patience: Duration,
    /// Cancelled when the server is to end.
    pub stop: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, work: F) {
        let (Self { patience, stop }, stream) = (self.clone(), Arc::<Stream>::default());
        tokio::spawn(STREAM.scope(Arc::clone(&stream), async move {
            tokio::select! {
                () = work => {}
                () = stream.dropped.cancelled() => {}
                () = stream.stuck(patience, &stop) => {}
            }
        }));
    }
}

/// The body of an answer on a stream, part by part.
pub struct Parts {
    /// The whole of it.
    pub body: Body,
    /// Where it goes.
    pub stream: Arc<Stream>,
    /// What it has given and hyper was not handed yet.
    pub rest: Bytes,
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.rest.is_empty() {
            // Who asks for more has taken what there was.
            self.stream.waits(false);
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
            self.stream.waits(true);
        }
        let length = self.rest.len().min(PART);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before anything is given.
        self.body.size_hint()
    }
}
