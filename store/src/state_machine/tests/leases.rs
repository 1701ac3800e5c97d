//! Leases, and what is attached to them, against a model.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use proptest::{prelude::*, test_runner::Config as ProptestConfig};

use super::{given::Given, *};
use crate::{
    change_log::{Change, Replaced},
    command::{RANGE_DELETE_KEYS_MAX, REPLACED_BYTES_MAX},
    lease::{
        LEASE_BYTES_MAX, LEASE_KEYS_MAX, LEASES_KEPT_PER_KIND, LEASES_MAX, Lease, LeaseKind, LeaseObserver, LeaseRecord,
    },
    outcome::Refusal,
    record::Record,
    state_machine::{
        evaluate::{Effects, Moment, evaluate},
        leases::{LeaseChange, Leases},
        load::hash_engine,
        page::size_bytes,
    },
};

/// Term of all entries of [`entry`].
const TERM: u64 = 1;
const KEYS: u8 = 8;
const IDS: u64 = 5;

#[derive(Debug, Clone)]
enum Op {
    Put(u8, u64),
    Delete(u8),
    DeleteRange(u8, u8),
    /// Of a kind that ends with its keys, or not.
    Grant(u64, bool),
    End(u64),
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Vec<Op>),
    Expire(Vec<u64>, bool),
    Persist,
    Reopen,
    /// A snapshot, by which the state is rebuilt.
    Rebuild,
}

fn key(number: u8) -> Bytes {
    Bytes::from(format!("key{number:02}"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..KEYS, 0..=IDS).prop_map(|(key, lease)| Op::Put(key, lease)),
        1 => (0..KEYS).prop_map(Op::Delete),
        1 => (0..KEYS, 0..KEYS).prop_map(|(start, end)| Op::DeleteRange(start, end)),
        3 => (1..=IDS, prop::bool::ANY).prop_map(|(id, with_keys)| Op::Grant(id, with_keys)),
        1 => (1..=IDS).prop_map(Op::End),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(op(), 1..5).prop_map(Step::Txn),
        2 => (prop::collection::vec(1..=IDS, 0..4), prop::bool::weighted(0.8))
            .prop_map(|(ids, right)| Step::Expire(ids, right)),
        2 => Just(Step::Persist),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
    ]
}

/// The lease of each key (0 = none), and the leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    keys: BTreeMap<Bytes, u64>,
    leases: BTreeSet<u64>,
    /// Those of them that end with their keys.
    with_keys: BTreeSet<u64>,
}

impl Model {
    fn end(&mut self, id: u64) -> bool {
        self.keys.retain(|_, lease| *lease != id);
        self.with_keys.remove(&id);
        self.leases.remove(&id)
    }

    /// What the end of a transaction does.
    fn settle(&mut self) {
        let keyless: Vec<u64> =
            self.with_keys.iter().copied().filter(|id| self.keys.values().all(|lease| lease != id)).collect();
        keyless.into_iter().for_each(|id| assert!(self.end(id)));
    }

    /// False where it is refused: nothing of the transaction is done then.
    fn apply(&mut self, op: &Op) -> bool {
        match op {
            Op::Put(_, lease) if *lease != 0 && !self.leases.contains(lease) => return false,
            Op::Put(number, lease) => {
                self.keys.insert(key(*number), *lease);
            }
            Op::Delete(number) => {
                self.keys.remove(&key(*number));
            }
            Op::DeleteRange(start, end) => self.keys.retain(|k, _| !(key(*start) <= *k && *k < key(*end))),
            Op::Grant(id, with_keys) => {
                let granted = self.leases.insert(*id);
                if granted && *with_keys {
                    self.with_keys.insert(*id);
                }
                return granted;
            }
            Op::End(id) => return self.end(*id),
        }
        true
    }
}

fn command(ops: &[Op]) -> Command {
    let success = ops.iter().map(|op| match op {
        Op::Put(number, lease) => TxnOp::Put {
            key: key(*number),
            value: Bytes::from(vec![1; *number as usize]),
            content_type: None,
            lease: *lease,
            prev: false,
        },
        Op::Delete(number) => TxnOp::Delete { key: key(*number), prev: false },
        Op::DeleteRange(start, end) => TxnOp::DeleteRange(KeyRange { start: key(*start), end: Some(key(*end)) }),
        Op::Grant(id, false) => TxnOp::GrantLease { id: *id, ttl_ms: 1_000 + *id },
        Op::Grant(id, true) => TxnOp::GrantLeaseFor { id: *id, ttl_ms: 1_000 + *id, kind: LeaseKind::Key },
        Op::End(id) => TxnOp::EndLease { id: *id },
    });
    Command::Txn(Txn { success: success.collect(), ..Txn::default() })
}

