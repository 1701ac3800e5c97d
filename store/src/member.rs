//! Members of the cluster: replicated state, kept by the state machine apart from Raft's own membership.

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// Members a cluster can have.
pub const MEMBERS_MAX: usize = 64;

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Full name, `hex_hub1@127.0.0.1`; unique.
    pub name: String,
    /// Random, never reused.
    pub node_id: NodeId,
    /// `host:port` where clients reach it.
    pub http: String,
    /// `host:port` where nodes reach it.
    pub raft: String,
    /// Version of its binary.
    pub version: String,
    /// It asked to leave: the reconciler moves it out of the Raft membership, then removes it here.
    pub leaving: bool,
}
