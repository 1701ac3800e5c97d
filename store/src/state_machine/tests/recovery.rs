//! What a node finds after it was killed, lost its power, or its files were damaged.

use std::{collections::BTreeMap, fs, path::PathBuf};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    engine::Batch,
    lease::LeaseView,
    record::Record,
    state_machine::{Meta, keys},
};

/// Copies `from` as a killed process leaves it: nothing is flushed first.
fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Entries that create, change and delete keys, with a few directory commands and a compaction among them.
fn commands(count: u64) -> Vec<Command> {
    let mut rng = StdRng::seed_from_u64(count);
    (1..=count)
        .map(|index| match index % 50 {
            49 => Command::SetReplicationFactor(1 + (index % 7) as u32),
            3 => grant(index),
            10 => put_attached(&format!("leased{index}"), "v", index - 7),
            11 => put_attached(&format!("key{}", rng.random_range(0..80)), "v", index - 8),
            30 if index % 100 == 30 => end_lease(index - 27),
            25 if index > 100 => Command::Compact(index / 4),
            _ if rng.random_bool(0.2) => delete(&format!("key{}", rng.random_range(0..80))),
            _ => put(&format!("key{}", rng.random_range(0..80)), &"v".repeat(rng.random_range(0..2_000))),
        })
        .collect()
}

fn run_all(fixture: &mut Fixture, commands: &[Command]) {
    for command in commands {
        fixture.run(command);
    }
}

/// Everything that has to be the same after a recovery.
type Image = (Meta, BTreeMap<Bytes, u64>, Vec<LeaseView>, Vec<(Bytes, Record)>);

fn image(fixture: &Fixture) -> Image {
    let live = fixture.machine.shared.live.read();
    let meta = Meta { checkpoints: Arc::default(), ..live.meta.clone() };
    let deleted = live.deleted.clone();
    drop(live);
    let leases = fixture.state.leases(0, usize::MAX).items;
    assert!(leases.len() < 2 || leases.iter().any(|l| fixture.state.lease(l.id, 1).unwrap().key_count > 0));
    let leases = leases.iter().map(|l| fixture.state.lease(l.id, usize::MAX).unwrap()).collect();
    (meta, deleted, leases, fixture.dump())
}

fn sled_dir(data_dir: &Path, generation: u64) -> PathBuf {
    data_dir.join("state").join(generation.to_string()).join("sled")
}

#[test]
fn a_killed_process_goes_on_from_what_the_engine_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), SLED);
    run_all(&mut fixture, &commands(300));
    fixture.persist_all();
    run_all(&mut fixture, &commands(40));
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    let mut restarted = Fixture::manual(killed.path(), SLED);
    assert_eq!(restarted.generation(), fixture.generation(), "nothing is rebuilt");
    let applied = restarted.state.applied().map_or(0, |last| last.index);
    assert!(applied <= 300, "entry {applied} was never persisted");
    restarted.catch_up(&fixture.log);
    assert_eq!(image(&restarted), image(&fixture));
    assert_eq!(restarted.state.hash().hash, fixture.state.hash().hash);
}

#[tokio::test]
async fn an_orderly_stop_loses_nothing_and_is_noted_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), SLED);
    run_all(&mut fixture, &commands(120));
    fixture.state.close().await.unwrap();
    let (before, generation) = (image(&fixture), fixture.generation());
    let checkpoints = fixture.state.hash().checkpoints;
    let clean = dir.path().join("state/CLEAN");
    assert!(clean.exists());
    drop(fixture);
    let fixture = Fixture::open(dir.path(), SLED);
    assert!(!clean.exists(), "a node that runs is not stopped");
    assert_eq!(fixture.generation(), generation, "nothing is rebuilt");
    assert_eq!(image(&fixture), before);
    assert!(!checkpoints.is_empty());
    assert_eq!(fixture.state.hash().checkpoints, checkpoints);
}

/// A data directory with a snapshot at entry 200 of 300, all of them persisted, and its log.
async fn with_snapshot(dir: &Path) -> (Vec<Entry>, u64, Image) {
    let mut fixture = Fixture::open(dir, SLED);
    let commands = commands(300);
    run_all(&mut fixture, &commands[..200]);
    fixture.build().await;
    run_all(&mut fixture, &commands[200..]);
    fixture.state.close().await.unwrap();
    (fixture.log.clone(), fixture.generation(), image(&fixture))
}

fn after_snapshot() -> StateOptions {
    StateOptions { log_purged: Some(200), ..options(SLED) }
}

#[tokio::test]
async fn a_power_cut_leads_to_a_rebuild_from_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (log, generation, expected) = with_snapshot(dir.path()).await;
    let options = StateOptions { power_lost: true, ..after_snapshot() };
    let mut fixture = Fixture::open_with(Arc::new(RealFs), dir.path(), options).unwrap();
    assert_eq!(fixture.state.applied(), Some(log_id(200)));
    assert_ne!(fixture.generation(), generation);
    assert!(!sled_dir(dir.path(), generation).exists(), "the old state is removed");
    fixture.catch_up(&log);
    assert_eq!(image(&fixture), expected);
}

/// Damages a copy of the data directory, and expects that the state comes back to what it was. Returns whether
/// it was rebuilt.
fn recovers(
    data_dir: &Path,
    (log, generation, expected): &(Vec<Entry>, u64, Image),
    damage: impl FnOnce(&Path),
) -> bool {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(data_dir, copy.path());
    damage(copy.path());
    let mut fixture = Fixture::open_with(Arc::new(RealFs), copy.path(), after_snapshot()).unwrap();
    fixture.catch_up(log);
    assert_eq!(image(&fixture), *expected);
    fixture.generation() != *generation
}