fn check(fixture: &Fixture, model: &Model) {
    let found: BTreeMap<Bytes, u64> = fixture.dump().into_iter().map(|(key, record)| (key, record.lease)).collect();
    assert_eq!(found, model.keys);
    let ids: BTreeSet<u64> = fixture.state.leases(0, usize::MAX).items.iter().map(|record| record.id).collect();
    assert_eq!(ids, model.leases);
    assert_eq!(fixture.state.lease_count(), ids.len());
    for id in ids {
        let view = fixture.state.lease(id, usize::MAX).unwrap();
        let expected: Vec<Bytes> =
            model.keys.iter().filter(|(_, lease)| **lease == id).map(|(key, _)| key.clone()).collect();
        assert_eq!((view.key_count, view.keys), (expected.len() as u64, expected), "lease {id}");
        assert_eq!(view.record.lease.ttl_ms, 1_000 + id);
        assert_eq!(view.record.lease.kind.ends_with_its_keys(), model.with_keys.contains(&id));
    }
}

/// What the engine holds hashes to what apply counted, and reads as what apply has in memory.
fn check_engine(fixture: &Fixture) {
    fixture.persist_all();
    let live = fixture.machine.shared.live.read();
    assert_eq!(hash_engine(&*live.generation.engine, &Default::default()).unwrap(), live.meta.hash);
    assert_eq!(Leases::read(&*live.generation.engine).unwrap(), *live.leases);
}

fn run(steps: &[Step], engine: EngineKind) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), engine);
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Txn(ops) => {
                let mut next = model.clone();
                let done = ops.iter().all(|op| next.apply(op));
                next.settle();
                let revision = fixture.state.revision();
                let outcome = fixture.run(&command(ops));
                assert_eq!(matches!(outcome, Outcome::Txn(_)), done, "{ops:?}: {outcome:?}");
                if done {
                    model = next;
                } else {
                    assert_eq!(fixture.state.revision(), revision);
                }
            }
            Step::Expire(ids, right) => {
                let term = if *right { TERM } else { TERM + 1 };
                let expected: BTreeSet<u64> = ids.iter().copied().filter(|id| model.leases.contains(id)).collect();
                match fixture.run(&Command::ExpireLeases { ids: ids.clone(), term }) {
                    Outcome::LeasesExpired { ended, .. } => {
                        assert!(*right);
                        assert_eq!(ended.iter().copied().collect::<BTreeSet<_>>(), expected);
                        expected.into_iter().for_each(|id| assert!(model.end(id)));
                    }
                    Outcome::Refused(Refusal::OtherTerm { .. }) => assert!(!right),
                    other => panic!("{other:?}"),
                }
            }
            Step::Persist => fixture.persist_all(),
            Step::Reopen | Step::Rebuild => {
                fixture.persist_all();
                let mut options = options(engine);
                if matches!(step, Step::Rebuild) {
                    runtime.block_on(fixture.build());
                    options.power_lost = true;
                }
                let log = fixture.log.clone();
                drop(fixture);
                fixture = Fixture::open_with(Arc::new(RealFs), dir.path(), options).unwrap();
                fixture.machine.shared.stop_writer();
                fixture.machine.writer.take().unwrap().join().unwrap();
                fixture.catch_up(&log);
            }
        }
        check(&fixture, &model);
    }
    check_engine(&fixture);
    check(&fixture, &model);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn a_lease_holds_exactly_the_keys_that_name_it_in_memory(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, EngineKind::Memory);
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn a_lease_holds_exactly_the_keys_that_name_it_on_disk(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, SLED);
    }
}

#[derive(Debug, Default)]
struct Noted(Mutex<Vec<(u64, bool)>>);

impl LeaseObserver for Noted {
    fn granted(&self, record: LeaseRecord) {
        self.0.lock().push((record.id, true));
    }

    fn ended(&self, id: u64) {
        self.0.lock().push((id, false));
    }
}

#[test]
fn an_observer_is_told_of_what_happened_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    let noted = Arc::new(Noted::default());
    fixture.state.observe_leases(noted.clone());
    for ops in [
        vec![Op::Grant(3, false)],
        vec![Op::Grant(1, false), Op::Grant(3, false)],
        vec![Op::Grant(2, false), Op::Put(1, 2)],
        vec![Op::Grant(4, false), Op::End(4)],
        vec![Op::Put(2, 0)],
    ] {
        fixture.run(&command(&ops));
    }
    fixture.run(&Command::ExpireLeases { ids: vec![2], term: TERM + 1 });
    fixture.run(&Command::ExpireLeases { ids: vec![9, 3, 2, 2], term: TERM });
    assert_eq!(*noted.0.lock(), [(3, true), (2, true), (2, false), (3, false)]);
}

