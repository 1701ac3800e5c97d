//! A transport chosen at run time: the server is not generic over where its bytes come from.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use futures_util::{FutureExt, TryFutureExt, future::BoxFuture};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Accepted, Listener, Transport};

/// A byte stream in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A connection of any transport. A call through it costs one indirection beside the system call below.
pub type AnyStream = Box<dyn ByteStream>;

/// Any transport; clones share it.
#[derive(Clone)]
pub struct AnyTransport(Arc<dyn Connects>);

/// A listening socket of any transport.
pub struct AnyListener(Box<dyn Accepts>);

trait Connects: Send + Sync {
    fn resolve_any<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
    fn connect_any(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<AnyStream>>;
    fn bind_any<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<AnyListener>>;
}

trait Accepts: Send {
    fn accept_any(&mut self) -> BoxFuture<'_, io::Result<Accepted<AnyStream>>>;
    fn address(&self) -> io::Result<SocketAddr>;
}

impl AnyTransport {
    /// Hides which transport it is.
    pub fn new(transport: impl Transport) -> Self {
        Self(Arc::new(transport))
    }
}

impl AnyListener {
    /// Hides which transport it is of.
    pub fn new(listener: impl Listener) -> Self {
        Self(Box::new(listener))
    }
}

impl fmt::Debug for AnyTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyTransport").finish_non_exhaustive()
    }
}

impl fmt::Debug for AnyListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyListener").field("address", &self.0.address().ok()).finish()
    }
}

impl<T: Transport> Connects for T {
    fn resolve_any<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Transport::resolve(self, host).boxed()
    }

    fn connect_any(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<AnyStream>> {
        Transport::connect(self, address).map_ok(|stream| Box::new(stream) as AnyStream).boxed()
    }

    fn bind_any<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<AnyListener>> {
        Transport::bind(self, address).map_ok(AnyListener::new).boxed()
    }
}

impl<L: Listener> Accepts for L {
    fn accept_any(&mut self) -> BoxFuture<'_, io::Result<Accepted<AnyStream>>> {
        let boxed = |accepted: Accepted<L::Stream>| {
            let Accepted { stream, from, close } = accepted;
            Accepted { stream: Box::new(stream) as AnyStream, from, close }
        };
        Listener::accept(self).map_ok(boxed).boxed()
    }

    fn address(&self) -> io::Result<SocketAddr> {
        Listener::local_addr(self)
    }
}

impl Transport for AnyTransport {
    type Stream = AnyStream;
    type Listener = AnyListener;

    async fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        self.0.resolve_any(host).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<AnyStream> {
        self.0.connect_any(address).await
    }

    async fn bind(&self, address: &str) -> io::Result<AnyListener> {
        self.0.bind_any(address).await
    }
}

impl Listener for AnyListener {
    type Stream = AnyStream;

    async fn accept(&mut self) -> io::Result<Accepted<AnyStream>> {
        self.0.accept_any().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.address()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::transport::TcpTransport;

    #[tokio::test]
    async fn bytes_go_through_a_transport_of_any_kind() {
        let transport = AnyTransport::new(TcpTransport);
        let mut listener = transport.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(transport.connect(address), listener.accept());
        near.unwrap().write_all(b"through").await.unwrap();
        let mut received = Vec::new();
        far.unwrap().stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"through");
    }
}
