//! A byte stream as a stream of frames in both directions, driven by one task.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::frame::{self, Frame, FrameError, HANDSHAKE_FRAME_BYTES_MAX};

/// Frames up to this size together are copied into one buffer, so that they leave in one write.
const COALESCED_BYTES_MAX: usize = 64 * 1024;

/// Frames over a byte stream. Invariants: frames leave in the order they were pushed, and none is torn by a
/// cancelled call; `output_bytes` is what was pushed and not yet written; input holds less than one frame beyond
/// what was asked for, and no more room than has arrived calls for.
pub(crate) struct FrameStream<S> {
    io: S,
    input: BytesMut,
    limit_bytes: usize,
    output: VecDeque<Vec<u8>>,
    /// Bytes of `output[0]` that are written already.
    front_written: usize,
    output_bytes: usize,
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameStream<S> {
    /// Starts with the frame limit of a handshake.
    pub(crate) fn new(io: S) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            limit_bytes: HANDSHAKE_FRAME_BYTES_MAX,
            output: VecDeque::new(),
            front_written: 0,
            output_bytes: 0,
            unflushed: false,
        }
    }

    /// Raises the frame limit, once the other side is known.
    pub(crate) fn set_limit(&mut self, limit_bytes: usize) {
        self.limit_bytes = limit_bytes;
    }

    /// Bytes pushed and not yet written.
    pub(crate) fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// Whether part of a frame has arrived and the rest has not.
    pub(crate) fn is_inside_frame(&self) -> bool {
        !self.input.is_empty()
    }

    /// Adds an encoded frame to what [`Self::poll_write`] writes.
    pub(crate) fn push(&mut self, frame: Vec<u8>) {
        self.output_bytes += frame.len();
        match self.output.back_mut() {
            Some(back) if back.len() + frame.len() <= COALESCED_BYTES_MAX => back.extend_from_slice(&frame),
            _ => self.output.push_back(frame),
        }
    }

    /// Writes what was pushed; ready when all is written.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(front) = self.output.front() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &front[self.front_written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.front_written += written;
            self.output_bytes -= written;
            if self.front_written == front.len() {
                self.output.pop_front();
                self.front_written = 0;
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next frame; None at the end of the stream.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, FrameError>> {
        loop {
            if let Some(frame) = frame::decode(&mut self.input, self.limit_bytes)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            self.input.reserve(frame::read_ahead_bytes(&self.input));
            // `read_buf` keeps nothing in its future, so it can be made anew for each poll.
            let read = pin!(self.io.read_buf(&mut self.input)).poll(cx);
            if ready!(read)? == 0 {
                return Poll::Ready(if self.input.is_empty() { Ok(None) } else { Err(FrameError::Cut) });
            }
        }
    }

    /// The next frame; None at the end of the stream. Cancel-safe.
    pub(crate) async fn read(&mut self) -> Result<Option<Frame>, FrameError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Writes `frame` and all that was pushed before it.
    pub(crate) async fn write(&mut self, frame: Vec<u8>) -> io::Result<()> {
        self.push(frame);
        poll_fn(|cx| self.poll_write(cx)).await
    }

    /// Writes what was pushed and ends the outgoing direction, so that the other side reads all of it.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_write(cx)).await?;
        self.io.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicUsize, atomic::Ordering};

    use super::*;
    use crate::frame::{FRAME_BYTES_MAX, Kind, encode_with};

    /// Counts writes; accepts everything.
    struct Counting(Arc<AtomicUsize>);

    impl AsyncRead for Counting {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frame_of(id: u64, bytes: usize) -> Vec<u8> {
        encode_with(id, Kind::Peer, |out| out.resize(out.len() + bytes, id as u8)).unwrap()
    }

    #[tokio::test]
    async fn many_queued_frames_leave_in_one_write() {
        let writes = Arc::new(AtomicUsize::new(0));
        let mut stream = FrameStream::new(Counting(writes.clone()));
        for id in 0..100 {
            stream.push(frame_of(id, 300));
        }
        stream.write(frame_of(100, 300)).await.unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 1);
        assert_eq!(stream.output_bytes(), 0);
    }

    #[tokio::test]
    async fn frames_of_all_sizes_arrive_in_order_through_a_narrow_pipe() {
        let (a, b) = tokio::io::duplex(1000);
        let (mut a, mut b) = (FrameStream::new(a), FrameStream::new(b));
        b.set_limit(FRAME_BYTES_MAX);
        let sizes = [0, 10, 70_000, 3, 64 * 1024, 200_000, 1];
        let writer = tokio::spawn(async move {
            for (id, bytes) in sizes.into_iter().enumerate() {
                a.push(frame_of(id as u64, bytes));
            }
            a.finish().await.unwrap();
        });
        for (id, bytes) in sizes.into_iter().enumerate() {
            let frame = b.read().await.unwrap().unwrap();
            assert_eq!((frame.id, frame.body.len()), (id as u64, bytes));
        }
        assert!(b.read().await.unwrap().is_none());
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_an_error() {
        let (mut a, b) = tokio::io::duplex(1000);
        let mut b = FrameStream::new(b);
        let frame = frame_of(1, 50);
        a.write_all(&frame[..frame.len() - 1]).await.unwrap();
        drop(a);
        assert!(matches!(b.read().await, Err(FrameError::Cut)));
    }

    #[tokio::test]
    async fn a_lying_length_makes_no_room() {
        let (mut a, b) = tokio::io::duplex(1000);
        let mut b = FrameStream::new(b);
        b.set_limit(FRAME_BYTES_MAX);
        a.write_all(&(FRAME_BYTES_MAX as u32).to_le_bytes()).await.unwrap();
        a.write_all(&[0; 100]).await.unwrap();
        drop(a);
        assert!(matches!(b.read().await, Err(FrameError::Cut)));
        assert!(b.input.capacity() < 1024 * 1024, "{} bytes", b.input.capacity());
    }
}
