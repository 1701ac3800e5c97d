//! Puts and comparisons as they stand in JSON, where more can be said than makes sense.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Compare, CompareOp, CompareTarget, Ttl, TxnPut, is_false};

/// Bytes in base64.
#[derive(Debug, Clone)]
pub(super) struct Base64(Bytes);

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
pub(super) enum Operand {
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

/// Writes a key.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PutBody {
    /// The key.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096, example = "example/key"))]
    key: String,
    /// The value in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Base64>,
    /// The value as UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Stored with the value; `application/octet-stream` unless given.
    #[cfg_attr(feature = "openapi", schema(max_length = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// Attach the key to this lease.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<u64>,
    /// Grant a lease of this time to live, and attach the key to it; not together with `lease`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Ttl>,
    /// Answer the replaced record, too.
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

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TargetName {
    Value,
    Version,
    CreateRevision,
    ModRevision,
    Lease,
}

/// One comparison: what the key has (left) with an operand (right).
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CompareBody {
    /// The key.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096, example = "example/key"))]
    key: String,
    /// What of it.
    target: TargetName,
    /// How.
    op: CompareOp,
    /// What it is compared with: base64 for the value, else a number; 0 for what is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Operand>,
    /// The same as UTF-8.
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
