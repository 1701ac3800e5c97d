//! The state hash: the sum, modulo 2^128, of a hash of each key with its record, of each row about leases, and of each
//! kept outcome. A sum, so that it follows each change without reading the rest, and so that the order of keys does not
//! matter.

use xxhash_rust::xxh3::xxh3_128;

use crate::{codec, record::Record};

/// A checkpoint of the hash is kept at every log index that this divides.
pub const HASH_CHECKPOINT_ENTRIES: u64 = 1_000;
/// And at the first entry in each span of this length of the log's time, in milliseconds: where little is written, nodes compare
/// their states by the clock.
pub const HASH_CHECKPOINT_MS: u64 = 10_000;
/// How many checkpoints are kept.
pub const HASH_CHECKPOINTS_MAX: usize = 64;

/// A running state hash. Adding and removing a record cancel out.
#[derive(Debug, Default)]
pub(super) struct StateHash {
    sum: u128,
    scratch: Vec<u8>,
}

impl StateHash {
    pub(super) fn new(sum: u128) -> Self {
        Self { sum, scratch: Vec::new() }
    }

    pub(super) fn sum(&self) -> u128 {
        self.sum
    }

    pub(super) fn add(&mut self, key: &[u8], record: &Record) {
        self.sum = self.sum.wrapping_add(self.of(key, |out| codec::encode_into(record, out)));
    }

    pub(super) fn remove(&mut self, key: &[u8], record: &Record) {
        self.sum = self.sum.wrapping_sub(self.of(key, |out| codec::encode_into(record, out)));
    }

    /// Adds a record in its encoded form, which is the one that the engine holds.
    pub(super) fn add_encoded(&mut self, key: &[u8], record: &[u8]) {
        self.sum = self.sum.wrapping_add(self.of(key, |out| out.extend_from_slice(record)));
    }

    /// Adds a row that is no key's record.
    pub(super) fn add_row(&mut self, row: &[u8], value: &[u8]) {
        self.sum = self.sum.wrapping_add(self.of_row(row, value));
    }

    pub(super) fn remove_row(&mut self, row: &[u8], value: &[u8]) {
        self.sum = self.sum.wrapping_sub(self.of_row(row, value));
    }

    fn of_row(&mut self, row: &[u8], value: &[u8]) -> u128 {
        self.scratch.clear();
        // No key is so long, so no record hashes like a row.
        self.scratch.extend_from_slice(&u32::MAX.to_le_bytes());
        self.scratch.extend_from_slice(&(row.len() as u32).to_le_bytes());
        self.scratch.extend_from_slice(row);
        self.scratch.extend_from_slice(value);
        xxh3_128(&self.scratch)
    }

    fn of(&mut self, key: &[u8], record: impl FnOnce(&mut Vec<u8>)) -> u128 {
        self.scratch.clear();
        // The length keeps (`a`, `bc`) and (`ab`, `c`) apart.
        self.scratch.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.scratch.extend_from_slice(key);
        record(&mut self.scratch);
        xxh3_128(&self.scratch)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(value: &'static str) -> Record {
        Record {
            create_revision: 1,
            mod_revision: 2,
            version: 3,
            lease: 4,
            content_type: None,
            value: Bytes::from_static(value.as_bytes()),
        }
    }

    #[test]
    fn order_does_not_matter_and_removal_cancels() {
        let mut one = StateHash::default();
        one.add(b"a", &record("1"));
        one.add(b"b", &record("2"));
        let mut other = StateHash::default();
        other.add(b"b", &record("2"));
        other.add(b"c", &record("3"));
        other.add_encoded(b"a", &codec::encode(&record("1")));
        assert_ne!(one.sum(), other.sum());
        other.remove(b"c", &record("3"));
        assert_eq!(one.sum(), other.sum());
    }

    #[test]
    fn keys_and_records_are_kept_apart() {
        let mut one = StateHash::default();
        one.add(b"a", &record("b"));
        let mut other = StateHash::default();
        other.add(b"b", &record("a"));
        assert_ne!(one.sum(), other.sum());
    }
}
