//! One revision's changes, and their encoding in parts.
//!
//! A range deletion can change 100,000 keys in one revision, more bytes than [`codec`] decodes at once. So a
//! revision is stored as one or more parts of about [`PART_BYTES`], each framed and checksummed by the file
//! that holds it (a change log segment, a snapshot). A part is a fixed head of [`PART_HEAD_BYTES`] (little
//! endian: revision u64, time_ms u64, index of its first change u32, number of its changes u32, changes of the
//! whole revision u32), followed by its changes as `codec` encodes them.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::{StoreError, codec, command::VALUE_BYTES_CEILING, record::Record};

/// Parts end where they would exceed this estimate of their encoded size, in bytes.
pub(crate) const PART_BYTES: usize = 1024 * 1024;
/// Largest encoded part, in bytes: a single change of two largest values with their keys and content types.
pub(crate) const PART_BYTES_MAX: usize = 2 * VALUE_BYTES_CEILING + 2 * PART_BYTES;
/// Length of a part's head, in bytes.
pub(crate) const PART_HEAD_BYTES: usize = 28;
/// What a part takes in a file beside its changes, at most: its head, a length, a frame, padding; in bytes.
const PART_OVERHEAD_BYTES: usize = 64;
/// What a change takes beside its keys, values and content types, at most: tags, lengths, revisions; in bytes.
const CHANGE_OVERHEAD_BYTES: usize = 128;

/// All changes of one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// The revision.
    pub revision: u64,
    /// Wall clock of the leader that proposed it, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// One for each key touched.
    pub changes: Vec<Change>,
}

/// What one revision did to one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: Bytes,
    /// Its record from this revision on; None = deleted.
    pub new: Option<Record>,
    /// What it was before.
    pub old: Replaced,
}

/// What a key was before a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replaced {
    /// It had this record.
    Record(Record),
    /// It did not exist.
    Absent {
        /// Revision of the deletion that this key had before; 0 = none is known.
        deleted_at: u64,
    },
}

impl Change {
    /// Upper estimate of the encoded size, in bytes.
    fn estimated_bytes(&self) -> usize {
        let of = |r: &Record| r.value.len() + r.content_type.as_ref().map_or(0, String::len);
        let old = match &self.old {
            Replaced::Record(record) => of(record),
            Replaced::Absent { .. } => 0,
        };
        self.key.len() + self.new.as_ref().map_or(0, of) + old + CHANGE_OVERHEAD_BYTES
    }
}

impl ChangeRecord {
    /// Upper estimate of what all parts take in a file, in bytes.
    pub(crate) fn stored_bytes_max(&self) -> u64 {
        let changes = self.changes.iter().map(|c| (c.estimated_bytes() + PART_OVERHEAD_BYTES) as u64);
        PART_OVERHEAD_BYTES as u64 + changes.sum::<u64>()
    }

    /// The changes of each part, as ranges of indexes; a record without changes is one empty part.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut next = Some(0);
        std::iter::from_fn(move || {
            let start = next?;
            let mut bytes = 0;
            let mut end = start;
            while let Some(change) = self.changes.get(end) {
                bytes += change.estimated_bytes();
                if bytes > PART_BYTES && end > start {
                    break;
                }
                end += 1;
            }
            next = (end < self.changes.len()).then_some(end);
            Some(start..end)
        })
    }

    /// Appends the encoding of the part with the changes `part` to `out`.
    pub(crate) fn encode_part(&self, part: Range<usize>, out: &mut Vec<u8>) {
        let head = PartHead {
            revision: self.revision,
            time_ms: self.time_ms,
            first: index(part.start),
            count: index(part.len()),
            total: index(self.changes.len()),
        };
        let before = out.len();
        head.encode_into(out);
        codec::encode_into(&&self.changes[part], out);
        let bytes = out.len() - before;
        assert!(bytes <= PART_BYTES_MAX, "a change of revision {} has {bytes} bytes", self.revision);
    }
}

fn index(changes: usize) -> u32 {
    u32::try_from(changes).expect("a transaction touches far less than 2^32 keys")
}

/// The fixed head of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartHead {
    pub(crate) revision: u64,
    pub(crate) time_ms: u64,
    /// Index of the part's first change in the revision.
    pub(crate) first: u32,
    /// Changes of the part.
    pub(crate) count: u32,
    /// Changes of the whole revision.
    pub(crate) total: u32,
}

impl PartHead {
    /// Index after the part's last change; too large for any record when the sum overflows.
    fn end(&self) -> u32 {
        self.first.saturating_add(self.count)
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.revision);
        out.put_u64_le(self.time_ms);
        out.put_u32_le(self.first);
        out.put_u32_le(self.count);
        out.put_u32_le(self.total);
    }

    /// Splits a part into its head and its encoded changes.
    pub(crate) fn split(part: &[u8]) -> Result<(Self, &[u8]), StoreError> {
        let Some((mut head, changes)) = part.split_at_checked(PART_HEAD_BYTES) else {
            return Err(decode_error(format!("a part of {} bytes has no head", part.len())));
        };
        let head = Self {
            revision: head.get_u64_le(),
            time_ms: head.get_u64_le(),
            first: head.get_u32_le(),
            count: head.get_u32_le(),
            total: head.get_u32_le(),
        };
        Ok((head, changes))
    }
}

/// Follows the heads of a revision's parts.
///
/// Invariant: between revisions `seen` is None, else the head of a part that is not the last of its revision.
#[derive(Debug, Default)]
pub(crate) struct PartOrder {
    seen: Option<PartHead>,
}

impl PartOrder {
    /// Takes the head of the next part; whether it completes its revision.
    pub(crate) fn push(&mut self, head: PartHead) -> Result<bool, StoreError> {
        let follows = match self.seen {
            None => head.first == 0 && (head.count > 0 || head.total == 0),
            Some(seen) => {
                (seen.revision, seen.time_ms, seen.total) == (head.revision, head.time_ms, head.total)
                    && head.first == seen.end()
                    && head.count > 0
            }
        };
        if !follows || head.end() > head.total {
            return Err(decode_error(format!("{head:?} after {:?}", self.seen)));
        }
        self.seen = (head.end() < head.total).then_some(head);
        Ok(self.seen.is_none())
    }

    /// Whether parts of a revision are missing.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.seen.is_some()
    }
}

/// Puts parts together again.
///
/// Invariant: `changes` holds those of all parts that `order` has seen of an incomplete revision.
#[derive(Debug, Default)]
pub(crate) struct PartAssembler {
    order: PartOrder,
    changes: Vec<Change>,
}

impl PartAssembler {
    /// Takes the next part; the record, once it is complete.
    pub(crate) fn push(&mut self, part: &[u8]) -> Result<Option<ChangeRecord>, StoreError> {
        let (head, encoded) = PartHead::split(part)?;
        let whole = self.order.push(head)?;
        let changes: Vec<Change> = codec::decode("changes", encoded, PART_BYTES_MAX)?;
        if changes.len() != head.count as usize {
            return Err(decode_error(format!("{} changes in {head:?}", changes.len())));
        }
        if self.changes.is_empty() {
            self.changes = changes;
        } else {
            self.changes.extend(changes);
        }
        Ok(whole.then(|| ChangeRecord {
            revision: head.revision,
            time_ms: head.time_ms,
            changes: std::mem::take(&mut self.changes),
        }))
    }

    /// Whether parts of a revision are missing.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.order.is_incomplete()
    }
}

fn decode_error(reason: String) -> StoreError {
    StoreError::Decode { what: "change record", reason }
}
