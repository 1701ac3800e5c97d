//! The change log on a real directory; what is worse is in the files beside.

mod crash;
mod damage;
mod format;
mod model;

use std::{
    collections::HashSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use bytes::Bytes;

use super::*;
use crate::{fs::RealFs, log::segment::record_bytes, record::Record};

/// Room for a handful of small revisions, so that tests roll segments.
const SMALL: ChangeLogOptions = ChangeLogOptions { segment_bytes: HEADER_BYTES + 2048 };

fn record(revision: u64, value_bytes: usize) -> Record {
    Record {
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: revision % 3,
        content_type: revision.is_multiple_of(2).then(|| "text/plain".to_string()),
        value: Bytes::from(vec![revision as u8; value_bytes]),
    }
}

/// The change record that all tests expect under `revision`: as many changes as given, of values of this size.
fn change_record(revision: u64, changes: usize, value_bytes: usize) -> ChangeRecord {
    let change = |i: usize| Change {
        key: Bytes::from(format!("key-{revision}-{i}")),
        new: (i % 3 != 2).then(|| record(revision, value_bytes)),
        old: match i % 2 {
            0 => Replaced::Absent { deleted_at: revision / 2 },
            _ => Replaced::Record(record(revision / 2, value_bytes)),
        },
    };
    ChangeRecord { revision, time_ms: 1_000_000 + revision, changes: (0..changes).map(change).collect() }
}

fn small(revision: u64) -> ChangeRecord {
    change_record(revision, 1 + revision as usize % 3, 20 + revision as usize % 7)
}

fn arcs(records: impl IntoIterator<Item = ChangeRecord>) -> Vec<Arc<ChangeRecord>> {
    records.into_iter().map(Arc::new).collect()
}

fn open(dir: &Path) -> Result<ChangeLog, StoreError> {
    ChangeLog::open(Arc::new(RealFs), dir, SMALL)
}

fn held(log: &ChangeLog) -> Vec<ChangeRecord> {
    log.reader().iter_from(log.reader().first_revision()).collect::<Result<_, _>>().unwrap()
}

fn segment_paths(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A log of the small revisions 1..=24 in several segments, the last two of them written as one batch.
fn several_segments(dir: &Path) {
    let mut log = open(dir).unwrap();
    for revision in 1..=22 {
        log.append(&arcs([small(revision)])).unwrap();
    }
    log.append(&arcs([small(23), small(24)])).unwrap();
    assert!(segment_paths(dir).len() >= 3, "{:?}", segment_paths(dir));
}

#[test]
fn an_empty_log_begins_with_revision_1() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let log = open(dir.path()).unwrap();
        let reader = log.reader();
        assert_eq!((reader.first_revision(), reader.next_revision(), reader.last_revision()), (1, 1, None));
        assert_eq!(reader.read(1).unwrap(), None);
        assert_eq!(reader.iter_from(1).count(), 0);
        assert_eq!(reader.compaction_target(&HistoryLimits::default(), u64::MAX), None);
    }
}

#[test]
fn records_are_read_back_also_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    several_segments(dir.path());
    let mut log = open(dir.path()).unwrap();
    log.append(&[]).unwrap();
    log.append(&arcs((25..=30).map(small))).unwrap();
    for log in [log, open(dir.path()).unwrap()] {
        let reader = log.reader();
        assert_eq!((reader.first_revision(), reader.last_revision()), (1, Some(30)));
        for revision in 1..=30 {
            assert_eq!(reader.read(revision).unwrap(), Some(small(revision)));
            let rest: Vec<_> = reader.iter_from(revision).map(Result::unwrap).collect();
            assert_eq!(rest, (revision..=30).map(small).collect::<Vec<_>>());
        }
        assert_eq!(reader.read(0).unwrap(), None);
        assert_eq!(reader.read(31).unwrap(), None);
        assert_eq!(reader.iter_from(31).count(), 0);
        assert_eq!(reader.iter_from(u64::MAX).count(), 0);
        let on_disk: u64 = segment_paths(dir.path()).iter().map(|p| fs::metadata(p).unwrap().len()).sum();
        assert_eq!(reader.bytes(), on_disk);
    }
}

#[test]
#[should_panic(expected = "revisions are appended in order")]
fn a_gap_in_revisions_panics() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().append(&arcs([small(2)])).unwrap();
}

