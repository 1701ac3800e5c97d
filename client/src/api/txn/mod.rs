//! `POST /api/txn`: several operations, all or nothing at one revision.
//!
//! The types hold only what makes sense (a put has one value, a list has a prefix or bounds); what a body says beyond
//! that is refused while it is read, so that the node and the command line refuse the same things with the same words.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{DeleteAnswer, Item, ListAnswer, PutAnswer, Ttl};
use body::{CompareBody, PutBody};

mod body;

/// Most operations of one branch, and most comparisons.
pub const TXN_OPERATIONS_MAX: usize = 128;

/// Largest body of a transaction, in bytes: 8 MiB of keys and values, in base64 and with room for the rest.
pub const TXN_BODY_BYTES_MAX: usize = 16 << 20;

/// `POST /api/txn`: when all comparisons hold, `success` is done, else `failure`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnRequest {
    /// All must hold for `success`; at most 128.
    #[cfg_attr(feature = "openapi", schema(max_items = 128))]
    #[serde(default, deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub compare: Vec<Compare>,
    /// Done when all comparisons hold, in order; at most 128.
    #[cfg_attr(feature = "openapi", schema(max_items = 128))]
    #[serde(default, deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub success: Vec<TxnOp>,
    /// Done when one does not; at most 128.
    #[cfg_attr(feature = "openapi", schema(max_items = 128))]
    #[serde(default, deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub failure: Vec<TxnOp>,
}

/// One comparison: what the key has (left) with an operand (right).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CompareBody", into = "CompareBody")]
pub struct Compare {
    /// The key.
    pub key: String,
    /// What of it, and with what.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
}

/// What is compared. A missing key has version, revisions and lease 0; every comparison with its value is false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// The value, bytewise.
    Value(Bytes),
    /// Changes since creation.
    Version(u64),
    /// Revision that created the key.
    CreateRevision(u64),
    /// Revision of the last change.
    ModRevision(u64),
    /// Lease.
    Lease(u64),
}

/// How two sides compare.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOp {
    /// Equal.
    #[serde(rename = "=")]
    Equal,
    /// Not equal.
    #[serde(rename = "!=")]
    NotEqual,
    /// Less.
    #[serde(rename = "<")]
    Less,
    /// Greater.
    #[serde(rename = ">")]
    Greater,
}

/// One operation; `op` in JSON says which. Later ones see what earlier ones did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum TxnOp {
    /// Writes a key. Answers a [`PutAnswer`].
    Put(TxnPut),
    /// Reads a key. Answers an [`Item`] or null.
    Get(TxnGet),
    /// Lists keys. Answers a [`ListAnswer`].
    List(TxnList),
    /// Removes a key. Answers a [`DeleteAnswer`].
    Delete(TxnDelete),
    /// Removes a range of keys. Answers a [`DeleteAnswer`].
    DeleteRange(TxnRange),
}

/// Writes a key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "PutBody", into = "PutBody")]
pub struct TxnPut {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// Stored with the value; `application/octet-stream` unless given.
    pub content_type: Option<String>,
    /// Attach the key to this lease.
    pub lease: Option<u64>,
    /// Grant a lease of this time to live, and attach the key to it; not together with `lease`.
    pub ttl: Option<Ttl>,
    /// Answer the replaced record, too.
    pub prev: bool,
}

/// Reads a key.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnGet {
    /// The key.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096, example = "example/key"))]
    pub key: String,
    /// Without the value.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keys_only: bool,
}

/// Removes a key.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnDelete {
    /// The key.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096, example = "example/key"))]
    pub key: String,
    /// Answer the removed record, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub prev: bool,
}

/// Which keys: `prefix`, or `start` and `end` of which either may be left out.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnRange {
    /// Keys that begin with it.
    #[cfg_attr(feature = "openapi", schema(max_length = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// First key.
    #[cfg_attr(feature = "openapi", schema(max_length = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// First key beyond.
    #[cfg_attr(feature = "openapi", schema(max_length = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

/// Lists keys; all of them without `prefix`, `start` and `end`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnList {
    /// Keys that begin with it.
    #[cfg_attr(feature = "openapi", schema(max_length = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// First key.
    #[cfg_attr(feature = "openapi", schema(max_length = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// First key beyond.
    #[cfg_attr(feature = "openapi", schema(max_length = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Items at most.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 10000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Without values.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keys_only: bool,
    /// Without items, only the count.
    #[serde(default, skip_serializing_if = "is_false")]
    pub count_only: bool,
    /// In which order.
    #[serde(default, skip_serializing_if = "SortOrder::is_ascending")]
    pub order: SortOrder,
}

/// Order of a listing's keys, bytewise.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SortOrder {
    /// From the first to the last.
    #[default]
    Asc,
    /// From the last to the first.
    Desc,
}

impl SortOrder {
    fn is_ascending(&self) -> bool {
        *self == Self::Asc
    }
}

/// Answer to a transaction.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnAnswer {
    /// Revision of all its changes, or the store's revision when it changed nothing.
    pub revision: u64,
    /// All comparisons held, so `success` was done.
    pub succeeded: bool,
    /// One for each operation that was done, in their order.
    pub results: Vec<TxnResult>,
}

/// What one operation answers: what its own route would. The fields tell them apart.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TxnResult {
    /// A put.
    Put(PutAnswer),
    /// A list.
    List(ListAnswer),
    /// A delete, of a key or a range.
    Delete(DeleteAnswer),
    /// A get; null when there is no such key.
    Get(Option<Item>),
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A list of at most [`TXN_OPERATIONS_MAX`], refused before the rest of it takes memory.
fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Bounded<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {TXN_OPERATIONS_MAX}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(Object(item)) = seq.next_element()? {
                if items.len() == TXN_OPERATIONS_MAX {
                    return Err(de::Error::custom(format!(
                        "more than {TXN_OPERATIONS_MAX}, the most that a transaction may have here"
                    )));
                }
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_seq(Bounded(PhantomData))
}

/// What is written as a JSON object: serde would take the fields of a struct from an array as well, by their order.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

#[cfg(feature = "openapi")]
mod schema;
#[cfg(test)]
mod tests;
