//! Where things lie in the engine: one byte of prefix keeps keys, leases and progress apart.

use crate::StoreError;

/// Before each key of the user.
pub(super) const CURRENT: u8 = b'c';
/// Before each kept outcome.
pub(super) const DEDUPE: u8 = b'd';
/// Before each lease.
pub(super) const LEASE: u8 = b'l';
/// Before each key that is attached to a lease, once more.
pub(super) const ATTACHED: u8 = b'a';
const META: u8 = b'm';

/// Where the record of `key` lies.
pub(super) fn current(key: &[u8]) -> Vec<u8> {
    [&[CURRENT], key].concat()
}

/// Where the kept outcome of log entry `index` lies.
pub(super) fn dedupe(index: u64) -> Vec<u8> {
    [&[DEDUPE][..], &index.to_be_bytes()].concat()
}

/// Where the row `name` lies.
pub(super) fn meta(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}

/// Where lease `id` lies.
pub(super) fn lease(id: u64) -> Vec<u8> {
    [&[LEASE][..], &id.to_be_bytes()].concat()
}

/// Where it is noted that `key` is attached to lease `id`.
pub(super) fn attached(id: u64, key: &[u8]) -> Vec<u8> {
    [&[ATTACHED], &id.to_be_bytes()[..], key].concat()
}

/// The lease that a row of [`lease`] or [`attached`] is about, and the key.
pub(super) fn lease_of(row: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    match row.get(1..).and_then(|rest| rest.split_first_chunk()) {
        Some((id, key)) => Ok((u64::from_be_bytes(*id), key)),
        None => Err(StoreError::Decode { what: "lease", reason: format!("a row name of {} bytes", row.len()) }),
    }
}
