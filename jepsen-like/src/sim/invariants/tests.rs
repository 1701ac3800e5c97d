//! Every invariant accepts a good run and rejects a broken observation.

use super::*;

fn ballot(term: u64, node: NodeId) -> Ballot {
    Ballot { term, node }
}

fn at(term: u64, index: u64) -> Position {
    Position { index, ballot: ballot(term, 1) }
}

fn entry(term: u64, index: u64) -> SeenEntry {
    SeenEntry { at: at(term, index), content: index * 100 + term }
}

/// A follower of node 1 in `term` whose log, commit index and state reach `last`.
fn follower(node: NodeId, term: u64, last: u64) -> Observation {
    Observation {
        node,
        life: node * 10,
        vote: Some(SeenVote { ballot: ballot(term, 1), committed: true }),
        term,
        leads: None,
        first: 0,
        last: Some(at(term, last)),
        raft_last: Some(last),
        durable: last + 1,
        entries_from: 0,
        entries: (0..=last).map(|i| entry(term, i)).collect(),
        committed: Some(at(term, last)),
        applied: Some(at(term, last)),
        snapshot: None,
        snapshot_index: None,
        purged: None,
        state_applied: Some(at(term, last)),
        persisted_index: Some(last),
        state_hash: u128::from(last) << 8,
    }
}

fn leader(term: u64, last: u64) -> Observation {
    Observation { leads: Some(ballot(term, 1)), ..follower(1, term, last) }
}

/// The name of the invariant that the last of `observations` breaks; all before it break none.
fn broken(observations: &[Observation]) -> Option<&'static str> {
    let mut ledger = Ledger::default();
    let (last, before) = observations.split_last().expect("something is seen");
    for seen in before {
        ledger.observe(seen).expect("what comes before is in order");
    }
    ledger.observe(last).err().map(|violation| violation.invariant)
}

#[test]
fn a_good_run_breaks_nothing() {
    let grown = Observation { entries_from: 4, entries: vec![entry(1, 4), entry(1, 5)], ..follower(2, 1, 5) };
    let restarted = Observation { life: 99, applied: None, state_applied: None, committed: None, ..follower(2, 1, 5) };
    let purged = Observation {
        first: 4,
        entries_from: 6,
        entries: vec![],
        snapshot: Some(at(1, 5)),
        purged: Some(at(1, 3)),
        ..leader(1, 5)
    };
    let seen = [leader(1, 3), follower(2, 1, 3), leader(1, 5), grown, restarted, purged];
    assert_eq!(broken(&seen), None);
}

#[test]
fn election_safety() {
    let usurper = Observation { leads: Some(ballot(1, 1)), ..follower(2, 1, 3) };
    assert_eq!(broken(&[leader(1, 3), usurper]), Some("election-safety"));
}

#[test]
fn vote_monotonic_also_over_a_restart() {
    let forgot =
        Observation { life: 99, vote: Some(SeenVote { ballot: ballot(1, 1), committed: false }), ..follower(2, 2, 3) };
    assert_eq!(broken(&[follower(2, 2, 3), forgot]), Some("vote-monotonic"));
    let none = Observation { life: 99, vote: None, ..follower(2, 2, 3) };
    assert_eq!(broken(&[follower(2, 2, 3), none]), Some("vote-monotonic"));
}

#[test]
fn term_monotonic() {
    let back = Observation { term: 1, ..follower(2, 2, 3) };
    assert_eq!(broken(&[follower(2, 2, 3), back]), Some("term-monotonic"));
}

#[test]
fn leader_append_only() {
    let uncommitted = Observation { committed: None, applied: None, state_applied: None, ..leader(1, 3) };
    let cut = Observation { last: Some(at(1, 1)), entries: vec![entry(1, 0), entry(1, 1)], ..uncommitted.clone() };
    assert_eq!(broken(&[uncommitted, cut]), Some("leader-append-only"));
}

#[test]
fn log_matching_of_content_and_of_predecessors() {
    let mut other = follower(2, 1, 3);
    other.entries[2].content = 7;
    assert_eq!(broken(&[leader(1, 3), other]), Some("log-matching"));
    let mut other = follower(2, 1, 3);
    other.entries[1].at = Position { index: 1, ballot: ballot(1, 5) };
    assert_eq!(broken(&[leader(1, 3), other]), Some("log-matching"));
}

#[test]
fn log_contiguous() {
    let mut gap = follower(2, 1, 3);
    gap.entries.remove(1);
    assert_eq!(broken(&[gap]), Some("log-contiguous"));
    let mut short = follower(2, 1, 3);
    short.entries.pop();
    assert_eq!(broken(&[short]), Some("log-contiguous"));
}

#[test]
fn a_truncation_under_way_when_the_log_ended_may_have_reached_the_disk() {
    let before =
        Observation { committed: None, applied: None, state_applied: None, persisted_index: None, ..follower(2, 1, 3) };
    let restarted = |last: u64| Observation {
        life: 99,
        last: Some(at(1, last)),
        durable: last + 1,
        entries: (0..=last).map(|i| entry(1, i)).collect(),
        ..before.clone()
    };
    let after_failure = |failed: &EndedLog, restarted: &Observation| {
        let mut ledger = Ledger::default();
        ledger.observe(&before).expect("in order");
        ledger.log_ended(before.node, before.life, failed);
        ledger.observe(restarted).err().map(|violation| violation.invariant)
    };
    let truncating = EndedLog { durable: 3, entries_from: 3, entries: vec![at(2, 3)] };
    assert_eq!(after_failure(&truncating, &restarted(2)), None, "entry 3 of term 1 was being replaced");
    assert_eq!(after_failure(&truncating, &restarted(3)), None, "the truncation did not reach the disk");
    assert_eq!(after_failure(&truncating, &restarted(1)), Some("durable-survives"), "entry 2 was not touched");
    let replaced = EndedLog { durable: 4, ..truncating.clone() };
    assert_eq!(after_failure(&replaced, &restarted(3)), Some("durable-survives"), "entry 3 of term 2 was durable");
    let untouched = EndedLog { durable: 4, entries_from: 0, entries: (0..=3).map(|i| at(1, i)).collect() };
    assert_eq!(after_failure(&untouched, &restarted(2)), Some("durable-survives"));
    assert_eq!(broken(&[before.clone(), restarted(2)]), Some("durable-survives"));
}

