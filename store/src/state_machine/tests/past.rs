//! Reads in the past, against a model that keeps every revision.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::record::{KeyRecord, Record};

type Model = Vec<BTreeMap<Bytes, Record>>;

#[derive(Debug, Clone)]
enum Step {
    Txn(Vec<Op>),
    Compact { back: u64 },
    Persist,
    Snapshot,
    Reopen,
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8, u8),
    Delete(u8),
    DeleteRange(u8, u8),
}

const KEYS: u8 = 12;

fn key(number: u8) -> Bytes {
    bytes(&format!("key{number:02}"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..KEYS, any::<u8>()).prop_map(|(key, value)| Op::Put(key, value)),
        3 => (0..KEYS).prop_map(Op::Delete),
        1 => (0..KEYS, 0..KEYS).prop_map(|(start, end)| Op::DeleteRange(start, end)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => prop::collection::vec(op(), 1..4).prop_map(Step::Txn),
        2 => (0..10_u64).prop_map(|back| Step::Compact { back }),
        4 => Just(Step::Persist),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Reopen),
    ]
}

fn command(ops: &[Op]) -> Command {
    let success = ops.iter().map(|op| match op {
        Op::Put(number, value) => TxnOp::Put {
            key: key(*number),
            value: Bytes::from(vec![*value; 3]),
            content_type: None,
            lease: 0,
            prev: false,
        },
        Op::Delete(number) => TxnOp::Delete { key: key(*number), prev: false },
        Op::DeleteRange(start, end) => TxnOp::DeleteRange(KeyRange { start: key(*start), end: Some(key(*end)) }),
    });
    Command::Txn(Txn { success: success.collect(), ..Txn::default() })
}

/// The simplest thing that could be right: copies everything.
fn apply_to_model(model: &mut Model, ops: &[Op]) {
    let revision = model.len() as u64;
    let mut state = model.last().unwrap().clone();
    let mut mutated = false;
    for op in ops {
        match op {
            Op::Put(number, value) => {
                let old = state.get(&key(*number));
                let record = Record {
                    create_revision: old.map_or(revision, |old| old.create_revision),
                    mod_revision: revision,
                    version: old.map_or(0, |old| old.version) + 1,
                    lease: 0,
                    content_type: None,
                    value: Bytes::from(vec![*value; 3]),
                };
                state.insert(key(*number), record);
                mutated = true;
            }
            Op::Delete(number) => mutated |= state.remove(&key(*number)).is_some(),
            Op::DeleteRange(start, end) => {
                let before = state.len();
                state.retain(|k, _| !(key(*start) <= *k && *k < key(*end)));
                mutated |= state.len() < before;
            }
        }
    }
    if mutated {
        model.push(state);
    }
}

fn check(fixture: &Fixture, model: &Model) {
    let state = &fixture.state;
    let newest = model.len() as u64 - 1;
    assert_eq!(state.revision(), newest);
    for at in 1..=newest {
        let expected = &model[at as usize];
        if at < state.compacted_revision() {
            assert!(matches!(state.get(b"key00", at), Err(StoreError::Compacted { .. })), "get at {at}");
            assert!(matches!(state.list(&list_all(at)), Err(StoreError::Compacted { .. })), "list at {at}");
            continue;
        }
        for number in 0..KEYS {
            let found = state.get(&key(number), at).unwrap();
            assert_eq!(found, (expected.get(&key(number)).cloned(), newest), "key {number} at {at}");
        }
        check_listings(state, at, expected);
    }
    assert_eq!(fixture.dump(), model.last().unwrap().clone().into_iter().collect::<Vec<_>>());
    check_deleted(fixture, model);
}

fn check_listings(state: &State, at: u64, expected: &BTreeMap<Bytes, Record>) {
    let mut expected: Vec<_> =
        expected.iter().map(|(key, record)| KeyRecord { key: key.clone(), record: record.clone() }).collect();
    for descending in [false, true] {
        let mut listed = Vec::new();
        let mut request = ListRequest { limit: 3, descending, ..list_all(at) };
        loop {
            let page = state.list(&request).unwrap();
            assert!(page.items.len() <= 3 && page.revision == at);
            request.after = page.items.last().map(|item| item.key.clone());
            listed.extend(page.items);
            if !page.more {
                break;
            }
        }
        assert_eq!(listed, expected, "listing at {at}, descending = {descending}");
        expected.reverse();
    }
    let count = state.list(&ListRequest { count_only: true, ..list_all(at) }).unwrap();
    assert_eq!((count.count, count.items.len()), (expected.len() as u64, 0));
}

/// The map of deleted keys holds exactly those deleted after the compacted revision, and until they are swept others.
fn check_deleted(fixture: &Fixture, model: &Model) {
    let live = fixture.machine.shared.live.read();
    let mut expected = BTreeMap::new();
    for revision in live.meta.compacted_revision as usize + 1..model.len() {
        for key in model[revision - 1].keys().filter(|key| !model[revision].contains_key(*key)) {
            expected.insert(key.clone(), revision as u64);
        }
    }
    expected.retain(|key, _| !model.last().unwrap().contains_key(key));
    let mut deleted = live.deleted.clone();
    deleted.retain(|_, revision| *revision > live.meta.compacted_revision);
    assert_eq!(deleted, expected);
}

fn run(steps: &[Step], engine: EngineKind) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), engine);
    let mut model: Model = vec![BTreeMap::new()];
    for step in steps {
        match step {
            Step::Txn(ops) => {
                fixture.run(&command(ops));
                apply_to_model(&mut model, ops);
            }
            Step::Compact { back } => {
                let revision = (model.len() as u64 - 1).saturating_sub(*back);
                fixture.run(&Command::Compact(revision));
            }
            Step::Persist => fixture.persist_all(),
            Step::Snapshot => {
                fixture.persist_all();
                runtime.block_on(fixture.build());
            }
            Step::Reopen => {
                let log = fixture.log.clone();
                drop(fixture);
                fixture = Fixture::manual(dir.path(), engine);
                fixture.catch_up(&log);
            }
        }
    }
    check(&fixture, &model);
    fixture.persist_all();
    check(&fixture, &model);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn every_revision_reads_as_it_was_in_memory(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, EngineKind::Memory);
    }
}

proptest! {
    #![proptest_config(config(16))]

    #[test]
    fn every_revision_reads_as_it_was_in_sled(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, SLED);
    }
}
