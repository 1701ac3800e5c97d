//! What a peer's answers to AppendEntries are worth to a leader as a lease.

use std::collections::BTreeMap;

use hexkv_store::{NodeId, raft_types::Vote};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A peer follows a leader: for an election timeout of its own clock, counted from some moment after `asked_at`, it
/// votes for nobody else, unless that leader itself hands leadership over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The term in which the leader leads.
    pub term: u64,
    /// The leader.
    pub leader: NodeId,
    /// When the AppendEntries that the peer accepted was handed to the network, by this node's clock.
    pub asked_at: Instant,
}

/// The newest grant of each peer.
///
/// openraft's own record is not exact enough to read by: the answer to one AppendEntries also counts for an entry-less
/// one that was sent behind it and ends at the same log id, and may never arrive. Here each answer counts for its own
/// request.
///
/// Invariant: a peer's grant gives way to one of a later term, or of the same leadership and asked for later.
#[derive(Debug, Default)]
pub(crate) struct Grants(Mutex<BTreeMap<NodeId, Grant>>);

impl Grants {
    /// `peer` accepted an AppendEntries under `vote`, which was sent at `asked_at`.
    pub(crate) fn note(&self, peer: NodeId, vote: &Vote, asked_at: Instant) {
        let new = Grant { term: vote.leader_id.term, leader: vote.leader_id.node_id, asked_at };
        let rank = |grant: &Grant| (grant.term, grant.leader, grant.asked_at);
        let mut grants = self.0.lock();
        let held = grants.entry(peer).or_insert(new);
        if rank(&new) > rank(held) {
            *held = new;
        }
    }

    /// The newest grant of `peer`.
    pub(crate) fn of(&self, peer: NodeId) -> Option<Grant> {
        self.0.lock().get(&peer).copied()
    }

    /// Forgets those of nodes that are not in `keep`: a grant that is forgotten is one that nobody relies on.
    pub(crate) fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        self.0.lock().retain(|peer, _| keep(*peer));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hexkv_store::TypeConfig;
    use openraft::vote::{RaftLeaderId, RaftVote};

    use super::*;

    fn vote(term: u64, leader: NodeId) -> Vote {
        let leader = openraft::type_config::alias::LeaderIdOf::<TypeConfig>::new(term, leader);
        Vote::from_leader_id(leader, true)
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_gives_way_to_a_later_one_only() {
        let grants = Grants::default();
        let early = Instant::now();
        let late = early + Duration::from_millis(5);
        grants.note(2, &vote(3, 1), late);
        grants.note(2, &vote(3, 1), early);
        assert_eq!(grants.of(2), Some(Grant { term: 3, leader: 1, asked_at: late }), "an answer that came late");
        grants.note(2, &vote(4, 1), early);
        assert_eq!(grants.of(2), Some(Grant { term: 4, leader: 1, asked_at: early }), "of another term: not the same");
        grants.note(2, &vote(3, 1), late);
        assert_eq!(grants.of(2).unwrap().term, 4);
        grants.retain(|peer| peer != 2);
        assert_eq!(grants.of(2), None);
    }
}
