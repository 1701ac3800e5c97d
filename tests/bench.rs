//! `client bench`: each load measures what it says, and leaves nothing behind.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Cluster, binary, get, request};

/// Runs a load for a moment, against all nodes.
fn bench(cluster: &mut Cluster, args: &[&str]) -> Value {
    let endpoints: Vec<String> = cluster.nodes.iter().map(|node| node.http.clone()).collect();
    let mut command = Command::new(binary("client"));
    command.args(["-o", "json", "--endpoints", &endpoints.join(","), "bench"]).args(args);
    let ran = command.args(["--duration", "500ms", "--warmup", "100ms"]).output().expect("the client runs");
    let errors = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(0), "{args:?}: {errors}");
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"));
    assert_eq!(report["load"], args[0], "{report}");
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    report
}

/// Successes of one series, which has percentiles in order.
fn count(report: &Value, series: &str) -> u64 {
    let part = &report["measured"][series];
    let times: Vec<u64> = ["p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"]
        .iter()
        .map(|name| part[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}")))
        .collect();
    assert!(times.is_sorted(), "{report}");
    part["requests"].as_u64().unwrap_or_else(|| panic!("{report}"))
}

/// No keys and no leases are left.
fn left_nothing(cluster: &mut Cluster) {
    let http = cluster.node(1).http.clone();
    for (target, list) in [("/api/kv?prefix=", "items"), ("/api/leases", "items")] {
        let answer = request(&http, &get(target)).expect("an answer").json();
        assert_eq!(answer[list], serde_json::json!([]), "{target}: {answer}");
    }
}

#[test]
fn every_load_measures_and_cleans_up() {
    let mut cluster = Cluster::start(3);
    let report =
        bench(&mut cluster, &["txn", "--connections", "3", "--operations", "5", "--keys", "40", "--value-size", "10"]);
    assert!(count(&report, "transactions") > 0, "{report}");
    left_nothing(&mut cluster);

    for (watchers, in_flight) in [("1", "1"), ("30", "3")] {
        let report = bench(&mut cluster, &["watch", "--watchers", watchers, "--in-flight", in_flight]);
        let (events, changes) = (count(&report, "events"), count(&report, "last watcher"));
        assert!(changes > 0, "{report}");
        let each: u64 = watchers.parse().expect("a number");
        assert_eq!(events, changes * each, "every watcher saw every change: {report}");
        let last = report["measured"]["last watcher"]["max_us"].as_u64();
        assert!(last >= report["measured"]["events"]["max_us"].as_u64(), "nobody is later than the last: {report}");
        left_nothing(&mut cluster);
    }

    let report = bench(&mut cluster, &["lease", "--leases", "20", "--connections", "3"]);
    assert!(count(&report, "keepalives") > 0, "{report}");
    left_nothing(&mut cluster);

    let before = request(&cluster.node(1).http.clone(), &get("/api/kv?limit=1")).expect("an answer").json();
    let report = bench(&mut cluster, &["lock", "--contenders", "5"]);
    assert!(count(&report, "hand-overs") > 0, "{report}");
    let after = request(&cluster.node(1).http.clone(), &get("/api/kv?limit=1")).expect("an answer").json();
    assert!(after["revision"].as_u64() > before["revision"].as_u64(), "locks were taken: {before} {after}");
    left_nothing(&mut cluster);
}

#[test]
fn loads_that_make_no_sense_are_refused() {
    for args in [
        &["txn", "--operations", "129"][..],
        &["txn", "--operations", "8", "--keys", "7"],
        &["txn", "--operations", "128", "--value-size", "1000000"],
        &["watch", "--watchers", "0"],
        &["watch", "--in-flight", "65"],
        &["lease", "--leases", "100001"],
        &["lock", "--contenders", "1"],
        &["--connections", "1", "txn"],
    ] {
        let ran = Command::new(binary("client")).arg("bench").args(args).output().expect("the client runs");
        assert_eq!(ran.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}
