//! Records that were changed last, in memory beside the engine. A change needs the record that it replaces, and
//! the engine takes longer to find it than all the rest of apply.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::page::size_bytes;
use crate::record::Record;

/// What the cached records may take, in bytes.
pub const RECORD_CACHE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What a cached key takes beside its own bytes and its record's, about, in bytes.
const PLACE_BYTES: u64 = 200;

/// The newest records of keys that the engine has too; the key that was cached first goes first.
///
/// Invariants: a key is in `order` exactly when it is in `records`, once; `bytes` is the sum over both.
#[derive(Debug, Default)]
pub(super) struct RecordCache {
    /// None = deleted.
    records: HashMap<Bytes, Option<Record>>,
    order: VecDeque<Bytes>,
    bytes: u64,
}

impl RecordCache {
    /// What is known of `key`: nothing, that it is deleted, or its record.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&Record>> {
        self.records.get(key).map(Option::as_ref)
    }

    /// Notes the newest record of `key`, None when it is deleted.
    pub(super) fn put(&mut self, key: Bytes, record: Option<Record>) {
        self.bytes += place_bytes(&key, record.as_ref());
        match self.records.get_mut(&key) {
            Some(place) => {
                self.bytes -= place_bytes(&key, place.as_ref());
                *place = record;
            }
            None => {
                self.order.push_back(key.clone());
                self.records.insert(key, record);
            }
        }
        while self.bytes > RECORD_CACHE_BYTES_MAX
            && let Some(key) = self.order.pop_front()
            && let Some(record) = self.records.remove(&key)
        {
            self.bytes -= place_bytes(&key, record.as_ref());
        }
    }
}

fn place_bytes(key: &[u8], record: Option<&Record>) -> u64 {
    PLACE_BYTES + record.map_or(key.len() as u64, |record| size_bytes(key, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(revision: u64, bytes: usize) -> Record {
        let value = vec![0; bytes].into();
        Record { create_revision: 1, mod_revision: revision, version: 1, lease: 0, content_type: None, value }
    }

    fn check(cache: &RecordCache) {
        assert_eq!(cache.order.len(), cache.records.len());
        assert!(cache.order.iter().all(|key| cache.records.contains_key(key)));
        let bytes: u64 = cache.records.iter().map(|(key, record)| place_bytes(key, record.as_ref())).sum();
        assert_eq!(cache.bytes, bytes);
        assert!(bytes <= RECORD_CACHE_BYTES_MAX);
    }

    #[test]
    fn the_last_word_on_a_key_counts() {
        let mut cache = RecordCache::default();
        assert_eq!(cache.get(b"a"), None);
        cache.put("a".into(), Some(record(1, 10)));
        cache.put("a".into(), Some(record(2, 1000)));
        assert_eq!(cache.get(b"a").unwrap().unwrap().mod_revision, 2);
        cache.put("a".into(), None);
        assert_eq!(cache.get(b"a"), Some(None));
        check(&cache);
        assert_eq!(cache.order.len(), 1);
    }

    #[test]
    fn it_is_bounded_and_forgets_what_came_first() {
        let mut cache = RecordCache::default();
        let large = RECORD_CACHE_BYTES_MAX as usize / 4;
        for key in 0..100_u8 {
            cache.put(vec![key].into(), Some(record(1, large)));
            check(&cache);
        }
        assert_eq!(cache.get(&[0]), None);
        assert!(cache.get(&[99]).is_some());
        cache.put("too large".into(), Some(record(1, 5 * large)));
        check(&cache);
        assert_eq!(cache.get(b"too large"), None);
        for key in 0..100_000_u32 {
            cache.put(key.to_be_bytes().to_vec().into(), None);
        }
        check(&cache);
    }
}
