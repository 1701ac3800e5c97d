//! The one place that turns values into bytes and back (bincode 2, standard configuration).
//!
//! bincode is positional: encoded types use no `skip_serializing_if`, `flatten` or `untagged`. Decoding is
//! limited in bytes before it allocates, and must consume all of its input. Version bytes and checksums
//! stand in the frames around: segment and snapshot headers on disk, the handshake on the wire.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::StoreError;

/// Largest encoded command: a transaction of 8 MiB with its keys and framing.
pub const COMMAND_BYTES_MAX: usize = 9 * 1024 * 1024;
/// Largest decoded value of any kind: an append of several commands, a chunk, a listing.
pub const VALUE_BYTES_MAX: usize = 32 * 1024 * 1024;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<VALUE_BYTES_MAX>,
> = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();

/// Encodes `value`.
///
/// # Panics
/// When a type cannot be encoded at all (a map of unknown length): a programming error, found by its first test.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, CONFIG)
        .expect("encoding into memory fails only for types bincode cannot express")
}

/// Appends the encoding of `value` to `out`.
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(value, out, CONFIG)
        .expect("encoding into memory fails only for types bincode cannot express");
}

/// Decodes a `T` from all of `bytes`; `what` names it in errors. At most `limit_bytes` of input.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8], limit_bytes: usize) -> Result<T, StoreError> {
    if bytes.len() > limit_bytes {
        return Err(StoreError::Decode { what, reason: format!("{} bytes, the limit is {limit_bytes}", bytes.len()) });
    }
    let (value, used) = bincode::serde::decode_from_slice::<T, _>(bytes, CONFIG)
        .map_err(|e| StoreError::Decode { what, reason: e.to_string() })?;
    if used != bytes.len() {
        return Err(StoreError::Decode { what, reason: format!("{} bytes left over", bytes.len() - used) });
    }
    Ok(value)
}

/// As [`decode`], for a `T` that refers to parts of `bytes` instead of copying them.
pub fn borrow<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
    limit_bytes: usize,
) -> Result<T, StoreError> {
    if bytes.len() > limit_bytes {
        return Err(StoreError::Decode { what, reason: format!("{} bytes, the limit is {limit_bytes}", bytes.len()) });
    }
    let (value, used) = bincode::serde::borrow_decode_from_slice::<T, _>(bytes, CONFIG)
        .map_err(|e| StoreError::Decode { what, reason: e.to_string() })?;
    if used != bytes.len() {
        return Err(StoreError::Decode { what, reason: format!("{} bytes left over", bytes.len() - used) });
    }
    Ok(value)
}

/// Decodes the `T` that `bytes` begin with, whatever follows: for versions, which stand in front of what only they explain.
pub fn decode_first<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    let decoded = bincode::serde::decode_from_slice::<T, _>(bytes, CONFIG);
    decoded.map(|(value, _)| value).map_err(|e| StoreError::Decode { what, reason: e.to_string() })
}
