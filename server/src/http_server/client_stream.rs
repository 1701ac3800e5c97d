//! The bytes of a client's connection as hyper reads them, head by head, and their end: closed in stages, so that the last answer
//! arrives (RFC 9112 section 9.6).
//!
//! A socket that is closed with bytes in it that were not read resets the connection, and the client loses an answer that it has not read
//! yet. So where a client may still be sending, the connection is closed for writing first, and what arrives is discarded until the client
//! closes its side, or the time for that is over.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::exchange::Exchange;

/// Longest time that a connection is read after its last answer.
pub const LINGER_MAX: Duration = Duration::from_secs(10);
/// A client that sends nothing for this long after its last answer is not waited for.
const LINGER_IDLE: Duration = Duration::from_secs(2);
/// Bytes that are discarded at a time.
const DISCARD_BYTES: usize = 16 * 1024;
/// Reads in one turn of the task.
const DISCARDS_A_TURN: usize = 32;

/// A client's connection.
///
/// Invariant: `held` are bytes that were received and not delivered, and `exchange` has not accounted for them.
pub(super) struct ClientStream<S> {
    stream: S,
    exchange: Exchange,
    held: BytesMut,
    closing: Option<Closing>,
}

/// The connection is closed for writing.
struct Closing {
    deadline: Instant,
    /// When the client has been silent for too long.
    silent: Pin<Box<Sleep>>,
    /// Bytes were discarded: more may follow.
    received: bool,
}

impl<S> ClientStream<S> {
    pub(super) fn new(stream: S, exchange: Exchange) -> Self {
        Self { stream, exchange, held: BytesMut::new(), closing: None }
    }
}

impl<S: AsyncRead + Unpin> ClientStream<S> {
    /// Discards what arrives until the client closes, or need not be waited for.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let closing = self.closing.get_or_insert_with(|| {
            let now = Instant::now();
            let silent = Box::pin(sleep_until(now + LINGER_IDLE));
            Closing { deadline: now + LINGER_MAX, silent, received: false }
        });
        let mut bytes = [MaybeUninit::uninit(); DISCARD_BYTES];
        for _ in 0..DISCARDS_A_TURN {
            let mut buf = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {
                    closing.received = true;
                    let silent = Instant::now() + LINGER_IDLE;
                    closing.silent.as_mut().reset(silent.min(closing.deadline));
                }
                Poll::Pending if closing.received || self.exchange.is_unfinished() => {
                    return closing.silent.as_mut().poll(cx);
                }
                Poll::Pending => return Poll::Ready(()),
            }
        }
        if Instant::now() >= closing.deadline {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.held.is_empty() {
            let next = &this.held[..this.held.len().min(buf.remaining())];
            let delivered = this.exchange.advance(next);
            buf.put_slice(&next[..delivered]);
            this.held.advance(delivered);
            if this.held.is_empty() {
                this.held = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let received = &buf.filled()[before..];
        if received.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let delivered = this.exchange.advance(received);
        this.held.extend_from_slice(&received[delivered..]);
        buf.set_filled(before + delivered);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        self.poll_discard(cx).map(Ok)
    }
}