#[tokio::test]
async fn what_is_missing_or_does_not_fit_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let made = with_snapshot(dir.path()).await;
    let generation = made.1;
    let state = |dir: &Path| dir.join("state");
    let here = |dir: &Path| state(dir).join(generation.to_string());
    assert!(!recovers(dir.path(), &made, |_| {}), "nothing is wrong");
    assert!(recovers(dir.path(), &made, |dir| fs::remove_dir_all(sled_dir(dir, generation)).unwrap()));
    assert!(recovers(dir.path(), &made, |dir| fs::remove_dir_all(here(dir)).unwrap()));
    assert!(recovers(dir.path(), &made, |dir| fs::remove_dir_all(here(dir).join("changes")).unwrap()));
    let numbered_afresh = recovers(dir.path(), &made, |dir| fs::remove_dir_all(state(dir)).unwrap());
    assert!(!numbered_afresh, "numbers begin with 1 again");
    assert!(recovers(dir.path(), &made, |dir| fs::remove_file(state(dir).join("CURRENT")).unwrap()));
    assert!(recovers(dir.path(), &made, |dir| fs::write(state(dir).join("CURRENT"), "seven").unwrap()));
    assert!(recovers(dir.path(), &made, |dir| fs::write(state(dir).join("CURRENT"), "7\n").unwrap()));
}

#[tokio::test]
async fn damaged_engine_files_end_in_the_right_state() {
    let dir = tempfile::tempdir().unwrap();
    let made = with_snapshot(dir.path()).await;
    let mut rng = StdRng::seed_from_u64(1);
    let mut rebuilt = 0;
    for sample in 0..24 {
        let recovered = recovers(dir.path(), &made, |dir| {
            let path = sled_dir(dir, made.1).join("db");
            let mut content = fs::read(&path).unwrap();
            let used = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let at = rng.random_range(0..used);
            match sample % 3 {
                0 => content.truncate(at),
                1 => content[at] ^= 1 << rng.random_range(0..8),
                _ => content[at..used.min(at + 4096)].fill(0),
            }
            fs::write(path, content).unwrap();
        });
        rebuilt += u32::from(recovered);
    }
    assert!(rebuilt > 0, "no damage was ever noticed");
}

#[tokio::test]
async fn a_state_with_another_hash_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let (log, generation, expected) = with_snapshot(dir.path()).await;
    let fixture = Fixture::open(dir.path(), SLED);
    let mut batch = Batch::default();
    batch.delete(keys::current(&fixture.dump()[0].0));
    fixture.machine.shared.live.read().generation.engine.write(&batch).unwrap();
    drop(fixture);
    let mut fixture = Fixture::open_with(Arc::new(RealFs), dir.path(), after_snapshot()).unwrap();
    assert_ne!(fixture.generation(), generation);
    fixture.catch_up(&log);
    assert_eq!(image(&fixture), expected);
}

#[tokio::test]
async fn damage_that_a_read_finds_is_fatal_and_rebuilt_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (log, generation, expected) = with_snapshot(dir.path()).await;
    let mut fixture = Fixture::open(dir.path(), SLED);
    let key = fixture.dump()[0].0.clone();
    let mut batch = Batch::default();
    batch.put(keys::current(&key), b"no record".to_vec());
    fixture.machine.shared.live.read().generation.engine.write(&batch).unwrap();
    assert_eq!(*fixture.state.fatal().borrow(), None);
    assert!(matches!(fixture.state.get(&key, 0), Err(StoreError::Decode { .. })));
    assert!(fixture.state.fatal().borrow().is_some());
    let entries = futures_util::stream::iter([Ok((entry(301, &put("a", "1")), None))]);
    fixture.machine.apply(entries).await.unwrap_err();
    fixture.state.close().await.unwrap_err();
    drop(fixture);
    let mut fixture = Fixture::open_with(Arc::new(RealFs), dir.path(), after_snapshot()).unwrap();
    assert_ne!(fixture.generation(), generation);
    fixture.catch_up(&log);
    assert_eq!(image(&fixture), expected);
}

#[tokio::test]
async fn without_state_snapshot_and_log_a_node_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    with_snapshot(dir.path()).await;
    let open = |options: StateOptions| Fixture::open_with(Arc::new(RealFs), dir.path(), options).map(|_| ());
    fs::remove_file(dir.path().join("state/CURRENT")).unwrap();
    let beyond = StateOptions { log_purged: Some(201), ..options(SLED) };
    assert!(matches!(open(beyond.clone()), Err(StoreError::Unrecoverable { .. })), "the snapshot is too old");
    let snapshot = fs::read_dir(dir.path().join("snapshots")).unwrap().next().unwrap().unwrap().path();
    let mut content = fs::read(&snapshot).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&snapshot, content).unwrap();
    let error = open(after_snapshot()).unwrap_err();
    assert!(matches!(error, StoreError::Unrecoverable { .. }), "the snapshot is damaged: {error}");
    open(options(SLED)).unwrap();
}

#[tokio::test]
async fn an_engine_older_than_the_log_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), SLED);
    let commands = commands(300);
    run_all(&mut fixture, &commands[..150]);
    fixture.persist_all();
    let old = tempfile::tempdir().unwrap();
    copy_dir(&dir.path().join("state"), &old.path().join("state"));
    run_all(&mut fixture, &commands[150..]);
    fixture.persist_all();
    fixture.build().await;
    copy_dir(&dir.path().join("snapshots"), &old.path().join("snapshots"));
    let options = StateOptions { log_purged: Some(300), ..options(SLED) };
    let restarted = Fixture::open_with(Arc::new(RealFs), old.path(), options).unwrap();
    assert_eq!(image(&restarted), image(&fixture));
}
