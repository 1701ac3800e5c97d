//! Tests of the dispatcher, on changes made up.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hexkv_store::{
    change_log::{Change, ChangeRecord, Replaced},
    record::{KeyRange, Record},
    state_machine::Changes,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Batch, End, Event, Hub, Watcher,
    hub::NotWatched,
    progress_event,
    slot::WATCHER_QUEUE_REVISIONS_MAX,
    source::{Source, SourceError},
};

/// Records that one read of the history answers.
const READ_RECORDS: usize = 3;

/// A history in memory.
struct History {
    records: Mutex<Vec<Arc<ChangeRecord>>>,
    compacted: Mutex<u64>,
    newest: watch::Sender<u64>,
}

impl History {
    fn new() -> Arc<Self> {
        Arc::new(Self { records: Mutex::default(), compacted: Mutex::new(0), newest: watch::Sender::new(0) })
    }

    fn push(&self, changes: &[(&str, usize)]) -> Arc<ChangeRecord> {
        let mut records = self.records.lock();
        let revision = records.len() as u64 + 1;
        let changes = changes.iter().map(|(key, bytes)| change(key, revision, *bytes)).collect();
        let record = Arc::new(ChangeRecord { revision, time_ms: revision, changes });
        records.push(record.clone());
        drop(records);
        self.newest.send_replace(revision);
        record
    }
}

impl Source for Arc<History> {
    fn changes_after(&self, after: u64, patience: Duration) -> BoxFuture<'_, Result<Changes, SourceError>> {
        Box::pin(async move {
            let mut newest = self.newest.subscribe();
            let came = newest.wait_for(|newest| *newest > after);
            let _in_time = tokio::time::timeout(patience, came).await.is_ok();
            let records = self.records.lock();
            let (oldest, newest) = (*self.compacted.lock(), records.len() as u64);
            if after < oldest {
                return Err(SourceError::Compacted { oldest, newest });
            }
            let from = (after as usize).min(records.len());
            Ok(Changes { records: records[from..].iter().take(READ_RECORDS).cloned().collect(), newest })
        })
    }
}

fn change(key: &str, revision: u64, bytes: usize) -> Change {
    let record = Record {
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
        content_type: None,
        value: vec![b'v'; bytes].into(),
    };
    let key = Bytes::copy_from_slice(key.as_bytes());
    Change { key, new: Some(record), old: Replaced::Absent { deleted_at: 0 } }
}

fn key(text: &str) -> KeyRange {
    crate::routes::only(text.as_bytes())
}

fn prefix(text: &str) -> KeyRange {
    KeyRange::prefix(text.as_bytes())
}

fn started(history: &Arc<History>) -> (Arc<Hub>, CancellationToken) {
    let hub = Hub::new(Arc::new(history.clone()));
    let cancel = CancellationToken::new();
    tokio::spawn(hub.clone().dispatch(cancel.clone()));
    (hub, cancel)
}

async fn next(watcher: &mut Watcher) -> (u64, Vec<String>) {
    let batch = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.expect("in time").expect("goes on");
    told(&batch)
}

fn told(batch: &Batch) -> (u64, Vec<String>) {
    (batch.revision(), batch.changes().map(|c| String::from_utf8_lossy(&c.key).into_owned()).collect())
}

/// Lets `watcher` become live; it must have nothing else to tell.
async fn caught_up(watcher: &mut Watcher) -> u64 {
    match watcher.next_event().await.expect("goes on") {
        Event::CaughtUp(revision) => revision,
        Event::Revision(batch) => panic!("{batch:?}"),
    }
}

#[tokio::test]
async fn each_watcher_gets_what_concerns_it_whole_and_in_order() {
    let history = History::new();
    let (hub, _cancel) = started(&history);
    let ranges = [
        key("a/1"),
        prefix("a/"),
        prefix(""),
        KeyRange { start: "a/2".into(), end: Some("b".into()) },
        KeyRange { start: "b".into(), end: None },
        key("nobody"),
    ];
    let mut watchers: Vec<Watcher> = ranges.iter().map(|range| hub.watch(range, 0).expect("room")).collect();
    for watcher in &mut watchers {
        assert_eq!(caught_up(watcher).await, 0);
    }
    history.push(&[("a/1", 1)]);
    history.push(&[("a/1", 1), ("a/2", 1), ("b", 1), ("c", 1)]);
    history.push(&[("a/", 1), ("c", 1)]);
    let expected: [&[(u64, &[&str])]; 5] = [
        &[(1, &["a/1"]), (2, &["a/1"])],
        &[(1, &["a/1"]), (2, &["a/1", "a/2"]), (3, &["a/"])],
        &[(1, &["a/1"]), (2, &["a/1", "a/2", "b", "c"]), (3, &["a/", "c"])],
        &[(2, &["a/2"])],
        &[(2, &["b", "c"]), (3, &["c"])],
    ];
    for (watcher, expected) in watchers.iter_mut().zip(expected) {
        for (revision, keys) in expected {
            assert_eq!(next(watcher).await, (*revision, keys.iter().map(ToString::to_string).collect()));
        }
    }
    for watcher in &mut watchers {
        while watcher.position() < 3 {
            tokio::task::yield_now().await;
        }
        assert!(watcher.next().now_or_never().is_none(), "nothing is told twice");
    }
}

