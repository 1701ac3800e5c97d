//! Power cuts, kills and failing operations at every point of a node's life, on a simulated disk.

use futures_util::stream;

use super::*;
use crate::{
    fs::{FaultyFs, Fs, faulty::Fault},
    lease::LeaseRecord,
    snapshot::SnapshotReceiver,
};

const DATA_DIR: &str = "/node";
/// Entries between two snapshots.
const ROUND_ENTRIES: u64 = 12;
/// Entries that the node applies itself; the snapshot that it then installs covers as many again.
const OWN_ENTRIES: u64 = 3 * ROUND_ENTRIES;

fn command(index: u64) -> Command {
    match index % 9 {
        4 => delete(&format!("key{}", index % 5)),
        7 => Command::Compact(index / 2),
        // Granted, used three entries later; every second one ends six entries later.
        2 => grant(index),
        5 => put_attached(&format!("key{}", index % 5), &format!("value {index}"), index - 3),
        8 if index.is_multiple_of(2) => Command::ExpireLeases { ids: vec![index - 6], term: 1 },
        _ => put(&format!("key{}", index % 5), &format!("value {index}")),
    }
}

fn log() -> Vec<Entry> {
    (1..=2 * OWN_ENTRIES).map(|index| entry(index, &command(index))).collect()
}

fn simulated(log_purged: Option<u64>) -> StateOptions {
    StateOptions { log_purged, driver: Driver::Task, ..options(EngineKind::Memory) }
}

/// The operations before it make the data directory.
const FIRST_OPERATION: u64 = 3;

/// A node that applied everything, and a snapshot of all of it.
struct Reference {
    hash: u128,
    leases: Vec<LeaseRecord>,
    snapshot: SnapshotFile,
    footer: Footer,
}

async fn reference() -> Reference {
    let fs: SharedFs = Arc::new(FaultyFs::new());
    let mut fixture = Fixture::open_with(fs, Path::new("/reference"), simulated(None)).unwrap();
    fixture.catch_up(&log());
    let (snapshot, footer) = fixture.build().await;
    let leases = fixture.state.leases(0, usize::MAX).items;
    assert!(!leases.is_empty());
    Reference { hash: fixture.state.hash().hash, leases, snapshot, footer }
}

/// A disk with an empty data directory.
fn disk() -> FaultyFs {
    let fs = FaultyFs::new();
    fs.create_dir_all(Path::new(DATA_DIR)).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs
}

/// Lives until an operation fails. Returns the index that the log may be purged up to: the newest snapshot that was
/// reported as complete.
async fn live(fs: &FaultyFs, reference: &Reference) -> Option<u64> {
    let shared: SharedFs = Arc::new(fs.clone());
    let Ok(mut fixture) = Fixture::open_with(shared.clone(), Path::new(DATA_DIR), simulated(None)) else { return None };
    let mut purged = None;
    for round in log()[..OWN_ENTRIES as usize].chunks(ROUND_ENTRIES as usize) {
        let entries = round.iter().map(|entry| Ok((entry.clone(), None)));
        let applied = fixture.machine.apply(stream::iter(entries.collect::<Vec<_>>())).await;
        let Ok(()) = applied else { return purged };
        let Ok(snapshot) = fixture.machine.get_snapshot_builder().await.build_snapshot().await else { return purged };
        purged = snapshot.meta.last_log_id.map(|last| last.index);
    }
    let Ok(received) = receive(&shared, &reference.snapshot) else { return purged };
    let Ok(()) = fixture.machine.install_snapshot(&reference.footer.meta, received).await else { return purged };
    purged = Some(2 * OWN_ENTRIES);
    // The end of the process decides what a failing close leaves.
    let _closed = fixture.state.close().await;
    purged
}

fn receive(fs: &SharedFs, snapshot: &SnapshotFile) -> Result<SnapshotFile, StoreError> {
    let dir = Path::new(DATA_DIR).join("snapshots");
    let mut receiver = SnapshotReceiver::open(fs, &dir, snapshot.id(), snapshot.len_bytes())?;
    let chunk = snapshot.read_chunk(0, snapshot.len_bytes() as usize).unwrap();
    receiver.write(0, &chunk)?;
    receiver.finish()
}

