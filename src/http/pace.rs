//! Rate limiting of what a client sends: messages and bytes on a socket, frames on an HTTP/2
//! connection. Reading is delayed beyond the rate.
//!
//! Bytes and frames are counted below the libraries: the WebSocket library reports nothing for
//! fragments and may parse any number of empty ones, and hyper answers control frames without a
//! request. TCP flow control passes the delay on to the client; nothing is closed or lost.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A rate with a burst (generic cell rate algorithm).
pub struct Pace {
    per_unit: Duration,
    burst: Duration,
    /// The theoretical arrival time: when all units drawn so far would have arrived at the
    /// sustained rate.
    due: Instant,
}

impl Pace {
    /// Allows `burst` units at once and `per_second` units sustained.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let per_unit = Duration::from_secs(1) / per_second;
        Self {
            per_unit,
            burst: per_unit * burst,
            due: Instant::now(),
        }
    }

    /// Draws units that arrived at `now`. Returns when the next ones may arrive, if they must wait.
    pub fn draw(&mut self, now: Instant, units: u32) -> Option<Instant> {
        self.due = self.due.max(now) + self.per_unit * units;
        let excess = (self.due - now).saturating_sub(self.burst);
        (!excess.is_zero()).then(|| now + excess)
    }
}

/// What a client sends before the first frame of HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Size of a frame header, whose first three bytes are the length of the payload (section 4.1).
const FRAME_HEADER: usize = 9;

/// Counts HTTP/2 frames in the bytes of a connection, without regard to their contents.
#[derive(Clone, Copy, Debug)]
enum FrameCounter {
    /// This many bytes of the preface have been read.
    Preface(usize),
    /// This many bytes of a frame header have been read, with this length of the payload so far.
    Header(usize, usize),
    /// This many bytes of a payload are missing.
    Payload(usize),
    /// Not HTTP/2.
    None,
}

impl FrameCounter {
    /// Reads bytes and returns the number of frame headers that end in them.
    fn read(&mut self, mut bytes: &[u8]) -> u32 {
        let mut frames = 0;
        while let [first, rest @ ..] = bytes {
            (*self, bytes) = match *self {
                Self::None => return frames,
                Self::Preface(read) if PREFACE[read] != *first => (Self::None, rest),
                Self::Preface(read) if read + 1 < PREFACE.len() => (Self::Preface(read + 1), rest),
                Self::Preface(_) => (Self::Header(0, 0), rest),
                Self::Header(read, length) => {
                    let length = if read < 3 {
                        length << 8 | usize::from(*first)
                    } else {
                        length
                    };
                    if read + 1 < FRAME_HEADER {
                        (Self::Header(read + 1, length), rest)
                    } else {
                        frames += 1;
                        (Self::Payload(length), rest)
                    }
                }
                Self::Payload(missing) if missing > bytes.len() => {
                    (Self::Payload(missing - bytes.len()), &[][..])
                }
                Self::Payload(missing) => (Self::Header(0, 0), &bytes[missing..]),
            };
        }
        frames
    }
}

/// A connection that is read at a limited rate.
pub struct PacedIo<T> {
    inner: T,
    /// Frames are counted if set, otherwise bytes.
    frames: Option<FrameCounter>,
    pace: Pace,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<T> PacedIo<T> {
    /// Limits reads to this rate, in bytes.
    pub fn new(inner: T, pace: Pace) -> Self {
        Self {
            inner,
            frames: None,
            pace,
            pause: None,
        }
    }

    /// Limits reads to this rate, in HTTP/2 frames. HTTP/1 is not limited.
    pub fn frames(inner: T, pace: Pace) -> Self {
        Self {
            inner,
            frames: Some(FrameCounter::Preface(0)),
            pace,
            pause: None,
        }
    }

    /// Does not limit reads.
    pub fn unlimited(inner: T) -> Self {
        Self {
            inner,
            frames: Some(FrameCounter::None),
            pace: Pace::new(1, 1),
            pause: None,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PacedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        let units = match &mut this.frames {
            Some(frames) => frames.read(read),
            None => u32::try_from(read.len()).unwrap_or(u32::MAX),
        };
        if units > 0 {
            this.pause = this
                .pace
                .draw(Instant::now(), units)
                .map(|until| Box::pin(sleep_until(until)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PacedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_sustained_rate() {
        let mut pace = Pace::new(100, 10);
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        pace.due = start;
        assert!((0..10).all(|_| pace.draw(start, 1).is_none()));
        assert_eq!(pace.draw(start, 1), Some(after(10)));
        assert_eq!(pace.draw(start, 5), Some(after(60)));
        let later = after(1_000);
        assert!(
            (0..10).all(|_| pace.draw(later, 1).is_none()),
            "unused units accumulate, up to the burst"
        );
        assert_eq!(pace.draw(later, 1), Some(after(1_010)));
    }

    #[test]
    fn frames_are_counted_however_they_are_split() {
        let frame = |length: usize| {
            let header = [
                &u32::try_from(length).expect("a length").to_be_bytes()[1..],
                &[6, 0, 0, 0, 0, 0],
            ]
            .concat();
            [header, vec![0xff; length]].concat()
        };
        let sent = [PREFACE, &frame(8), &frame(0), &frame(70_000), &frame(0)].concat();
        for size in [1, 2, 9, 10, 1_000, sent.len()] {
            let mut frames = FrameCounter::Preface(0);
            assert_eq!(
                sent.chunks(size)
                    .map(|bytes| frames.read(bytes))
                    .sum::<u32>(),
                4,
                "{size}"
            );
        }
        let mut frames = FrameCounter::Preface(0);
        assert_eq!(
            frames.read(b"PRI / HTTP/1.1\r\n\r\n") + frames.read(&sent),
            0
        );
    }

    #[tokio::test]
    async fn frames_are_not_read_beyond_their_burst() {
        let (mut client, server) = duplex(100_000);
        client.write_all(PREFACE).await.expect("room");
        client
            .write_all(&[0; FRAME_HEADER].repeat(10_000))
            .await
            .expect("room");
        let (mut server, mut taken) = (PacedIo::frames(server, Pace::new(1, 1_000)), 0);
        while let Some(read) = server.read(&mut [0; 900]).now_or_never() {
            taken += read.expect("bytes");
        }
        assert_eq!(taken / 900, 10 + 1);
    }

    #[tokio::test]
    async fn a_connection_is_not_read_beyond_its_burst() {
        let (mut client, server) = duplex(10_000);
        client.write_all(&[0; 10_000]).await.expect("room");
        let (mut server, mut taken) = (PacedIo::new(server, Pace::new(1, 1_000)), 0);
        while let Some(read) = server.read(&mut [0; 300]).now_or_never() {
            taken += read.expect("bytes");
        }
        assert_eq!(taken, 1_200);
    }
}
