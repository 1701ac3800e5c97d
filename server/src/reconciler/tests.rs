//! What is decided on which facts.

use super::{
    decide::*,
    explain::{explain, told},
};
use hexkv_store::{NodeId, member::Member};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Silence after which a voter is replaced.
const LIMIT: Duration = Duration::from_secs(300);

/// `ids`, silent for longer than that.
fn silent(ids: &[NodeId]) -> BTreeMap<NodeId, Duration> {
    ids.iter().map(|id| (*id, LIMIT * 2)).collect()
}

fn facts(members: &[(NodeId, bool)], voters: &[NodeId], learners: &[NodeId], rf: usize) -> Facts {
    let member = |(id, leaving): &(NodeId, bool)| Member {
        name: format!("n{id}@h"),
        node_id: *id,
        http: String::new(),
        raft: String::new(),
        version: String::new(),
        leaving: *leaving,
    };
    Facts {
        leader: 1,
        members: members.iter().map(member).collect(),
        replication_factor: rf,
        voter_sets: vec![voters.iter().copied().collect()],
        learners: learners.iter().copied().collect(),
        lag_entries: voters.iter().map(|id| (*id, 0)).collect(),
        reachable: members.iter().map(|(id, _)| *id).collect(),
        silent: BTreeMap::new(),
        replace_after: Some(LIMIT),
        put_off: Duration::ZERO,
    }
}

fn set(ids: &[NodeId]) -> BTreeSet<NodeId> {
    ids.iter().copied().collect()
}

#[test]
fn a_new_member_learns_then_votes() {
    let mut f = facts(&[(1, false), (2, false)], &[1], &[], 3);
    assert_eq!(next_step(&f), Some(Step::AddLearner(2)));
    f.learners = set(&[2]);
    assert_eq!(next_step(&f), None, "it has not caught up");
    f.lag_entries.insert(2, CAUGHT_UP_ENTRIES + 1);
    assert_eq!(next_step(&f), None, "still not");
    f.lag_entries.insert(2, CAUGHT_UP_ENTRIES);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2]))));
}

#[test]
fn members_beyond_the_replication_factor_stand_by() {
    assert_eq!(next_step(&facts(&[(1, false), (2, false), (3, false), (4, false)], &[1, 2, 3], &[], 3)), None);
}

#[test]
fn a_leaving_voter_goes_after_a_standby_took_its_place() {
    let mut f = facts(&[(1, false), (2, false), (3, true), (4, false)], &[1, 2, 3], &[], 3);
    assert_eq!(next_step(&f), Some(Step::AddLearner(4)));
    f.learners = set(&[4]);
    assert_eq!(next_step(&f), None, "three goes on voting until four can");
    f.lag_entries.insert(4, 0);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2, 4]))));
    let after = facts(&[(1, false), (2, false), (3, true), (4, false)], &[1, 2, 4], &[], 3);
    assert_eq!(next_step(&after), Some(Step::Forget(3)));
}

#[test]
fn a_leaving_leader_hands_over_first() {
    let f = facts(&[(1, true), (2, false), (3, false)], &[1, 2, 3], &[], 3);
    assert!(matches!(next_step(&f), Some(Step::HandOver(2 | 3))), "{:?}", next_step(&f));
}

#[test]
fn a_leaving_leader_without_another_voter_lets_the_newcomer_vote_first() {
    let mut f = facts(&[(1, true), (2, false)], &[1], &[2], 1);
    f.lag_entries.insert(2, 0);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2]))));
    f.voter_sets = vec![set(&[1, 2])];
    f.learners.clear();
    assert_eq!(next_step(&f), Some(Step::HandOver(2)));
}

#[test]
fn a_joint_change_is_finished_before_anything_else() {
    let mut f = facts(&[(1, false), (2, false), (3, false)], &[1], &[3], 3);
    f.voter_sets = vec![set(&[1]), set(&[1, 2])];
    assert_eq!(next_step(&f), Some(Step::FinishJoint(set(&[1, 2]))));
}

#[test]
fn a_smaller_replication_factor_keeps_the_leader() {
    let mut f = facts(&[(1, false), (2, false), (3, false)], &[1, 2, 3], &[], 1);
    f.leader = 3;
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[3]))));
}

