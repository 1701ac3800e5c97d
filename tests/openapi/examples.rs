//! Every example request of the document is sent, and answered as the document says.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{document, operations, resolve};
use crate::harness::{Answer, Cluster, Events, Request, get, json as json_request, put, request};

/// Operations, by the parameter that an example is about, that answer something else than 200 on a node that is alone, and why.
const ANSWERED: [(&str, &str, u16); 7] = [
    ("put_key", "If-None-Match", 412),    // the key exists
    ("delete_key", "If-None-Match", 412), // the same
    ("remove_member", ANY, 404),          // the cluster has one member
    ("compact", "timeout", 410),          // the example before forgot as much
    ("compact", "Idempotency-Key", 410),  // the same
    ("leave", ANY, 409),                  // the last member cannot leave
    ("join", ANY, 400),                   // the node that is named is itself
];
/// Whatever the example is about.
const ANY: &str = "*";
/// Parameters that make sense only together with another one.
const COMPANIONS: [(&str, &str, &str); 6] = [
    ("get_key", "wait", "after"),
    ("get_key", "max_staleness", "consistency"),
    ("list_keys", "max_staleness", "consistency"),
    ("delete_range", "", "prefix"),
    ("delete_range", "timeout", "prefix"),
    ("delete_range", "Idempotency-Key", "prefix"),
];
/// Revisions that there are before the first example is sent: `Last-Event-ID: 17` is one of the past.
const REVISIONS: usize = 20;

/// What is sent for one example.
struct Sent {
    operation: String,
    /// The optional parameter that it is about; empty = none.
    about: String,
    request: Request,
}

/// A node, and what it drew for those who asked.
struct Asked<'a> {
    http: &'a str,
    document: &'a Value,
    /// Requests so far, so that each gets a name of its own.
    count: usize,
}

impl Asked<'_> {
    fn must(&self, wanted: &Request) -> Answer {
        let answer = request(self.http, wanted).expect("an answer");
        assert_eq!(answer.status, 200, "{} {}: {answer:?}", wanted.method, wanted.target);
        answer
    }

    /// What stands for the example's values, where those are the server's to draw, or may be used once.
    fn prepared(&mut self, operation: &str) -> BTreeMap<&'static str, Value> {
        self.count += 1;
        let etag = self.must(&put("/api/kv/example/key", "an example")).headers["etag"].clone();
        let lease = self.must(&json_request("POST", "/api/leases", &json!({"ttl": "1h"}))).json()["id"].clone();
        let name = format!("backup-{}", self.count);
        let mut values = BTreeMap::from([
            ("If-Match", json!(etag)),
            ("lease", lease.clone()),
            ("id", lease),
            ("Idempotency-Key", json!(format!("example-{}", self.count))),
        ]);
        let held = match operation {
            "renew_lock" | "release_lock" => Some(("locks", json!({}))),
            "renew_leadership" | "resign" => Some(("elections", json!({"candidate": "c"}))),
            _ => None,
        };
        if let Some((kind, body)) = held {
            let token = self.must(&json_request("POST", &format!("/api/{kind}/{name}"), &body)).json()["token"].clone();
            values.insert("token", token);
        }
        if matches!(operation, "find_name" | "unregister") {
            let body = json!({"owner": "host-1", "address": "a"});
            self.must(&json_request("PUT", &format!("/api/registry/{name}"), &body));
        }
        if operation != "remove_member" {
            values.insert("name", json!(name));
        }
        values
    }

    fn example(&self, parameter: &Value) -> Option<Value> {
        let schema = resolve(self.document, &parameter["schema"]);
        let first = || schema["examples"].as_array().and_then(|examples| examples.first().cloned());
        parameter.get("example").cloned().or_else(first)
    }

    /// The request of `operation` with its required parameters, those in `optional`, and `body`.
    fn build(
        &self,
        (path, method, operation): (&str, &str, &Value),
        values: &BTreeMap<&'static str, Value>,
        optional: &[&str],
        body: Option<(&str, &Value)>,
    ) -> Request {
        let (mut target, mut query) = (path.to_owned(), Vec::new());
        let mut request = Request { method: method.to_uppercase(), ..get("") };
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().expect("a name");
            if parameter["required"] != true && !optional.contains(&name) {
                continue;
            }
            let value = values.get(name).cloned().or_else(|| self.example(parameter)).expect("an example");
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match parameter["in"].as_str() {
                Some("path") => target = target.replace(&format!("{{{name}}}"), &text),
                Some("query") => query.push(format!("{name}={}", text.replace('%', "%25").replace('&', "%26"))),
                Some("header") => request = request.with(name, &text),
                other => panic!("{name} in {other:?}"),
            }
        }
        if let Some((kind, body)) = body {
            let mut body = body.clone();
            if let Some(token) = values.get("token").filter(|_| body["token"].is_string()) {
                body["token"] = token.clone();
            }
            request = request.with("Content-Type", kind);
            request.body = body.as_str().map_or_else(|| body.to_string(), str::to_owned).into_bytes();
        }
        request.target = if query.is_empty() { target } else { format!("{target}?{}", query.join("&")) };
        request
    }
}

