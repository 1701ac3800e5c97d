//! The oracle of the differential test: linearizability by trying every order, written from the definition and sharing
//! nothing with the search but the form of events. For up to 32 operations.

use std::collections::HashSet;

use serde_json::Value;

use crate::history::{Event, Kind, Process};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Read(Option<i64>),
    Write(i64),
    Cas(Option<i64>, i64),
}

#[derive(Debug)]
struct Op {
    step: Option<Step>,
    begin: usize,
    /// usize::MAX = may happen at any time or never.
    end: usize,
    failed: bool,
}

/// Whether the operations on the one key of the history are linearizable.
pub(super) fn linearizable(events: &[Event]) -> bool {
    let ops: Vec<Op> = collect(events).into_iter().filter(|op| !op.failed && op.step.is_some()).collect();
    assert!(ops.len() <= 32, "the oracle is for small histories");
    let must = ops.iter().enumerate().filter(|(_, op)| op.end != usize::MAX).fold(0u32, |set, (id, _)| set | 1 << id);
    explore(&ops, must, 0, None, &mut HashSet::new())
}

fn explore(
    ops: &[Op],
    must: u32,
    taken: u32,
    register: Option<i64>,
    visited: &mut HashSet<(u32, Option<i64>)>,
) -> bool {
    if taken & must == must {
        return true;
    }
    if !visited.insert((taken, register)) {
        return false;
    }
    let left = |id: usize| taken & (1 << id) == 0;
    let barrier = (0..ops.len()).filter(|id| left(*id)).map(|id| ops[id].end).min().unwrap_or(usize::MAX);
    (0..ops.len()).filter(|id| left(*id) && ops[*id].begin < barrier).any(|id| {
        let after = match ops[id].step.expect("operations without a step were left out") {
            Step::Read(seen) if seen == register => register,
            Step::Write(new) => Some(new),
            Step::Cas(old, new) if old == register => Some(new),
            Step::Read(_) | Step::Cas(..) => return false,
        };
        explore(ops, must, taken | 1 << id, after, visited)
    })
}

fn collect(events: &[Event]) -> Vec<Op> {
    let mut ops: Vec<(Process, Op)> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        if event.kind == Kind::Invoke {
            let step = match event.f.as_str() {
                "write" => event.value.as_i64().map(Step::Write),
                "cas" => Some(Step::Cas(event.value[0].as_i64(), event.value[1].as_i64().unwrap())),
                _ => None,
            };
            ops.push((event.process, Op { step, begin: at, end: usize::MAX, failed: false }));
            continue;
        }
        let (_, op) = ops.iter_mut().rfind(|(process, _)| *process == event.process).expect("it was invoked");
        match event.kind {
            Kind::Ok => {
                op.end = at;
                if event.f == "read" {
                    op.step = Some(Step::Read(match &event.value {
                        Value::Null => None,
                        seen => Some(seen.as_i64().unwrap()),
                    }));
                }
            }
            Kind::Fail => op.failed = true,
            Kind::Info | Kind::Invoke => {}
        }
    }
    ops.into_iter().map(|(_, op)| op).collect()
}
