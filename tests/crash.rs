//! kill -9 of real processes under load: what was acknowledged is there afterwards, and all nodes agree.

use std::path::Path;

use crate::harness::{
    Cluster, eventually, get, json,
    load::{Load, addresses, progress},
    put, request,
};

#[test]
fn killing_the_leader_again_and_again_loses_nothing() {
    let mut cluster = Cluster::start(3);
    let load = Load::start(&addresses(&cluster), 4, 64);
    for round in 0..4 {
        let leader = cluster.leader();
        progress(&cluster, leader, 50);
        cluster.node(leader).kill();
        let survivor = cluster.other_than(leader);
        progress(&cluster, survivor, 50);
        cluster.node(leader).start();
        cluster.wait_formed(3);
        assert!(cluster.node(leader).runs(), "round {round}");
    }
    let address = cluster.node(1).http.clone();
    let acknowledged = load.check(&address);
    assert!(acknowledged > 400, "the load ran: {acknowledged}");
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn killing_a_follower_costs_no_availability() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let follower = cluster.other_than(leader);
    let load = Load::start(&[cluster.node(leader).http.clone()], 4, 64);
    progress(&cluster, leader, 50);
    cluster.node(follower).kill();
    progress(&cluster, leader, 200);
    assert_eq!(cluster.leader(), leader, "the leader stays");
    cluster.node(follower).start();
    cluster.wait_formed(3);
    let address = cluster.node(follower).http.clone();
    load.check(&address);
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn killing_all_nodes_at_once_under_load_loses_nothing() {
    let mut cluster = Cluster::start(3);
    for order in [[1, 2, 3], [3, 1, 2], [2, 3, 1]] {
        let load = Load::start(&addresses(&cluster), 4, 64);
        let leader = cluster.leader();
        progress(&cluster, leader, 100);
        for i in 1..=3 {
            cluster.node(i).kill();
        }
        for i in order {
            cluster.node(i).start();
        }
        cluster.wait_formed(3);
        progress(&cluster, order[0], 20);
        let address = cluster.node(order[1]).http.clone();
        load.check(&address);
        cluster.wait_same_hash(&[1, 2, 3]);
    }
}

/// Small limits, so that snapshots and purges happen all the time.
const SNAPSHOTS_OFTEN: &[(&str, &str)] =
    &[("SNAPSHOT_LOG_BYTES_MIN", "256KiB"), ("WAL_SEGMENT_BYTES", "10MiB"), ("LOG_ENTRIES_KEPT", "10")];

#[test]
fn killing_nodes_while_they_snapshot_and_purge_loses_nothing() {
    let mut cluster = Cluster::start_with(3, SNAPSHOTS_OFTEN);
    let load = Load::start(&addresses(&cluster), 4, 16_384);
    for _ in 0..3 {
        for victim in 1..=3 {
            progress(&cluster, victim, 150);
            cluster.node(victim).kill();
            cluster.node(victim).start();
            cluster.wait_formed(3);
        }
    }
    let address = cluster.node(2).http.clone();
    load.check(&address);
    cluster.wait_same_hash(&[1, 2, 3]);
    for i in 1..=3 {
        let snapshots = std::fs::read_dir(cluster.node(i).data.join("snapshots")).expect("a directory").count();
        assert!(snapshots > 0, "node {i} made snapshots");
    }
}

#[test]
fn a_node_that_was_away_for_long_is_brought_level_by_a_snapshot() {
    // Each value fills many log entries' worth of bytes; the log is purged past what the absent node has.
    let mut cluster = Cluster::start_with(3, SNAPSHOTS_OFTEN);
    let leader = cluster.leader();
    let away = cluster.other_than(leader);
    cluster.node(away).kill();
    let load = Load::start(&[cluster.node(leader).http.clone()], 8, 256);
    eventually("the log is purged behind a snapshot", || cluster.purged_past(leader, away));
    load.check(&cluster.node(leader).http.clone());
    cluster.node(away).start();
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
    assert!(cluster.node(away).logged().contains("snapshot installed"), "not by the log, which no longer has it");
}

fn damage(state: &Path, how: &str) {
    let mut files = Vec::new();
    let mut dirs = vec![state.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    assert!(!files.is_empty(), "there is a state database at {}", state.display());
    if how == "delete" {
        return std::fs::remove_dir_all(state).expect("it can be deleted");
    }
    for path in files {
        let mut bytes = std::fs::read(&path).expect("a file");
        match how {
            "truncate" => bytes.truncate(bytes.len() / 2),
            "flip" => bytes.iter_mut().step_by(97).for_each(|b| *b ^= 0x40),
            other => panic!("{other}"),
        }
        std::fs::write(&path, bytes).expect("a file");
    }
}

#[test]
fn a_state_database_that_is_deleted_truncated_or_flipped_is_rebuilt() {
    let mut cluster = Cluster::start_with(3, SNAPSHOTS_OFTEN);
    let load = Load::start(&addresses(&cluster), 4, 1024);
    let leader = cluster.leader();
    progress(&cluster, leader, 800);
    load.check(&cluster.node(leader).http.clone());
    for (victim, how) in [(1, "delete"), (2, "truncate"), (3, "flip")] {
        let hash = cluster.wait_same_hash(&[1, 2, 3]);
        cluster.node(victim).kill();
        damage(&cluster.node(victim).data.join("state"), how);
        // Killed while it rebuilds, once as soon as the process runs, once as soon as it answers.
        cluster.node(victim).start();
        cluster.node(victim).kill();
        cluster.node(victim).start();
        eventually("it answers", || request(&cluster.nodes[victim - 1].http, &get("/health/live")).map(|_| ()));
        cluster.node(victim).kill();
        cluster.node(victim).start();
        cluster.wait_formed(3);
        assert_eq!(cluster.wait_same_hash(&[1, 2, 3]), hash, "after {how}");
    }
}

#[test]
fn a_join_or_leave_that_is_killed_in_the_middle_can_be_repeated() {
    let mut cluster = Cluster::start(3);
    let load = Load::start(&addresses(&cluster), 2, 64);
    let target = cluster.node(1).name.clone();
    cluster.add_running();
    for _ in 0..3 {
        let (http, body) =
            (cluster.node(4).http.clone(), serde_json::json!({"node": target, "discard_local_data": true}));
        // Killed as soon as it was asked: before, in the middle of, or after being taken in.
        let asked = std::thread::spawn(move || request(&http, &json("POST", "/api/cluster/join", &body)).is_ok());
        eventually("the join is under way or done", || {
            let log = cluster.nodes[0].logged() + &cluster.nodes[1].logged() + &cluster.nodes[2].logged();
            if log.contains("a node asks to join") || asked.is_finished() { Ok(()) } else { Err("not yet".into()) }
        });
        cluster.node(4).kill();
        asked.join().expect("the client thread ends");
        cluster.node(4).start();
        eventually("the node runs again", || request(&cluster.nodes[3].http, &get("/health/live")).map(|_| ()));
    }
    eventually("in the end it is a member", || {
        let status = cluster.nodes[3].status()?;
        if status["members"].as_array().map(Vec::len) == Some(4) {
            return Ok(());
        }
        let answer = cluster.nodes[3].join(&target, true);
        Err(format!("{answer:?}"))
    });
    let http = cluster.node(4).http.clone();
    let asked =
        std::thread::spawn(move || request(&http, &json("POST", "/api/cluster/leave", &serde_json::json!({}))).is_ok());
    eventually("the leave is under way or done", || {
        let status = cluster.nodes[0].status()?;
        let left = status["members"].as_array().map(Vec::len) == Some(3);
        if left || asked.is_finished() { Ok(()) } else { Err(format!("{status}")) }
    });
    cluster.node(4).kill();
    asked.join().expect("the client thread ends");
    let address = cluster.node(1).http.clone();
    load.check(&address);
    cluster.wait_same_hash(&[1, 2, 3]);
    assert_eq!(cluster.node(1).status().expect("a status")["members"].as_array().map(Vec::len), Some(3));
}

#[test]
fn a_cluster_without_a_majority_says_so_and_changes_nothing() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let address = cluster.node(leader).http.clone();
    request(&address, &put("/api/kv/k", "before")).expect("an answer");
    for i in (1..=3).filter(|i| *i != leader) {
        cluster.node(i).kill();
    }
    let refused = request(&address, &put("/api/kv/k?timeout=1s", "after")).expect("an answer");
    let code = refused.problem();
    assert!(matches!((refused.status, code.as_str()), (503, "no_leader") | (504, "outcome_unknown")), "{refused:?}");
    let read = request(&address, &get("/api/kv/k?timeout=1s")).expect("an answer");
    assert_eq!((read.status, read.problem()), (503, "no_leader".into()), "a linearizable read needs a majority too");
    assert!(read.headers.contains_key("retry-after"));
    let stale = request(&address, &get("/api/kv/k?consistency=stale")).expect("an answer");
    assert_eq!((stale.status, stale.text()), (200, "before".into()), "stale reads go on");
    let bounded =
        request(&address, &get("/api/kv/k?consistency=stale&max_staleness=1ms&timeout=1s")).expect("an answer");
    assert_eq!((bounded.status, bounded.problem()), (503, "stale".into()));
    assert_eq!(request(&address, &get("/health/ready")).expect("an answer").status, 503);
    assert_eq!(request(&address, &get("/health/live")).expect("an answer").status, 200);
    assert_eq!(cluster.node(leader).json("/health").expect("a document")["status"], "degraded");
    for i in (1..=3).filter(|i| *i != leader) {
        cluster.node(i).start();
    }
    cluster.wait_formed(3);
    let read = request(&address, &get("/api/kv/k")).expect("an answer");
    let possible = if code == "no_leader" { vec!["before"] } else { vec!["before", "after"] };
    assert!(possible.contains(&read.text().as_str()), "{read:?} after {code}");
}
