//! What each revision changed, and each event that watchers were told against it.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::super::tally::Tally;
use super::told::{Change, Poll, Record, Step, Told, steps};
use crate::history::{Operation, Outcome};

/// Key -> what it was set to; None = deleted.
type Changes<'a> = BTreeMap<&'a str, Option<i64>>;

/// One revision.
#[derive(Debug)]
struct Entry<'a> {
    /// The writer, where it is known.
    writer: Option<Operation<'a>>,
    changes: Changes<'a>,
}

/// All revisions that anyone knows of.
#[derive(Debug, Default)]
pub(super) struct Log<'a> {
    entries: BTreeMap<u64, Entry<'a>>,
    /// (index at which an acknowledged change began, lowest revision of those that began then or later), ascending.
    later: Vec<(u64, u64)>,
    /// Highest acknowledged revision.
    newest: u64,
}

/// Whoever wrote something, by the values that it wrote.
struct Writers<'a> {
    by_value: HashMap<i64, (Operation<'a>, Vec<Step<'a>>)>,
}

impl<'a> Log<'a> {
    /// From the answers to writers, and from what watchers were told of changes of unknown outcome.
    pub(super) fn new(operations: &[Operation<'a>], polls: &[Poll<'a>], tally: &mut Tally) -> Self {
        let mut log = Self::default();
        let mut writers = Writers { by_value: HashMap::new() };
        for operation in operations.iter().filter(|operation| operation.f() == "change") {
            let Some(steps) = steps(operation) else {
                let message = "a change that makes no sense".to_owned();
                tally.add("malformed", None, message, operation.events(), Value::Null);
                continue;
            };
            log.take(operation, &steps, tally);
            for step in &steps {
                if let Step::Put(_, value) = step {
                    writers.by_value.insert(*value, (*operation, steps.clone()));
                }
            }
        }
        log.learn(polls, &writers);
        log.judge_values(polls, &writers, tally);
        log.later.reverse();
        let mut lowest = u64::MAX;
        for (_, revision) in log.later.iter_mut() {
            lowest = lowest.min(*revision);
            *revision = lowest;
        }
        log.later.reverse();
        log
    }

