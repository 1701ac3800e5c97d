//! Leases over HTTP: when they end, and when not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, Request, binary, delete, eventually, get, json as request_with, put, request};

fn ask(address: &str, wanted: &Request) -> Answer {
    request(address, wanted).expect("an answer")
}

fn post(target: &str) -> Request {
    Request { method: "POST".into(), ..get(target) }
}

fn grant(address: &str, ttl: &str) -> u64 {
    let answer = ask(address, &request_with("POST", "/api/leases", &json!({"ttl": ttl})));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["id"].as_u64().expect("an id")
}

fn put_done(address: &str, target: &str) -> Value {
    let answer = ask(address, &put(target, "v"));
    assert_eq!(answer.status, 200, "{target}: {answer:?}");
    answer.json()
}

fn keep_alive(address: &str, id: u64) -> Answer {
    ask(address, &post(&format!("/api/leases/{id}/keepalive")))
}

fn revision(address: &str) -> u64 {
    ask(address, &get("/api/kv?prefix=&count_only=true")).json()["revision"].as_u64().expect("a revision")
}

/// Waits until a linearizable read through each of `addresses` in turn no longer finds `key`; when it was first missing.
fn gone(addresses: &[String], key: &str) -> Instant {
    let mut first = None;
    for address in addresses {
        eventually(&format!("{key} goes"), || match request(address, &get(&format!("/api/kv/{key}")))? {
            Answer { status: 404, .. } => {
                first.get_or_insert_with(Instant::now);
                Ok(())
            }
            other => Err(format!("{other:?}")),
        });
    }
    first.expect("there is an address")
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.nodes.iter().map(|node| node.http.clone()).collect()
}

#[test]
fn a_lease_ends_with_all_its_keys_in_one_revision_on_all_nodes_and_not_before() {
    const TTL: Duration = Duration::from_secs(5);
    let cluster = Cluster::start(4);
    let all = addresses(&cluster);
    for (at, address) in all.iter().enumerate() {
        let sent = Instant::now();
        let first = put_done(address, &format!("/api/kv/of/{at}/0?ttl=5s"));
        let id = first["lease"].as_u64().expect("the answer names the lease");
        for (key, other) in (1..).zip(&all) {
            let answer = put_done(other, &format!("/api/kv/of/{at}/{key}?lease={id}"));
            assert_eq!(answer["lease"].as_u64(), Some(id));
        }
        put_done(address, &format!("/api/kv/not/{at}?lease={id}"));
        put_done(address, &format!("/api/kv/not/{at}"));
        let found = ask(address, &get(&format!("/api/kv/of/{at}/2")));
        assert_eq!(found.headers.get("x-hexkv-lease"), Some(&id.to_string()));
        let shown = ask(address, &get(&format!("/api/leases/{id}"))).json();
        let keys: Vec<String> = (0..5).map(|key| format!("of/{at}/{key}")).collect();
        assert_eq!((&shown["keys"], &shown["key_count"], &shown["ttl"]), (&json!(keys), &json!(5), &json!("5s")));
        assert!(shown["remaining_ms"].as_u64().is_some_and(|left| left <= 5_000), "{shown}");
        let before = revision(address);
        assert!(gone(&all, &format!("of/{at}/0")) - sent >= TTL, "the lease ended early");
        assert_eq!(revision(address), before + 1, "one revision");
        let count = |revision: u64| {
            let target = format!("/api/kv?prefix=of/{at}/&count_only=true&revision={revision}");
            ask(address, &get(&target)).json()["count"].as_u64()
        };
        assert_eq!((count(before), count(before + 1)), (Some(5), Some(0)));
        assert_eq!(ask(address, &get(&format!("/api/kv/not/{at}"))).status, 200, "it was detached");
        for other in &all {
            for target in [get(&format!("/api/leases/{id}")), delete(&format!("/api/leases/{id}"))] {
                assert_eq!(ask(other, &target).problem(), "lease_not_found");
            }
            assert_eq!(keep_alive(other, id).problem(), "lease_not_found");
            assert_eq!(ask(other, &put(&format!("/api/kv/x?lease={id}"), "v")).problem(), "lease_not_found");
        }
    }
    cluster.wait_holders_agree(3);
}

