//! Sets, banks and lists replayed in the order of revisions.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::super::append::txn::{self, Micro};
use super::super::bank::{self, Balances, Transfer};
use super::order::{Floors, Taken};
use crate::history::{Operation, Outcome};

/// A read that the replay contradicts.
#[derive(Debug)]
pub(super) struct WrongRead<'a> {
    pub(super) operation: Operation<'a>,
    pub(super) message: String,
}

/// Combinations of transfers of unknown outcome that are tried, at most, to explain one read; one with more
/// possibilities than that passes.
const COMBINATIONS_MAX: usize = 10_000;

/// A read of a set at revision R has what was added up to R and nothing that was added later.
pub(super) fn sets<'a>(operations: &[Operation<'a>]) -> Vec<WrongRead<'a>> {
    let adds = operations.iter().filter(|operation| operation.f() == "add" && operation.is_ok());
    let added: Vec<(u64, i64)> =
        adds.filter_map(|operation| Some((operation.revision()?, operation.invoke.value.as_i64()?))).collect();
    let mut wrong = Vec::new();
    for operation in operations.iter().filter(|operation| operation.f() == "read" && operation.key().is_none()) {
        let (Some(revision), Some(Value::Array(items))) = (operation.revision(), operation.answer()) else { continue };
        let seen: HashSet<i64> = items.iter().filter_map(Value::as_i64).collect();
        for (at, element) in &added {
            if (*at <= revision) != seen.contains(element) {
                let message = format!(
                    "{element} was added at revision {at} and is {} a read at {revision}",
                    if *at <= revision { "not in" } else { "in" }
                );
                wrong.push(WrongRead { operation: *operation, message });
            }
        }
    }
    wrong
}

/// Between two reads of a bank lie the transfers between their revisions.
pub(super) fn banks<'a>(operations: &[Operation<'a>], floors: &Floors, taken: &Taken) -> Vec<WrongRead<'a>> {
    let transfers = operations.iter().filter(|operation| operation.f() == "transfer");
    let mut known: Vec<(u64, Transfer)> = Vec::new();
    let mut unknown: Vec<(&Operation<'a>, Transfer)> = Vec::new();
    for operation in transfers {
        let Some(transfer) = bank::transfer(&operation.invoke.value) else { continue };
        match (operation.outcome(), operation.revision()) {
            (Outcome::Ok, Some(revision)) => known.push((revision, transfer)),
            (Outcome::Info, _) => unknown.push((operation, transfer)),
            (Outcome::Ok, None) | (Outcome::Fail, _) => {}
        }
    }
    known.sort_by_key(|(revision, _)| *revision);
    let reads = operations.iter().filter(|operation| operation.f() == "read" && operation.key().is_none());
    let mut reads: Vec<(u64, &Operation<'a>, Balances)> = reads
        .filter_map(|operation| Some((operation.revision()?, operation, bank::balances(operation.answer()?)?)))
        .collect();
    reads.sort_by_key(|(revision, operation, _)| (*revision, operation.began()));
    let mut wrong = Vec::new();
    for pair in reads.windows(2) {
        let [(from, _, before), (upto, operation, after)] = pair else { unreachable!("windows of two") };
        let mut difference: BTreeMap<&str, i64> =
            after.iter().map(|(name, balance)| (name.as_str(), *balance)).collect();
        for (name, balance) in before {
            *difference.entry(name).or_default() -= balance;
        }
        let begin = known.partition_point(|(revision, _)| revision <= from);
        let end = known.partition_point(|(revision, _)| revision <= upto);
        known[begin..end].iter().for_each(|(_, transfer)| shift(&mut difference, transfer, -1));
        let may: Vec<&Transfer> = unknown
            .iter()
            .filter(|(asked, _)| operation.ended().is_none_or(|ended| asked.began() < ended))
            .filter(|(asked, _)| floors.revision_at(asked.began()) < *upto)
            .map(|(_, transfer)| transfer)
            .collect();
        let free = taken.free_between(*from, *upto);
        let mut budget = COMBINATIONS_MAX;
        if !explained(&mut difference, &may, &mut vec![false; may.len()], free, &mut budget) {
            let message =
                format!("the balances at revisions {from} and {upto} differ by other than the transfers between");
            wrong.push(WrongRead { operation: **operation, message });
        }
    }
    wrong
}

fn shift<'a>(difference: &mut BTreeMap<&'a str, i64>, transfer: &'a Transfer, sign: i64) {
    *difference.entry(&transfer.from).or_default() -= sign * transfer.amount;
    *difference.entry(&transfer.to).or_default() += sign * transfer.amount;
}

