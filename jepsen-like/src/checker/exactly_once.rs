//! The idempotency workload: what is sent again under the same idempotency key is done once, and answered as it was the
//! first time. Each key is only ever put, so its version counts what was done.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Operation, Outcome};

/// The checker `exactly-once`.
#[derive(Debug)]
pub struct ExactlyOnce;

/// One change, under one idempotency key.
#[derive(Debug, Default)]
struct Change<'a> {
    /// (version, revision, who was told), in the order of the answers' requests.
    answers: Vec<(u64, u64, Operation<'a>)>,
    /// Whether an attempt had an unknown outcome.
    unknown: bool,
}

/// One key of the store.
#[derive(Debug, Default)]
struct Key<'a> {
    changes: BTreeMap<&'a str, Change<'a>>,
    /// Version, 0 = missing, and the read.
    reads: Vec<(u64, Operation<'a>)>,
    /// Index of the last event of an attempt.
    last: u64,
}

impl Checker for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly-once"
    }

    fn about(&self) -> &'static str {
        "a change that is sent again under its idempotency key is done once, and answered alike"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.f == "once")
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let mut keys: BTreeMap<&str, Key<'_>> = BTreeMap::new();
        for operation in operations.iter().filter(|operation| matches!(operation.f(), "once" | "version")) {
            let fits = operation.key().and_then(|key| keys.entry(key).or_default().take(*operation));
            if fits.is_none() {
                let message = format!("a {} that makes no sense", operation.f());
                tally.add("malformed", operation.key(), message, operation.events(), Value::Null);
            }
        }
        let (mut done, mut again, mut open) = (0, 0, 0);
        for (name, key) in &keys {
            key.judge_answers(name, &mut tally);
            key.judge_order(name, &mut tally);
            key.judge_reads(name, &mut tally);
            done += key.done().count();
            again += key.done().map(|change| change.answers.len() - 1).sum::<usize>();
            open += key.open();
        }
        if done == 0 {
            tally.add("nothing-to-judge", None, "no change was acknowledged".into(), Vec::new(), Value::Null);
        }
        let stats = json!({ "keys": keys.len(), "changes": done, "answered_again": again, "open": open });
        tally.verdict(
            &format!("{done} changes were done once, {again} answers to retries say the same; {open} stay open"),
            stats,
        )
    }
}

impl<'a> Key<'a> {
    /// None when the operation makes no sense.
    fn take(&mut self, operation: Operation<'a>) -> Option<()> {
        if operation.f() == "version" {
            if let Some(answer) = operation.answer() {
                self.reads.push((answer.as_u64()?, operation));
            }
            return Some(());
        }
        let change = self.changes.entry(operation.invoke.value.get("id")?.as_str()?).or_default();
        self.last = self.last.max(operation.completion.map_or(operation.began(), |event| event.index));
        match operation.outcome() {
            Outcome::Ok => {
                let version = operation.answer()?.get("version")?.as_u64()?;
                change.answers.push((version, operation.revision()?, operation));
            }
            Outcome::Info => change.unknown = true,
            Outcome::Fail => {}
        }
        Some(())
    }

