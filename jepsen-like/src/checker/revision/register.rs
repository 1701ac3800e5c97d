//! Registers replayed in the order of revisions.

use std::collections::HashMap;

use super::super::register::{Action, Content, RegisterOp};
use super::order::{Floors, Taken};

/// An operation that the replay contradicts.
#[derive(Debug)]
pub(in super::super) struct Contradiction {
    pub(in super::super) op: RegisterOp,
    pub(in super::super) revision: u64,
    /// What the register held by the replay, and since which revision.
    pub(in super::super) held: Content,
    pub(in super::super) since: u64,
}

/// One register's replay.
///
/// Invariant: `held` is what it holds from revision `since` on, as far as answered operations tell.
struct Replay<'a> {
    floors: &'a Floors,
    taken: &'a Taken,
    /// Changes of unknown outcome, and whether one was needed already.
    unknown: Vec<(RegisterOp, bool)>,
    /// How many changes make each value: one that is made once explains one change only.
    makers: HashMap<i64, usize>,
    held: Content,
    since: u64,
}

/// Replays the answered changes of one key and compares what its CAS and reads, stale ones included, saw. A change of
/// unknown outcome may explain a difference if it was asked for in time and a revision was free for it.
pub(in super::super) fn replay(ops: &[RegisterOp], floors: &Floors, taken: &Taken) -> Vec<Contradiction> {
    let mut makers: HashMap<i64, usize> = HashMap::new();
    for op in ops {
        if let Some(value) = op.action.makes() {
            *makers.entry(value).or_default() += 1;
        }
    }
    let unknown = ops.iter().filter(|op| op.ended.is_none()).map(|op| (*op, false)).collect();
    let mut replay = Replay { floors, taken, unknown, makers, held: None, since: 0 };
    // A change's own revision is a read's newest.
    let mut known: Vec<(u64, bool, &RegisterOp)> = ops
        .iter()
        .filter(|op| op.ended.is_some())
        .filter_map(|op| Some((op.revision?, matches!(op.action, Action::Read(_)), op)))
        .collect();
    known.sort_by_key(|(revision, is_read, op)| (*revision, *is_read, op.began));
    let mut found = Vec::new();
    for (revision, is_read, op) in known {
        let newest = if is_read { revision } else { revision.saturating_sub(1) };
        if let Some(need) = op.action.needs()
            && !replay.explain(need, newest, op, &mut Vec::new())
        {
            found.push(Contradiction { op: *op, revision, held: replay.held, since: replay.since });
        }
        if let Some(value) = op.action.makes() {
            (replay.held, replay.since) = (Some(value), revision);
        }
    }
    found
}

impl Replay<'_> {
    /// Whether the register may have held `need` at revision `upto`; if it takes changes of unknown outcome to get
    /// there, they happened. `chain` holds those that are in use already.
    fn explain(&mut self, need: Content, upto: u64, observer: &RegisterOp, chain: &mut Vec<usize>) -> bool {
        if self.held == need {
            return true;
        }
        let Some(value) = need else { return false };
        for id in 0..self.unknown.len() {
            let (op, used) = self.unknown[id];
            let floor = self.floors.revision_at(op.began);
            let in_time = observer.ended.is_none_or(|ended| op.began < ended);
            if op.action.makes() != need || used || chain.contains(&id) || !in_time || floor >= upto {
                continue;
            }
            let (held, since) = (self.held, self.since);
            chain.push(id);
            let before = match op.action {
                Action::Cas(old, _) => self.explain(old, upto, observer, chain),
                Action::Write(_) | Action::Read(_) => true,
            };
            chain.pop();
            let at = self.taken.free_above(self.since.max(floor));
            if before && at <= upto {
                (self.held, self.since) = (need, at);
                self.unknown[id].1 = self.makers[&value] == 1;
                return true;
            }
            (self.held, self.since) = (held, since);
        }
        false
    }
}
