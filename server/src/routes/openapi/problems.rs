//! The problems that operations answer: each status once, with the codes that it may have.

use std::collections::BTreeMap;

use hexkv_client::api::{Code, Problem};
use serde_json::{Map, Value, json};
use utoipa::{
    IntoResponses, PartialSchema,
    openapi::{Ref, RefOr, Response},
};

use crate::error::Error;

macro_rules! problems {
    ($($name:ident: $($code:ident),+ = $description:literal;)+) => {
        $(
            #[doc = $description]
            pub struct $name;

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Response>> {
                    let status = [$(Code::$code),+][0].status();
                    [(status.to_string(), Ref::from_response_name(stringify!($name)).into())].into()
                }
            }
        )+

        /// All of them by their names, for the document's components.
        pub fn components() -> Value {
            let all = [$((stringify!($name).to_owned(), component($description, &[$(Code::$code),+]))),+];
            all.into_iter().collect::<Map<_, _>>().into()
        }
    };
}

problems! {
    Refused: InvalidArgument = "The request is invalid; nothing was changed.";
    NoSuchKey: KeyNotFound = "There is no such key.";
    NoSuchLease: LeaseNotFound = "There is no such lease: it ended, or was never granted.";
    NotThere: NotFound = "There is nothing of that name.";
    TooSlow: RequestTimeout = "The body stalled, or did not arrive in time; nothing was changed, and the connection closes.";
    Taken: LockHeld = "Another one has it and did not give it up in time; nothing is held.";
    NotHolding: NotHolder = "The token does not hold it, or no longer; nothing was changed.";
    Owned: NameTaken = "The name belongs to another owner; nothing was changed.";
    CannotJoin: HasData, NameTaken, ClusterMismatch = "The node cannot join as it is; nothing was changed.";
    LastOne: LastMember = "The last member cannot leave.";
    Forgotten: Compacted = "The revision is no longer kept.";
    ConditionFailed: PreconditionFailed = "The condition did not hold; nothing was changed. `ETag` is that of the key, where it exists.";
    TooLarge: ValueTooLarge, KeyTooLarge = "Beyond the limits; nothing was changed.";
    KeyMismatch: IdempotencyMismatch = "The idempotency key was used for another request; nothing was changed.";
    Busy: Overloaded = "Too much in flight; nothing was changed.";
    NotServing: NoLeader, NotInCluster, Stale, Unavailable = "Not now; no key was changed.";
    Unknown: OutcomeUnknown = "The change may or may not have happened. Sent again with the same `Idempotency-Key`, it tells.";
}

/// Schemas that the components refer to.
pub fn schemas() -> Vec<(&'static str, Value)> {
    let value = |schema: RefOr<utoipa::openapi::Schema>| serde_json::to_value(schema).expect("a schema is plain data");
    vec![("Problem", value(Problem::schema())), ("Code", value(Code::schema()))]
}

fn component(description: &str, codes: &[Code]) -> Value {
    let status = codes[0].status();
    assert!(codes.iter().all(|code| code.status() == status), "one status, one response: {codes:?}");
    let named = |code: &Code| {
        let problem = Error::new(*code, description).problem();
        let name = serde_json::to_value(code).expect("a code is a text");
        (name.as_str().expect("a code is a text").to_owned(), json!({"value": problem}))
    };
    let examples: Map<String, Value> = codes.iter().map(named).collect();
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    let mut response = json!({
        "description": description,
        "content": {"application/problem+json": {"schema": schema, "examples": examples}},
    });
    if status == 429 || status == 503 {
        response["headers"] = json!({
            "Retry-After": {"required": true, "schema": {"type": "integer", "minimum": 1}, "description": "seconds"},
        });
    }
    if status == 412 {
        response["headers"] = json!({
            "ETag": {"schema": {"type": "string"}, "description": "Only when the key exists: its last change"},
        });
    }
    response
}
