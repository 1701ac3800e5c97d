//! kill -9 of real processes under load: what was acknowledged is there afterwards, and all nodes agree.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    harness::{
        Cluster, Node, PATIENCE, Request, eventually, get, json,
        load::{Load, addresses, progress},
        put, request,
    },
    membership::aside,
};

/// Between two looks at what is over soon.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Rounds of trying to kill a node in the middle of something; almost every one does.
const CATCH_ROUNDS_MAX: usize = 10;

/// Waits until `condition` holds, and returns as soon as it does: for what is to be broken off.
pub fn caught(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(LOOK_INTERVAL);
    }
}

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
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        let load = Load::start(&addresses(&cluster), 4, 64);
        let leader = cluster.leader();
        progress(&cluster, leader, 50);
        // All are dead before the first one is waited for.
        cluster.nodes.iter().for_each(|node| node.signal(rustix::process::Signal::KILL));
        cluster.nodes.iter_mut().for_each(Node::kill);
        let [first, second, last] = order;
        cluster.node(first).start();
        eventually("the first one runs", || request(&cluster.nodes[first - 1].http, &get("/health/live")).map(drop));
        cluster.node(second).start();
        for index in [first, second] {
            eventually("two of three serve", || cluster.nodes[index - 1].ready());
        }
        cluster.node(last).start();
        cluster.wait_formed(3);
        let address = cluster.node(last).http.clone();
        load.check(&address);
        cluster.wait_same_hash(&[1, 2, 3]);
    }
}

/// Small limits, so that snapshots and purges happen all the time: a snapshot is due when the log has grown by more than its
/// size, so little history is kept.
pub const SNAPSHOTS_OFTEN: &[(&str, &str)] = &[
    ("SNAPSHOT_LOG_BYTES_MIN", "256KiB"),
    ("WAL_SEGMENT_BYTES", "10MiB"),
    ("LOG_ENTRIES_KEPT", "10"),
    ("HISTORY_BYTES", "1MiB"),
];

/// The only file in `dir` with this extension, or the first by name.
fn first(dir: &Path, extension: &str) -> Option<PathBuf> {
    let paths = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|e| e == extension)).min()
}