#[test]
fn a_revision_larger_than_a_segment_gets_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    // Six MiB: more than one part, and more than one write.
    let large = change_record(2, 60, 100_000);
    assert!(large.parts().count() > 4);
    assert!(large.stored_bytes_max() > WRITE_BYTES);
    log.append(&arcs([small(1), large.clone(), small(3)])).unwrap();
    for log in [log, open(dir.path()).unwrap()] {
        assert_eq!(held(&log), [small(1), large.clone(), small(3)]);
        assert_eq!(log.reader().read(2).unwrap(), Some(large.clone()));
    }
    assert!(segment_paths(dir.path()).len() >= 2);
}

#[test]
fn a_first_revision_that_does_not_fit_replaces_the_empty_segment() {
    let dir = tempfile::tempdir().unwrap();
    let large = change_record(1, 1, 5_000);
    let mut log = open(dir.path()).unwrap();
    log.append(&arcs([large.clone()])).unwrap();
    assert_eq!(segment_paths(dir.path()).len(), 1);
    assert_eq!(held(&open(dir.path()).unwrap()), [large]);
}

#[test]
fn a_revision_that_was_cut_between_its_parts_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let options = ChangeLogOptions::default();
    let open = || ChangeLog::open(Arc::new(RealFs), dir.path(), options).unwrap();
    let large = change_record(2, 60, 100_000);
    let mut log = open();
    log.append(&arcs([small(1)])).unwrap();
    log.append(&arcs([large.clone()])).unwrap();
    let mut part = Vec::new();
    large.encode_part(large.parts().next().unwrap(), &mut part);
    let begin = log.reader().index.read().last().filled.read().offsets[1];
    let cut_at = u64::from(begin) + record_bytes(part.len());
    drop(log);
    cut(&(Arc::new(RealFs) as SharedFs), &segment_paths(dir.path())[0], cut_at).unwrap();
    let mut log = open();
    assert_eq!(held(&log), [small(1)]);
    assert_eq!(fs::metadata(&segment_paths(dir.path())[0]).unwrap().len(), u64::from(begin));
    log.append(&arcs([small(2)])).unwrap();
    assert_eq!(held(&open()), [small(1), small(2)]);
}

#[test]
fn another_format_version_is_refused_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{PREFIX}{:020}{SUFFIX}", 1));
    let mut payload = index::header_payload();
    payload[8] = 9;
    Segment::create(&RealFs, &path, 1, SMALL.segment_bytes, &payload, Mode::Rebuildable).unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::FormatVersion { found: 9, supported: 1, .. })));
}

#[test]
fn unfinished_segments_are_removed_and_foreign_files_left() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(format!("{PREFIX}{:020}.{TEMPORARY_EXTENSION}", 5)), b"half").unwrap();
    fs::write(dir.path().join("notes.txt"), b"mine").unwrap();
    open(dir.path()).unwrap();
    let names: Vec<_> =
        segment_paths(dir.path()).iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_string()).collect();
    assert_eq!(names, [format!("{PREFIX}{:020}{SUFFIX}", 1), "notes.txt".to_string()]);
}

#[test]
fn truncation_goes_back_to_any_revision_and_appending_continues() {
    for revision in 0..=25 {
        let dir = tempfile::tempdir().unwrap();
        several_segments(dir.path());
        let mut log = open(dir.path()).unwrap();
        log.truncate_after(revision).unwrap();
        let kept = revision.min(24);
        assert_eq!(held(&log), (1..=kept).map(small).collect::<Vec<_>>());
        assert_eq!(log.reader().next_revision(), kept + 1);
        // Other content than before: nothing of the old may shine through.
        let new = change_record(kept + 1, 2, 300);
        log.append(&arcs([new.clone()])).unwrap();
        assert_eq!(log.reader().read(kept + 1).unwrap(), Some(new.clone()));
        let log = open(dir.path()).unwrap();
        assert_eq!(held(&log), (1..=kept).map(small).chain([new]).collect::<Vec<_>>());
    }
}