#[test]
fn the_lease_of_a_put_ends_with_its_last_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    let noted = Arc::new(Noted::default());
    fixture.state.observe_leases(noted.clone());
    let mut run = |ops: &[Op]| {
        assert!(matches!(fixture.run(&command(ops)), Outcome::Txn(_)), "{ops:?}");
        std::mem::take(&mut *noted.0.lock())
    };
    assert_eq!(run(&[Op::Grant(1, true), Op::Put(1, 1)]), [(1, true)]);
    assert_eq!(run(&[Op::Grant(2, true), Op::Put(1, 2)]), [(1, false), (2, true)], "overwritten");
    assert_eq!(run(&[Op::Put(2, 2), Op::Put(1, 0)]), [], "another key is attached to it");
    assert_eq!(run(&[Op::Put(2, 0)]), [(2, false)], "detached");
    assert_eq!(run(&[Op::Grant(3, true), Op::Put(3, 3)]), [(3, true)]);
    assert_eq!(run(&[Op::DeleteRange(0, KEYS)]), [(3, false)], "deleted");
    assert_eq!(run(&[Op::Grant(4, true), Op::Put(4, 4), Op::Grant(5, true), Op::Put(4, 5)]), [(5, true)], "never seen");
    assert_eq!(run(&[Op::Grant(6, false), Op::Put(4, 6)]), [(5, false), (6, true)]);
    assert_eq!(run(&[Op::Delete(4)]), [], "an explicit one stays");
    assert_eq!(fixture.state.lease_count(), 1);
}

/// A number of leases of each kind, without keys.
fn counted(counts: [usize; 5]) -> Given {
    let mut view = Given::new([]);
    let mut id = 1_000_000_000;
    for (kind, count) in LeaseKind::ALL.into_iter().zip(counts) {
        let lease = Lease { ttl_ms: 1_000, granted_ms: 1, kind };
        let change = |id| LeaseChange { id, old: None, new: Some(lease) };
        let changes: Vec<LeaseChange> = (id..).take(count).map(change).collect();
        id += count as u64;
        view.leases.publish(&changes, &[]);
    }
    view
}

#[test]
fn no_kind_of_lease_takes_the_room_that_is_kept_for_others() {
    const KEPT: usize = LEASES_KEPT_PER_KIND;
    let grant = |id, kind| TxnOp::GrantLeaseFor { id, ttl_ms: 1_000, kind };
    let put = |lease| TxnOp::Put { key: bytes("k"), value: Bytes::new(), content_type: None, lease, prev: false };
    let refused = |view: &Given, success: Vec<TxnOp>| {
        let effects = evaluated(view, &Command::Txn(Txn { success, ..Txn::default() }));
        let refused = effects.outcome == Outcome::Refused(Refusal::TooManyLeases);
        assert!(refused || matches!(effects.outcome, Outcome::Txn(_)), "{:?}", effects.outcome);
        assert!(!refused || (effects.changes.is_none() && effects.leases.is_empty()), "nothing is changed");
        refused
    };
    let most = LEASES_MAX - 4 * KEPT;
    let mut view = counted([0, most - 1, 0, 0, 0]);
    let key = |id| vec![grant(id, LeaseKind::Key), put(id)];
    assert!(!refused(&view, key(1)));
    let first = LeaseChange { id: 1, old: None, new: Some(Lease { ttl_ms: 1, granted_ms: 1, kind: LeaseKind::Key }) };
    let record = Given::record(1, 0);
    let attach = Change { key: bytes("k"), new: Some(record.clone()), old: Replaced::Absent { deleted_at: 0 } };
    view.leases.publish(&[first], &[attach]);
    view.records.insert(bytes("k"), record);
    assert!(!refused(&view, key(2)), "it takes the place of the one before");
    let other = TxnOp::Put { key: bytes("other"), value: Bytes::new(), content_type: None, lease: 3, prev: false };
    assert!(refused(&view, vec![grant(3, LeaseKind::Key), other]), "one more");
    for kind in LeaseKind::ALL.into_iter().filter(|kind| *kind != LeaseKind::Key) {
        assert!(!refused(&view, vec![grant(4, kind)]), "{kind:?}");
    }
    // As a release before there were kinds may have left them.
    let before = counted([LEASES_MAX, 0, 0, 0, KEPT]);
    assert!(refused(&before, vec![grant(1, LeaseKind::Explicit)]));
    assert!(!refused(&before, vec![grant(1, LeaseKind::Lock)]));
    assert!(refused(&before, vec![grant(1, LeaseKind::Name)]), "beyond what is kept for it");
    let ended = TxnOp::EndLease { id: 1_000_000_000 };
    assert!(!refused(&before, vec![ended, grant(1, LeaseKind::Explicit)]));
}

