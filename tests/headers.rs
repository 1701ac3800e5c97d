//! What request headers do: each cell of the table in docs/api.md is sent, and what it refuses changes nothing.

use crate::harness::{Answer, Cluster, Node, get, put, request};
use crate::raw_http::{self, RawRequest};

const API: &str = include_str!("../docs/api.md");
/// The tag of a key's revision in the table.
const REVISION: char = 'R';

/// A row of the table: a header and the status in each column.
struct Row {
    name: String,
    value: String,
    statuses: Vec<u16>,
}

fn rows() -> Vec<Row> {
    let table =
        API.lines().skip_while(|line| !line.starts_with("| request header |")).take_while(|line| line.starts_with('|'));
    table
        .skip(2)
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let (name, value) = cells[0].trim_matches('`').split_once(": ").expect("a header with its value");
            let statuses = cells[1..8].iter().map(|cell| cell.parse().unwrap_or_else(|_| panic!("{cell:?} in {line}")));
            Row { name: name.into(), value: value.into(), statuses: statuses.collect() }
        })
        .collect()
}

/// A column of the table: the requests that stand for it.
struct Column {
    title: &'static str,
    requests: &'static [(&'static str, &'static str, &'static str)],
}

/// In the order of the table. `KEY` stands for a key of the cell's own, `K/` for the prefix that only it has.
const COLUMNS: [Column; 7] = [
    Column { title: "GET, HEAD key", requests: &[("GET", "/api/kv/KEY", ""), ("HEAD", "/api/kv/KEY", "")] },
    Column { title: "PUT key", requests: &[("PUT", "/api/kv/KEY", "new")] },
    Column { title: "DELETE key", requests: &[("DELETE", "/api/kv/KEY", "")] },
    Column { title: "DELETE range", requests: &[("DELETE", "/api/kv?prefix=KEY", "")] },
    Column {
        title: "POST /api/txn",
        requests: &[("POST", "/api/txn", r#"{"success":[{"op":"put","key":"KEY","text":"new"}]}"#)],
    },
    Column {
        title: "other GET",
        requests: &[("GET", "/api/kv?prefix=KEY", ""), ("GET", "/api/cluster/status", ""), ("HEAD", "/api/leases", "")],
    },
    Column {
        title: "other POST",
        requests: &[("POST", "/api/leases", r#"{"ttl":"30s"}"#), ("POST", "/api/locks/KEY", r#"{"ttl":"30s"}"#)],
    },
];

/// The request of a cell. Header names that a request always has are replaced by the row's.
fn cell_request(method: &str, target: &str, body: &str, row: &Row, revision: u64) -> RawRequest {
    let has_tags = ["If-Match", "If-None-Match", "If-Range"].contains(&row.name.as_str());
    let value = if has_tags { row.value.replace(REVISION, &revision.to_string()) } else { row.value.clone() };
    let mut request = RawRequest::new(method, target, body);
    if method == "POST" {
        request.set("Content-Type", "application/json");
    }
    request.set(&row.name, &value);
    request
}

/// The value and revision of `key` as it is now.
fn state(node: &Node, key: &str) -> (String, u64) {
    let answer = request(&node.http, &get(&format!("/api/kv/{key}"))).expect("an answer");
    assert_eq!(answer.status, 200, "{key}: {answer:?}");
    (answer.text(), answer.etag())
}

fn leases(node: &Node) -> u64 {
    node.json("/api/leases").expect("leases")["count"].as_u64().expect("a count")
}

#[test]
fn every_cell_of_the_header_table_is_answered_as_it_says() {
    let mut cluster = Cluster::start(1);
    let node = cluster.node(1);
    let rows = rows();
    assert!(rows.len() >= 35, "the table is there: {} rows", rows.len());
    for (number, row) in rows.iter().enumerate() {
        for (at, column) in COLUMNS.iter().enumerate() {
            for (turn, (method, target, body)) in column.requests.iter().enumerate() {
                let key = format!("cell-{number}-{at}-{turn}.");
                let put =
                    request(&node.http, &put(&format!("/api/kv/{key}"), "old").with("Content-Type", "text/plain"));
                let before = (String::from("old"), put.expect("an answer").etag());
                let leases_before = leases(node);
                let sent =
                    cell_request(method, &target.replace("KEY", &key), &body.replace("KEY", &key), row, before.1);
                let answer = raw_http::exchange(&node.http, &sent);
                let place = format!("{}: {} x {} ({method} {target})", row.name, row.value, column.title);
                assert_eq!(answer.status, row.statuses[at], "{place}: {answer:?}");
                check_common(&answer, method, &place);
                if answer.status >= 400 {
                    assert_eq!(state(node, &key), before, "{place}: nothing was changed");
                    assert_eq!(leases(node), leases_before, "{place}: nothing was granted");
                }
            }
        }
    }
}

/// What holds for each answer.
fn check_common(answer: &Answer, method: &str, place: &str) {
    let header = |name: &str| answer.headers.get(name).map(String::as_str);
    assert_eq!(header("x-content-type-options"), Some("nosniff"), "{place}: {answer:?}");
    if answer.status == 304 {
        assert_eq!(header("content-length"), None, "{place}: {answer:?}");
        assert!(answer.body.is_empty() && header("etag").is_some(), "{place}: {answer:?}");
    }
    if answer.status >= 400 && method != "HEAD" {
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{place}: {answer:?}");
    }
}

#[test]
fn the_representation_of_a_key_follows_accept() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let revision =
        request(&http, &put("/api/kv/k", "text").with("Content-Type", "Text/Plain")).expect("an answer").etag();
    let (raw, json) = (format!("\"{revision}\""), format!("\"{revision}-json\""));
    for (accept, is_json) in [
        ("*/*", false),
        ("application/json", true),
        ("APPLICATION/JSON", true),
        ("text/html, application/json;q=0.9, */*;q=0.8", true),
        ("text/plain, application/json;q=0.9", false),
        ("application/json;q=0, */*", false),
        ("application/jsonlines", false),
    ] {
        let answer = request(&http, &get("/api/kv/k").with("Accept", accept)).expect("an answer");
        let header = |name: &str| answer.headers[name].clone();
        let expected = if is_json { (&json, "application/json") } else { (&raw, "Text/Plain") };
        assert_eq!((&header("etag"), header("content-type").as_str()), expected, "Accept: {accept}");
        assert_eq!((header("vary"), header("cache-control")), ("accept".into(), "no-cache".into()), "{answer:?}");
        assert_eq!(answer.headers.contains_key("content-security-policy"), !is_json, "{answer:?}");
        if !is_json {
            assert_eq!((answer.text(), header("content-security-policy")), ("text".into(), "sandbox".into()));
        }
        // Each representation is known by its own tag only.
        for (tag, status) in [(&raw, if is_json { 200 } else { 304 }), (&json, if is_json { 304 } else { 200 })] {
            let again = get("/api/kv/k").with("Accept", accept).with("If-None-Match", tag);
            assert_eq!(request(&http, &again).expect("an answer").status, status, "Accept: {accept}, {tag}");
        }
    }
    let change = put("/api/kv/k", "next").with("If-Match", &json);
    assert_eq!(request(&http, &change).expect("an answer").status, 200, "the tag of the record names the revision");
    let stale = request(&http, &put("/api/kv/k", "late").with("If-Match", &json)).expect("an answer");
    assert_eq!((stale.status, stale.etag()), (412, revision + 1), "{stale:?}");
}

#[test]
fn conditions_in_several_lines_are_one_list() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let tag = request(&http, &put("/api/kv/k", "v")).expect("an answer").headers["etag"].clone();
    let lines = |method: &str, name: &str| {
        let mut sent = RawRequest::new(method, "/api/kv/k", "");
        sent.add(name, "\"999999999\"");
        sent.add(name, &tag);
        raw_http::exchange(&http, &sent).status
    };
    assert_eq!(lines("GET", "If-None-Match"), 304);
    assert_eq!(lines("HEAD", "If-Match"), 200);
    assert_eq!(lines("PUT", "If-Match"), 400, "one of two revisions is not compared");
    assert_eq!(lines("PUT", "If-None-Match"), 412);
    assert_eq!(request(&http, &get("/api/kv/missing").with("If-Match", "*")).expect("an answer").status, 404);
    let absent = put("/api/kv/new", "v").with("If-None-Match", &tag);
    assert_eq!(request(&http, &absent).expect("an answer").status, 200, "no key has none of the tags");
}
