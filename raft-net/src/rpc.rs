//! What nodes ask each other, apart from Raft's own messages.

use std::sync::Arc;

use bytes::Bytes;
use hexkv_store::{
    NodeId, Proposal,
    change_log::ChangeRecord,
    founding::{Ballot, Founder, Grant},
    lease::{Lease, LeasePage, LeaseView},
    member::Member,
    outcome::Outcome,
    record::{KeyRecord, ListPage, ListRequest},
};
use serde::{Deserialize, Serialize};

use crate::peer_text;

/// A request from one node to another. Answered by the node it is sent to: nothing is forwarded twice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Propose a command; only the leader can.
    Propose(Proposal),
    /// The index up to which a linearizable read must be applied; only the leader knows.
    ReadIndex,
    /// A linearizable read on behalf of a node that holds no data.
    Read(ReadRequest),
    /// What this node knows of its cluster. Guests may ask.
    ClusterInfo,
    /// Take a new member into the directory; only the leader can. Guests may ask.
    Admit(Member),
    /// The leader's view of each member; only the leader has one.
    MemberHealth,
    /// Hand leadership to a voter; only the leader can.
    TransferLeader(NodeId),
    /// State hash of this node.
    StateHash,
    /// What changed, on behalf of a node that holds no data; only the leader answers.
    Changes(ChangesRequest),
    /// Let a lease live for its full time to live from now; only the leader can.
    KeepAlive(u64),
    /// A lease with its first keys; only the leader knows how long it lives.
    Lease {
        /// The lease.
        id: u64,
        /// Keys at most.
        keys_max: u32,
    },
    /// Leases, on behalf of a node that holds no data.
    Leases {
        /// With ids above this.
        after: u64,
        /// At most so many.
        limit: u32,
    },
    /// As [`Self::ReadIndex`], under the leader's lease where that is long enough.
    LeaseIndex,
    /// As [`Self::Read`], under the leader's lease where that is long enough.
    LeaseRead(ReadRequest),
    /// What the reconciler sees, waits for and did; only the leader has one.
    Explain,
    /// Agree to who founds the cluster, while there is none. Guests may ask.
    Founding(FoundingRequest),
    /// As [`Self::Propose`], for a request that is followed through the logs.
    ProposeTraced {
        /// The command.
        proposal: Proposal,
        /// What it is followed by.
        trace: TraceParent,
    },
    /// Whether the leader commits, and which followers take no entries; only the leader knows.
    Progress,
    /// Why the disk of this node takes no more data, if so.
    StorageTrouble,
}

/// What a request is followed by: the parts of a W3C `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceParent {
    /// The whole way of the request.
    pub trace_id: u128,
    /// Whoever sent it; 0 = not known.
    pub parent_id: u64,
    /// It is to be recorded.
    pub sampled: bool,
}

impl PeerRequest {
    /// Whether a node that knows the cookie and is not a member of the cluster may request this: what a node needs to find a
    /// cluster, to join it, and to found one. Everything else changes state or reads data, and is for members only.
    pub fn open_to_guests(&self) -> bool {
        match self {
            Self::ClusterInfo | Self::Admit(_) | Self::Founding(_) => true,
            Self::Propose(_)
            | Self::ReadIndex
            | Self::Read(_)
            | Self::MemberHealth
            | Self::TransferLeader(_)
            | Self::StateHash
            | Self::Changes(_)
            | Self::KeepAlive(_)
            | Self::Lease { .. }
            | Self::Leases { .. }
            | Self::LeaseIndex
            | Self::LeaseRead(_)
            | Self::Explain
            | Self::ProposeTraced { .. }
            | Self::Progress
            | Self::StorageTrouble => false,
        }
    }
}

