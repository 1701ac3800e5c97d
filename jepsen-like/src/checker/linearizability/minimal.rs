//! A small history that still fails, by delta debugging (Zeller and Hildebrandt 2002) over operations.

use std::collections::{BTreeSet, HashMap};

use super::super::register::{self, Action, Content, RegisterOp};
use super::{CONFIGURATIONS_MAX, judge_key};
use crate::history::{Event, pair};

/// Histories that are judged, at most, while one is made smaller.
const TRIALS_MAX: usize = 5_000;

/// Reduces a history with a register that is not linearizable to a few operations on that register that are not
/// linearizable either. What it gives is a history again, with new indices. A history that is fine, or none, comes
/// back empty.
///
/// An operation goes only together with those that need its value, so that what is left fails for the reason the
/// whole fails for, and not because a write was taken away from its reads.
pub fn minimal(history: &[Event]) -> Vec<Event> {
    let Ok(operations) = pair(history) else { return Vec::new() };
    let (keys, _) = register::by_key(&operations);
    let failing = keys.into_values().find_map(|mut ops| {
        ops.retain(|op| op.mode.is_newest() || !matches!(op.action, Action::Read(_)));
        fails(&ops).then_some(ops)
    });
    let Some(ops) = failing else { return Vec::new() };
    let kept: BTreeSet<u64> = reduce(ops).iter().flat_map(RegisterOp::events).collect();
    let events = history.iter().filter(|event| kept.contains(&event.index)).cloned();
    (0..).zip(events).map(|(index, event)| Event { index, ..event }).collect()
}

fn fails(ops: &[RegisterOp]) -> bool {
    judge_key("", ops, CONFIGURATIONS_MAX).findings.iter().any(|finding| finding.class == "not-linearizable")
}

fn reduce(mut ops: Vec<RegisterOp>) -> Vec<RegisterOp> {
    let orphans: BTreeSet<Content> = {
        let made: BTreeSet<Content> = ops.iter().filter_map(|op| op.action.makes().map(Some)).collect();
        ops.iter().filter_map(|op| op.action.needs()).filter(|need| !made.contains(need)).collect()
    };
    let mut size = ops.len().div_ceil(2);
    let mut trials = 0;
    while size > 0 {
        let before = ops.len();
        let mut from = 0;
        while from < ops.len() && trials < TRIALS_MAX {
            let rest = without(&ops, from..(from + size).min(ops.len()), &orphans);
            trials += 1;
            if fails(&rest) {
                ops = rest;
            } else {
                from += size;
            }
        }
        // Once more with single operations as long as that helps.
        size = if size == 1 && ops.len() < before && trials < TRIALS_MAX { 1 } else { size / 2 };
    }
    ops
}

/// The operations outside of `range`, less those whose value nobody writes any more.
fn without(ops: &[RegisterOp], range: std::ops::Range<usize>, orphans: &BTreeSet<Content>) -> Vec<RegisterOp> {
    let mut rest: Vec<RegisterOp> = [&ops[..range.start], &ops[range.end..]].concat();
    loop {
        let mut makers: HashMap<Content, usize> = HashMap::new();
        for op in &rest {
            if let Some(value) = op.action.makes() {
                *makers.entry(Some(value)).or_default() += 1;
            }
        }
        let before = rest.len();
        rest.retain(|op| {
            op.action.needs().is_none_or(|need| need.is_none() || makers.contains_key(&need) || orphans.contains(&need))
        });
        if rest.len() == before {
            return rest;
        }
    }
}
