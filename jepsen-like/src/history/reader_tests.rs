//! What is read, and how each mistake is told.

use std::io::Cursor;

use serde_json::{Value, json};

use super::{HistoryError, Reader, read_file};
use crate::history::{Event, Process};

const HEADER: &str = "{\"history_version\":1}\n";

fn read(lines: &[Value]) -> Result<Vec<Event>, HistoryError> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    read_text(&format!("{HEADER}{text}"))
}

fn read_text(text: &str) -> Result<Vec<Event>, HistoryError> {
    Reader::new(Cursor::new(text.to_owned())).collect()
}

fn event(index: u64, process: u64, kind: &str) -> Value {
    json!({"index": index, "time_ns": index, "process": process, "type": kind, "f": "write", "key": "x", "value": 1})
}

#[track_caller]
fn fails(lines: &[Value], message: &str) {
    assert_eq!(read(lines).unwrap_err().to_string(), message);
}

#[test]
fn a_history() {
    let mut nemesis = event(2, 0, "info");
    nemesis["process"] = json!("nemesis");
    let events = read(&[event(0, 0, "invoke"), event(1, 0, "ok"), nemesis, event(3, 0, "invoke")]).unwrap();
    assert_eq!(events.len(), 4);
    assert!(matches!(events[2].process, Process::Nemesis(_)));
    assert!(read(&[]).unwrap().is_empty());
}

#[test]
fn it_streams() {
    let text = format!("{HEADER}{}\nrubbish\n", event(0, 0, "invoke"));
    let mut reader = Reader::new(Cursor::new(text));
    assert_eq!(reader.next().unwrap().unwrap().index, 0);
    assert!(reader.next().unwrap().is_err());
    assert!(reader.next().is_none(), "nothing comes after an error");
}

#[test]
fn the_header_says_the_version() {
    assert!(matches!(read_text(""), Err(HistoryError::Empty)));
    let error = read_text("{\"history_version\":2}\n").unwrap_err().to_string();
    assert_eq!(error, "line 1, field `history_version`: 2, but this suite reads version 1");
    let error = read_text(&format!("{}\n", event(0, 0, "invoke"))).unwrap_err();
    assert!(matches!(error, HistoryError::Version { .. }), "{error}");
}

#[test]
fn a_line_that_was_cut_off() {
    let text = format!("{HEADER}{}\n{}", event(0, 0, "invoke"), &event(1, 0, "ok").to_string()[..20]);
    let error = read_text(&text).unwrap_err();
    assert!(matches!(error, HistoryError::Truncated { line: 3 }), "{error}");
    // Cut exactly before its end, the event is whole, but the run did not finish it.
    let error = read_text(&format!("{HEADER}{}", event(0, 0, "invoke"))).unwrap_err();
    assert!(matches!(error, HistoryError::Truncated { line: 2 }), "{error}");
}

#[test]
fn a_line_that_is_too_long() {
    let text = format!("{HEADER}{}", " ".repeat(super::LINE_BYTES_MAX as usize + 1));
    assert!(matches!(read_text(&text), Err(HistoryError::LineTooLong { line: 2 })));
}

#[test]
fn fields_are_named() {
    let with = |name: &str, value: Value| {
        let mut event = event(0, 0, "invoke");
        event[name] = value;
        event
    };
    fails(&[with("index", json!("a"))], "line 2, field `index`: invalid type: string \"a\", expected u64");
    fails(&[with("time_ns", json!(-1))], "line 2, field `time_ns`: invalid value: integer `-1`, expected u64");
    fails(&[with("key", json!(5))], "line 2, field `key`: invalid type: integer `5`, expected a string");
    fails(&[with("colour", json!(5))], "line 2, field `colour`: unknown field");
    for (name, value) in [("type", "maybe"), ("mode", "fresh"), ("process", "client")] {
        let message = read(&[with(name, json!(value))]).unwrap_err().to_string();
        assert!(message.starts_with(&format!("line 2, field `{name}`: ")), "{message}");
    }
    let mut without = event(0, 0, "invoke");
    without.as_object_mut().unwrap().remove("f");
    fails(&[without], "line 2, field `f`: missing");
    let error = read_text(&format!("{HEADER}{{\"index\":\n")).unwrap_err();
    assert!(matches!(error, HistoryError::Syntax { line: 2, .. }), "{error}");
}

#[test]
fn disorder_is_told_with_its_line_and_field() {
    let (invoke, ok) = (event(0, 0, "invoke"), event(1, 0, "ok"));
    fails(&[invoke.clone(), event(2, 0, "ok")], "line 3, field `index`: index 2 where 1 is due");
    let mut early = event(1, 0, "ok");
    let mut late = invoke.clone();
    (late["time_ns"], early["time_ns"]) = (json!(9), json!(8));
    fails(&[late, early], "line 3, field `time_ns`: time 8 ns is before the 9 ns of the event before it");
    fails(&[event(0, 7, "ok")], "line 2, field `type`: process 7 completes `write` but has no operation open");
    fails(
        &[invoke.clone(), event(1, 0, "invoke")],
        "line 3, field `process`: process 0 invokes `write` while its `write` is open",
    );
    fails(
        &[invoke.clone(), event(1, 0, "info"), event(2, 0, "invoke")],
        "line 4, field `process`: process 0 is used again after an operation of unknown outcome",
    );
    let mut other = ok.clone();
    other["f"] = json!("cas");
    fails(&[invoke.clone(), other], "line 3, field `f`: process 0 completes `cas` while `write` is open");
    let mut other = ok.clone();
    other["key"] = json!("y");
    assert!(read(&[invoke.clone(), other]).unwrap_err().to_string().starts_with("line 3, field `key`: "));
    let mut nemesis = event(0, 0, "ok");
    nemesis["process"] = json!("nemesis");
    fails(&[nemesis], "line 2, field `type`: an event of the nemesis is `Ok`, not `info`");
}

#[test]
fn a_file_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let error = read_file(&folder.path().join("none")).unwrap_err();
    assert!(matches!(error, HistoryError::Io { line: 0, .. }), "{error}");
}