/// The answer to a [`PeerRequest`], variant for variant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum PeerResponse {
    /// To [`PeerRequest::Propose`] and [`PeerRequest::Admit`].
    Outcome(Outcome),
    /// To [`PeerRequest::ReadIndex`] and [`PeerRequest::LeaseIndex`]: a log index.
    ReadIndex(u64),
    /// To [`PeerRequest::Read`] and [`PeerRequest::LeaseRead`].
    Read(ReadResult),
    /// To [`PeerRequest::ClusterInfo`].
    ClusterInfo(ClusterInfo),
    /// To [`PeerRequest::MemberHealth`].
    MemberHealth(Vec<MemberHealth>),
    /// To [`PeerRequest::TransferLeader`]: started.
    TransferStarted,
    /// To [`PeerRequest::StateHash`].
    StateHash(StateHash),
    /// To [`PeerRequest::Changes`].
    Changes(ChangesAnswer),
    /// To [`PeerRequest::KeepAlive`].
    KeptAlive(Lease),
    /// To [`PeerRequest::Lease`].
    Lease(LeaseStatus),
    /// To [`PeerRequest::Leases`].
    Leases(LeasePage),
    /// To [`PeerRequest::Explain`].
    Explained(Explanation),
    /// Any request: refused or failed.
    Error(PeerError),
    /// To [`PeerRequest::Founding`].
    Founding(FoundingAnswer),
    /// To [`PeerRequest::ProposeTraced`].
    OutcomeAt {
        /// As [`Self::Outcome`].
        outcome: Outcome,
        /// Index of its log entry.
        index: u64,
    },
    /// To [`PeerRequest::Progress`].
    Progress(LeaderProgress),
    /// To [`PeerRequest::StorageTrouble`].
    StorageTrouble(#[serde(deserialize_with = "peer_text::decode_option")] Option<String>),
}

/// Why a peer did not answer a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PeerError {
    /// It is not the leader; it believes that `leader` is. Nothing was done.
    #[error("not the leader")]
    NotLeader {
        /// The leader it knows.
        leader: Option<NodeId>,
    },
    /// It cannot do it now; nothing was done.
    #[error("{0}")]
    Unavailable(#[serde(deserialize_with = "peer_text::decode")] String),
    /// Too much in flight; nothing was done.
    #[error("overloaded")]
    Overloaded,
    /// The change may or may not happen.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(#[serde(deserialize_with = "peer_text::decode")] String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(#[serde(deserialize_with = "peer_text::decode")] String),
    /// A read was refused by the store: compacted, in the future.
    #[error("revision {requested} is compacted; the oldest is {oldest}")]
    Compacted {
        /// Asked for.
        requested: u64,
        /// Oldest that is left.
        oldest: u64,
    },
    /// There is no such lease; nothing was done.
    #[error("there is no lease {0}")]
    NoSuchLease(u64),
    /// It does not do it, and will not soon: its disk is full. Nothing was done.
    #[error("{0}")]
    Refused(#[serde(deserialize_with = "peer_text::decode")] String),
}

/// A lease as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The lease with its first keys.
    pub view: LeaseView,
    /// How long it lives unless it is kept alive, in milliseconds; 0 when it is about to end.
    pub remaining_ms: u64,
}

/// What changed after a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesRequest {
    /// The asking node has everything up to this revision.
    pub after: u64,
    /// And so many bytes of the next record's encoding: see [`ChangesAnswer::Piece`].
    pub skip_bytes: u64,
    /// Wait so long for the next record when there is none, in milliseconds.
    pub wait_ms: u64,
}

/// The answer to a [`ChangesRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ChangesAnswer {
    /// The next records, without a gap.
    Records {
        /// Empty when there is none yet.
        records: Vec<Arc<ChangeRecord>>,
        /// Newest revision of the answering node.
        newest: u64,
    },
    /// The next record is too large for one answer.
    Piece {
        /// Length of its encoding.
        total_bytes: u64,
        /// What follows the bytes that the asking node has.
        bytes: Bytes,
    },
    /// The next record is compacted.
    Compacted {
        /// Smallest revision that can be asked for as `after`.
        oldest: u64,
        /// Newest revision of the answering node.
        newest: u64,
    },
}

/// A read of user data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ReadRequest {
    /// One key.
    Get {
        /// The key.
        key: Bytes,
        /// At this revision, 0 = the newest.
        revision: u64,
    },
    /// A range.
    List(ListRequest),
}

/// The answer to a [`ReadRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ReadResult {
    /// One key.
    Get {
        /// The record, if there is one.
        found: Option<KeyRecord>,
        /// Revision of the store at the read.
        revision: u64,
    },
    /// A range.
    List(ListPage),
}

