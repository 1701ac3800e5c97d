//! Types and limits of query parameters, as the parsers in [`super::super::request`] take them.

use hexkv_store::command::KEY_BYTES_MAX;
use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Object, ObjectBuilder, RefOr, Schema,
        schema::{SchemaFormat, SchemaType, Type},
    },
};

use super::super::{
    coordination::TEXT_BYTES_MAX,
    request::{LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX},
};
use crate::coordination::NAME_BYTES_MAX;

/// A text of at most `length_max` characters.
pub fn text(length_min: usize, length_max: usize, example: impl Into<Value>) -> Object {
    of(Type::String).min_length(Some(length_min)).max_length(Some(length_max)).examples([example.into()]).build()
}

/// A text of the form `pattern`.
pub fn form(pattern: &str, example: &str) -> Object {
    of(Type::String).pattern(Some(pattern)).examples([json!(example)]).build()
}

macro_rules! schemas {
    ($($(#[doc = $doc:literal])+ $name:ident = $schema:expr;)+) => {
        $(
            $(#[doc = $doc])+
            pub struct $name;

            impl PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    $schema.into()
                }
            }

            impl ToSchema for $name {}
        )+

        /// All of them by their names, for the document's components.
        pub fn components() -> Vec<(&'static str, Value)> {
            let described = |schema: RefOr<Schema>, about: &[&str]| {
                let mut schema = serde_json::to_value(schema).expect("a schema is plain data");
                schema["description"] = json!(about.concat().trim());
                schema
            };
            vec![$((stringify!($name), described($name::schema(), &[$($doc),+]))),+]
        }
    };
}

schemas! {
    /// A time: above 0, at most 300 s. Sums such as `1m 30s` are taken, too.
    Time = form("^[1-9][0-9]{0,4}ms$|^[1-9][0-9]?s$|^[12][0-9]{2}s$|^300s$|^[1-5]m$", "10s");
    /// A time of 100 ms to 300 s.
    Interval = form("^[1-9][0-9]{2,4}ms$|^[1-9][0-9]?s$|^[12][0-9]{2}s$|^300s$|^[1-5]m$", "10s");
    /// A revision, 0 where that stands for none.
    Revision = number(0, 1);
    /// A revision that there can be.
    FirstRevision = number(1, 1);
    /// A lease.
    LeaseId = number(1, 6_364_136_223_846_793_u64);
    /// Items on a page.
    Limit = of(Type::Integer)
        .minimum(Some(1))
        .maximum(Some(LIST_LIMIT_MAX as usize))
        .default(Some(json!(LIST_LIMIT_DEFAULT)))
        .examples([json!(100)]);
    /// Yes or no; no when left out.
    Flag = of(Type::Boolean).default(Some(json!(false))).examples([json!(true)]);
    /// A bound of a range of keys.
    Bound = text(0, KEY_BYTES_MAX, "example/");
    /// A key.
    Key = text(1, KEY_BYTES_MAX, "example/key");
    /// A name, as it was registered.
    Name = text(0, NAME_BYTES_MAX, "db-main");
    /// Who has something.
    Owner = text(0, TEXT_BYTES_MAX, "host-1");
    /// Where the next page of leases begins.
    LeaseCursor = form("^[0-9]{1,18}$", "6364136223846793");
    /// Where the next page begins.
    Cursor = of(Type::String);
    /// Which state an answer may show.
    ReadConsistency = of(Type::String)
        .enum_values(Some(["linearizable", "lease", "stale"]))
        .default(Some(json!("linearizable")))
        .examples([json!("stale")]);
    /// Order of keys, bytewise.
    ListOrder = of(Type::String)
        .enum_values(Some(["asc", "desc"]))
        .default(Some(json!("asc")))
        .examples([json!("desc")]);
    /// Whether to follow; an empty value does, too.
    Follow = of(Type::String).enum_values(Some(["", "true", "false"])).default(Some(json!("false")));
    /// What renews and gives up.
    Token = form("^[1-9][0-9]{0,18}$", "5912837465018273");
    /// Any bytes.
    Octets = of(Type::String).format(Some(SchemaFormat::Custom("binary".into())));
}

/// A number from `least` on.
pub fn number(least: u64, example: u64) -> Object {
    of(Type::Integer).minimum(Some(least as usize)).maximum(Some(u64::MAX as usize)).examples([json!(example)]).build()
}

fn of(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(kind))
}
