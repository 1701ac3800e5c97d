//! The leader's reconciler: compares the members that the cluster should have with Raft's membership, and takes
//! one step at a time. It alone changes the Raft membership. What to do next is a pure function (`decide::next_step`);
//! every change carries the membership it was decided on as a precondition, so that a leader with stale
//! knowledge changes nothing.

//!
//! | file | holds |
//! |---|---|
//! | `decide` | what is to be done next |
//! | `explain` | the same in words |
//! | `silence` | for how long each member was not heard |

mod decide;
mod explain;
mod silence;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use hexkv_raft_net::rpc::{MembershipStep, PeerRequest};
use hexkv_store::{
    NodeAddress, NodeId,
    command::Command,
    member::Member,
    mutants::{self, Mutant},
};
use openraft::{ChangeMembers, async_runtime::WatchReceiver, raft::Precondition};
use tokio::time::Instant;

use self::{
    decide::{Facts, Step, is_majority, next_step, waits_for_odd},
    explain::{explain, told},
    silence::Silence,
};
use crate::{core::Core, node::Node};

/// How often the leader looks, apart from changes that wake it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// One membership change; beyond, the next look decides afresh.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// A member that answered within this time can be given the data.
const REACHABLE_WITHIN: Duration = Duration::from_millis(1500);
/// Steps that are remembered for whoever asks.
const STEPS_KEPT_MAX: usize = 32;
/// Those who are to vote, or to lead, must answer within this time before that is proposed.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the reconciler of `core` until it ends. Only acts while this node leads.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut directory = core.state.directory_watch();
    let mut last_refusal = String::new();
    let mut silence = Silence::default();
    let mut put_off_since = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            Ok(()) = directory.changed() => {}
            () = core.cancel.cancelled() => return,
        }
        if !core.is_leader() && !mutants::active(Mutant::SilenceOutlivesLeadership) {
            silence.forget();
            put_off_since = None;
        }
        while core.is_leader() && !core.cancel.is_cancelled() {
            let Some((mut facts, decided_on)) = look(&node, &core, &mut silence) else { break };
            put_off_since = waits_for_odd(&facts).then(|| put_off_since.unwrap_or_else(Instant::now));
            facts.put_off = put_off_since.map_or(Duration::ZERO, |since| since.elapsed());
            let mut remarks = explain(&facts);
            remarks.extend(unreached(&node, &facts));
            core.explanation.write().remarks = remarks;
            let Some(step) = next_step(&facts) else { break };
            tracing::info!(?step, "membership step");
            let what = told(&facts, &step);
            let taken = tokio::select! {
                taken = tokio::time::timeout(STEP_TIMEOUT, take(&node, &core, step, decided_on)) => taken,
                () = core.cancel.cancelled() => return,
            };
            let refusal = match taken {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some(why),
                Err(_) => Some(format!("not done within {STEP_TIMEOUT:?}")),
            };
            note(&node, &core, what, refusal.clone());
            let Some(refusal) = refusal else { continue };
            if refusal != last_refusal {
                tracing::warn!(why = refusal, "a membership step was not taken; it is decided afresh");
                last_refusal = refusal;
            }
            break;
        }
    }
}

/// Members that this node has no connection to, each with the reason and what to do about it.
fn unreached(node: &Node, facts: &Facts) -> Vec<String> {
    let silent = facts.members.iter().filter(|m| !facts.reachable.contains(&m.node_id));
    silent.filter_map(|m| Some(unreached_remark(m, &node.network.trouble(m.node_id)?))).collect()
}

/// What is said of `member`, to which no connection can be made for the reason `why`.
fn unreached_remark(member: &Member, why: &str) -> String {
    format!(
        "{} {}, where it is advertised: {why}; start it, or correct ADVERTISE (or HOST) and RAFT_PORT there and restart it",
        unreached_prefix(&member.name),
        member.raft
    )
}

/// What a remark begins with that the leader cannot reach the member `name`.
pub(crate) fn unreached_prefix(name: &str) -> String {
    format!("{name} cannot be reached at")
}

/// Remembers a step. One that is refused again and again is remembered once.
fn note(node: &Node, core: &Core, step: String, refused: Option<String>) {
    let steps = &mut core.explanation.write().steps;
    if steps.last().is_some_and(|last| last.step == step && last.refused.is_some() && last.refused == refused) {
        return;
    }
    if steps.len() == STEPS_KEPT_MAX {
        steps.remove(0);
    }
    let step = MembershipStep { time_ms: core.unix_time_ms(), step, refused };
    node.events.step(node.time(), &node.name, &step);
    steps.push(step);
}

type MembershipLogId = Option<hexkv_store::LogId>;

fn look(node: &Node, core: &Core, silence: &mut Silence) -> Option<(Facts, MembershipLogId)> {
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
    let reachable: BTreeSet<NodeId> =
        members.iter().map(|m| m.node_id).filter(|id| *id == core.id || reached(id)).collect();
    silence.look(Instant::now(), members.iter().map(|m| (m.node_id, reachable.contains(&m.node_id))));
    let facts = Facts {
        leader: core.id,
        replication_factor: core.state.replication_factor() as usize,
        voter_sets: membership.get_joint_config().clone(),
        learners: membership.learner_ids().collect(),
        lag_entries: matched.iter().filter_map(lag).collect(),
        reachable,
        silent: silence.all().clone(),
        replace_after: node.config.replace_after,
        put_off: Duration::ZERO,
        members,
    };
    // A cluster that is being founded has a voter before it has a directory.
    if facts.members.is_empty() {
        return None;
    }
    Some((facts, *metrics.membership_config.log_id()))
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
        let (id, address) = (m.node_id, node.address_of(m));
        async move {
            let asked = node.network.request(id, &address, PeerRequest::ClusterInfo, PROBE_TIMEOUT).await;
            asked.is_ok().then_some(id)
        }
    };
    let answered = join_all(others.map(ask)).await.into_iter().flatten();
    answered.chain(ids.contains(&core.id).then_some(core.id)).collect()
}
