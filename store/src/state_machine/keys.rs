//! Where things lie in the engine: one byte of prefix keeps keys and progress apart.

/// Before each key of the user.
pub(super) const CURRENT: u8 = b'c';
const META: u8 = b'm';

/// Where the record of `key` lies.
pub(super) fn current(key: &[u8]) -> Vec<u8> {
    [&[CURRENT], key].concat()
}

/// Where the row `name` lies.
pub(super) fn meta(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}
