//! Identity on the operating system's files and on a disk that stops at any operation.

use std::sync::Arc;

use super::*;
use crate::fs::{FaultyFs, RealFs};

const NAME: &str = "hex_hub1@127.0.0.1";

fn real() -> (tempfile::TempDir, SharedFs) {
    (tempfile::tempdir().unwrap(), Arc::new(RealFs))
}

#[test]
fn an_identity_lasts_and_its_incarnation_grows() {
    let (dir, fs) = real();
    let path = dir.path().join("data");
    let first = {
        let mut data = DataDir::open(fs.clone(), &path, NAME).unwrap();
        assert!(data.identity().node_id != 0 && data.identity().cluster_id.is_none() && !data.power_was_lost());
        data.set_cluster_id(7).unwrap();
        data.identity().clone()
    };
    let data = DataDir::open(fs, &path, NAME).unwrap();
    assert_eq!(*data.identity(), Identity { incarnation: 2, ..first });
    assert!(!data.power_was_lost(), "a killed process on a machine that did not boot lost nothing");
}

#[test]
fn a_start_that_is_taken_back_is_not_counted() {
    let (dir, fs) = real();
    let path = dir.path().join("data");
    drop(DataDir::open(fs.clone(), &path, NAME).unwrap());
    DataDir::open(fs.clone(), &path, NAME).unwrap().take_start_back().unwrap();
    assert_eq!(DataDir::open(fs, &path, NAME).unwrap().identity().incarnation, 2);
}

#[test]
fn a_directory_in_use_foreign_renamed_or_damaged_is_refused() {
    let (dir, fs) = real();
    let path = dir.path().join("data");
    let held = DataDir::open(fs.clone(), &path, NAME).unwrap();
    let busy = DataDir::open(fs.clone(), &path, NAME).unwrap_err();
    assert!(
        matches!(&busy, StoreError::Locked { holder, .. } if holder.contains(&std::process::id().to_string())),
        "{busy}"
    );
    drop(held);
    let other = DataDir::open(fs.clone(), &path, "hex_hub2@127.0.0.1").unwrap_err();
    assert!(matches!(&other, StoreError::Foreign { reason, .. } if reason.contains(NAME)), "{other}");
    let whole = std::fs::read(path.join("identity")).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(path.join("identity"), &flipped).unwrap();
        let refused = DataDir::open(fs.clone(), &path, NAME).unwrap_err();
        assert!(matches!(refused, StoreError::Corrupt { .. }), "byte {at}: {refused}");
        std::fs::write(path.join("identity"), &whole[..at]).unwrap();
        assert!(DataDir::open(fs.clone(), &path, NAME).is_err(), "cut at {at}");
    }
    let foreign = dir.path().join("photos");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("cat.jpg"), "x").unwrap();
    assert!(matches!(DataDir::open(fs, &foreign, NAME), Err(StoreError::Foreign { .. })));
}

#[test]
fn another_format_version_is_refused() {
    let (dir, fs) = real();
    let path = dir.path().join("data");
    drop(DataDir::open(fs.clone(), &path, NAME).unwrap());
    let mut bytes = std::fs::read(path.join("identity")).unwrap();
    bytes[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..16]);
    hasher.update(&bytes[20..]);
    bytes[16..20].copy_from_slice(&hasher.finalize().to_le_bytes());
    std::fs::write(path.join("identity"), bytes).unwrap();
    let refused = DataDir::open(fs, &path, NAME).unwrap_err();
    assert!(matches!(refused, StoreError::FormatVersion { found, .. } if found == FORMAT_VERSION + 1), "{refused}");
}

#[test]
fn power_is_lost_when_the_machine_booted_without_a_clean_stop() {
    let run = |boot: &str, clean| Some(Run { boot_id: boot.into(), clean, suspect: false });
    assert!(!power_was_lost(None, "b"), "a fresh directory");
    assert!(!power_was_lost(run("b", false), "b"), "killed");
    assert!(!power_was_lost(run("a", true), "b"), "stopped cleanly, then booted");
    assert!(power_was_lost(run("a", false), "b"));
    let suspect = Some(Run { boot_id: "b".into(), clean: false, suspect: true });
    assert!(power_was_lost(suspect, "b"), "killed before the state was rebuilt");
}

fn peer() -> Member {
    Member {
        name: "hex_hub2@h".into(),
        node_id: 2,
        http: "h:1".into(),
        raft: "h:2".into(),
        version: String::new(),
        leaving: false,
    }
}

#[test]
fn a_new_life_keeps_the_old_ones_aside() {
    let (dir, fs) = real();
    let path = dir.path().join("data");
    let mut data = DataDir::open(fs, &path, NAME).unwrap();
    assert_eq!(data.load_peers().unwrap(), None);
    data.store_peers(&[peer()]).unwrap();
    assert_eq!(data.load_peers().unwrap(), Some(vec![peer()]));
    let before = data.identity().node_id;
    for (n, reason) in [(1, "before-join"), (2, "left")] {
        std::fs::create_dir(path.join("wal")).unwrap();
        std::fs::write(path.join("wal/1"), reason).unwrap();
        data.start_new_life(reason, true, 100 + n, Some(n), Vec::new()).unwrap();
        assert!(!path.join("wal").exists());
        assert_eq!(std::fs::read_to_string(path.join(format!("aside-{n}-{reason}/wal/1"))).unwrap(), reason);
        assert_eq!((data.identity().node_id, data.identity().cluster_id), (100 + n, Some(n)));
        assert_eq!(data.load_peers().unwrap(), Some(Vec::new()), "it is to be alone");
    }
    assert_ne!(before, 102);
    data.start_new_life("before-join", false, 103, None, Vec::new()).unwrap();
    assert!(!path.join("aside-3-before-join").exists(), "nothing worth keeping");
}

