//! The cluster under test: server processes on addresses of their own, with a proxy before each port.
//!
//! | module | holds |
//! |---|---|
//! | [`addresses`] | where everything listens |
//! | [`node`] | one server process, now and then |
//! | [`process`] | what `/proc` says of a process |
//! | [`view`] | what the nodes say of themselves, asked past the proxies |
//! | [`volume`] | a file system of a node's own, which can be frozen |
//! | [`error`] | why the cluster did not do what the suite wanted |
//!
//! Invariants: every process is a child that dies with the suite; nodes and clients reach a node only through its
//! gates, the suite itself asks past them; a gate is open exactly while its node runs.

pub mod addresses;
pub mod error;
pub mod node;
pub mod process;
pub mod view;
pub mod volume;

use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "mutants")]
use hexkv_store::mutants::VARIABLE;
use rustix::process::Signal;
use tokio::time::Instant;

pub use addresses::Addresses;
pub use error::ClusterError;
pub use node::Node;
pub use view::{Leadership, View};
pub use volume::Volume;

use crate::links::{Gate, Links, Party, gate::Visitors};

/// Most nodes of a cluster under test.
pub const NODES_MAX: usize = 10;
/// Most voters: the server's own limit of the replication factor.
pub const VOTERS_MAX: usize = 7;
/// Longest wait for a started process to answer. Generous: a node may rebuild its state first.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a signalled process to end.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for the cluster to form.
pub const FORM_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Settings of every node, beside those that give it its place. The election timeouts are the server's defaults,
/// named because the time to recover is judged by them.
const SETTINGS: &[(&str, &str)] = &[
    ("CLUSTER_DISCOVERY_TYPE", "static"),
    ("EPMD_PORT", "0"),
    ("HEARTBEAT_INTERVAL", "100"),
    ("ELECTION_TIMEOUT_MIN", "200"),
    ("ELECTION_TIMEOUT_MAX", "400"),
    // Shorter than what clients wait, so that a node has the time to say that nothing was changed.
    ("REQUEST_TIMEOUT", "1500ms"),
    // Small, so that snapshots are taken, the log is purged, and nodes that were away get a snapshot.
    ("SNAPSHOT_LOG_BYTES_MIN", "256KiB"),
    ("LOG_ENTRIES_KEPT", "200"),
    ("WAL_SEGMENT_BYTES", "10MiB"),
    ("SLED_CACHE_BYTES", "32MiB"),
    ("RUST_LOG", "info,openraft=warn,sled=warn"),
    ("RUST_BACKTRACE", "1"),
];

/// `ELECTION_TIMEOUT_MAX` of the nodes, see `SETTINGS`.
pub const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(400);

/// Nodes, their proxies, and the links between them.
#[derive(Debug)]
pub struct Cluster {
    /// By position, from 0.
    pub nodes: Vec<Node>,
    /// What the proxies do.
    pub links: Links,
    gates: Vec<[Gate; 2]>,
}

impl Cluster {
    /// `size` nodes with data and logs below `dir`, none of them started.
    ///
    /// # Errors
    /// When no free addresses are found, or a directory cannot be made.
    pub async fn new(server: &Path, dir: &Path, size: usize) -> Result<Self, ClusterError> {
        assert!((1..=NODES_MAX).contains(&size), "{size} nodes");
        let addresses = Addresses::choose(size)?;
        let links = Links::new(size);
        let cookie = format!("jepsen-like-{:016x}", rand::random::<u64>());
        let mut nodes = Vec::new();
        for position in 0..size {
            let mut env: Vec<(String, String)> =
                SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            env.push(("COOKIE".to_owned(), cookie.clone()));
            env.push(("CLUSTER_SIZE".to_owned(), size.to_string()));
            env.push(("REPLICATION_FACTOR".to_owned(), size.min(VOTERS_MAX).to_string()));
            env.push(("CLUSTER_NODES".to_owned(), addresses.all_nodes()));
            // Nodes that are broken on purpose: of the suite's own environment they are given nothing else.
            #[cfg(feature = "mutants")]
            env.extend(std::env::var(VARIABLE).ok().map(|mutant| (VARIABLE.to_owned(), mutant)));
            nodes.push(Node::new(server, dir, &addresses, position, env)?);
        }
        let gates = (0..size).map(|position| {
            let gate = |port, visitors| {
                let (public, private) = (addresses.public(position, port), addresses.private(position, port));
                Gate::new(public, private, position, visitors, links.clone())
            };
            [gate(addresses.http_port, Visitors::Clients), gate(addresses.raft_port, Visitors::Nodes)]
        });
        let mut cluster = Self { gates: gates.collect(), nodes, links };
        // Holding all public addresses proves that no other run has this block.
        for position in 0..size {
            cluster.open(position).await?;
        }
        Ok(cluster)
    }

