//! Changes that are sent again: once, whatever happens between the attempts.

use super::*;
use crate::{
    dedupe::{DEDUPE_BYTES_MAX, DEDUPE_RETENTION_MS, IDEMPOTENCY_KEY_BYTES_MAX},
    outcome::Refusal,
    snapshot::{SnapshotReader, SnapshotReceiver},
    state_machine::{dedupe::DedupeTable, load::hash_engine},
};

fn asked(key: &str) -> Option<Idempotency> {
    Some(Idempotency { key: bytes(key), fingerprint: 7 })
}

fn again(first: &Outcome) -> Outcome {
    Outcome::Replayed(Box::new(first.clone()))
}

/// Some changes with keys and some without; the outcomes of the former.
fn fill(fixture: &mut Fixture) -> Vec<Outcome> {
    fixture.run(&put("other", "x"));
    let outcomes = (0..50).map(|i| fixture.run_once(&put("counter", &i.to_string()), asked(&format!("retry-{i}"))));
    let outcomes: Vec<_> = outcomes.collect();
    fixture.run(&delete("other"));
    outcomes
}

/// Sends everything of [`fill`] again.
fn check(fixture: &mut Fixture, outcomes: &[Outcome]) {
    let before = (fixture.state.hash().hash, fixture.state.revision(), fixture.dump());
    for (i, first) in outcomes.iter().enumerate() {
        let outcome = fixture.run_once(&put("counter", &i.to_string()), asked(&format!("retry-{i}")));
        assert_eq!(outcome, again(first));
    }
    let other = Some(Idempotency { key: bytes("retry-3"), fingerprint: 8 });
    assert_eq!(fixture.run_once(&put("counter", "3"), other), Outcome::Refused(Refusal::IdempotencyMismatch));
    assert_eq!((fixture.state.hash().hash, fixture.state.revision(), fixture.dump()), before, "nothing is changed");
    let counter = fixture.state.get(b"counter", 0).unwrap().0.unwrap();
    assert_eq!(counter.version, 50, "one for each key");
}

#[test]
fn a_retry_is_answered_after_a_restart_and_after_a_rebuild() {
    for engine in [SLED, EngineKind::Memory] {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::manual(dir.path(), engine);
        let outcomes = fill(&mut fixture);
        check(&mut fixture, &outcomes);
        // Half of it is in the engine, the rest only in the log.
        fixture.machine.shared.persist_batch().unwrap();
        let (log, hash) = (fixture.log.clone(), fixture.state.hash().hash);
        drop(fixture);
        let mut reopened = Fixture::manual(dir.path(), engine);
        reopened.catch_up(&log);
        assert_eq!(reopened.state.hash().hash, hash);
        check(&mut reopened, &outcomes);
        reopened.persist_all();
        let log = reopened.log.clone();
        drop(reopened);
        let lost = StateOptions { power_lost: true, ..options(engine) };
        let mut rebuilt = Fixture::open_with(Arc::new(crate::fs::RealFs), dir.path(), lost).unwrap();
        assert_eq!(rebuilt.state.applied(), None, "made anew");
        rebuilt.catch_up(&log);
        assert_eq!(rebuilt.state.hash().hash, hash);
        check(&mut rebuilt, &outcomes);
    }
}

#[tokio::test]
async fn a_retry_is_answered_on_a_node_that_got_a_snapshot() {
    for engine in [SLED, EngineKind::Memory] {
        let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut fixture = Fixture::open(dir.path(), engine);
        let outcomes = fill(&mut fixture);
        let (file, footer) = fixture.build().await;
        assert_eq!(SnapshotReader::open(&file).unwrap().counts().dedupe, 50);
        let fs: SharedFs = Arc::new(RealFs);
        let snapshots = other_dir.path().join("snapshots");
        let mut other = Fixture::open(other_dir.path(), engine);
        other.run_once(&put("gone", "x"), asked("retry-of-another-life"));
        let mut receiver = SnapshotReceiver::open(&fs, &snapshots, file.id(), file.len_bytes()).unwrap();
        receiver.write(0, &file.read_chunk(0, file.len_bytes() as usize).unwrap()).unwrap();
        other.machine.install_snapshot(&footer.meta, receiver.finish().unwrap()).await.unwrap();
        assert_eq!(other.state.hash().hash, fixture.state.hash().hash);
        assert_eq!(other.state.stats().unwrap().dedupe_entries, 50, "those of the snapshot and no others");
        check(&mut other, &outcomes);
        drop(other);
        // The snapshot is also what a damaged state is made again from.
        let lost = StateOptions { power_lost: true, ..options(engine) };
        let mut rebuilt = Fixture::open_with(fs, other_dir.path(), lost).unwrap();
        check(&mut rebuilt, &outcomes);
    }
}

