//! Histories for the tests of the checkers, written down in the order of their events.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Checker, Verdict};
use crate::history::{Event, Kind, Mode, Nemesis, Process};

/// A history in the making. Each event is 10 ns after the one before.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) events: Vec<Event>,
    /// What [`Script::wait_ms`] added, in nanoseconds.
    waited_ns: u64,
    open: HashMap<u64, (String, Option<String>, Option<Mode>)>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, process: u64, kind: Kind, f: &str, key: Option<String>, value: Value) -> &mut Self {
        let index = self.events.len() as u64;
        self.events.push(Event {
            index,
            time_ns: self.waited_ns + index * 10,
            process: Process::Client(process),
            kind,
            f: f.into(),
            key,
            value,
            node: None,
            mode: None,
            revision: None,
            error: None,
        });
        self
    }

    pub(crate) fn invoke(&mut self, process: u64, f: &str, key: Option<&str>, value: Value) -> &mut Self {
        self.open.insert(process, (f.into(), key.map(Into::into), None));
        self.push(process, Kind::Invoke, f, key.map(Into::into), value)
    }

    fn complete(&mut self, process: u64, kind: Kind, value: Value) -> &mut Self {
        let (f, key, mode) = self.open.remove(&process).expect("the process has an operation open");
        self.push(process, kind, &f, key, value);
        self.last().mode = mode;
        self
    }

    /// All that follows is so much later.
    pub(crate) fn wait_ms(&mut self, ms: u64) -> &mut Self {
        self.waited_ns += ms * 1_000_000;
        self
    }

    /// Something that the nemesis says.
    pub(crate) fn nemesis(&mut self, f: &str, value: Value) -> &mut Self {
        self.push(0, Kind::Info, f, None, value);
        self.last().process = Process::Nemesis(Nemesis::Nemesis);
        self
    }

    pub(crate) fn ok(&mut self, process: u64, value: Value) -> &mut Self {
        self.complete(process, Kind::Ok, value)
    }

    pub(crate) fn fail(&mut self, process: u64) -> &mut Self {
        self.complete(process, Kind::Fail, Value::Null)
    }

    pub(crate) fn info(&mut self, process: u64) -> &mut Self {
        self.complete(process, Kind::Info, Value::Null)
    }

    fn last(&mut self) -> &mut Event {
        self.events.last_mut().expect("there is an event")
    }

    /// Of the last event.
    pub(crate) fn rev(&mut self, revision: u64) -> &mut Self {
        self.last().revision = Some(revision);
        self
    }

    /// Of the last event.
    pub(crate) fn node(&mut self, node: &str) -> &mut Self {
        self.last().node = Some(node.into());
        self
    }

    /// Of the last event, an invocation, and of its completion.
    pub(crate) fn stale(&mut self) -> &mut Self {
        self.last().mode = Some(Mode::Stale);
        let Process::Client(process) = self.last().process else { unreachable!("scripts have clients only") };
        self.open.get_mut(&process).expect("the last event is an invocation").2 = Some(Mode::Stale);
        self
    }

    /// A change from beginning to end.
    pub(crate) fn did(&mut self, process: u64, f: &str, key: Option<&str>, value: Value) -> &mut Self {
        self.invoke(process, f, key, value.clone()).ok(process, value)
    }

    pub(crate) fn write(&mut self, process: u64, key: &str, value: i64) -> &mut Self {
        self.did(process, "write", Some(key), json!(value))
    }

    pub(crate) fn cas(&mut self, process: u64, key: &str, old: Option<i64>, new: i64) -> &mut Self {
        self.did(process, "cas", Some(key), json!([old, new]))
    }

    pub(crate) fn read(&mut self, process: u64, key: &str, value: Option<i64>) -> &mut Self {
        self.invoke(process, "read", Some(key), Value::Null).ok(process, json!(value))
    }
}

/// Asserts that the checker applies to the history and accepts it.
#[track_caller]
pub(crate) fn accepts(checker: &dyn Checker, script: &Script) -> Verdict {
    assert!(checker.applies(&script.events), "{} does not apply", checker.name());
    let verdict = checker.check(&script.events);
    assert!(verdict.valid, "{}: {:#?}", checker.name(), verdict.findings);
    assert!(verdict.findings.is_empty(), "a valid verdict has no findings");
    verdict
}

/// Asserts that the checker applies to the history and that its first finding is of that class.
#[track_caller]
pub(crate) fn rejects(checker: &dyn Checker, script: &Script, class: &str) -> Verdict {
    assert!(checker.applies(&script.events), "{} does not apply", checker.name());
    let verdict = checker.check(&script.events);
    assert!(!verdict.valid, "{} accepts what is {class}", checker.name());
    assert_eq!(verdict.findings[0].class, class, "{:#?}", verdict.findings);
    verdict
}
