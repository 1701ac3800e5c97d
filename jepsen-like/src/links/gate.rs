//! The listening side of the proxy of one port.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::carry::carry;
use super::opener::opener;
use super::{Links, Party};

/// After accepting failed (out of file descriptors), the gate waits so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Who connects to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visitors {
    /// Clients of the suite.
    Clients,
    /// Other nodes; which one is found from the connection.
    Nodes,
}

/// The proxy of one port of one node. While its node is dead the gate is closed: the kernel refuses connections, as
/// it does for a dead process.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    upstream: SocketAddr,
    node: usize,
    visitors: Visitors,
    links: Links,
    listening: Option<JoinHandle<()>>,
}

impl Gate {
    /// A gate at `address` before `upstream`, a port of `node`; closed.
    pub fn new(address: SocketAddr, upstream: SocketAddr, node: usize, visitors: Visitors, links: Links) -> Self {
        Self { address, upstream, node, visitors, links, listening: None }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets connections in.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn open(&mut self) -> io::Result<()> {
        if self.listening.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            let accepting = accept_all(listener, self.upstream, self.node, self.visitors, self.links.clone());
            self.listening = Some(tokio::spawn(accepting));
        }
        Ok(())
    }

    /// Refuses further connections; those that are open go on.
    pub async fn close(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            // Aborted is how it ends; afterwards the port is free.
            let _ = listening.await;
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

async fn accept_all(listener: TcpListener, upstream: SocketAddr, node: usize, visitors: Visitors, links: Links) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                tokio::spawn(visit(stream, from, upstream, node, visitors, links.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn visit(
    stream: TcpStream,
    from: SocketAddr,
    upstream: SocketAddr,
    node: usize,
    visitors: Visitors,
    links: Links,
) {
    let party = match visitors {
        Visitors::Clients => Some(Party::Clients),
        Visitors::Nodes => opener(&stream, from, links.pids()).await.map(Party::Node),
    };
    match party {
        Some(party) => carry(links, party, node, stream, upstream).await,
        // Its process has ended since, or it is none of ours: either way nothing may pass uncontrolled.
        None => tracing::debug!(%from, node, "a connection of unknown origin is closed"),
    }
}
