//! Checkers: pure functions from a history to a verdict. None of them knows the cluster.
//!
//! [`all`] lists them, [`judge`] runs those that a history has something for. A new checker is one file and one line
//! in [`all`].

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::history::{Event, pair};

pub mod append;
pub mod bank;
pub mod exactly_once;
pub mod lease;
pub mod linearizability;
pub mod lock;
pub mod read_modes;
mod register;
pub mod revision;
#[cfg(test)]
mod script;
pub mod set;
#[cfg(test)]
mod simulated;
pub mod state_hash;
mod tally;
pub mod watch;

use tally::Tally;

/// What a checker found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The checker's name.
    pub checker: String,
    /// Whether the history is what the checker demands. There is no "undecided": a checker that cannot judge a
    /// history (an operation that makes no sense, nothing to judge) says false and why.
    pub valid: bool,
    /// One line for people.
    pub summary: String,
    /// What is wrong, the most telling first; empty when valid. Bounded by [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Counts, as the checker likes: operations, keys, reads.
    pub stats: Value,
}

/// Most findings kept of one checker.
pub const FINDINGS_MAX: usize = 20;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The class of the anomaly, such as `not-linearizable`, `lost-add`, `G1c`.
    pub class: String,
    /// What is wrong, in words.
    pub message: String,
    /// The key it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Indices of the events that show it.
    pub events: Vec<u64>,
    /// More for the report: the longest partial linearization, the cycle.
    #[serde(default)]
    pub detail: Value,
}

/// A check of one property.
pub trait Checker: Sync {
    /// Short name, as in `jepsen-like list`.
    fn name(&self) -> &'static str;
    /// One line: what it demands.
    fn about(&self) -> &'static str;
    /// Whether the history has anything for it to judge.
    fn applies(&self, history: &[Event]) -> bool;
    /// Judges.
    fn check(&self, history: &[Event]) -> Verdict;
}

/// Every checker, in the order in which their verdicts are shown.
pub fn all() -> &'static [&'static dyn Checker] {
    &[
        &linearizability::Linearizability,
        &revision::Revision,
        &set::Set,
        &bank::Bank,
        &append::Append,
        &read_modes::ReadModes,
        &watch::Watch,
        &lock::Lock,
        &lease::Lease,
        &exactly_once::ExactlyOnce,
        &state_hash::StateHash,
    ]
}

/// The verdicts of every checker that the history has something for. Never empty: a list of events that is not a
/// history, and a history that no checker judges, are invalid.
pub fn judge(history: &[Event]) -> Vec<Verdict> {
    if let Err((index, disorder)) = pair(history) {
        let mut tally = Tally::new("history");
        tally.add("malformed-history", None, disorder.to_string(), vec![index], Value::Null);
        return vec![tally.verdict("", json!({ "events": history.len() }))];
    }
    let verdicts: Vec<Verdict> =
        all().iter().filter(|checker| checker.applies(history)).map(|checker| checker.check(history)).collect();
    if verdicts.is_empty() {
        let mut tally = Tally::new("history");
        tally.add("nothing-to-judge", None, "no checker knows an operation of it".into(), Vec::new(), Value::Null);
        return vec![tally.verdict("", json!({ "events": history.len() }))];
    }
    verdicts
}

#[cfg(test)]
mod tests;
