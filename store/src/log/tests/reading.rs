//! Reading, caching, streaming, rotation, purge.

use futures_util::{StreamExt, TryStreamExt, pin_mut};
use openraft::storage::LeaderBoundedStreamError;

use super::*;
use crate::fs::RealFs;

#[test]
fn entries_are_readable_at_once_and_durable_when_told() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        let durable = log.durable();
        let flushed = submit(&mut log, entries(1, 0..3, 10)).await.unwrap();
        assert_eq!(all(&mut log).await, entries(1, 0..3, 10));
        assert_eq!(*durable.borrow(), 0);
        flushed.await.unwrap().unwrap();
        assert_eq!(*durable.borrow(), 3);
        let mut log = open(&fs.crash(1)).unwrap();
        assert_eq!(all(&mut log).await, entries(1, 0..3, 10));
        assert_eq!(*log.durable().borrow(), 3);
    });
}

#[test]
fn all_that_waits_shares_one_sync() {
    run(async {
        let mut log = open(&FaultyFs::new()).unwrap();
        let before = log.stats();
        let mut flushed = Vec::new();
        for index in 0..50 {
            flushed.push(submit(&mut log, vec![entry(1, index, 10)]).await.unwrap());
        }
        log.save_vote(&vote(3)).await.unwrap();
        for flushed in flushed {
            flushed.await.unwrap().unwrap();
        }
        let after = log.stats();
        assert_eq!((after.batches - before.batches, after.syncs - before.syncs), (1, 1));
        assert_eq!(after.batch_operations_max, 51);
        assert_eq!(after.last_index, Some(49));
        assert!(after.appended_bytes >= 500 && after.entry_bytes == after.appended_bytes);
    });
}

#[test]
fn durable_falls_with_a_truncation_and_does_not_count_what_replaces() {
    run(async {
        let mut log = open(&FaultyFs::new()).unwrap();
        let durable = log.durable();
        append(&mut log, entries(1, 0..10, 10)).await.unwrap();
        let old = submit(&mut log, entries(1, 10..12, 10)).await.unwrap();
        // Both in the queue: the truncation, then entries in the place of what it removes.
        let mut other = log.clone();
        let truncation = other.truncate_after(Some(log_id(1, 4)));
        pin_mut!(truncation);
        assert!(futures_util::poll!(&mut truncation).is_pending());
        assert_eq!(*durable.borrow(), 5);
        let new = submit(&mut log, entries(2, 5..8, 10)).await.unwrap();
        assert_eq!(*durable.borrow(), 5);
        truncation.await.unwrap();
        old.await.unwrap().unwrap();
        new.await.unwrap().unwrap();
        assert_eq!(*durable.borrow(), 8);
        let expected = [entries(1, 0..5, 10), entries(2, 5..8, 10)].concat();
        assert_eq!(all(&mut log).await, expected);
    });
}

#[test]
fn recent_entries_are_shared_and_old_ones_come_from_disk() {
    run(async {
        let mut log = open(&FaultyFs::new()).unwrap();
        let written = entries(1, 0..200, 100);
        for chunk in written.chunks(7) {
            append(&mut log, chunk.to_vec()).await.unwrap();
        }
        assert!(log.stats().segments > 3);
        assert_eq!(all(&mut log).await, written);
        for (start, end) in [(0, 1), (0, 200), (30, 90), (150, 500), (199, 200), (200, 201), (77, 77)] {
            let read = log.try_get_log_entries(start..end).await.unwrap();
            let (start, end) = (start.min(200) as usize, end.min(200) as usize);
            assert_eq!(read, written[start..end]);
        }
        let body = |entry: &Entry| match &entry.payload {
            EntryPayload::Normal(proposal) => proposal.body.as_ptr(),
            EntryPayload::Blank | EntryPayload::Membership(_) => panic!("a normal entry"),
        };
        let last = log.try_get_log_entries(199..).await.unwrap();
        assert_eq!(body(&last[0]), body(&written[199]), "reading from memory copies no bytes");
        let first = log.try_get_log_entries(..1).await.unwrap();
        assert_ne!(body(&first[0]), body(&written[0]), "the cache is bounded");
    });
}

