//! What one round does that confirms reads: it asks a quorum, or looks at the lease that a quorum gave the leader.
//!
//! The lease. A voter that accepts AppendEntries votes for nobody else for an election timeout, the longest one that it
//! is configured with, by its own monotonic clock ([`hexkv_raft_net::Grant`]); one that was restarted waits as long
//! before it votes ([`crate::core::Core::answers_votes`]). So nobody else leads while a majority's time runs. The leader
//! counts from when it sent the AppendEntries, and uses 1/[`LEASE_SHARE`] of that time: it is right as long as no
//! voter's clock runs [`LEASE_SHARE`] times as fast as its own.

use std::{collections::BTreeSet, time::Duration};

use hexkv_client::api::Code;
use hexkv_raft_net::{
    Grant, Network,
    rpc::{PeerRequest, PeerResponse},
    transport::AnyTransport,
};
use hexkv_store::{
    NodeId,
    mutants::{self, Mutant},
};
use openraft::{
    LinearizerOption, ReadPolicy,
    async_runtime::WatchReceiver,
    errors::{LinearizableReadError, RaftError},
};
use tokio::time::Instant;

use crate::{
    core::{Raft, known_leader},
    error::Error,
};

/// The leader reads under this part of the time in which voters vote for nobody else.
pub const LEASE_SHARE: u32 = 2;
/// A follower asks the leader for a read index at most this long, then asks anew (the leader may have changed).
const READ_INDEX_TIMEOUT: Duration = Duration::from_millis(1500);

/// A read index that a quorum confirms: on the leader by being asked, elsewhere by asking the leader.
pub async fn quorum_round(raft: &Raft, network: &Network<AnyTransport>) -> Result<u64, Error> {
    let leader = known_leader(&raft.server_metrics().borrow_watched());
    if leader != Some(*raft.node_id()) {
        return ask_leader(leader, network, PeerRequest::ReadIndex).await;
    }
    if mutants::active(Mutant::ReadIndexWithoutQuorum) {
        return committed_next_index(raft, true);
    }
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(_) if mutants::active(Mutant::ReadIndexBeforeOwnTerm) => committed_next_index(raft, false),
        Ok(linearizer) => Ok(linearizer.read_log_id().index() + 1),
        Err(RaftError::APIError(
            LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_),
        )) => Err(Error::no_leader()),
        Err(RaftError::Fatal(e)) => Err(stops(&e)),
    }
}

/// A read index under the leader's lease, which voters give for `granted`; where that is used up, as [`quorum_round`].
pub async fn lease_round(raft: &Raft, network: &Network<AnyTransport>, granted: Duration) -> Result<u64, Error> {
    let leader = known_leader(&raft.server_metrics().borrow_watched());
    if leader != Some(*raft.node_id()) {
        return ask_leader(leader, network, PeerRequest::LeaseIndex).await;
    }
    match index_under_lease(raft, network, granted).await? {
        Some(index) => Ok(index),
        None => quorum_round(raft, network).await,
    }
}

