//! Bytes of a snapshot file. All integers little endian.
//!
//! | part | bytes |
//! |---|---|
//! | header | magic 8, format version u32, kind u32, CRC-32 of these u32 |
//! | chunks, any number | payload length u32, CRC-32 u32 of (chunk number u64, length, payload), payload of at most [`CHUNK_BYTES_MAX`] |
//! | footer | [`Footer`] and [`SnapshotCounts`] as `codec` encodes them |
//! | trailer | footer offset u64, footer length u32, CRC-32 of the footer u32, content hash u128, CRC-32 of these u32, magic 8 |
//!
//! The payloads, one after the other, are a stream of items that chunk boundaries may cut anywhere: kind u8,
//! body length u32, body. The content hash is the 128-bit XXH3 of everything before the trailer; with the last
//! log id it makes the snapshot's id.

use std::fmt;

use bytes::{Buf, BufMut};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    change_log::{ChangeRecord, PART_BYTES_MAX},
    clock::LogClock,
    dedupe::DedupeEntry,
    lease::LeaseRecord,
    member::Member,
    raft_types::{LogId, SnapshotMeta},
    record::KeyRecord,
};

/// Version of the snapshot format that this binary writes.
pub const SNAPSHOT_FORMAT_VERSION: u32 = 4;
/// The oldest one that it reads: in version 3 all leases were explicit, and their items are the same.
pub const SNAPSHOT_FORMAT_VERSION_OLDEST: u32 = 3;
/// Largest payload of one chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

pub(super) const HEADER_BYTES: usize = 20;
pub(super) const CHUNK_HEAD_BYTES: usize = 8;
pub(super) const TRAILER_BYTES: usize = 44;
/// Kind and length in front of each item.
pub(super) const ITEM_HEAD_BYTES: usize = 5;
/// Largest encoded item: a part of a change record is larger than any current record.
pub(super) const ITEM_BYTES_MAX: usize = PART_BYTES_MAX;
/// Largest encoded footer, in bytes: memberships and a directory of at most 64 members.
pub(super) const FOOTER_BYTES_MAX: usize = 1024 * 1024;

const MAGIC: &[u8; 8] = b"HEXKVSNP";
const END_MAGIC: &[u8; 8] = b"HEXKVEND";
/// The only kind so far: the whole state with the kept history.
const KIND_FULL: u32 = 1;

/// Item kinds. A new one needs a new [`SNAPSHOT_FORMAT_VERSION`].
pub(super) const ITEM_KEY: u8 = 1;
pub(super) const ITEM_CHANGE_PART: u8 = 2;
pub(super) const ITEM_LEASE: u8 = 3;
pub(super) const ITEM_DEDUPE: u8 = 4;

/// One thing in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotItem {
    /// A key's record as the scan found it. All of them come before the first lease and the first change.
    Key(KeyRecord),
    /// A lease as of the footer's log id. All of them come before the first change. What is attached to it is said by the
    /// records.
    Lease(LeaseRecord),
    /// A kept change record; their revisions are consecutive.
    Change(ChangeRecord),
    /// A kept outcome; their log indexes ascend. All of them come after the last change.
    Dedupe(DedupeEntry),
}

/// What a snapshot covers, and all state that is not a key's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// Last log entry that is applied in it, and the Raft membership at that point.
    pub meta: SnapshotMeta,
    /// Revision of the state.
    pub revision: u64,
    /// Revision up to which history is forgotten; it can itself be read still.
    pub compacted_revision: u64,
    /// Revision of the state when the scan for the [`SnapshotItem::Key`] records began: changes after it are
    /// to be redone over them.
    pub scan_start_revision: u64,
    /// State hash at `revision`.
    pub state_hash: u128,
    /// The member directory.
    pub members: Vec<Member>,
    /// How many voters the cluster aims at.
    pub replication_factor: u32,
    /// The cluster, once it has an id.
    pub cluster_id: Option<u64>,
    /// Time of the last applied command, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Time as apply counts it.
    pub clock: LogClock,
}

impl Footer {
    /// Whether `changes` (first and last revision) are those that a snapshot of this state has to hold.
    pub(super) fn covers(&self, changes: Option<(u64, u64)>) -> bool {
        let (first, last) = changes.unwrap_or((self.revision + 1, self.revision));
        last == self.revision && first <= self.compacted_revision + 1 && first <= self.scan_start_revision + 1
    }
}

/// How much a snapshot holds; counted by its writer, checked by its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SnapshotCounts {
    /// [`SnapshotItem::Key`] items.
    pub keys: u64,
    /// [`SnapshotItem::Lease`] items.
    pub leases: u64,
    /// [`SnapshotItem::Change`] items.
    pub changes: u64,
    /// [`SnapshotItem::Dedupe`] items.
    pub dedupe: u64,
    /// Chunks of the file.
    pub chunks: u64,
    /// Bytes of items, framing included.
    pub item_bytes: u64,
}

