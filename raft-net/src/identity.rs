//! Who speaks, and what about.

use std::fmt;

use hexkv_store::NodeId;
use serde::{Deserialize, Serialize};

/// Longest name of a node, in bytes: 64 before the `@`, a DNS name behind it.
pub const NODE_NAME_BYTES_MAX: usize = 64 + 1 + 253;

/// Who this node is. Changes when it joins or leaves a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalIdentity {
    /// The cluster, once there is one.
    pub cluster_id: Option<u64>,
    /// Random, never reused.
    pub node_id: NodeId,
    /// Counts the starts of this node.
    pub incarnation: u64,
    /// Full name, `hex_hub1@127.0.0.1`.
    pub name: String,
    /// Random, drawn at each start of the process: two processes that use copies of one data directory differ in it.
    pub process: u64,
}

/// Who the other side of a connection is, as it said and proved with the cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its cluster, once there is one.
    pub cluster_id: Option<u64>,
    /// Its node id.
    pub node_id: NodeId,
    /// Counts its starts.
    pub incarnation: u64,
    /// Its full name.
    pub name: String,
    /// The number of its process, see [`LocalIdentity::process`]; None = not known.
    pub process: Option<u64>,
    /// It speaks as a guest: knows the cookie, but does not claim to be a member.
    pub guest: bool,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:016x})", self.name, self.node_id)
    }
}

/// What a connection is for. Each purpose has its own connection, so that bulk never delays what is urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// Log replication.
    Raft,
    /// Heartbeats, votes, leadership transfer; and small questions, which keep it open.
    Urgent,
    /// Snapshot transfer.
    Snapshot,
    /// [`crate::rpc::PeerRequest`]s between members.
    Peer,
    /// Those [`crate::rpc::PeerRequest`]s that are open to everyone who knows the cookie.
    Guest,
}