#[tokio::test]
async fn a_resumed_watch_has_no_gap_and_no_repeat_while_changes_go_on() {
    let history = History::new();
    for _ in 0..50 {
        history.push(&[("k", 1), ("other", 1)]);
    }
    let (hub, _cancel) = started(&history);
    let mut live = hub.watch(&key("k"), 50).expect("room");
    caught_up(&mut live).await;
    let mut resumed: Vec<Watcher> = (0..50).map(|after| hub.watch(&prefix("k"), after).expect("room")).collect();
    for round in 0..20_u64 {
        history.push(&[("k", 1)]);
        let (revision, _) = next(&mut live).await;
        assert_eq!(revision, 51 + round);
        for watcher in &mut resumed {
            if round % 3 == 0 {
                let before = watcher.position();
                let (revision, _) = next(watcher).await;
                assert!(revision <= before + 1, "{revision} after {before}");
            }
        }
    }
    for (after, watcher) in resumed.iter_mut().enumerate() {
        let from = after as u64 + 1 + 7;
        for revision in from..=70 {
            assert_eq!(next(watcher).await, (revision, vec!["k".to_string()]), "resumed after {after}");
        }
    }
}

#[tokio::test]
async fn progress_is_never_ahead_of_what_was_told() {
    let history = History::new();
    let (hub, _cancel) = started(&history);
    let mut watcher = hub.watch(&key("k"), 0).expect("room");
    caught_up(&mut watcher).await;
    let pusher = {
        let history = history.clone();
        tokio::spawn(async move {
            for at in 0..2_000 {
                history.push(&[(if at % 3 == 0 { "k" } else { "other" }, 1)]);
                tokio::task::yield_now().await;
            }
        })
    };
    let (mut told_up_to, mut looks) = (0, 0);
    while told_up_to < 1_998 {
        let progress = watcher.position();
        assert!(progress >= told_up_to, "it never goes back");
        let (revision, _) = next(&mut watcher).await;
        assert!(revision > progress, "progress said {progress}, then came {revision}");
        told_up_to = revision;
        looks += 1;
    }
    assert_eq!(looks, 667, "every change of the key was told");
    pusher.await.expect("pushed");
}

#[tokio::test]
async fn ten_thousand_watchers_share_one_stream_and_a_slow_one_is_cut_off_alone() {
    const WATCHERS: usize = 10_000;
    const VALUE_BYTES: usize = 1_000;
    let history = History::new();
    let (hub, _cancel) = started(&history);
    let mut watchers = Vec::new();
    for at in 0..WATCHERS {
        let range = if at % 2 == 0 { key("hot") } else { prefix("h") };
        watchers.push(hub.watch(&range, 0).expect("room"));
    }
    for watcher in &mut watchers {
        caught_up(watcher).await;
    }
    let mut slow = watchers.swap_remove(0);
    // A few beyond the queue of the slow one; the others keep up.
    let rounds = WATCHER_QUEUE_REVISIONS_MAX as u64 + 2;
    let mut held_max = 0;
    for revision in 1..=rounds {
        history.push(&[("hot", VALUE_BYTES)]);
        // All of them at the end and now and then, some of them always: what is held is bounded by the slowest.
        let some = if revision % 256 == 0 || revision == rounds { WATCHERS } else { 100 };
        for watcher in watchers.iter_mut().take(some) {
            while watcher.position() < revision {
                next(watcher).await;
            }
        }
        held_max = held_max.max(hub.held_bytes());
    }
    assert_eq!(slow.next().await.expect_err("cut off"), End::Overflow);
    assert_eq!(slow.position(), 0, "it may be resumed where it stands");
    let record_bytes = history.records.lock()[0].size_bytes();
    let bound = record_bytes * (WATCHER_QUEUE_REVISIONS_MAX as u64 + 2);
    assert!(held_max <= bound, "{held_max} bytes are held for {WATCHERS} watchers, {bound} are one stream");
    assert!(hub.held_bytes() <= record_bytes * 2, "what nobody waits for is gone: {}", hub.held_bytes());
    let mut again = hub.watch(&key("hot"), 0).expect("room");
    for revision in 1..=rounds {
        assert_eq!(next(&mut again).await.0, revision, "the slow one resumes");
    }
}

