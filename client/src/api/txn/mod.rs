//! `POST /api/txn`: several operations, all or nothing at one revision.
//!
//! The types hold only what makes sense (a put has one value, a list has a prefix or bounds); what a body says beyond
//! that is refused while it is read, so that the node and the command line refuse the same things with the same words.

use std::fmt;
use std::marker::PhantomData;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{DeleteAnswer, Item, ListAnswer, PutAnswer, Ttl};

/// Most operations of one branch, and most comparisons.
pub const TXN_OPERATIONS_MAX: usize = 128;

/// `POST /api/txn`: when all comparisons hold, `success` is done, else `failure`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnRequest {
    /// All must hold for `success`; at most [`TXN_OPERATIONS_MAX`].
    #[serde(default, deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub compare: Vec<Compare>,
    /// Done when all comparisons hold, in order; at most [`TXN_OPERATIONS_MAX`].
    #[serde(default, deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub success: Vec<TxnOp>,
    /// Done when one does not; at most [`TXN_OPERATIONS_MAX`].
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnGet {
    /// The key.
    pub key: String,
    /// Without the value.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keys_only: bool,
}

/// Removes a key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnDelete {
    /// The key.
    pub key: String,
    /// Answer the removed record, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub prev: bool,
}

/// Which keys: `prefix`, or `start` and `end` of which either may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnRange {
    /// Keys that begin with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// First key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// First key beyond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

/// Lists keys; all of them without `prefix`, `start` and `end`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnList {
    /// Keys that begin with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// First key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// First key beyond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Items at most.
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

/// Bytes in base64.
#[derive(Debug, Clone)]
struct Base64(Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Operand::deserialize(deserializer)? {
            Operand::Bytes(bytes) => Ok(bytes),
            Operand::Number(number) => {
                Err(de::Error::invalid_type(de::Unexpected::Unsigned(number), &"a string in base64"))
            }
        }
    }
}

/// Right side of a comparison.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum Operand {
    Bytes(Base64),
    Number(u64),
}

impl<'de> Deserialize<'de> for Operand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OperandVisitor;

        impl Visitor<'_> for OperandVisitor {
            type Value = Operand;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string in base64, or a number from 0 where numbers are compared")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Operand, E> {
                Ok(Operand::Number(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Operand, E> {
                let bytes = STANDARD.decode(text).map_err(|error| {
                    E::custom(format!("\"value\" is no base64 ({error}); plain text goes into \"text\""))
                })?;
                Ok(Operand::Bytes(Base64(bytes.into())))
            }
        }

        deserializer.deserialize_any(OperandVisitor)
    }
}

/// [`TxnPut`] in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutBody {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Base64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Ttl>,
    #[serde(default, skip_serializing_if = "is_false")]
    prev: bool,
}

impl TryFrom<PutBody> for TxnPut {
    type Error = &'static str;

    fn try_from(body: PutBody) -> Result<Self, Self::Error> {
        let value = match (body.value, body.text) {
            (Some(Base64(value)), None) => value,
            (None, Some(text)) => text.into(),
            (Some(_), Some(_)) => return Err("give \"value\" (base64) or \"text\", not both"),
            (None, None) => return Err("the put has no value: give \"value\" (base64) or \"text\""),
        };
        if body.lease.is_some() && body.ttl.is_some() {
            return Err("give \"lease\" or \"ttl\", not both");
        }
        let PutBody { key, content_type, lease, ttl, prev, .. } = body;
        Ok(Self { key, value, content_type, lease, ttl, prev })
    }
}

impl From<TxnPut> for PutBody {
    fn from(put: TxnPut) -> Self {
        let value = Some(Base64(put.value));
        let TxnPut { key, content_type, lease, ttl, prev, .. } = put;
        Self { key, value, text: None, content_type, lease, ttl, prev }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TargetName {
    Value,
    Version,
    CreateRevision,
    ModRevision,
    Lease,
}

/// [`Compare`] in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompareBody {
    key: String,
    target: TargetName,
    op: CompareOp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Operand>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl TryFrom<CompareBody> for Compare {
    type Error = &'static str;

    fn try_from(body: CompareBody) -> Result<Self, Self::Error> {
        let number = |of: fn(u64) -> CompareTarget| match (&body.value, &body.text) {
            (Some(Operand::Number(number)), None) => Ok(of(*number)),
            (Some(Operand::Bytes(_)), None) => Err("with this target \"value\" is a number"),
            (_, Some(_)) => Err("\"text\" goes with the target \"value\" only"),
            (None, None) => Err("the comparison has no \"value\""),
        };
        let target = match body.target {
            TargetName::Version => number(CompareTarget::Version)?,
            TargetName::CreateRevision => number(CompareTarget::CreateRevision)?,
            TargetName::ModRevision => number(CompareTarget::ModRevision)?,
            TargetName::Lease => number(CompareTarget::Lease)?,
            TargetName::Value => CompareTarget::Value(match (body.value, body.text) {
                (Some(Operand::Bytes(Base64(bytes))), None) => bytes,
                (None, Some(text)) => text.into(),
                (Some(Operand::Number(_)), None) => {
                    return Err("with the target \"value\", \"value\" is a string in base64 (or give \"text\")");
                }
                (Some(_), Some(_)) => return Err("give \"value\" (base64) or \"text\", not both"),
                (None, None) => return Err("the comparison has no \"value\" (base64) and no \"text\""),
            }),
        };
        Ok(Self { key: body.key, target, op: body.op })
    }
}

impl From<Compare> for CompareBody {
    fn from(compare: Compare) -> Self {
        let (target, value) = match compare.target {
            CompareTarget::Value(value) => (TargetName::Value, Operand::Bytes(Base64(value))),
            CompareTarget::Version(number) => (TargetName::Version, Operand::Number(number)),
            CompareTarget::CreateRevision(number) => (TargetName::CreateRevision, Operand::Number(number)),
            CompareTarget::ModRevision(number) => (TargetName::ModRevision, Operand::Number(number)),
            CompareTarget::Lease(number) => (TargetName::Lease, Operand::Number(number)),
        };
        Self { key: compare.key, target, op: compare.op, value: Some(value), text: None }
    }
}

#[cfg(test)]
mod tests;