/// The header of a new file.
pub(super) fn encode_header() -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put_slice(MAGIC);
    out.put_u32_le(SNAPSHOT_FORMAT_VERSION);
    out.put_u32_le(KIND_FULL);
    out.put_u32_le(crc32fast::hash(&out));
    out
}

/// What is wrong with a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// Whole, of another version.
    Version(u32),
    /// Damaged, or no snapshot at all.
    Damaged(String),
}

/// Checks a header of [`HEADER_BYTES`].
pub(super) fn check_header(header: &[u8]) -> Result<(), HeaderFault> {
    let damaged = |reason: &str| Err(HeaderFault::Damaged(reason.to_string()));
    let Some((head, mut crc)) = header.split_at_checked(HEADER_BYTES - 4) else {
        return damaged("no room for a header");
    };
    if !head.starts_with(MAGIC) {
        return damaged("it does not begin like a snapshot");
    }
    if crc32fast::hash(head) != crc.get_u32_le() {
        return damaged("checksum of the header");
    }
    let mut fields = &head[MAGIC.len()..];
    match (fields.get_u32_le(), fields.get_u32_le()) {
        (SNAPSHOT_FORMAT_VERSION_OLDEST..=SNAPSHOT_FORMAT_VERSION, KIND_FULL) => Ok(()),
        (SNAPSHOT_FORMAT_VERSION_OLDEST..=SNAPSHOT_FORMAT_VERSION, kind) => damaged(&format!("unknown kind {kind}")),
        (version, _) => Err(HeaderFault::Version(version)),
    }
}

/// Checksum of chunk `number` of the file, which begins with 0: a chunk in another's place does not fit.
pub(super) fn chunk_crc(number: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&(payload.len() as u64).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The head of chunk `number`.
pub(super) fn encode_chunk_head(number: u64, payload: &[u8]) -> [u8; CHUNK_HEAD_BYTES] {
    assert!(!payload.is_empty() && payload.len() <= CHUNK_BYTES_MAX, "a chunk of {} bytes", payload.len());
    let mut head = [0; CHUNK_HEAD_BYTES];
    let mut out = &mut head[..];
    out.put_u32_le(payload.len() as u32);
    out.put_u32_le(chunk_crc(number, payload));
    head
}

/// (payload length in bytes, checksum) of a chunk.
pub(super) fn decode_chunk_head(mut head: &[u8]) -> (usize, u32) {
    (head.get_u32_le() as usize, head.get_u32_le())
}

/// The end of a file: where its footer is, and the hash of all before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) footer_offset: u64,
    pub(super) footer_bytes: u32,
    pub(super) footer_crc: u32,
    pub(super) content_hash: u128,
}

impl Trailer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER_BYTES);
        out.put_u64_le(self.footer_offset);
        out.put_u32_le(self.footer_bytes);
        out.put_u32_le(self.footer_crc);
        out.put_u128_le(self.content_hash);
        out.put_u32_le(crc32fast::hash(&out));
        out.put_slice(END_MAGIC);
        out
    }

    /// Decodes a trailer of [`TRAILER_BYTES`]; the reason where it is damaged.
    pub(super) fn decode(trailer: &[u8]) -> Result<Self, &'static str> {
        let Some((mut fields, end)) = trailer.split_at_checked(TRAILER_BYTES - 12) else {
            return Err("no room for a trailer");
        };
        let (mut crc, magic) = end.split_at(4);
        if magic != END_MAGIC {
            return Err("it does not end like a snapshot");
        }
        if crc32fast::hash(fields) != crc.get_u32_le() {
            return Err("checksum of the trailer");
        }
        Ok(Self {
            footer_offset: fields.get_u64_le(),
            footer_bytes: fields.get_u32_le(),
            footer_crc: fields.get_u32_le(),
            content_hash: fields.get_u128_le(),
        })
    }
}

/// The content hash, fed as the bytes pass.
#[derive(Clone)]
pub(super) struct ContentHasher(Xxh3);

impl ContentHasher {
    pub(super) fn new() -> Self {
        Self(Xxh3::new())
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHasher({:032x})", self.finish())
    }
}

/// Id of the snapshot at `last` with this content. Ids of one cluster sort like their log indexes.
pub(super) fn snapshot_id(last: Option<&LogId>, content_hash: u128) -> String {
    let (index, term, node) = last.map_or((0, 0, 0), |l| (l.index, l.leader_id.term, l.leader_id.node_id));
    format!("{index:020}-{term}-{node:016x}-{content_hash:032x}")
}

/// Log index in a snapshot's id.
pub(super) fn index_of_id(id: &str) -> Option<u64> {
    id.split('-').next()?.parse().ok()
}
