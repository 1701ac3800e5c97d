//! The OpenAPI document: valid, complete, true. Its routes are the server's, its examples are answered as it says, and what
//! schemathesis makes of it finds nothing.

mod examples;
mod fuzz;

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use crate::harness::{Cluster, Request, get, request};

/// The document as `http` serves it.
fn document(http: &str) -> Value {
    let answer = request(http, &get("/api/openapi.json")).expect("an answer");
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/json"));
    answer.json()
}

/// Every operation: path, method, description.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("a path item");
            methods.iter().map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
        })
        .collect()
}

/// What a `$ref` stands for, or the value itself.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(place) => {
            let place = place.strip_prefix('#').unwrap_or_else(|| panic!("{place} lies elsewhere"));
            document.pointer(place).unwrap_or_else(|| panic!("there is no {place}"))
        }
        None => value,
    }
}

fn check_references(document: &Value, value: &Value) {
    resolve(document, value);
    match value {
        Value::Object(fields) => fields.values().for_each(|field| check_references(document, field)),
        Value::Array(items) => items.iter().for_each(|item| check_references(document, item)),
        _ => {}
    }
}

#[test]
fn the_document_hangs_together_and_is_the_same_on_every_node() {
    let mut cluster = Cluster::start(2);
    let document_of_one = document(&cluster.node(1).http.clone());
    assert_eq!(document_of_one, document(&cluster.node(2).http.clone()));
    let document = document_of_one;
    assert!(document["openapi"].as_str().expect("a version").starts_with("3.1."), "{}", document["openapi"]);
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    check_references(&document, &document);
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no id"));
        assert!(ids.insert(id), "{id} is there twice");
        assert!(operation["summary"].as_str().is_some_and(|text| text.len() > 10), "{id}");
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let in_path: BTreeSet<&str> =
            parameters.iter().filter(|p| p["in"] == "path").map(|p| p["name"].as_str().expect("a name")).collect();
        let in_template: BTreeSet<&str> =
            path.split('{').skip(1).map(|rest| rest.split('}').next().expect("a name")).collect();
        assert_eq!(in_path, in_template, "{id}");
        for parameter in &parameters {
            assert!(parameter["description"].as_str().is_some_and(|text| text.len() > 5), "{id}: {parameter}");
        }
    }
    assert!(ids.len() >= 39, "{}: {ids:?}", ids.len());
}

#[test]
fn what_the_router_takes_is_what_the_document_lists() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let document = document(&http);
    for (path, item) in document["paths"].as_object().expect("paths") {
        let listed: BTreeSet<String> = item.as_object().expect("methods").keys().map(|m| m.to_uppercase()).collect();
        // No route takes it, so that the answer names what the route takes.
        let target = path.replace("{key}", "a/b").replace("{name}", "n").replace("{id}", "1");
        let answer = request(&http, &Request { method: "PATCH".into(), ..get(&target) }).expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (405, "method_not_allowed"), "{path}");
        let mut allowed: BTreeSet<String> = answer.headers["allow"].split(',').map(|m| m.trim().to_owned()).collect();
        // HEAD goes with every GET, and is listed where it is of use.
        if !listed.contains("HEAD") {
            allowed.remove("HEAD");
        }
        assert_eq!(allowed, listed, "{path}");
    }
    // A route beside the list that the document is made of would be none of the document's.
    let mut rooms = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src")];
    let mut listed = 0;
    while let Some(room) = rooms.pop() {
        for entry in std::fs::read_dir(room).expect("the sources are here") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                rooms.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source");
            for door in [".route(", ".route_service(", ".nest(", ".nest_service(", ".fallback_service("] {
                assert!(!text.contains(door), "{} has {door}: describe the route, and use routes!", path.display());
            }
            listed += text.matches(".routes(routes!(").count();
        }
    }
    assert_eq!(listed, document["paths"].as_object().map_or(0, |paths| paths.len()));
}
