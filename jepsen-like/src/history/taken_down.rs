//! Events as the recorder takes them down, for the tests of the exports.

use serde_json::Value;

use super::{Entry, Event, Kind, Recorder};

/// What a recorder makes of `entries`, all at `time_ns`.
pub(super) fn record(entries: Vec<Entry>, time_ns: u64) -> Vec<Event> {
    let recorder = Recorder::with_clock(None, move || time_ns).unwrap();
    for entry in entries {
        recorder.record(entry).unwrap();
    }
    recorder.finish().unwrap()
}

/// An operation and its completion with this value.
pub(super) fn whole(invoke: Entry, kind: Kind, value: Value) -> [Entry; 2] {
    let completed = invoke.completed(kind).value(value);
    [invoke, completed]
}
