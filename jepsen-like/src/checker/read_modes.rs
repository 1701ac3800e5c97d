//! Reads by how they were asked for: a stale read may be old but shows what once was, and never goes back; a
//! linearizable one is as new as all that was known before it began.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::register;
use super::revision::order::{self, Floors, Taken};
use super::revision::{contradiction, register::replay};
use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Mode, Operation, Process};

/// The checker `read-modes`.
#[derive(Debug)]
pub struct ReadModes;

impl Checker for ReadModes {
    fn name(&self) -> &'static str {
        "read-modes"
    }

    fn about(&self) -> &'static str {
        "stale reads never go back behind any read of their session and show what was; linearizable reads are never too old"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.f == "read" && event.mode.is_some())
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let (floors, taken) = (Floors::new(&operations), Taken::new(&operations));
        let reads: Vec<Operation<'_>> =
            operations.iter().filter(|operation| operation.f() == "read" && operation.is_ok()).copied().collect();
        for read in reads.iter().filter(|read| read.revision().is_none()) {
            let message = "a read was answered without the store's revision".into();
            tally.add("no-revision", read.key(), message, read.events(), Value::Null);
        }
        if reads.is_empty() {
            tally.add("nothing-to-judge", None, "no read was answered".into(), Vec::new(), Value::Null);
        }
        sessions(&reads, &mut tally);
        for old in order::too_old(&reads, &floors) {
            let message = format!(
                "a linearizable read shows revision {}, but {} was known before it began",
                old.revision, old.known
            );
            let events = std::iter::once(old.witness).chain(old.operation.events()).collect();
            tally.add("read-too-old", old.operation.key(), message, events, Value::Null);
        }
        // What makes no sense is reported by the checkers of the workload.
        let (keys, _) = register::by_key(&operations);
        for (key, ops) in &keys {
            for wrong in replay(ops, &floors, &taken) {
                if wrong.op.mode == Mode::Stale && matches!(wrong.op.action, register::Action::Read(_)) {
                    tally.add("stale-value", Some(key), contradiction(&wrong), wrong.op.events(), wrong.op.to_json());
                }
            }
        }
        let stale = reads.iter().filter(|read| read.mode() == Mode::Stale).count();
        let stats = json!({ "linearizable": reads.len() - stale, "stale": stale });
        tally.verdict(&format!("{stale} stale and {} linearizable reads keep their word", reads.len() - stale), stats)
    }
}

/// A session is a process on a node. Reads of every mode move it on; that a newest one does not go back is judged by all that
/// was known before it began.
fn sessions(reads: &[Operation<'_>], tally: &mut Tally) {
    let mut last: HashMap<(Process, Option<&str>), (u64, u64)> = HashMap::new();
    for read in reads {
        let (Some(revision), Some(ended)) = (read.revision(), read.ended()) else { continue };
        let (before, at) = last.entry((read.process(), read.node())).or_insert((revision, ended));
        if revision >= *before {
            (*before, *at) = (revision, ended);
        } else if read.mode() == Mode::Stale {
            let message = format!(
                "process {} read revision {revision} from {}, where it had read {before}",
                read.process(),
                read.node().unwrap_or("its node")
            );
            let events = std::iter::once(*at).chain(read.events()).collect();
            tally.add("stale-went-back", read.key(), message, events, Value::Null);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::script::{Script, accepts, rejects};
    use super::ReadModes;

    fn begun() -> Script {
        let mut script = Script::new();
        script.write(0, "x", 1).rev(1).write(0, "x", 2).rev(2).write(0, "y", 7).rev(3);
        script
    }

    fn stale(script: &mut Script, process: u64, node: &str, seen: Option<i64>, revision: u64) {
        script
            .invoke(process, "read", Some("x"), Value::Null)
            .stale()
            .ok(process, json!(seen))
            .node(node)
            .rev(revision);
    }

    #[test]
    fn a_stale_read_may_be_old() {
        let mut script = begun();
        stale(&mut script, 1, "n1", Some(1), 1);
        stale(&mut script, 1, "n1", Some(2), 2);
        stale(&mut script, 1, "n2", None, 0);
        stale(&mut script, 2, "n1", Some(1), 1);
        script.read(1, "x", Some(2)).rev(3);
        let verdict = accepts(&ReadModes, &script);
        assert_eq!((&verdict.stats["stale"], &verdict.stats["linearizable"]), (&json!(4), &json!(1)));
    }

    #[test]
    fn stale_went_back() {
        let mut script = begun();
        stale(&mut script, 1, "n1", Some(2), 2);
        stale(&mut script, 1, "n1", Some(1), 1);
        assert_eq!(rejects(&ReadModes, &script, "stale-went-back").findings[0].events, [7, 8, 9]);
    }

    #[test]
    fn a_stale_read_goes_back_behind_one_of_another_mode() {
        let newest = |script: &mut Script, process, node: &str| {
            script.read(process, "x", Some(2)).node(node).rev(3);
        };
        let mut script = begun();
        newest(&mut script, 1, "n1");
        stale(&mut script, 1, "n1", Some(2), 2);
        assert_eq!(rejects(&ReadModes, &script, "stale-went-back").findings[0].events, [7, 8, 9]);
        // Another node, and another session, may be behind; and it may be as new.
        let mut script = begun();
        newest(&mut script, 1, "n1");
        stale(&mut script, 1, "n2", Some(2), 2);
        stale(&mut script, 2, "n1", Some(2), 2);
        stale(&mut script, 1, "n1", Some(2), 3);
        accepts(&ReadModes, &script);
    }

    #[test]
    fn stale_value() {
        let mut script = begun();
        stale(&mut script, 1, "n1", Some(1), 2);
        rejects(&ReadModes, &script, "stale-value");
    }

    #[test]
    fn a_stale_read_may_see_an_unknown_write_or_not() {
        for (seen, valid) in [(2, true), (9, true), (8, false)] {
            let mut script = begun();
            script.invoke(5, "write", Some("x"), json!(9)).info(5);
            stale(&mut script, 1, "n1", Some(seen), 4);
            if valid {
                accepts(&ReadModes, &script);
            } else {
                rejects(&ReadModes, &script, "stale-value");
            }
        }
    }

    #[test]
    fn read_too_old() {
        let mut script = begun();
        stale(&mut script, 1, "n1", Some(2), 3);
        script.read(2, "x", Some(2)).rev(2);
        rejects(&ReadModes, &script, "read-too-old");
    }

    #[test]
    fn a_read_by_another_that_was_newer_counts() {
        let mut script = begun();
        // Somebody's unrecorded change made revision 4.
        stale(&mut script, 1, "n1", Some(2), 4);
        script.read(2, "x", Some(2)).rev(3);
        rejects(&ReadModes, &script, "read-too-old");
    }

    #[test]
    fn no_revision_and_nothing_to_judge() {
        let mut script = begun();
        script.invoke(1, "read", Some("x"), Value::Null).stale().ok(1, json!(2));
        rejects(&ReadModes, &script, "no-revision");
        let mut script = begun();
        script.invoke(1, "read", Some("x"), Value::Null).stale().fail(1);
        rejects(&ReadModes, &script, "nothing-to-judge");
    }
}
