//! What a command does: a pure function of the state and the command. No clock, no randomness, no order but that
//! of keys, so that every node comes to the same result.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use bytes::Bytes;

use super::{
    checks::{check_limits, holds},
    directory::Directory,
    leases::{LeaseChange, LeaseFault, Leases, TouchedLeases},
    merge::EntryVisit,
    page::size_bytes,
    txn_reads::{Work, read_too_much, removed_too_much},
};
use crate::{
    StoreError,
    change_log::{Change, Replaced},
    command::{Command, CompareTarget, RANGE_DELETE_KEYS_MAX, REPLACED_BYTES_MAX, Txn, TxnOp},
    engine::Span,
    entropy,
    lease::{EXPIRE_LEASES_MAX, Lease, LeaseKind},
    mutants::{self, Mutant},
    outcome::{Branch, OpResult, Outcome, Refusal, TxnOutcome},
    record::{KeyRange, KeyRecord, Record},
};

/// The state that a command is evaluated against.
pub(super) trait View {
    /// The current record of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError>;
    /// Visits the current records of `span`, and nothing that is hidden.
    fn scan(&self, span: &Span, visit: &mut EntryVisit<'_>) -> Result<(), StoreError>;
    /// Revision that deleted `key`, 0 where none is remembered.
    fn deleted_at(&self, key: &[u8]) -> u64;
    /// Revision of the last change.
    fn revision(&self) -> u64;
    /// Revision below which history is forgotten.
    fn compacted_revision(&self) -> u64;
    /// Members and settings.
    fn directory(&self) -> &Directory;
    /// The leases.
    fn leases(&self) -> &Leases;
}

/// Where in the log a command stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// The log's time, in milliseconds since the Unix epoch.
    pub(super) time_ms: u64,
    /// Term of the entry.
    pub(super) term: u64,
}

/// What a command does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Effects {
    /// Its answer.
    pub(super) outcome: Outcome,
    /// The changes of the next revision; None when no revision is used.
    pub(super) changes: Option<Vec<Change>>,
    /// What it makes of leases, by their ids.
    pub(super) leases: Vec<LeaseChange>,
    /// The new directory, where it differs.
    pub(super) directory: Option<Directory>,
    /// The new compacted revision.
    pub(super) compacted_revision: Option<u64>,
}

impl Effects {
    /// An answer that changes nothing.
    pub(super) fn none(outcome: Outcome) -> Self {
        Self { outcome, changes: None, leases: Vec::new(), directory: None, compacted_revision: None }
    }

    /// A refusal, which changes nothing.
    pub(super) fn refused(refusal: Refusal) -> Self {
        Self::none(Outcome::Refused(refusal))
    }
}

/// Evaluates `command` at `view`. An error is the view's: nothing is known about the command then.
pub(super) fn evaluate(view: &impl View, command: &Command, moment: Moment) -> Result<Effects, StoreError> {
    if let Some(result) = view.directory().evaluate(command) {
        return Ok(match result {
            Ok(next) => {
                let directory = (next != *view.directory()).then_some(next);
                Effects { directory, ..Effects::none(Outcome::Done) }
            }
            Err(refusal) => Effects::refused(refusal),
        });
    }
    match command {
        Command::Txn(txn) => settled(Transaction::new(view, moment).run(txn)),
        Command::ExpireLeases { term, .. } if *term != moment.term => {
            Ok(Effects::refused(Refusal::OtherTerm { decided: *term, entry: moment.term }))
        }
        Command::ExpireLeases { ids, .. } => settled(Transaction::new(view, moment).expire(ids)),
        Command::Compact(revision) => Ok(compact(view, *revision)),
        Command::PutMember { .. }
        | Command::LeaveMember(_)
        | Command::RemoveMember(_)
        | Command::SetReplicationFactor(_)
        | Command::SetClusterId(_) => unreachable!("the directory evaluates {command:?}"),
    }
}