impl ReadResult {
    /// Revision of the state that was read.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Get { revision, .. } => *revision,
            Self::List(page) => page.revision,
        }
    }
}

/// What a node knows of its cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// The answering node's id.
    pub node_id: NodeId,
    /// The answering node's full name.
    #[serde(deserialize_with = "peer_text::decode")]
    pub name: String,
    /// The cluster, once there is one.
    pub cluster_id: Option<u64>,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Raft term.
    pub term: u64,
    /// The member directory.
    #[serde(deserialize_with = "peer_text::decode_members")]
    pub members: Vec<Member>,
    /// Raft voters.
    pub voters: Vec<NodeId>,
    /// Raft learners.
    pub learners: Vec<NodeId>,
    /// How many voters the cluster aims at.
    pub replication_factor: u32,
    /// Last applied log index.
    pub applied_index: u64,
    /// Newest revision.
    pub revision: u64,
}

/// The leader's view of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHealth {
    /// The member.
    pub node_id: NodeId,
    /// Since it last answered, in milliseconds; None = never in this term of office.
    pub last_contact_ms: Option<u64>,
    /// Highest log index known to be on its disk; None for members outside the Raft membership.
    pub matched_index: Option<u64>,
}

/// How the leader's log moves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderProgress {
    /// Why nothing is committed or applied, as a sentence; None while all moves.
    #[serde(deserialize_with = "peer_text::decode_option")]
    pub stalled: Option<String>,
    /// Followers and learners that lack entries, with the time since they last took one, in milliseconds.
    pub peers_stalled_ms: Vec<(NodeId, u64)>,
}

/// What the leader's reconciler sees, waits for and did, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Sentences, the most important first.
    #[serde(deserialize_with = "peer_text::decode_list")]
    pub remarks: Vec<String>,
    /// Its last steps, the oldest first; bounded by the leader.
    pub steps: Vec<MembershipStep>,
}

/// One step of the reconciler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipStep {
    /// When it ended, by the leader's wall clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What was to be done.
    #[serde(deserialize_with = "peer_text::decode")]
    pub step: String,
    /// Why it was not taken; None = it was.
    #[serde(deserialize_with = "peer_text::decode_option")]
    pub refused: Option<String>,
}

/// State hash of a node: equal on all nodes at equal `applied_index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// Log index up to which the state is applied.
    pub applied_index: u64,
    /// Revision of the state.
    pub revision: u64,
    /// The sum of the record hashes.
    pub hash: u128,
    /// Hashes of this node at past indexes, newest first: (applied index, hash).
    pub checkpoints: Vec<(u64, u128)>,
}

/// Among which nodes a founder is picked. Only nodes with one and the same plan agree to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plan {
    /// These, by name, sorted: a majority of them decides.
    Listed(#[serde(deserialize_with = "peer_text::decode_list")] Vec<String>),
    /// Nodes with an index from 1 up to this: a majority of the indexes decides.
    Indexed(u32),
    /// Whichever they are: so many decide, each by another name.
    Anyone(u32),
}

/// A step of an attempt to become the founder of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundingRequest {
    /// The attempt.
    pub ballot: Ballot,
    /// The asking node's plan.
    pub plan: Plan,
    /// None asks for the promise to refuse lower attempts; Some asks to agree to this founder.
    pub founder: Option<Founder>,
}

/// The answer to a [`FoundingRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundingAnswer {
    /// Full name of the answering node.
    #[serde(deserialize_with = "peer_text::decode")]
    pub name: String,
    /// Its index, where it has one.
    pub index: Option<u32>,
    /// What it says.
    pub verdict: Verdict,
}

/// What a node says to an attempt to become the founder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Lower attempts will be refused; this was granted before.
    Promised(Option<Grant>),
    /// It agrees. On its disk.
    Granted,
    /// A higher attempt was promised already.
    Overtaken(Ballot),
    /// It has a cluster, or is joining one: none is to be founded.
    InCluster,
    /// It has another plan, so that the two must not count each other.
    OtherPlan(Plan),
    /// It bears the asking node's name.
    SameName,
}
