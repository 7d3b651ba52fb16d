//! Rate limiting of what a client sends on a socket, in messages and in bytes. Reading is delayed
//! beyond the rate.
//!
//! Bytes are counted below the frames, because the WebSocket library reports nothing for fragments
//! and may parse any number of empty ones. TCP flow control passes the delay on to the client;
//! nothing is closed or lost.

use std::io;
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
        Self { per_unit, burst: per_unit * burst, due: Instant::now() }
    }

    /// Draws units that arrived at `now`. Returns when the next ones may arrive, if they must wait.
    pub fn draw(&mut self, now: Instant, units: u32) -> Option<Instant> {
        self.due = self.due.max(now) + self.per_unit * units;
        let excess = (self.due - now).saturating_sub(self.burst);
        (!excess.is_zero()).then(|| now + excess)
    }
}

/// A connection that is read at a limited rate.
pub struct PacedIo<T> {
    inner: T,
    pace: Pace,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<T> PacedIo<T> {
    /// Limits reads to this rate, in bytes.
    pub fn new(inner: T, pace: Pace) -> Self {
        Self { inner, pace, pause: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PacedIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let bytes = u32::try_from(buf.filled().len() - before).unwrap_or(u32::MAX);
        this.pause = this.pace.draw(Instant::now(), bytes).map(|until| Box::pin(sleep_until(until)));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PacedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
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
        assert!((0..10).all(|_| pace.draw(later, 1).is_none()), "unused units accumulate, up to the burst");
        assert_eq!(pace.draw(later, 1), Some(after(1_010)));
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