/// The read index of a leader whose lease runs; None when it does not, or leadership is being handed over.
async fn index_under_lease(
    raft: &Raft,
    network: &Network<AnyTransport>,
    granted: Duration,
) -> Result<Option<u64>, Error> {
    let usable = if mutants::active(Mutant::LeaseReadWithoutDriftBound) { granted * 8 } else { granted / LEASE_SHARE };
    // Whether this node leads, has a lease by openraft's looser rule, and hands leadership over to nobody; and an index
    // of its own term. All of that at one moment: openraft's core does one thing at a time.
    let option = LinearizerOption::new(None, false).with_wait_timeout(Duration::ZERO);
    let (leader, index) = match raft.get_read_linearizer(option).await {
        Ok(linearizer) => (*linearizer.read_log_id().committed_leader_id(), linearizer.read_log_id().index()),
        Err(RaftError::Fatal(e)) => return Err(stops(&e)),
        Err(RaftError::APIError(_))
            if mutants::active(Mutant::LeaseReadWithoutDriftBound)
                || mutants::active(Mutant::LeaseNotRecheckedAfterPause) =>
        {
            let Some(committed) = raft.metrics().borrow_watched().local_committed else { return Ok(None) };
            (committed.leader_id, committed.index)
        }
        Err(RaftError::APIError(
            LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_),
        )) => return Ok(None),
    };
    // A lease that runs now ran at that moment.
    let voters: Vec<BTreeSet<NodeId>> = {
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().clone()
    };
    let granted_at = |peer: NodeId| {
        let grant: Grant = network.granted(peer)?;
        ((grant.term, grant.leader) == (leader.term, leader.node_id)).then_some(grant.asked_at)
    };
    let now = Instant::now();
    let runs = |asked_at: Instant| {
        mutants::active(Mutant::LeaseNotRecheckedAfterPause) || now.saturating_duration_since(asked_at) < usable
    };
    let follows = |peer: NodeId| peer == *raft.node_id() || granted_at(peer).is_some_and(runs);
    Ok(majorities(&voters, follows).then_some(index + 1))
}

/// Whether in each of the configurations (two while the voters change) a majority `follows`.
fn majorities(configurations: &[BTreeSet<NodeId>], follows: impl Fn(NodeId) -> bool) -> bool {
    let of_one = |voters: &BTreeSet<NodeId>| voters.iter().filter(|id| follows(**id)).count() > voters.len() / 2;
    !configurations.is_empty() && configurations.iter().all(of_one)
}

async fn ask_leader(
    leader: Option<NodeId>,
    network: &Network<AnyTransport>,
    request: PeerRequest,
) -> Result<u64, Error> {
    let Some(leader) = leader else { return Err(Error::no_leader()) };
    let Some(address) = network.address_book().get(leader) else { return Err(Error::no_leader()) };
    match network.request(leader, &address, request, READ_INDEX_TIMEOUT).await {
        Ok(PeerResponse::ReadIndex(index)) => Ok(index),
        Ok(PeerResponse::Error(e)) => Err(e.into()),
        Ok(other) => Err(Error::new(Code::Internal, format!("unexpected answer {other:?}"))),
        Err(e) => {
            tracing::debug!(error = %e, "the leader did not answer a read index request");
            Err(Error::no_leader())
        }
    }
}

/// The read index that a mutant gives: this node's bare commit index, of its own term or of any.
fn committed_next_index(raft: &Raft, of_own_term: bool) -> Result<u64, Error> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let committed = metrics.local_committed.filter(|id| !of_own_term || id.leader_id.term == metrics.current_term);
    committed.map(|id| id.index + 1).ok_or_else(Error::no_leader)
}

fn stops(why: &dyn std::fmt::Display) -> Error {
    Error::new(Code::Unavailable, format!("this node stops: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_takes_a_majority_of_each_configuration() {
        let set = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let holds = |configurations: &[BTreeSet<NodeId>], following: &[NodeId]| {
            majorities(configurations, |id| following.contains(&id))
        };
        assert!(holds(&[set(&[1])], &[1]), "alone");
        assert!(holds(&[set(&[1, 2, 3])], &[1, 3]));
        assert!(!holds(&[set(&[1, 2, 3])], &[1]));
        assert!(!holds(&[set(&[1, 2, 3, 4])], &[1, 2]), "half is no majority");
        assert!(!holds(&[set(&[2, 3])], &[1, 2]), "a leader that votes no more does not count");
        assert!(!holds(&[set(&[1, 2, 3]), set(&[1, 4, 5])], &[1, 2, 3]), "of the old voters only");
        assert!(holds(&[set(&[1, 2, 3]), set(&[1, 4, 5])], &[1, 2, 5]));
        assert!(!holds(&[], &[1]));
    }
}
