//! The order of the versions of each list, from the longest read, and what is wrong with the lists themselves.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::super::tally::Tally;
use super::txn::{Micro, Txn};
use crate::history::Outcome;

/// What is known of one list.
#[derive(Debug, Default)]
pub(super) struct List {
    /// Elements of transactions that were not refused, in the order of the longest read.
    pub(super) order: Vec<i64>,
    /// Element -> position in `order`.
    pub(super) position: HashMap<i64, usize>,
    /// Element -> transaction, attempts that were refused included.
    pub(super) writer: HashMap<i64, usize>,
    /// Transactions that certainly appended something that no read saw: behind all of `order`.
    pub(super) unseen: Vec<usize>,
}

/// Key -> its list. Reports what is wrong with it.
pub(super) fn versions(txns: &[Txn<'_>], tally: &mut Tally) -> HashMap<String, List> {
    let mut lists = writers(txns, tally);
    let mut longest: HashMap<&str, (usize, &[i64])> = HashMap::new();
    for (id, txn) in txns.iter().enumerate() {
        for (key, seen) in txn.reads() {
            let best = longest.entry(key).or_insert((id, seen));
            if seen.len() > best.1.len() {
                *best = (id, seen);
            }
        }
    }
    for (id, txn) in txns.iter().enumerate() {
        for (key, seen) in txn.reads() {
            let (longest_by, whole) = longest[key];
            if !whole.starts_with(seen) {
                let message = format!("{seen:?} and {whole:?} of {key} cannot both have been");
                let events = both(txn, &txns[longest_by]);
                tally.add("incompatible-order", Some(key), message, events, json!([seen, whole]));
            }
            elements(txns, id, key, seen, lists.entry(key.into()).or_default(), tally);
        }
    }
    for (key, (id, whole)) in longest {
        let list = lists.entry(key.into()).or_default();
        dirty(txns, id, key, whole, list, tally);
        let refused = |element: &i64| list.writer.get(element).is_none_or(|by| txns[*by].outcome == Outcome::Fail);
        let mut met = HashSet::new();
        list.order = whole.iter().copied().filter(|element| !refused(element) && met.insert(*element)).collect();
        list.position = list.order.iter().enumerate().map(|(at, element)| (*element, at)).collect();
    }
    for list in lists.values_mut() {
        let unseen = list.writer.iter().filter(|(element, _)| !list.position.contains_key(element));
        let mut unseen: Vec<usize> = unseen.map(|(_, by)| *by).filter(|by| txns[*by].outcome == Outcome::Ok).collect();
        unseen.sort_unstable();
        unseen.dedup();
        list.unseen = unseen;
    }
    lists
}

fn both(a: &Txn<'_>, b: &Txn<'_>) -> Vec<u64> {
    a.operation.events().into_iter().chain(b.operation.events()).collect()
}

fn writers(txns: &[Txn<'_>], tally: &mut Tally) -> HashMap<String, List> {
    let mut lists: HashMap<String, List> = HashMap::new();
    for (id, txn) in txns.iter().enumerate() {
        for micro in &txn.micros {
            let Micro::Append { key, element } = micro else { continue };
            let list = lists.entry(key.clone()).or_default();
            if let Some(other) = list.writer.insert(*element, id) {
                let message =
                    format!("{element} is appended to {key} twice: the workload must append each number once");
                tally.add("malformed", Some(key), message, both(&txns[other], txn), Value::Null);
            }
        }
    }
    lists
}

/// What no read may contain.
fn elements(txns: &[Txn<'_>], reader: usize, key: &str, seen: &[i64], list: &List, tally: &mut Tally) {
    let read = &txns[reader];
    let mut met = HashSet::with_capacity(seen.len());
    for element in seen {
        if !met.insert(element) {
            let message = format!("{element} is in {key} twice: {seen:?}");
            tally.add("duplicate-append", Some(key), message, read.operation.events(), json!(seen));
        }
        match list.writer.get(element) {
            None => {
                let message = format!("{element} is in {key}, and nobody ever tried to append it");
                tally.add("phantom-append", Some(key), message, read.operation.events(), json!(seen));
            }
            Some(by) if txns[*by].outcome == Outcome::Fail => {
                let message = format!("{element} was read from {key}, but its transaction was refused");
                tally.add("G1a", Some(key), message, both(&txns[*by], read), json!(seen));
            }
            Some(_) => {}
        }
    }
    // An own append may be read at any time; what others did only as a whole.
    let others = seen.iter().rfind(|element| list.writer.get(element) != Some(&reader));
    let Some((element, by)) = others.and_then(|element| Some((element, *list.writer.get(element)?))) else { return };
    let last = txns[by].micros.iter().rev().find_map(|micro| match micro {
        Micro::Append { key: of, element } if of == key => Some(element),
        Micro::Append { .. } | Micro::Read { .. } => None,
    });
    if last != Some(element) {
        let message = format!("{key} was read up to {element}, which its transaction followed by more");
        tally.add("G1b", Some(key), message, both(&txns[by], read), json!(seen));
    }
}

/// A transaction that was not refused built on one that was.
fn dirty(txns: &[Txn<'_>], reader: usize, key: &str, whole: &[i64], list: &List, tally: &mut Tally) {
    let mut refused: Option<(i64, usize)> = None;
    for element in whole {
        let Some(by) = list.writer.get(element) else { continue };
        match refused {
            _ if txns[*by].outcome == Outcome::Fail => refused = refused.or(Some((*element, *by))),
            Some((before, of)) => {
                let message = format!("{element} was appended to {key} behind {before}, whose transaction was refused");
                let events = both(&txns[of], &txns[*by]).into_iter().chain(txns[reader].operation.events()).collect();
                tally.add("dirty-append", Some(key), message, events, json!(whole));
                return;
            }
            None => {}
        }
    }
}