#[test]
fn long_reads_come_in_chunks_and_streams_are_whole() {
    run(async {
        let options = LogOptions { segment_bytes: 4 * 1024 * 1024, cache_bytes: 1024 * 1024, driver: Driver::Task };
        let mut log = LogStore::open(Arc::new(FaultyFs::new()), &dir(), options).unwrap();
        let bytes = 300 * 1024;
        append(&mut log, entries(2, 0..20, bytes)).await.unwrap();
        for start in [0, 3, 9, 15] {
            let chunk = log.limited_get_log_entries(start, 20).await.unwrap();
            assert_eq!(chunk[0].index(), start);
            assert!((1..=6).contains(&chunk.len()), "{} entries of 300 KiB", chunk.len());
        }
        append(&mut log, vec![entry(2, 20, 3 * 1024 * 1024)]).await.unwrap();
        assert_eq!(log.limited_get_log_entries(20, 30).await.unwrap().len(), 1, "never nothing");
        assert_eq!(log.limited_get_log_entries(21, 30).await.unwrap().len(), 0);

        let mut reader = log.clone();
        let streamed: Vec<Entry> = reader.entries_stream(2..20).await.try_collect().await.unwrap();
        assert_eq!(streamed, entries(2, 2..20, bytes));

        log.save_vote(&vote(2)).await.unwrap();
        let leader = vote(2).leader_id;
        let stream = reader.leader_bounded_stream(leader, 0..20).await;
        pin_mut!(stream);
        for index in 0..10 {
            assert_eq!(stream.next().await.unwrap().unwrap(), entry(2, index, bytes));
        }
        log.save_vote(&vote(4)).await.unwrap();
        assert!(matches!(stream.next().await, Some(Err(LeaderBoundedStreamError::LeaderChanged(_)))));
        assert!(stream.next().await.is_none());
    });
}

#[test]
fn a_stream_does_not_skip_what_is_purged_under_it() {
    run(async {
        let options = LogOptions { segment_bytes: 4 * 1024 * 1024, cache_bytes: 0, driver: Driver::Task };
        let mut log = LogStore::open(Arc::new(FaultyFs::new()), &dir(), options).unwrap();
        append(&mut log, entries(2, 0..20, 300 * 1024)).await.unwrap();
        let mut reader = log.clone();
        let stream = reader.entries_stream(0..20).await;
        pin_mut!(stream);
        assert_eq!(stream.next().await.unwrap().unwrap().index(), 0);
        log.purge(log_id(2, 18)).await.unwrap();
        let rest: Vec<_> = stream.collect().await;
        assert!(rest.last().unwrap().is_err(), "the gap is an error");
        assert!(rest.len() < 10);
        assert!(log.limited_get_log_entries(5, 20).await.unwrap().is_empty(), "no chunk begins with a gap");
    });
}

#[test]
fn purged_segments_are_unlinked_and_the_log_goes_on() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        append(&mut log, entries(1, 0..200, 100)).await.unwrap();
        assert_eq!(segment_paths(&fs).len(), 9);
        log.purge(log_id(1, 150)).await.unwrap();
        log.purge(log_id(1, 100)).await.unwrap();
        assert_eq!(segment_paths(&fs).len(), 4, "a segment holds 25 entries");
        assert_eq!(log.stats().first_index, 151);
        // As after a snapshot that is ahead of the log.
        log.purge(log_id(3, 1000)).await.unwrap();
        assert_eq!(segment_paths(&fs).len(), 2, "the active and the spare one");
        assert_eq!(*log.durable().borrow(), 1001);
        append(&mut log, entries(3, 1001..1003, 100)).await.unwrap();
        let before = State::of(&mut log).await;
        let after = State::of(&mut open(&fs.kill()).unwrap()).await;
        for state in [before, after] {
            assert_eq!((state.purged, state.last), (Some(log_id(3, 1000)), Some(log_id(3, 1002))));
            assert_eq!(state.entries, entries(3, 1001..1003, 100));
        }
    });
}

#[test]
fn committed_is_recorded_late_and_never_ahead_of_the_entries() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        append(&mut log, entries(1, 0..5, 10)).await.unwrap();
        let operations = fs.operations();
        log.save_committed(Some(log_id(1, 3))).await.unwrap();
        assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 3)));
        assert_eq!(fs.operations(), operations, "it costs no write of its own");
        append(&mut log, entries(1, 5..6, 10)).await.unwrap();
        log.save_committed(Some(log_id(1, 8))).await.unwrap();
        append(&mut log, entries(1, 6..7, 10)).await.unwrap();
        let mut reopened = open(&fs.crash(1)).unwrap();
        assert_eq!(reopened.read_committed().await.unwrap(), Some(log_id(1, 3)), "entry 8 is not there");
        reopened.save_committed(Some(log_id(1, 6))).await.unwrap();
        reopened.close().await.unwrap();
    });
}