#[tokio::test]
async fn beyond_the_bound_of_all_those_that_stall_for_the_longest_are_cut_off() {
    let history = History::new();
    let hub = Hub::with_limit(Arc::new(history.clone()), 10_000);
    let mut watchers = Vec::new();
    for name in ["a", "b", "c"] {
        let mut watcher = hub.watch(&key(name), 0).expect("room");
        caught_up(&mut watcher).await;
        watchers.push(watcher);
    }
    for name in ["a", "b", "c"] {
        let record = history.push(&[(name, 4_000)]);
        hub.offer_all(record);
        hub.relieve();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(hub.held_bytes() <= 10_000, "{}", hub.held_bytes());
    assert_eq!(watchers[0].next().await.expect_err("the oldest goes"), End::Overflow);
    assert_eq!(next(&mut watchers[1]).await.0, 2);
    assert_eq!(next(&mut watchers[2]).await.0, 3);
}

#[tokio::test]
async fn a_compacted_start_and_a_closed_hub_are_told() {
    let history = History::new();
    for _ in 0..10 {
        history.push(&[("k", 1)]);
    }
    *history.compacted.lock() = 5;
    let (hub, cancel) = started(&history);
    let mut late = hub.watch(&key("k"), 4).expect("room");
    assert_eq!(late.next().await.expect_err("gone"), End::Compacted { from: 5, compacted: 5, newest: 10 });
    let mut first = hub.watch(&key("k"), 5).expect("room");
    assert_eq!(next(&mut first).await.0, 6);
    cancel.cancel();
    let end = loop {
        match first.next().await {
            Ok(_) => {}
            Err(end) => break end,
        }
    };
    assert!(matches!(end, End::Closed(_)), "{end:?}");
    let refused = loop {
        match hub.watch(&key("k"), 10) {
            Err(refused) => break refused,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    assert!(matches!(refused, NotWatched::Closed(_)), "{refused:?}");
}

#[tokio::test]
async fn live_watchers_that_a_snapshot_passed_over_end_and_others_go_on() {
    let history = History::new();
    let (hub, _cancel) = started(&history);
    let mut live = hub.watch(&key("k"), 0).expect("room");
    caught_up(&mut live).await;
    // The history jumps, as after the installation of a snapshot, and what lies between is not there.
    {
        let mut records = history.records.lock();
        for revision in 1..=20 {
            let changes = vec![change("k", revision, 1)];
            records.push(Arc::new(ChangeRecord { revision, time_ms: 0, changes }));
        }
        *history.compacted.lock() = 15;
    }
    history.newest.send_replace(20);
    assert_eq!(live.next().await.expect_err("passed over"), End::Compacted { from: 1, compacted: 15, newest: 20 });
    let mut resumed = hub.watch(&key("k"), 15).expect("room");
    for revision in 16..=20 {
        assert_eq!(next(&mut resumed).await.0, revision);
    }
}

#[tokio::test]
async fn watchers_that_are_dropped_leave_nothing_behind() {
    let history = History::new();
    let (hub, _cancel) = started(&history);
    let ranges = [key("a"), prefix("a"), prefix("ab"), KeyRange { start: "a".into(), end: Some("zz".into()) }];
    let mut watchers = Vec::new();
    for range in ranges.iter().cycle().take(40) {
        let mut watcher = hub.watch(range, 0).expect("room");
        caught_up(&mut watcher).await;
        watchers.push(watcher);
    }
    history.push(&[("ab", 100)]);
    assert_eq!(next(&mut watchers[1]).await.0, 1);
    assert!(hub.held_bytes() > 0);
    watchers.clear();
    assert_eq!((hub.watchers(), hub.held_bytes()), (0, 0));
    let mut late = hub.watch(&key("x"), 1).expect("room");
    assert_eq!(caught_up(&mut late).await, 1);
    history.push(&[("x", 1)]);
    assert_eq!(next(&mut late).await.0, 2, "the stream begins again");
}

#[tokio::test]
async fn only_the_last_event_of_a_revision_has_its_id() {
    let history = History::new();
    let record = history.push(&[("a", 1), ("b", 1), ("c", 1)]);
    let hub = Hub::new(Arc::new(history.clone()));
    let mut watcher = hub.watch(&KeyRange { start: "b".into(), end: None }, 0).expect("room");
    let batch = watcher.next().await.expect("the history");
    let mut text = Vec::new();
    batch.events(false, |bytes| text.extend_from_slice(&bytes));
    let text = String::from_utf8(text).expect("UTF-8");
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 2, "{text}");
    for (event, key) in events.iter().zip(["b", "c"]) {
        let fields: BTreeMap<&str, &str> = event.lines().filter_map(|line| line.split_once(": ")).collect();
        assert_eq!(fields["event"], "put");
        let data: serde_json::Value = serde_json::from_str(fields["data"]).expect("JSON");
        assert_eq!((data["key"].as_str(), data["revision"].as_u64()), (Some(key), Some(1)));
        assert_eq!(fields.get("id").copied(), (key == "c").then_some("1"), "{event}");
    }
    assert_eq!(record.changes.len(), 3);
    assert_eq!(progress_event(7), "event: progress\ndata: {\"revision\":7}\nid: 7\n\n");
}
