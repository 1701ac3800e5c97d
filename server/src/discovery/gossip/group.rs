//! Sockets that hear a group: of the operating system's multicast, or of a simulated one.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
};

use futures_util::{FutureExt, future::BoxFuture};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// Networks that a packet crosses: the local one only.
const TTL: u32 = 1;

/// Where to gossip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GossipSettings {
    /// Multicast group and port.
    pub group: SocketAddr,
    /// Address of the interface; 0.0.0.0 = the system chooses.
    pub interface: Ipv4Addr,
}

/// Lets nodes into groups.
pub trait Multicast: Send + Sync + fmt::Debug + 'static {
    /// A socket that hears the group, and that the group hears. Several nodes of a machine may have one each.
    ///
    /// # Errors
    /// The group is none, or this machine has no such interface.
    fn join(&self, settings: GossipSettings) -> BoxFuture<'_, io::Result<Box<dyn GroupSocket>>>;
}

/// A socket in a group. What is sent may be lost, overtaken or doubled; what is received may come from anybody, and from this
/// node itself.
pub trait GroupSocket: Send + Sync + 'static {
    /// Sends a datagram to all who listen. Whether anybody does, nobody knows.
    ///
    /// # Errors
    /// It was not sent: there is no way to the group.
    fn send<'a>(&'a self, datagram: &'a [u8]) -> BoxFuture<'a, io::Result<()>>;

    /// Waits for the next datagram and puts it into `buffer`; what does not fit is cut off. Answers how much that is.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Nothing was received; the caller tries again.
    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>>;
}

/// Multicast of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealMulticast;

impl Multicast for RealMulticast {
    fn join(&self, settings: GossipSettings) -> BoxFuture<'_, io::Result<Box<dyn GroupSocket>>> {
        let socket = open(settings).map(|socket| {
            let socket: Box<dyn GroupSocket> = Box::new(RealSocket { socket, group: settings.group });
            socket
        });
        std::future::ready(socket).boxed()
    }
}

struct RealSocket {
    socket: UdpSocket,
    group: SocketAddr,
}

impl GroupSocket for RealSocket {
    fn send<'a>(&'a self, datagram: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        async move { self.socket.send_to(datagram, self.group).await.map(|_| ()) }.boxed()
    }

    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>> {
        self.socket.recv(buffer).boxed()
    }
}

/// A socket that hears the group on one interface. Several nodes of a machine share the port.
fn open(GossipSettings { group, interface }: GossipSettings) -> io::Result<UdpSocket> {
    let SocketAddr::V4(address) = group else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the group is no IPv4 address"));
    };
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // The group's own address: what is sent to the port alone is not for us.
    socket.bind(&group.into())?;
    socket.join_multicast_v4(address.ip(), &interface)?;
    socket.set_multicast_if_v4(&interface)?;
    socket.set_multicast_ttl_v4(TTL)?;
    socket.set_multicast_loop_v4(true)?;
    UdpSocket::from_std(socket.into())
}
