//! What the records of the write-ahead log say, and the state that they add up to.

use openraft::{EntryPayload, LogIdOptionExt, entry::RaftEntry};
use serde::{Deserialize, Serialize};

use crate::{
    StoreError, codec,
    raft_types::{Entry, LogId, Vote},
};

/// Kinds of records, as they stand on disk.
pub(super) mod kind {
    pub const CHECKPOINT: u8 = 1;
    pub const ENTRY: u8 = 2;
    pub const VOTE: u8 = 3;
    pub const TRUNCATE: u8 = 4;
    pub const PURGE: u8 = 5;
    pub const COMMITTED: u8 = 6;
    pub const SEAL: u8 = 7;
}

/// Bytes of the log id in front of an entry's payload: a scan reads it without decoding the rest.
const LOG_ID_BYTES: usize = 24;
/// What a log entry takes besides the body of its command, for limits, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 48;
/// What one node of a membership entry takes at most, for limits, in bytes: ids and two host names.
const MEMBERSHIP_NODE_BYTES: usize = 640;

/// A decoded record; of an entry only the log id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// First record of each segment: all that earlier segments add up to.
    Checkpoint(Head),
    Entry(LogId),
    Vote(Vote),
    /// Entries after this one are gone; None = all.
    Truncate(Option<LogId>),
    Purge(LogId),
    Committed(Option<LogId>),
    /// Last record of a segment that has a successor.
    Seal,
}

/// What the records up to some point add up to, the entries' payloads aside.
///
/// Invariants: `purged <= last` by index; `committed <= last` by index when it was taken from [`Head::committed_to_record`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// The last entry, or `purged` when there is none.
    pub last: Option<LogId>,
}

impl Head {
    /// Index of the next entry; None when the log is empty and never was purged, so that any index may come first.
    pub fn expected_index(&self) -> Option<u64> {
        self.last.map(|id| id.index + 1)
    }

    pub fn truncate(&mut self, after: Option<LogId>) {
        if after.next_index() >= self.last.next_index() {
            return;
        }
        // What is purged is applied, so committed, and never truncated.
        self.last = if after.next_index() > self.purged.next_index() { after } else { self.purged };
    }

    /// Answers whether anything changed.
    pub fn purge(&mut self, upto: LogId) -> bool {
        if self.purged.next_index() > upto.index {
            return false;
        }
        self.purged = Some(upto);
        if self.last.next_index() <= upto.index + 1 {
            self.last = Some(upto);
        }
        true
    }

    /// `committed`, if it is news and its entry is among those recorded: openraft reports entries as committed
    /// that are still on their way to this node's disk.
    pub fn committed_to_record(&self, committed: Option<LogId>) -> Option<LogId> {
        committed.filter(|_| committed > self.committed && committed.next_index() <= self.last.next_index())
    }
}

impl Record {
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, StoreError> {
        Ok(match kind {
            kind::CHECKPOINT => Self::Checkpoint(codec::decode("log checkpoint", body, codec::VALUE_BYTES_MAX)?),
            kind::ENTRY => Self::Entry(entry_log_id(body)?),
            kind::VOTE => Self::Vote(codec::decode("vote", body, codec::VALUE_BYTES_MAX)?),
            kind::TRUNCATE => Self::Truncate(codec::decode("truncate record", body, codec::VALUE_BYTES_MAX)?),
            kind::PURGE => Self::Purge(codec::decode("purge record", body, codec::VALUE_BYTES_MAX)?),
            kind::COMMITTED => Self::Committed(codec::decode("committed record", body, codec::VALUE_BYTES_MAX)?),
            kind::SEAL => Self::Seal,
            unknown => {
                return Err(StoreError::Decode { what: "log record", reason: format!("unknown kind {unknown}") });
            }
        })
    }
}

pub(super) fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    out.extend_from_slice(&entry.log_id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&entry.log_id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&entry.log_id.index.to_le_bytes());
    codec::encode_into(&entry.payload, out);
}

pub(super) fn decode_entry(body: &[u8]) -> Result<Entry, StoreError> {
    let log_id = entry_log_id(body)?;
    let payload = codec::decode("log entry", &body[LOG_ID_BYTES..], codec::VALUE_BYTES_MAX)?;
    Ok(Entry::new(log_id, payload))
}

fn entry_log_id(body: &[u8]) -> Result<LogId, StoreError> {
    let Some((id, _)) = body.split_at_checked(LOG_ID_BYTES) else {
        return Err(StoreError::Decode { what: "log entry", reason: format!("{} bytes", body.len()) });
    };
    let word = |at: usize| u64::from_le_bytes(id[at..at + 8].try_into().expect("the slice has 8 bytes"));
    let leader_id = openraft::impls::leader_id_adv::LeaderId { term: word(0), node_id: word(8) };
    Ok(LogId { leader_id, index: word(16) })
}

/// About how many bytes an entry takes in memory and on disk, never less than on disk.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_OVERHEAD_BYTES
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(proposal) => proposal.size_bytes(),
            EntryPayload::Membership(membership) => {
                let voters: usize = membership.get_joint_config().iter().map(|voters| voters.len()).sum();
                (membership.nodes().count() + voters) * MEMBERSHIP_NODE_BYTES
            }
        }
}
