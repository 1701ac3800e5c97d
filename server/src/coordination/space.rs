//! Where the records of locks, elections and the registry lie. No key of the KV API begins with [`RESERVED`], which is
//! no byte of UTF-8; ranges of the KV API end before it.

use bytes::Bytes;
use hexkv_store::{lease::LeaseKind, record::KeyRange};

use crate::error::Error;

/// First byte of every record of this module, and the byte between the parts of its key.
pub const RESERVED: u8 = 0xff;
/// Longest name of a lock, an election or a registered service, in bytes.
pub const NAME_BYTES_MAX: usize = 512;

/// What kind of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Lock,
    Election,
    Registry,
}

impl Space {
    /// The kind of the leases of such records.
    pub(super) fn lease_kind(self) -> LeaseKind {
        match self {
            Self::Lock => LeaseKind::Lock,
            Self::Election => LeaseKind::Election,
            Self::Registry => LeaseKind::Name,
        }
    }

    fn tag(self) -> &'static [u8] {
        match self {
            Self::Lock => b"lock",
            Self::Election => b"election",
            Self::Registry => b"registry",
        }
    }

    fn key(self, parts: &[&[u8]]) -> Bytes {
        let mut key = vec![RESERVED];
        key.extend_from_slice(self.tag());
        for part in parts {
            key.push(RESERVED);
            key.extend_from_slice(part);
        }
        key.into()
    }

    /// The record of `name` itself.
    pub(super) fn record(self, name: &str) -> Bytes {
        self.key(&[name.as_bytes()])
    }

    /// The place that `lease` has in the line for `name`.
    pub(super) fn place(self, name: &str, lease: u64) -> Bytes {
        self.key(&[name.as_bytes(), &lease.to_be_bytes()])
    }

    /// All places in the line for `name`.
    pub(super) fn places(self, name: &str) -> KeyRange {
        KeyRange::prefix(&self.key(&[name.as_bytes(), b""]))
    }

    /// All records.
    pub(super) fn all(self) -> KeyRange {
        KeyRange::prefix(&self.key(&[b""]))
    }

    /// The name in the key of a [`Space::record`].
    pub(super) fn name_of(self, key: &[u8]) -> Option<&str> {
        let name = key.strip_prefix(&*self.key(&[b""]))?;
        std::str::from_utf8(name).ok()
    }
}

/// The range that holds just `key`.
pub(super) fn only(key: &[u8]) -> KeyRange {
    let end = [key, &[0]].concat();
    KeyRange { start: Bytes::copy_from_slice(key), end: Some(end.into()) }
}

/// Refuses names outside the limits.
///
/// # Errors
/// 400, with the limits.
pub fn check_name(name: &str) -> Result<(), Error> {
    match name.len() {
        1..=NAME_BYTES_MAX => Ok(()),
        length => Err(Error::invalid(format!("a name has 1 to {NAME_BYTES_MAX} bytes, not {length}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_do_not_overlap() {
        let places = Space::Lock.places("a");
        assert!(places.contains(&Space::Lock.place("a", 1)));
        assert!(places.contains(&Space::Lock.place("a", u64::MAX)));
        for other in [
            Space::Lock.place("ab", 1),
            Space::Lock.place("", 1),
            Space::Election.place("a", 1),
            Space::Lock.record("a"),
        ] {
            assert!(!places.contains(&other), "{other:?}");
        }
        assert_eq!(Space::Registry.name_of(&Space::Registry.record("db/main")), Some("db/main"));
        assert!(Space::Registry.all().contains(&Space::Registry.record("x")));
    }

    #[test]
    fn names_have_limits() {
        assert!(check_name("").is_err() && check_name(&"n".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert!(check_name(&"n".repeat(NAME_BYTES_MAX)).is_ok());
    }
}