    /// Number of nodes.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Starts all nodes and waits until they are one cluster in which each has its role.
    ///
    /// # Errors
    /// When a node does not start, or they do not form a cluster in [`FORM_TIMEOUT`].
    pub async fn form(&mut self) -> Result<(), ClusterError> {
        for position in 0..self.size() {
            self.spawn(position)?;
        }
        for position in 0..self.size() {
            self.await_answering(position).await?;
        }
        self.await_formed(FORM_TIMEOUT).await
    }

    /// Waits until all nodes are ready and see all as members, as many of them voters as the replication factor says.
    ///
    /// # Errors
    /// [`ClusterError::Late`] after `patience`.
    pub async fn await_formed(&self, patience: Duration) -> Result<(), ClusterError> {
        let deadline = Instant::now() + patience;
        loop {
            let view = View::of(self).await;
            let why = match view.unformed(self.size()) {
                None => return Ok(()),
                Some(why) => why,
            };
            if Instant::now() > deadline {
                return Err(ClusterError::late("the nodes are one cluster", patience, why));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn spawn(&mut self, position: usize) -> Result<(), ClusterError> {
        let pid = self.nodes[position].spawn()?;
        self.links.set_pid(position, Some(pid));
        Ok(())
    }

    async fn open(&mut self, position: usize) -> Result<(), ClusterError> {
        for gate in &mut self.gates[position] {
            let address = gate.address();
            gate.open().await.map_err(|source| ClusterError::Bind { address, source })?;
        }
        Ok(())
    }

    async fn close(&mut self, position: usize) {
        for gate in &mut self.gates[position] {
            gate.close().await;
        }
    }

    /// Waits until the node has opened its data and answers: its ports are bound earlier.
    async fn await_answering(&mut self, position: usize) -> Result<(), ClusterError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.casualties()?;
            let node = &self.nodes[position];
            let why = match node.direct.status().await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                return Err(ClusterError::late(&format!("{} answers", node.name), START_TIMEOUT, why));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Starts a node that was stopped, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(&mut self, position: usize) -> Result<(), ClusterError> {
        self.spawn(position)?;
        self.await_answering(position).await?;
        self.open(position).await
    }

    /// `kill -9`, waited for; gives the pid that it had. From then on its ports refuse.
    ///
    /// # Errors
    /// When it did not run, or is not gone in [`STOP_TIMEOUT`].
    pub async fn kill(&mut self, position: usize) -> Result<u32, ClusterError> {
        let pid = self.nodes[position].kill().await?;
        self.stopped(position).await;
        Ok(pid)
    }

    /// SIGTERM, waited for; gives the pid that it had. From then on its ports refuse.
    ///
    /// # Errors
    /// When it did not run, does not end in [`STOP_TIMEOUT`], or ends with another exit code than 0.
    pub async fn terminate(&mut self, position: usize) -> Result<u32, ClusterError> {
        let pid = self.nodes[position].terminate().await?;
        self.stopped(position).await;
        Ok(pid)
    }

    async fn stopped(&mut self, position: usize) {
        self.links.set_pid(position, None);
        self.close(position).await;
    }

    /// Heals everything that can be healed: links pass, paused nodes go on, dead ones run.
    ///
    /// # Errors
    /// When a node cannot be started, or one ended by itself.
    pub async fn heal(&mut self) -> Result<(), ClusterError> {
        self.links.heal();
        self.casualties()?;
        for position in 0..self.size() {
            if self.nodes[position].runs() {
                self.nodes[position].signal(Signal::CONT)?;
            } else {
                self.start(position).await?;
            }
        }
        Ok(())
    }

    /// Looks for nodes that ended although nobody ended them.
    ///
    /// # Errors
    /// [`ClusterError::Died`] for the first one.
    pub fn casualties(&mut self) -> Result<(), ClusterError> {
        for node in &mut self.nodes {
            if let Some(status) = node.exited()? {
                return Err(ClusterError::died(node, status));
            }
        }
        Ok(())
    }

    /// Counts of the links from any of `from` to any of `to`.
    pub fn traffic(&self, pairs: &[(usize, usize)]) -> crate::links::Counts {
        pairs.iter().map(|(from, to)| self.links.counts(Party::Node(*from), Party::Node(*to))).sum()
    }

    /// Data directories of all nodes.
    pub fn data_dirs(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.data.clone()).collect()
    }

    /// Ends all nodes at once; the cluster is of no use afterwards.
    ///
    /// # Errors
    /// When a process cannot be ended.
    pub async fn end(&mut self) -> Result<(), ClusterError> {
        for position in 0..self.size() {
            if self.nodes[position].runs() {
                self.kill(position).await?;
            }
        }
        Ok(())
    }
}
