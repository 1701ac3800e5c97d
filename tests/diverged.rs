//! A node whose state silently differs from the others' finds out, stops serving it, and is rebuilt by itself.

use std::path::Path;

use hexkv_store::{
    LogId,
    clock::LogClock,
    codec,
    engine::{Batch, Engine, SledEngine},
    record::Record,
};

use xxhash_rust::xxh3::xxh3_128;

use crate::harness::{Cluster, eventually, get, json, put, request};

const KEY: &str = "silently";
/// Where the engine keeps the records of keys.
const RECORD_PREFIX: u8 = b'c';
const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// Format version, applied entry, wall time, clock, revision, compacted revision, state hash, and two checksums.
type Progress = (u32, Option<LogId>, u64, LogClock, u64, u64, u128, u32, u32);

/// What a record adds to the state hash.
fn hash_of(key: &str, record: &Record) -> u128 {
    let key_bytes = (key.len() as u32).to_le_bytes();
    xxh3_128(&[&key_bytes, key.as_bytes(), &codec::encode(record)].concat())
}

/// Changes the stored value of [`KEY`] behind the back of a node that does not run, and makes every checksum right:
/// such a state is what a bug in apply or a bad memory chip leaves.
fn falsify(data: &Path) {
    let state = data.join("state");
    let generation = std::fs::read_to_string(state.join("CURRENT")).unwrap();
    let engine = SledEngine::open(&state.join(generation.trim()).join("sled"), 16 * 1024 * 1024).unwrap();
    let key = [&[RECORD_PREFIX], KEY.as_bytes()].concat();
    let stored = engine.get(&key).unwrap().expect("the record is there");
    let record: Record = codec::decode("record", &stored, RECORD_BYTES_MAX).unwrap();
    let false_record = Record { value: "false".into(), ..record.clone() };
    let mut batch = Batch::default();
    let progress_key = b"mprogress".to_vec();
    let sealed = engine.get(&progress_key).unwrap().expect("progress is there");
    let mut progress: Progress = codec::decode("progress", &sealed[4..], RECORD_BYTES_MAX).unwrap();
    progress.6 = progress.6.wrapping_sub(hash_of(KEY, &record)).wrapping_add(hash_of(KEY, &false_record));
    let row = codec::encode(&progress);
    batch.put(progress_key, [&crc32fast::hash(&row).to_le_bytes()[..], &row].concat());
    batch.put(key, codec::encode(&false_record));
    engine.write(&batch).unwrap();
    engine.flush().unwrap();
}

fn id_of(cluster: &mut Cluster, asked: usize, index: usize) -> Option<String> {
    let name = cluster.node(index).name.clone();
    let status = cluster.node(asked).status().ok()?;
    let member = status["members"].as_array()?.iter().find(|m| m["name"] == name.as_str() && m["role"] == "voter")?;
    member["id"].as_str().map(str::to_string)
}

/// What is done to the node that differs, besides.
#[derive(PartialEq)]
enum Victim {
    Follows,
    Leads,
    IsKilledWhenItFindsOut,
}

fn is_rebuilt(how: Victim) {
    let mut cluster = Cluster::start_with(3, &[("SNAPSHOT_LOG_BYTES_MIN", "64KiB")]);
    let leader = cluster.leader();
    let victim = cluster.other_than(leader);
    assert_eq!(request(&cluster.node(leader).http, &put(&format!("/api/kv/{KEY}"), b"true")).unwrap().status, 200);
    cluster.wait_same_hash(&[1, 2, 3]);
    let before = id_of(&mut cluster, leader, victim).expect("it votes");
    assert_eq!(cluster.node(victim).stop(), Some(0));
    falsify(&cluster.node(victim).data);
    let (honest, third) = (leader, 6 - leader - victim);
    // One honest node is no majority: with it alone, the victim does not know yet.
    cluster.node(third).kill();
    cluster.node(victim).start();
    cluster.wait_formed(3);
    let read = request(&cluster.node(victim).http, &get(&format!("/api/kv/{KEY}?consistency=stale"))).unwrap();
    assert_eq!(read.text(), "false", "the node does not know yet");
    if how == Victim::Leads {
        let leads = cluster.leader();
        let to = serde_json::json!({ "to": cluster.node(victim).name });
        let answer = request(&cluster.node(leads).http, &json("POST", "/api/cluster/transfer-leader", &to)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Nothing is written from here on: states at one log index are compared.
    cluster.node(third).start();
    if how == Victim::IsKilledWhenItFindsOut {
        eventually("it finds out", || {
            let log = cluster.node(victim).logged();
            if log.contains("state differs from the other nodes'") { Ok(()) } else { Err(log) }
        });
        cluster.node(victim).kill();
        cluster.node(victim).start();
    }

    eventually("it votes under a new id", || match id_of(&mut cluster, honest, victim) {
        Some(id) if id != before => Ok(()),
        other => Err(format!("{other:?}, it was {before}")),
    });
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
    eventually("it says what happened", || {
        let log = cluster.node(victim).logged();
        // Killed after its new life began, it has nothing left to tell.
        let rebuilt = log.contains("was rebuilt") || how == Victim::IsKilledWhenItFindsOut;
        if log.contains("state differs from the other nodes'") && rebuilt { Ok(()) } else { Err(log) }
    });
    let read = request(&cluster.node(victim).http, &get(&format!("/api/kv/{KEY}?consistency=stale"))).unwrap();
    assert_eq!((read.status, read.text().as_str()), (200, "true"));
    let kept = std::fs::read_dir(&cluster.node(victim).data).unwrap();
    let kept: Vec<String> = kept.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(kept.iter().any(|name| name.starts_with("aside-") && name.ends_with("-diverged")), "{kept:?}");
}

#[test]
fn a_follower_that_differs_is_rebuilt() {
    is_rebuilt(Victim::Follows);
}

#[test]
fn a_leader_that_differs_steps_down_and_is_rebuilt() {
    is_rebuilt(Victim::Leads);
}

#[test]
fn a_rebuild_that_is_cut_short_goes_on_after_a_restart() {
    is_rebuilt(Victim::IsKilledWhenItFindsOut);
}
