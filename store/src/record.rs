//! One key's value with its revisions.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The current (or a past) record of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Revision that created the key.
    pub create_revision: u64,
    /// Revision of the last change.
    pub mod_revision: u64,
    /// Changes since creation; 1 = just created.
    pub version: u64,
    /// Lease that the key is attached to, 0 = none.
    pub lease: u64,
    /// Content type given at the put.
    pub content_type: Option<String>,
    /// The value.
    pub value: Bytes,
}

/// A key with its record; `record.value` is empty where only keys were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The key.
    pub key: Bytes,
    /// Its record.
    pub record: Record,
}

/// Half-open range of keys: `start <= key < end`; `end` = None is unbounded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// First key that is no longer in the range.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        // The successor of a prefix: drop trailing 0xff bytes, add one to the last that is left.
        while end.last() == Some(&0xff) {
            end.pop();
        }
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self { start: Bytes::copy_from_slice(prefix), end: (!end.is_empty()).then(|| end.into()) }
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|e| key < &e[..])
    }
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRequest {
    /// Which keys.
    pub range: KeyRange,
    /// At most this many items.
    pub limit: u32,
    /// Read at this revision, 0 = the newest.
    pub revision: u64,
    /// Without values.
    pub keys_only: bool,
    /// Without items, only the count.
    pub count_only: bool,
    /// From the last key to the first.
    pub descending: bool,
    /// Continue after this key (before it when descending).
    pub after: Option<Bytes>,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListPage {
    /// The records, in key order.
    pub items: Vec<KeyRecord>,
    /// Number of items on this page, or of keys in the range for `count_only`.
    pub count: u64,
    /// Whether more keys follow.
    pub more: bool,
    /// Revision that the page shows.
    pub revision: u64,
}
