//! Keeps this node's knowledge of the others current: whom it reached lately, who leads, what its own place is,
//! and whether the states agree.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hexkv_raft_net::rpc::{ClusterInfo, PeerRequest, PeerResponse, StateHash};
use hexkv_store::{NodeId, command::Command, member::Member, raft_types::Vote};
use openraft::{async_runtime::WatchReceiver, impls::leader_id_adv::LeaderId, raft::AppendEntriesRequest};
use tokio::time::Instant;

use crate::{
    core::Core,
    kv::confirm,
    node::{Node, Position},
    reads::Basis,
    rebuild,
    service::state_hash,
};

/// How often the other members are asked.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// One question.
const ASK_TIMEOUT: Duration = Duration::from_millis(1000);
/// Without a leader for so long, the others are asked whether this node is still a member.
const LEADERLESS: Duration = Duration::from_millis(1500);

/// Runs the monitor of `core` until it ends.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut directory = core.state.directory_watch();
    let mut leader_seen = Instant::now();
    let mut tick = tokio::time::interval(ASK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let looked = tokio::select! {
            _ = tick.tick() => true,
            Ok(()) = directory.changed() => false,
            () = core.cancel.cancelled() => return,
        };
        node.observe(None);
        if !looked {
            continue;
        }
        let work = async {
            // A leader is in touch when a majority confirms it: it may have been deposed, and removed, unawares.
            if !core.is_leader() && ask_leader(&node).await {
                leader_seen = Instant::now();
            } else if node.position() != Position::Holder || leader_seen.elapsed() > LEADERLESS {
                ask_others(&node, &core).await;
            }
            if node.position() == Position::Holder {
                if stay_fresh(&core).await && core.is_leader() {
                    leader_seen = Instant::now();
                }
                compare_states(&node, &core).await;
            }
            remember(&node).await;
            announce(&node, &core).await;
        };
        tokio::select! {
            () = work => {}
            () = core.cancel.cancelled() => return,
        }
    }
}

/// Keeps the bound on how old this node's state is small, so that stale reads can tell it without asking anyone. Answers
/// whether a majority confirmed it.
async fn stay_fresh(core: &Core) -> bool {
    let confirmed = confirm(core, Basis::Quorum, Instant::now() + ASK_TIMEOUT).await;
    if let Err(e) = &confirmed {
        tracing::debug!(error = %e, "this node's state could not be confirmed");
    }
    confirmed.is_ok()
}

/// Asks all other members for their state hash: it shows that they live, and that their state is ours. And it keeps a
/// connection to each of them open, so that an election need not begin with making it.
async fn compare_states(node: &Arc<Node>, core: &Core) {
    let others: Vec<Member> = core.state.members().into_iter().filter(|m| m.node_id != core.id).collect();
    let ask = |m: &Member| {
        let (id, address) = (m.node_id, m.raft.clone());
        async move { (id, node.network.request_urgent(id, &address, PeerRequest::StateHash, ASK_TIMEOUT).await) }
    };
    let answers: BTreeMap<NodeId, StateHash> = join_all(others.iter().map(ask))
        .await
        .into_iter()
        .filter_map(|(id, answer)| match answer {
            Ok(PeerResponse::StateHash(hash)) => Some((id, hash)),
            Ok(_) | Err(_) => None,
        })
        .collect();
    if node.divergence().is_some() {
        return;
    }
    let voters: Vec<NodeId> = core.raft.voter_ids().collect();
    let theirs: Vec<&StateHash> = answers.iter().filter(|(id, _)| voters.contains(id)).map(|(_, h)| h).collect();
    if let Some((index, mine, other)) = outvoted(&state_hash(core), &theirs, voters.len()) {
        node.set_divergent(format!("at log index {index} the hash is {mine:032x} here, {other:032x} on most voters"));
        rebuild::begin(node);
    }
}

/// The newest checkpoint at which a majority of all `voters` has one hash, and this node another.
fn outvoted(mine: &StateHash, theirs: &[&StateHash], voters: usize) -> Option<(u64, u128, u128)> {
    mine.checkpoints.iter().find_map(|(index, hash)| {
        let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
        for other in theirs {
            if let Some((_, h)) = other.checkpoints.iter().find(|(i, _)| i == index) {
                *votes.entry(*h).or_default() += 1;
            }
        }
        votes.into_iter().find(|(h, n)| h != hash && *n > voters / 2).map(|(h, _)| (*index, *hash, h))
    })
}

/// Asks the leader that this node believes in whether it leads, and what the members are: a node that was taken
/// out of the Raft membership gets no more entries that could tell it. Answers whether the leader answered.
async fn ask_leader(node: &Node) -> bool {
    let Some(leader) = node.leader_id() else { return false };
    let Some(address) = node.network.address_book().get(leader) else { return false };
    match node.network.request(leader, &address, PeerRequest::ClusterInfo, ASK_TIMEOUT).await {
        Ok(PeerResponse::ClusterInfo(info)) if info.leader == Some(leader) => {
            node.observe(Some(info));
            true
        }
        Ok(_) | Err(_) => false,
    }
}

