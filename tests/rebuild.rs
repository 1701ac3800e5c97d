//! A state database that was damaged is made again from snapshot and log, also by a node that is killed while it does so.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::{
    crash::{SNAPSHOTS_OFTEN, caught},
    harness::{Cluster, eventually, get, json as request_with, request},
};

/// Transactions by which the state is written, keys that each writes, and bytes of a value: making it again takes long enough to
/// be killed in the middle of it.
const WRITES: usize = 25;
const KEYS_A_WRITE: usize = 100;
const VALUE_BYTES: usize = 512;
/// What the last snapshot holds of it at least: one is due when the log has grown by as much as is in the one before.
const SNAPSHOT_BYTES_MIN: u64 = (WRITES * KEYS_A_WRITE * VALUE_BYTES / 4) as u64;
/// Tries at killing a node while it rebuilds; almost every one does.
const TRIES_MAX: usize = 10;

fn fill(http: &str) {
    for write in 0..WRITES {
        let value = |key: usize| format!("{:VALUE_BYTES$}", write * KEYS_A_WRITE + key);
        let puts: Vec<_> = (0..KEYS_A_WRITE)
            .map(|key| json!({"op": "put", "key": format!("state/{write}/{key}"), "text": value(key)}))
            .collect();
        let answer = request(http, &request_with("POST", "/api/txn", &json!({"success": puts}))).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// The state database of the node with this data directory.
fn database(data: &Path) -> PathBuf {
    let current = std::fs::read_to_string(data.join("state/CURRENT")).expect("a state counts");
    data.join("state").join(current.trim()).join("sled")
}

/// Damages the file with the records, and nothing else.
fn damage(database: &Path, how: &str) {
    let file = database.join("db");
    let mut bytes = std::fs::read(&file).expect("a file");
    match how {
        "delete" => return std::fs::remove_dir_all(database).expect("it can be deleted"),
        "truncate" => bytes.truncate(bytes.len() / 2),
        "flip" => bytes.iter_mut().step_by(97).for_each(|b| *b ^= 0x40),
        other => panic!("{other}"),
    }
    std::fs::write(&file, bytes).expect("a file");
}

/// How often node `index` said that it makes its state again.
fn rebuilds(cluster: &Cluster, index: usize) -> usize {
    cluster.nodes[index - 1].logged().matches("the state is rebuilt").count()
}

/// Kills node `victim`, damages its database, and kills it once more when it begins to make it again. The next start runs on.
/// Answers whether that one had to begin again, too.
fn kill_while_it_rebuilds(cluster: &mut Cluster, victim: usize, how: &str) -> bool {
    cluster.node(victim).kill();
    let before = rebuilds(cluster, victim);
    damage(&database(&cluster.node(victim).data), how);
    cluster.node(victim).start();
    caught(&format!("after {how} the state is rebuilt"), || rebuilds(cluster, victim) > before);
    cluster.node(victim).kill();
    cluster.node(victim).start();
    cluster.wait_formed(3);
    rebuilds(cluster, victim) == before + 2
}

#[test]
fn a_state_database_that_is_deleted_truncated_or_flipped_is_rebuilt() {
    let mut cluster = Cluster::start_with(3, SNAPSHOTS_OFTEN);
    fill(&cluster.node(1).http.clone());
    for node in &cluster.nodes {
        eventually("most of it is in a snapshot", || {
            let entries = std::fs::read_dir(node.data.join("snapshots")).map_err(|e| e.to_string())?;
            let complete = entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "snap"));
            let bytes = complete.flat_map(|entry| entry.metadata()).map(|metadata| metadata.len()).max();
            if bytes >= Some(SNAPSHOT_BYTES_MIN) { Ok(()) } else { Err(format!("{bytes:?}")) }
        });
    }
    let hash = cluster.wait_same_hash(&[1, 2, 3]);
    for (victim, how) in [(1, "delete"), (2, "truncate"), (3, "flip")] {
        let caught = (0..TRIES_MAX).any(|_| kill_while_it_rebuilds(&mut cluster, victim, how));
        assert!(caught, "after {how} no rebuild was interrupted");
        assert_eq!(cluster.wait_same_hash(&[1, 2, 3]), hash, "after {how}");
    }
    // Nothing at all is left, not even the name of the database.
    cluster.node(1).kill();
    std::fs::remove_dir_all(cluster.node(1).data.join("state")).expect("it can be deleted");
    cluster.node(1).start();
    cluster.wait_formed(3);
    assert_eq!(cluster.wait_same_hash(&[1, 2, 3]), hash);
    let read = request(&cluster.node(1).http.clone(), &get("/api/kv/state/0/7?consistency=stale")).expect("an answer");
    assert_eq!((read.status, read.text().trim()), (200, "7"));
}
