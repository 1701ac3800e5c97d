//! Where things lie in the engine: one byte of prefix keeps keys and progress apart.

/// Before each key of the user.
pub(super) const CURRENT: u8 = b'c';
/// Before each kept outcome.
pub(super) const DEDUPE: u8 = b'd';
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
