//! Configuration of a node: flags win over the environment, that over a TOML file, that over defaults.
//!
//! | part | what lives there |
//! |---|---|
//! | `options` | the table of options: everything that lists them is made from it |
//! | `value`, `choices` | kinds of values and the text they take |
//! | `layers` | what was set where, and which layer wins |
//! | `resolve` | from texts to a [`Config`]: derived defaults, contradictions, warnings |
//! | `discovery` | options of discovery that contradict each other |
//! | `name` | names of nodes and hosts |
//! | `hostname` | the machine's own name in them |
//! | `allowed_hosts` | names that clients may reach the node by |
//! | `cookie` | the secret that nodes share |
//! | `print` | `--print-config` |
//! | `storage` | log and state in the store's terms |
//! | `limits` | the process's limit of open files |

mod allowed_hosts;
mod choices;
mod cookie;
mod discovery;
mod error;
mod hostname;
mod layers;
mod limits;
mod name;
mod options;
mod print;
mod resolve;
mod storage;
#[cfg(test)]
mod tests;
mod value;

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::ArgMatches;

pub use allowed_hosts::AllowedHosts;
pub use choices::{DiscoveryType, EngineKind, LogFormat};
pub use cookie::{Cookie, CookieSource};
pub use error::ConfigError;
pub use layers::Source;
pub use limits::{Connections, FILES_OPEN_MIN, FILES_OPEN_WARN, FileLimit, raise_fd_limit};
pub use name::{HOST_BYTES_MAX, Host, NAME_BYTES_MAX, NameError, NodeName, Target};
pub use options::{OPTIONS, OptionDefault, OptionRow, command, markdown_table};
pub use print::{FIXED_LIMITS, Resolved, Shown, Sources};

/// How far a node's raft port is above its HTTP port, unless `RAFT_PORT` says otherwise.
pub const RAFT_PORT_OFFSET: u16 = 5100;

/// The configuration of a node. All values are within their ranges and agree with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Full name.
    pub node_name: NodeName,
    /// Which of `cluster_size` nodes this is, from 1.
    pub node_index: u32,
    /// Whether `node_index` was set, as itself or as a role.
    pub index_is_set: bool,
    /// Nodes that the cluster is planned with.
    pub cluster_size: u32,
    /// Voters that the cluster aims at when it is formed.
    pub replication_factor: u32,
    /// Silence after which a standby takes the seat of a voter; None = never.
    pub replace_after: Option<Duration>,
    /// Address that HTTP, raft port and port mapper listen on.
    pub bind: IpAddr,
    /// Host that others are told.
    pub advertise: Host,
    /// Names that clients may reach the node by, besides [`Config::own_hosts`].
    pub allowed_hosts: AllowedHosts,
    /// HTTP port, 0 = any free one.
    pub port: u16,
    /// Raft port, 0 = any free one.
    pub raft_port: u16,
    /// Directory of this node's data.
    pub data_dir: PathBuf,
    /// Where the cookie comes from; [`CookieSource::load`] reads or creates it.
    pub cookie: CookieSource,
    /// How nodes find each other.
    pub discovery: DiscoveryType,
    /// Nodes with known addresses; used with every type of discovery.
    pub cluster_nodes: Vec<Target>,
    /// The name whose records are the nodes; Some where `discovery` is dns.
    pub dns_hostname: Option<Host>,
    /// Name server to ask; None = the system's.
    pub dns_server: Option<SocketAddr>,
    /// Time between two looks at the records.
    pub dns_interval: Duration,
    /// Multicast group and port of gossip.
    pub gossip_address: SocketAddr,
    /// Address of the interface that gossip uses; 0.0.0.0 = the system chooses.
    pub gossip_interface: Ipv4Addr,
    /// Port of the Erlang port mapper, 0 = none.
    pub epmd_port: u16,
    /// Time between the leader's heartbeats.
    pub heartbeat_interval: Duration,
    /// Half of the silence after which a node counts as down, see [`Config::down_after`]; longer than `heartbeat_interval`.
    pub heartbeat_timeout: Duration,
    /// Shortest silence of the leader before an election; longer than `heartbeat_interval`.
    pub election_timeout_min: Duration,
    /// Longest silence of the leader before an election; longer than `election_timeout_min`.
    pub election_timeout_max: Duration,
    /// Largest value of a key, in bytes.
    pub value_bytes_max: usize,
    /// Where the current state lives.
    pub engine: EngineKind,
    /// Most memory that sled's cache may fill, in bytes.
    pub sled_cache_bytes: u64,
    /// Size of a write-ahead log file, in bytes.
    pub wal_segment_bytes: u64,
    /// Least growth of the log between two snapshots, in bytes.
    pub snapshot_log_bytes_min: u64,
    /// Applied entries that stay in the log behind a snapshot.
    pub log_entries_kept: u64,
    /// Revisions that stay readable at least, within `history_bytes`.
    pub history_revisions: u64,
    /// Time that revisions stay readable at least, within `history_bytes`.
    pub history_age: Duration,
    /// Most disk that past revisions take, in bytes.
    pub history_bytes: u64,
    /// Changes in flight.
    pub proposals_max: usize,
    /// Bytes of changes in flight.
    pub proposals_bytes_max: u64,
    /// Longest time for a request that names none.
    pub request_timeout: Duration,
    /// Open HTTP connections.
    pub connections_max: usize,
    /// Longest wait for open requests at a stop.
    pub shutdown_timeout: Duration,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written; [`crate::logging::filter`] reads it.
    pub log_filter: String,
    warnings: Vec<String>,
}