#[test]
fn outcomes_are_forgotten_by_the_logs_clock_and_leave_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), SLED);
    fill(&mut fixture);
    fixture.persist_all();
    let empty = fixture.state.hash().hash;
    // The fixture's entries are a second apart.
    let entries = DEDUPE_RETENTION_MS / 1_000;
    for _ in 0..entries {
        fixture.run(&Command::SetReplicationFactor(3));
    }
    assert_eq!(fixture.state.stats().unwrap().dedupe_entries, 50, "only changes with keys make room");
    let first = fixture.run_once(&put("counter", "0"), asked("retry-0"));
    assert!(matches!(first, Outcome::Txn(_)), "it is new again: {first:?}");
    assert_eq!(fixture.state.stats().unwrap().dedupe_entries, 1);
    assert_ne!(fixture.state.hash().hash, empty);
    fixture.persist_all();
    let (log, hash) = (fixture.log.clone(), fixture.state.hash().hash);
    drop(fixture);
    let mut reopened = Fixture::manual(dir.path(), SLED);
    assert_eq!(reopened.state.hash().hash, hash);
    assert_eq!(reopened.state.stats().unwrap().dedupe_entries, 1);
    reopened.catch_up(&log);
    assert_eq!(reopened.run_once(&put("counter", "0"), asked("retry-0")), again(&first));
}

#[test]
fn notes_in_place_of_large_outcomes_reach_engine_and_hash() {
    const ANSWER_BYTES: usize = 60 * 1024;
    let changes = DEDUPE_BYTES_MAX as usize / ANSWER_BYTES + 10;
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    fixture.run(&put("large", &"x".repeat(ANSWER_BYTES)));
    let write = |n: usize| {
        let Command::Txn(mut txn) = put(&format!("counter/{n}"), "x") else { unreachable!("a put is a transaction") };
        txn.success.push(TxnOp::Get { key: bytes("large"), keys_only: false });
        Command::Txn(txn)
    };
    // A millisecond apart, so that none expires.
    let once = |fixture: &Fixture, n: usize| {
        let index = fixture.state.applied().map_or(1, |last| last.index + 1);
        let proposal = Proposal::new(&write(n)).once(asked(&format!("large-{n}")));
        let proposal = Proposal { time_ms: 1_000 + index, uptime_ms: 1_000 + index, ..proposal };
        let entry = Entry { log_id: log_id(index), payload: EntryPayload::Normal(proposal) };
        let outcome = fixture.machine.shared.apply_entry(entry).unwrap();
        fixture.machine.shared.announce();
        outcome
    };
    for n in 0..changes {
        let outcome = once(&fixture, n);
        assert!(matches!(outcome, Outcome::Txn(_)), "{outcome:?}");
        if n % 100 == 0 {
            fixture.persist_all();
        }
    }
    fixture.persist_all();
    {
        let live = fixture.machine.shared.live.read();
        assert_eq!(hash_engine(&*live.generation.engine, &Default::default()).unwrap(), live.meta.hash);
        assert_eq!(DedupeTable::read(&*live.generation.engine).unwrap(), *live.dedupe);
    }
    let revision = fixture.state.revision();
    let note = Outcome::Refused(Refusal::AnswerForgotten);
    assert_eq!(once(&fixture, 0), again(&note));
    let newest = once(&fixture, changes - 1);
    assert!(matches!(newest, Outcome::Replayed(first) if matches!(*first, Outcome::Txn(_))));
    assert_eq!(fixture.state.revision(), revision, "nothing is done twice");
}

#[test]
fn a_wall_clock_that_jumps_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    let outcomes = fill(&mut fixture);
    fixture.wall_ahead_ms = 100 * DEDUPE_RETENTION_MS;
    fixture.run_once(&put("other", "y"), asked("after the jump"));
    assert_eq!(fixture.state.stats().unwrap().dedupe_entries, 51);
    check(&mut fixture, &outcomes);
}

#[test]
fn keys_have_limits_and_outcomes_may_be_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), EngineKind::Memory);
    for key in [String::new(), "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX + 1)] {
        let outcome = fixture.run_once(&put("k", "v"), asked(&key));
        assert!(matches!(outcome, Outcome::Refused(Refusal::InvalidArgument(_))), "{outcome:?}");
    }
    let refused = fixture.run_once(&Command::RemoveMember(5), asked("remove"));
    assert_eq!(refused, Outcome::Refused(Refusal::NoSuchMember));
    assert_eq!(fixture.run_once(&Command::RemoveMember(5), asked("remove")), again(&refused));
    assert_eq!(fixture.state.revision(), 0);
    assert!(matches!(fixture.run_once(&put("k", "v"), asked(&"k".repeat(IDEMPOTENCY_KEY_BYTES_MAX))), Outcome::Txn(_)));
}
