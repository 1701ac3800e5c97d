//! Which snapshot counts, also after crashes.

use super::*;
use crate::fs::{FaultyFs, Fs, faulty::Fault};

#[test]
fn opening_removes_what_crashes_left() {
    let dir = tempfile::tempdir().unwrap();
    let old = write_small(&real(), dir.path(), 8).unwrap();
    let new = write_small(&real(), dir.path(), 9).unwrap();
    let part = |index: u64| dir.path().join(format!("incoming-{}.part", snapshot_id(Some(&log_id(index)), 1)));
    for path in [dir.path().join("00ff.building"), dir.path().join("notes.txt"), part(9), part(10)] {
        fs::write(path, b"half").unwrap();
    }
    let snapshots = SnapshotDir::open(&real(), dir.path()).unwrap();
    let (current, current_footer) = snapshots.current().unwrap();
    assert_eq!((current.id(), current_footer), (new.id(), footer(9, 3, 5)));
    assert!(snapshots.damaged().is_empty());
    assert!(!old.path().exists());
    assert!(part(10).exists() && !part(9).exists(), "a transfer goes on only if it brings more");
    assert_eq!(names(dir.path()).len(), 3, "{:?}", names(dir.path()));
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let [oldest, old, new] = [7, 8, 9].map(|index| write_small(&real(), dir.path(), index).unwrap());
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    // In the middle of a chunk: the ends look right.
    flip(new.path(), HEADER_BYTES + CHUNK_HEAD_BYTES + 3);
    let mut snapshots = SnapshotDir::open(&real(), dir.path()).unwrap();
    assert_eq!(snapshots.current().unwrap().0.id(), old.id());
    assert_eq!(snapshots.damaged(), [new.path()]);
    assert!(new.path().exists() && oldest.path().exists(), "nothing goes while something is wrong");

    let next = write_small(&real(), dir.path(), 10).unwrap();
    snapshots.adopt(&next).unwrap();
    assert!(snapshots.damaged().is_empty());
    assert_eq!(names(dir.path()).len(), 1);
    assert_eq!(read(&old).unwrap(), small_items(), "an open file stays readable");

    flip(next.path(), 0);
    let snapshots = SnapshotDir::open(&real(), dir.path()).unwrap();
    assert!(snapshots.current().is_none());
    assert_eq!(snapshots.damaged(), [next.path()]);
    assert!(next.path().exists());
}

/// Transfers `file` into `dir` as raft-net does.
fn transfer(file: &SnapshotFile, fs: &SharedFs, dir: &Path) -> Result<SnapshotFile, StoreError> {
    let mut receiver = SnapshotReceiver::open(fs, dir, file.id(), file.len_bytes())?;
    while receiver.offset() < file.len_bytes() {
        let chunk = file.read_chunk(receiver.offset(), 100).unwrap();
        receiver.write(receiver.offset(), &chunk)?;
    }
    receiver.finish()
}

#[test]
fn a_received_snapshot_replaces_older_ones() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sent = write_small(&real(), theirs.path(), 12).unwrap();
    let mut snapshots = SnapshotDir::open(&real(), ours.path()).unwrap();
    assert!(snapshots.current().is_none());
    let built = write_small(&real(), ours.path(), 9).unwrap();
    snapshots.adopt(&built).unwrap();

    let received = transfer(&sent, &real(), ours.path()).unwrap();
    let (adopted, adopted_footer) = snapshots.adopt(&received).unwrap();
    assert_eq!((adopted.id(), &adopted_footer), (sent.id(), &footer(12, 3, 5)));
    assert_eq!(names(ours.path()), [format!("snapshot-{}.snap", sent.id())]);
    assert_eq!(read(&adopted).unwrap(), small_items());
    assert_eq!(snapshots.current().unwrap().0.path(), adopted.path());

    // One that was still being built meanwhile comes too late.
    let late = write_small(&real(), ours.path(), 11).unwrap();
    assert_eq!(snapshots.adopt(&late).unwrap().0.id(), sent.id());
    assert_eq!(names(ours.path()).len(), 1);
    assert_eq!(SnapshotDir::open(&real(), ours.path()).unwrap().current().unwrap().0.id(), sent.id());
}

#[test]
fn a_damaged_transfer_is_refused_and_begins_afresh() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sent = write_small(&real(), theirs.path(), 12).unwrap();
    let mut snapshots = SnapshotDir::open(&real(), ours.path()).unwrap();
    let built = write_small(&real(), ours.path(), 9).unwrap();
    snapshots.adopt(&built).unwrap();
    let mut bytes = fs::read(sent.path()).unwrap();
    bytes[HEADER_BYTES + CHUNK_HEAD_BYTES] ^= 1;
    let mut receiver = SnapshotReceiver::open(&real(), ours.path(), sent.id(), sent.len_bytes()).unwrap();
    receiver.write(0, &bytes).unwrap();
    let received = receiver.finish().unwrap();
    assert!(matches!(snapshots.adopt(&received), Err(StoreError::Corrupt { .. })));
    assert_eq!(snapshots.current().unwrap().0.id(), built.id());
    let again = SnapshotReceiver::open(&real(), ours.path(), sent.id(), sent.len_bytes()).unwrap();
    assert_eq!(again.offset(), 0);
    drop(again);
    // Whole, but not what its id says.
    let other = write_small(&real(), theirs.path(), 13).unwrap();
    let mut receiver = SnapshotReceiver::open(&real(), ours.path(), sent.id(), other.len_bytes()).unwrap();
    receiver.write(0, &fs::read(other.path()).unwrap()).unwrap();
    assert!(matches!(snapshots.adopt(&receiver.finish().unwrap()), Err(StoreError::Corrupt { .. })));
    assert_eq!(snapshots.current().unwrap().0.id(), built.id());
}