#[test]
fn killing_nodes_while_they_snapshot_and_purge_loses_nothing() {
    let mut cluster = Cluster::start_with(3, SNAPSHOTS_OFTEN);
    let of_each = |cluster: &Cluster, dir: &str| cluster.nodes.iter().map(|n| n.data.join(dir)).collect::<Vec<_>>();
    let snapshots = of_each(&cluster, "snapshots");
    let begins = |wal: &PathBuf| first(wal, "wal").expect("a log has a segment");
    let oldest: Vec<_> = of_each(&cluster, "wal").iter().map(begins).collect();
    let load = Load::start(&addresses(&cluster), 4, 16_384);
    let mut broken_off = 0;
    for round in 0..CATCH_ROUNDS_MAX {
        for victim in 1..=3 {
            caught("a snapshot is under way", || first(&snapshots[victim - 1], "building").is_some());
            cluster.node(victim).kill();
            broken_off += usize::from(first(&snapshots[victim - 1], "building").is_some());
            cluster.node(victim).start();
            cluster.wait_formed(3);
        }
        if broken_off > 0 {
            break;
        }
        assert!(round + 1 < CATCH_ROUNDS_MAX, "no node was killed while it made a snapshot");
    }
    eventually("every node purges its log", || match oldest.iter().find(|segment| segment.exists()) {
        Some(segment) => Err(format!("{} is there", segment.display())),
        None => Ok(()),
    });
    let address = cluster.node(2).http.clone();
    load.check(&address);
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn a_node_that_was_away_for_long_is_brought_level_by_a_snapshot() {
    // Each value fills many log entries' worth of bytes; the log is purged past what the absent node has.
    let mut cluster = Cluster::start_with(3, SNAPSHOTS_OFTEN);
    let leader = cluster.leader();
    let away = cluster.other_than(leader);
    cluster.node(away).kill();
    let last = cluster.last_log_index(leader);
    let load = Load::start(&[cluster.node(leader).http.clone()], 8, 256);
    eventually("the log is purged behind a snapshot", || cluster.purged_past(leader, last));
    load.check(&cluster.node(leader).http.clone());
    cluster.node(away).start();
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
    assert!(cluster.node(away).logged().contains("snapshot installed"), "not by the log, which no longer has it");
}

/// Sends node 4 `wanted`, kills the node once `under_way`, and starts it again. Answers whether nobody was told the outcome.
fn break_off(cluster: &mut Cluster, wanted: Request, mut under_way: impl FnMut(&Cluster) -> bool) -> bool {
    let http = cluster.node(4).http.clone();
    let asked = std::thread::spawn(move || request(&http, &wanted));
    caught("it is under way, or done", || under_way(cluster) || asked.is_finished());
    cluster.node(4).kill();
    let answer = asked.join().expect("the client thread ends");
    cluster.node(4).start();
    eventually("the node runs again", || request(&cluster.nodes[3].http, &get("/health/live")).map(drop));
    answer.is_err()
}

/// A join of node 4 that is broken off as soon as a node is asked to take it in, and ends in membership all the same.
fn break_off_join(cluster: &mut Cluster) -> bool {
    let target = cluster.node(1).name.clone();
    let asked = |cluster: &Cluster| {
        cluster.nodes[..3].iter().map(|node| node.logged().matches("a node asks to join").count()).sum::<usize>()
    };
    let before = asked(cluster);
    let body = serde_json::json!({"node": target, "discard_local_data": true});
    let broken_off = break_off(cluster, json("POST", "/api/cluster/join", &body), |cluster| asked(cluster) > before);
    assert!(asked(cluster) > before, "this round's join came to a node of the cluster");
    eventually("in the end it is a member", || {
        if members(cluster, 4)? == 4 {
            return Ok(());
        }
        Err(format!("{:?}", cluster.nodes[3].join(&target, true)))
    });
    broken_off
}

/// A leave of node 4 that is broken off as soon as the others have let it go, and ends in a cluster of its own all the same.
fn break_off_leave(cluster: &mut Cluster) -> bool {
    let leave = json("POST", "/api/cluster/leave", &serde_json::json!({}));
    let left = cluster.node(1).status().expect("a status")["cluster_id"].clone();
    eventually("the others know all four", || match members(cluster, 1)? {
        4 => Ok(()),
        known => Err(format!("{known} are known")),
    });
    let broken_off = break_off(cluster, leave.clone(), |cluster| members(cluster, 1) == Ok(3));
    eventually("in the end it is alone", || {
        let node = &cluster.nodes[3];
        let status = node.status()?;
        let own = status["cluster_id"].is_string() && status["cluster_id"] != left;
        if own && members(cluster, 4)? == 1 {
            return node.ready();
        }
        Err(format!("{status}, {:?}", request(&node.http, &leave)?))
    });
    broken_off
}

/// How many members node `asked` sees.
fn members(cluster: &Cluster, asked: usize) -> Result<usize, String> {
    Ok(cluster.nodes[asked - 1].status()?["members"].as_array().ok_or("no members")?.len())
}

#[test]
fn a_join_or_leave_that_is_killed_in_the_middle_can_be_repeated() {
    let mut cluster = Cluster::start(3);
    let load = Load::start(&addresses(&cluster), 2, 64);
    cluster.add_running();
    let (mut rounds, mut joins, mut leaves) = (0, 0, 0);
    while joins == 0 || leaves == 0 {
        rounds += 1;
        assert!(rounds <= CATCH_ROUNDS_MAX, "{joins} joins and {leaves} leaves were broken off");
        joins += usize::from(break_off_join(&mut cluster));
        leaves += usize::from(break_off_leave(&mut cluster));
    }
    let kept = aside(cluster.node(4));
    let left = kept.iter().filter(|name| name.ends_with("-left")).count();
    assert_eq!(left, rounds, "what each membership left is kept: {kept:?}");
    let own = request(&cluster.node(4).http.clone(), &put("/api/kv/own", "new")).expect("an answer");
    assert_eq!(own.status, 200, "{own:?}");
    let address = cluster.node(1).http.clone();
    load.check(&address);
    cluster.wait_same_hash(&[1, 2, 3]);
    assert_eq!(members(&cluster, 1), Ok(3));
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
