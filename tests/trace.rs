//! A request with a `traceparent` is followed through the logs of the nodes.

use crate::harness::{Cluster, Node, eventually, get, put, request};

/// The first 24 digits of a trace's id.
const TRACE_ID_BEGIN: &str = "4bf92f3577b34da6a3ce929d";

fn parent(trace_id: &str, flags: &str) -> String {
    format!("00-{trace_id}-00f067aa0ba902b7-{flags}")
}

/// Log lines of `node` with all of `parts`; there must be some.
fn lines(node: &Node, parts: &[&str]) -> Vec<String> {
    eventually(&format!("{} logs {parts:?}", node.name), || {
        let log = node.logged();
        let found: Vec<String> =
            log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect();
        if found.is_empty() { Err(format!("no such line in {} lines", log.lines().count())) } else { Ok(found) }
    })
}

/// The number behind `field=` in `line`.
fn field(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("no {name}: {line}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|e| panic!("{name}: {e}: {line}"))
}

#[test]
fn a_sampled_request_is_followed_from_a_follower_to_the_leader_and_into_every_log() {
    let env = [("RUST_LOG", "info,hexkv::apply=debug")];
    let mut cluster = Cluster::start_with(3, &env);
    let mut tries = 0_u32;
    // Where leadership moved meanwhile it is done again, under another id.
    let (leader, follower, trace_id, answer) = eventually("one node leads all the while", || {
        tries += 1;
        let trace_id = format!("{TRACE_ID_BEGIN}{tries:08x}");
        let leader = cluster.leader();
        let follower = cluster.other_than(leader);
        let term = cluster.nodes[leader - 1].status()?["term"].clone();
        let traced = put("/api/kv/traced", "v").with("traceparent", &parent(&trace_id, "01"));
        let answer = request(&cluster.nodes[follower - 1].http, &traced).expect("an answer");
        let now = (cluster.leader(), cluster.nodes[leader - 1].status()?["term"].clone());
        if now == (leader, term) { Ok((leader, follower, trace_id, answer)) } else { Err(format!("{now:?} now")) }
    });
    let trace_id = trace_id.as_str();
    assert_eq!(answer.status, 200, "{answer:?}");
    let given = &answer.headers["traceresponse"];
    assert!(given.starts_with(&format!("00-{trace_id}-")) && given.ends_with("-01"), "{given}");
    let revision = answer.etag();
    let (at_follower, at_leader) = (&cluster.nodes[follower - 1], &cluster.nodes[leader - 1]);
    lines(at_follower, &[trace_id, "a request arrives", "/api/kv/{key}", "PUT", "00f067aa0ba902b7"]);
    lines(at_follower, &[trace_id, "forwarded to the leader", &at_leader.raft]);
    lines(at_leader, &[trace_id, "a change arrives from another node", &at_follower.name]);
    let applied = lines(at_leader, &[trace_id, "appended, committed and applied"]);
    let answered = lines(at_follower, &[trace_id, "answered", "/api/kv/{key}", "status=200"]);
    assert_eq!((applied.len(), answered.len()), (1, 1), "{applied:?} {answered:?}");
    assert_eq!((field(&applied[0], "revision"), field(&answered[0], "revision")), (revision, revision));
    let index = field(&applied[0], "log_index");
    assert_eq!(field(&answered[0], "log_index"), index);
    for node in &cluster.nodes {
        let applies = lines(node, &["hexkv::apply", &format!("log_index={index} ")]);
        assert_eq!(field(&applies[0], "revision"), revision, "{}", node.name);
    }
}

#[test]
fn what_is_not_sampled_shows_at_debug_and_what_has_no_header_nowhere() {
    let env = [("RUST_LOG", "info,hexkv::trace=debug")];
    let mut cluster = Cluster::start_with(1, &env);
    let http = cluster.node(1).http.clone();
    assert_eq!(request(&http, &put("/api/kv/plain", "v")).expect("an answer").headers.get("traceresponse"), None);
    let other = "0af7651916cd43dd8448eb211c80319c";
    let traced = put("/api/kv/traced", "v").with("traceparent", &parent(other, "00"));
    assert_eq!(request(&http, &traced).expect("an answer").status, 200);
    let log = lines(cluster.node(1), &[other, "DEBUG", "appended, committed and applied"]);
    assert_eq!(log.len(), 1, "{log:?}");
    // Malformed: as if it began a trace of its own.
    let bad = get("/api/kv/traced").with("traceparent", &parent(&"0".repeat(32), "01"));
    let answer = request(&http, &bad).expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "v".into()));
    let given = answer.headers["traceresponse"].split('-').nth(1).expect("a trace id").to_owned();
    assert_ne!(given, "0".repeat(32));
    lines(cluster.node(1), &[&given, "makes no sense"]);
    lines(cluster.node(1), &[&given, "answered", "GET"]);
    let traces = cluster.node(1).logged().lines().filter(|line| line.contains("a request arrives")).count();
    assert_eq!(traces, 2, "nothing else is traced");
}
