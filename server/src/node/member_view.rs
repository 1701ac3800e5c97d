//! Which nodes take part in the cluster's Raft, as other members report it. The node's own Raft knows that too, but not in time: the
//! membership of a node that has just joined is empty, and that of a node that was away may be so old that it lacks the leader.
//!
//! Only answers from addresses of members, and from those where discovery finds nodes, count: what a node claims for itself proves nothing.
//! The one exception is a node that is cut off, see [`Node::is_cut_off`].

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use hexkv_raft_net::rpc::ClusterInfo;
use hexkv_store::NodeId;
use openraft::async_runtime::WatchReceiver;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::Node;

/// A node that no leader, and no member it knows, has answered for this long is cut off.
const CUT_OFF_AFTER: Duration = Duration::from_secs(10);
/// Between two lines that say that a cut-off node takes messages of nodes it does not know.
const CUT_OFF_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The members' reports. Invariant: each part is the result of one round of requests, so that nodes which left are forgotten with the next.
#[derive(Debug, Default)]
pub struct MemberView {
    by_members: RwLock<Round>,
    by_discovery: RwLock<Round>,
    /// A node that is in neither this view nor Raft's membership sent one of Raft's messages.
    stranger: AtomicBool,
    cut_off_logged: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Round {
    /// Voters and learners.
    raft: BTreeSet<NodeId>,
    /// Members, standbys included.
    members: BTreeSet<NodeId>,
    term: u64,
}

impl Round {
    fn add(&mut self, info: &ClusterInfo) {
        self.raft.extend(info.voters.iter().chain(&info.learners));
        self.members.extend(info.members.iter().map(|member| member.node_id));
        self.term = self.term.max(info.term);
    }

    fn of<'a>(infos: impl IntoIterator<Item = &'a ClusterInfo>) -> Self {
        let mut round = Self::default();
        infos.into_iter().for_each(|info| round.add(info));
        round
    }
}

impl MemberView {
    /// Takes in what one round of questions to members gave.
    pub fn set<'a>(&self, infos: impl IntoIterator<Item = &'a ClusterInfo>) {
        *self.by_members.write() = Round::of(infos);
    }

    /// Takes in what one search where discovery finds nodes gave.
    pub fn set_discovered<'a>(&self, infos: impl IntoIterator<Item = &'a ClusterInfo>) {
        *self.by_discovery.write() = Round::of(infos);
    }

    /// Forgets everything: this node is in another cluster, or begins again.
    pub fn clear(&self) {
        self.set([]);
        self.set_discovered([]);
    }

    /// Whether `node` is a voter or learner.
    pub fn is_in_raft(&self, node: NodeId) -> bool {
        self.by_members.read().raft.contains(&node) || self.by_discovery.read().raft.contains(&node)
    }

    /// Whether `node` is a member, if only a standby.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.by_members.read().members.contains(&node) || self.by_discovery.read().members.contains(&node)
    }

    /// The highest term.
    pub fn term(&self) -> u64 {
        self.by_members.read().term.max(self.by_discovery.read().term)
    }

    fn log_cut_off(&self) {
        let mut logged = self.cut_off_logged.lock();
        if logged.is_none_or(|at| at.elapsed() >= CUT_OFF_LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(
                "no member that this node knows answers; Raft messages of nodes that it does not know count until one does"
            );
        }
    }

    /// Notes that a node which is not known sent one of Raft's messages.
    pub fn note_stranger(&self) {
        self.stranger.store(true, Ordering::Relaxed);
    }

    /// Whether that was so since the last call: the others may know that node.
    pub fn take_stranger(&self) -> bool {
        self.stranger.swap(false, Ordering::Relaxed)
    }
}

impl Node {
    /// Whether this node is a voter that no leader has answered recently, nor any of the members that it knows. All of them may have been
    /// replaced while this node was down, and the cluster may have no majority without it. Then the messages of any node that knows
    /// the cookie and the cluster's id count, since Raft needs that. What such a node can do is bounded: committed entries stay, and
    /// terms grow by [`hexkv_raft_net::TERM_LEAP_MAX`] a message.
    pub fn is_cut_off(&self) -> bool {
        // Raft names the leader of before until an election: only an answer shows that it is there.
        let Some(core) = self.core().filter(|core| core.age() >= CUT_OFF_AFTER) else { return false };
        if self.was_accepted_within(CUT_OFF_AFTER) {
            return false;
        }
        let metrics = core.raft.server_metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let voters: BTreeSet<NodeId> = membership.membership().voter_ids().collect();
        let answered = |id: NodeId| self.network.last_contact(id).is_some_and(|at| at.elapsed() < CUT_OFF_AFTER);
        let known = self.known_peers().into_iter().map(|(id, _)| id).chain(voters.iter().copied());
        let cut_off = voters.len() > 1 && voters.contains(&core.id) && !known.filter(|id| *id != core.id).any(answered);
        if cut_off {
            self.member_view.log_cut_off();
        }
        cut_off
    }

    /// Whether `node` is a member of this node's cluster, as far as this node knows.
    pub fn knows_member(&self, node: NodeId) -> bool {
        let applied = |core: &crate::core::Core| {
            let in_raft = || {
                let metrics = core.raft.server_metrics();
                let metrics = metrics.borrow_watched();
                metrics.membership_config.membership().get_node(&node).is_some()
            };
            core.state.has_member(node) || in_raft()
        };
        self.core().is_some_and(|core| applied(&core))
            || self.member_view.is_member(node)
            || self.member_view.is_in_raft(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(term: u64, voters: &[NodeId], learners: &[NodeId]) -> ClusterInfo {
        ClusterInfo { term, voters: voters.to_vec(), learners: learners.to_vec(), ..ClusterInfo::default() }
    }

    #[test]
    fn a_round_replaces_the_one_before_it() {
        let view = MemberView::default();
        view.set(&[info(3, &[1, 2], &[4]), info(5, &[1], &[])]);
        assert!([1, 2, 4].into_iter().all(|node| view.is_in_raft(node)) && !view.is_in_raft(3));
        assert_eq!(view.term(), 5);
        view.set(&[info(6, &[3], &[])]);
        assert!(view.is_in_raft(3) && !view.is_in_raft(1), "it left");
        view.set_discovered(&[info(4, &[9], &[])]);
        view.set(&[]);
        assert!(view.is_in_raft(9) && !view.is_in_raft(3));
        view.clear();
        assert!(!view.is_in_raft(9));
    }

    #[test]
    fn a_stranger_is_looked_up_once() {
        let view = MemberView::default();
        assert!(!view.take_stranger());
        view.note_stranger();
        assert!(view.take_stranger() && !view.take_stranger());
    }
}
