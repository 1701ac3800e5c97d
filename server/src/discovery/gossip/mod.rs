//! Nodes that tell each other where they are by UDP multicast. What is heard is only where to ask: whoever is there has to
//! prove the cookie on the raft port.
//!
//! | part | what lives there |
//! |---|---|
//! | `group` | whom packets are sent to and come from |
//! | `packet` | what is sent, and its signature |
//! | `table` | who was heard, and what is ignored |

mod group;
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
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    packet::{Announcement, PACKET_BYTES_MAX},
    table::Table,
};
use crate::environment::{Clock, Environment};

pub use group::{GossipSettings, GroupSocket, Multicast, RealMulticast};

/// Between two announcements.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// After the socket failed to receive.
const RECEIVE_RETRY: Duration = Duration::from_millis(500);

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
    /// Begins to announce the node called `name`, whose raft port others reach at `raft`, in a group of `environment`.
    ///
    /// # Errors
    /// [`GossipError`].
    pub async fn start(
        settings: GossipSettings,
        name: &str,
        raft: &str,
        cookie: Cookie,
        environment: &Environment,
    ) -> Result<Self, GossipError> {
        let GossipSettings { group, interface } = settings;
        let joined = environment.multicast.join(settings).await;
        let socket = joined.map_err(|source| GossipError { group, interface, source })?;
        let session = hexkv_store::entropy::random();
        let table = Arc::new(Mutex::new(Table::new(session)));
        let send_problem = Arc::new(Mutex::new(None));
        let voice = Voice {
            socket,
            settings,
            cookie,
            clock: environment.clock.clone(),
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

/// The task behind a [`Gossip`].
struct Voice {
    socket: Box<dyn GroupSocket>,
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
                received = self.socket.receive(&mut buffer) => match received {
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
        let problem = self.socket.send(&packet).await.err().map(|e| {
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
