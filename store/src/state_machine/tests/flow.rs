//! Entries flow from openraft through overlay and writer into the engine.

use futures_util::{FutureExt, stream};
use openraft::storage::EntryResponder;

use super::*;
use crate::{
    outcome::Refusal,
    state_machine::{BATCH_KEYS_MAX, HASH_CHECKPOINTS_MAX, OVERLAY_ENTRIES_MAX},
};

fn stream_of(
    entries: Vec<Entry>,
) -> impl futures_util::Stream<Item = Result<EntryResponder<TypeConfig>, std::io::Error>> + Unpin + Send {
    stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))
}

fn puts(indexes: std::ops::Range<u64>) -> Vec<Entry> {
    indexes.map(|index| entry(index, &put(&format!("key{}", index % 100), &format!("value {index}")))).collect()
}

#[tokio::test]
async fn apply_runs_ahead_of_the_log_and_persisting_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (durable, receiver) = watch::channel(3);
    let options = StateOptions { durable: receiver, ..options(EngineKind::Memory) };
    let mut fixture = Fixture::open_with(Arc::new(RealFs), dir.path(), options).unwrap();
    let state = fixture.state.clone();
    fixture.machine.apply(stream_of(puts(1..6))).await.unwrap();
    assert_eq!(*state.applied_watch().borrow(), 6, "a committed entry is visible before this disk has it");
    assert_eq!(state.revision(), 5);
    eventually("what is durable is persisted", || state.persisted_index() == Some(2)).await;
    assert_eq!(state.stats().unwrap().overlay_entries, 3, "the rest waits for the log");
    assert!(!fixture.machine.shared.persist_batch().unwrap(), "entry 3 is not durable");
    durable.send(5).unwrap();
    eventually("the next ones are persisted", || state.persisted_index() == Some(4)).await;
    assert!(!fixture.machine.shared.persist_batch().unwrap(), "entry 5 is not durable");
    drop(durable);
    state.close().await.unwrap();
    assert_eq!(state.persisted_index(), Some(4), "the log has entry 5 for the next start, or the other nodes do");
}

#[tokio::test]
async fn apply_waits_for_room_in_the_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), EngineKind::Memory);
    let shared = fixture.machine.shared.clone();
    let state = fixture.state.clone();
    let entries = puts(1..OVERLAY_ENTRIES_MAX as u64 + 100);
    let mut apply = Box::pin(fixture.machine.apply(stream_of(entries)));
    {
        let _writer_blocked = shared.persisted.lock();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while state.stats().unwrap().overlay_entries < OVERLAY_ENTRIES_MAX {
            assert!((&mut apply).now_or_never().is_none(), "the overlay has no bound");
            assert!(std::time::Instant::now() < deadline, "the overlay does not fill");
            std::thread::yield_now();
        }
        assert!((&mut apply).now_or_never().is_none(), "the overlay has no bound");
        assert_eq!(state.stats().unwrap().overlay_entries, OVERLAY_ENTRIES_MAX);
    }
    apply.await.unwrap();
    assert_eq!(state.applied(), Some(log_id(OVERLAY_ENTRIES_MAX as u64 + 99)));
    eventually("the empty overlay", || state.stats().unwrap().overlay_entries == 0).await;
    let stats = state.stats().unwrap();
    assert_eq!((stats.overlay_bytes, stats.persisted_index), (0, Some(OVERLAY_ENTRIES_MAX as u64 + 99)));
    assert_eq!(shared.live.read().overlay.keys(), 0);
    assert_eq!(state.list(&list_all(0)).unwrap().count, 100);
}

#[tokio::test]
async fn changes_of_a_single_key_fill_a_batch_like_any_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), MIRROR);
    let shared = fixture.machine.shared.clone();
    for number in 1..BATCH_KEYS_MAX {
        fixture.run(&put("key", &number.to_string()));
    }
    assert!(!shared.live.read().overlay.fills_a_batch());
    fixture.run(&put("key", "last"));
    assert!(shared.live.read().overlay.fills_a_batch());
    assert!(shared.persist_batch().unwrap());
    assert_eq!(fixture.state.stats().unwrap().overlay_entries, 0, "all of them in one batch");
}

