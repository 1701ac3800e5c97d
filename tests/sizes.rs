//! The same body at every cluster size.

use crate::harness::{Cluster, LONG_TESTS, delete, eventually, get, put, request, skipped};

/// Forms, serves through every node, loses its leader (where a majority is left), gets it back, and agrees.
fn life_of_a_cluster(size: usize) {
    let mut cluster = Cluster::start(size);
    let voters = size.min(3);
    for index in 1..=size {
        let address = cluster.node(index).http.clone();
        let answer = request(&address, &put(&format!("/api/kv/size/{index}"), index.to_string())).expect("an answer");
        assert_eq!(answer.status, 200, "through node {index} of {size}: {answer:?}");
    }
    let leader = cluster.leader();
    cluster.node(leader).kill();
    if voters == 3 {
        let survivor = cluster.other_than(leader);
        eventually("a write succeeds after the leader died", || {
            let answer = request(&cluster.node(survivor).http, &put("/api/kv/size/after", "the failover"))?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }
    cluster.node(leader).start();
    cluster.wait_formed(size);
    for index in 1..=size {
        let address = cluster.node(index).http.clone();
        for written in 1..=size {
            let read = request(&address, &get(&format!("/api/kv/size/{written}"))).expect("an answer");
            assert_eq!((read.status, read.text()), (200, written.to_string()), "on node {index} of {size}");
        }
    }
    let gone = request(&cluster.node(size).http.clone(), &delete("/api/kv?prefix=size/")).expect("an answer").json();
    assert_eq!(gone["deleted"], size + usize::from(voters == 3));
    cluster.wait_holders_agree(voters);
}

/// Memory of its own that an idle node may have, in KiB: what is in the binary's pages differs between builds.
const IDLE_KIB_MAX: u64 = 20 * 1024;

/// Memory of a process that is no file's, in KiB.
fn own_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn idle_nodes_are_small() {
    let mut cluster = Cluster::start(3);
    for index in 1..=3 {
        let kib = own_kib(cluster.node(index).pid().expect("it runs"));
        assert!(kib <= IDLE_KIB_MAX, "node {index} has {kib} KiB of its own");
    }
}

#[test]
fn one_node() {
    life_of_a_cluster(1);
}

#[test]
fn two_nodes() {
    life_of_a_cluster(2);
}

#[test]
fn three_nodes() {
    life_of_a_cluster(3);
}

#[test]
fn four_nodes() {
    life_of_a_cluster(4);
}

#[test]
fn five_nodes() {
    life_of_a_cluster(5);
}

#[test]
fn seven_nodes() {
    life_of_a_cluster(7);
}

/// Ten nodes of an unoptimised build take a while beside all the other tests.
#[test]
fn ten_nodes_in_the_long_run() {
    if std::env::var_os(LONG_TESTS).is_none() {
        return skipped(format!("{LONG_TESTS} is not set"));
    }
    life_of_a_cluster(10);
}
