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
    /// Refused at apply; nothing was changed.
    Refused(Refusal),
    /// The change was sent before, under the same idempotency key: what came of it then. Nothing was changed now.
    Replayed(Box<Self>),
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
    /// So many outcomes are kept for retries that one more would push out a promised one.
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
}

/// The member directory, as `/api/cluster/members` lists it.
pub type Members = Vec<Member>;