#[test]
fn a_change_of_lives_that_stops_anywhere_is_all_or_nothing_after_the_next_open() {
    let path = Path::new("/data");
    let mut completed = 0;
    for stop_at in 0.. {
        let disk = FaultyFs::new();
        let fs: SharedFs = Arc::new(disk.clone());
        let mut data = DataDir::open(fs.clone(), path, NAME).unwrap();
        fs.create_dir_all(&path.join("wal")).unwrap();
        let file = fs.create_new(&path.join("wal/1")).unwrap();
        file.write_all_at(b"old", 0).unwrap();
        file.sync_data().unwrap();
        fs.sync_dir(&path.join("wal")).unwrap();
        fs.sync_dir(path).unwrap();
        let old = data.identity().node_id;
        disk.stop_at_operation(disk.operations() + stop_at);
        let done = data.start_new_life("left", true, 99, None, vec![peer()]);
        drop(data);
        let after: SharedFs = Arc::new(disk.crash(stop_at));
        let data = DataDir::open(after.clone(), path, NAME).unwrap();
        let new = data.identity().node_id == 99;
        assert!(new || data.identity().node_id == old);
        assert_eq!(after.exists(&path.join("wal/1")), !new, "stopped at {stop_at}: the log stays with its identity");
        assert_eq!(after.exists(&path.join("aside-1-left/wal/1")), new, "stopped at {stop_at}: nothing is lost");
        assert!(!new || data.load_peers().unwrap() == Some(vec![peer()]), "stopped at {stop_at}: it knows whom to ask");
        if done.is_ok() {
            assert!(new, "a change that was reported done is done");
            completed += 1;
            if completed == 3 {
                break;
            }
        }
    }
}

#[test]
fn what_a_killed_process_created_is_durable_once_the_directory_is_open() {
    let path = Path::new("/data/node");
    for stop_at in 1..12 {
        for seed in 0..12 {
            let disk = FaultyFs::new();
            disk.stop_at_operation(stop_at);
            drop(DataDir::open(Arc::new(disk.clone()), path, NAME));
            let alive = disk.kill();
            let opened = DataDir::open(Arc::new(alive.clone()), path, NAME).unwrap().identity().node_id;
            let after = DataDir::open(Arc::new(alive.crash(seed)), path, NAME).unwrap().identity().node_id;
            assert_eq!(opened, after, "killed at {stop_at}, power cut {seed}");
        }
    }
}

#[test]
fn a_change_of_lives_survives_a_crash_and_another_while_it_is_finished() {
    let path = Path::new("/data/node");
    for stop_at in 1..25 {
        for (seed, kill) in (0..24).flat_map(|seed| [(seed, false), (seed, true)]) {
            let disk = FaultyFs::new();
            let fs: SharedFs = Arc::new(disk.clone());
            let mut data = DataDir::open(fs.clone(), path, NAME).unwrap();
            for file in ["wal/1", "state/db"].map(|file| path.join(file)) {
                let parent = file.parent().unwrap();
                fs.create_dir_all(parent).unwrap();
                fs.create_new(&file).unwrap().sync_data().unwrap();
                fs.sync_dir(parent).unwrap();
            }
            fs.sync_dir(path).unwrap();
            disk.stop_at_operation(disk.operations() + stop_at);
            let done = data.start_new_life("left", true, 5, None, Vec::new()).is_ok();
            let after = if kill { disk.kill() } else { disk.crash(seed) };
            after.stop_at_operation(1 + seed / 2);
            drop(DataDir::open(Arc::new(after.clone()), path, NAME));
            let after: SharedFs = Arc::new(after.crash(seed + 100));
            let new = DataDir::open(after.clone(), path, NAME).unwrap().identity().node_id == 5;
            assert!(new || !done);
            for file in ["wal/1", "state/db"] {
                let found = (after.exists(&path.join(file)), after.exists(&path.join("aside-1-left").join(file)));
                assert_eq!(found, (!new, new), "{file}, stopped at {stop_at}, {seed}, {kill}");
            }
        }
    }
}

#[test]
fn lost_and_found_of_a_file_system_is_no_content_and_stays_where_it_is() {
    let (dir, fs) = real();
    let path = dir.path().join("data");
    let theirs = path.join("lost+found/#12");
    std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    std::fs::write(&theirs, "found by a repair").unwrap();
    NewDataDir::begin(fs.clone(), &path).unwrap().abandon().unwrap();
    let identity = Identity { node_id: 7, incarnation: 0, cluster_id: Some(9), name: NAME.into(), pending_join: None };
    NewDataDir::begin(fs.clone(), &path).unwrap().finish(&identity, &[]).unwrap();
    let mut data = DataDir::open(fs.clone(), &path, NAME).unwrap();
    assert_eq!(data.identity().node_id, 7);
    data.start_new_life("left", true, 8, None, Vec::new()).unwrap();
    assert!(theirs.exists() && path.join("aside-1-left").exists() && !path.join("aside-1-left/lost+found").exists());
    drop(data);
    let empty = dir.path().join("empty");
    std::fs::create_dir_all(empty.join("lost+found")).unwrap();
    drop(DataDir::open(fs.clone(), &empty, NAME).unwrap());
    let refused = NewDataDir::begin(fs, &path).unwrap_err();
    assert!(matches!(&refused, StoreError::NotEmpty { .. }), "{refused}");
}
