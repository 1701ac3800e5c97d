//! Every change of replicated state. Apply is a pure function of (state, command, leader's time).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    NodeId,
    lease::LeaseKind,
    member::Member,
    record::{KeyRange, ListRequest},
};

/// Shortest and longest key, in bytes.
pub const KEY_BYTES_MIN: usize = 1;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;
/// Largest value that can be configured, in bytes.
pub const VALUE_BYTES_CEILING: usize = 8 * 1024 * 1024;
/// Default limit of a value, in bytes.
pub const VALUE_BYTES_DEFAULT: usize = 1536 * 1024;
/// Most operations of one branch of a transaction; it may grant as many leases beside them.
pub const TXN_OPERATIONS_MAX: usize = 128;
/// Largest transaction, in bytes of keys and values.
pub const TXN_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most keys that one range deletion may remove: they go in one revision, so in one batch.
pub const RANGE_DELETE_KEYS_MAX: u64 = 100_000;
/// Most bytes of replaced values in one transaction, for the same reason.
pub const REPLACED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Most keys that one transaction may read, those that it counts, lists or removes included: apply does nothing else
/// meanwhile, on every node.
pub const TXN_READ_KEYS_MAX: u64 = 200_000;
/// Most bytes of the records that it reads, for the same reason; keys and values.
pub const TXN_READ_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A change of replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A change of user data.
    Txn(Txn),
    /// Adds a member, or updates the addresses and version of the one with the same node id.
    /// `replaces` names the node id of an earlier self under the same name that is gone for good.
    PutMember {
        /// The member.
        member: Member,
        /// Node id of the member that it replaces.
        replaces: Option<NodeId>,
    },
    /// Marks a member as leaving. Refused for the last one that stays.
    LeaveMember(NodeId),
    /// Takes a member out of the directory, once it is out of the Raft membership.
    RemoveMember(NodeId),
    /// How many voters the reconciler aims at, 1..=[`crate::member::MEMBERS_MAX`].
    SetReplicationFactor(u32),
    /// Sets the cluster's id; only the first one counts.
    SetClusterId(u64),
    /// Forgets history below a revision.
    Compact(u64),
    /// Ends leases whose time is over, with all their keys, in one revision; those that are gone already are passed over.
    /// When the keys of all do not fit one revision only the first of them end, and the outcome says which.
    ExpireLeases {
        /// The leases, [`EXPIRE_LEASES_MAX`](crate::lease::EXPIRE_LEASES_MAX) at most.
        ids: Vec<u64>,
        /// Term in which the leader decided it. Refused when the log entry is of another one.
        term: u64,
    },
}

/// Compare, then or else: all or nothing, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Txn {
    /// All must hold for `success`, else `failure`.
    pub compare: Vec<Compare>,
    /// Done when all comparisons hold.
    pub success: Vec<TxnOp>,
    /// Done when one does not.
    pub failure: Vec<TxnOp>,
}

/// One comparison. A missing key has version, revisions and lease 0, and no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What to compare with what.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
}

/// The attribute of a record that is compared, and the operand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// The value; every comparison with a missing key's value is false.
    Value(Bytes),
    /// The version.
    Version(u64),
    /// The create revision.
    CreateRevision(u64),
    /// The mod revision.
    ModRevision(u64),
    /// The lease.
    Lease(u64),
}

/// How the record's attribute (left) compares with the operand (right).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `>`
    Greater,
}

/// One operation of a transaction. Later operations see what earlier ones did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOp {
    /// Writes a record.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Content type to store.
        content_type: Option<String>,
        /// Lease to attach to, 0 = none; detaches the key from the one that it had.
        lease: u64,
        /// Answer the replaced record.
        prev: bool,
    },
    /// Reads a record.
    Get {
        /// The key.
        key: Bytes,
        /// Without the value.
        keys_only: bool,
    },
    /// Lists records.
    List(ListRequest),
    /// Deletes a key.
    Delete {
        /// The key.
        key: Bytes,
        /// Answer the deleted record.
        prev: bool,
    },
    /// Deletes a range.
    DeleteRange(KeyRange),
    /// Grants a lease, to which later operations can attach keys. By itself it uses no revision.
    GrantLease {
        /// Its id, 1..=[`LEASE_ID_MAX`](crate::lease::LEASE_ID_MAX); refused where it is taken.
        id: u64,
        /// Its time to live, in milliseconds.
        ttl_ms: u64,
    },
    /// Ends a lease, and deletes all keys that are attached to it.
    EndLease {
        /// The lease; refused where there is none.
        id: u64,
    },
    /// As `GrantLease`, which grants explicit leases, for another purpose.
    GrantLeaseFor {
        /// Its id.
        id: u64,
        /// Its time to live, in milliseconds.
        ttl_ms: u64,
        /// What it is for.
        kind: LeaseKind,
    },
}

impl TxnOp {
    /// The id of the lease that it grants.
    pub fn grants(&self) -> Option<u64> {
        match self {
            Self::GrantLease { id, .. } | Self::GrantLeaseFor { id, .. } => Some(*id),
            Self::Put { .. }
            | Self::Get { .. }
            | Self::List(_)
            | Self::Delete { .. }
            | Self::DeleteRange(_)
            | Self::EndLease { .. } => None,
        }
    }
}

impl Txn {
    /// A transaction without comparisons.
    pub fn unconditional(op: TxnOp) -> Self {
        Self { compare: Vec::new(), success: vec![op], failure: Vec::new() }
    }
}