/// A refusal is an outcome.
fn settled(result: Result<Effects, Stop>) -> Result<Effects, StoreError> {
    match result {
        Ok(effects) => Ok(effects),
        Err(Stop::Refused(refusal)) => Ok(Effects::refused(refusal)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn compact(view: &impl View, revision: u64) -> Effects {
    if revision > view.revision() {
        let reason = format!("revision {revision} is in the future; the newest is {}", view.revision());
        return Effects::refused(Refusal::InvalidArgument(reason));
    }
    if revision <= view.compacted_revision() {
        return Effects::refused(Refusal::Compacted(revision));
    }
    Effects { compacted_revision: Some(revision), ..Effects::none(Outcome::Done) }
}

/// Why a transaction ends before its end; nothing is changed then.
pub(super) enum Stop {
    Refused(Refusal),
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Where a transaction stands: a branch, and which operation of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct At(pub(super) Branch, pub(super) usize);

pub(super) fn limit(At(branch, operation): At, reason: impl Into<String>) -> Stop {
    Stop::Refused(Refusal::Limit { branch, operation: operation as u32, reason: reason.into() })
}

/// The refusal of operation `at` for what is wrong with a lease.
fn lease_fault(At(branch, operation): At, fault: LeaseFault) -> Stop {
    Stop::Refused(match fault {
        LeaseFault::Missing(lease) => Refusal::NoSuchLease { branch, operation: operation as u32, lease },
        LeaseFault::Taken(id) => Refusal::LeaseTaken(id),
        LeaseFault::TooMany => Refusal::TooManyLeases,
        LeaseFault::Limit(reason) => return limit(At(branch, operation), reason),
    })
}

/// A key that the transaction touched.
pub(super) struct Touched {
    pub(super) old: Option<Record>,
    pub(super) new: Option<Record>,
}

/// A transaction under way.
///
/// Invariants: `touched` holds what each touched key was before the transaction, and is now; nothing of it is in
/// the view; `replaced_bytes` is the size of all records that it took out.
pub(super) struct Transaction<'v, V> {
    pub(super) view: &'v V,
    moment: Moment,
    pub(super) touched: BTreeMap<Bytes, Touched>,
    leases: TouchedLeases,
    /// Some operation wrote or removed a record, so the transaction has a revision.
    mutated: bool,
    replaced_bytes: u64,
    deleted_keys: u64,
    pub(super) answer_bytes: u64,
    pub(super) work: Cell<Work>,
    /// Keys that it put and attached to a lease.
    attached: BTreeSet<Bytes>,
}

impl<'v, V: View> Transaction<'v, V> {
    fn new(view: &'v V, moment: Moment) -> Self {
        Self {
            view,
            moment,
            touched: BTreeMap::new(),
            leases: TouchedLeases::default(),
            mutated: false,
            replaced_bytes: 0,
            deleted_keys: 0,
            answer_bytes: 0,
            work: Cell::default(),
            attached: BTreeSet::new(),
        }
    }

    fn run(mut self, txn: &Txn) -> Result<Effects, Stop> {
        check_limits(txn)?;
        let mut succeeded = true;
        for compare in txn.compare.iter().filter(|_| !mutants::active(Mutant::CasNotChecked)) {
            if succeeded && !self.work.get().is_too_much() {
                let record = self.view.get(&compare.key)?;
                self.note_read(&compare.key, record.as_ref(), matches!(compare.target, CompareTarget::Value(_)));
                succeeded = holds(compare, record.as_ref());
            }
        }
        if self.work.get().is_too_much() {
            return Err(Stop::Refused(Refusal::InvalidArgument(format!("the comparisons: {}", read_too_much()))));
        }
        let (branch, operations) =
            if succeeded { (Branch::Success, &txn.success) } else { (Branch::Failure, &txn.failure) };
        let mut results = Vec::with_capacity(operations.len());
        for (at, operation) in operations.iter().enumerate() {
            results.push(self.operation(At(branch, at), operation)?);
            self.check_work(At(branch, at))?;
        }
        let settled = self.leases.settle(self.view.leases());
        settled.map_err(|fault| lease_fault(At(branch, operations.len()), fault))?;
        let revision = self.revision();
        Ok(self.into_effects(Outcome::Txn(TxnOutcome { revision, succeeded, results })))
    }

    /// Ends the first of the leases `ids`, as many as fit one revision. One does, by the limits of a lease.
    fn expire(mut self, ids: &[u64]) -> Result<Effects, Stop> {
        let mut ended = Vec::new();
        for (at, id) in ids.iter().take(EXPIRE_LEASES_MAX).enumerate() {
            if self.leases.get(self.view.leases(), *id).is_none() {
                continue;
            }
            let (keys, bytes) = self.view.leases().size(*id);
            if self.deleted_keys + keys > RANGE_DELETE_KEYS_MAX || self.replaced_bytes + bytes > REPLACED_BYTES_MAX {
                break;
            }
            self.end_lease(At(Branch::Success, at), *id)?;
            ended.push(*id);
        }
        let revision = self.revision();
        Ok(self.into_effects(Outcome::LeasesExpired { revision, ended }))
    }

    fn into_effects(mut self, outcome: Outcome) -> Effects {
        let leases = std::mem::take(&mut self.leases).into_changes(self.view.leases());
        let changes = self.mutated.then(|| self.into_changes());
        Effects { changes, leases, ..Effects::none(outcome) }
    }

    /// Revision of the state that an operation would see now.
    pub(super) fn revision(&self) -> u64 {
        self.view.revision() + u64::from(self.mutated)
    }

    fn operation(&mut self, at: At, operation: &TxnOp) -> Result<OpResult, Stop> {
        match operation {
            TxnOp::Put { key, value, content_type, lease, prev } => {
                let old = self.read(key)?;
                let revision = self.view.revision() + 1;
                let chance = mutants::active(Mutant::ChanceInApply) && entropy::random::<u64>().is_multiple_of(8);
                let new = Record {
                    create_revision: old.as_ref().map_or(revision, |r| r.create_revision),
                    mod_revision: revision,
                    version: old.as_ref().map_or(0, |r| r.version) + 1,
                    lease: *lease,
                    content_type: if chance { Some("chance".to_string()) } else { content_type.clone() },
                    value: value.clone(),
                };
                let (create_revision, version) = (new.create_revision, new.version);
                let answer = self.answer_record(at, key, if *prev { old.clone() } else { None })?;
                self.write(at, key.clone(), old, Some(new))?;
                Ok(OpResult::Put { create_revision, version, prev: answer })
            }
            TxnOp::Get { key, keys_only } => {
                let mut record = self.current(key)?;
                self.note_read(key, record.as_ref(), !keys_only);
                if *keys_only && let Some(record) = &mut record {
                    record.value = Bytes::new();
                }
                let record = self.answer_record(at, key, record)?;
                Ok(OpResult::Get(record.map(|record| KeyRecord { key: key.clone(), record })))
            }
            TxnOp::List(request) => self.list(at, request),
            TxnOp::Delete { key, prev } => {
                let Some(old) = self.read(key)? else { return Ok(OpResult::Delete { deleted: 0, prev: None }) };
                let answer = self.answer_record(at, key, if *prev { Some(old.clone()) } else { None })?;
                self.delete(at, key.clone(), old)?;
                Ok(OpResult::Delete { deleted: 1, prev: answer })
            }
            TxnOp::DeleteRange(range) => self.delete_range(at, range),
            TxnOp::GrantLease { id, ttl_ms } => self.grant_lease(at, *id, *ttl_ms, LeaseKind::Explicit),
            TxnOp::GrantLeaseFor { id, ttl_ms, kind } => self.grant_lease(at, *id, *ttl_ms, *kind),
            TxnOp::EndLease { id } => self.end_lease(at, *id).map(|deleted| OpResult::LeaseEnded { deleted }),
        }
    }

    fn grant_lease(&mut self, at: At, id: u64, ttl_ms: u64, kind: LeaseKind) -> Result<OpResult, Stop> {
        let lease = Lease { ttl_ms, granted_ms: self.moment.time_ms, kind };
        let granted = self.leases.grant(self.view.leases(), id, lease);
        granted.map(|()| OpResult::LeaseGranted { id, ttl_ms }).map_err(|fault| lease_fault(at, fault))
    }

    /// Deletes all keys that are attached to lease `id` now, and ends it. Returns how many keys those were.
    fn end_lease(&mut self, at: At, id: u64) -> Result<u64, Stop> {
        let leases = self.view.leases();
        if self.leases.get(leases, id).is_none() {
            return Err(lease_fault(at, LeaseFault::Missing(id)));
        }
        let untouched = leases.keys(id).filter(|key| !self.touched.contains_key(*key));
        let attached = |key: &Bytes| self.touched[key].new.as_ref().is_some_and(|new| new.lease == id);
        let touched = self.attached.iter().filter(|key| attached(key));
        let keys: Vec<Bytes> = untouched.chain(touched).cloned().collect();
        for key in &keys {
            let old = self.read(key)?.filter(|old| old.lease == id).ok_or_else(|| StoreError::Decode {
                what: "lease",
                reason: format!("key {key:?} should be attached to lease {id}"),
            })?;
            self.delete(at, key.clone(), old)?;
        }
        self.leases.end(self.view.leases(), id);
        Ok(keys.len() as u64)
    }

    fn delete_range(&mut self, at: At, range: &KeyRange) -> Result<OpResult, Stop> {
        let keys_max = RANGE_DELETE_KEYS_MAX - self.deleted_keys;
        let bytes_max = REPLACED_BYTES_MAX - self.replaced_bytes;
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut stop = None;
        self.scan(&Span::new(range, false), &mut |key, entry| {
            match entry.record() {
                Ok(Some(record)) if (found.len() as u64) < keys_max && bytes <= bytes_max => {
                    bytes += size_bytes(key, &record);
                    found.push((Bytes::copy_from_slice(key), record));
                    return ControlFlow::Continue(());
                }
                Ok(Some(_)) => {
                    stop = Some(limit(at, removed_too_much()));
                }
                Ok(None) => return ControlFlow::Continue(()),
                Err(error) => stop = Some(error.into()),
            }
            ControlFlow::Break(())
        })?;
        if let Some(stop) = stop {
            return Err(stop);
        }
        self.check_work(at)?;
        let deleted = found.len() as u64;
        for (key, record) in found {
            self.delete(at, key, record)?;
        }
        Ok(OpResult::Delete { deleted, prev: None })
    }

    fn delete(&mut self, at: At, key: Bytes, old: Record) -> Result<(), Stop> {
        self.deleted_keys += 1;
        if self.deleted_keys > RANGE_DELETE_KEYS_MAX {
            return Err(limit(at, format!("a transaction removes at most {RANGE_DELETE_KEYS_MAX} keys")));
        }
        self.write(at, key, Some(old), None)
    }

    /// Replaces `old`, the present record of `key`.
    fn write(&mut self, at: At, key: Bytes, old: Option<Record>, new: Option<Record>) -> Result<(), Stop> {
        self.mutated = true;
        self.replaced_bytes += old.as_ref().map_or(0, |old| size_bytes(&key, old));
        if self.replaced_bytes > REPLACED_BYTES_MAX {
            let reason = format!("a transaction replaces at most {REPLACED_BYTES_MAX} bytes; make it smaller");
            return Err(limit(at, reason));
        }
        let followed = self.leases.follow(self.view.leases(), &key, old.as_ref(), new.as_ref());
        followed.map_err(|fault| lease_fault(at, fault))?;
        if new.as_ref().is_some_and(|new| new.lease != 0) {
            self.attached.insert(key.clone());
        }
        self.touched
            .entry(key)
            .and_modify(|touched| touched.new = new.clone())
            .or_insert_with(|| Touched { old, new: new.clone() });
        Ok(())
    }

    fn into_changes(self) -> Vec<Change> {
        let view = self.view;
        let half = mutants::active(Mutant::HalfTransaction) && self.replaced_bytes > 0;
        self.touched
            .into_iter()
            .filter(|(_, touched)| touched.old.is_some() || touched.new.is_some())
            .take(if half { 1 } else { usize::MAX })
            .map(|(key, Touched { old, new })| {
                let old = match old {
                    Some(record) => Replaced::Record(record),
                    None => Replaced::Absent { deleted_at: view.deleted_at(&key) },
                };
                Change { key, new, old }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::{Compare, CompareOp, TXN_OPERATIONS_MAX, TXN_READ_BYTES_MAX, TXN_READ_KEYS_MAX},
        record::ListRequest,
        state_machine::tests::given::Given,
    };

    const MOMENT: Moment = Moment { time_ms: 1, term: 1 };

    /// So many keys with values of this size.
    fn many(keys: u64, value_bytes: usize) -> Given {
        let record = Given::record(0, value_bytes);
        Given::new((0..keys).map(|number| (format!("{number:08}").into(), record.clone())))
    }

    fn delete(number: u64) -> TxnOp {
        TxnOp::Delete { key: format!("{number:08}").into(), prev: false }
    }

    fn run(view: &Given, operations: Vec<TxnOp>) -> Effects {
        evaluate(view, &Command::Txn(Txn { success: operations, ..Txn::default() }), MOMENT).unwrap()
    }

    fn refused_at(effects: &Effects, at: u32) {
        assert!(
            matches!(&effects.outcome, Outcome::Refused(Refusal::Limit { operation, .. }) if *operation == at),
            "{:?}",
            effects.outcome
        );
        assert_eq!((&effects.changes, effects.compacted_revision), (&None, None), "nothing is changed");
    }

    #[test]
    fn a_transaction_removes_so_many_keys_and_no_more() {
        let all = || TxnOp::DeleteRange(KeyRange::default());
        let effects = run(&many(RANGE_DELETE_KEYS_MAX, 1), vec![all(), all()]);
        assert_eq!(effects.changes.unwrap().len() as u64, RANGE_DELETE_KEYS_MAX);
        refused_at(&run(&many(RANGE_DELETE_KEYS_MAX + 1, 1), vec![all()]), 0);
        let after_the_last =
            TxnOp::Put { key: "99999999".into(), value: Bytes::new(), content_type: None, lease: 0, prev: false };
        let view = many(RANGE_DELETE_KEYS_MAX, 1);
        refused_at(&run(&view, vec![all(), after_the_last, delete(99_999_999)]), 2);
    }

    fn count() -> TxnOp {
        TxnOp::List(ListRequest {
            range: KeyRange::default(),
            limit: 1,
            revision: 0,
            keys_only: false,
            count_only: true,
            descending: false,
            after: None,
        })
    }

    fn put(key: &'static str) -> TxnOp {
        TxnOp::Put { key: key.into(), value: Bytes::new(), content_type: None, lease: 0, prev: false }
    }

    #[test]
    fn operations_of_a_transaction_share_the_keys_it_may_read() {
        let view = many(TXN_READ_KEYS_MAX / 2, 1);
        let effects = run(&view, vec![count(), count()]);
        let Outcome::Txn(outcome) = effects.outcome else { panic!("{:?}", effects.outcome) };
        let counted = |result: &OpResult| matches!(result, OpResult::List(page) if page.count == TXN_READ_KEYS_MAX / 2);
        assert!(outcome.results.iter().all(counted), "{outcome:?}");
        refused_at(&run(&view, vec![put("before"), count(), count()]), 2);
        let get = TxnOp::Get { key: "00000000".into(), keys_only: true };
        refused_at(&run(&view, vec![count(), count(), get]), 2);
    }

    #[test]
    fn what_a_transaction_removed_costs_it_when_read_again() {
        let view = many(TXN_READ_KEYS_MAX / 2, 1);
        let all = TxnOp::DeleteRange(KeyRange::default());
        assert!(run(&view, vec![all.clone(), count()]).changes.is_some());
        refused_at(&run(&view, vec![all, count(), count()]), 2);
    }

    #[test]
    fn a_transaction_that_reads_too_many_bytes_is_refused() {
        const MIB: usize = 1024 * 1024;
        let view = many(TXN_READ_BYTES_MAX / MIB as u64, MIB);
        refused_at(&run(&view, vec![count()]), 0);
        let get = |keys_only| TxnOp::Get { key: "00000000".into(), keys_only };
        assert!(matches!(run(&view, vec![get(true); TXN_OPERATIONS_MAX]).outcome, Outcome::Txn(_)));
        let compare = |target: CompareTarget| {
            let compare = Compare { key: "00000000".into(), target, op: CompareOp::NotEqual };
            let txn = Txn { compare: vec![compare; 300], ..Txn::default() };
            evaluate(&view, &Command::Txn(txn), MOMENT).unwrap().outcome
        };
        assert!(matches!(compare(CompareTarget::Version(2)), Outcome::Txn(_)));
        let refused = compare(CompareTarget::Value(Bytes::new()));
        assert!(matches!(&refused, Outcome::Refused(Refusal::InvalidArgument(why)) if why.contains("comparisons")));
    }

    #[test]
    fn a_transaction_replaces_so_many_bytes_and_no_more() {
        const MIB: usize = 1024 * 1024;
        let view = many(100, MIB);
        refused_at(&run(&view, vec![delete(0), TxnOp::DeleteRange(KeyRange::default())]), 1);
        refused_at(&run(&view, (0..64).map(delete).collect()), 63);
        assert_eq!(run(&view, (0..63).map(delete).collect()).changes.unwrap().len(), 63);
        let put = |number: u64| TxnOp::Put {
            key: format!("{number:08}").into(),
            value: Bytes::new(),
            content_type: None,
            lease: 0,
            prev: false,
        };
        refused_at(&run(&view, (0..64).map(put).collect()), 63);
    }

    #[test]
    fn a_transaction_has_so_many_operations_and_no_more() {
        let view = many(0, 0);
        let operations = |count| vec![TxnOp::Get { key: "0".into(), keys_only: true }; count];
        assert!(matches!(run(&view, operations(TXN_OPERATIONS_MAX)).outcome, Outcome::Txn(_)));
        refused_at(&run(&view, operations(TXN_OPERATIONS_MAX + 1)), TXN_OPERATIONS_MAX as u32);
    }

    #[test]
    fn listings_of_a_transaction_share_its_room() {
        let view = many(1_000, 1024 * 1024);
        let list = TxnOp::List(ListRequest {
            range: KeyRange::default(),
            limit: 1_000,
            revision: 0,
            keys_only: false,
            count_only: false,
            descending: false,
            after: None,
        });
        let Outcome::Txn(outcome) = run(&view, vec![list.clone()]).outcome else { panic!("it is within its limits") };
        let OpResult::List(page) = &outcome.results[0] else { panic!("{:?}", outcome.results) };
        assert!(page.more && page.items.len() == 7, "{} items", page.items.len());
        refused_at(&run(&view, vec![list.clone(), list]), 1);
    }
}
