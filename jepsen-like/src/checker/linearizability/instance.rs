//! One key's operations made ready for the search: values numbered, operations of unknown outcome dropped or given an
//! end where the others decide it.
//!
//! - An operation of unknown outcome whose value nobody needs is dropped: taking it out of a linearization leaves one.
//!   So the search meets only those that explain something.
//! - When no value is written twice, and null never, a needed value has one possible maker. If its outcome is
//!   unknown it did happen, and before the first operation that needs the value ended: that is its end, and no
//!   operation of unknown outcome is left.

use std::collections::HashMap;

use super::super::register::{Content, RegisterOp};

/// Number of a value; [`Instance::MISSING`] is the missing key, the state at the beginning.
pub(super) type ValueId = u32;

/// What the search knows of an operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    pub(super) need: Option<ValueId>,
    pub(super) make: Option<ValueId>,
}

/// A beginning or an end, in the order of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Call(u32),
    Return(u32),
}

/// One key, ready to be searched.
///
/// Invariants: the first `required` operations have a return and are in the order of their calls, the others have
/// none and are `optional`; if `unique`, there are no others.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) ops: Vec<Op>,
    pub(super) required: usize,
    pub(super) entries: Vec<Entry>,
    /// Values are below this.
    pub(super) values: usize,
    /// No value is made twice, and the missing key never.
    pub(super) unique: bool,
    source: Vec<usize>,
}

/// What can be said without a search.
#[derive(Debug)]
pub(super) struct Unready {
    pub(super) message: String,
    pub(super) ops: Vec<RegisterOp>,
}

impl Instance {
    /// The missing key.
    pub(super) const MISSING: ValueId = 0;

    /// Errors: a value was seen that nobody wrote, or before it was written.
    pub(super) fn new(ops: &[RegisterOp]) -> Result<Self, Unready> {
        let mut values: HashMap<Content, ValueId> = HashMap::from([(None, Self::MISSING)]);
        let mut number = |content: Content| -> ValueId {
            let next = values.len() as ValueId;
            *values.entry(content).or_insert(next)
        };
        let ready: Vec<Op> = ops
            .iter()
            .map(|op| Op {
                need: op.action.needs().map(&mut number),
                make: op.action.makes().map(Some).map(&mut number),
            })
            .collect();
        let values = values.len();
        let mut makers: Vec<Vec<usize>> = vec![Vec::new(); values];
        for (id, op) in ready.iter().enumerate() {
            if let Some(value) = op.make {
                makers[value as usize].push(id);
            }
        }
        let unique = makers.iter().all(|makers| makers.len() <= 1);
        let ends = ends(ops, &ready, &makers, unique)?;
        let mut chosen: Vec<usize> = (0..ops.len()).filter(|id| ends[*id] != End::Dropped).collect();
        let is_open = |id: &usize| !unique && ops[*id].ended.is_none();
        chosen.sort_by_key(|id| (is_open(id), ops[*id].began));
        let required = chosen.iter().filter(|id| !is_open(id)).count();
        let mut entries: Vec<(u64, bool, Entry)> = Vec::with_capacity(chosen.len() * 2);
        for (id, source) in chosen.iter().enumerate() {
            entries.push((ops[*source].began, false, Entry::Call(id as u32)));
            if let (End::At(end), true) = (ends[*source], id < required) {
                entries.push((end, true, Entry::Return(id as u32)));
            }
        }
        entries.sort_unstable_by_key(|(at, is_return, _)| (*at, *is_return));
        Ok(Instance {
            ops: chosen.iter().map(|id| ready[*id]).collect(),
            required,
            entries: entries.into_iter().map(|(_, _, entry)| entry).collect(),
            values,
            unique,
            source: chosen,
        })
    }

    /// Which of the operations that [`Instance::new`] was given this one is.
    pub(super) fn source(&self, id: u32) -> usize {
        self.source[id as usize]
    }
}

/// When an operation can no longer take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Of unknown outcome, and nobody needs its value.
    Dropped,
    /// At this index: its completion, or that of the first operation that needs its value; `u64::MAX` = never.
    At(u64),
}

/// Ends of all operations. Where values repeat, those of unknown outcome that may explain something have no end.
fn ends(ops: &[RegisterOp], ready: &[Op], makers: &[Vec<usize>], unique: bool) -> Result<Vec<End>, Unready> {
    let mut ends: Vec<End> = ops.iter().map(|op| op.ended.map_or(End::Dropped, End::At)).collect();
    // Operations that are known to matter, whose needs were not followed yet. One comes back when its end moves.
    let mut follow: Vec<usize> = (0..ops.len()).filter(|id| ops[*id].ended.is_some()).collect();
    while let Some(id) = follow.pop() {
        let (Some(need), End::At(end)) = (ready[id].need, ends[id]) else { continue };
        let happened = unique || ops[id].ended.is_some();
        if need == Instance::MISSING {
            continue;
        }
        let makers = &makers[need as usize];
        // A cas from a value to itself does not explain where the value came from.
        let makers: Vec<usize> = makers.iter().copied().filter(|maker| *maker != id).collect();
        if happened && makers.is_empty() {
            let message = format!("{}: nobody wrote that", ops[id].action);
            return Err(Unready { message, ops: vec![ops[id]] });
        }
        if happened && makers.iter().all(|maker| ops[*maker].began > end) {
            let message = format!("{}: it was over before the {} began", ops[id].action, ops[makers[0]].action);
            return Err(Unready { message, ops: vec![ops[id], ops[makers[0]]] });
        }
        for maker in makers {
            let moves = match ends[maker] {
                End::Dropped => true,
                End::At(at) => ops[maker].ended.is_none() && end < at,
            };
            if moves {
                ends[maker] = End::At(if unique { end } else { u64::MAX });
                follow.push(maker);
            }
        }
    }
    Ok(ends)
}
