//! What the server-sent events of `/api/cluster/events` hold.

use serde::{Deserialize, Serialize};

use super::{MemberState, Role};

/// A member as an event shows it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventMember {
    /// Full name.
    pub name: String,
    /// Its id, 16 hex digits. A member that lost its disk comes back with another one.
    pub id: String,
    /// What it is in the cluster.
    pub role: Role,
    /// Whether the telling node hears it.
    pub state: MemberState,
}

/// `state`: the cluster as the telling node sees it; begins a stream, and comes again when the node changes clusters.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEvent {
    /// When it was seen, by the telling node's clock, RFC 3339.
    pub time: String,
    /// The node that tells.
    pub node: String,
    /// The cluster, 16 hex digits; null before there is one.
    pub cluster_id: Option<String>,
    /// The leader, null when there is none.
    pub leader: Option<String>,
    /// Raft term.
    pub term: u64,
    /// How many members are to vote.
    pub replication_factor: u32,
    /// All members, by name.
    pub members: Vec<EventMember>,
}

/// `node_down` and `node_up`: a member is heard no longer, or again.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// When it was seen.
    pub time: String,
    /// The node that tells.
    pub node: String,
    /// The member that it is about.
    pub member: String,
}

/// `leader`: another leader, another term, or no leader.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderEvent {
    /// When it was seen.
    pub time: String,
    /// The node that tells.
    pub node: String,
    /// The leader, null when there is none.
    pub leader: Option<String>,
    /// Raft term.
    pub term: u64,
}

/// `membership`: members came, went, or changed their roles.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipEvent {
    /// When it was seen.
    pub time: String,
    /// The node that tells.
    pub node: String,
    /// Names of those who came.
    pub joined: Vec<String>,
    /// Names of those who went.
    pub left: Vec<String>,
    /// Names of those whose role is another now.
    pub changed: Vec<String>,
    /// All members now, by name.
    pub members: Vec<EventMember>,
}

/// `replication_factor`: another number of members is to vote.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationFactorEvent {
    /// When it was seen.
    pub time: String,
    /// The node that tells.
    pub node: String,
    /// How many were to vote.
    pub from: u32,
    /// How many are to vote.
    pub to: u32,
}

/// `step`: the reconciler took a step, or could not. Told by the leader only.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepEvent {
    /// When it ended.
    pub time: String,
    /// The node that tells.
    pub node: String,
    /// What was to be done.
    pub step: String,
    /// Why it was not taken; absent = it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// `overflow` and `closed`: the last event of a stream.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsEnd {
    /// When it ended.
    pub time: String,
    /// The node that tells.
    pub node: String,
    /// Why, and what to do next.
    pub reason: String,
}
