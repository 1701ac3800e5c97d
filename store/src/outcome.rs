//! What a command answers. Computed by apply, the same on every node.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    member::Member,
    record::{KeyRecord, ListPage, Record},
};

/// What a command answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Entries of Raft itself: blank, membership.
    None,
    /// A transaction was carried out.
    Txn(TxnOutcome),
    /// A directory or configuration command was carried out.
    Done,
    /// Leases whose time was over ended.
    LeasesExpired {
        /// Revision of the change, or the store's revision when no key was attached.
        revision: u64,
        /// Those that ended. Of the others, some may have to be named again.
        ended: Vec<u64>,
    },
    /// Refused at apply; nothing was changed.
    Refused(Refusal),
    /// The change was sent before, under the same idempotency key: what came of it then. Nothing was changed now.
    Replayed(Box<Self>),
}

impl Outcome {
    /// The revision that it names, if it names one.
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Txn(txn) => Some(txn.revision),
            Self::LeasesExpired { revision, .. } => Some(*revision),
            Self::Replayed(first) => first.revision(),
            Self::None | Self::Done | Self::Refused(_) => None,
        }
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnOutcome {
    /// Revision of the change, or the store's revision when nothing changed.
    pub revision: u64,
    /// All comparisons held.
    pub succeeded: bool,
    /// One result for each operation of the branch taken.
    pub results: Vec<OpResult>,
}

/// What one operation of a transaction did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResult {
    /// Put: the new record's revisions, and the replaced record where asked for.
    Put {
        /// Revision that created the key.
        create_revision: u64,
        /// Changes since creation.
        version: u64,
        /// The replaced record.
        prev: Option<Record>,
    },
    /// Get.
    Get(Option<KeyRecord>),
    /// List.
    List(ListPage),
    /// Delete and DeleteRange.
    Delete {
        /// Keys removed.
        deleted: u64,
        /// The removed record, where asked for.
        prev: Option<Record>,
    },
    /// GrantLease and GrantLeaseFor.
    LeaseGranted {
        /// Its id.
        id: u64,
        /// Its time to live, in milliseconds.
        ttl_ms: u64,
    },
    /// EndLease.
    LeaseEnded {
        /// Keys removed.
        deleted: u64,
    },
}

impl OpResult {
    /// The lease that it granted.
    pub fn granted_lease(&self) -> Option<u64> {
        match self {
            Self::LeaseGranted { id, .. } => Some(*id),
            Self::Put { .. } | Self::Get(_) | Self::List(_) | Self::Delete { .. } | Self::LeaseEnded { .. } => None,
        }
    }
}

/// One of the two lists of operations of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Branch {
    /// Done when all comparisons hold.
    Success,
    /// Done when one does not.
    Failure,
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Success => "success",
            Self::Failure => "failure",
        })
    }
}

/// Why a command was refused at apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no command: a proposal of a newer version.
    #[error("the command cannot be decoded by this version: {0}")]
    Undecodable(String),
    /// An operation breaks a limit; `operation` counts from 0.
    #[error("{branch}[{operation}]: {reason}")]
    Limit {
        /// In which branch.
        branch: Branch,
        /// Which operation.
        operation: u32,
        /// Which limit, and what to do.
        reason: String,
    },
    /// An operation names a lease that does not exist; `operation` counts from 0.
    #[error("{branch}[{operation}]: there is no lease {lease}: it ended, or was never granted")]
    NoSuchLease {
        /// In which branch.
        branch: Branch,
        /// Which operation.
        operation: u32,
        /// The lease.
        lease: u64,
    },
    /// A lease has the id already.
    #[error("there is a lease {0} already")]
    LeaseTaken(u64),
    /// No room for another lease of its kind.
    #[error(
        "there are as many leases of this kind as there can be: {} in all, of which {} are kept for each other kind",
        crate::lease::LEASES_MAX,
        crate::lease::LEASES_KEPT_PER_KIND
    )]
    TooManyLeases,
    /// The leader that decided it no longer led when it came into the log.
    #[error("decided in term {decided}, the log entry is of term {entry}")]
    OtherTerm {
        /// Term of the decision.
        decided: u64,
        /// Term of the entry.
        entry: u64,
    },
    /// A live member has the name.
    #[error("the name {0} is taken by another member")]
    NameTaken(String),
    /// No such member.
    #[error("no such member")]
    NoSuchMember,
    /// The last member that stays cannot leave.
    #[error("the last member of a cluster cannot leave")]
    LastMember,
    /// The directory is full.
    #[error("the cluster has {} members, the most it can have", crate::member::MEMBERS_MAX)]
    TooManyMembers,
    /// Out of range.
    #[error("{0}")]
    InvalidArgument(String),
    /// The idempotency key was used before, for something else.
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    /// As earlier releases answered while they kept as many outcomes for retries as there may be.
    #[error("as many outcomes are kept for retries as there may be")]
    IdempotencyFull,
    /// The answer of a change with an idempotency key is too large to be kept.
    #[error("the answer has {bytes} bytes; with an idempotency key it may have {most} at most", most = crate::dedupe::DEDUPE_OUTCOME_BYTES_MAX)]
    AnswerTooLarge {
        /// Size of the encoded answer.
        bytes: u64,
    },
    /// The revision was compacted already.
    #[error("revision {0} was compacted already")]
    Compacted(u64),
    /// Kept in place of a large answer that made room for younger ones.
    #[error("the change was sent before under this idempotency key, and came to its end; its answer is no longer kept")]
    AnswerForgotten,
}

/// The member directory, as `/api/cluster/members` lists it.
pub type Members = Vec<Member>;