/// Whether some of the transfers, `free` of them at most, make the difference.
fn explained<'a>(
    difference: &mut BTreeMap<&'a str, i64>,
    may: &[&'a Transfer],
    used: &mut [bool],
    free: u64,
    budget: &mut usize,
) -> bool {
    let Some((account, gap)) = difference.iter().find(|(_, gap)| **gap != 0).map(|(name, gap)| (*name, *gap)) else {
        return true;
    };
    if free == 0 {
        return false;
    }
    for id in 0..may.len() {
        let touches = if gap < 0 { &may[id].from } else { &may[id].to } == account;
        if used[id] || !touches {
            continue;
        }
        if *budget == 0 {
            return true;
        }
        *budget -= 1;
        used[id] = true;
        shift(difference, may[id], -1);
        if explained(difference, may, used, free - 1, budget) {
            return true;
        }
        shift(difference, may[id], 1);
        used[id] = false;
    }
    false
}

/// A transaction at revision R reads of each list what was appended below R (at R, too, if it appends nothing), in the
/// order of revisions; what transactions of unknown outcome appended may stand anywhere between.
pub(super) fn lists<'a>(operations: &[Operation<'a>], floors: &Floors) -> Vec<WrongRead<'a>> {
    let transactions = operations.iter().filter(|operation| operation.f() == "txn");
    let txns: Vec<txn::Txn<'a>> = transactions.filter_map(|operation| txn::parse(operation).ok()).collect();
    let mut known: HashMap<&str, Vec<(u64, i64)>> = HashMap::new();
    let mut unknown: HashMap<(&str, i64), u64> = HashMap::new();
    let mut by_revision: Vec<&txn::Txn<'a>> = txns.iter().collect();
    by_revision.sort_by_key(|txn| txn.operation.revision());
    for txn in by_revision {
        for micro in &txn.micros {
            let Micro::Append { key, element } = micro else { continue };
            match (txn.outcome, txn.operation.revision()) {
                (Outcome::Ok, Some(revision)) => known.entry(key).or_default().push((revision, *element)),
                (Outcome::Info, _) => {
                    unknown.insert((key, *element), floors.revision_at(txn.operation.began()));
                }
                (Outcome::Ok, None) | (Outcome::Fail, _) => {}
            }
        }
    }
    let mut wrong = Vec::new();
    for txn in &txns {
        let Some(revision) = txn.operation.revision() else { continue };
        let newest = if txn.appends() { revision.saturating_sub(1) } else { revision };
        for (key, seen) in txn.external_reads() {
            let appended = known.get(key).map_or(&[][..], Vec::as_slice);
            let upto = appended.partition_point(|(at, _)| *at <= newest);
            let certain =
                seen.iter().filter(|element| unknown.get(&(key, **element)).is_none_or(|floor| *floor >= newest));
            if !certain.eq(appended[..upto].iter().map(|(_, element)| element)) {
                let expected: Vec<i64> = appended[..upto].iter().map(|(_, element)| *element).collect();
                let message =
                    format!("{key} at revision {newest} was read as {seen:?}; the answers make it {expected:?}");
                wrong.push(WrongRead { operation: txn.operation, message });
            }
        }
    }
    wrong
}
