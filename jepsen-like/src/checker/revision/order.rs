//! Revisions against real time: what began later has no smaller revision.

use std::collections::HashMap;

use crate::history::Operation;

/// Whether an operation changes the store, by its name; a transaction by what it does.
pub(in super::super) fn changes(operation: &Operation<'_>) -> bool {
    match operation.f() {
        "write" | "cas" | "add" | "transfer" => true,
        "txn" => super::super::append::txn::parse(operation).is_ok_and(|txn| txn.appends()),
        _ => false,
    }
}

/// Whether the certificate knows the operation.
pub(super) fn is_known(operation: &Operation<'_>) -> bool {
    matches!(operation.f(), "read" | "write" | "cas" | "add" | "transfer" | "txn")
}

/// The highest revision that was known at each moment.
#[derive(Debug, Default)]
pub(in super::super) struct Floors {
    /// (index of a completion, highest revision so far, index of the completion that gave it), ascending.
    steps: Vec<(u64, u64, u64)>,
}

impl Floors {
    pub(in super::super) fn new(operations: &[Operation<'_>]) -> Self {
        let mut known: Vec<(u64, u64)> =
            operations.iter().filter_map(|operation| Some((operation.ended()?, operation.revision()?))).collect();
        known.sort_unstable();
        let mut steps: Vec<(u64, u64, u64)> = Vec::new();
        for (at, revision) in known {
            if steps.last().is_none_or(|(_, highest, _)| revision > *highest) {
                steps.push((at, revision, at));
            }
        }
        Floors { steps }
    }

    /// The highest revision in an answer before the event `index`, and which answer that was.
    pub(in super::super) fn at(&self, index: u64) -> Option<(u64, u64)> {
        let before = self.steps.partition_point(|(at, ..)| *at < index);
        before.checked_sub(1).map(|last| (self.steps[last].1, self.steps[last].2))
    }

    /// The same as a revision that everything after `index` is not below; 0 when nothing is known.
    pub(super) fn revision_at(&self, index: u64) -> u64 {
        self.at(index).map_or(0, |(revision, _)| revision)
    }
}

/// An operation with a revision that real time forbids.
#[derive(Debug)]
pub(in super::super) struct TooOld<'a> {
    pub(in super::super) operation: Operation<'a>,
    pub(in super::super) revision: u64,
    /// What was known before it began.
    pub(in super::super) known: u64,
    /// The answer that it was known from.
    pub(in super::super) witness: u64,
}

/// Changes, and reads that are linearizable, whose revision is older than one that was known before they began. A
/// stale read's revision counts as known: what one node has applied is committed.
pub(in super::super) fn too_old<'a>(operations: &[Operation<'a>], floors: &Floors) -> Vec<TooOld<'a>> {
    let mut found = Vec::new();
    for operation in operations.iter().filter(|operation| is_known(operation)) {
        let (Some(revision), Some((known, witness))) = (operation.revision(), floors.at(operation.began())) else {
            continue;
        };
        let change = changes(operation);
        let judged = change || operation.mode().is_newest();
        // A change makes a revision of its own.
        if judged && (revision < known || (change && revision == known)) {
            found.push(TooOld { operation: *operation, revision, known, witness });
        }
    }
    found
}

/// Pairs of changes that claim the same revision.
pub(super) fn doubled<'a>(operations: &[Operation<'a>]) -> Vec<(u64, Operation<'a>, Operation<'a>)> {
    let mut by_revision: HashMap<u64, Operation<'a>> = HashMap::new();
    let mut found = Vec::new();
    for operation in operations.iter().filter(|operation| is_known(operation) && changes(operation)) {
        if let Some(revision) = operation.revision()
            && let Some(other) = by_revision.insert(revision, *operation)
        {
            found.push((revision, other, *operation));
        }
    }
    found
}

/// Revisions that answered changes took; the others are free for those of unknown outcome.
#[derive(Debug)]
pub(in super::super) struct Taken {
    revisions: Vec<u64>,
    /// (first, last) of each run of revisions without a gap.
    runs: Vec<(u64, u64)>,
}

impl Taken {
    pub(in super::super) fn new(operations: &[Operation<'_>]) -> Self {
        let known = operations.iter().filter(|operation| is_known(operation) && changes(operation));
        let mut revisions: Vec<u64> = known.filter_map(Operation::revision).collect();
        revisions.sort_unstable();
        revisions.dedup();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for revision in &revisions {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *revision => *last = *revision,
                _ => runs.push((*revision, *revision)),
            }
        }
        Taken { revisions, runs }
    }

    /// The lowest free revision above `revision`.
    pub(super) fn free_above(&self, revision: u64) -> u64 {
        let next = revision + 1;
        let run = self.runs.partition_point(|(_, last)| *last < next);
        match self.runs.get(run) {
            Some((first, last)) if *first <= next => last + 1,
            _ => next,
        }
    }

    /// How many revisions above `after` and up to `upto` are free.
    pub(super) fn free_between(&self, after: u64, upto: u64) -> u64 {
        let below = |revision: u64| self.revisions.partition_point(|taken| *taken <= revision) as u64;
        upto.saturating_sub(after) - (below(upto).saturating_sub(below(after))).min(upto.saturating_sub(after))
    }
}
