//! Nodes that tell each other where they are by UDP multicast. What is heard is only where to ask: whoever is there has to
//! prove the cookie on the raft port.
//!
//! | part | what lives there |
//! |---|---|
//! | `packet` | what is sent, and its signature |
//! | `table` | who was heard, and what is ignored |

mod packet;
mod table;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hexkv_raft_net::Cookie;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    packet::{Announcement, PACKET_BYTES_MAX},
    table::Table,
};
use crate::environment::Clock;

/// Between two announcements.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// Networks that a packet crosses: the local one only.
const TTL: u32 = 1;
/// After the socket failed to receive.
const RECEIVE_RETRY: Duration = Duration::from_millis(500);

/// Where to gossip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GossipSettings {
    /// Multicast group and port.
    pub group: SocketAddr,
    /// Address of the interface; 0.0.0.0 = the system chooses.
    pub interface: Ipv4Addr,
}

/// The group cannot be listened to.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot gossip in {group} on the interface of {interface}: {source}; set CLUSTER_GOSSIP_INTERFACE to the IPv4 address of an interface of this machine, or CLUSTER_GOSSIP_ADDRESS"
)]
pub struct GossipError {
    group: SocketAddr,
    interface: Ipv4Addr,
    source: io::Error,
}

/// Announces this node and listens to others until it is dropped.
#[derive(Debug)]
pub struct Gossip {
    table: Arc<Mutex<Table>>,
    send_problem: Arc<Mutex<Option<String>>>,
    _stop: DropGuard,
    _task: JoinHandle<()>,
}

impl Gossip {
    /// Begins to announce the node called `name`, whose raft port others reach at `raft`.
    ///
    /// # Errors
    /// [`GossipError`].
    pub fn start(
        settings: GossipSettings,
        name: &str,
        raft: &str,
        cookie: Cookie,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, GossipError> {
        let GossipSettings { group, interface } = settings;
        let socket = open(settings).map_err(|source| GossipError { group, interface, source })?;
        let session = hexkv_store::entropy::random();
        let table = Arc::new(Mutex::new(Table::new(session)));
        let send_problem = Arc::new(Mutex::new(None));
        let voice = Voice {
            socket,
            settings,
            cookie,
            clock,
            table: table.clone(),
            send_problem: send_problem.clone(),
            next: Announcement { session, sequence: 0, time_ms: 0, name: name.to_owned(), raft: raft.to_owned() },
        };
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            token.run_until_cancelled(voice.run()).await;
        });
        Ok(Self { table, send_problem, _stop: stop.drop_guard(), _task: task })
    }

    /// `host:port` of the raft ports of those that were heard lately, by name.
    pub fn heard(&self) -> Vec<(String, String)> {
        self.table.lock().heard(Instant::now())
    }

    /// Why others do not hear this node.
    pub fn problem(&self) -> Option<String> {
        self.send_problem.lock().clone()
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        self.problem().unwrap_or_else(|| self.table.lock().describe(Instant::now()))
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

/// The task behind a [`Gossip`].
struct Voice {
    socket: UdpSocket,
    settings: GossipSettings,
    cookie: Cookie,
    clock: Arc<dyn Clock>,
    table: Arc<Mutex<Table>>,
    send_problem: Arc<Mutex<Option<String>>>,
    next: Announcement,
}

impl Voice {
    async fn run(mut self) {
        let mut turn = tokio::time::interval(INTERVAL);
        // A process that stood still has nothing to make up for.
        turn.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // One byte more than allowed, so that what is too long is seen to be.
        let mut buffer = [0; PACKET_BYTES_MAX + 1];
        loop {
            tokio::select! {
                biased;
                _ = turn.tick() => self.announce().await,
                received = self.socket.recv(&mut buffer) => match received {
                    Ok(length) => {
                        let now_ms = self.now_ms();
                        self.table.lock().take_in(&buffer[..length], &self.cookie, now_ms, Instant::now());
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "gossip cannot be received");
                        tokio::time::sleep(RECEIVE_RETRY).await;
                    }
                },
            }
        }
    }

    async fn announce(&mut self) {
        self.next.sequence += 1;
        self.next.time_ms = self.now_ms();
        let packet = self.next.sign(&self.cookie);
        let problem = self.socket.send_to(&packet, self.settings.group).await.err().map(|e| {
            format!(
                "gossip cannot be sent to {}: {e}; set CLUSTER_GOSSIP_INTERFACE to the IPv4 address of an interface with multicast",
                self.settings.group
            )
        });
        let mut noted = self.send_problem.lock();
        if *noted != problem {
            if let Some(problem) = &problem {
                tracing::warn!("{problem}");
            }
            *noted = problem;
        }
    }

    fn now_ms(&self) -> u64 {
        let since_epoch = self.clock.now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        since_epoch.map_or(0, |since| since.as_millis() as u64)
    }
}