fn leases(address: &str) -> Vec<u64> {
    let page = ask(address, &get("/api/leases?limit=10000")).json();
    assert_eq!(page["next"], Value::Null);
    page["items"].as_array().expect("items").iter().map(|item| item["id"].as_u64().expect("an id")).collect()
}

#[test]
fn the_lease_of_a_put_with_a_ttl_ends_with_its_key() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let explicit = grant(&http, "1h");
    let granted = |target: &str| put_done(&http, target)["lease"].as_u64().expect("the answer names the lease");
    let refreshed: Vec<u64> = (0..100).map(|_| granted("/api/kv/session?ttl=1h")).collect();
    let last = refreshed[99];
    let mut expected = vec![explicit, last];
    expected.sort_unstable();
    assert_eq!(leases(&http), expected, "each put ends the lease of the one before");
    assert_eq!(keep_alive(&http, refreshed[98]).problem(), "lease_not_found");
    assert_eq!(keep_alive(&http, last).status, 200);
    // As long as another key is attached to it, it stays.
    put_done(&http, &format!("/api/kv/beside?lease={last}"));
    put_done(&http, "/api/kv/session");
    assert_eq!(leases(&http), expected);
    put_done(&http, &format!("/api/kv/beside?lease={explicit}"));
    assert_eq!(leases(&http), [explicit], "attached to another lease");
    let op = |key: &str| json!({"op": "put", "key": key, "text": "x", "ttl": "1h"});
    let txn = |success: Value| ask(&http, &request_with("POST", "/api/txn", &json!({"success": success})));
    for _ in 0..3 {
        let answer = txn(Value::Array((0..128).map(|n| op(if n < 64 { "session" } else { "other" })).collect()));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(leases(&http).len(), 3, "one for each key");
    }
    let range = json!({"op": "delete_range", "prefix": "se"});
    assert_eq!(txn(json!([range, {"op": "delete", "key": "other"}])).status, 200);
    assert_eq!(leases(&http), [explicit]);
    assert_eq!(ask(&http, &delete("/api/kv/beside")).status, 200);
    assert_eq!(leases(&http), [explicit], "a lease that was granted for itself stays");
    // What is kept over a restart, and what ends after it.
    let kept = granted("/api/kv/session?ttl=1h");
    assert_eq!(cluster.node(1).stop(), Some(0));
    cluster.node(1).start();
    cluster.wait_formed(1);
    assert!(leases(&http).contains(&kept));
    assert_eq!(ask(&http, &delete("/api/kv/session")).status, 200);
    assert_eq!(leases(&http), [explicit]);
}

#[test]
fn a_lease_that_is_kept_alive_through_any_node_lives_and_is_revoked_in_one_revision() {
    const TTL: Duration = Duration::from_secs(5);
    let cluster = Cluster::start(4);
    let all = addresses(&cluster);
    let id = grant(&all[3], "5s");
    put_done(&all[1], &format!("/api/kv/a?lease={id}"));
    put_done(&all[2], &format!("/api/kv/b?lease={id}"));
    let (began, before) = (Instant::now(), revision(&all[0]));
    for address in all.iter().cycle() {
        let answer = keep_alive(address, id);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json(), json!({"id": id, "ttl": "5s", "ttl_ms": 5_000}));
        if began.elapsed() > 2 * TTL + TTL / 2 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(200));
    }
    for address in &all {
        assert_eq!(ask(address, &get("/api/kv/a")).status, 200);
        let page = ask(address, &get("/api/leases")).json();
        assert_eq!((&page["items"][0]["id"], &page["count"], &page["next"]), (&json!(id), &json!(1), &Value::Null));
    }
    assert_eq!(revision(&all[0]), before, "a keepalive changes nothing");
    let revoked = ask(&all[3], &delete(&format!("/api/leases/{id}"))).json();
    assert_eq!(revoked, json!({"revision": before + 1, "deleted": 2}));
    gone(&all, "b");
}

