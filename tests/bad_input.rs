//! Bad input: a clear error that says what to do, a non-zero exit or a 4xx, and nothing changed.

use crate::harness::{Cluster, Request, delete, get, json, put, request};

#[test]
fn http_refuses_bad_requests_and_changes_nothing() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    request(&http, &put("/api/kv/k", "v")).expect("an answer");
    let hash = cluster.node(1).json("/api/cluster/hash").expect("a hash");
    let long_key = format!("/api/kv/{}", "k".repeat(4097));
    let post = |target: &str, body: &str| Request {
        method: "POST".into(),
        target: target.into(),
        headers: vec![("Content-Type".into(), "application/json".into())],
        body: body.into(),
    };
    let table: Vec<(Request, u16, &str, &str)> = vec![
        (put(&long_key, "v"), 413, "key_too_large", "4096"),
        (get(&long_key), 413, "key_too_large", "4096"),
        (put("/api/kv/big", vec![7; 1536 * 1024 + 1]), 413, "value_too_large", "VALUE_BYTES_MAX"),
        (put("/api/kv/", "v"), 400, "invalid_argument", "empty"),
        (put("/api/kv/%zz", "v"), 400, "invalid_argument", "percent"),
        (get("/api/kv/%ff"), 400, "invalid_argument", "UTF-8"),
        (put("/api/kv/k?prev=maybe", "v"), 400, "invalid_argument", "prev"),
        (put("/api/kv/k?colour=red", "v"), 400, "invalid_argument", "colour"),
        (put("/api/kv/k", "w").with("If-Match", "17"), 400, "invalid_argument", "ETags such as"),
        (put("/api/kv/k", "w").with("If-Match", "\"1\", \"2\""), 400, "invalid_argument", "one ETag"),
        (delete("/api/kv?prefix=k").with("If-Match", "\"9\""), 400, "invalid_argument", "single keys"),
        (get("/api/kv/k?revision=abc"), 400, "invalid_argument", "revision"),
        (get("/api/kv/k?revision=-1"), 400, "invalid_argument", "revision"),
        (get("/api/kv/k?revision=999999"), 400, "invalid_argument", "future"),
        (get("/api/kv/k?consistency=wishful"), 400, "invalid_argument", "wishful"),
        (get("/api/kv/k?timeout=soon"), 400, "invalid_argument", "500ms"),
        (get("/api/kv/k?max_staleness=1s"), 400, "invalid_argument", "stale"),
        (get("/api/kv/k").with("If-None-Match", "nonsense"), 400, "invalid_argument", "ETag"),
        (get("/api/kv/missing").with("If-None-Match", ""), 400, "invalid_argument", "ETag"),
        (get("/api/kv?limit=0"), 400, "invalid_argument", "10000"),
        (get("/api/kv?limit=10001"), 400, "invalid_argument", "10000"),
        (get("/api/kv?limit=many"), 400, "invalid_argument", "limit"),
        (get("/api/kv?prefix=a&start=b"), 400, "invalid_argument", "not both"),
        (get("/api/kv?start=b&end=a"), 400, "invalid_argument", "end"),
        (get("/api/kv?order=random"), 400, "invalid_argument", "order"),
        (get("/api/kv?cursor=xyz"), 400, "invalid_argument", "cursor"),
        (get("/api/kv?prefix=%f0"), 400, "invalid_argument", "UTF-8"),
        (delete("/api/kv"), 400, "invalid_argument", "prefix"),
        (post("/api/txn", "{"), 400, "invalid_argument", "body"),
        (post("/api/txn", "{}"), 400, "invalid_argument", "empty"),
        (post("/api/txn", "[[], []]"), 400, "invalid_argument", "array"),
        (put("/api/txn", "{}"), 405, "method_not_allowed", "PUT"),
        (Request { method: "POST".into(), ..put("/api/txn", "{}") }, 400, "invalid_argument", "Content-Type"),
        (post("/api/txn?colour=red", "{}"), 400, "invalid_argument", "colour"),
        (post("/api/txn", &format!("{{\"a\":{}", "[".repeat(100_000))), 400, "invalid_argument", "body"),
        (get("/api/watch?key=a&prefix=b"), 400, "invalid_argument", "only one"),
        (get("/api/watch?prefix=a&start=b"), 400, "invalid_argument", "not both"),
        (get("/api/watch?start=b&end=a"), 400, "invalid_argument", "end"),
        (get("/api/watch?key="), 400, "invalid_argument", "empty"),
        (get("/api/watch?from_revision=-1"), 400, "invalid_argument", "from_revision"),
        (get("/api/watch?from_revision=0"), 400, "invalid_argument", "1 or more"),
        (get("/api/watch?from_revision=999999"), 400, "invalid_argument", "future"),
        (get("/api/watch").with("Last-Event-ID", "999999"), 400, "invalid_argument", "future"),
        (get("/api/watch").with("Last-Event-ID", "-1"), 400, "invalid_argument", "Last-Event-ID"),
        (get("/api/watch?progress=1ms"), 400, "invalid_argument", "100 ms"),
        (get("/api/watch?colour=red"), 400, "invalid_argument", "colour"),
        (post("/api/watch", "{}"), 405, "method_not_allowed", "POST"),
        (get("/api/kv/k?wait=1s"), 400, "invalid_argument", "after"),
        (get("/api/kv/k?after=1&revision=1"), 400, "invalid_argument", "not both"),
        (get("/api/kv/k?after=1&wait=301s"), 400, "invalid_argument", "300"),
        (get("/api/kv/k?after=999999&wait=1s"), 400, "invalid_argument", "future"),
        (post("/api/compact", "{}"), 400, "invalid_argument", "revision"),
        (post("/api/compact", "{\"revision\":-1}"), 400, "invalid_argument", "body"),
        (post("/api/compact", "{\"revision\":0}"), 400, "invalid_argument", "1 or more"),
        (post("/api/compact", "{\"revision\":999999}"), 400, "invalid_argument", "999999"),
        (get(&format!("/api/registry?after={}", "n".repeat(513))), 400, "invalid_argument", "512"),
        (delete(&format!("/api/registry/n?owner={}", "o".repeat(1025))), 400, "invalid_argument", "1024"),
        (post("/api/nothing", ""), 404, "not_found", "/api/nothing"),
        (get("/api/nothing"), 404, "not_found", "/api/nothing"),
        (Request { method: "PATCH".into(), ..get("/api/kv/k") }, 405, "method_not_allowed", "PATCH"),
        (post("/api/cluster/join", "{"), 400, "invalid_argument", "body"),
        (post("/api/cluster/join", "{\"nodes\":\"a@b\"}"), 400, "invalid_argument", "nodes"),
        (post("/api/cluster/join", "{\"node\":7}"), 400, "invalid_argument", "string"),
        (post("/api/cluster/join", "{\"node\":\"no-host\"}"), 400, "invalid_argument", "@"),
        (post("/api/cluster/join", "{\"node\":\"nobody@127.0.0.1\"}"), 400, "invalid_argument", "nobody"),
        (
            post("/api/cluster/join", "{\"node\":\"hex_hub1@no.such.host.invalid\"}"),
            400,
            "invalid_argument",
            "no.such.host.invalid",
        ),
        (
            Request { method: "POST".into(), ..put("/api/cluster/join", "{\"node\":\"a@b\"}") },
            400,
            "invalid_argument",
            "Content-Type",
        ),
        (
            json("PUT", "/api/cluster/replication-factor", &serde_json::json!({"value": -1})),
            400,
            "invalid_argument",
            "body",
        ),
    ];
    for (wanted, status, code, says) in table {
        let answer = request(&http, &wanted).unwrap_or_else(|e| panic!("{} {}: {e}", wanted.method, wanted.target));
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (status, code),
            "{} {}: {answer:?}",
            wanted.method,
            wanted.target
        );
        assert!(answer.text().contains(says), "{} {}: {:?} is not in {answer:?}", wanted.method, wanted.target, says);
    }
    assert_eq!(cluster.node(1).json("/api/cluster/hash").expect("a hash"), hash, "nothing was changed");
}

