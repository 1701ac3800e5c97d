//! Linearizability of registers (Herlihy and Wing 1990), key by key: there is an order of the operations in which
//! each takes effect between its beginning and its end, and in which every read and every CAS finds what it saw.
//!
//! | file | holds |
//! |---|---|
//! | `instance` | one key's operations made ready: values numbered, unknown outcomes resolved where they can be |
//! | `search` | the search of Wing, Gong and Lowe, with prunings |
//! | `minimal` | a small history that still fails |

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::register::{self, Action, RegisterOp};
use super::tally::Tally;
use super::{Checker, Finding, Verdict};
use crate::history::Event;

mod instance;
mod minimal;
mod search;

pub use minimal::minimal;

use instance::{Instance, Unready};
use search::{Answer, CONFIGURATIONS_MAX, Stuck, search};

/// Keys are judged side by side on this many threads at most.
const THREADS_MAX: usize = 2;

/// Below this many operations a second thread costs more than it saves.
const OPERATIONS_PER_THREAD_MIN: usize = 10_000;

/// Operations named in the detail of a finding, at most, of the longest partial linearization (its end) and of those
/// that found no place.
const DETAIL_OPERATIONS_MAX: usize = 200;

/// The checker `linearizability`.
#[derive(Debug)]
pub struct Linearizability;

impl Checker for Linearizability {
    fn name(&self) -> &'static str {
        "linearizability"
    }

    fn about(&self) -> &'static str {
        "writes, CAS and linearizable reads of each key fit one order that real time allows (WGL)"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(register::is_register)
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let (mut keys, malformed) = register::by_key(&operations);
        malformed.into_iter().for_each(|finding| tally.take(finding));
        for ops in keys.values_mut() {
            ops.retain(|op| op.mode.is_newest() || !matches!(op.action, Action::Read(_)));
        }
        let count: usize = keys.values().map(Vec::len).sum();
        if !keys.values().flatten().any(|op| op.ended.is_some()) {
            let message = "no operation that counts was answered".into();
            tally.add("nothing-to-judge", None, message, Vec::new(), Value::Null);
        }
        let result = judge_keys(&keys);
        for finding in result.findings {
            tally.take(finding);
        }
        let stats = json!({
            "operations": count,
            "keys": keys.len(),
            "keys_without_unique_values": result.repeating,
            "configurations": result.configurations,
        });
        tally.verdict(&format!("{count} operations on {} keys are linearizable", keys.len()), stats)
    }
}

/// What became of some keys.
#[derive(Debug, Default)]
struct Judged {
    findings: Vec<Finding>,
    configurations: u64,
    repeating: usize,
}

/// Judges every key; findings come in the order of the keys, whatever the threads did.
fn judge_keys(keys: &BTreeMap<&str, Vec<RegisterOp>>) -> Judged {
    let mut work: Vec<(&str, &[RegisterOp])> = keys.iter().map(|(key, ops)| (*key, ops.as_slice())).collect();
    // The longest first: the last key to be taken should not be the longest.
    work.sort_by_key(|(_, ops)| std::cmp::Reverse(ops.len()));
    let count: usize = work.iter().map(|(_, ops)| ops.len()).sum();
    let threads = (count / OPERATIONS_PER_THREAD_MIN).clamp(1, THREADS_MAX).min(work.len().max(1));
    let next = AtomicUsize::new(0);
    let result = Mutex::new(Judged::default());
    let run = || {
        while let Some((key, ops)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            let one = judge_key(key, ops, CONFIGURATIONS_MAX);
            let mut result = result.lock().expect("no thread panics while it holds the lock");
            result.findings.extend(one.findings);
            result.configurations += one.configurations;
            result.repeating += one.repeating;
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    let mut result = result.into_inner().expect("no thread panics while it holds the lock");
    result.findings.sort_by(|a, b| a.key.cmp(&b.key));
    result
}

fn judge_key(key: &str, ops: &[RegisterOp], configurations_max: usize) -> Judged {
    let finding = |class: &str, message: String, events: Vec<u64>, detail: Value| Finding {
        class: class.into(),
        message,
        key: Some(key.into()),
        events,
        detail,
    };
    let instance = match Instance::new(ops) {
        Ok(instance) => instance,
        Err(Unready { message, ops }) => {
            let events = ops.iter().flat_map(RegisterOp::events).collect();
            let findings = vec![finding("not-linearizable", message, events, Value::Null)];
            return Judged { findings, ..Judged::default() };
        }
    };
    let (answer, configurations) = search(&instance, configurations_max);
    let findings = match answer {
        Answer::Linearizable => Vec::new(),
        Answer::NotLinearizable(stuck) => {
            let (message, events, detail) = explain(ops, &instance, &stuck);
            vec![finding("not-linearizable", message, events, detail)]
        }
        Answer::TooLarge => {
            let message = format!(
                "values repeat and {} configurations did not decide it: let the workload write unique values",
                configurations_max
            );
            vec![finding("too-large", message, Vec::new(), Value::Null)]
        }
    };
    Judged { findings, configurations, repeating: usize::from(!instance.unique) }
}

/// The longest partial linearization, and what could not follow it.
fn explain(ops: &[RegisterOp], instance: &Instance, stuck: &Stuck) -> (String, Vec<u64>, Value) {
    let op = |id: u32| &ops[instance.source(id)];
    let state = stuck.linearized.iter().rev().find_map(|id| op(*id).action.makes());
    let placed = stuck.linearized.len();
    let shown = &stuck.linearized[placed.saturating_sub(DETAIL_OPERATIONS_MAX)..];
    let blocked = &stuck.blocked[..stuck.blocked.len().min(DETAIL_OPERATIONS_MAX)];
    let names: Vec<String> = blocked.iter().take(3).map(|id| op(*id).action.to_string()).collect();
    let more = stuck.blocked.len().saturating_sub(3);
    let message = format!(
        "after {placed} operations the register holds {}, and no order lets these follow: {}{}",
        state.map_or("nothing".into(), |value| value.to_string()),
        names.join("; "),
        if more > 0 { format!("; and {more} more") } else { String::new() }
    );
    let events = blocked.iter().flat_map(|id| op(*id).events()).collect();
    let detail = json!({
        "linearized": shown.iter().map(|id| op(*id).began).collect::<Vec<_>>(),
        "linearized_before_those": placed - shown.len(),
        "last_linearized": shown.iter().rev().take(10).rev().map(|id| op(*id).to_json()).collect::<Vec<_>>(),
        "not_placed": blocked.iter().map(|id| op(*id).to_json()).collect::<Vec<_>>(),
    });
    (message, events, detail)
}

#[cfg(test)]
mod plain;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
