//! Plain TCP.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    thread,
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{Accepted, AcceptedStream, Listener, Transport};

/// A connection on which nothing was sent for this long is probed: a peer that is gone without a FIN is noticed, and the
/// state that firewalls keep of the connection stays.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// Interval of the probes that follow. The system gives up after some of them: nine with Linux.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Stack of a thread that waits for the system's resolver, in bytes: plugins of the name service switch run on it.
const RESOLVER_STACK_BYTES: usize = 512 * 1024;

/// Plain TCP, without delay of small writes: a heartbeat or a vote must not wait for an acknowledgement.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpTransport;

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpAcceptor(TcpListener);

impl Transport for TcpTransport {
    type Stream = TcpStream;
    type Listener = TcpAcceptor;

    /// The system's resolver blocks for up to a minute when name servers do not answer. It runs on a thread of its own,
    /// which does not keep the process from ending as tokio's blocking threads do.
    async fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        let (answer, answered) = oneshot::channel();
        let host = host.to_owned();
        thread::Builder::new().name("resolver".into()).stack_size(RESOLVER_STACK_BYTES).spawn(move || {
            let found = (host.as_str(), 0).to_socket_addrs().map(Iterator::collect);
            if answer.send(found).is_err() {
                tracing::trace!(host, "the look-up was given up before its answer came");
            }
        })?;
        answered.await.unwrap_or_else(|_| Err(io::Error::other("the system's resolver panicked")))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    }

    async fn bind(&self, address: &str) -> io::Result<TcpAcceptor> {
        TcpListener::bind(address).await.map(TcpAcceptor)
    }
}

impl Listener for TcpAcceptor {
    type Stream = AcceptedStream;

    async fn accept(&mut self) -> io::Result<Accepted<AcceptedStream>> {
        let (stream, from) = self.0.accept().await?;
        let stream = AcceptedStream::new(stream)?;
        let close = Some(stream.close_watch());
        Ok(Accepted { stream, from, close })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_of_the_hosts_file_has_addresses() {
        let found = TcpTransport.resolve("localhost").await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 0), "{found:?}");
        assert!(!found.is_empty());
    }

    #[tokio::test]
    async fn an_outgoing_connection_is_probed_while_idle() {
        let listener = TcpTransport.bind("127.0.0.1:0").await.unwrap();
        let stream = TcpTransport.connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(SockRef::from(&stream).keepalive().unwrap());
    }
}
