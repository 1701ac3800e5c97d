//! One watcher's events in their order.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::tally::Tally;
use super::log::{Log, furthest};
use super::told::{Poll, Told};
use crate::history::Operation;

/// A watcher from its beginning to its end.
#[derive(Debug)]
pub(super) struct Sequence<'p, 'a> {
    polls: Vec<&'p Poll<'a>>,
    name: &'a str,
    prefix: &'a str,
    /// It began after this revision; None = it was never told anything.
    start: Option<u64>,
    position: Option<u64>,
    told: BTreeSet<u64>,
    /// The highest progress that it was told.
    mark: Option<u64>,
}

impl<'p, 'a> Sequence<'p, 'a> {
    /// All watchers, by name; those that were never answered, too.
    pub(super) fn all(operations: &[Operation<'a>], polls: &'p [Poll<'a>]) -> BTreeMap<&'a str, Self> {
        debug_assert!(operations.len() >= polls.len());
        let mut all: BTreeMap<&'a str, Self> = BTreeMap::new();
        for poll in polls {
            let sequence = all.entry(poll.watcher).or_insert_with(|| Self {
                polls: Vec::new(),
                name: poll.watcher,
                prefix: poll.prefix,
                start: None,
                position: None,
                told: BTreeSet::new(),
                mark: None,
            });
            sequence.polls.push(poll);
        }
        all
    }

    /// Number of batches.
    pub(super) fn told(&self) -> usize {
        self.told.len()
    }

    /// Judges order, repetition, gaps, progress, and that it was brought up to the end.
    pub(super) fn judge(&mut self, log: &Log<'a>, tally: &mut Tally) {
        for poll in self.polls.clone() {
            if poll.prefix != self.prefix {
                let message = format!("{} watches {} and {}", self.name, self.prefix, poll.prefix);
                tally.add("malformed", None, message, poll.operation.events(), Value::Null);
            }
            if let Some(why) = poll.broken {
                let message = format!("{} could not go on: {why}", self.name);
                tally.add("broken-stream", None, message, poll.operation.events(), Value::Null);
            }
            if poll.opens && poll.operation.is_ok() {
                self.position = poll.after;
                self.start = self.start.or(poll.after);
            }
            for told in &poll.told {
                self.take(poll, told, tally);
            }
            self.judge_time(poll, log, tally);
        }
        self.judge_gaps(log, tally);
        let newest = log.newest();
        if self.position.is_none_or(|position| position < newest) {
            let message =
                format!("{} was told up to {:?} in the end, and {newest} was acknowledged", self.name, self.position);
            let events = self.polls.last().map_or_else(Vec::new, |poll| poll.operation.events());
            tally.add("behind", None, message, events, Value::Null);
        }
    }

    fn take(&mut self, poll: &Poll<'a>, told: &Told<'a>, tally: &mut Tally) {
        let name = self.name;
        let mut wrong = |class: &str, message: String| {
            tally.add(class, None, message, poll.operation.events(), Value::Null);
        };
        match told {
            Told::Batch { revision, .. } => {
                let before = self.position.unwrap_or(0);
                if self.position.is_some() && *revision <= before {
                    if self.told.contains(revision) {
                        wrong("repeated", format!("{name} is told of revision {revision} again, after {before}"));
                    } else if self.mark.is_some_and(|mark| mark >= *revision) {
                        wrong("progress-ahead", format!("{name} was told all up to {before}, and then of {revision}"));
                    } else {
                        wrong("unordered", format!("{name} is told of revision {revision} after {before}"));
                    }
                }
                self.start.get_or_insert(revision.saturating_sub(1));
                self.told.insert(*revision);
                self.position = Some(before.max(*revision));
            }
            Told::Progress(progress) => {
                if let Some(before) = self.position.filter(|before| progress < before) {
                    wrong("unordered", format!("{name} is told that its progress is {progress} after {before}"));
                }
                self.start.get_or_insert(*progress);
                self.mark = self.mark.max(Some(*progress));
                self.position = self.position.max(Some(*progress));
            }
        }
    }

    /// What was told is not above what was written later.
    fn judge_time(&self, poll: &Poll<'a>, log: &Log<'a>, tally: &mut Tally) {
        let (Some(told), Some(ended)) = (furthest(&poll.told), poll.operation.ended()) else { return };
        if let Some(lowest) = log.lowest_after(ended).filter(|lowest| *lowest <= told) {
            let message =
                format!("{} was told up to {told} before a change began that made revision {lowest}", self.name);
            tally.add("progress-ahead", None, message, poll.operation.events(), Value::Null);
        }
    }

    fn judge_gaps(&self, log: &Log<'a>, tally: &mut Tally) {
        let (Some(start), Some(end)) = (self.start, self.position) else { return };
        let missing =
            log.revisions(start, end, self.prefix).into_iter().filter(|revision| !self.told.contains(revision));
        for revision in missing {
            // Whether the first thing that it lacks is the first that a new stream should have told.
            let last = self.told.range(..revision).next_back().copied().unwrap_or(start).max(start);
            let resumed = self.polls.iter().find(|poll| {
                let from = poll.after.filter(|_| poll.opens && poll.operation.is_ok());
                from.is_some_and(|from| last <= from && from < revision && from > start)
            });
            let (class, events) = match resumed {
                Some(poll) => ("resume-gap", poll.operation.events()),
                None => {
                    let passed =
                        self.polls.iter().find(|poll| furthest(&poll.told).is_some_and(|told| told > revision));
                    ("gap", passed.map_or_else(Vec::new, |poll| poll.operation.events()))
                }
            };
            let message = format!("{} was told {last} and what is after {revision}, but not {revision}", self.name);
            tally.add(class, None, message, events, Value::Null);
        }
    }
}