#[test]
fn a_part_whose_content_a_power_cut_took_is_refused_when_it_is_finished_and_begins_afresh() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sent = write_small(&real(), theirs.path(), 12).unwrap();
    let bytes = fs::read(sent.path()).unwrap();
    for lost in [bytes.len(), bytes.len() / 2] {
        let mut receiver = SnapshotReceiver::open(&real(), ours.path(), sent.id(), sent.len_bytes()).unwrap();
        receiver.write(0, &bytes[..lost]).unwrap();
        drop(receiver);
        // The length was on disk, the content was not.
        fs::write(ours.path().join(format!("incoming-{}.part", sent.id())), vec![0; lost]).unwrap();
        let result = transfer(&sent, &real(), ours.path());
        assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{result:?}");
        assert!(names(ours.path()).is_empty(), "{:?}", names(ours.path()));
    }
    let received = transfer(&sent, &real(), ours.path()).unwrap();
    SnapshotDir::open(&real(), ours.path()).unwrap().adopt(&received).unwrap();
}

/// Builds the snapshot 9, then receives 12 over it; the greatest index that was promised to be durable.
fn build_and_receive(fs: &FaultyFs, sent: &SnapshotFile) -> (u64, Result<(), StoreError>) {
    let shared: SharedFs = Arc::new(fs.clone());
    let dir = PathBuf::from("/snapshots");
    let mut promised = 0;
    let mut run = || {
        let mut snapshots = SnapshotDir::open(&shared, &dir)?;
        let built = write_small(&shared, &dir, 9)?;
        promised = 9;
        snapshots.adopt(&built)?;
        let received = transfer(sent, &shared, &dir)?;
        snapshots.adopt(&received)?;
        promised = 12;
        Ok(())
    };
    let result = run();
    (promised, result)
}

#[test]
fn a_crash_at_any_operation_leaves_the_old_or_the_new_snapshot() {
    let theirs = tempfile::tempdir().unwrap();
    let sent = write_small(&real(), theirs.path(), 12).unwrap();
    let whole = FaultyFs::new();
    build_and_receive(&whole, &sent).1.unwrap();
    let operations = whole.operations();
    assert!(operations > 15, "{operations}");
    let mut seen = std::collections::BTreeSet::new();
    for stop in 1..=operations + 1 {
        for seed in 0..24 {
            let disk = FaultyFs::new();
            disk.create_dir_all(Path::new("/snapshots")).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            disk.stop_at_operation(disk.operations() + stop);
            let (promised, result) = build_and_receive(&disk, &sent);
            assert_eq!(result.is_err(), disk.stopped(), "{result:?}");
            let after = if seed == 0 { disk.kill() } else { disk.crash(seed) };
            let shared: SharedFs = Arc::new(after);
            let snapshots = SnapshotDir::open(&shared, Path::new("/snapshots")).unwrap();
            let found = snapshots.current().map_or(0, |(_, footer)| footer.meta.last_log_id.unwrap().index);
            assert!(found >= promised, "stop {stop}, seed {seed}: {found} after {promised}");
            assert!(snapshots.damaged().is_empty(), "what has its final name is whole");
            seen.insert((promised, found));
            // And it goes on from there: what is left of the transfer is resumed, or thrown away and begun again.
            let mut snapshots = snapshots;
            let mut adopt = || snapshots.adopt(&transfer(&sent, &shared, Path::new("/snapshots"))?);
            let (adopted, _) = adopt().or_else(|_| adopt()).unwrap();
            assert_eq!(read(&adopted).unwrap(), small_items());
            assert_eq!(adopted.id(), sent.id());
        }
    }
    assert!([(0, 0), (9, 9), (9, 12), (12, 12)].iter().all(|s| seen.contains(s)), "{seen:?}");
}

#[test]
fn a_full_disk_fails_the_build_and_nothing_else() {
    let fs = FaultyFs::new();
    let shared: SharedFs = Arc::new(fs.clone());
    let dir = Path::new("/snapshots");
    let mut snapshots = SnapshotDir::open(&shared, dir).unwrap();
    let built = write_small(&shared, dir, 9).unwrap();
    snapshots.adopt(&built).unwrap();
    let used = fs.used_bytes();
    let before = fs.operations();
    write_small(&shared, dir, 10).unwrap();
    let operations = fs.operations() - before;
    snapshots = SnapshotDir::open(&shared, dir).unwrap();
    for fault in [Fault::NoSpace, Fault::Io] {
        for n in 1..=operations {
            fs.fail_operation(fs.operations() + n, fault);
            let before = snapshots.current().unwrap().0;
            let result = write_small(&shared, dir, 11);
            assert!(matches!(result, Err(StoreError::Io { .. })), "operation {n}: {result:?}");
            assert_eq!(snapshots.current().unwrap().0.id(), before.id());
            snapshots.prune().unwrap();
            assert_eq!(fs.used_bytes(), used, "operation {n}: nothing is left");
        }
    }
}
