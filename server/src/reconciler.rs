//! The leader's reconciler: compares the members that the cluster should have with Raft's membership, and takes
//! one step at a time. It alone changes the Raft membership. What to do next is a pure function ([`next_step`]);
//! every change carries the membership it was decided on as a precondition, so that a leader with stale
//! knowledge changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use hexkv_raft_net::rpc::PeerRequest;
use hexkv_store::{NodeAddress, NodeId, command::Command, member::Member};
use openraft::{ChangeMembers, async_runtime::WatchReceiver, raft::Precondition};

use crate::{core::Core, node::Node};

/// How often the leader looks, apart from changes that wake it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// One membership change; beyond, the next look decides afresh.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// A learner that lacks at most this many entries has caught up: one more append brings it level.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// A member that answered within this time can be given the data.
const REACHABLE_WITHIN: Duration = Duration::from_millis(1500);
/// Those who are to vote, or to lead, must answer within this time before that is proposed.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

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
    let desired = desired_voters(facts, voters);
    let caught_up = |id: &NodeId| {
        facts.reachable.contains(id) && facts.lag_entries.get(id).is_some_and(|lag| *lag <= CAUGHT_UP_ENTRIES)
    };
    if let Some(new) = desired.iter().find(|id| !voters.contains(id) && !facts.learners.contains(id)) {
        return Some(Step::AddLearner(*new));
    }
    let ready: BTreeSet<NodeId> = desired.iter().filter(|id| voters.contains(id) || caught_up(id)).copied().collect();
    if let Some(step) = change_voters(facts, voters, &desired, &ready) {
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

/// Voters of whom no majority answers could never commit their own configuration.
fn is_majority(answering: &BTreeSet<NodeId>, voters: &BTreeSet<NodeId>) -> bool {
    voters.intersection(answering).count() * 2 > voters.len()
}

/// The members that should vote: those that do and stay, then learners, then reachable standbys by name.
fn desired_voters(facts: &Facts, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let staying = || facts.members.iter().filter(|m| !m.leaving);
    let wanted = facts.replication_factor.min(staying().count());
    let rank = |m: &&Member| {
        let id = &m.node_id;
        // The leader first, so that a smaller replication factor costs no election; then voters that answer, so that it
        // does not rest on dead ones.
        let answers = facts.reachable.contains(id);
        (*id != facts.leader, !voters.contains(id), !answers, !facts.learners.contains(id), m.name.clone())
    };
    let mut candidates: Vec<&Member> =
        staying().filter(|m| voters.contains(&m.node_id) || facts.reachable.contains(&m.node_id)).collect();
    candidates.sort_by_key(rank);
    candidates.into_iter().take(wanted).map(|m| m.node_id).collect()
}

/// Runs the reconciler of `core` until it ends. Only acts while this node leads.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut directory = core.state.directory_watch();
    let mut last_refusal = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            Ok(()) = directory.changed() => {}
            () = core.cancel.cancelled() => return,
        }
        while core.is_leader() && !core.cancel.is_cancelled() {
            let Some((step, decided_on)) = look(&node, &core) else { break };
            tracing::info!(?step, "membership step");
            let taken = tokio::select! {
                taken = tokio::time::timeout(STEP_TIMEOUT, take(&node, &core, step, decided_on)) => taken,
                () = core.cancel.cancelled() => return,
            };
            let refusal = match taken {
                Ok(Ok(())) => continue,
                Ok(Err(why)) => why,
                Err(_) => format!("not done within {STEP_TIMEOUT:?}"),
            };
            if refusal != last_refusal {
                tracing::warn!(why = refusal, "a membership step was not taken; it is decided afresh");
                last_refusal = refusal;
            }
            break;
        }
    }
}

type MembershipLogId = Option<hexkv_store::LogId>;

