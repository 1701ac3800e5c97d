//! `/api/leases`: keys that go when their lease ends.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A time to live: in JSON a time such as `"30s"`, or a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl(pub Duration);

impl Ttl {
    /// In milliseconds; a part of one is dropped.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// Of so many milliseconds.
    pub fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Ttl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
        let parsed = seconds.or_else(|| humantime::parse_duration(text).ok());
        parsed.map(Self).ok_or_else(|| format!("{text:?} is no time to live; write it like 30s or 1h 30m"))
    }
}

impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TtlVisitor;

        impl Visitor<'_> for TtlVisitor {
            type Value = Ttl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time to live such as \"30s\", or a whole number of seconds")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Ttl, E> {
                Ok(Ttl(Duration::from_secs(seconds)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ttl, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(TtlVisitor)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Ttl {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, SchemaType, Type};
        // Any sum of times within the limits is taken, `1h 30m` too; what is written here is always within them.
        let text = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .pattern(Some("^[1-9][0-9]{3,9}ms$|^[1-9][0-9]{0,6}s$|^[1-9][0-9]{0,4}m$|^[1-9][0-9]{0,2}h$"))
            .examples([serde_json::json!("30s")]);
        let seconds =
            ObjectBuilder::new().schema_type(SchemaType::new(Type::Integer)).minimum(Some(1)).maximum(Some(31_536_000));
        OneOfBuilder::new()
            .item(text)
            .item(seconds)
            .description(Some("A time to live of 1 s to 365 days: a text such as `30s`, or a number of seconds."))
            .into()
    }
}
#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Ttl {}

/// `POST /api/leases`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// How long the lease lives unless it is kept alive.
    pub ttl: Ttl,
}

/// Answer to a grant and to a keepalive.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// The lease; below 2^53, so that every JSON reader takes it exactly.
    pub id: u64,
    /// Its time to live, counted from when the request arrived at the leader, at the earliest.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "30s"))]
    pub ttl: Ttl,
    /// The same in milliseconds.
    pub ttl_ms: u64,
}

/// `GET /api/leases/{id}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatusAnswer {
    /// The lease.
    pub id: u64,
    /// Its time to live.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "30s"))]
    pub ttl: Ttl,
    /// The same in milliseconds.
    pub ttl_ms: u64,
    /// How long it lives unless it is kept alive, in milliseconds; 0 when it is about to end.
    pub remaining_ms: u64,
    /// When it was granted, by the leader's wall clock, in milliseconds since the Unix epoch.
    pub granted_ms: u64,
    /// Number of keys that are attached to it.
    pub key_count: u64,
    /// The first of them, those that are UTF-8.
    pub keys: Vec<String>,
    /// The first of them, those that are not UTF-8, in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys_base64: Vec<String>,
}

/// One lease in a listing.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseItem {
    /// The lease.
    pub id: u64,
    /// Its time to live.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "30s"))]
    pub ttl: Ttl,
    /// The same in milliseconds.
    pub ttl_ms: u64,
    /// When it was granted, by the leader's wall clock, in milliseconds since the Unix epoch.
    pub granted_ms: u64,
}

/// `GET /api/leases`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseListAnswer {
    /// The leases, by id.
    pub items: Vec<LeaseItem>,
    /// Items on this page.
    pub count: u64,
    /// Cursor of the next page, null on the last.
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_a_time_or_seconds() {
        let read = |json: &str| serde_json::from_str::<LeaseRequest>(json).map(|request| request.ttl.millis());
        for (json, millis) in [
            (r#"{"ttl":"30s"}"#, 30_000),
            (r#"{"ttl":"1500ms"}"#, 1_500),
            (r#"{"ttl":"30"}"#, 30_000),
            (r#"{"ttl":30}"#, 30_000),
            (r#"{"ttl":0}"#, 0),
        ] {
            assert_eq!(read(json).expect(json), millis);
        }
        for json in [
            r#"{"ttl":-1}"#,
            r#"{"ttl":"-5s"}"#,
            r#"{"ttl":1.5}"#,
            r#"{"ttl":"soon"}"#,
            r#"{"ttl":""}"#,
            r#"{"ttl":null}"#,
            r#"{"ttl":["30s"]}"#,
            r#"{"ttl":99999999999999999999999}"#,
            r#"{"ttl":"30s","id":1}"#,
            "{}",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        assert_eq!(read(r#"{"ttl":18446744073709551615}"#).expect("huge"), u64::MAX);
        assert_eq!(serde_json::to_string(&Ttl::from_millis(90_500)).expect("JSON"), r#""1m 30s 500ms""#);
    }
}
