//! How much work one command may be, and who does it.

use std::thread;

use futures_util::stream;
use parking_lot::Mutex;

use super::*;
use crate::{
    lease::{LeaseObserver, LeaseRecord},
    state_machine::{OVERLAY_ENTRIES_MAX, stepped_view::HIDDEN_KEYS_MAX},
};

fn puts(from: u64, to: u64) -> Command {
    let put = |number| TxnOp::Put {
        key: bytes(&format!("{number:08}")),
        value: Bytes::new(),
        content_type: None,
        lease: 0,
        prev: false,
    };
    Command::Txn(Txn { success: (from..to).map(put).collect(), ..Txn::default() })
}

fn fill(fixture: &mut Fixture, keys: u64) {
    for from in (0..keys).step_by(100) {
        fixture.run(&puts(from, keys.min(from + 100)));
    }
}

fn count() -> TxnOp {
    TxnOp::List(ListRequest { count_only: true, ..list_all(0) })
}

fn counted(outcome: &Outcome) -> Vec<u64> {
    let Outcome::Txn(outcome) = outcome else { panic!("{outcome:?}") };
    let count = |result: &OpResult| match result {
        OpResult::List(page) => page.count,
        other => panic!("{other:?}"),
    };
    outcome.results.iter().map(count).collect()
}

#[test]
fn counts_are_the_same_whatever_is_persisted() {
    for engine in [EngineKind::Memory, MIRROR] {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::manual(dir.path(), engine);
        fill(&mut fixture, 1_000);
        let counts = Command::Txn(Txn { success: vec![count(), count()], ..Txn::default() });
        assert_eq!(counted(&fixture.run(&counts)), [1_000; 2]);
        fixture.persist_all();
        assert_eq!(counted(&fixture.run(&counts)), [1_000; 2]);
        let range = KeyRange { start: bytes("00000300"), end: Some(bytes("00000900")) };
        fixture.run(&Command::Txn(Txn::unconditional(TxnOp::DeleteRange(range))));
        assert_eq!(counted(&fixture.run(&counts)), [400; 2], "hidden by the overlay");
        assert!(fixture.machine.shared.live.read().overlay.entries() > 0, "a few hidden keys are not worth a batch");
        fixture.persist_all();
        assert_eq!(counted(&fixture.run(&counts)), [400; 2]);
    }
}

#[test]
fn a_scan_over_many_hidden_keys_persists_them_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    let keys = HIDDEN_KEYS_MAX + 1_000;
    fill(&mut fixture, keys);
    fixture.persist_all();
    fixture.run(&Command::Txn(Txn::unconditional(TxnOp::DeleteRange(KeyRange::default()))));
    assert_eq!(fixture.machine.shared.live.read().overlay.keys() as u64, keys);
    assert_eq!(counted(&fixture.run(&Command::Txn(Txn::unconditional(count())))), [0]);
    assert_eq!(fixture.machine.shared.live.read().overlay.keys(), 0, "only the count itself is pending");
    assert!(fixture.dump().is_empty());
}

#[test]
fn a_listing_passes_over_any_number_of_deleted_keys() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    fill(&mut fixture, 5_000);
    let before = fixture.state.revision();
    let middle = KeyRange { start: bytes("00000001"), end: Some(bytes("00004999")) };
    fixture.run(&Command::Txn(Txn::unconditional(TxnOp::DeleteRange(middle))));
    for persisted in [false, true] {
        if persisted {
            fixture.persist_all();
        }
        let listed: Vec<Bytes> = fixture.dump().into_iter().map(|(key, _)| key).collect();
        assert_eq!(listed, [bytes("00000000"), bytes("00004999")]);
        let descending = ListRequest { descending: true, limit: 1, ..list_all(0) };
        let page = fixture.state.list(&descending).unwrap();
        assert_eq!((page.items[0].key.clone(), page.more), (bytes("00004999"), true));
        let past = ListRequest { count_only: true, ..list_all(before) };
        assert_eq!(fixture.state.list(&past).unwrap().count, 5_000);
    }
}

#[test]
fn compacted_deletions_are_forgotten_in_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    fill(&mut fixture, 10_000);
    fixture.run(&Command::Txn(Txn::unconditional(TxnOp::DeleteRange(KeyRange::default()))));
    let deleted = fixture.state.revision();
    assert!(fixture.state.deleted_since(b"00000000", deleted - 1));
    assert!(!fixture.state.deleted_since(b"00000000", deleted));
    assert!(!fixture.state.deleted_since(b"never", 0));
    fixture.run(&put("a", "1"));
    fixture.run(&Command::Compact(deleted));
    assert_eq!(fixture.machine.shared.live.read().deleted_at(b"00000000"), 0, "at once for every reader");
    assert!(fixture.state.deleted_since(b"never", 0), "that it was not is forgotten");
    assert!(!fixture.state.deleted_since(b"00000000", deleted));
    fixture.persist_all();
    assert!(fixture.machine.shared.live.read().deleted.is_empty());
}

