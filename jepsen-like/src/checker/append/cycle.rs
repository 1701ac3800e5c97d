//! Cycles among transactions, named as in Adya's thesis (1999) and in Elle (Kingsbury and Alvaro 2020).

use std::collections::{HashSet, VecDeque};

use super::graph::{Edge, Kind};

/// Shortest paths that are searched, at most, in one component for one kind of cycle. A component that needs more has
/// too many cycles for the shortest to matter; one is reported in any case.
const SEARCHES_MAX: usize = 500;

/// Transactions each of which must come before the next, and the last before the first.
#[derive(Debug)]
pub(super) struct Cycle {
    pub(super) class: String,
    pub(super) steps: Vec<(usize, Edge)>,
}

/// The kinds of cycle, the worst first: edges it may be made of, and the edge to begin with.
fn phases() -> Vec<(u8, Kind, u8)> {
    let (ww, wr, rw) = (Kind::Ww.bit(), Kind::Wr.bit(), Kind::Rw.bit());
    let mut phases = Vec::new();
    for extra in [0, Kind::Process.bit(), Kind::Process.bit() | Kind::Realtime.bit()] {
        phases.push((ww | extra, Kind::Ww, ww | extra));
        phases.push((ww | wr | extra, Kind::Wr, ww | wr | extra));
        // First those that close without another rw edge.
        phases.push((ww | wr | rw | extra, Kind::Rw, ww | wr | extra));
        phases.push((ww | wr | rw | extra, Kind::Rw, ww | wr | rw | extra));
    }
    phases
}

/// The shortest cycle of each kind in each component, unless all its transactions are in a worse one.
pub(super) fn cycles(edges: &[Vec<Edge>]) -> Vec<Cycle> {
    let mut found = Vec::new();
    let everything = u8::MAX;
    // Transactions in no cycle at all need no further look: in a good history, all of them.
    let whole = components(edges, everything);
    if whole.1 == 0 {
        return found;
    }
    let mut reported: HashSet<usize> = HashSet::new();
    for (mask, begin, back) in phases() {
        let (component, count) = components(edges, mask);
        let mut best: Vec<Option<Vec<(usize, Edge)>>> = vec![None; count];
        let mut searches = vec![0; count];
        for (from, out) in edges.iter().enumerate() {
            for edge in out.iter().filter(|edge| edge.kind == begin) {
                let Some(of) = component[from].filter(|of| component[edge.to] == Some(*of)) else { continue };
                searches[of] += 1;
                if searches[of] > SEARCHES_MAX {
                    continue;
                }
                let Some(path) = shortest(edges, &component, edge.to, from, back) else { continue };
                if best[of].as_ref().is_none_or(|best| path.len() + 1 < best.len()) {
                    best[of] = Some(std::iter::once((from, edge.clone())).chain(path).collect());
                }
            }
        }
        for steps in best.into_iter().flatten() {
            if steps.iter().all(|(txn, _)| reported.contains(txn)) {
                continue;
            }
            reported.extend(steps.iter().map(|(txn, _)| *txn));
            found.push(Cycle { class: name(&steps), steps });
        }
    }
    found
}

fn name(steps: &[(usize, Edge)]) -> String {
    let count = |kind: Kind| steps.iter().filter(|(_, edge)| edge.kind == kind).count();
    let base = match count(Kind::Rw) {
        0 if count(Kind::Wr) == 0 => "G0",
        0 => "G1c",
        1 => "G-single",
        _ => "G2",
    };
    let suffix = match (count(Kind::Realtime), count(Kind::Process)) {
        (0, 0) => "",
        (0, _) => "-process",
        _ => "-realtime",
    };
    format!("{base}{suffix}")
}

/// Breadth first from `from` to `to` within a component, over the kinds in `mask`.
fn shortest(
    edges: &[Vec<Edge>],
    component: &[Option<usize>],
    from: usize,
    to: usize,
    mask: u8,
) -> Option<Vec<(usize, Edge)>> {
    let mut parent: std::collections::HashMap<usize, (usize, &Edge)> = std::collections::HashMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        if at == to {
            let mut path = Vec::new();
            let mut at = to;
            while at != from {
                let (before, edge) = parent[&at];
                path.push((before, edge.clone()));
                at = before;
            }
            path.reverse();
            return Some(path);
        }
        for edge in edges[at].iter().filter(|edge| edge.kind.bit() & mask != 0 && component[edge.to] == component[to]) {
            if edge.to != from && !parent.contains_key(&edge.to) {
                parent.insert(edge.to, (at, edge));
                queue.push_back(edge.to);
            }
        }
    }
    None
}

/// Tarjan's strongly connected components over the kinds in `mask`: the component of each transaction that is in one
/// with others, and how many such components there are.
fn components(edges: &[Vec<Edge>], mask: u8) -> (Vec<Option<usize>>, usize) {
    const NEW: usize = usize::MAX;
    let count = edges.len();
    let (mut order, mut low, mut on_stack) = (vec![NEW; count], vec![0; count], vec![false; count]);
    let (mut stack, mut component) = (Vec::new(), vec![None; count]);
    let (mut next, mut found) = (0, 0);
    for root in 0..count {
        if order[root] != NEW {
            continue;
        }
        // The call stack: a transaction and which of its edges is next.
        let mut calls = vec![(root, 0)];
        while let Some((at, edge)) = calls.pop() {
            if edge == 0 {
                (order[at], low[at]) = (next, next);
                next += 1;
                stack.push(at);
                on_stack[at] = true;
            }
            let out = (edge..edges[at].len()).find(|edge| edges[at][*edge].kind.bit() & mask != 0);
            if let Some(edge) = out {
                let to = edges[at][edge].to;
                calls.push((at, edge + 1));
                if order[to] == NEW {
                    calls.push((to, 0));
                } else if on_stack[to] {
                    low[at] = low[at].min(order[to]);
                }
                continue;
            }
            if let Some((caller, _)) = calls.last() {
                low[*caller] = low[*caller].min(low[at]);
            }
            if low[at] == order[at] {
                let from = stack.iter().rposition(|other| *other == at).expect("it is on the stack until here");
                let members = stack.split_off(from);
                for member in &members {
                    on_stack[*member] = false;
                    component[*member] = (members.len() > 1).then_some(found);
                }
                found += usize::from(members.len() > 1);
            }
        }
    }
    (component, found)
}
