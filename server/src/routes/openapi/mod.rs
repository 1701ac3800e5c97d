//! `GET /api/openapi.json`: what the API takes and answers, as an OpenAPI 3.1 document.
//!
//! | part | what |
//! |---|---|
//! | [`super::routes`] | each route with its handler's description: the one cannot be without the other |
//! | [`schemas`] | types and limits of query parameters |
//! | [`parameters`] | parts of paths, and headers |
//! | [`problems`] | what is answered instead of what was asked for |
//! | `description.md` | what holds for all routes |
//!
//! The schemas of bodies are derived from the types that are read and written.

use std::sync::LazyLock;

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use hexkv_client::api::{
    EventMember, EventsEnd, LeaderEvent, MemberState, MembershipEvent, NodeEvent, ReplicationFactorEvent, StateEvent,
    StepEvent, WatchChange, WatchClosed, WatchCompacted, WatchProgress,
};
use serde_json::{Map, Value, json};
use utoipa::{
    PartialSchema,
    openapi::{OpenApi, RefOr, Schema},
};

pub mod parameters;
pub mod problems;
pub mod schemas;

/// Tags, in the order of the document, with what their operations are about.
const TAGS: [(&str, &str); 9] = [
    ("kv", "Keys and values"),
    ("txn", "Several operations, all or nothing at one revision"),
    ("watch", "Changes as they happen, and the history they are told from"),
    ("leases", "Keys that go when their lease ends"),
    ("locks", "One holder at a time, first come first served"),
    ("elections", "One leader among candidates"),
    ("registry", "Unique names, each with an owner and an address"),
    ("cluster", "Members, leader, and how far each has come"),
    ("health", "For people and orchestrators"),
];

/// The document, the same on every node of this version.
pub static DOCUMENT: LazyLock<String> = LazyLock::new(|| finished(&super::routes().into_openapi()).to_string());

/// Describes this API.
///
/// This document. It is the same on every node of one version.
#[utoipa::path(get, path = "/api/openapi.json", operation_id = "describe_api", tag = "health",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = Object)))]
pub async fn describe() -> Response<Body> {
    let mut response = Response::new(Body::from(DOCUMENT.as_str()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Adds to what the handlers say what holds for all of them, and what types cannot say.
fn finished(collected: &OpenApi) -> Value {
    let mut document = serde_json::to_value(collected).expect("an OpenAPI document is plain data");
    document["info"] = json!({
        "title": "hexkv",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "A replicated key-value store",
        "description": include_str!("description.md"),
        "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
    });
    document["servers"] = json!([{"url": "/", "description": "the node that served this document; any other does"}]);
    document["tags"] = TAGS.iter().map(|(name, about)| json!({"name": name, "description": about})).collect();
    document["components"]["responses"] = problems::components();
    // What no handler's body names.
    for (name, schema) in [problems::schemas(), schemas::components(), events()].concat() {
        document["components"]["schemas"][name] = schema;
    }
    let paths = std::mem::take(object(&mut document["paths"]));
    for (path, mut item) in paths {
        for operation in object(&mut item).values_mut() {
            complete(operation);
        }
        if path.contains("{*") {
            let head = without_content(&item["get"]);
            item["head"] = head;
        }
        // A part of a path that may have slashes in it is only a part of a path to OpenAPI.
        object(&mut document["paths"]).insert(path.replace("{*", "{"), item);
    }
    tidy(&mut document);
    document
}

/// The data of server-sent events.
fn events() -> Vec<(&'static str, Value)> {
    let value = |schema| serde_json::to_value::<RefOr<Schema>>(schema).expect("a schema is plain data");
    vec![
        ("WatchChange", value(WatchChange::schema())),
        ("WatchProgress", value(WatchProgress::schema())),
        ("WatchCompacted", value(WatchCompacted::schema())),
        ("WatchClosed", value(WatchClosed::schema())),
        ("EventMember", value(EventMember::schema())),
        ("MemberState", value(MemberState::schema())),
        ("StateEvent", value(StateEvent::schema())),
        ("NodeEvent", value(NodeEvent::schema())),
        ("LeaderEvent", value(LeaderEvent::schema())),
        ("MembershipEvent", value(MembershipEvent::schema())),
        ("ReplicationFactorEvent", value(ReplicationFactorEvent::schema())),
        ("StepEvent", value(StepEvent::schema())),
        ("EventsEnd", value(EventsEnd::schema())),
    ]
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("an object by the definition of OpenAPI")
}

/// What any operation can answer: the limit of connections comes before the route. What takes an idempotency key may answer
/// what an earlier attempt did.
fn complete(operation: &mut Value) {
    let mut taken = operation["parameters"].as_array().into_iter().flatten();
    if taken.any(|parameter| parameter["name"] == "Idempotency-Key") {
        operation["responses"]["200"]["headers"]["Idempotent-Replay"] =
            json!({"schema": {"type": "string"}, "description": "Only `true`, where an earlier attempt did it"});
    }
    let responses = object(&mut operation["responses"]);
    responses.entry("429").or_insert_with(|| json!({"$ref": "#/components/responses/Busy"}));
    for response in responses.values_mut().filter_map(Value::as_object_mut) {
        if let Some(headers) = response.get_mut("headers") {
            for header in object(headers).values_mut() {
                let optional = header["description"].as_str().is_some_and(|text| text.starts_with("Only "));
                header["required"] = json!(!optional);
            }
        }
    }
}

/// A GET as HEAD answers it.
fn without_content(get: &Value) -> Value {
    let mut head = get.clone();
    head["operationId"] = json!(format!("{}_head", get["operationId"].as_str().unwrap_or_default()));
    head["summary"] = json!(format!("{} Headers only.", get["summary"].as_str().unwrap_or_default()));
    for response in object(&mut head["responses"]).values_mut() {
        let described = response.get("description").cloned().unwrap_or_else(|| json!("As GET, without the body"));
        let headers = response.get("headers").cloned();
        *response = json!({"description": described});
        if let Some(headers) = headers {
            response["headers"] = headers;
        }
    }
    head
}

/// Drops what the derivation says too much: links of rustdoc in texts.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in ["description", "summary"] {
                if let Some(Value::String(text)) = fields.get_mut(name) {
                    *text = text.replace("[`", "`").replace("`]", "`");
                }
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests;