#[test]
fn a_smaller_replication_factor_keeps_voters_that_answer() {
    let mut f = facts(&[(1, false), (2, false), (3, false)], &[1, 2, 3], &[], 2);
    f.reachable = set(&[1, 3]);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 3]))));
    f.reachable = set(&[1]);
    assert_eq!(next_step(&f), None, "two voters, one of them dead, could not even commit that they vote");
}

#[test]
fn a_leader_that_does_not_vote_takes_no_step_but_to_finish_a_joint_configuration() {
    let mut f = facts(&[(1, false), (2, false)], &[2], &[], 3);
    f.leader = 1;
    assert_eq!(next_step(&f), None);
    f.voter_sets = vec![set(&[1, 2]), set(&[2])];
    assert_eq!(next_step(&f), Some(Step::FinishJoint(set(&[2]))));
}

#[test]
fn an_unreachable_standby_is_not_given_the_data() {
    let mut f = facts(&[(1, false), (2, false)], &[1], &[], 3);
    f.reachable = set(&[1]);
    assert_eq!(next_step(&f), None);
}

#[test]
fn a_dead_learner_neither_votes_nor_blocks_a_standby() {
    let mut f = facts(&[(1, false), (2, false), (3, true), (4, false), (5, false)], &[1, 2, 3], &[4], 3);
    f.lag_entries.insert(4, 0);
    f.reachable = set(&[1, 2, 3, 5]);
    assert_eq!(next_step(&f), Some(Step::AddLearner(5)));
    let mut alone = facts(&[(1, false), (2, false)], &[1], &[2], 3);
    alone.lag_entries.insert(2, 0);
    alone.reachable = set(&[1]);
    assert_eq!(next_step(&alone), Some(Step::DropLearners(set(&[2]))), "two voters, one of them dead, are no quorum");
}

#[test]
fn leadership_is_not_handed_to_a_dead_voter() {
    let mut f = facts(&[(1, true), (2, false), (3, false)], &[1, 2, 3], &[], 3);
    f.reachable = set(&[1, 3]);
    assert_eq!(next_step(&f), Some(Step::HandOver(3)));
}

#[test]
fn a_learner_that_is_no_longer_wanted_is_dropped() {
    let f = facts(&[(1, false), (2, true)], &[1], &[2], 3);
    assert_eq!(next_step(&f), Some(Step::DropLearners(set(&[2]))));
}

#[test]
fn a_voter_that_was_given_up_is_replaced_step_by_step() {
    let mut f = facts(&[(1, false), (2, false), (3, false), (4, false)], &[1, 2, 3], &[], 3);
    f.reachable = set(&[1, 2, 4]);
    f.silent = BTreeMap::from([(3, LIMIT)]);
    assert_eq!(next_step(&f), None, "its silence is still short");
    f.silent = silent(&[3]);
    assert_eq!(next_step(&f), Some(Step::AddLearner(4)));
    f.learners = set(&[4]);
    assert_eq!(next_step(&f), None, "four has to catch up");
    f.lag_entries.insert(4, 0);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2, 4]))));
    let mut after = facts(&[(1, false), (2, false), (3, false), (4, false)], &[1, 2, 4], &[], 3);
    assert_eq!(next_step(&after), None, "it is a standby when it comes back");
    after.silent = silent(&[3]);
    assert_eq!(next_step(&after), None);
}

#[test]
fn a_voter_that_was_given_up_keeps_its_seat_while_nobody_can_take_it() {
    let mut f = facts(&[(1, false), (2, false), (3, false), (4, false)], &[1, 2, 3], &[], 3);
    f.silent = silent(&[3, 4]);
    f.reachable = set(&[1, 2]);
    assert_eq!(next_step(&f), None, "four is silent, too");
    let mut three = facts(&[(1, false), (2, false), (3, false)], &[1, 2, 3], &[], 3);
    three.silent = silent(&[3]);
    three.reachable = set(&[1, 2]);
    assert_eq!(next_step(&three), None, "there is no fourth");
}

#[test]
fn without_a_majority_nothing_is_done() {
    let mut f = facts(&[(1, false), (2, false), (3, false), (4, false), (5, false)], &[1, 2, 3], &[], 3);
    f.silent = silent(&[2, 3]);
    f.reachable = set(&[1, 4, 5]);
    assert_eq!(next_step(&f), None, "a leader that hears one voter of three could commit nothing");
    f.voter_sets = vec![set(&[1, 2, 3]), set(&[1, 4, 5])];
    assert_eq!(next_step(&f), Some(Step::FinishJoint(set(&[1, 4, 5]))), "what was begun can only be finished");
}