#[tokio::test]
async fn undecodable_proposals_are_refused_and_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), EngineKind::Memory);
    for body in [&b"\xff\xff\xff"[..], b"", b"\0\0\0\0\0\0\0\0\0\0"] {
        let index = fixture.state.applied().map_or(1, |last| last.index + 1);
        let proposal = Proposal { time_ms: 1, uptime_ms: 1, idempotency: None, body: Bytes::copy_from_slice(body) };
        let entry = Entry { log_id: log_id(index), payload: EntryPayload::Normal(proposal) };
        let outcome = fixture.machine.shared.apply_entry(entry).unwrap();
        assert!(matches!(outcome, Outcome::Refused(Refusal::Undecodable(_))), "{outcome:?}");
        assert_eq!(fixture.state.applied(), Some(log_id(index)));
    }
    assert!(!fixture.state.has_user_data());
    fixture.run(&put("a", "1"));
    assert!(fixture.state.has_user_data());
}

#[tokio::test]
async fn watches_tell_of_the_directory_and_the_membership() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), EngineKind::Memory);
    let mut watch = fixture.state.directory_watch();
    watch.mark_unchanged();
    fixture.run(&put("a", "1"));
    assert!(!watch.has_changed().unwrap(), "user data is not the directory");
    fixture.run(&Command::SetReplicationFactor(5));
    assert!(watch.has_changed().unwrap());
    watch.mark_unchanged();
    fixture.run(&Command::SetReplicationFactor(5));
    assert!(!watch.has_changed().unwrap(), "nothing changed");
    let membership = openraft::Membership::new_with_defaults(vec![[1].into()], []);
    let membership = Entry { log_id: log_id(4), payload: EntryPayload::Membership(membership) };
    fixture.machine.apply(stream_of(vec![membership])).await.unwrap();
    assert!(watch.has_changed().unwrap());
    assert_eq!(*fixture.state.membership().log_id(), Some(log_id(4)));
}

#[tokio::test]
async fn checkpoints_of_the_hash_are_kept_where_no_time_passes() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), EngineKind::Memory);
    let at_once = puts(1..2_500).into_iter().map(|mut entry| {
        if let EntryPayload::Normal(proposal) = &mut entry.payload {
            proposal.time_ms = 7;
        }
        entry
    });
    fixture.machine.apply(stream_of(at_once.collect())).await.unwrap();
    let indexes: Vec<u64> = fixture.state.hash().checkpoints.iter().map(|(index, _)| *index).collect();
    assert_eq!(indexes, [1_000, 2_000]);
}

#[tokio::test]
async fn checkpoints_of_the_hash_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), EngineKind::Memory);
    fixture.machine.apply(stream_of(puts(1..2_500))).await.unwrap();
    let hash = fixture.state.hash();
    assert_eq!((hash.applied_index, hash.revision), (2_499, 2_499));
    let indexes: Vec<u64> = hash.checkpoints.iter().map(|(index, _)| *index).collect();
    // A second of the log's time passes with each entry: the first of each ten seconds, as many as are kept.
    assert_eq!(indexes, (1_860..=2_490).step_by(10).collect::<Vec<_>>());
    assert_eq!(indexes.len(), HASH_CHECKPOINTS_MAX);
    let other_dir = tempfile::tempdir().unwrap();
    let mut other = Fixture::open(other_dir.path(), EngineKind::Memory);
    other.machine.apply(stream_of(puts(1..1_861))).await.unwrap();
    assert_eq!(other.state.hash().hash, hash.checkpoints[0].1, "equal state at an equal index has an equal hash");
    let mut sum = 0_u128;
    for (key, record) in fixture.dump() {
        let mut one = super::super::hash::StateHash::default();
        one.add(&key, &record);
        sum = sum.wrapping_add(one.sum());
    }
    assert_eq!(hash.hash, sum);
}

