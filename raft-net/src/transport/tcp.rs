//! Plain TCP.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream};

use super::{Listener, Transport};

/// Plain TCP, without delay of small writes: a heartbeat or a vote must not wait for an acknowledgement.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpTransport;

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpAcceptor(TcpListener);

impl Transport for TcpTransport {
    type Stream = TcpStream;
    type Listener = TcpAcceptor;

    async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn bind(&self, address: &str) -> io::Result<TcpAcceptor> {
        TcpListener::bind(address).await.map(TcpAcceptor)
    }
}

impl Listener for TcpAcceptor {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
