//! Snapshots out and in.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    member::Member,
    snapshot::{SnapshotReader, SnapshotReceiver},
    state_machine::build,
};

/// Carries `file` to the directory of another node, as raft-net does.
pub(super) fn transfer(file: &SnapshotFile, dir: &Path) -> SnapshotFile {
    let fs: SharedFs = Arc::new(RealFs);
    let mut receiver = SnapshotReceiver::open(&fs, &dir.join("snapshots"), file.id(), file.len_bytes()).unwrap();
    while receiver.offset() < file.len_bytes() {
        let chunk = file.read_chunk(receiver.offset(), 10_000).unwrap();
        receiver.write(receiver.offset(), &chunk).unwrap();
    }
    receiver.finish().unwrap()
}

fn random_command(rng: &mut StdRng) -> Command {
    let key = format!("key{:04}", rng.random_range(0..2_000));
    let lease = rng.random_range(1..=40);
    match rng.random_range(0..14) {
        9..=10 => grant(lease),
        11..=12 => put_attached(&key, "attached", lease),
        13 => end_lease(lease),
        0..7 => put(&key, &"v".repeat(rng.random_range(0..200))),
        7..9 => delete(&key),
        _ => {
            let range = KeyRange { start: bytes(&key), end: Some(bytes(&format!("{key}9"))) };
            Command::Txn(Txn::unconditional(TxnOp::DeleteRange(range)))
        }
    }
}

/// What one revision shows.
fn at(state: &State, revision: u64) -> Vec<crate::record::KeyRecord> {
    state.list(&list_all(revision)).unwrap().items
}

async fn snapshots_while_writing(engine: EngineKind) {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fixture = Fixture::open(dir.path(), engine);
    let mut other = Fixture::open(other_dir.path(), engine);
    let mut rng = StdRng::seed_from_u64(5);
    let member = Member {
        name: "one".to_string(),
        node_id: 1,
        http: String::new(),
        raft: String::new(),
        version: String::new(),
        leaving: false,
    };
    fixture.run(&Command::PutMember { member, replaces: None });
    fixture.run(&Command::SetClusterId(9));
    let mut hashes = std::collections::BTreeMap::from([(2, fixture.state.hash().hash)]);
    for round in 1..=3_u64 {
        let builder = fixture.machine.get_snapshot_builder().await;
        let build = tokio::spawn(async move {
            let mut builder = builder;
            builder.build_snapshot().await.unwrap()
        });
        while !build.is_finished() || fixture.log.len() < 1_500 * round as usize {
            fixture.run(&random_command(&mut rng));
            hashes.insert(fixture.log.len() as u64, fixture.state.hash().hash);
            if fixture.log.len() == 700 * round as usize {
                fixture.run(&Command::Compact(fixture.state.revision() / 2));
                hashes.insert(fixture.log.len() as u64, fixture.state.hash().hash);
            }
            tokio::task::yield_now().await;
        }
        let snapshot = build.await.unwrap();
        let covered = snapshot.meta.last_log_id.unwrap().index;
        let received = transfer(&snapshot.snapshot, other_dir.path());
        other.machine.install_snapshot(&snapshot.meta, received).await.unwrap();
        assert_eq!(other.state.hash().hash, hashes[&covered], "after {covered} entries");
        assert_eq!(other.state.applied(), Some(log_id(covered)));
        assert_eq!(*other.state.applied_watch().borrow(), covered + 1);
        assert_eq!(other.state.snapshot_index(), Some(covered));
        assert_eq!((other.state.members().len(), other.state.cluster_id()), (1, Some(9)));
        for revision in [other.state.compacted_revision().max(1), other.state.revision()] {
            if revision >= fixture.state.compacted_revision() {
                assert_eq!(at(&other.state, revision), at(&fixture.state, revision), "at {revision}");
            }
        }
    }
    let log = fixture.log.clone();
    other.catch_up(&log);
    assert_eq!(other.state.hash().hash, fixture.state.hash().hash);
    assert_eq!(other.machine.shared.live.read().deleted, fixture.machine.shared.live.read().deleted);
    assert_eq!(other.machine.shared.live.read().leases, fixture.machine.shared.live.read().leases);
    assert!(other.state.lease_count() > 0);
    let snapshots = std::fs::read_dir(other_dir.path().join("snapshots")).unwrap().count();
    assert_eq!(snapshots, 1, "older snapshots go");
    let generations = || std::fs::read_dir(other_dir.path().join("state")).unwrap().count();
    if engine != EngineKind::Memory {
        assert_eq!(generations(), 2, "CURRENT and one generation");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_moving_state_is_one_of_its_states_sled() {
    snapshots_while_writing(SLED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_moving_state_is_one_of_its_states_memory() {
    snapshots_while_writing(EngineKind::Memory).await;
}

#[tokio::test]
async fn a_damaged_snapshot_changes_nothing() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fixture = Fixture::open(dir.path(), SLED);
    fixture.run(&put("a", "1"));
    let (file, footer) = fixture.build().await;
    let mut other = Fixture::open(other_dir.path(), SLED);
    other.run(&put("b", "2"));
    let received = transfer(&file, other_dir.path());
    let mut content = std::fs::read(received.path()).unwrap();
    content[40] ^= 1;
    std::fs::write(received.path(), content).unwrap();
    let error = other.machine.install_snapshot(&footer.meta, received).await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(other.dump()[0].0, "b");
    let received = transfer(&file, other_dir.path());
    other.machine.install_snapshot(&footer.meta, received).await.unwrap();
    assert_eq!(other.dump()[0].0, "a", "the next transfer begins afresh");
}

#[tokio::test]
async fn a_snapshot_with_a_wrong_state_hash_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), SLED);
    fixture.run(&put("a", "1"));
    fixture.machine.shared.wait_persisted(2).await.unwrap();
    fixture.machine.shared.persisted.lock().hash ^= 1;
    let (file, footer) = fixture.build().await;
    let other_dir = tempfile::tempdir().unwrap();
    let mut other = Fixture::open(other_dir.path(), SLED);
    other.run(&put("b", "2"));
    let received = transfer(&file, other_dir.path());
    let error = other.machine.install_snapshot(&footer.meta, received).await.unwrap_err();
    assert!(error.to_string().contains("state hash"), "{error}");
    assert_eq!(other.dump()[0].0, "b");
    assert_eq!(std::fs::read_dir(other_dir.path().join("state")).unwrap().count(), 2, "what was loaded is removed");
}