#[test]
fn dropping_removes_whole_segments_and_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    several_segments(dir.path());
    let mut log = open(dir.path()).unwrap();
    let begins: Vec<u64> = log.reader().index.read().views.iter().map(|v| v.first_revision).collect();
    let begun = log.reader().iter_from(1);

    log.drop_below(begins[1] - 1).unwrap();
    assert_eq!(log.reader().first_revision(), 1, "the first segment holds the revision");
    log.drop_below(begins[1]).unwrap();
    assert_eq!(log.reader().first_revision(), begins[1]);
    assert!(matches!(
        log.reader().iter_from(begins[1] - 1).collect::<Vec<_>>()[..],
        [Err(StoreError::Compacted { requested, oldest })] if requested + 1 == oldest && oldest == begins[1]
    ));
    assert_eq!(log.reader().read(begins[1] - 1).unwrap(), None);

    log.drop_below(u64::MAX).unwrap();
    assert_eq!(log.reader().first_revision(), *begins.last().unwrap());
    assert_eq!(segment_paths(dir.path()).len(), 1);
    let all: Vec<_> = begun.map(Result::unwrap).collect();
    assert_eq!(all, (1..=24).map(small).collect::<Vec<_>>(), "what an iteration began with it can finish");

    let log = open(dir.path()).unwrap();
    assert_eq!(log.reader().first_revision(), *begins.last().unwrap());
    assert_eq!(held(&log).last(), Some(&small(24)));
}

#[test]
fn a_cleared_log_continues_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    several_segments(dir.path());
    let mut log = open(dir.path()).unwrap();
    let begun = log.reader().iter_from(20);
    log.clear(1_000).unwrap();
    assert_eq!(begun.map(Result::unwrap).collect::<Vec<_>>(), (20..=24).map(small).collect::<Vec<_>>());
    for mut log in [log, open(dir.path()).unwrap()] {
        assert_eq!((log.reader().first_revision(), log.reader().last_revision()), (1_000, None));
        log.append(&arcs([small(1_000)])).unwrap();
        assert_eq!(held(&log), [small(1_000)]);
        log.clear(1_000).unwrap();
    }
}

#[test]
fn the_compaction_target_is_the_end_of_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    several_segments(dir.path());
    let mut log = open(dir.path()).unwrap();
    let begins: Vec<u64> = log.reader().index.read().views.iter().map(|v| v.first_revision).collect();
    let limits = HistoryLimits { revisions_min: 24 - (begins[1] - 1), age_ms_min: 100, bytes_max: u64::MAX };
    let newest_ms = small(24).time_ms;
    assert_eq!(log.reader().compaction_target(&limits, newest_ms), None);
    assert_eq!(log.reader().compaction_target(&limits, newest_ms + 100), Some(begins[1] - 1));
    log.drop_below(begins[1]).unwrap();
    assert_eq!(log.reader().compaction_target(&limits, newest_ms + 100), None);
    // The times come from the files as well.
    drop(log);
    let log = open(dir.path()).unwrap();
    let all = HistoryLimits { revisions_min: 0, ..limits };
    assert_eq!(log.reader().compaction_target(&all, newest_ms + 1_000), Some(begins[begins.len() - 1] - 1));
}

#[test]
fn readers_and_the_writer_do_not_disturb_each_other() {
    const LAST: u64 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    let reader = log.reader().clone();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|n| {
                let (reader, done) = (reader.clone(), &done);
                scope.spawn(move || {
                    let mut seen = HashSet::new();
                    let mut next = 1;
                    while !done.load(Ordering::Acquire) || next <= LAST {
                        match reader.iter_from(next).next() {
                            Some(Ok(record)) => {
                                assert_eq!(record, small(next));
                                seen.insert(next);
                                next += 1 + n;
                            }
                            Some(Err(StoreError::Compacted { oldest, .. })) => next = oldest,
                            Some(Err(e)) => panic!("{e}"),
                            None => thread::yield_now(),
                        }
                        if let Some(last) = reader.last_revision() {
                            // It may be dropped by now, but it is never something else.
                            let found = reader.read(last).unwrap();
                            assert!(found.is_none_or(|r| r == small(last)));
                        }
                    }
                    seen.len()
                })
            })
            .collect();
        let mut revision = 0;
        while revision < LAST {
            let batch = arcs((revision + 1..=revision + 10).map(small));
            log.append(&batch).unwrap();
            revision += 10;
            if revision % 500 == 0 {
                log.drop_below(revision - 200).unwrap();
            }
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().unwrap() > 10);
        }
    });
    assert_eq!(log.reader().last_revision(), Some(LAST));
}
