//! Failing disks and full ones.

use super::*;
use crate::{fs::faulty::Fault, log::writer::BATCH_OPERATIONS_MAX};

#[test]
fn a_failed_write_or_sync_is_fatal_and_never_success() {
    let mut failed = 0;
    for nth in 1..60 {
        run(async {
            let fs = FaultyFs::new();
            let mut log = open(&fs).unwrap();
            let mut fatal = log.fatal();
            let fail_at = fs.operations() + nth;
            fs.fail_operation(fail_at, Fault::Io);
            let mut durable = Vec::new();
            for index in 0..60 {
                let new = vec![entry(1, index, 500)];
                match append(&mut log, new.clone()).await {
                    Ok(()) => durable.extend(new),
                    Err(e) => {
                        assert!(fs.operations() >= fail_at);
                        failed += 1;
                        let message = fatal.wait_for(Option::is_some).await.unwrap().clone().unwrap();
                        assert!(message.contains("/log/"), "it names the file: {message}");
                        assert_eq!(e.to_string(), message);
                        assert_same_failure(&mut log, &message).await;
                        break;
                    }
                }
            }
            let mut log = open(&fs.crash(nth)).unwrap();
            assert!(all(&mut log).await.starts_with(&durable), "what was reported is there");
        });
    }
    assert!(failed > 30, "{failed} of the failures hit what the log waits for");
}

async fn assert_same_failure(log: &mut LogStore, message: &str) {
    let results = [
        append(log, entries(1, 500..501, 10)).await,
        log.save_vote(&vote(9)).await,
        log.truncate_after(None).await,
        log.purge(log_id(1, 900)).await,
        log.save_committed(None).await,
        log.read_committed().await.map(|_| ()),
        log.read_vote().await.map(|_| ()),
        log.get_log_state().await.map(|_| ()),
        log.try_get_log_entries(..).await.map(|_| ()),
        log.close().await,
    ];
    for result in results {
        assert_eq!(result.unwrap_err().to_string(), message);
    }
}

#[test]
fn a_failed_sync_fails_the_vote_that_waits_for_it() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        fs.fail_operation(fs.operations() + 2, Fault::Io);
        let error = log.save_vote(&vote(1)).await.unwrap_err();
        assert!(error.to_string().starts_with("sync /log/00000000000000000001.wal"), "{error}");
        assert_eq!(open(&fs.crash(1)).unwrap().read_vote().await.unwrap(), None, "the sync did not happen");
    });
}

#[test]
fn nothing_is_written_after_a_failure() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        let fail_at = fs.operations() + 1;
        fs.fail_operation(fail_at, Fault::Io);
        // The votes beyond the first batch wait in the queue when it fails.
        let votes = (0..=BATCH_OPERATIONS_MAX as u64 + 10).map(|term| {
            let mut log = log.clone();
            async move { log.save_vote(&vote(term)).await }
        });
        let results = futures_util::future::join_all(votes).await;
        assert!(results.iter().all(Result::is_err));
        assert_eq!(fs.operations(), fail_at);
        log.close().await.unwrap_err();
        assert_eq!(fs.operations(), fail_at);
        assert_eq!(log.read_vote().await.unwrap_err().to_string(), results[0].as_ref().unwrap_err().to_string());
    });
}

#[test]
fn a_full_disk_is_a_clean_failure_and_room_made_in_time_is_used() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        // Room for the active and the spare segment, but not for a third.
        fs.set_capacity(Some(2 * SMALL.segment_bytes + 100));
        let mut index = 0;
        let error = loop {
            match append(&mut log, vec![entry(1, index, 500)]).await {
                Ok(()) => index += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("create segment /log/00000000000000000003.wal of 8192 bytes"), "{error}");
        assert_eq!(fs.used_bytes(), 2 * SMALL.segment_bytes, "what was begun is given back");
        let after = fs.crash(3);
        after.set_capacity(None);
        let mut log = open(&after).unwrap();
        assert!(all(&mut log).await.starts_with(&entries(1, 0..index, 500)));
        // Again, but this time the disk has room before the segment that could not be prepared is needed.
        let next = log.get_log_state().await.unwrap().last_log_id.next_index();
        after.set_capacity(Some(after.used_bytes()));
        append(&mut log, entries(1, next..next + 4, 500)).await.unwrap();
        after.set_capacity(None);
        append(&mut log, entries(1, next + 4..next + 40, 500)).await.unwrap();
        assert_eq!(all(&mut log).await.len() as u64, next + 40);
    });
}

/// Waits until `log` has no room for its next segment.
async fn starved(log: LogStore) {
    while !log.starved() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_full_disk_delays_the_thread_until_there_is_room() {
    run(async {
        let fs = FaultyFs::new();
        let options = LogOptions { driver: Driver::Thread, ..SMALL };
        let open = |fs: &FaultyFs| LogStore::open(Arc::new(fs.clone()), &dir(), options).unwrap();
        let mut log = open(&fs);
        let watched = log.clone();
        // Room for the active and the spare segment, but not for the others that the entries need.
        fs.set_capacity(Some(2 * SMALL.segment_bytes + 100));
        {
            let appended = append(&mut log, entries(1, 0..60, 500));
            tokio::pin!(appended);
            tokio::select! {
                biased;
                done = &mut appended => panic!("there is no room: {done:?}"),
                () = starved(watched.clone()) => {}
            }
            assert!(watched.fatal().borrow().is_none());
            fs.set_capacity(None);
            appended.await.unwrap();
        }
        assert!(!watched.starved());
        assert_eq!(all(&mut log).await, entries(1, 0..60, 500));
        // A log that is closed while it waits ends, with the cause.
        fs.set_capacity(Some(fs.used_bytes()));
        let appended = append(&mut log, entries(1, 60..120, 500));
        let closed = async {
            starved(watched.clone()).await;
            watched.close().await
        };
        let (appended, closed) = tokio::join!(appended, closed);
        assert_eq!(appended.unwrap_err().kind(), io::ErrorKind::StorageFull);
        closed.unwrap_err();
        fs.set_capacity(None);
        assert!(all(&mut open(&fs)).await.starts_with(&entries(1, 0..60, 500)));
    });
}

#[test]
fn stalled_disk_holds_appends_and_votes_back_and_loses_none() {
    run(async {
        let fs = FaultyFs::new();
        let mut log = open(&fs).unwrap();
        append(&mut log, entries(1, 0..3, 10)).await.unwrap();
        fs.stall();
        let mut flushed = submit(&mut log, entries(1, 3..5, 10)).await.unwrap();
        let mut voter = log.clone();
        let mut voted = tokio::spawn(async move { voter.save_vote(&vote(3)).await });
        // Longer than a disk that works takes: as many turns of the runtime as a batch needs, and more.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(futures_util::poll!(&mut flushed).is_pending() && !voted.is_finished(), "nothing returns");
        assert_eq!((log.vote(), *log.durable().borrow()), (None, 3));
        assert_eq!(all(&mut log).await.len(), 5, "readers have what waits for the disk");
        assert_eq!(log.fatal().borrow().clone(), None);
        fs.unstall();
        flushed.await.unwrap().unwrap();
        (&mut voted).await.unwrap().unwrap();
        assert_eq!((log.vote(), *log.durable().borrow()), (Some(vote(3)), 5));
    });
}
