//! What to do next about the membership: a pure function of what the leader knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hexkv_store::{NodeId, member::Member};

/// A learner that lacks at most this many entries has caught up: one more append brings it level.
pub(super) const CAUGHT_UP_ENTRIES: u64 = 64;

/// How long a learner that has caught up waits for another one, so that the number of voters stays odd: a snapshot of some
/// GiB is installed by then, or never.
pub(super) const ODD_WAIT_MAX: Duration = Duration::from_secs(60);

/// What the reconciler decides on.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// This node, the leader.
    pub leader: NodeId,
    /// The member directory.
    pub members: Vec<Member>,
    /// How many voters there should be.
    pub replication_factor: usize,
    /// Voters of each configuration: two while a joint change is under way.
    pub voter_sets: Vec<BTreeSet<NodeId>>,
    /// Learners.
    pub learners: BTreeSet<NodeId>,
    /// Entries that each voter or learner lacks, where known.
    pub lag_entries: BTreeMap<NodeId, u64>,
    /// Members that answered lately.
    pub reachable: BTreeSet<NodeId>,
    /// For how long each member was not heard, of those that are not.
    pub silent: BTreeMap<NodeId, Duration>,
    /// After so long another member is to take a silent one's seat; None = never.
    pub replace_after: Option<Duration>,
    /// For how long a change of the voters has been put off for an odd number of them ([`waits_for_odd`]).
    pub put_off: Duration,
}

impl Facts {
    /// Whether `id` was silent for so long that another member is to take its seat.
    pub(super) fn given_up(&self, id: &NodeId) -> bool {
        self.silent.get(id).zip(self.replace_after).is_some_and(|(silent, limit)| *silent > limit)
    }

    /// Whether learner `id` has caught up, and answers.
    pub(super) fn caught_up(&self, id: &NodeId) -> bool {
        self.reachable.contains(id) && self.lag_entries.get(id).is_some_and(|lag| *lag <= CAUGHT_UP_ENTRIES)
    }
}

/// One step towards the desired membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Finish a joint change that a crash left.
    FinishJoint(BTreeSet<NodeId>),
    /// Start to give a member the data.
    AddLearner(NodeId),
    /// Change the voters to these.
    SetVoters(BTreeSet<NodeId>),
    /// Hand leadership to this voter, which stays, because this leader does not.
    HandOver(NodeId),
    /// Stop giving these the data.
    DropLearners(BTreeSet<NodeId>),
    /// Take a member that left out of the directory.
    Forget(NodeId),
}

/// The next step, or None when the membership is as desired or must wait (for a learner to catch up, for a
/// member to answer).
pub fn next_step(facts: &Facts) -> Option<Step> {
    let voters = facts.voter_sets.last()?;
    if facts.voter_sets.len() > 1 {
        return Some(Step::FinishJoint(voters.clone()));
    }
    // It finished a joint configuration that leaves it out, and is about to step down: the next leader goes on.
    if !voters.contains(&facts.leader) {
        return None;
    }
    // Nothing could be committed; and whoever hears so few of the others knows too little to judge them.
    if !is_majority(&facts.reachable, voters) {
        return None;
    }
    let desired = desired_voters(facts, voters);
    if let Some(new) = desired.iter().find(|id| !voters.contains(id) && !facts.learners.contains(id)) {
        return Some(Step::AddLearner(*new));
    }
    let ready = ready_voters(facts, voters, &desired);
    let put_off = would_be_even(voters, &desired, &ready) && facts.put_off <= ODD_WAIT_MAX;
    if !put_off && let Some(step) = change_voters(facts, voters, &desired, &ready) {
        return Some(step);
    }
    let surplus: BTreeSet<NodeId> = facts.learners.iter().filter(|id| !desired.contains(id)).copied().collect();
    if !surplus.is_empty() {
        return Some(Step::DropLearners(surplus));
    }
    let gone = |m: &&Member| m.leaving && !voters.contains(&m.node_id) && !facts.learners.contains(&m.node_id);
    facts.members.iter().find(gone).map(|m| Step::Forget(m.node_id))
}

/// Grows first, shrinks after: a leaving voter goes once its replacement votes, or when nobody can replace it.
fn change_voters(
    facts: &Facts,
    voters: &BTreeSet<NodeId>,
    desired: &BTreeSet<NodeId>,
    ready: &BTreeSet<NodeId>,
) -> Option<Step> {
    let mut target: BTreeSet<NodeId> = voters.union(ready).copied().collect();
    if ready == desired {
        target.clone_from(desired);
    }
    if target == *voters || target.is_empty() {
        return None;
    }
    if !target.contains(&facts.leader) {
        let least_behind = |id: &&NodeId| facts.lag_entries.get(id).copied().unwrap_or(u64::MAX);
        return target
            .iter()
            .filter(|id| voters.contains(id) && facts.reachable.contains(id))
            .min_by_key(least_behind)
            .map(|id| Step::HandOver(*id))
            .or(
                // No voter stays: let the newcomers vote beside this leader first.
                (!target.is_subset(voters)).then(|| Step::SetVoters(voters.union(&target).copied().collect())),
            );
    }
    is_majority(&facts.reachable, &target).then_some(Step::SetVoters(target))
}

/// Those of `desired` that vote, or could at once.
fn ready_voters(facts: &Facts, voters: &BTreeSet<NodeId>, desired: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    desired.iter().filter(|id| voters.contains(id) || facts.caught_up(id)).copied().collect()
}

/// Whether a learner that has caught up waits for the others that learn, for [`ODD_WAIT_MAX`] at most.
pub(super) fn waits_for_odd(facts: &Facts) -> bool {
    facts.voter_sets.last().is_some_and(|voters| {
        let desired = desired_voters(facts, voters);
        would_be_even(voters, &desired, &ready_voters(facts, voters, &desired))
    })
}

/// Whether to wait for the others that learn: an even number of voters survives no more losses than one voter less, and
/// needs one more to agree. One voter alone is what is to end soon: what it acknowledges is nowhere else.
fn would_be_even(voters: &BTreeSet<NodeId>, desired: &BTreeSet<NodeId>, ready: &BTreeSet<NodeId>) -> bool {
    let next = voters.union(ready).count();
    let grows = ready != desired && next > voters.len();
    grows && next.is_multiple_of(2) && voters.len() % 2 == 1 && voters.len() > 1
}

/// Voters of whom no majority answers could never commit their own configuration.
pub(super) fn is_majority(answering: &BTreeSet<NodeId>, voters: &BTreeSet<NodeId>) -> bool {
    voters.intersection(answering).count() * 2 > voters.len()
}

/// The members that should vote: those that do and stay, then learners, then reachable standbys by name. Whoever was given up
/// comes last: it keeps its seat as long as nobody can take it.
pub(super) fn desired_voters(facts: &Facts, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let staying = || facts.members.iter().filter(|m| !m.leaving);
    let wanted = facts.replication_factor.min(staying().count());
    let rank = |m: &&Member| {
        let id = &m.node_id;
        // The leader first, so that a smaller replication factor costs no election; then voters that answer, so that it
        // does not rest on dead ones.
        let answers = facts.reachable.contains(id);
        let given_up = facts.given_up(id);
        (*id != facts.leader, given_up, !voters.contains(id), !answers, !facts.learners.contains(id), m.name.clone())
    };
    let mut candidates: Vec<&Member> =
        staying().filter(|m| voters.contains(&m.node_id) || facts.reachable.contains(&m.node_id)).collect();
    candidates.sort_by_key(rank);
    candidates.into_iter().take(wanted).map(|m| m.node_id).collect()
}
