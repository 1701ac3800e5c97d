//! Keys and parameters in request targets.

use std::borrow::Cow;
use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::Error;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// RFC 3986 unreserved characters stay, everything else is escaped.
const PARAMETER: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A key's slashes stand as they are in the path.
const PATH: &AsciiSet = &PARAMETER.remove(b'/');

/// `/api/kv/{key}`.
///
/// # Errors
/// [`Error::Invalid`] when the key is empty or longer than [`KEY_BYTES_MAX`].
pub fn key_path(key: &str) -> Result<String, Error> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::Invalid(format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {}", key.len())));
    }
    Ok(format!("/api/kv/{}", utf8_percent_encode(key, PATH)))
}

/// The key that [`key_path`] made `path` from; `None` when it is not such a path.
pub fn key_of_path(path: &str) -> Option<Cow<'_, str>> {
    let encoded = path.strip_prefix("/api/kv/")?;
    percent_decode_str(encoded).decode_utf8().ok().filter(|key| !key.is_empty())
}

/// `name` as one path segment: slashes are escaped too.
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, PARAMETER).to_string()
}

/// A query string in the making.
#[derive(Debug, Default)]
pub struct Query(String);

impl Query {
    /// Adds `name=value`; `name` must not need escaping.
    pub fn add(&mut self, name: &str, value: &str) {
        let separator = if self.0.is_empty() { '?' } else { '&' };
        write!(self.0, "{separator}{name}={}", utf8_percent_encode(value, PARAMETER)).expect("a String takes all");
    }

    /// `path`, followed by the query unless that is empty.
    pub fn append_to(self, path: &str) -> String {
        format!("{path}{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slashes_stay_in_keys_and_go_in_segments() {
        assert_eq!(key_path("a/b c?d#e%").unwrap(), "/api/kv/a/b%20c%3Fd%23e%25");
        assert_eq!(key_path("ключ").unwrap(), "/api/kv/%D0%BA%D0%BB%D1%8E%D1%87");
        assert_eq!(segment("hex_hub1@127.0.0.1/x"), "hex_hub1%40127.0.0.1%2Fx");
    }

    #[test]
    fn keys_outside_the_limits_never_leave() {
        assert!(matches!(key_path(""), Err(Error::Invalid(_))));
        assert!(key_path(&"k".repeat(KEY_BYTES_MAX)).is_ok());
        assert!(matches!(key_path(&"k".repeat(KEY_BYTES_MAX + 1)), Err(Error::Invalid(_))));
    }

    #[test]
    fn a_query_is_escaped_and_joined() {
        let mut query = Query::default();
        query.add("prefix", "a&b=c+d");
        query.add("limit", "10");
        assert_eq!(query.append_to("/api/kv"), "/api/kv?prefix=a%26b%3Dc%2Bd&limit=10");
        assert_eq!(Query::default().append_to("/api/kv"), "/api/kv");
    }

    proptest! {
        #[test]
        fn every_key_survives_its_path(key in "\\PC{1,64}|[\\x00-\\x7f]{1,64}") {
            let path = key_path(&key).unwrap();
            prop_assert!(path.parse::<http::Uri>().is_ok());
            prop_assert!(path.bytes().all(|byte| byte.is_ascii_graphic()));
            let back = key_of_path(&path).unwrap();
            prop_assert_eq!(back.as_ref(), key.as_str());
        }
    }
}