    /// Takes in an acknowledged change.
    fn take(&mut self, operation: &Operation<'a>, steps: &[Step<'a>], tally: &mut Tally) {
        let Some(revision) = operation.revision() else { return };
        let changes: Changes<'a> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Put(key, value) => Some((*key, Some(*value))),
                Step::Delete(key, Some(true)) => Some((*key, None)),
                Step::Delete(_, Some(false) | None) => None,
            })
            .collect();
        // What changed nothing has no revision of its own.
        if changes.is_empty() {
            return;
        }
        self.newest = self.newest.max(revision);
        self.later.push((operation.began(), revision));
        let entry = Entry { writer: Some(*operation), changes };
        if let Some(other) = self.entries.insert(revision, entry) {
            let events = other.writer.iter().flat_map(Operation::events).chain(operation.events()).collect();
            let message = format!("two changes were acknowledged at revision {revision}");
            tally.add("revision-twice", None, message, events, Value::Null);
        }
    }

    /// Takes in revisions that no writer was told: by the writer of a value in them as far as its puts go, or as told.
    fn learn(&mut self, polls: &[Poll<'a>], writers: &Writers<'a>) {
        for (revision, changes) in polls.iter().flat_map(Poll::batches) {
            let known = self.entries.get(&revision).is_some_and(|entry| entry.writer.is_some());
            if known {
                continue;
            }
            let entry = self.entries.entry(revision).or_insert_with(|| Entry { writer: None, changes: Changes::new() });
            for change in changes {
                let Some((_, steps)) = change.value.and_then(|value| writers.by_value.get(&value)) else {
                    entry.changes.entry(change.key).or_insert(change.value);
                    continue;
                };
                let puts = steps.iter().filter_map(|step| match step {
                    Step::Put(key, value) => Some((*key, Some(*value))),
                    Step::Delete(..) => None,
                });
                entry.changes.extend(puts);
            }
        }
    }

    /// Each told value was attempted, not refused, and belongs to one revision.
    fn judge_values(&self, polls: &[Poll<'a>], writers: &Writers<'a>, tally: &mut Tally) {
        let mut at: HashMap<i64, u64> = HashMap::new();
        for poll in polls {
            for (revision, change) in
                poll.batches().flat_map(|(revision, all)| all.iter().map(move |one| (revision, one)))
            {
                let Some(value) = change.value else { continue };
                let events = poll.operation.events();
                let Some((writer, _)) = writers.by_value.get(&value) else {
                    let message = format!("{} is told {value}, which nobody wrote", poll.watcher);
                    tally.add("never-written", Some(change.key), message, events, Value::Null);
                    continue;
                };
                if writer.outcome() == Outcome::Fail {
                    let message = format!(
                        "{} is told {value}, of which the writer was told that it was not written",
                        poll.watcher
                    );
                    tally.add("never-written", Some(change.key), message, events.clone(), Value::Null);
                }
                let first = *at.entry(value).or_insert(writer.revision().unwrap_or(revision));
                if first != revision {
                    let message =
                        format!("{value} was written at revision {first}, and {} is told {revision}", poll.watcher);
                    tally.add("wrong-change", Some(change.key), message, events, Value::Null);
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Highest revision that was acknowledged to a writer.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Revisions above `after` and up to `upto` that change something under `prefix`.
    pub(super) fn revisions(&self, after: u64, upto: u64, prefix: &str) -> Vec<u64> {
        if upto <= after {
            return Vec::new();
        }
        let entries = self.entries.range(after + 1..=upto);
        let matching = entries.filter(|(_, entry)| entry.changes.keys().any(|key| key.starts_with(prefix)));
        matching.map(|(revision, _)| *revision).collect()
    }

    /// Lowest revision of the changes that began after the event `index`.
    pub(super) fn lowest_after(&self, index: u64) -> Option<u64> {
        self.later.get(self.later.partition_point(|(began, _)| *began <= index)).map(|(_, revision)| *revision)
    }

    /// Every batch against the replayed log.
    pub(super) fn judge(&self, polls: &[Poll<'a>], tally: &mut Tally) {
        let mut told: BTreeMap<u64, Vec<(&Poll<'a>, &[Change<'a>])>> = BTreeMap::new();
        for poll in polls {
            for (revision, changes) in poll.batches() {
                told.entry(revision).or_default().push((poll, changes));
            }
        }
        let mut state: BTreeMap<&str, Record> = BTreeMap::new();
        for (revision, entry) in &self.entries {
            for (poll, changes) in told.get(revision).into_iter().flatten() {
                judge_batch(poll, *revision, changes, entry, &state, tally);
            }
            for (key, value) in &entry.changes {
                match value {
                    Some(value) => {
                        let old = state.get(key);
                        let (create, version) = old.map_or((*revision, 1), |old| (old.create, old.version + 1));
                        state.insert(key, Record { value: *value, create, modified: *revision, version });
                    }
                    None => {
                        state.remove(key);
                    }
                }
            }
        }
    }
}

/// One batch against what its revision changed.
fn judge_batch<'a>(
    poll: &Poll<'a>,
    revision: u64,
    changes: &[Change<'a>],
    entry: &Entry<'a>,
    state: &BTreeMap<&str, Record>,
    tally: &mut Tally,
) {
    let watcher = poll.watcher;
    let mut events = poll.operation.events();
    events.extend(entry.writer.iter().flat_map(Operation::events));
    let mut seen: BTreeMap<&str, Option<i64>> = BTreeMap::new();
    for change in changes {
        let key = Some(change.key);
        if !change.key.starts_with(poll.prefix) {
            let message = format!("{watcher} watches {} and is told of {} at {revision}", poll.prefix, change.key);
            tally.add("not-filtered", key, message, events.clone(), Value::Null);
            continue;
        }
        if seen.insert(change.key, change.value).is_some() {
            let message = format!("{watcher} is told twice of {} at revision {revision}", change.key);
            tally.add("repeated", key, message, events.clone(), Value::Null);
            continue;
        }
        if entry.changes.get(change.key) != Some(&change.value) {
            let message = format!(
                "{watcher} is told that revision {revision} made {} {:?}: it did not",
                change.key, change.value
            );
            tally.add("wrong-change", key, message, events.clone(), Value::Null);
            continue;
        }
        judge_before(poll, revision, change, state.get(change.key), &events, tally);
    }
    let missing: Vec<&&str> =
        entry.changes.keys().filter(|key| key.starts_with(poll.prefix) && !seen.contains_key(**key)).collect();
    if !missing.is_empty() {
        let message = format!("{watcher} is told of revision {revision} without its change of {missing:?}");
        tally.add("torn", None, message, events, Value::Null);
    }
}

/// What was there before, and whether the change created the key.
fn judge_before(
    poll: &Poll<'_>,
    revision: u64,
    change: &Change<'_>,
    before: Option<&Record>,
    events: &[u64],
    tally: &mut Tally,
) {
    let Poll { watcher, .. } = poll;
    if change.before.as_ref() != before {
        let message = format!(
            "{watcher} is told that {} was {:?} before revision {revision}; it was {before:?}",
            change.key, change.before
        );
        tally.add("wrong-prev", Some(change.key), message, events.to_vec(), Value::Null);
    }
    let right = before.map_or((revision, 1), |before| (before.create, before.version + 1));
    if let Some(created) = change.created
        && created != right
    {
        let message = format!(
            "{watcher} is told that {} at revision {revision} has (create revision, version) {created:?}, not {right:?}",
            change.key
        );
        tally.add("wrong-create", Some(change.key), message, events.to_vec(), Value::Null);
    }
}

/// The highest revision that one look told, whatever it was told as.
pub(super) fn furthest(told: &[Told<'_>]) -> Option<u64> {
    let revision = |told: &Told<'_>| match told {
        Told::Batch { revision, .. } | Told::Progress(revision) => *revision,
    };
    told.iter().map(revision).max()
}