/// A node that is not in touch with its leader, or holds no data, learns from the others what the cluster is. If it holds
/// itself for the leader, and another one was elected later, it leads no more.
pub(crate) async fn ask_others(node: &Node, core: &Core) {
    let identity = node.identity();
    if identity.cluster_id.is_none() {
        return;
    }
    let ask = |(id, address): (NodeId, String)| async move {
        match node.network.request(id, &address, PeerRequest::ClusterInfo, ASK_TIMEOUT).await {
            Ok(answer) => Ok(answer),
            // Whoever left and joined again answers there under another id. When all others did, nobody else could tell
            // this node that it is no member any more.
            Err(_) => {
                node.network.request_as_guest(&address, PeerRequest::ClusterInfo, ASK_TIMEOUT).await.map(|(_, a)| a)
            }
        }
    };
    let others = node.known_peers().into_iter().filter(|(id, _)| *id != core.id);
    let told = join_all(others.map(ask)).await.into_iter().filter_map(|answer| match answer {
        Ok(PeerResponse::ClusterInfo(info)) => Some(info),
        Ok(_) | Err(_) => None,
    });
    // Only who knows at least as much as this node can tell it anything; a standby without a leader may know less.
    let applied = core.state.applied().map_or(0, |id| id.index);
    let knows_more = |info: &ClusterInfo| {
        !info.members.is_empty() && info.applied_index >= applied && info.cluster_id == identity.cluster_id
    };
    let best = told.filter(knows_more).max_by_key(|info| (info.term, info.leader.is_some(), info.applied_index));
    let Some(info) = best else { return };
    if core.is_leader() {
        step_down(node, core, &info).await;
    }
    node.observe(Some(info));
}

/// A deposed leader that was removed hears of it from nobody: whoever leads now sends it nothing, the voters that it
/// knows may be gone, and openraft sends no heartbeats between a hand-over and the next election. So it asks the leader
/// that the others named, and takes its answer for the heartbeat that it did not get.
async fn step_down(node: &Node, core: &Core, told: &ClusterInfo) {
    let own = core.raft.server_metrics().borrow_watched().vote.leader_id;
    let named = told.leader.filter(|id| *id != core.id && told.term > own.term);
    let Some(leader) = told.members.iter().find(|m| Some(m.node_id) == named) else { return };
    let asked = node.network.request(leader.node_id, &leader.raft, PeerRequest::ClusterInfo, ASK_TIMEOUT).await;
    let Ok(PeerResponse::ClusterInfo(info)) = asked else { return };
    // What others say of a leader may mix two terms; only a leader names itself together with its own term.
    let leads = info.node_id == leader.node_id && info.leader == Some(info.node_id) && info.term > own.term;
    if !leads || info.cluster_id != node.identity().cluster_id {
        return;
    }
    let vote = Vote { leader_id: LeaderId { term: info.term, node_id: info.node_id }, committed: true };
    let heartbeat = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
    // A core that waits for its disk answers nothing.
    match tokio::time::timeout(ASK_TIMEOUT, core.raft.append_entries(heartbeat)).await {
        Err(_) => tracing::debug!("Raft does not answer; it is tried again"),
        Ok(Ok(answer)) => {
            tracing::warn!(
                leader = leader.name,
                term = info.term,
                ?answer,
                "deposed unawares; this node leads no more"
            );
        }
        Ok(Err(e)) => tracing::warn!(error = %e, "Raft was not told that this node leads no more; it is tried again"),
    }
}

/// Keeps the member list on disk, for a start at which this node holds no state of its own.
async fn remember(node: &Node) {
    let members = node.cluster().members;
    if members.is_empty() || node.peers_remembered(&members) {
        return;
    }
    match node.data.lock().await.store_peers(&members) {
        Ok(()) => node.remember_peers(members),
        Err(e) => tracing::warn!(error = %e, "the member list was not saved; it is tried again"),
    }
}

/// Tells the cluster this node's addresses and version, when they changed since it last ran.
async fn announce(node: &Node, core: &Core) {
    let members = node.cluster().members;
    let Some(known) = members.iter().find(|m| m.node_id == core.id) else { return };
    let me = Member { leaving: known.leaving, ..node.as_member(core.id) };
    if *known == me {
        return;
    }
    tracing::info!(http = me.http, raft = me.raft, "announcing new addresses");
    if let Err(e) = node.propose(&Command::PutMember { member: me, replaces: None }, ASK_TIMEOUT).await {
        tracing::debug!(error = %e, "the addresses were not announced yet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(checkpoints: &[(u64, u128)]) -> StateHash {
        StateHash { applied_index: 0, revision: 0, hash: 0, checkpoints: checkpoints.to_vec() }
    }

    #[test]
    fn a_minority_state_is_outvoted_and_a_majority_one_is_not() {
        let (good, bad) = (hash(&[(2000, 7), (1000, 5)]), hash(&[(2000, 8), (1000, 5)]));
        assert_eq!(outvoted(&bad, &[&good, &good], 3), Some((2000, 8, 7)));
        assert_eq!(outvoted(&good, &[&good, &bad], 3), None);
        assert_eq!(outvoted(&bad, &[&good], 3), None, "one of three is no majority");
        assert_eq!(outvoted(&hash(&[(3000, 1)]), &[&good, &good], 3), None, "no common checkpoint");
    }
}
