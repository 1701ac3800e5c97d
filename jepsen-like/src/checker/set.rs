//! The set workload: what was added is there and stays there, once, and nothing else is.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Operation, Outcome};

/// The checker `set`.
#[derive(Debug)]
pub struct Set;

/// An attempt to add an element.
#[derive(Debug)]
struct Add {
    began: u64,
    outcome: Outcome,
    /// From this index on, every linearizable read must have it: the add was acknowledged, or a read saw it.
    known: Option<u64>,
}

#[derive(Debug)]
struct Read<'a> {
    operation: Operation<'a>,
    ended: u64,
    elements: Vec<i64>,
}

impl Checker for Set {
    fn name(&self) -> &'static str {
        "set"
    }

    fn about(&self) -> &'static str {
        "every acknowledged add is in the final read and in every read begun after it, nothing else, nothing twice"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.key.is_none() && event.f == "add")
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let mut adds = adds(&operations, &mut tally);
        let reads = reads(&operations, &mut tally);
        let attempted = adds.len();
        let acknowledged = adds.values().filter(|add| add.outcome == Outcome::Ok).count();
        final_read(&adds, &reads, &mut tally);
        for read in &reads {
            content(read, &adds, &mut tally);
        }
        every_read(&mut adds, &reads, &mut tally);
        let elements = reads.last().map_or(0, |read| read.elements.len());
        let stats = json!({
            "attempted": attempted, "acknowledged": acknowledged, "reads": reads.len(), "final_elements": elements,
        });
        let good = format!("{acknowledged} acknowledged adds are all there, {} reads agree", reads.len());
        tally.verdict(&good, stats)
    }
}

fn adds(operations: &[Operation<'_>], tally: &mut Tally) -> HashMap<i64, Add> {
    let mut adds: HashMap<i64, Add> = HashMap::new();
    for operation in operations.iter().filter(|operation| operation.f() == "add" && operation.key().is_none()) {
        let Some(element) = operation.invoke.value.as_i64() else {
            let message = format!("the value {} of an add is not a number", operation.invoke.value);
            tally.add("malformed", None, message, operation.events(), Value::Null);
            continue;
        };
        let add = Add { began: operation.began(), outcome: operation.outcome(), known: None };
        let known = operation.ended().filter(|_| operation.is_ok());
        if let Some(other) = adds.insert(element, Add { known, ..add }) {
            let message = format!("{element} is added twice: the workload must add each number once");
            tally.add("malformed", None, message, vec![other.began, operation.began()], Value::Null);
        }
    }
    adds
}

/// Answered reads, in the order of their invocations.
fn reads<'a>(operations: &[Operation<'a>], tally: &mut Tally) -> Vec<Read<'a>> {
    let mut reads = Vec::new();
    for operation in operations.iter().filter(|operation| operation.f() == "read" && operation.key().is_none()) {
        let (Some(answer), Some(ended)) = (operation.answer(), operation.ended()) else { continue };
        let elements = answer.as_array().and_then(|items| items.iter().map(Value::as_i64).collect());
        match elements {
            Some(elements) => reads.push(Read { operation: *operation, ended, elements }),
            None => {
                let message = "a read of the set was answered with something else than an array of numbers".into();
                tally.add("malformed", None, message, operation.events(), Value::Null);
            }
        }
    }
    reads
}