/// `sizes[i]` keys with values of `value_bytes` are attached to lease i + 1.
fn attached(sizes: &[u64], value_bytes: usize) -> Given {
    let keys = |(id, keys): (u64, &u64)| {
        let record = Given::record(id, value_bytes);
        (0..*keys).map(move |number| (Bytes::from(format!("{id}/{number:06}")), record.clone()))
    };
    let mut view = Given::new((1..).zip(sizes).flat_map(keys));
    let lease = Lease { ttl_ms: 1_000, granted_ms: 1, kind: LeaseKind::Explicit };
    for id in 1..=sizes.len() as u64 {
        let of_lease = view.records.iter().filter(|(_, record)| record.lease == id);
        let attach = |(key, record): (&Bytes, &Record)| Change {
            key: key.clone(),
            new: Some(record.clone()),
            old: Replaced::Absent { deleted_at: 0 },
        };
        let changes: Vec<Change> = of_lease.map(attach).collect();
        view.leases.publish(&[LeaseChange { id, old: None, new: Some(lease) }], &changes);
    }
    view
}

fn evaluated(view: &Given, command: &Command) -> Effects {
    evaluate(view, command, Moment { time_ms: 1, term: TERM }).unwrap()
}

fn expire(view: &Given, ids: &[u64]) -> (Vec<u64>, usize) {
    let effects = evaluated(view, &Command::ExpireLeases { ids: ids.to_vec(), term: TERM });
    let Outcome::LeasesExpired { ended, .. } = effects.outcome else { panic!("{:?}", effects.outcome) };
    assert_eq!(effects.leases.len(), ended.len());
    (ended, effects.changes.map_or(0, |changes| changes.len()))
}

fn put_with(lease: u64, key: &str, value_bytes: usize) -> Command {
    let value = Bytes::from(vec![0; value_bytes]);
    Command::Txn(Txn::unconditional(TxnOp::Put { key: bytes(key), value, content_type: None, lease, prev: false }))
}

#[test]
fn a_lease_has_so_many_bytes_and_no_more_and_its_end_fits_one_revision() {
    const MIB: usize = 1024 * 1024;
    let room = |view: &Given| LEASE_BYTES_MAX - view.leases.size(1).1;
    let view = attached(&[60, 10], MIB);
    let fits = room(&view) - size_bytes(b"1/x", &Record { value: Bytes::new(), ..Given::record(1, MIB) });
    let outcome = evaluated(&view, &put_with(1, "1/x", fits as usize)).outcome;
    assert!(matches!(outcome, Outcome::Txn(_)), "{outcome:?}");
    let refused = evaluated(&view, &put_with(1, "1/x", fits as usize + 1));
    assert!(matches!(refused.outcome, Outcome::Refused(Refusal::Limit { operation: 0, .. })), "{:?}", refused.outcome);
    assert_eq!((refused.changes, refused.leases), (None, vec![]));
    assert_eq!(expire(&view, &[1, 2]), (vec![1], 60), "both are more than one revision takes");
    assert_eq!(expire(&view, &[2, 1]), (vec![2], 10));
    assert!(view.leases.size(1).1 + view.leases.size(2).1 > REPLACED_BYTES_MAX);
}

#[test]
fn a_lease_has_so_many_keys_and_no_more() {
    let mut sizes = crate::state_machine::leases::TouchedLeases::default();
    let base = attached(&[LEASE_KEYS_MAX, 1], 0);
    let record = Given::record(1, 0);
    let full = sizes.follow(&base.leases, &bytes("one more"), None, Some(&record));
    assert!(full.is_err(), "{full:?}");
    sizes.follow(&base.leases, &bytes("1/000000"), Some(&record), Some(&record)).unwrap();
    sizes.follow(&base.leases, &bytes("1/000000"), Some(&record), None).unwrap();
    sizes.follow(&base.leases, &bytes("one more"), None, Some(&record)).unwrap();
    assert_eq!(LEASE_KEYS_MAX, RANGE_DELETE_KEYS_MAX);
}