#[test]
fn a_join_to_a_node_that_is_down_or_has_another_cookie_changes_nothing() {
    let mut cluster = Cluster::empty(&[]);
    cluster.add_running();
    let down = crate::harness::free_ports(1)[0];
    let refused = cluster.node(1).join(&format!("hex_hub9@127.0.0.1:{down}"), false);
    assert_eq!((refused.status, refused.problem()), (503, "unavailable".into()));
    let stranger = cluster.add();
    stranger.env.insert("COOKIE".into(), "another-one".into());
    stranger.start();
    crate::harness::eventually("the stranger serves", || cluster.nodes[1].ready());
    let target = format!("hex_hub2@{}", cluster.node(2).raft);
    let refused = cluster.node(1).join(&target, false);
    assert_eq!((refused.status, refused.problem()), (409, "cluster_mismatch".into()));
    assert!(refused.text().contains("cookie"), "{refused:?}");
    for i in [1, 2] {
        // The answer may come before the other node has written its line.
        crate::harness::eventually("both nodes log the refusal", || {
            let log = cluster.nodes[i - 1].logged();
            if log.to_lowercase().contains("cookie") { Ok(()) } else { Err(format!("node {i}: {log}")) }
        });
        let status = cluster.node(i).status().expect("a status");
        assert_eq!(status["members"].as_array().map(Vec::len), Some(1), "nothing was changed: {status}");
    }
}

/// Starts a node that must refuse, and gives what it says.
fn refusal(prepare: impl FnOnce(&mut Cluster)) -> String {
    let mut cluster = Cluster::empty(&[]);
    cluster.add();
    prepare(&mut cluster);
    let (code, said) = cluster.node(1).run_to_end();
    assert!(code.is_some_and(|c| c != 0), "exit code {code:?}: {said}");
    said
}