#[test]
fn measuring_counts_records_and_stops_beyond_what_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), SLED);
    fill(&mut fixture, 1_000);
    fixture.persist_all();
    fixture.run(&delete("00000000"));
    fixture.run(&put("00000001", "four"));
    let bytes_of = |keys: u64| keys * (8 + 32);
    let measure = |keys, bytes| fixture.state.measure(&KeyRange::default(), keys, bytes).unwrap();
    assert_eq!(measure(u64::MAX, u64::MAX), (999, bytes_of(999) + 4));
    assert_eq!(measure(700, u64::MAX).0, 701);
    assert_eq!(measure(u64::MAX, 999), (25, bytes_of(25) + 4));
    let none = KeyRange { start: bytes("b"), end: Some(bytes("a")) };
    assert_eq!(fixture.state.measure(&none, 9, 9).unwrap(), (0, 0));
}

#[test]
fn leases_end_in_steps_of_bounded_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    for id in 1..=4 {
        fixture.run(&grant(id));
        for key in 0..3 {
            fixture.run(&put_attached(&format!("{id}/{key}"), "v", id));
        }
    }
    let fit = |ids: &[u64], keys| fixture.state.leases_with_keys(ids, keys);
    assert_eq!(fit(&[1, 2, 3, 4], 100), 4);
    assert_eq!(fit(&[1, 2, 3, 4], 6), 2);
    assert_eq!(fit(&[1, 2, 3, 4], 5), 1);
    assert_eq!(fit(&[1, 2], 0), 1, "one ends at a time at least");
    assert_eq!(fit(&[9, 1], 3), 2, "one that is gone has no keys");
    assert_eq!(fit(&[], 3), 0);
}

#[test]
fn a_key_changed_often_is_found_in_the_past_from_both_sides() {
    const CHANGES: u64 = 400;
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    fixture.run(&put("other", "1"));
    for change in 0..CHANGES {
        // Revisions of `hot`: 2 + change. Some of them delete it.
        let command = if change % 50 == 9 { delete("hot") } else { put("hot", &change.to_string()) };
        fixture.run(&command);
    }
    for change in 0..CHANGES {
        fixture.run(&put("other", &change.to_string()));
    }
    for persisted in [false, true] {
        if persisted {
            fixture.persist_all();
        }
        for at in 1..=fixture.state.revision() {
            let change = at.checked_sub(2).map(|change| change.min(CHANGES - 1));
            let expected = change.filter(|change| change % 50 != 9).map(|change| change.to_string());
            let found = fixture.state.get(b"hot", at).unwrap().0;
            assert_eq!(found.map(|record| record.value), expected.map(Bytes::from), "at {at}, persisted {persisted}");
        }
    }
}

/// Notes which thread applies.
#[derive(Debug, Default)]
struct Threads(Mutex<Vec<Option<String>>>);

impl LeaseObserver for Threads {
    fn granted(&self, _record: LeaseRecord) {
        self.0.lock().push(thread::current().name().map(str::to_owned));
    }

    fn ended(&self, _id: u64) {}
}

#[tokio::test]
async fn entries_are_applied_by_a_thread_of_their_own() {
    for driver in [Driver::Thread, Driver::Task] {
        let dir = tempfile::tempdir().unwrap();
        let options = StateOptions { driver, ..options(EngineKind::Memory) };
        let mut fixture = Fixture::open_with(Arc::new(RealFs), dir.path(), options).unwrap();
        let threads = Arc::new(Threads::default());
        fixture.state.observe_leases(threads.clone());
        let entries: Vec<_> = (1..=1_000).map(|index| Ok((entry(index, &grant(index)), None))).collect();
        fixture.machine.apply(stream::iter(entries)).await.unwrap();
        assert_eq!(fixture.state.applied().map(|id| id.index), Some(1_000));
        let here = thread::current().name().map(str::to_owned);
        let expected = if driver == Driver::Thread { Some("state-apply".to_owned()) } else { here };
        let threads = threads.0.lock();
        assert_eq!(threads.len(), 1_000);
        assert!(threads.iter().all(|name| *name == expected), "{driver:?}: {:?}", threads.first());
    }
}

#[tokio::test]
async fn an_error_of_the_stream_follows_what_came_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), EngineKind::Memory);
    let broken = Err(std::io::Error::other("the log is gone"));
    let entries = vec![Ok((entry(1, &put("a", "1")), None)), Ok((entry(2, &put("b", "1")), None)), broken];
    let error = fixture.machine.apply(stream::iter(entries)).await.unwrap_err();
    assert_eq!(error.to_string(), "the log is gone");
    assert_eq!(fixture.state.applied().map(|id| id.index), Some(2));
}

#[tokio::test]
async fn a_state_that_is_dropped_does_not_wait_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let durable = watch::Sender::new(0);
    let options = StateOptions { durable: durable.subscribe(), ..options(EngineKind::Memory) };
    let mut fixture = Fixture::open_with(Arc::new(RealFs), dir.path(), options).unwrap();
    let entries = (1..=2 * OVERLAY_ENTRIES_MAX as u64).map(|index| Ok((entry(index, &put("key", "value")), None)));
    let mut entries = stream::iter(entries);
    let state = fixture.state.clone();
    tokio::select! {
        applied = fixture.machine.applier().apply(&mut entries) => panic!("nothing is persisted: {applied:?}"),
        () = eventually("the overlay is full", || state.stats().unwrap().overlay_entries == OVERLAY_ENTRIES_MAX) => {}
    }
    drop(fixture.machine);
    assert_eq!(state.applied().map(|id| id.index), Some(OVERLAY_ENTRIES_MAX as u64));
}