#[test]
fn a_new_leader_gives_the_full_time_again() {
    const TTL: Duration = Duration::from_secs(6);
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let address = cluster.node(leader).http.clone();
    let id = put_done(&address, "/api/kv/k?ttl=6s")["lease"].as_u64().expect("a lease");
    eventually("half of its time is over", || {
        let shown = ask(&address, &get(&format!("/api/leases/{id}"))).json();
        if shown["remaining_ms"].as_u64().expect("a time") < 3_000 { Ok(()) } else { Err(shown.to_string()) }
    });
    let killed = Instant::now();
    cluster.node(leader).kill();
    let others: Vec<String> = cluster.nodes.iter().filter(|n| n.index != leader).map(|n| n.http.clone()).collect();
    let first = gone(&others, "k");
    assert!(first - killed >= TTL, "the lease ended {:?} after its leader", first - killed);
}

#[test]
fn a_leader_that_was_stopped_ends_nothing_that_was_kept_alive_elsewhere() {
    const TTL: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let address = cluster.node(leader).http.clone();
    let kept = put_done(&address, "/api/kv/kept?ttl=4s")["lease"].as_u64().expect("a lease");
    put_done(&address, "/api/kv/left?ttl=4s");
    let before = ask(&address, &get("/api/kv/kept")).etag();
    let stopped = Instant::now();
    cluster.node(leader).signal(rustix::process::Signal::STOP);
    let others: Vec<String> = cluster.nodes.iter().filter(|n| n.index != leader).map(|n| n.http.clone()).collect();
    let mut acknowledged = 0;
    let mut resumed = None;
    for address in others.iter().cycle() {
        match keep_alive(address, kept) {
            Answer { status: 200, .. } => acknowledged += 1,
            answer => assert_eq!(answer.status, 503, "only while there is no leader: {answer:?}"),
        }
        if resumed.is_none() && stopped.elapsed() > 3 * TTL {
            cluster.node(leader).signal(rustix::process::Signal::CONT);
            resumed = Some(Instant::now());
        }
        if resumed.is_some_and(|at: Instant| at.elapsed() > TTL + TTL / 2) {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(acknowledged > 10, "{acknowledged} keepalives");
    let all = addresses(&cluster);
    gone(&all, "left");
    for address in &all {
        assert_eq!(ask(address, &get("/api/kv/kept")).etag(), before);
    }
    assert_eq!(keep_alive(&address, kept).status, 200, "also through the node that was stopped");
    assert_eq!(revision(&address), before + 2, "the other key was put, and went, once");
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn a_node_that_was_stopped_first_takes_the_keepalives_that_came_meanwhile() {
    const TTL: Duration = Duration::from_secs(2);
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let id = put_done(&address, "/api/kv/k?ttl=2s")["lease"].as_u64().expect("a lease");
    cluster.node(1).signal(rustix::process::Signal::STOP);
    let stopped = Instant::now();
    let waiting = std::thread::spawn({
        let address = address.clone();
        move || keep_alive(&address, id)
    });
    while stopped.elapsed() < 2 * TTL {
        std::thread::park_timeout(2 * TTL - stopped.elapsed());
    }
    assert!(!waiting.is_finished(), "a stopped node answers nothing");
    cluster.node(1).signal(rustix::process::Signal::CONT);
    let answer = waiting.join().expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(ask(&address, &get("/api/kv/k")).status, 200);
    gone(&[address], "k");
}

#[test]
fn a_node_that_gets_a_snapshot_gets_the_leases() {
    let often = [("SNAPSHOT_LOG_BYTES_MIN", "256KiB"), ("WAL_SEGMENT_BYTES", "10MiB"), ("LOG_ENTRIES_KEPT", "10")];
    let mut cluster = Cluster::start_with(3, &often);
    let leader = cluster.leader();
    let away = cluster.other_than(leader);
    cluster.node(away).kill();
    let last = cluster.last_log_index(leader);
    let address = cluster.node(leader).http.clone();
    let id = grant(&address, "1h");
    put_done(&address, &format!("/api/kv/leased/a?lease={id}"));
    put_done(&address, &format!("/api/kv/leased/b?lease={id}"));
    let short = put_done(&address, "/api/kv/short?ttl=1s")["lease"].as_u64().expect("a lease");
    gone(std::slice::from_ref(&address), "short");
    eventually("the log is purged behind a snapshot", || {
        assert_eq!(ask(&address, &put("/api/kv/large", vec![1; 64 * 1024])).status, 200);
        cluster.purged_past(leader, last)
    });
    cluster.node(away).start();
    cluster.wait_formed(3);
    assert!(cluster.node(away).logged().contains("snapshot installed"), "not by the log, which no longer has it");
    let (name, newcomer) = (cluster.node(away).name.clone(), cluster.node(away).http.clone());
    eventually("it leads", || {
        let answer = ask(&address, &request_with("POST", "/api/cluster/transfer-leader", &json!({"to": name})));
        let leader = cluster.nodes[away - 1].status()?["leader"].clone();
        if leader == json!(name) { Ok(()) } else { Err(format!("{leader}: {answer:?}")) }
    });
    let shown = ask(&newcomer, &get(&format!("/api/leases/{id}"))).json();
    assert_eq!(shown["keys"], json!(["leased/a", "leased/b"]), "{shown}");
    assert_eq!(keep_alive(&newcomer, id).status, 200);
    assert_eq!(keep_alive(&newcomer, short).problem(), "lease_not_found");
    let revoked = ask(&newcomer, &delete(&format!("/api/leases/{id}"))).json();
    assert_eq!(revoked["deleted"], 2);
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(1);
    let address = &cluster.nodes[0].http;
    let id = grant(address, "1h");
    let before = revision(address);
    let granting = |body: Value| request_with("POST", "/api/leases", &body);
    for (wanted, code) in [
        (granting(json!({"ttl": -1})), "invalid_argument"),
        (granting(json!({"ttl": "-30s"})), "invalid_argument"),
        (granting(json!({"ttl": 0})), "invalid_argument"),
        (granting(json!({"ttl": "999ms"})), "invalid_argument"),
        (granting(json!({"ttl": "366 days"})), "invalid_argument"),
        (granting(json!({"ttl": u64::MAX})), "invalid_argument"),
        (granting(json!({"ttl": "999999999999999999999y"})), "invalid_argument"),
        (granting(json!({"ttl": "soon"})), "invalid_argument"),
        (granting(json!({"ttl": null})), "invalid_argument"),
        (granting(json!({"ttl": "30s", "id": 7})), "invalid_argument"),
        (granting(json!({})), "invalid_argument"),
        (granting(json!([30])), "invalid_argument"),
        (post("/api/leases"), "invalid_argument"),
        (put("/api/kv/k?ttl=-1s", "v"), "invalid_argument"),
        (put("/api/kv/k?ttl=0", "v"), "invalid_argument"),
        (put("/api/kv/k?ttl=2y", "v"), "invalid_argument"),
        (put(&format!("/api/kv/k?ttl=30s&lease={id}"), "v"), "invalid_argument"),
        (put("/api/kv/k?lease=0", "v"), "invalid_argument"),
        (put("/api/kv/k?lease=-1", "v"), "invalid_argument"),
        (put("/api/kv/k?lease=x", "v"), "invalid_argument"),
        (put("/api/kv/k?lease=1", "v"), "lease_not_found"),
        (put("/api/kv/k?lease=18446744073709551615", "v"), "lease_not_found"),
        (get("/api/leases/0"), "invalid_argument"),
        (get("/api/leases/x"), "invalid_argument"),
        (get("/api/leases/99999999999999999999"), "invalid_argument"),
        (get("/api/leases/1"), "lease_not_found"),
        (delete("/api/leases/1"), "lease_not_found"),
        (post("/api/leases/1/keepalive"), "lease_not_found"),
        (post("/api/leases/-1/keepalive"), "invalid_argument"),
        (get("/api/leases?limit=0"), "invalid_argument"),
        (get("/api/leases?cursor=x"), "invalid_argument"),
        (get(&format!("/api/leases/{id}/keepalive")), "method_not_allowed"),
        (put("/api/leases", "v"), "method_not_allowed"),
    ] {
        let answer = ask(address, &wanted);
        assert_eq!(answer.problem(), code, "{wanted:?}: {answer:?}");
    }
    assert_eq!(revision(address), before);
    let page = ask(address, &get("/api/leases?limit=1")).json();
    assert_eq!((&page["items"][0]["id"], &page["count"]), (&json!(id), &json!(1)));
}

#[test]
fn a_transaction_grants_leases_and_attaches_keys() {
    let cluster = Cluster::start(1);
    let address = &cluster.nodes[0].http;
    let id = grant(address, "1h");
    let put_op = |key: &str, more: Value| {
        let mut op = json!({"op": "put", "key": key, "text": "v"});
        op.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        op
    };
    let txn = |success: Value| ask(address, &request_with("POST", "/api/txn", &json!({"success": success})));
    let done = txn(json!([
        put_op("a", json!({"ttl": "5s"})),
        put_op("b", json!({"lease": id})),
        {"op": "get", "key": "a"},
        put_op("c", json!({"ttl": 3600})),
    ]));
    assert_eq!(done.status, 200, "{done:?}");
    let results = done.json()["results"].clone();
    assert_eq!(results.as_array().map(Vec::len), Some(4), "one result for each operation that was sent");
    assert_eq!(results[1]["lease"], id);
    assert_eq!(results[2]["lease"], results[0]["lease"]);
    assert_ne!(results[3]["lease"], results[0]["lease"]);
    let before = revision(address);
    for (success, code, place) in [
        (json!([put_op("a", json!({"ttl": "1h"})), put_op("d", json!({"lease": 1}))]), "lease_not_found", "success[1]"),
        (json!([put_op("d", json!({"ttl": "1h", "lease": id}))]), "invalid_argument", "success[0]"),
        (json!([put_op("d", json!({})), put_op("d", json!({"ttl": "1ms"}))]), "invalid_argument", "success[1]"),
        (json!([put_op("d", json!({"lease": 0}))]), "invalid_argument", "success[0]"),
        (json!([put_op("d", json!({"ttl": -1}))]), "invalid_argument", "success[0]"),
    ] {
        let answer = txn(success);
        assert_eq!(answer.problem(), code, "{answer:?}");
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains(place)), "{answer:?}");
    }
    let leases = ask(address, &get("/api/leases")).json();
    assert!(leases["count"].as_u64().is_some_and(|count| count <= 3), "{leases}");
    let many: Vec<Value> = (0..128).map(|n| put_op(&format!("many/{n}"), json!({"ttl": "1h"}))).collect();
    gone(std::slice::from_ref(address), "a");
    assert_eq!(revision(address), before + 1, "only the short lease ended");
    assert_eq!(txn(json!(many)).status, 200, "as many leases as operations");
    let page = ask(address, &get("/api/leases?limit=100")).json();
    let next = page["next"].as_str().expect("more follow");
    let rest = ask(address, &get(&format!("/api/leases?limit=100&cursor={next}"))).json();
    assert_eq!((&page["count"], &rest["count"], &rest["next"]), (&json!(100), &json!(30), &Value::Null));
}

#[test]
fn the_command_line_knows_leases() {
    let cluster = Cluster::start(1);
    let client = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary("client"));
        let output = command.args(["--endpoints", &cluster.nodes[0].http]).args(arguments).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let (code, id) = client(&["lease", "grant", "1h"]);
    assert_eq!((code, id.parse::<u64>().is_ok()), (Some(0), true), "{id}");
    let put = client(&["put", "k", "v", "--lease", &id]);
    assert_eq!(put, (Some(0), format!("revision 1, version 1, lease {id}")));
    assert_eq!(client(&["lease", "keepalive", &id, "--once"]), (Some(0), "lives for 1h".to_string()));
    let (code, shown) = client(&["lease", "show", &id]);
    assert!(code == Some(0) && shown.contains(&id) && shown.ends_with('k'), "{shown}");
    assert!(client(&["lease", "list"]).1.contains(&id));
    assert_eq!(client(&["lease", "revoke", &id]), (Some(0), "deleted 1, revision 2".to_string()));
    for gone in ["keepalive", "show", "revoke"] {
        assert_eq!(client(&["lease", gone, &id]).0, Some(1), "{gone}");
    }
    let (code, put) = client(&["put", "k", "v", "--ttl", "1h"]);
    assert!(code == Some(0) && put.starts_with("revision 3, version 1, lease "), "{put}");
    assert_eq!(client(&["lease", "grant", "soon"]).0, Some(2));
    assert_eq!(client(&["lease", "grant", "1ms"]).0, Some(1));
}