/// Starts again on what is left, with the log behind `purged`, and expects the state that everyone else has.
fn restarts(fs: FaultyFs, purged: Option<u64>, reference: &Reference, what: &str) {
    let opened = Fixture::open_with(Arc::new(fs), Path::new(DATA_DIR), simulated(purged));
    let mut fixture = opened.unwrap_or_else(|error| panic!("{what}, purged up to {purged:?}: {error}"));
    let applied = fixture.state.applied().map(|last| last.index);
    assert!(applied >= purged, "{what}: applied {applied:?}, purged up to {purged:?}");
    fixture.catch_up(&log());
    assert_eq!(fixture.state.hash().hash, reference.hash, "{what}");
    assert_eq!(fixture.state.leases(0, usize::MAX).items, reference.leases, "{what}");
    assert_eq!(fixture.state.revision(), reference.footer.revision, "{what}");
}

#[tokio::test]
async fn a_life_on_a_disk_that_works() {
    let reference = reference().await;
    let fs = disk();
    assert_eq!(live(&fs, &reference).await, Some(2 * OWN_ENTRIES));
    restarts(fs.kill(), Some(2 * OWN_ENTRIES), &reference, "nothing happened");
    assert!(fs.operations() > 60, "{} operations are too few to prove anything", fs.operations());
}

#[tokio::test]
async fn a_power_cut_at_any_operation_loses_nothing_that_counts() {
    let reference = reference().await;
    let mut cut = 0;
    for operation in FIRST_OPERATION.. {
        let fs = disk();
        fs.stop_at_operation(operation);
        let purged = live(&fs, &reference).await;
        if !fs.stopped() {
            break;
        }
        cut += 1;
        for seed in 0..4 {
            let what = format!("power cut at operation {operation}, seed {seed}");
            restarts(fs.crash(operation * 4 + seed), purged, &reference, &what);
        }
    }
    assert!(cut > 60, "only {cut} operations were cut");
}

/// How often the starts after a power cut are cut short themselves, one operation later each time, until one gets through.
fn cut_restarts(cut: impl Fn() -> FaultyFs, purged: Option<u64>, reference: &Reference, what: &str) -> u64 {
    for operation in 1.. {
        let fs = cut();
        fs.stop_at_operation(operation);
        drop(Fixture::open_with(Arc::new(fs.clone()), Path::new(DATA_DIR), simulated(purged)));
        if !fs.stopped() {
            return operation - 1;
        }
        let what = format!("{what}; power cut at operation {operation} of the start after it");
        restarts(fs.crash(operation), purged, reference, &what);
    }
    unreachable!("a start has an end")
}

#[tokio::test]
async fn a_start_that_is_cut_short_anywhere_loses_nothing_that_counts() {
    /// From one power cut whose restarts are cut short to the next, in operations.
    const STEP: usize = 3;
    let reference = reference().await;
    let (mut cut, mut rebuilds) = (0, 0);
    for operation in (FIRST_OPERATION..).step_by(STEP) {
        let fs = disk();
        fs.stop_at_operation(operation);
        let purged = live(&fs, &reference).await;
        if !fs.stopped() {
            break;
        }
        cut += cut_restarts(|| fs.crash(operation), purged, &reference, &format!("power cut at operation {operation}"));
        rebuilds += u64::from(purged.is_some());
    }
    assert!(rebuilds > 10, "only {rebuilds} starts had to go back to a snapshot");
    assert!(cut > 100, "only {cut} starts were cut short");
}

#[tokio::test]
async fn a_failing_operation_stops_the_node_and_nothing_more() {
    let reference = reference().await;
    for operation in FIRST_OPERATION.. {
        let fs = disk();
        let fault = if operation % 2 == 0 { Fault::Io } else { Fault::NoSpace };
        fs.fail_operation(operation, fault);
        let purged = live(&fs, &reference).await;
        if fs.operations() < operation {
            break;
        }
        restarts(fs.kill(), purged, &reference, &format!("{fault:?} at operation {operation}, killed"));
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_to_everyone() {
    let fs = disk();
    let mut fixture = Fixture::open_with(Arc::new(fs.clone()), Path::new(DATA_DIR), simulated(None)).unwrap();
    let mut fatal = fixture.state.fatal();
    fs.fail_operation(fs.operations() + 1, Fault::NoSpace);
    fixture.run(&put("a", "1"));
    let reason = tokio::time::timeout(DEADLINE, fatal.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert!(reason.unwrap().contains("No space left"), "the reason names the cause");
    let entries = stream::iter([Ok((entry(2, &put("a", "2")), None))]);
    let error = fixture.machine.apply(entries).await.unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(fixture.state.get(b"a", 0).unwrap().0.unwrap().value, "1", "reads go on");
    fixture.machine.shared.wait_persisted(2).await.unwrap_err();
    fixture.state.close().await.unwrap_err();
}