fn look(node: &Node, core: &Core) -> Option<(Step, MembershipLogId)> {
    let metrics = core.raft.metrics().borrow_watched().clone();
    // What earlier leaders committed is in the directory once an entry of this leader's own term is applied.
    if core.state.applied().is_none_or(|id| id.leader_id.term != metrics.current_term) {
        return None;
    }
    let membership = metrics.membership_config.membership();
    let last = metrics.last_log_index.map_or(0, |i| i + 1);
    let matched = metrics.replication.unwrap_or_default();
    let lag =
        |(id, m): (&NodeId, &Option<hexkv_store::LogId>)| m.as_ref().map(|m| (*id, last.saturating_sub(m.index + 1)));
    let reached = |id: &NodeId| node.network.last_contact(*id).is_some_and(|t| t.elapsed() < REACHABLE_WITHIN);
    let members = core.state.members();
    let facts = Facts {
        leader: core.id,
        replication_factor: core.state.replication_factor() as usize,
        voter_sets: membership.get_joint_config().clone(),
        learners: membership.learner_ids().collect(),
        lag_entries: matched.iter().filter_map(lag).collect(),
        reachable: members.iter().map(|m| m.node_id).filter(|id| *id == core.id || reached(id)).collect(),
        members,
    };
    // A cluster that is being founded has a voter before it has a directory.
    if facts.members.is_empty() {
        return None;
    }
    next_step(&facts).map(|step| (step, *metrics.membership_config.log_id()))
}

async fn take(node: &Node, core: &Core, step: Step, decided_on: MembershipLogId) -> Result<(), String> {
    let unchanged = [Precondition::LastMembershipLogId { last_membership_log_id: decided_on }];
    let changes = match step {
        Step::FinishJoint(voters) => ChangeMembers::ReplaceAllVoters(voters),
        Step::SetVoters(voters) => {
            let answering = answering_now(node, core, &voters).await;
            if !is_majority(&answering, &voters) {
                return Err(format!("of the voters to be {voters:x?} only {answering:x?} answer"));
            }
            ChangeMembers::ReplaceAllVoters(voters)
        }
        Step::AddLearner(id) => {
            let member = core.state.members().into_iter().find(|m| m.node_id == id).ok_or("the member is gone")?;
            node.network.address_book().set(id, member.raft.clone());
            ChangeMembers::AddNodes(BTreeMap::from([(id, NodeAddress { name: member.name, raft: member.raft })]))
        }
        Step::DropLearners(ids) => ChangeMembers::RemoveNodes(ids),
        Step::HandOver(to) => {
            // openraft serves nobody between the hand-over and the next election.
            if !answering_now(node, core, &BTreeSet::from([to])).await.contains(&to) {
                return Err(format!("{to:x}, which is to lead, does not answer"));
            }
            core.raft.trigger().transfer_leader(to).await.map_err(|e| e.to_string())?;
            // The trigger only asks; the caller bounds the wait.
            let mut server = core.raft.server_metrics();
            while server.borrow_watched().current_leader == Some(core.id) {
                server.changed().await.map_err(|e| e.to_string())?;
            }
            return Ok(());
        }
        Step::Forget(id) => {
            return node.propose(&Command::RemoveMember(id), STEP_TIMEOUT).await.map(|_| ()).map_err(|e| e.to_string());
        }
    };
    core.raft.change_membership_if(changes, false, unchanged).await.map(|_| ()).map_err(|e| e.to_string())
}

/// Which of `ids` answer at this moment, this node among them. Whoever lost its disk answers under another id, if at all, and
/// so does not count: a joint configuration that needs it could never be finished.
pub(crate) async fn answering_now(node: &Node, core: &Core, ids: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let members = core.state.members();
    let others = members.iter().filter(|m| m.node_id != core.id && ids.contains(&m.node_id));
    let ask = |m: &Member| {
        let (id, address) = (m.node_id, m.raft.clone());
        async move {
            let asked = node.network.request(id, &address, PeerRequest::ClusterInfo, PROBE_TIMEOUT).await;
            asked.is_ok().then_some(id)
        }
    };
    let answered = join_all(others.map(ask)).await.into_iter().flatten();
    answered.chain(ids.contains(&core.id).then_some(core.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(
            next_step(&alone),
            Some(Step::DropLearners(set(&[2]))),
            "two voters, one of them dead, are no quorum"
        );
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
}
