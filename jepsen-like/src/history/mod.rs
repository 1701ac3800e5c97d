//! What clients did and saw: `history.jsonl`, one event a line, in the order in which it happened.
//!
//! An operation is an `invoke` and, by the same process, at most one completion: `ok` (it happened, with this
//! result), `fail` (it certainly did not happen), `info` (nobody knows: it may have happened, happen later, or never).
//! A process whose operation ended as `info` is retired: its next operation would overlap the unknown one.
//!
//! | workload | `f` | `key` | `value` of `invoke` | `value` of `ok` |
//! |---|---|---|---|---|
//! | register | `read` | register | null | number, or null when the key is missing |
//! | register | `write` | register | number | the same |
//! | register | `cas` | register | `[old, new]`, old null = the key is missing | the same |
//! | set | `add` | | number | the same |
//! | set | `read` | | null | sorted array of all numbers |
//! | bank | `transfer` | | `{"from","to","amount"}` | the same |
//! | bank | `read` | | null | object account -> balance |
//! | append | `txn` | | `[["r", key, null], ["append", key, number], ...]` | the same, reads filled with arrays |
//! | watch | `change` | | `[["put", key, number], ["delete", key], ...]` | the same, deletes with whether there was something |
//! | watch | `watch` | watcher | `{"prefix","after","opens"}` | `{"told":[{"revision","changes"}, {"progress"}, ...]}` |
//! | lock | `acquire` | lock | `{"ttl","wait"}` | `{"fencing","ttl_ms"}` |
//! | lock | `renew`, `release`, `use` | lock | `{"fencing"}` | `{"held"}`, the same, `{"accepted"}` |
//! | lease | `grant` | lease | `{"ttl_ms","item"}` | `{"lease"}` |
//! | lease | `attach`, `keepalive`, `revoke` | lease | `{"lease","item"}` | the same, `{"alive"}`, the same |
//! | lease | `look` | lease | `{"items"}` | `{"present"}`, at one revision |
//! | lease | `ends` | | null | `{"deleted"}`: key -> revision |
//! | idempotent | `once` | key | `{"id","by","value"}` | `{"version"}` |
//! | idempotent | `version` | key | null | number, 0 = missing |
//! | all | `hash` | | null | `{"applied_index","revision","hash"}` of `node`, after healing |
//!
//! Events of the nemesis (what was broken and healed) have the process `nemesis`, the fault as `f`, and are always
//! `info`; so do those that tell who leads, with [`LEADER`] as `f`.

//!
//! | file | holds |
//! |---|---|
//! | [`order`] | what makes a list of events a history |
//! | [`reader`] | a saved history, line by line |
//! | [`recorder`] | taking events down while the run goes on |
//! | [`operation`] | an invocation and what became of it |
//! | [`export`], [`edn`], [`porcupine`] | the same in the forms that others' checkers read |
//!
//! The first line of the file is a header, `{"history_version":1}`; events follow.

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub mod edn;
pub mod export;
pub mod operation;
pub mod order;
pub mod porcupine;
pub mod reader;
pub mod recorder;
#[cfg(test)]
mod taken_down;

pub use operation::{Operation, Outcome, pair};
pub use order::{Disorder, Order};
pub use reader::{HistoryError, Reader, read_file};
pub use recorder::{Entry, RecordError, Recorder};

/// Version of the file's form, in its header.
pub const HISTORY_VERSION: u64 = 1;

/// Name of the file in a run's directory.
pub const HISTORY_FILE: &str = "history.jsonl";

/// `f` of the event by which the nemesis tells that a node leads in a new term.
pub const LEADER: &str = "leader";

/// The first line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`HISTORY_VERSION`] of whoever wrote it.
    pub history_version: u64,
}

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Process {
    /// A client: one operation at a time. Never used again after an operation of unknown outcome.
    Client(u64),
    /// What breaks and heals.
    Nemesis(Nemesis),
}

/// Spelt `nemesis` in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nemesis {
    /// There is one.
    Nemesis,
}

/// What an event says about its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was sent.
    Invoke,
    /// It happened.
    Ok,
    /// It certainly did not happen, and never will.
    Fail,
    /// Unknown.
    Info,
}

/// How a read was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The newest state.
    Linearizable,
    /// The newest state, by the leader's lease.
    Lease,
    /// The asked node's state.
    Stale,
}

impl Mode {
    /// Whether what was read is promised to be the newest state.
    pub fn is_newest(self) -> bool {
        match self {
            Self::Linearizable | Self::Lease => true,
            Self::Stale => false,
        }
    }
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Position in the history, from 0 without gaps.
    pub index: u64,
    /// Monotonic time since the run began, in nanoseconds; never falls from line to line.
    pub time_ns: u64,
    /// Who.
    pub process: Process,
    /// What is known.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Which operation, or which fault.
    pub f: String,
    /// The key, for workloads that are checked key by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Argument (invoke) or result (ok).
    #[serde(default)]
    pub value: Value,
    /// The node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How a read was asked for; None = linearizable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// From the answer: a change's revision; for a read the store's revision at which it was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Why it failed or is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Process::Client(id) => write!(f, "{id}"),
            Process::Nemesis(Nemesis::Nemesis) => f.write_str("nemesis"),
        }
    }
}