#[test]
fn the_voters_grow_from_one_odd_number_to_the_next() {
    let members = [(1, false), (2, false), (3, false), (4, false), (5, false)];
    let mut f = facts(&members, &[1, 2, 3], &[4, 5], 5);
    f.lag_entries.insert(4, 0);
    assert_eq!(next_step(&f), None, "four voters survive no more losses than three");
    assert!(waits_for_odd(&f) && says(&f, &["waits up to 60.0 s", "an odd number votes"]));
    f.put_off = ODD_WAIT_MAX;
    assert_eq!(next_step(&f), None);
    f.put_off = ODD_WAIT_MAX + Duration::from_millis(1);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2, 3, 4]))), "the fifth may never have the data");
    f.put_off = Duration::ZERO;
    f.lag_entries.insert(5, 0);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2, 3, 4, 5]))));
    f.reachable = set(&[1, 2, 3, 4]);
    f.learners = set(&[4]);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2, 3, 4]))), "there is no fifth to wait for");
}

#[test]
fn a_voter_alone_waits_for_nobody_but_the_first_that_has_the_data() {
    let mut f = facts(&[(1, false), (2, false), (3, false)], &[1], &[2, 3], 3);
    assert_eq!(next_step(&f), None);
    f.lag_entries.insert(2, 0);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2]))), "what one acknowledges alone is lost with its disk");
    f.lag_entries.insert(3, 0);
    assert_eq!(next_step(&f), Some(Step::SetVoters(set(&[1, 2, 3]))));
}

#[test]
fn who_waits_for_an_odd_number_goes_on_with_everything_else() {
    let members = [(1, false), (2, false), (3, false), (4, false), (5, false), (6, true), (7, true)];
    let mut f = facts(&members, &[1, 2, 3], &[4, 5, 6], 5);
    f.lag_entries.insert(4, 0);
    assert!(waits_for_odd(&f));
    assert_eq!(next_step(&f), Some(Step::DropLearners(set(&[6]))));
    f.learners = set(&[4, 5]);
    assert!(matches!(next_step(&f), Some(Step::Forget(6 | 7))), "{:?}", next_step(&f));
}

/// Whether one of the sentences about `facts` has all of `parts`.
fn says(facts: &Facts, parts: &[&str]) -> bool {
    explain(facts).iter().any(|sentence| parts.iter().all(|part| sentence.contains(part)))
}

#[test]
fn what_is_waited_for_is_said() {
    let mut f = facts(&[(1, false), (2, false), (3, false), (4, false)], &[1, 2, 3], &[], 3);
    assert_eq!(explain(&f).len(), 1, "{:?}", explain(&f));
    assert!(says(&f, &["3 of 4 members vote", "n1@h, n2@h, n3@h", "3 are due"]));
    f.reachable = set(&[1, 2, 4]);
    f.silent = BTreeMap::from([(3, LIMIT / 2)]);
    assert!(says(&f, &["n3@h has not answered for 150.0 s", "after 300.0 s"]));
    f.silent = silent(&[3]);
    assert!(says(&f, &["n3@h", "a standby takes its seat"]));
    f.learners = set(&[4]);
    f.lag_entries.insert(4, 1000);
    assert!(says(&f, &["n4@h is to vote", "lacks 1000 entries"]));
    f.reachable = set(&[1, 2]);
    assert!(says(&f, &["n3@h", "no standby that answers"]), "{:?}", explain(&f));
    f.replace_after = None;
    assert!(says(&f, &["n3@h", "keeps its seat"]));
    f.reachable = set(&[1]);
    assert!(says(&f, &["only 1 of 3 voters answer", "nothing is changed"]));
    let even = facts(&[(1, false), (2, true), (3, false)], &[1, 2, 3], &[], 3);
    assert!(says(&even, &["n2@h leaves"]) && says(&even, &["2 voters survive no more losses than 1"]));
}

#[test]
fn steps_are_told_by_the_names_of_members() {
    let f = facts(&[(1, false), (2, false)], &[1], &[2], 3);
    assert_eq!(told(&f, &Step::SetVoters(set(&[1, 2]))), "let n1@h, n2@h vote");
    assert_eq!(told(&f, &Step::AddLearner(2)), "give n2@h the data");
    assert!(told(&f, &Step::HandOver(9)).contains("0000000000000009"));
}
