//! Operations: each invocation of a client with its completion, if it has one.

use std::collections::HashMap;

use super::text;
use crate::history::{Event, Kind, Process};

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It happened.
    Ok,
    /// It did not happen.
    Fail,
    /// Unknown, or the history ends before it does.
    Info,
}

/// In the order in which charts show them; [`Outcome::position`] is the place in it.
pub(super) const OUTCOMES: [Outcome; 3] = [Outcome::Ok, Outcome::Fail, Outcome::Info];

impl Outcome {
    /// Place in [`OUTCOMES`].
    pub(super) fn position(self) -> usize {
        match self {
            Self::Ok => 0,
            Self::Fail => 1,
            Self::Info => 2,
        }
    }

    /// Its name, which is also its class in the style sheet.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Info => "info",
        }
    }
}

/// What one client did once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation<'a> {
    /// The client.
    pub(super) process: u64,
    /// When it was sent.
    pub(super) invoke: &'a Event,
    /// Its answer; None = the history ends first, or the client went on without one.
    pub(super) completion: Option<&'a Event>,
}

impl Operation<'_> {
    /// How it ended.
    pub(super) fn outcome(&self) -> Outcome {
        match self.completion.map(|event| event.kind) {
            Some(Kind::Ok) => Outcome::Ok,
            Some(Kind::Fail) => Outcome::Fail,
            Some(Kind::Info | Kind::Invoke) | None => Outcome::Info,
        }
    }

    /// From the invocation to the answer, or to the moment at which the client gave up.
    pub(super) fn latency_ns(&self) -> Option<u64> {
        self.completion.map(|event| event.time_ns.saturating_sub(self.invoke.time_ns))
    }

    /// Where it counts in a rate: at its answer, without one at its invocation.
    pub(super) fn counted_at_ns(&self) -> u64 {
        self.completion.unwrap_or(self.invoke).time_ns
    }

    /// What it did, in few characters.
    pub(super) fn text(&self) -> String {
        let ok = self.completion.filter(|event| event.kind == Kind::Ok);
        text::operation(self.invoke, ok)
    }

    /// Everything a hover or a screen reader should say.
    pub(super) fn description(&self) -> String {
        let end = self.completion.map_or("never answered".to_owned(), |event| text::moment(event.time_ns));
        let mut said = format!("process {}: {}, {}, ", self.process, self.text(), self.outcome().name())
            + &format!("{} to {end}", text::moment(self.invoke.time_ns));
        let last = self.completion.unwrap_or(self.invoke);
        if let Some(node) = last.node.as_ref().or(self.invoke.node.as_ref()) {
            said += &format!(", node {}", text::clean(node));
        }
        if let Some(revision) = last.revision {
            said += &format!(", revision {revision}");
        }
        if let Some(error) = &last.error {
            said += &format!(", {}", text::clean(error));
        }
        said + &format!(", events {} to {}", self.invoke.index, last.index)
    }
}

/// The operations of a history, in the order of their invocations. A completion without an invocation belongs to none.
pub(super) fn operations(history: &[Event]) -> Vec<Operation<'_>> {
    let mut found: Vec<Operation<'_>> = Vec::with_capacity(history.len() / 2);
    let mut open: HashMap<u64, usize> = HashMap::new();
    for event in history {
        let Process::Client(process) = event.process else { continue };
        if event.kind == Kind::Invoke {
            open.insert(process, found.len());
            found.push(Operation { process, invoke: event, completion: None });
        } else if let Some(position) = open.remove(&process) {
            found[position].completion = Some(event);
        }
    }
    found
}