fn with_env(name: &'static str, value: &'static str) -> impl FnOnce(&mut Cluster) {
    move |cluster| {
        cluster.node(1).env.insert(name.into(), value.into());
    }
}

#[test]
fn the_server_refuses_wrong_settings() {
    for (name, value, says) in [
        ("PORT", "http", "PORT"),
        ("PORT", "70000", "PORT"),
        ("NODE_INDEX", "0", "NODE_INDEX"),
        ("NODE_INDEX", "4", "CLUSTER_SIZE"),
        ("CLUSTER_SIZE", "11", "10"),
        ("REPLICATION_FACTOR", "0", "REPLICATION_FACTOR"),
        ("NODE_NAME", "no host", "NODE_NAME"),
        ("CLUSTER_DISCOVERY_TYPE", "telepathy", "CLUSTER_DISCOVERY_TYPE"),
        ("HEARTBEAT_INTERVAL", "fast", "HEARTBEAT_INTERVAL"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT"),
        ("VALUE_BYTES_MAX", "9MiB", "VALUE_BYTES_MAX"),
        ("HEXKV_COLOUR", "red", "HEXKV_COLOUR"),
        ("COOKIE", "7-bytes", "openssl rand -hex 32"),
    ] {
        let said = refusal(with_env(name, value));
        assert!(said.contains(says), "{name}={value}: {said}");
    }
    let unknown = crate::harness::inheriting("server").arg("--colour").output().expect("it runs");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("--colour"));
}

#[test]
fn the_server_refuses_a_taken_port_and_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    for option in ["PORT", "RAFT_PORT"] {
        let port = port.clone();
        let said = refusal(|c| {
            c.node(1).env.insert(option.into(), port.clone());
        });
        assert!(said.contains(&port) && said.contains(option), "{said}");
        assert!(said.contains(&std::process::id().to_string()), "it names the process, this test: {said}");
    }
}

#[test]
fn the_server_refuses_a_data_directory_that_it_cannot_use() {
    let said = refusal(|c| {
        let data = c.node(1).data.clone();
        std::fs::create_dir_all(&data).expect("a directory");
        std::fs::write(data.join("thesis.txt"), "years of work").expect("a file");
    });
    assert!(said.contains("not a hexkv data directory"), "{said}");
    let said = refusal(with_env("DATA_DIR", "/proc/hexkv"));
    assert!(said.contains("/proc/hexkv") && said.contains("check DATA_DIR and its permissions"), "{said}");

    let mut cluster = Cluster::empty(&[("LOG_FORMAT", "json")]);
    cluster.add_running();
    let (data, pid) = (cluster.node(1).data.display().to_string(), cluster.node(1).pid().expect("it runs"));
    let second = cluster.add();
    second.env.insert("DATA_DIR".into(), data.clone());
    let (code, said) = second.run_to_end();
    assert_ne!(code, Some(0));
    assert!(said.contains("in use by another process") && said.contains(&pid.to_string()), "{said}");
    cluster.node(1).ready().expect("the first one is not disturbed");
    cluster.node(1).kill();
    let (code, said) = cluster.node(2).run_to_end();
    assert_ne!(code, Some(0));
    let says = said.contains(&data) && said.contains("NODE_NAME is hex_hub2@127.0.0.1") && said.contains("DATA_DIR");
    assert!(says && said.contains("it belongs to node hex_hub1@127.0.0.1"), "{said}");
    // Whatever a node has to say, it says in the format that was asked for.
    for node in &cluster.nodes {
        let log = node.logged();
        assert!(log.lines().count() > 1, "{log}");
        for line in log.lines() {
            let told: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let fields = ["timestamp", "level", "target", "message"];
            assert!(told["node"] == node.name.as_str() && fields.iter().all(|field| told[field].is_string()), "{line}");
        }
    }
}

#[test]
fn a_name_that_is_taken_on_the_host_is_an_error_at_start() {
    let mut cluster = Cluster::empty(&[]);
    cluster.add_running();
    let name = cluster.node(1).name.clone();
    let twin = cluster.add();
    twin.env.insert("NODE_NAME".into(), name);
    let (code, said) = twin.run_to_end();
    assert_ne!(code, Some(0));
    assert!(said.contains("hex_hub1"), "{said}");
}

#[test]
fn print_config_tells_each_setting_and_where_it_comes_from() {
    let output = crate::harness::inheriting("server")
        .args(["--print-config", "--port", "4567"])
        .env("COOKIE", "a-very-secret-cookie")
        .env("REPLICATION_FACTOR", "5")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("4567") && text.contains("REPLICATION_FACTOR") && text.contains("4096"), "{text}");
    assert!(!text.contains("a-very-secret-cookie"), "secrets are masked: {text}");
}
