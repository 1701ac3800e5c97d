//! Bounds what one connection holds: clients that do not take their answers are cut off, and reads are small.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Most bytes that are read at a time. hyper's read buffer grows to the largest read, and each connection has one.
pub const READ_BYTES_MAX: usize = 16 * 1024 - 1;

/// A connection whose writes fail once the other side has taken nothing for a while.
///
/// Invariant: `waiting` is set exactly while the last write or flush could not go on.
#[derive(Debug)]
pub struct WriteDeadline<S> {
    stream: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteDeadline<S> {
    /// `stream`, of which a write may wait for `patience`.
    pub fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waiting: None }
    }

    fn watched<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let deadline = Instant::now() + self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answer")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut part = buf.take(READ_BYTES_MAX);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let bytes = part.filled().len();
        // SAFETY: the stream initialized that many bytes of `part`, which begins where the filled bytes of `buf` end.
        unsafe { buf.assume_init(bytes) };
        buf.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.watched(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watched(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watched(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn reads_are_small_and_lose_nothing() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut ours = WriteDeadline::new(ours, Duration::from_secs(30));
        let sent: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        theirs.write_all(&sent).await.unwrap();
        drop(theirs);
        let mut received = vec![0; 3];
        assert_eq!(ours.read(&mut received).await.unwrap(), 3);
        loop {
            let before = received.len();
            received.reserve(1 << 16);
            let bytes = ours.read_buf(&mut received).await.unwrap();
            assert!(bytes <= READ_BYTES_MAX && received.len() == before + bytes);
            if bytes == 0 {
                break;
            }
        }
        assert_eq!(received, sent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_may_be_slow_but_not_idle() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut ours = WriteDeadline::new(ours, Duration::from_secs(30));
        let reader = tokio::spawn(async move {
            let mut byte = [0];
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                theirs.read_exact(&mut byte).await.unwrap();
            }
            theirs
        });
        ours.write_all(&[7; 30]).await.expect("a byte every 20 s is enough");
        let theirs = reader.await.unwrap();
        let began = Instant::now();
        let cut = ours.write_all(&[7; 30]).await.expect_err("nobody reads");
        assert_eq!((cut.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
        drop(theirs);
    }
}