    fn done(&self) -> impl Iterator<Item = &Change<'a>> {
        self.changes.values().filter(|change| !change.answers.is_empty())
    }

    /// Number of changes of which nobody ever learned what became of them.
    fn open(&self) -> usize {
        self.changes.values().filter(|change| change.answers.is_empty() && change.unknown).count()
    }

    /// All answers to one change say the same.
    fn judge_answers(&self, name: &str, tally: &mut Tally) {
        for (id, change) in &self.changes {
            let Some((version, revision, first)) = change.answers.first() else { continue };
            for (v, r, other) in &change.answers[1..] {
                if (v, r) != (version, revision) {
                    let message = format!(
                        "{id} made version {version} of {name} at revision {revision}, and, sent again, {v} at {r}"
                    );
                    let events = first.events().into_iter().chain(other.events()).collect();
                    tally.add("other-answer", Some(name), message, events, Value::Null);
                }
            }
        }
    }

    /// In the order of their revisions, changes have versions that grow, by as much as there may be others between.
    fn judge_order(&self, name: &str, tally: &mut Tally) {
        let mut answers: Vec<&(u64, u64, Operation<'a>)> =
            self.done().filter_map(|change| change.answers.first()).collect();
        answers.sort_by_key(|(_, revision, _)| *revision);
        for pair in answers.windows(2) {
            let [(v1, r1, first), (v2, r2, second)] = pair else { unreachable!("windows of two") };
            if r1 == r2 || v1 >= v2 {
                let message = format!("two changes of {name} made versions {v1} and {v2} at revisions {r1} and {r2}");
                let events = first.events().into_iter().chain(second.events()).collect();
                tally.add("version-twice", Some(name), message, events, Value::Null);
            }
        }
    }

    /// Versions that were read: not below what was acknowledged before, and not above what may have been done.
    fn judge_reads(&self, name: &str, tally: &mut Tally) {
        let most = (self.done().count() + self.open()) as u64;
        for (version, read) in &self.reads {
            let known = self.changes.values().flat_map(|change| &change.answers);
            let known = known.filter(|(.., told)| told.ended().is_some_and(|ended| ended < read.began()));
            if let Some((least, _, told)) = known.max_by_key(|(version, ..)| *version).filter(|(v, ..)| v > version) {
                let message = format!("{name} has version {version}, and {least} was acknowledged");
                let events = told.events().into_iter().chain(read.events()).collect();
                tally.add("lost", Some(name), message, events, Value::Null);
            }
            if *version > most {
                let message = format!("{name} has version {version}, and {most} changes were sent");
                tally.add("done-twice", Some(name), message, read.events(), Value::Null);
            }
        }
        let last = self.reads.iter().rev().find(|(_, read)| read.began() > self.last);
        match last {
            Some((version, read)) if (*version as usize) < self.done().count() => {
                let message =
                    format!("{name} has version {version}, and {} changes were acknowledged", self.done().count());
                tally.add("lost", Some(name), message, read.events(), Value::Null);
            }
            Some(_) => {}
            None => {
                let message = format!("nobody read the version of {name} after the last change");
                tally.add("no-read", Some(name), message, Vec::new(), Value::Null);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::script::{Script, accepts, rejects};
    use super::ExactlyOnce;

    const KEY: Option<&str> = Some("k");

    fn once(script: &mut Script, id: &str, version: u64, revision: u64) {
        script.invoke(1, "once", KEY, json!({"id": id})).ok(1, json!({"version": version})).rev(revision);
    }

    fn read(script: &mut Script, version: u64) -> &mut Script {
        script.invoke(2, "version", KEY, Value::Null).ok(2, json!(version))
    }

    /// Two changes; the first was sent again.
    fn begun() -> Script {
        let mut script = Script::new();
        once(&mut script, "a", 1, 3);
        once(&mut script, "b", 2, 5);
        once(&mut script, "a", 1, 3);
        script
    }

    #[test]
    fn each_is_done_once() {
        let mut script = begun();
        script.invoke(7, "once", KEY, json!({"id": "c"})).info(7);
        script.invoke(1, "once", KEY, json!({"id": "c"})).fail(1);
        once(&mut script, "c", 3, 9);
        script.invoke(1, "once", KEY, json!({"id": "d"})).fail(1);
        let verdict = accepts(&ExactlyOnce, read(&mut script, 3));
        assert_eq!(verdict.stats, json!({"keys": 1, "changes": 3, "answered_again": 1, "open": 0}));
    }

    #[test]
    fn one_that_stays_unknown_may_have_been_done_or_not() {
        for (version, class) in [(1, Some("lost")), (2, None), (3, None), (4, Some("done-twice"))] {
            let mut script = begun();
            script.invoke(7, "once", KEY, json!({"id": "c"})).info(7);
            script.invoke(1, "once", KEY, json!({"id": "c"})).fail(1);
            read(&mut script, version);
            match class {
                None => accepts(&ExactlyOnce, &script),
                Some(class) => rejects(&ExactlyOnce, &script, class),
            };
        }
    }

    #[test]
    fn done_twice() {
        rejects(&ExactlyOnce, read(&mut begun(), 3), "done-twice");
    }

    #[test]
    fn lost() {
        rejects(&ExactlyOnce, read(&mut begun(), 1), "lost");
        let mut script = Script::new();
        once(&mut script, "a", 1, 3);
        read(&mut script, 0);
        once(&mut script, "b", 2, 5);
        rejects(&ExactlyOnce, read(&mut script, 2), "lost");
    }

    #[test]
    fn other_answer() {
        for (version, revision) in [(3, 3), (1, 8)] {
            let mut script = begun();
            once(&mut script, "a", version, revision);
            rejects(&ExactlyOnce, read(&mut script, 2), "other-answer");
        }
    }

    #[test]
    fn version_twice() {
        for (version, revision) in [(2, 6), (3, 5), (1, 9)] {
            let mut script = begun();
            once(&mut script, "c", version, revision);
            rejects(&ExactlyOnce, read(&mut script, 3), "version-twice");
        }
    }

    #[test]
    fn no_read_and_nothing_to_judge() {
        rejects(&ExactlyOnce, &begun(), "no-read");
        let mut script = Script::new();
        script.invoke(1, "once", KEY, json!({"id": "d"})).fail(1);
        rejects(&ExactlyOnce, read(&mut script, 0), "nothing-to-judge");
    }

    #[test]
    fn malformed() {
        for (f, asked, answer) in [
            ("once", Value::Null, json!({"version": 3})),
            ("once", json!({"id": "c"}), Value::Null),
            ("version", Value::Null, json!("x")),
        ] {
            let mut script = begun();
            script.invoke(1, f, KEY, asked).ok(1, answer).rev(9);
            rejects(&ExactlyOnce, &script, "malformed");
        }
    }
}
