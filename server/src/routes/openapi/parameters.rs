//! Parameters that handlers take by hand: parts of paths, and headers.

use hexkv_store::{command::KEY_BYTES_MAX, dedupe::IDEMPOTENCY_KEY_BYTES_MAX};
use serde_json::Value;
use utoipa::{
    IntoParams,
    openapi::{
        Object, Required,
        path::{Parameter, ParameterBuilder, ParameterIn},
    },
};

use super::schemas;
use crate::coordination::NAME_BYTES_MAX;

macro_rules! parameters {
    ($($name:ident: $place:ident $given:literal, $schema:expr, $example:expr, $description:expr;)+) => {
        $(
            #[doc = concat!("`", $given, "`.")]
            pub struct $name;

            impl IntoParams for $name {
                fn into_params(_place: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                    vec![parameter($given, ParameterIn::$place, $schema, $example.into(), $description)]
                }
            }
        )+
    };
}

parameters! {
    KeyInPath: Path "key", schemas::text(1, KEY_BYTES_MAX, "example/key"), "example/key",
        "The key: 1 to 4096 bytes of UTF-8, percent-encoded; `/` may stand as it is.";
    NameInPath: Path "name", schemas::text(1, NAME_BYTES_MAX, "backup"), "backup",
        "The name: 1 to 512 bytes of UTF-8, percent-encoded, `/` too.";
    MemberInPath: Path "name", schemas::text(1, KEY_BYTES_MAX, "hex_hub3@127.0.0.1"), "hex_hub3@127.0.0.1",
        "The member's full name, or the part before the `@` if only one member has it.";
    LeaseInPath: Path "id", schemas::number(1, 6_364_136_223_846_793_u64), 6_364_136_223_846_793_u64, "The lease, as its grant answered it.";
    IfMatch: Header "If-Match", schemas::form("^(\"[1-9][0-9]{0,17}\"|\\*)$", "\"17\""), "\"17\"",
        "Only when the key's last change is that revision; `*`: only when the key exists.";
    IfAbsent: Header "If-None-Match", schemas::form("^(\"[1-9][0-9]{0,17}\"|\\*)$", "*"), "*",
        "`*`: only when the key does not exist. With ETags: only when it has none of them.";
    IfUnchanged: Header "If-Match", schemas::form("^(\"[1-9][0-9]{0,17}\"(, ?\"[1-9][0-9]{0,17}\")*|\\*)$", "\"17\""), "\"17\"",
        "412 unless the key is at that revision, or one of several; `*`: any.";
    IfChanged: Header "If-None-Match", schemas::form("^(\"[1-9][0-9]{0,17}\"(, ?\"[1-9][0-9]{0,17}\")*|\\*)$", "\"17\""), "\"17\"",
        "304 when the key is at that revision, or one of several; `*`: when it exists.";
    IdempotencyKey: Header "Idempotency-Key", idempotency_key(), "6f1c2c0e-0d5f",
        "Sent again with the same key, the change is done once, and the first outcome is answered. A random UUID does.";
    LastEventId: Header "Last-Event-ID", schemas::form("^[0-9]{1,18}$", "17"), "17",
        "The id of the last event that was taken in; the stream goes on after it, whatever `from_revision` says.";
}

fn idempotency_key() -> Object {
    schemas::form(&format!("^[!-~]{{1,{IDEMPOTENCY_KEY_BYTES_MAX}}}$"), "6f1c2c0e-0d5f")
}

fn parameter(name: &str, place: ParameterIn, schema: Object, example: Value, description: &str) -> Parameter {
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .schema(Some(schema))
        .example(Some(example))
        .description(Some(description))
        .build()
}