/// Times `HEARTBEAT_TIMEOUT` after which a silent node counts as down. Members are asked twice a second, so that one late answer
/// does not make a node of the default's one second seem down.
const DOWN_AFTER_TIMEOUTS: u32 = 2;

impl Config {
    /// Silence after which a node counts as down.
    pub fn down_after(&self) -> Duration {
        self.heartbeat_timeout * DOWN_AFTER_TIMEOUTS
    }

    /// The configuration that `args` (program name first) and `environment` ask for, and where each value comes from.
    /// Reads the TOML file they name, and the machine's name where `{hostname}` asks for it; nothing else.
    ///
    /// # Errors
    /// See [`ConfigError`]; a help or version that was asked for is one, too: [`ConfigError::report`] tells them apart.
    ///
    /// ```
    /// use hexkv_server::config::Config;
    /// let environment = [("NODE_INDEX".into(), "2".into()), ("CLUSTER_SIZE".into(), "3".into())];
    /// let (config, _) = Config::load(["server"], environment)?;
    /// assert_eq!(config.node_name.to_string(), "hex_hub2@127.0.0.1");
    /// assert_eq!((config.port, config.raft_port), (4010, 9110));
    /// # Ok::<(), hexkv_server::config::ConfigError>(())
    /// ```
    pub fn load(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Sources), ConfigError> {
        Self::from_matches(&command().try_get_matches_from(args)?, environment)
    }

    /// As [`Config::load`], with a command line that is parsed already: by [`command`], with more added where needed.
    pub fn from_matches(
        matches: &ArgMatches,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Sources), ConfigError> {
        let layers = layers::Layers::collect(matches, environment)?;
        resolve::resolve(&layers, matches.get_flag(options::PRINT_FLAG))
    }

    /// What the user should know about this configuration: one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where HTTP listens.
    pub fn http_bind(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.port)
    }

    /// Where other nodes are listened to.
    pub fn raft_bind(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.raft_port)
    }

    /// Hosts that the configuration names: the node's own, and those of the nodes that it knows.
    pub fn own_hosts(&self) -> impl Iterator<Item = &Host> {
        let others = self.cluster_nodes.iter().map(|target| target.node.host());
        [&self.advertise, self.node_name.host()].into_iter().chain(&self.dns_hostname).chain(others)
    }

    /// `host:port` as others are told it, for a `port` that this node listens on.
    pub fn advertised(&self, port: u16) -> String {
        format!("{}:{port}", self.advertise)
    }
}
