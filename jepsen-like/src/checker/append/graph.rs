//! Which transaction must come before which, and why.

use std::collections::HashMap;

use super::txn::Txn;
use super::versions::List;
use crate::history::{Outcome, Process};

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It appended what the other appended behind.
    Ww,
    /// It appended what the other read.
    Wr,
    /// It read a list before the other appended to it.
    Rw,
    /// The same process did one after the other.
    Process,
    /// It was over before the other began.
    Realtime,
}

impl Kind {
    /// One bit each, to choose kinds by.
    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Ww => "ww",
            Kind::Wr => "wr",
            Kind::Rw => "rw",
            Kind::Process => "process",
            Kind::Realtime => "realtime",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Edge {
    pub(super) to: usize,
    pub(super) kind: Kind,
    /// The key, for edges that come from lists.
    pub(super) key: Option<String>,
}

/// Edges of each transaction. Refused ones have none, nor have those of unknown outcome that nobody saw.
pub(super) fn graph(txns: &[Txn<'_>], lists: &HashMap<String, List>) -> Vec<Vec<Edge>> {
    let mut edges: Vec<Vec<Edge>> = vec![Vec::new(); txns.len()];
    let mut names: Vec<&String> = lists.keys().collect();
    names.sort_unstable();
    for key in names {
        writes(key, &lists[key], &mut edges);
    }
    for (id, txn) in txns.iter().enumerate() {
        for (key, seen) in txn.external_reads() {
            read(id, key, seen, &lists[key], &mut edges);
        }
    }
    let mut happened: Vec<bool> = txns.iter().map(|txn| txn.outcome == Outcome::Ok).collect();
    for list in lists.values() {
        list.order.iter().for_each(|element| happened[list.writer[element]] = true);
    }
    processes(txns, &happened, &mut edges);
    real_time(txns, &happened, &mut edges);
    edges
}

fn add(edges: &mut [Vec<Edge>], from: usize, to: usize, kind: Kind, key: Option<&str>) {
    if from != to {
        edges[from].push(Edge { to, kind, key: key.map(Into::into) });
    }
}

fn writes(key: &str, list: &List, edges: &mut [Vec<Edge>]) {
    for pair in list.order.windows(2) {
        add(edges, list.writer[&pair[0]], list.writer[&pair[1]], Kind::Ww, Some(key));
    }
    if let Some(last) = list.order.last() {
        list.unseen.iter().for_each(|unseen| add(edges, list.writer[last], *unseen, Kind::Ww, Some(key)));
    }
}

fn read(reader: usize, key: &str, seen: &[i64], list: &List, edges: &mut [Vec<Edge>]) {
    // What was reported as phantom or refused has no place in the order.
    let last = seen.iter().rev().find_map(|element| list.position.get(element));
    if let Some(last) = last {
        add(edges, list.writer[&list.order[*last]], reader, Kind::Wr, Some(key));
    }
    // The first that the reader did not do itself: what it appends comes behind its own read in any case.
    let next = last.map_or(0, |last| last + 1);
    let next = list.order[next..].iter().map(|element| list.writer[element]).find(|by| *by != reader);
    match next {
        Some(by) => add(edges, reader, by, Kind::Rw, Some(key)),
        None => list.unseen.iter().for_each(|by| add(edges, reader, *by, Kind::Rw, Some(key))),
    }
}

fn processes(txns: &[Txn<'_>], happened: &[bool], edges: &mut [Vec<Edge>]) {
    let mut last: HashMap<Process, usize> = HashMap::new();
    for (id, txn) in txns.iter().enumerate().filter(|(id, _)| happened[*id]) {
        if let Some(before) = last.insert(txn.operation.process(), id) {
            add(edges, before, id, Kind::Process, None);
        }
    }
}

/// Only edges that do not follow from others: from those that were over, without those that were over before another
/// of them began.
fn real_time(txns: &[Txn<'_>], happened: &[bool], edges: &mut [Vec<Edge>]) {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (id, txn) in txns.iter().enumerate().filter(|(id, _)| happened[*id]) {
        moments.push((txn.operation.began(), false, id));
        // One of unknown outcome is never over.
        moments.extend(txn.operation.ended().map(|ended| (ended, true, id)));
    }
    moments.sort_unstable();
    let mut frontier: Vec<usize> = Vec::new();
    let mut before: HashMap<usize, Vec<usize>> = HashMap::new();
    for (_, over, id) in moments {
        if over {
            let superseded = before.remove(&id).expect("it began before it was over");
            frontier.retain(|other| !superseded.contains(other));
            frontier.push(id);
        } else {
            frontier.iter().for_each(|other| add(edges, *other, id, Kind::Realtime, None));
            before.insert(id, frontier.clone());
        }
    }
}
