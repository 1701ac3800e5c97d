//! What many threads record is a history, in memory and in the file.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use super::{Entry, RecordError, Recorder};
use crate::history::{Disorder, HISTORY_FILE, Kind, pair, read_file};

#[test]
fn threads_record_one_history_and_the_file_has_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(HISTORY_FILE);
    let recorder = Recorder::create(&path).unwrap();
    std::thread::scope(|scope| {
        for process in 0..8 {
            let recorder = &recorder;
            scope.spawn(move || {
                for value in 0..100 {
                    let invoke = Entry::invoke(process, "write").key("x").value(value).node("n1");
                    recorder.record(invoke.clone()).unwrap();
                    recorder.record(invoke.completed(Kind::Ok).revision(value)).unwrap();
                }
                recorder.record(Entry::nemesis("partition").value(json!({"from": "n1"}))).unwrap();
            });
        }
    });
    assert_eq!(recorder.len(), 8 * 201);
    let events = recorder.finish().unwrap();
    assert!(events.windows(2).all(|pair| pair[0].index + 1 == pair[1].index && pair[0].time_ns <= pair[1].time_ns));
    let operations = pair(&events).unwrap();
    assert_eq!(operations.len(), 800);
    assert!(operations.iter().all(|operation| operation.is_ok() && operation.revision().is_some()));
    assert_eq!(read_file(&path).unwrap(), events);
}

#[test]
fn a_clock_that_falls_back_stands_still() {
    let readings = [50, 70, 60, 80];
    let next = AtomicU64::new(0);
    let clock = move || readings[next.fetch_add(1, Ordering::Relaxed) as usize];
    let recorder = Recorder::with_clock(None, clock).unwrap();
    for process in 0..4 {
        recorder.record(Entry::invoke(process, "read").key("x")).unwrap();
    }
    let times: Vec<u64> = recorder.finish().unwrap().iter().map(|event| event.time_ns).collect();
    assert_eq!(times, [50, 70, 70, 80]);
}

#[test]
fn a_full_history_still_takes_the_completions() {
    let recorder = Recorder::with_clock(None, || 0).unwrap();
    recorder.state.lock().events_max = 5;
    recorder.record(Entry::invoke(0, "read")).unwrap();
    recorder.record(Entry::invoke(1, "read")).unwrap();
    recorder.record(Entry::nemesis("kill")).unwrap();
    assert!(matches!(recorder.record(Entry::invoke(2, "read")), Err(RecordError::Full)));
    assert!(matches!(recorder.record(Entry::nemesis("heal")), Err(RecordError::Full)));
    recorder.record(Entry::new(1, Kind::Ok, "read")).unwrap();
    recorder.record(Entry::new(0, Kind::Info, "read")).unwrap();
    assert!(matches!(recorder.record(Entry::new(0, Kind::Ok, "read")), Err(RecordError::Full)));
    assert_eq!(recorder.finish().unwrap().len(), 5);
}

#[test]
fn what_is_no_history_is_refused_and_leaves_no_trace() {
    let recorder = Recorder::with_clock(None, || 0).unwrap();
    recorder.record(Entry::invoke(0, "read")).unwrap();
    let refused = recorder.record(Entry::invoke(0, "read"));
    assert!(matches!(refused, Err(RecordError::Disorder(Disorder::Busy { .. }))), "{refused:?}");
    recorder.record(Entry::new(0, Kind::Info, "read").error("timeout")).unwrap();
    let refused = recorder.record(Entry::invoke(0, "read"));
    assert!(matches!(refused, Err(RecordError::Disorder(Disorder::Retired { .. }))), "{refused:?}");
    let events = recorder.finish().unwrap();
    assert_eq!(events.iter().map(|event| event.index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(events[1].error.as_deref(), Some("timeout"));
}

#[test]
fn nothing_is_recorded_after_the_end() {
    let recorder = Recorder::with_clock(None, || 0).unwrap();
    assert!(recorder.is_empty());
    recorder.finish().unwrap();
    assert!(matches!(recorder.record(Entry::invoke(0, "read")), Err(RecordError::Finished)));
    assert!(matches!(recorder.finish(), Err(RecordError::Finished)));
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Recorder::create(&folder.path().join("none").join("x")), Err(RecordError::Io(_))));
}