#[test]
fn leader_completeness() {
    let lacking = Observation {
        leads: Some(ballot(2, 3)),
        vote: Some(SeenVote { ballot: ballot(2, 3), committed: true }),
        ..follower(3, 2, 1)
    };
    let lacking = Observation { entries: vec![entry(1, 0), entry(1, 1)], last: Some(at(1, 1)), ..lacking };
    let lacking =
        Observation { committed: Some(at(1, 1)), applied: Some(at(1, 1)), state_applied: Some(at(1, 1)), ..lacking };
    assert_eq!(broken(&[leader(1, 3), lacking]), Some("leader-completeness"));
}

#[test]
fn committed_final() {
    let mut other = follower(2, 2, 3);
    other.state_applied = None;
    assert_eq!(broken(&[leader(1, 3), other]), Some("committed-final"));
    // Node 2 is given a snapshot up to 9, and still has what that replaces.
    let installing = Observation { committed: Some(at(2, 9)), raft_last: Some(9), ..follower(2, 1, 3) };
    let alone = Observation { applied: None, state_applied: None, ..installing };
    assert_eq!(broken(&[leader(2, 3), alone]), None);
}

#[test]
fn durable_survives() {
    let lost = Observation {
        life: 99,
        last: Some(at(1, 2)),
        durable: 3,
        entries: (0..=2).map(|i| entry(1, i)).collect(),
        committed: None,
        applied: None,
        state_applied: None,
        persisted_index: None,
        ..follower(2, 1, 3)
    };
    assert_eq!(broken(&[follower(2, 1, 3), lost.clone()]), Some("durable-survives"));
    let not_yet =
        Observation { durable: 3, applied: None, state_applied: None, persisted_index: None, ..follower(2, 1, 3) };
    assert_eq!(broken(&[not_yet, lost]), None, "what was not durable may be lost");
}

#[test]
fn state_machine_safety() {
    let other = Observation {
        entries_from: 4,
        entries: vec![],
        committed: Some(at(2, 9)),
        last: Some(at(2, 9)),
        first: 10,
        applied: Some(at(2, 3)),
        ..follower(2, 2, 9)
    };
    assert_eq!(broken(&[leader(1, 3), other]), Some("state-machine-safety"));
}

#[test]
fn commit_and_applied_monotonic() {
    let committed_less = Observation { committed: Some(at(1, 3)), applied: Some(at(1, 3)), ..follower(2, 1, 5) };
    assert_eq!(broken(&[follower(2, 1, 5), committed_less]), Some("commit-monotonic"));
    let applied_less = Observation { applied: Some(at(1, 3)), ..follower(2, 1, 5) };
    assert_eq!(broken(&[follower(2, 1, 5), applied_less]), Some("applied-monotonic"));
    let raft_behind = Observation { applied: Some(at(1, 3)), ..follower(2, 1, 5) };
    let state_less = Observation { state_applied: Some(at(1, 3)), state_hash: 3 << 8, ..raft_behind.clone() };
    assert_eq!(broken(&[raft_behind, state_less]), Some("applied-monotonic"));
}

#[test]
fn progress_order() {
    for wrong in [
        Observation { purged: Some(at(1, 1)), ..follower(2, 1, 3) },
        Observation { snapshot: Some(at(1, 4)), ..follower(2, 1, 3) },
        Observation { committed: Some(at(1, 2)), ..follower(2, 1, 3) },
        Observation { raft_last: Some(2), ..follower(2, 1, 3) },
        Observation { state_applied: Some(at(1, 2)), ..follower(2, 1, 3) },
        Observation { snapshot: Some(at(1, 3)), state_applied: Some(at(1, 2)), applied: None, ..follower(2, 1, 3) },
        Observation { snapshot: Some(at(1, 3)), committed: Some(at(1, 2)), applied: None, ..follower(2, 1, 3) },
    ] {
        assert_eq!(broken(&[wrong]), Some("progress-order"));
    }
    let within_a_batch = Observation { snapshot: Some(at(1, 2)), applied: Some(at(1, 1)), ..follower(2, 1, 3) };
    assert_eq!(broken(&[within_a_batch]), None, "the state is ahead of what Raft was told");
}

#[test]
fn persisted_durable() {
    let ahead = Observation { durable: 3, ..follower(2, 1, 3) };
    assert_eq!(broken(std::slice::from_ref(&ahead)), Some("persisted-durable"));
    let in_memory = Observation { persisted_index: Some(2), ..ahead.clone() };
    assert_eq!(broken(&[in_memory]), None, "applied entries that only memory has are lost together with it");
    let installed = Observation { snapshot_index: Some(3), ..ahead };
    assert_eq!(broken(&[installed]), None, "a snapshot is durable by itself");
}

#[test]
fn state_hash() {
    let other = Observation { state_hash: 1, ..follower(2, 1, 3) };
    assert_eq!(broken(&[leader(1, 3), other]), Some("state-hash"));
}