#[tokio::test]
async fn a_build_that_an_install_overtakes_answers_the_installed_one() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fixture = Fixture::open(dir.path(), SLED);
    fixture.run(&put("a", "1"));
    fixture.run(&put("a", "2"));
    let (file, footer) = fixture.build().await;
    let mut other = Fixture::open(other_dir.path(), SLED);
    other.run(&put("b", "2"));
    let shared = other.machine.shared.clone();
    let scanned = build::scan(&shared, &shared.snapshots_dir).unwrap().unwrap();
    let received = transfer(&file, other_dir.path());
    other.machine.install_snapshot(&footer.meta, received).await.unwrap();
    assert!(build::finish(&shared, scanned).unwrap().is_none());
    let names: Vec<_> = std::fs::read_dir(other_dir.path().join("snapshots")).unwrap().collect();
    assert_eq!(names.len(), 1, "what was built goes: {names:?}");
}

#[tokio::test]
async fn history_stays_while_a_snapshot_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    let value = "v".repeat(1024 * 1024);
    let fill = |fixture: &mut Fixture, count: u32| {
        for _ in 0..count {
            fixture.run(&put("a", &value));
        }
        fixture.persist_all();
    };
    fill(&mut fixture, 2);
    let builder = fixture.machine.get_snapshot_builder().await;
    let shared = fixture.machine.shared.clone();
    let scanned = build::scan(&shared, &shared.snapshots_dir).unwrap().unwrap();
    fill(&mut fixture, 30);
    fixture.run(&Command::Compact(31));
    fixture.persist_all();
    assert_eq!(fixture.state.stats().unwrap().history_first_revision, Some(1), "the snapshot begins at revision 2");
    let file = build::finish(&shared, scanned).unwrap().unwrap();
    SnapshotReader::open(&file).unwrap().verify().unwrap();
    drop(builder);
    fixture.run(&put("b", "1"));
    fixture.persist_all();
    let first = fixture.state.stats().unwrap().history_first_revision.unwrap();
    assert!((3..=32).contains(&first), "history begins at {first}");
    assert!(fixture.state.get(b"a", 31).unwrap().0.is_some());
}
