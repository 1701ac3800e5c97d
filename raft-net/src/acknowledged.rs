//! What each follower acknowledged to this leader, and which of them lost it.
//!
//! A follower that acknowledged an entry and then reports that it is missing has lost its disk's content: it was rolled back, or did
//! not keep what it reported as synced. openraft keeps the acknowledged position, and would search below and above it in turn
//! without an end. So such a conflict never reaches openraft: the follower counts as unreachable, and has to come back as a new
//! member.

use std::{collections::BTreeMap, time::Duration};

use hexkv_store::{NodeId, raft_types::LogId, raft_types::Vote};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The second log line about a follower that lost entries comes after this time; each later one after twice as long.
const LOG_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// Longest time between two log lines about a follower that lost entries.
const LOG_INTERVAL_MAX: Duration = Duration::from_secs(300);
/// A follower is reported for this long after the last sign that it lost entries.
const REPORTED: Duration = Duration::from_secs(60);

/// A follower that lost entries which it acknowledged to this leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostEntries {
    /// The follower.
    pub node_id: NodeId,
    /// Index of the last entry that it acknowledged.
    pub acknowledged: u64,
    /// Index of an entry that it acknowledged and does not hold.
    pub missing: u64,
}

/// Invariant: `matched` only grows under one vote; an entry that was acknowledged under it stays in the follower's log as long as
/// this node leads by it.
#[derive(Debug)]
struct Follower {
    vote: Vote,
    matched: u64,
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Lost {
    missing: u64,
    last: Instant,
    log_after: Instant,
    log_interval: Duration,
}

/// The followers of this node, as far as it led them.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged(Mutex<BTreeMap<NodeId, Follower>>);

impl Acknowledged {
    /// `peer` holds entries up to `matched`, and said so to this leader under `vote`.
    pub(crate) fn note(&self, peer: NodeId, vote: &Vote, matched: Option<LogId>) {
        let Some(matched) = matched.map(|id| id.index) else { return };
        let mut followers = self.0.lock();
        let follower = followers.entry(peer).or_insert(Follower { vote: *vote, matched, lost: None });
        if follower.vote == *vote {
            follower.matched = follower.matched.max(matched);
        } else if (vote.leader_id.term, vote.leader_id.node_id)
            > (follower.vote.leader_id.term, follower.vote.leader_id.node_id)
        {
            *follower = Follower { vote: *vote, matched, lost: None };
        }
    }

    /// Whether `peer` acknowledged the entry at `index` to this leader under `vote`.
    pub(crate) fn covers(&self, peer: NodeId, vote: &Vote, index: u64) -> bool {
        self.0.lock().get(&peer).is_some_and(|f| f.vote == *vote && f.matched >= index)
    }

    /// `peer` does not hold the entry at `missing`, which it acknowledged under `vote`. Logged, less and less often.
    pub(crate) fn note_lost(&self, peer: NodeId, vote: &Vote, missing: u64) {
        let now = Instant::now();
        let mut followers = self.0.lock();
        let follower = followers.entry(peer).or_insert(Follower { vote: *vote, matched: missing, lost: None });
        let acknowledged = follower.matched;
        let lost =
            follower.lost.get_or_insert(Lost { missing, last: now, log_after: now, log_interval: LOG_INTERVAL_MIN });
        (lost.missing, lost.last) = (missing.min(lost.missing), now);
        if now >= lost.log_after {
            lost.log_after = now + lost.log_interval;
            lost.log_interval = (lost.log_interval * 2).min(LOG_INTERVAL_MAX);
            tracing::error!(
                node = format_args!("{peer:016x}"),
                acknowledged,
                missing,
                "a follower lost log entries that it acknowledged; it gets no more until it comes back as a new member"
            );
        }
    }

    /// Followers that lost entries, by the signs of the last minute.
    pub(crate) fn lost(&self) -> Vec<LostEntries> {
        let followers = self.0.lock();
        let of = |(node_id, f): (&NodeId, &Follower)| {
            let lost = f.lost.as_ref().filter(|lost| lost.last.elapsed() < REPORTED)?;
            Some(LostEntries { node_id: *node_id, acknowledged: f.matched, missing: lost.missing })
        };
        followers.iter().filter_map(of).collect()
    }

    /// Forgets followers that are not in `keep`.
    pub(crate) fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        self.0.lock().retain(|peer, _| keep(*peer));
    }
}

#[cfg(test)]
mod tests {
    use hexkv_store::TypeConfig;
    use openraft::vote::{RaftLeaderId, RaftVote};

    use super::*;

    fn vote(term: u64) -> Vote {
        Vote::from_leader_id(openraft::type_config::alias::LeaderIdOf::<TypeConfig>::new(term, 1), true)
    }

    fn up_to(index: u64) -> Option<LogId> {
        let leader = openraft::type_config::alias::LeaderIdOf::<TypeConfig>::new(1, 1);
        Some(LogId::new(leader.to_committed(), index))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_acknowledged_to_an_earlier_leader_may_be_cut() {
        let acknowledged = Acknowledged::default();
        acknowledged.note(2, &vote(3), up_to(9));
        assert!(acknowledged.covers(2, &vote(3), 9) && !acknowledged.covers(2, &vote(3), 10));
        assert!(!acknowledged.covers(2, &vote(4), 9), "another term: not acknowledged yet");
        acknowledged.note(2, &vote(4), up_to(5));
        acknowledged.note(2, &vote(3), up_to(9));
        assert!(
            acknowledged.covers(2, &vote(4), 5) && !acknowledged.covers(2, &vote(4), 6),
            "an answer that came late"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_is_reported_until_it_is_over() {
        let acknowledged = Acknowledged::default();
        acknowledged.note(2, &vote(3), up_to(9));
        acknowledged.note_lost(2, &vote(3), 9);
        acknowledged.note_lost(2, &vote(3), 4);
        assert_eq!(acknowledged.lost(), [LostEntries { node_id: 2, acknowledged: 9, missing: 4 }]);
        tokio::time::advance(REPORTED).await;
        assert_eq!(acknowledged.lost(), []);
    }
}