#[tokio::test]
async fn a_closed_state_machine_applies_nothing_and_still_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), SLED);
    fixture.machine.apply(stream_of(puts(1..50))).await.unwrap();
    fixture.state.close().await.unwrap();
    assert_eq!(fixture.state.stats().unwrap().overlay_entries, 0);
    fixture.machine.apply(stream_of(puts(50..51))).await.unwrap_err();
    assert_eq!(fixture.state.get(b"key7", 0).unwrap().0.unwrap().value, "value 7");
    assert_eq!(*fixture.state.fatal().borrow(), None);
}

/// Every transaction sets both keys to its own number, so no read may ever see two numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_whole_revisions_while_the_writer_persists() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::open(dir.path(), MIRROR);
    let (ended, has_ended) = watch::channel(false);
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (state, has_ended) = (fixture.state.clone(), has_ended.clone());
            std::thread::spawn(move || {
                let (mut reads, mut newest) = (0_u64, 0);
                while !*has_ended.borrow() {
                    let page = state.list(&list_all(0)).unwrap();
                    let values: Vec<_> = page.items.iter().map(|item| &item.record.value).collect();
                    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{values:?} at {}", page.revision);
                    assert!(values.first().is_none_or(|value| *value == &page.revision.to_string()[..]));
                    let (record, revision) = state.get(b"a", 0).unwrap();
                    assert_eq!(record.map_or(0, |record| record.mod_revision), revision);
                    assert!(page.revision >= newest && revision >= page.revision, "revisions went back");
                    newest = revision;
                    if newest == 0 {
                        // Revision 0 asks for the newest, which may be another one by now.
                        continue;
                    }
                    let (past, _) = state.get(b"b", newest.div_ceil(2)).unwrap();
                    assert_eq!(past.map_or(0, |record| record.mod_revision), newest.div_ceil(2));
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for number in 1..=3_000_u64 {
        let put = |key: &str| TxnOp::Put {
            key: bytes(key),
            value: bytes(&number.to_string()),
            content_type: None,
            lease: 0,
            prev: false,
        };
        fixture.run(&Command::Txn(Txn { success: vec![put("a"), put("b"), put("c")], ..Txn::default() }));
    }
    eventually("the empty overlay", || fixture.state.stats().unwrap().overlay_entries == 0).await;
    ended.send(true).unwrap();
    for reader in readers {
        assert!(reader.join().unwrap() > 10, "too few reads to prove anything");
    }
}

#[tokio::test]
async fn a_transaction_larger_than_a_batch_is_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), MIRROR);
    for number in 0..2 * BATCH_KEYS_MAX {
        fixture.run(&put(&format!("key{number:04}"), "1"));
    }
    fixture.persist_all();
    let range = KeyRange { start: bytes("key0001"), end: None };
    fixture.run(&Command::Txn(Txn::unconditional(TxnOp::DeleteRange(range))));
    fixture.run(&put("last", "2"));
    assert!(fixture.machine.shared.persist_batch().unwrap());
    let index = 2 * BATCH_KEYS_MAX as u64 + 1;
    assert_eq!(fixture.state.stats().unwrap().persisted_index, Some(index), "the deletion and nothing else");
    let hash =
        super::super::load::hash_engine(&*fixture.machine.shared.live.read().generation.engine, &Default::default())
            .unwrap();
    assert_eq!(hash, fixture.machine.shared.persisted.lock().hash);
    fixture.persist_all();
    assert_eq!(fixture.dump().iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), ["key0000", "last"]);
    assert_eq!(fixture.state.stats().unwrap().deleted_keys, 2 * BATCH_KEYS_MAX - 1);
}
