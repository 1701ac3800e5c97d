//! What a node runs in: files, network, name servers, wall clock, threads. The real ones, or simulated ones.

use std::{fmt, sync::Arc, time::SystemTime};

use hexkv_raft_net::transport::{AnyTransport, TcpTransport};
use hexkv_store::{
    driver::Driver,
    fs::{RealFs, SharedFs},
};
use tokio::runtime::Handle;

use crate::discovery::{
    dns::{NameService, RealNames},
    gossip::{Multicast, RealMulticast},
};

/// The wall clock.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// What it shows now.
    fn now(&self) -> SystemTime;
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// What a node runs in. Clones share it.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Files.
    pub fs: SharedFs,
    /// Sockets, for nodes and for clients.
    pub transport: AnyTransport,
    /// Who knows the records of names. Asked by nodes that look for others by DNS only.
    pub names: Arc<dyn NameService>,
    /// Groups in which nodes tell each other where they are. Joined by nodes that gossip only.
    pub multicast: Arc<dyn Multicast>,
    /// The wall clock. Monotonic time is tokio's.
    pub clock: Arc<dyn Clock>,
    /// What runs work that blocks.
    pub driver: Driver,
    /// Where a task runs that must go on whatever the others wait for; None = with the others.
    pub apart: Option<Handle>,
}

impl Environment {
    /// The operating system's files, sockets and clock, its name servers, and threads.
    pub fn real() -> Self {
        Self {
            fs: Arc::new(RealFs),
            transport: AnyTransport::new(TcpTransport),
            names: Arc::new(RealNames),
            multicast: Arc::new(RealMulticast),
            clock: Arc::new(RealClock),
            driver: Driver::Thread,
            apart: None,
        }
    }

    /// Milliseconds since the Unix epoch; 0 when the clock stands before it.
    pub fn unix_time_ms(&self) -> u64 {
        self.clock.now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}