/// All examples of a body: media type and value.
fn bodies(operation: &Value) -> Vec<(String, Value)> {
    let Some(content) = operation["requestBody"]["content"].as_object() else { return Vec::new() };
    let mut found = Vec::new();
    for (kind, media) in content {
        let named = media["examples"].as_object().into_iter().flatten().map(|(_, example)| example["value"].clone());
        found.extend(media.get("example").cloned().into_iter().chain(named).map(|value| (kind.clone(), value)));
    }
    assert!(!found.is_empty(), "a body without an example: {}", operation["operationId"]);
    found
}

fn check(document: &Value, operation: &Value, sent: &Sent, status: u16, content_type: Option<&str>) {
    let Sent { operation: id, about, request } = sent;
    let expected = ANSWERED
        .iter()
        .find(|(at, of, _)| at == id && (*of == ANY || of == about))
        .map_or(200, |(_, _, status)| *status);
    assert_eq!(status, expected, "{id} {about}: {} {}", request.method, request.target);
    let described = operation["responses"].get(status.to_string()).unwrap_or_else(|| panic!("{id} hides {status}"));
    let described = resolve(document, described)["content"].as_object();
    if let (Some(described), Some(content_type)) = (described, content_type) {
        assert!(described.contains_key(content_type) || described.contains_key("*/*"), "{id} hides {content_type}");
    }
}

#[test]
fn every_example_request_is_answered_as_the_document_says() {
    let mut cluster = Cluster::start(1);
    let (http, raft) = (cluster.node(1).http.clone(), cluster.node(1).raft.clone());
    for i in 0..REVISIONS {
        assert_eq!(request(&http, &put("/api/kv/example/key", i.to_string())).expect("an answer").status, 200);
    }
    let document = document(&http);
    let mut asked = Asked { http: &http, document: &document, count: 0 };
    for (path, method, operation) in operations(&document) {
        let id = operation["operationId"].as_str().expect("an id");
        let mut bodies = bodies(operation);
        if id == "join" {
            bodies[0].1["node"] = json!(format!("hex_hub1@{raft}"));
        }
        let body = bodies.first().map(|(kind, value)| (kind.as_str(), value));
        let further = bodies.iter().skip(1).map(|(kind, value)| (String::new(), Some((kind.as_str(), value))));
        let optional = operation["parameters"].as_array().into_iter().flatten().filter(|p| p["required"] != true);
        let optional = optional.filter(|p| asked.example(p).is_some()).map(|p| p["name"].as_str().expect("a name"));
        let abouts: Vec<_> = std::iter::once((String::new(), body))
            .chain(further)
            .chain(optional.map(|name| (name.to_owned(), body)))
            .collect();
        for (about, body) in abouts {
            let values = asked.prepared(id);
            let with: Vec<&str> = COMPANIONS
                .iter()
                .filter(|(at, of, _)| *at == id.trim_end_matches("_head") && *of == about)
                .map(|(_, _, companion)| *companion)
                .chain((!about.is_empty()).then_some(about.as_str()))
                .collect();
            let request_of = asked.build((path, method, operation), &values, &with, body);
            let sent = Sent { operation: id.to_owned(), about: about.clone(), request: request_of };
            if id == "watch" || id == "cluster_events" {
                let last = (about == "Last-Event-ID").then_some(17);
                let stream = Events::open(&http, &sent.request.target, last).expect("an answer");
                check(&document, operation, &sent, stream.status, Some(&stream.content_type));
            } else {
                let answer = request(&http, &sent.request).unwrap_or_else(|e| panic!("{id} {about}: {e}"));
                let content_type = answer.headers.get("content-type").map(String::as_str);
                check(&document, operation, &sent, answer.status, content_type);
            }
        }
    }
    assert!(asked.count >= 100, "{} requests", asked.count);
    println!("{} requests, each answered as described", asked.count);
}
