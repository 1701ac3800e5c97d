//! The fast certificate: sorted by the revisions in their answers, the operations of a history replay to what they saw,
//! and no revision contradicts real time. Independent of the searches of the other checkers, and sharper where it
//! applies: it finds a wrong revision even when the values could be explained.
//!
//! | file | holds |
//! |---|---|
//! | `order` | revisions against real time; which are taken |
//! | `register`, `others` | the replay of each workload |

use serde_json::{Value, json};

use super::register::{self as workload, RegisterOp};
use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Kind, Mode, Operation};

pub(super) mod order;
mod others;
pub(super) mod register;

use order::{Floors, Taken};

/// The checker `revision`.
#[derive(Debug)]
pub struct Revision;

impl Checker for Revision {
    fn name(&self) -> &'static str {
        "revision"
    }

    fn about(&self) -> &'static str {
        "sorted by the revisions in the answers, operations replay to what they saw, in an order real time allows"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| {
            let known = matches!(event.f.as_str(), "read" | "write" | "cas" | "add" | "transfer" | "txn");
            known && event.kind == Kind::Ok && event.revision.is_some()
        })
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let (floors, taken) = (Floors::new(&operations), Taken::new(&operations));
        let changes = without_revision(&operations, &mut tally);
        for (revision, one, other) in order::doubled(&operations) {
            let events = one.events().into_iter().chain(other.events()).collect();
            let message = format!("two changes have revision {revision}");
            tally.add("duplicate-revision", one.key(), message, events, Value::Null);
        }
        for old in order::too_old(&operations, &floors) {
            let message = format!(
                "`{}` has revision {}, but {} was known before it began",
                old.operation.f(),
                old.revision,
                old.known
            );
            let events = std::iter::once(old.witness).chain(old.operation.events()).collect();
            tally.add("revision-order", old.operation.key(), message, events, Value::Null);
        }
        registers(&operations, &floors, &taken, &mut tally);
        let wrong = [
            others::sets(&operations),
            others::banks(&operations, &floors, &taken),
            others::lists(&operations, &floors),
        ];
        for wrong in wrong.into_iter().flatten() {
            tally.add("wrong-read", None, wrong.message, wrong.operation.events(), Value::Null);
        }
        let reads = operations.iter().filter(|operation| operation.revision().is_some()).count() - changes;
        let stats = json!({ "changes": changes, "reads": reads });
        tally.verdict(&format!("{changes} changes replay to what {reads} reads saw"), stats)
    }
}

/// Counts changes with a revision and reports answered ones without.
fn without_revision(operations: &[Operation<'_>], tally: &mut Tally) -> usize {
    let mut with = 0;
    for operation in operations.iter().filter(|operation| operation.is_ok() && order::changes(operation)) {
        match operation.revision() {
            Some(_) => with += 1,
            None => {
                let message = format!("`{}` was answered without a revision, others with one", operation.f());
                tally.add("no-revision", operation.key(), message, operation.events(), Value::Null);
            }
        }
    }
    with
}

fn registers(operations: &[Operation<'_>], floors: &Floors, taken: &Taken, tally: &mut Tally) {
    let (keys, malformed) = workload::by_key(operations);
    malformed.into_iter().for_each(|finding| tally.take(finding));
    for (key, ops) in keys {
        for wrong in register::replay(&ops, floors, taken) {
            if let Some((class, message)) = describe(&wrong) {
                tally.add(class, Some(key), message, wrong.op.events(), wrong.op.to_json());
            }
        }
    }
}

/// Stale reads are another checker's.
fn describe(wrong: &register::Contradiction) -> Option<(&'static str, String)> {
    let RegisterOp { action, mode, .. } = wrong.op;
    let class = match action {
        workload::Action::Read(_) if mode == Mode::Stale => return None,
        workload::Action::Read(_) => "wrong-read",
        workload::Action::Write(_) | workload::Action::Cas(..) => "wrong-cas",
    };
    Some((class, contradiction(wrong)))
}

/// What a contradiction is, in words.
pub(super) fn contradiction(wrong: &register::Contradiction) -> String {
    let held = wrong.held.map_or("nothing".to_owned(), |value| value.to_string());
    format!("{} at revision {}, where the register holds {held} since {}", wrong.op.action, wrong.revision, wrong.since)
}

#[cfg(test)]
mod tests;
