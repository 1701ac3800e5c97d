//! What makes a list of events a history: indices without gaps, time that never falls, and of each process an
//! invocation, its completion, the next invocation.

use std::collections::HashMap;

use thiserror::Error;

use super::{Event, Kind, Process};

/// A way in which an event does not fit what came before it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Disorder {
    /// Indices count up from 0 without gaps.
    #[error("index {found} where {expected} is due")]
    Index {
        /// The next free index.
        expected: u64,
        /// The event's.
        found: u64,
    },
    /// Time is monotonic.
    #[error("time {found} ns is before the {before} ns of the event before it")]
    TimeBackwards {
        /// Of the event before.
        before: u64,
        /// The event's.
        found: u64,
    },
    /// A completion needs an open invocation.
    #[error("process {process} completes `{f}` but has no operation open")]
    CompletionWithoutInvoke {
        /// Who.
        process: Process,
        /// What.
        f: String,
    },
    /// A completion is of the operation that is open.
    #[error("process {process} completes `{found}` while `{open}` is open")]
    OtherOperation {
        /// Who.
        process: Process,
        /// The open one.
        open: String,
        /// The completed one.
        found: String,
    },
    /// A completion has its invocation's key.
    #[error("process {process} completes `{f}` of key {found:?} that was invoked with key {open:?}")]
    OtherKey {
        /// Who.
        process: Process,
        /// What.
        f: String,
        /// The invocation's.
        open: Option<String>,
        /// The completion's.
        found: Option<String>,
    },
    /// One operation at a time.
    #[error("process {process} invokes `{f}` while its `{open}` is open")]
    Busy {
        /// Who.
        process: Process,
        /// What.
        f: String,
        /// The open one.
        open: String,
    },
    /// An operation of unknown outcome retires its process.
    #[error("process {process} is used again after an operation of unknown outcome")]
    Retired {
        /// Who.
        process: Process,
    },
    /// The nemesis' events are `info`.
    #[error("an event of the nemesis is `{kind:?}`, not `info`")]
    NemesisKind {
        /// What it was.
        kind: Kind,
    },
}

impl Disorder {
    /// The field of the event that shows it, as spelt in the file.
    pub fn field(&self) -> &'static str {
        match self {
            Disorder::Index { .. } => "index",
            Disorder::TimeBackwards { .. } => "time_ns",
            Disorder::CompletionWithoutInvoke { .. } | Disorder::NemesisKind { .. } => "type",
            Disorder::OtherOperation { .. } => "f",
            Disorder::OtherKey { .. } => "key",
            Disorder::Busy { .. } | Disorder::Retired { .. } => "process",
        }
    }
}

/// What a process is doing.
#[derive(Debug, Clone)]
enum Doing {
    /// Waiting for the answer to this operation; `at` is its invocation's index.
    Open { f: String, key: Option<String>, at: u64 },
    /// Nothing.
    Idle,
    /// Nothing, for ever.
    Retired,
}

/// Follows a history and refuses events that do not fit.
///
/// Invariant: `open` counts the processes that are `Doing::Open`; a refused event changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Order {
    next_index: u64,
    time_ns: u64,
    open: usize,
    processes: HashMap<u64, Doing>,
}

impl Order {
    /// The index that the next event must have.
    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// Time of the last event, in nanoseconds.
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// Operations that wait for their completion.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Takes the next event. For the completion of an operation, gives its invocation's index.
    pub fn admit(&mut self, event: &Event) -> Result<Option<u64>, Disorder> {
        if event.index != self.next_index {
            return Err(Disorder::Index { expected: self.next_index, found: event.index });
        }
        if event.time_ns < self.time_ns {
            return Err(Disorder::TimeBackwards { before: self.time_ns, found: event.time_ns });
        }
        let invoked = match event.process {
            Process::Nemesis(_) if event.kind == Kind::Info => None,
            Process::Nemesis(_) => return Err(Disorder::NemesisKind { kind: event.kind }),
            Process::Client(id) => self.client(id, event)?,
        };
        self.next_index += 1;
        self.time_ns = event.time_ns;
        Ok(invoked)
    }

    fn client(&mut self, id: u64, event: &Event) -> Result<Option<u64>, Disorder> {
        let (process, f) = (event.process, &event.f);
        let doing = self.processes.entry(id).or_insert(Doing::Idle);
        match (&*doing, event.kind) {
            (Doing::Retired, _) => Err(Disorder::Retired { process }),
            (Doing::Idle, Kind::Invoke) => {
                *doing = Doing::Open { f: f.clone(), key: event.key.clone(), at: event.index };
                self.open += 1;
                Ok(None)
            }
            (Doing::Idle, _) => Err(Disorder::CompletionWithoutInvoke { process, f: f.clone() }),
            (Doing::Open { f: open, .. }, Kind::Invoke) => {
                Err(Disorder::Busy { process, f: f.clone(), open: open.clone() })
            }
            (Doing::Open { f: open, .. }, _) if open != f => {
                Err(Disorder::OtherOperation { process, open: open.clone(), found: f.clone() })
            }
            (Doing::Open { key, .. }, _) if *key != event.key => {
                Err(Disorder::OtherKey { process, f: f.clone(), open: key.clone(), found: event.key.clone() })
            }
            (Doing::Open { at, .. }, kind) => {
                let at = *at;
                *doing = if kind == Kind::Info { Doing::Retired } else { Doing::Idle };
                self.open -= 1;
                Ok(Some(at))
            }
        }
    }
}
