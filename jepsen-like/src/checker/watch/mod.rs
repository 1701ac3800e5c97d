//! The watch workload: every watcher is told every change of what it watches, once, whole, in order, with what was there
//! before; what it is told of its progress is true.
//!
//! | file | holds |
//! |---|---|
//! | `told` | what watchers asked and were told |
//! | `log` | what each revision changed, from the answers to writers and from what watchers were told; each event against it |
//! | `sequence` | one watcher's events in their order |

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Operation};

mod log;
mod sequence;
#[cfg(test)]
mod tests;
mod told;

use log::Log;
use sequence::Sequence;
use told::Poll;

/// The checker `watch`.
#[derive(Debug)]
pub struct Watch;

impl Checker for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn about(&self) -> &'static str {
        "every watcher is told each change of what it watches once, whole, in order, with the right record before it"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.f == "watch")
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let polls = polls(&operations, &mut tally);
        let log = Log::new(&operations, &polls, &mut tally);
        let mut sequences = Sequence::all(&operations, &polls);
        for sequence in sequences.values_mut() {
            sequence.judge(&log, &mut tally);
        }
        log.judge(&polls, &mut tally);
        let told: usize = sequences.values().map(Sequence::told).sum();
        if told == 0 {
            tally.add("nothing-to-judge", None, "no watcher was told of a change".into(), Vec::new(), Value::Null);
        }
        let resumed = polls.iter().filter(|poll| poll.opens && poll.after.is_some_and(|after| after > 0)).count();
        let marks: usize = polls.iter().map(Poll::marks).sum();
        let watchers = sequences.len();
        let stats = json!({ "watchers": watchers, "told": told, "resumed": resumed, "progress": marks, "revisions": log.len() });
        let good =
            format!("{watchers} watchers were told {told} batches of {} revisions, resumed {resumed} times", log.len());
        tally.verdict(&good, stats)
    }
}

/// Everything that was asked, in the order of time; what makes no sense is reported.
fn polls<'a>(operations: &[Operation<'a>], tally: &mut Tally) -> Vec<Poll<'a>> {
    let mut polls = Vec::new();
    for operation in operations.iter().filter(|operation| operation.f() == "watch") {
        match Poll::parse(operation) {
            Some(poll) => polls.push(poll),
            None => {
                let message = "a watch that makes no sense".to_owned();
                tally.add("malformed", operation.key(), message, operation.events(), Value::Null);
            }
        }
    }
    polls
}