/// The last read that saw the newest state must have begun after the last acknowledged add was over, and have all.
fn final_read(adds: &HashMap<i64, Add>, reads: &[Read<'_>], tally: &mut Tally) {
    let last_add = adds.values().filter_map(|add| add.known).max();
    let Some(read) = reads.iter().rfind(|read| read.operation.mode().is_newest()) else {
        tally.add("no-final-read", None, "nobody read the set".into(), Vec::new(), Value::Null);
        return;
    };
    if let Some(last) = last_add.filter(|last| *last > read.operation.began()) {
        let message = "adds were acknowledged after the last read had begun".into();
        tally.add("no-final-read", None, message, vec![read.operation.began(), last], Value::Null);
        return;
    }
    let present: HashSet<i64> = read.elements.iter().copied().collect();
    let mut lost: Vec<(&i64, &Add)> =
        adds.iter().filter(|(element, add)| add.known.is_some() && !present.contains(element)).collect();
    lost.sort_by_key(|(_, add)| add.began);
    for (element, add) in lost {
        let message = format!("{element} was acknowledged and is not in the final read");
        let events = std::iter::once(add.began).chain(add.known).chain(read.operation.events()).collect();
        tally.add("lost-add", None, message, events, Value::Null);
    }
}

/// What no read may contain, however old.
fn content(read: &Read<'_>, adds: &HashMap<i64, Add>, tally: &mut Tally) {
    let mut present = HashSet::with_capacity(read.elements.len());
    for element in &read.elements {
        let mut wrong = |class: &str, message: String| {
            let other = adds.get(element).map(|add| add.began);
            let events = other.into_iter().chain(read.operation.events()).collect();
            tally.add(class, None, message, events, Value::Null);
        };
        if !present.insert(*element) {
            wrong("duplicate", format!("{element} is in one read more than once"));
        }
        match adds.get(element) {
            None => wrong("phantom", format!("{element} was read, and nobody ever tried to add it")),
            Some(add) if add.began > read.ended => {
                wrong("phantom", format!("{element} was read before anybody tried to add it"));
            }
            Some(add) if add.outcome == Outcome::Fail => {
                wrong("failed-add-visible", format!("{element} was read, but its add was refused"));
            }
            Some(_) => {}
        }
    }
}

/// A linearizable read has everything that was acknowledged, or read, before it began.
fn every_read(adds: &mut HashMap<i64, Add>, reads: &[Read<'_>], tally: &mut Tally) {
    let mut by_end: Vec<&Read<'_>> = reads.iter().collect();
    by_end.sort_by_key(|read| read.ended);
    for read in by_end {
        for element in &read.elements {
            if let Some(add) = adds.get_mut(element).filter(|add| add.outcome != Outcome::Fail) {
                add.known = Some(add.known.map_or(read.ended, |known| known.min(read.ended)));
            }
        }
    }
    let mut known: Vec<(u64, i64, u64)> =
        adds.iter().filter_map(|(element, add)| Some((add.known?, *element, add.began))).collect();
    known.sort_unstable();
    for read in reads.iter().filter(|read| read.operation.mode().is_newest()) {
        let present: HashSet<i64> = read.elements.iter().copied().collect();
        for (at, element, began) in known.iter().take_while(|(at, ..)| *at < read.operation.began()) {
            if !present.contains(element) {
                let message = format!("{element} was known to be in the set before a read began that lacks it");
                let events = [*began, *at].into_iter().chain(read.operation.events()).collect();
                tally.add("stale-read", None, message, events, Value::Null);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::script::{Script, accepts, rejects};
    use super::Set;

    fn read(script: &mut Script, process: u64, elements: &[i64]) {
        script.invoke(process, "read", None, Value::Null).ok(process, json!(elements));
    }

    fn added(elements: &[i64]) -> Script {
        let mut script = Script::new();
        for element in elements {
            script.did(0, "add", None, json!(element));
        }
        script
    }

    #[test]
    fn acknowledged_adds_are_in_the_final_read() {
        let mut script = added(&[1, 2]);
        read(&mut script, 1, &[1, 2]);
        assert_eq!(accepts(&Set, &script).stats["acknowledged"], 2);
    }

    #[test]
    fn an_add_of_unknown_outcome_may_be_there_or_not() {
        for last in [&[1][..], &[1, 9]] {
            let mut script = added(&[1]);
            script.invoke(5, "add", None, json!(9)).info(5);
            read(&mut script, 1, last);
            accepts(&Set, &script);
        }
    }

    #[test]
    fn lost_add() {
        let mut script = added(&[1, 2]);
        read(&mut script, 1, &[2]);
        let verdict = rejects(&Set, &script, "lost-add");
        assert_eq!(verdict.findings[0].events, [0, 1, 4, 5]);
    }

    #[test]
    fn phantom() {
        let mut script = added(&[1]);
        read(&mut script, 1, &[1, 7]);
        rejects(&Set, &script, "phantom");
    }

    #[test]
    fn read_before_it_was_added() {
        let mut script = Script::new();
        read(&mut script, 1, &[1]);
        script.did(0, "add", None, json!(1));
        read(&mut script, 1, &[1]);
        rejects(&Set, &script, "phantom");
    }

    #[test]
    fn failed_add_visible() {
        let mut script = added(&[1]);
        script.invoke(0, "add", None, json!(2)).fail(0);
        read(&mut script, 1, &[1, 2]);
        rejects(&Set, &script, "failed-add-visible");
    }

    #[test]
    fn duplicate() {
        let mut script = added(&[1]);
        read(&mut script, 1, &[1, 1]);
        rejects(&Set, &script, "duplicate");
    }

    #[test]
    fn stale_read() {
        let mut script = added(&[1]);
        read(&mut script, 1, &[]);
        script.did(0, "add", None, json!(2));
        read(&mut script, 1, &[1, 2]);
        rejects(&Set, &script, "stale-read");
    }

    #[test]
    fn what_one_read_saw_the_next_must_see() {
        let mut script = added(&[1]);
        script.invoke(5, "add", None, json!(9)).info(5);
        read(&mut script, 1, &[1, 9]);
        read(&mut script, 2, &[1]);
        rejects(&Set, &script, "stale-read");
    }

    #[test]
    fn a_read_that_may_be_stale_may_lack_something() {
        let mut script = added(&[1]);
        script.invoke(1, "read", None, Value::Null).stale().ok(1, json!([]));
        read(&mut script, 1, &[1]);
        accepts(&Set, &script);
    }

    #[test]
    fn a_read_may_have_what_is_added_meanwhile_or_not() {
        for seen in [&[][..], &[1]] {
            let mut script = Script::new();
            script.invoke(0, "add", None, json!(1)).invoke(1, "read", None, Value::Null).ok(0, json!(1));
            script.ok(1, json!(seen));
            read(&mut script, 1, &[1]);
            accepts(&Set, &script);
        }
    }

    #[test]
    fn no_final_read() {
        rejects(&Set, &added(&[1]), "no-final-read");
        let mut script = added(&[1]);
        read(&mut script, 1, &[1]);
        script.did(0, "add", None, json!(2));
        rejects(&Set, &script, "no-final-read");
    }

    #[test]
    fn malformed() {
        let mut script = added(&[1]);
        script.invoke(1, "read", None, Value::Null).ok(1, json!({"1": true}));
        rejects(&Set, &script, "malformed");
        let mut script = added(&[1, 1]);
        read(&mut script, 1, &[1]);
        rejects(&Set, &script, "malformed");
    }
}
