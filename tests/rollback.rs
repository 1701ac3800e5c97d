//! Disks that went back: a node that lost what it acknowledged neither votes nor serves, and comes back as a new member.

use std::path::Path;

use crate::{
    copies::{copy, id_of},
    harness::{Cluster, eventually, get, put, request},
};

/// Entries that are written after a copy was made.
const WRITES: usize = 30;
/// What of a data directory holds log and state.
const STORAGE: [&str; 3] = ["wal", "state", "snapshots"];

fn write(cluster: &mut Cluster, through: usize, prefix: &str) {
    for i in 0..WRITES {
        let path = format!("/api/kv/{prefix}{i}");
        let answer = request(&cluster.node(through).http, &put(&path, "v")).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Stops node `index`, copies its data directory, and starts it again.
fn keep_copy(cluster: &mut Cluster, index: usize) {
    assert_eq!(cluster.node(index).stop(), Some(0));
    let data = cluster.node(index).data.clone();
    copy(&data, &data.with_extension("old"));
    cluster.node(index).start();
    cluster.wait_formed(3);
}

/// Waits until node `index` has logged `line`.
fn wait_logged(cluster: &Cluster, index: usize, line: &str) {
    eventually(line, || {
        let log = cluster.nodes[index - 1].logged();
        if log.contains(line) { Ok(()) } else { Err(log) }
    });
}

/// Waits until node `index` has on disk that node `id` started `start` times.
fn wait_start_remembered(cluster: &Cluster, index: usize, id: &str, start: u64) {
    wait_logged(cluster, index, &format!("a member's start is remembered node={id} start={start}"));
}

/// Puts back the whole copied directory of a node that does not run.
fn put_back(data: &Path) {
    std::fs::remove_dir_all(data).expect("it is there");
    std::fs::rename(data.with_extension("old"), data).expect("the copy is there");
}

/// Puts back log and state only: the node's identity stays as new as it is.
fn put_storage_back(data: &Path) {
    for part in STORAGE {
        std::fs::remove_dir_all(data.join(part)).expect("it is there");
        std::fs::rename(data.with_extension("old").join(part), data.join(part)).expect("the copy is there");
    }
}

fn comes_back_as_new(cluster: &mut Cluster, asked: usize, index: usize, before: &str) {
    eventually("it votes under a new id", || match id_of(cluster, asked, index) {
        Some(id) if id != before => Ok(()),
        other => Err(format!("{other:?}, it was {before}")),
    });
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn a_follower_on_an_old_directory_comes_back_as_new() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let victim = cluster.other_than(leader);
    let before = id_of(&cluster, leader, victim).expect("it votes");
    keep_copy(&mut cluster, victim);
    wait_start_remembered(&cluster, leader, &before, 2);
    write(&mut cluster, leader, "w");
    cluster.node(victim).kill();
    put_back(&cluster.node(victim).data);
    cluster.node(victim).start();
    comes_back_as_new(&mut cluster, leader, victim, &before);
    wait_logged(&cluster, victim, "was rebuilt");
    assert!(cluster.node(victim).logged().contains("the data directory is an old one"));
}

#[test]
fn a_follower_that_lost_log_entries_comes_back_as_new() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let victim = cluster.other_than(leader);
    let before = id_of(&cluster, leader, victim).expect("it votes");
    keep_copy(&mut cluster, victim);
    write(&mut cluster, leader, "w");
    cluster.wait_same_hash(&[1, 2, 3]);
    cluster.node(victim).kill();
    put_storage_back(&cluster.node(victim).data);
    let pid = cluster.node(leader).pid();
    cluster.node(victim).start();
    comes_back_as_new(&mut cluster, leader, victim, &before);
    assert!(cluster.node(victim).logged().contains("its disk lost them"));
    // The follower finds it out by itself, or by what the leader says of it, whichever comes first.
    assert!(cluster.node(leader).runs() && cluster.node(leader).pid() == pid);
}

/// A leader and a follower acknowledge writes while the third node is away. Then the leader dies, `put` rolls the follower back, and
/// the other two start. Returns the leader, the follower and the third node.
fn roll_back_while_one_is_away(cluster: &mut Cluster, put: fn(&Path)) -> (usize, usize, usize) {
    let leader = cluster.leader();
    let rolled_back = cluster.other_than(leader);
    let away = 6 - leader - rolled_back;
    let id = id_of(cluster, leader, rolled_back).expect("it votes");
    keep_copy(cluster, rolled_back);
    wait_start_remembered(cluster, away, &id, 2);
    cluster.wait_same_hash(&[1, 2, 3]);
    cluster.node(away).kill();
    write(cluster, leader, "w");
    cluster.node(leader).kill();
    cluster.node(rolled_back).kill();
    put(&cluster.node(rolled_back).data);
    cluster.node(rolled_back).start();
    cluster.node(away).start();
    (leader, rolled_back, away)
}

#[test]
fn a_majority_that_lost_entries_is_not_formed_with_an_old_directory() {
    let mut cluster = Cluster::start(3);
    let (leader, rolled_back, _) = roll_back_while_one_is_away(&mut cluster, put_back);
    wait_logged(&cluster, rolled_back, "the data directory is an old one");
    cluster.node(leader).start();
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
    for index in 1..=3 {
        let last = request(&cluster.node(index).http, &get(&format!("/api/kv/w{}", WRITES - 1))).expect("an answer");
        assert_eq!(last.status, 200, "an acknowledged write is there: {}", last.text());
    }
}

#[test]
fn a_log_cut_below_what_was_applied_is_rebuilt_at_once() {
    let mut cluster = Cluster::start(3);
    let (deposed, _, away) = roll_back_while_one_is_away(&mut cluster, put_storage_back);
    // A majority of two, of which one lost its entries without a trace.
    cluster.wait_formed(3);
    let before = id_of(&cluster, away, deposed).expect("it votes");
    cluster.node(deposed).start();
    let last = format!("/api/kv/w{}", WRITES - 1);
    eventually("the node whose log was cut has the others' state", || {
        let read = request(&cluster.nodes[deposed - 1].http, &get(&last))?;
        assert_ne!(read.status, 200, "the majority does not have it");
        if read.status == 404 { Ok(()) } else { Err(read.text()) }
    });
    comes_back_as_new(&mut cluster, away, deposed, &before);
    wait_logged(&cluster, deposed, "was rebuilt");
    let log = cluster.node(deposed).logged();
    assert!(log.contains("entries up to") && log.contains("were committed here"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}
