//! Where byte streams between nodes come from: real sockets, encrypted ones, or simulated ones.

mod any;
mod tcp;

use std::{future::Future, io, net::SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};

pub use any::{AnyListener, AnyStream, AnyTransport};
pub use tcp::{TcpAcceptor, TcpTransport};

/// Opens streams to other nodes and listens for theirs.
pub trait Transport: Clone + Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// A listening socket.
    type Listener: Listener<Stream = Self::Stream>;

    /// Connects to `address`, `host:port`. The caller limits the time.
    ///
    /// # Errors
    /// Whatever the network says: refused, unreachable, no such host.
    fn connect(&self, address: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Listens on `address`, `host:port`; port 0 picks a free one.
    ///
    /// # Errors
    /// The address is taken or not ours.
    fn bind(&self, address: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;
}

/// A listening socket.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and the address it comes from. Must not wait for what the other side sends: an
    /// encrypting transport finishes its own handshake in the stream's first read or write, where a deadline runs.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The connection was reset already, or the process has no descriptors left; the caller tries again.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// The address listened on, with the port that was picked.
    ///
    /// # Errors
    /// The socket is gone.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}
