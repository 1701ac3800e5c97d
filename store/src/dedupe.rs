//! Idempotency keys: a change that is sent again is answered with what its first attempt did, and changes nothing.
//!
//! The outcomes of changes with a key are replicated state: they are in the log's order, in snapshots and in the state
//! hash. They expire by the log's clock ([`crate::clock::LogClock`]), so that every node forgets the same ones at the same entry, and none
//! because a wall clock jumped.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Longest idempotency key, in bytes; the shortest has one.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 64;
/// An outcome is kept for this time, in milliseconds of the log's clock, unless [`DEDUPE_ENTRIES_MAX`] younger ones come
/// after it before.
pub const DEDUPE_RETENTION_MS: u64 = 10 * 60 * 1000;
/// Most outcomes that are kept. One more evicts the oldest one: a change with its key that is sent again is a new change.
/// A table that refused new keys instead would let one client stop all changes with a key.
pub const DEDUPE_ENTRIES_MAX: usize = 262_144;
/// Most bytes that the kept outcomes take, each counted with [`DEDUPE_ENTRY_BYTES`] besides its key and outcome. Beyond, the
/// oldest outcomes that are larger than [`DEDUPE_SMALL_OUTCOME_BYTES`] are replaced by a note that there was one. Their keys
/// stay, so that large answers do not evict the keys of other clients, and no change is done twice because of them.
pub const DEDUPE_BYTES_MAX: u64 = 96 * 1024 * 1024;
/// What an outcome takes in memory besides its key and itself, in bytes, about.
pub const DEDUPE_ENTRY_BYTES: u64 = 192;
/// Largest encoded outcome that stays whole as long as its key, in bytes. As many keys as there may be have room for one.
pub const DEDUPE_SMALL_OUTCOME_BYTES: usize = 112;
/// Largest encoded outcome of a change with a key, in bytes: larger answers are refused, because they would be kept.
pub const DEDUPE_OUTCOME_BYTES_MAX: usize = 64 * 1024;
/// Most expired outcomes that one change removes: more than one, so the table shrinks faster than it grows, and few
/// enough for one batch of the engine.
pub const DEDUPE_EXPIRED_PER_ENTRY_MAX: usize = 64;

/// The largest entry with a small outcome, in bytes.
const SMALL_ENTRY_BYTES: u64 = (IDEMPOTENCY_KEY_BYTES_MAX + DEDUPE_SMALL_OUTCOME_BYTES) as u64 + DEDUPE_ENTRY_BYTES;
/// A full table of small outcomes has room for one of the largest: replacing large ones always makes enough room.
const _: () = assert!(
    (DEDUPE_ENTRIES_MAX as u64 - 1) * SMALL_ENTRY_BYTES
        + (IDEMPOTENCY_KEY_BYTES_MAX + DEDUPE_OUTCOME_BYTES_MAX) as u64
        + DEDUPE_ENTRY_BYTES
        <= DEDUPE_BYTES_MAX
);

/// What makes a change one that can be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The client's key, 1..=[`IDEMPOTENCY_KEY_BYTES_MAX`] bytes; apply refuses others.
    pub key: Bytes,
    /// What the request asks, as [`Fingerprint`] has it: the same key with another one is a mistake.
    pub fingerprint: u128,
}

impl Idempotency {
    /// Size in the log, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.key.len() + 24
    }
}

/// Hashes what a request asks. The parts are kept apart by their lengths. The same on every node and in every version,
/// since requests are sent again to other nodes.
#[derive(Clone, Default)]
pub struct Fingerprint(Xxh3);

impl Fingerprint {
    /// Adds a part; absent and empty parts differ.
    pub fn part(mut self, part: Option<&[u8]>) -> Self {
        match part {
            None => self.0.update(&u64::MAX.to_le_bytes()),
            Some(part) => {
                self.0.update(&(part.len() as u64).to_le_bytes());
                self.0.update(part);
            }
        }
        self
    }

    /// The hash of all parts.
    pub fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

/// The kept outcome of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupeEntry {
    /// Log index of the change.
    pub index: u64,
    /// The log's clock at the change, in milliseconds.
    pub clock_ms: u64,
    /// The client's key.
    pub key: Bytes,
    /// What was asked.
    pub fingerprint: u128,
    /// What came of it: an encoded [`crate::outcome::Outcome`].
    pub outcome: Bytes,
}

impl DedupeEntry {
    /// What it counts for against [`DEDUPE_BYTES_MAX`].
    pub fn size_bytes(&self) -> u64 {
        (self.key.len() + self.outcome.len()) as u64 + DEDUPE_ENTRY_BYTES
    }

    /// Whether its outcome may be replaced by a note before its key goes.
    pub fn is_large(&self) -> bool {
        self.outcome.len() > DEDUPE_SMALL_OUTCOME_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_fingerprint_are_kept_apart() {
        let of = |parts: &[Option<&[u8]>]| parts.iter().fold(Fingerprint::default(), |f, part| f.part(*part)).finish();
        assert_eq!(of(&[Some(b"ab"), Some(b"c")]), of(&[Some(b"ab"), Some(b"c")]));
        assert_ne!(of(&[Some(b"ab"), Some(b"c")]), of(&[Some(b"a"), Some(b"bc")]));
        assert_ne!(of(&[Some(b"")]), of(&[None]));
        assert_ne!(of(&[Some(b"a"), None]), of(&[None, Some(b"a")]));
    }

    #[test]
    fn a_fingerprint_is_the_same_in_every_version() {
        let fingerprint = Fingerprint::default().part(Some(b"PUT")).part(None).part(Some(b"value")).finish();
        assert_eq!(format!("{fingerprint:032x}"), "74c447fa5715a4a8f8cf814966d43bfa");
    }
}
