//! Where byte streams between nodes come from: real sockets, encrypted ones, or simulated ones.

mod accepted;
mod any;
#[cfg(test)]
pub(crate) mod fake;
mod tcp;

use std::{future::Future, io, net::SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};

pub use accepted::{
    AcceptedStream, CloseWatch, Closed, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, SEND_BUFFER_BYTES,
    UNACKNOWLEDGED_MAX,
};
pub use any::{AnyListener, AnyStream, AnyTransport};
pub use tcp::{TcpAcceptor, TcpTransport};

/// Opens streams to other nodes and listens for theirs.
pub trait Transport: Clone + Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// A listening socket.
    type Listener: Listener;

    /// Addresses of `host`, a name, with port 0, the resolver's choice first. Takes as long as the resolver does: the
    /// caller limits the time. A look-up that is dropped may go on in the background.
    ///
    /// # Errors
    /// The resolver's: no such name, or no answer of a name server.
    fn resolve(&self, host: &str) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;

    /// Connects to `address`. The caller limits the time.
    ///
    /// # Errors
    /// The network's: refused, unreachable.
    fn connect(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Listens on `address`, `host:port`; port 0 picks a free one.
    ///
    /// # Errors
    /// The address is taken or not ours.
    fn bind(&self, address: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;
}

/// A connection that a [`Listener`] accepted.
#[derive(Debug)]
pub struct Accepted<S> {
    /// Its bytes.
    pub stream: S,
    /// The address that it comes from.
    pub from: SocketAddr,
    /// Sees the other side close it; None where the transport cannot.
    pub close: Option<CloseWatch>,
}

/// A listening socket.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection. Must not wait for what the other side sends: an
    /// encrypting transport finishes its own handshake in the stream's first read or write, where a deadline runs.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The connection was reset already, or the process has no descriptors left; the caller tries again.
    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted<Self::Stream>>> + Send;

    /// The address listened on, with the port that was picked.
    ///
    /// # Errors
    /// The socket is gone.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}
