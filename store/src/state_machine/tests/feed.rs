//! The stream of changes has no gaps, wherever its records are.

use super::*;
use crate::{
    change_log::ChangeRecord,
    state_machine::{FEED_BYTES_MAX, FEED_RECORDS_MAX, RECENT_RECORDS_MAX, feed::Recent},
};

/// Follows the stream from `after` to its end, and proves that it has no gap.
async fn follow(state: &State, after: u64) -> Vec<Arc<ChangeRecord>> {
    let mut all = Vec::new();
    let mut at = after;
    loop {
        let changes = state.changes_after(at).await.unwrap();
        let Some(last) = changes.records.last() else { return all };
        for (record, expected) in changes.records.iter().zip(at + 1..) {
            assert_eq!(record.revision, expected);
        }
        assert!(changes.records.len() <= FEED_RECORDS_MAX);
        let but_last: u64 = changes.records.iter().map(|record| record.size_bytes()).sum::<u64>() - last.size_bytes();
        assert!(but_last < FEED_BYTES_MAX, "it ends once it is large: {but_last}");
        assert!(changes.newest >= last.revision);
        at = last.revision;
        all.extend(changes.records);
    }
}

fn forget_recent(fixture: &Fixture) {
    fixture.machine.shared.live.write().recent = Recent::default();
}

#[tokio::test]
async fn records_in_memory_pending_and_on_disk_are_one_stream() {
    for engine in [MIRROR, EngineKind::Memory] {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::manual(dir.path(), engine);
        for number in 0..400 {
            fixture.run(&put(&format!("key{}", number % 7), &"v".repeat(number)));
            if number == 150 {
                fixture.persist_all();
            }
            if number % 10 == 0 {
                fixture.run(&delete("key3"));
            }
        }
        let newest = fixture.state.revision();
        let in_memory = follow(&fixture.state, 0).await;
        assert_eq!(in_memory.len() as u64, newest);
        forget_recent(&fixture);
        assert_eq!(follow(&fixture.state, 0).await, in_memory, "from the change log, and what is pending");
        fixture.persist_all();
        for after in [0, 1, 149, 150, 151, newest - 1] {
            assert_eq!(follow(&fixture.state, after).await, in_memory[after as usize..], "after {after}");
        }
        for after in [newest, newest + 5] {
            let nothing = fixture.state.changes_after(after).await.unwrap();
            assert_eq!((nothing.records.len(), nothing.newest), (0, newest));
        }
    }
}

#[tokio::test]
async fn memory_is_bounded_and_older_records_come_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), EngineKind::Memory);
    let wanted = RECENT_RECORDS_MAX + 500;
    for number in 0..wanted {
        fixture.run(&put("key", &number.to_string()));
    }
    assert_eq!(follow(&fixture.state, 0).await.len(), wanted);
    let large = "v".repeat(1024 * 1024);
    for _ in 0..40 {
        fixture.run(&put("large", &large));
    }
    let kept = fixture.machine.shared.live.read().recent.bytes();
    assert!(kept <= crate::state_machine::RECENT_BYTES_MAX, "{kept}");
    assert_eq!(follow(&fixture.state, 0).await.len(), wanted + 40);
}

#[tokio::test]
async fn what_is_compacted_is_refused_and_the_rest_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), MIRROR);
    for number in 0..20 {
        fixture.run(&put("key", &number.to_string()));
    }
    fixture.run(&Command::Compact(12));
    for persisted in [false, true] {
        for after in [0, 11] {
            match fixture.state.changes_after(after).await {
                Err(StoreError::Compacted { requested, oldest }) => assert_eq!((requested, oldest), (after, 12)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(follow(&fixture.state, 12).await.len(), 8, "persisted: {persisted}");
        fixture.persist_all();
        forget_recent(&fixture);
    }
}

#[tokio::test]
async fn the_stream_goes_on_after_the_installation_of_a_snapshot() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fixture = Fixture::open(dir.path(), SLED);
    for number in 0..30 {
        fixture.run(&put(&format!("key{number}"), "value"));
    }
    fixture.run(&Command::Compact(10));
    let mut other = Fixture::open(other_dir.path(), SLED);
    for number in 0..5 {
        other.run(&put(&format!("key{number}"), "value"));
    }
    let mut newest = other.state.revision_watch();
    assert_eq!(*newest.borrow_and_update(), 5);
    let (file, footer) = fixture.build().await;
    let received = super::snapshot::transfer(&file, other_dir.path());
    other.machine.install_snapshot(&footer.meta, received).await.unwrap();
    assert_eq!(*newest.borrow_and_update(), 30, "whoever waits for changes is woken");
    assert!(matches!(other.state.changes_after(5).await, Err(StoreError::Compacted { oldest: 10, .. })));
    assert_eq!(follow(&other.state, 10).await, follow(&fixture.state, 10).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_see_every_revision_while_the_writer_persists_and_compacts() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), SLED);
    const REVISIONS: u64 = 3_000;
    let follower = {
        let state = fixture.state.clone();
        tokio::spawn(async move {
            let (mut at, mut newest) = (0, state.revision_watch());
            while at < REVISIONS {
                newest.wait_for(|newest| *newest > at).await.unwrap();
                let changes = state.changes_after(at).await.unwrap();
                at = changes.records.last().expect("it was announced").revision;
            }
        })
    };
    for number in 0..REVISIONS {
        fixture.run(&put(&format!("key{}", number % 50), "value"));
        if number % 1000 == 999 {
            forget_recent(&fixture);
        }
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::timeout(DEADLINE, follower).await.unwrap().unwrap();
}