#[test]
fn committed_is_written_at_close_and_a_closed_log_refuses() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        append(&mut log, entries(1, 0..5, 10)).await.unwrap();
        log.save_committed(Some(log_id(1, 4))).await.unwrap();
        log.close().await.unwrap();
        for refused in [append(&mut log, entries(1, 5..6, 10)).await, log.save_vote(&vote(1)).await, log.close().await]
        {
            assert_eq!(refused.unwrap_err().to_string(), "the write-ahead log is closed");
        }
        assert_eq!(*log.fatal().borrow(), None);
        let mut log = open(&fs.crash(1)).unwrap();
        assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 4)));
    });
}

#[test]
fn an_entry_that_fits_no_segment_is_refused_and_harms_nothing() {
    run(async {
        let mut log = open(&FaultyFs::new()).unwrap();
        let error = append(&mut log, entries(1, 0..1, 5000)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        append(&mut log, entries(1, 0..1, 3000)).await.unwrap();
        append(&mut log, entries(1, 1..3, 3000)).await.unwrap();
        assert_eq!(all(&mut log).await, entries(1, 0..3, 3000));
    });
}

#[test]
fn appends_wait_when_the_queue_is_full() {
    run(async {
        let options = LogOptions { driver: Driver::Task, ..LogOptions::default() };
        let mut log = LogStore::open(Arc::new(FaultyFs::new()), &dir(), options).unwrap();
        let body: bytes::Bytes = vec![7; 8 * 1024 * 1024].into();
        let large = |index| {
            let proposal = Proposal { time_ms: 0, uptime_ms: 0, idempotency: None, body: body.clone() };
            vec![Entry::new(log_id(1, index), EntryPayload::Normal(proposal))]
        };
        let mut flushed = Vec::new();
        for index in 0..7 {
            flushed.push(submit(&mut log, large(index)).await.unwrap());
        }
        let mut other = log.clone();
        let eighth = submit(&mut other, large(7));
        pin_mut!(eighth);
        assert!(futures_util::poll!(&mut eighth).is_pending(), "it would not fit in 64 MiB with its overhead");
        assert_eq!(log.stats().last_index, Some(6));
        flushed.push(eighth.await.unwrap());
        for flushed in flushed {
            flushed.await.unwrap().unwrap();
        }
        assert_eq!(log.stats().last_index, Some(7));
    });
}

#[tokio::test]
async fn the_threads_do_the_same_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 64 * 1024, cache_bytes: 16 * 1024, driver: Driver::Thread };
    let reopen = || LogStore::open(Arc::new(RealFs), &dir.path().join("log"), options).unwrap();
    let mut log = reopen();
    let reader = tokio::spawn({
        let (mut log, mut durable) = (log.clone(), log.durable());
        async move {
            durable.wait_for(|durable| *durable >= 1000).await.unwrap();
            let read: Vec<Entry> = log.entries_stream(0..1000).await.try_collect().await.unwrap();
            read
        }
    });
    let mut flushed = Vec::new();
    for index in 0..3000 {
        flushed.push(submit(&mut log, vec![entry(1, index, 100)]).await.unwrap());
    }
    for flushed in flushed {
        flushed.await.unwrap().unwrap();
    }
    assert_eq!(reader.await.unwrap(), entries(1, 0..1000, 100));
    log.purge(log_id(1, 1999)).await.unwrap();
    log.close().await.unwrap();
    let stats = log.stats();
    let files = std::fs::read_dir(dir.path().join("log")).unwrap().count();
    assert_eq!(files, stats.segments + 1);
    assert!(stats.syncs <= stats.batches + 20, "one sync a batch and one a rotation: {stats:?}");
    let mut log = reopen();
    assert_eq!(all(&mut log).await, entries(1, 2000..3000, 100));
    assert_eq!(*log.durable().borrow(), 3000);
}

#[test]
fn entries_that_contradict_what_is_committed_are_noticed() {
    run(async {
        let mut log = open(&FaultyFs::new()).unwrap();
        let id = |term, index| entry(term, index, 1).log_id;
        log.save_committed(Some(id(2, 4))).await.unwrap();
        // Later ones, and those of before, which need not be known by their terms.
        assert!(log.agrees_with([id(1, 3), id(2, 4), id(3, 5)].into_iter()));
        assert_eq!(log.cut_below_committed(), None);
        assert!(!log.agrees_with([id(2, 2), id(3, 3)].into_iter()));
        let noted = log.cut_below_committed().unwrap();
        assert!(noted.contains("from log index 3 on") && noted.contains("up to 4"), "{noted}");
    });
}
