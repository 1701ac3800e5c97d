//! Accepted TCP connections: probed while they are silent, and watched for their end while nothing reads them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{Shutdown, shutdown, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// A connection that is silent for this long is probed: a peer that lost power or its network sends no FIN. A host that is up
/// without the connection answers the first probe with a reset.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Time between two probes that are not answered.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Probes without an answer that end a connection.
pub const KEEPALIVE_PROBES: u32 = 4;
/// A connection ends when sent bytes are not acknowledged, or a closed window stays closed, for this long. Equal to the time
/// that the probes take together: Linux lets this time decide for them, too.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// Send buffer of an accepted connection, in bytes; Linux takes twice this with its own overhead. Unbounded, it grows to megabytes
/// for each client that reads nothing, all connections of the machine share the kernel's memory for it, and those between
/// nodes stall when that is used up.
pub const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// How far the other side has closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It sends no more (FIN). Whether it still reads cannot be seen before something is written.
    Sending,
    /// The connection is over: reset, or the peer answers no probes.
    Whole,
}

/// Sees the other side close a connection, also behind bytes that were not read yet.
///
/// Reading shows the end of a stream only after all that was sent before it, and a server that works on one request does not read the
/// next one. The kernel reports the end by itself (`EPOLLRDHUP`), which needs no read.
#[derive(Debug, Clone)]
pub struct CloseWatch(Arc<TcpStream>);

impl CloseWatch {
    /// Completes when the other side has closed its sending direction, or the whole connection. Cancel-safe.
    pub async fn closed(&self) {
        // Tokio counts "the other side sends no more" among what this interest waits for; urgent data, its main subject, is
        // never registered for.
        self.ready(Interest::PRIORITY | Interest::ERROR).await;
    }

    /// Completes when the connection is over in both directions. Cancel-safe.
    pub async fn over(&self) {
        self.ready(Interest::ERROR).await;
    }

    async fn ready(&self, interest: Interest) {
        if let Err(error) = self.0.ready(interest).await {
            tracing::debug!(%error, "a connection cannot be watched, as its runtime ends; it counts as closed");
        }
    }

    /// What the kernel knows at this moment; None while both directions are open.
    pub fn now(&self) -> Option<Closed> {
        let mut asked = [PollFd::new(&*self.0, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if let Err(error) = poll(&mut asked, Some(&at_once)) {
            tracing::debug!(%error, "the state of a connection is not known; it counts as open");
            return None;
        }
        let found = asked[0].revents();
        if found.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Some(Closed::Whole);
        }
        found.contains(PollFlags::RDHUP).then_some(Closed::Sending)
    }
}

/// An accepted TCP connection. Its [`CloseWatch`]es share the socket, which closes with the last of them.
#[derive(Debug)]
pub struct AcceptedStream(Arc<TcpStream>);

impl AcceptedStream {
    /// Takes an accepted socket: small writes go out at once, silence is probed.
    ///
    /// # Errors
    /// The operating system's, when the socket takes no options: it was reset already.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
        sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MAX.as_millis() as u32)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES)?;
        Ok(Self(Arc::new(stream)))
    }

    /// What sees the other side close it.
    pub fn close_watch(&self) -> CloseWatch {
        CloseWatch(self.0.clone())
    }

    /// Reads what is there. A read that did not fill `buf` emptied the socket: the next one waits without trying, as tokio's own
    /// reads do.
    fn read_now(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let room = buf.remaining();
        let mut received = None;
        let read = self.0.try_io(Interest::READABLE, || {
            let bytes = self.0.try_read_buf(buf)?;
            received = Some(bytes);
            if bytes > 0 && bytes < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if received.is_some() { Ok(()) } else { read }
    }
}

impl AsyncRead for AcceptedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.read_now(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }
}

impl AcceptedStream {
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for AcceptedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(&*self.0, Shutdown::Write) {
            // The other side was faster.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(e) => Poll::Ready(Err(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn pair() -> (TcpStream, AcceptedStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), AcceptedStream::new(far.unwrap().0).unwrap())
    }

    #[tokio::test]
    async fn a_close_behind_unread_bytes_is_seen() {
        let (mut near, far) = pair().await;
        let watch = far.close_watch();
        near.write_all(b"unread").await.unwrap();
        far.0.readable().await.unwrap();
        assert_eq!(watch.now(), None);
        near.shutdown().await.unwrap();
        timeout(PATIENCE, watch.closed()).await.expect("the end of sending is seen");
        assert_eq!(watch.now(), Some(Closed::Sending));
        assert!(timeout(Duration::ZERO, watch.over()).await.is_err(), "it may still read");
    }

    #[tokio::test]
    async fn a_reset_is_the_end_of_the_whole_connection() {
        let (near, far) = pair().await;
        let watch = far.close_watch();
        near.set_zero_linger().unwrap();
        drop(near);
        timeout(PATIENCE, watch.over()).await.expect("the reset is seen");
        assert_eq!(watch.now(), Some(Closed::Whole));
    }

    #[tokio::test]
    async fn silence_is_probed() {
        let (_near, far) = pair().await;
        assert!(sockopt::socket_keepalive(&*far.0).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&*far.0).unwrap(), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&*far.0).unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(&*far.0).unwrap(), KEEPALIVE_PROBES);
        assert_eq!(u128::from(sockopt::tcp_user_timeout(&*far.0).unwrap()), UNACKNOWLEDGED_MAX.as_millis());
        assert_eq!(KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES, UNACKNOWLEDGED_MAX);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_holds_a_bounded_buffer() {
        let (near, mut far) = pair().await;
        sockopt::set_socket_recv_buffer_size(&near, 4096).unwrap();
        let piece = vec![0; 1 << 20];
        let mut sent = 0;
        while let Ok(Ok(bytes)) = timeout(Duration::from_millis(200), far.write(&piece)).await {
            sent += bytes;
        }
        // The peer's buffer had its first size when it connected.
        assert!(sent < 12 * SEND_BUFFER_BYTES, "{sent} bytes wait");
    }

    #[tokio::test]
    async fn bytes_arrive_whole_in_reads_of_any_size() {
        let (mut near, mut far) = pair().await;
        let sent: Vec<u8> = (0..1_000_003_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            for (at, piece) in sent.chunks(70_001).enumerate() {
                near.write_all(&piece[..at]).await.unwrap();
                near.write_all(&piece[at..]).await.unwrap();
            }
            near.shutdown().await.unwrap();
            let mut echoed = Vec::new();
            near.read_to_end(&mut echoed).await.unwrap();
            echoed
        });
        let (mut received, mut size) = (Vec::new(), 1);
        loop {
            let mut piece = vec![0; size];
            let bytes = timeout(PATIENCE, far.read(&mut piece)).await.expect("no read is left waiting").unwrap();
            if bytes == 0 {
                break;
            }
            received.extend_from_slice(&piece[..bytes]);
            size = size % 9_000 + 13;
        }
        assert_eq!(received, expected);
        far.write_all(&received).await.unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(writer.await.unwrap(), expected);
    }
}
