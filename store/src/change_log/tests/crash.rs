//! Killed processes, power cuts, failed operations.

use super::*;
use crate::fs::{FaultyFs, Fs, faulty::Fault};

const DISK_DIR: &str = "/changes";

fn open_on(disk: &FaultyFs) -> Result<ChangeLog, StoreError> {
    ChangeLog::open(Arc::new(disk.clone()), Path::new(DISK_DIR), SMALL)
}

/// Appends 1..=30, drops below 12, truncates after 25, appends again. Answers what the log holds at least, then, and
/// at most: (first, last) revision.
fn life_of_a_log(disk: &FaultyFs) -> ((u64, u64), (u64, u64), Result<(), StoreError>) {
    let (mut least, mut most) = ((1, 0), (1, 0));
    let mut run = || {
        let mut log = open_on(disk)?;
        for batch in 0..10 {
            most.1 = 3 * batch + 3;
            log.append(&arcs((3 * batch + 1..=most.1).map(small)))?;
            least.1 = most.1;
        }
        least.0 = 12;
        log.drop_below(12)?;
        least.1 = 25;
        log.truncate_after(25)?;
        log.append(&arcs((26..=28).map(small)))?;
        least.1 = 28;
        Ok(())
    };
    let result = run();
    (least, most, result)
}

#[test]
fn a_process_killed_at_any_operation_loses_nothing() {
    let whole = FaultyFs::new();
    life_of_a_log(&whole).2.unwrap();
    let operations = whole.operations();
    assert!(operations > 20, "{operations}");
    for stop in 1..=operations + 1 {
        let disk = FaultyFs::new();
        disk.stop_at_operation(stop);
        let (least, most, result) = life_of_a_log(&disk);
        assert_eq!(result.is_err(), stop <= operations);
        let disk = disk.kill();
        let mut log = open_on(&disk).unwrap();
        let (first, next) = (log.reader().first_revision(), log.reader().next_revision());
        assert!(first >= most.0 && first <= least.0, "stop {stop}: from {first}");
        assert!(next > least.1 && next <= most.1 + 1, "stop {stop}: up to {next}, not {least:?} to {most:?}");
        assert_eq!(held(&log), (first..next).map(small).collect::<Vec<_>>(), "stop {stop}");
        log.append(&arcs([small(next)])).unwrap();
        assert_eq!(open_on(&disk).unwrap().reader().next_revision(), next + 1);
    }
}

#[test]
fn after_a_power_cut_the_log_is_refused_or_true() {
    let whole = FaultyFs::new();
    life_of_a_log(&whole).2.unwrap();
    let (mut refused, mut shorter, mut complete) = (0, 0, 0);
    for stop in (1..=whole.operations() + 1).step_by(4) {
        for seed in 0..30 {
            let disk = FaultyFs::new();
            disk.stop_at_operation(stop);
            let (least, _, _) = life_of_a_log(&disk);
            match open_on(&disk.crash(seed)) {
                Err(StoreError::Corrupt { .. }) => refused += 1,
                Err(e) => panic!("stop {stop}, seed {seed}: {e}"),
                Ok(log) => {
                    let (first, next) = (log.reader().first_revision(), log.reader().next_revision());
                    assert_eq!(held(&log), (first..next).map(small).collect::<Vec<_>>(), "stop {stop}, seed {seed}");
                    if next > least.1 { complete += 1 } else { shorter += 1 }
                }
            }
        }
    }
    assert!(refused > 10 && shorter > 10 && complete > 10, "{refused} {shorter} {complete}");
}

#[test]
fn a_crash_while_clearing_leaves_a_log_that_ends_too_early() {
    for stop in 1.. {
        let disk = FaultyFs::new();
        let mut log = open_on(&disk).unwrap();
        log.append(&arcs((1..=24).map(small))).unwrap();
        disk.stop_at_operation(disk.operations() + stop);
        let cleared = log.clear(1_000);
        assert_eq!(cleared.is_err(), disk.stopped());
        let log = open_on(&disk.kill()).unwrap();
        let held = held(&log);
        if cleared.is_ok() {
            assert_eq!((held.len(), log.reader().next_revision()), (0, 1_000));
            assert!(stop > 4, "several segments are removed one by one");
            break;
        }
        assert_eq!(held, (1..=held.len() as u64).map(small).collect::<Vec<_>>(), "stop {stop}");
        assert!(stop == 1 || held.len() < 24, "stop {stop}");
    }
}

#[test]
fn after_a_failed_write_nothing_is_appended_until_it_is_opened_again() {
    for fault in [Fault::Io, Fault::NoSpace] {
        for revisions in [1, 10] {
            let disk = FaultyFs::new();
            let mut log = open_on(&disk).unwrap();
            log.append(&arcs([small(1), small(2)])).unwrap();
            disk.fail_operation(disk.operations() + revisions, fault);
            let failed = log.append(&arcs((3..3 + 20 * revisions).map(small)));
            assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
            let seen = log.reader().next_revision();
            assert!(seen >= 3);
            assert_eq!(held(&log), (1..seen).map(small).collect::<Vec<_>>(), "what was written stays readable");
            assert!(matches!(log.append(&arcs([small(seen)])), Err(StoreError::Io { .. })));
            let mut log = open_on(&disk).unwrap();
            let next = log.reader().next_revision();
            assert!(next >= seen);
            log.append(&arcs([small(next)])).unwrap();
            assert_eq!(held(&open_on(&disk).unwrap()), (1..=next).map(small).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_segment_that_cannot_be_removed_goes_later() {
    let disk = FaultyFs::new();
    let mut log = open_on(&disk).unwrap();
    log.append(&arcs((1..=24).map(small))).unwrap();
    disk.fail_operation(disk.operations() + 1, Fault::Io);
    assert!(matches!(log.drop_below(20), Err(StoreError::Io { .. })));
    assert_eq!(log.reader().first_revision(), 1);
    log.drop_below(20).unwrap();
    assert!(log.reader().first_revision() > 1);
    assert_eq!(disk.list(Path::new(DISK_DIR)).unwrap().len(), log.reader().index.read().views.len());
}
