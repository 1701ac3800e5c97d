//! What the document says of limits is what the parsers take.

use hexkv_client::api::{Code, TXN_OPERATIONS_MAX};
use hexkv_store::{
    command::KEY_BYTES_MAX,
    lease::{LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN},
};

use super::*;
use crate::routes::{
    coordination::TEXT_BYTES_MAX,
    request::{CONTENT_TYPE_BYTES_MAX, LIST_LIMIT_MAX},
};

/// The limits that stand as numbers beside the fields of bodies.
#[test]
fn limits_of_bodies_are_the_constants() {
    let document: Value = serde_json::from_str(&DOCUMENT).expect("JSON");
    let schemas = &document["components"]["schemas"];
    let put = &schemas["TxnOp"]["oneOf"][0]["properties"];
    let list = &schemas["TxnOp"]["oneOf"][3]["properties"];
    for (given, expected) in [
        (&schemas["TxnRequest"]["properties"]["compare"]["maxItems"], TXN_OPERATIONS_MAX as u64),
        (&schemas["TxnRequest"]["properties"]["success"]["maxItems"], TXN_OPERATIONS_MAX as u64),
        (&put["key"]["maxLength"], KEY_BYTES_MAX as u64),
        (&put["content_type"]["maxLength"], CONTENT_TYPE_BYTES_MAX as u64),
        (&list["limit"]["maximum"], u64::from(LIST_LIMIT_MAX)),
        (&list["prefix"]["maxLength"], KEY_BYTES_MAX as u64),
        (&schemas["Compare"]["oneOf"][0]["properties"]["key"]["maxLength"], KEY_BYTES_MAX as u64),
        (&schemas["Ttl"]["oneOf"][1]["minimum"], LEASE_TTL_MS_MIN / 1000),
        (&schemas["Ttl"]["oneOf"][1]["maximum"], LEASE_TTL_MS_MAX / 1000),
        (&schemas["LockRequest"]["properties"]["owner"]["maxLength"], TEXT_BYTES_MAX as u64),
        (&schemas["CampaignRequest"]["properties"]["candidate"]["maxLength"], TEXT_BYTES_MAX as u64),
        (&schemas["RegisterRequest"]["properties"]["address"]["maxLength"], TEXT_BYTES_MAX as u64),
    ] {
        assert_eq!(given.as_u64(), Some(expected), "{given}");
    }
}

#[test]
fn every_problem_has_an_example_of_its_own_status() {
    let document: Value = serde_json::from_str(&DOCUMENT).expect("JSON");
    let mut seen = Vec::new();
    for (name, response) in document["components"]["responses"].as_object().expect("responses") {
        let examples = response["content"]["application/problem+json"]["examples"].as_object().expect(name);
        for (code, example) in examples {
            assert_eq!(example["value"]["code"], code.as_str(), "{name}");
            seen.push(serde_json::from_value::<Code>(example["value"]["code"].clone()).expect("a code"));
        }
        let retry = response["headers"]["Retry-After"].is_object();
        let busy = examples.values().all(|e| [json!(429), json!(503)].contains(&e["value"]["status"]));
        assert_eq!(retry, busy, "{name}");
    }
    // What is refused before an operation, and a bug.
    for code in [
        Code::MethodNotAllowed,
        Code::CrossSite,
        Code::MisdirectedRequest,
        Code::UnsupportedMediaType,
        Code::NotImplemented,
        Code::Internal,
    ] {
        assert!(!seen.contains(&code), "{code:?}");
    }
    assert!(seen.len() >= 21, "{}: {seen:?}", seen.len());
}
