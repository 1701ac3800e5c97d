//! JSON bodies of the HTTP API, shared by server and client.

use std::fmt;

use serde::{Deserialize, Serialize};

mod check;
mod coordination;
mod event;
mod lease;
mod problem;
mod txn;
mod watch;

pub use check::{CookieCheck, CopyCheck, DataDirCheck, LostEntriesCheck, NodeCheck, PeerCheck, PeerResult};
pub use coordination::{
    CampaignAnswer, CampaignRequest, ElectionStatus, Leader, LockAnswer, LockHolder, LockRequest, LockStatus,
    RegisterRequest, Registration, RegistryAnswer, ReleaseAnswer, RenewRequest, UnregisterAnswer,
};
pub use event::{
    EventMember, EventsEnd, LeaderEvent, MembershipEvent, NodeEvent, ReplicationFactorEvent, StateEvent, StepEvent,
};
pub use lease::{LeaseAnswer, LeaseItem, LeaseListAnswer, LeaseRequest, LeaseStatusAnswer, Ttl};
pub use problem::{Code, Problem};
pub use txn::{
    Compare, CompareOp, CompareTarget, SortOrder, TXN_BODY_BYTES_MAX, TXN_OPERATIONS_MAX, TxnAnswer, TxnDelete, TxnGet,
    TxnList, TxnOp, TxnPut, TxnRange, TxnRequest, TxnResult,
};
pub use watch::{CompactAnswer, CompactRequest, WatchChange, WatchClosed, WatchCompacted, WatchProgress};

/// Answer to a put.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAnswer {
    /// Revision of the change.
    pub revision: u64,
    /// Revision that created the key.
    pub create_revision: u64,
    /// Changes since creation.
    pub version: u64,
    /// Lease that the key is attached to now, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// The replaced record, when `prev=true` was asked for and there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Item>,
}

/// Answer to a delete.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAnswer {
    /// Revision of the change, or the store's revision when there was nothing to delete.
    pub revision: u64,
    /// Keys removed.
    pub deleted: u64,
    /// The removed record, when `prev=true` was asked for and there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Item>,
}

/// One record in JSON.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The key, when it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The value in base64; absent with `keys_only`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Revision that created the key.
    pub create_revision: u64,
    /// Revision of the last change.
    pub mod_revision: u64,
    /// Changes since creation.
    pub version: u64,
    /// Lease, when attached to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// Stored content type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// Answer to a listing.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAnswer {
    /// The records, in the order asked for.
    pub items: Vec<Item>,
    /// Items on this page; with `count_only`, keys in the range.
    pub count: u64,
    /// Cursor of the next page, null on the last.
    pub next: Option<String>,
    /// Revision that all pages show.
    pub revision: u64,
}

/// Role of a member.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes and holds the data.
    Voter,
    /// Catches up.
    Learner,
    /// Known, serves by forwarding, holds no data.
    Standby,
}

impl Role {
    /// The role of member `id`, where these vote, and these are given the data.
    pub fn of(id: u64, voters: &[u64], learners: &[u64]) -> Self {
        if voters.contains(&id) {
            Self::Voter
        } else if learners.contains(&id) {
            Self::Learner
        } else {
            Self::Standby
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Standby => "standby",
        })
    }
}

/// Whether a member answers.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It answers.
    Up,
    /// It does not.
    Down,
    /// Nobody who would know could be asked.
    Unknown,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
        })
    }
}

/// One member in a status answer.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Full name.
    pub name: String,
    /// Node id, in hexadecimal.
    pub id: String,
    /// Role.
    pub role: Role,
    /// Whether it answers.
    pub state: MemberState,
    /// `host:port` for clients.
    pub http: String,
    /// `host:port` for nodes.
    pub raft: String,
    /// Version of its binary.
    pub version: String,
    /// Since it last answered the leader, in milliseconds.
    pub last_contact_ms: Option<u64>,
    /// Highest log index on its disk, as the leader knows it.
    pub matched_index: Option<u64>,
    /// Entries it lacks.
    pub lag_entries: Option<u64>,
    /// Since it last took an entry, in milliseconds, while it lacks some; null when it lacks none.
    #[serde(default)]
    pub stalled_ms: Option<u64>,
}

/// `GET /api/cluster/status`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's id, in hexadecimal; null before there is one.
    pub cluster_id: Option<String>,
    /// Full name of the answering node.
    pub node: String,
    /// Full name of the leader; null when there is none.
    pub leader: Option<String>,
    /// Raft term.
    pub term: u64,
    /// How many voters the cluster aims at.
    pub replication_factor: u32,
    /// Whether a majority of the voters is in touch with the leader.
    pub quorum: bool,
    /// Why nothing is committed, applied or written, as the answering node or the leader finds; null while all moves.
    #[serde(default)]
    pub stalled: Option<String>,
    /// All members, by name.
    pub members: Vec<MemberStatus>,
    /// Log index known to be committed.
    pub commit_index: u64,
    /// Log index applied by the answering node.
    pub applied_index: u64,
    /// Newest revision on the answering node.
    pub revision: u64,
}

/// `GET /api/cluster/explain`: why the membership is as it is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainAnswer {
    /// What the leader sees and waits for, in sentences, the most important first.
    pub remarks: Vec<String>,
    /// What it last did about the membership, the oldest first.
    pub steps: Vec<MembershipStep>,
}

/// One step of the leader towards the membership that the cluster should have.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipStep {
    /// When it ended, by the leader's wall clock, as RFC 3339.
    pub time: String,
    /// What was to be done.
    pub step: String,
    /// Why it was not taken; null when it was.
    pub refused: Option<String>,
}

/// `GET /api/cluster/members`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersAnswer {
    /// All members, by name.
    pub members: Vec<MemberStatus>,
}

/// `POST /api/cluster/join`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// `name@host` or `name@host:raft-port` of any member of the cluster to join.
    #[cfg_attr(feature = "openapi", schema(min_length = 3, max_length = 512, example = "hex_hub1@127.0.0.1"))]
    pub node: String,
    /// Give up the data that the joining node has (it is kept aside on its disk).
    #[serde(default)]
    pub discard_local_data: bool,
}

/// `POST /api/cluster/transfer-leader`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferLeaderRequest {
    /// Full name of the voter that shall lead.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, example = "hex_hub2@127.0.0.1"))]
    pub to: String,
}

/// `PUT /api/cluster/replication-factor`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicationFactorRequest {
    /// How many voters the cluster shall aim at.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 64, example = 3))]
    pub value: u32,
}

/// `GET /api/cluster/hash`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashAnswer {
    /// Log index up to which the state is applied.
    pub applied_index: u64,
    /// Revision of the state.
    pub revision: u64,
    /// 128 bits in hexadecimal; equal on all nodes at equal `applied_index`.
    pub hash: String,
}

/// `GET /health` and `/health/ready`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthAnswer {
    /// `ok`, `degraded` or `unavailable`.
    pub status: String,
    /// Why it is not `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `GET /api/health`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// Full name of the node.
    pub node: String,
    /// `ok` or `degraded`.
    pub status: String,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// Each service of the node and its state: `raft`, `storage`, `state`, `discovery`.
    pub services: std::collections::BTreeMap<String, String>,
}
