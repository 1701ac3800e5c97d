//! Keeps this node's knowledge of the others current: whom it reached lately, who leads, what its own place is,
//! and whether the states agree.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hexkv_raft_net::rpc::{ClusterInfo, PeerRequest, PeerResponse, StateHash};
use hexkv_store::{NodeId, Proposal, command::Command, member::Member, outcome::Outcome, raft_types::Vote};
use openraft::{async_runtime::WatchReceiver, impls::leader_id_adv::LeaderId, raft::AppendEntriesRequest};
use tokio::time::Instant;

use crate::{
    core::Core,
    kv::confirm,
    lost_entries,
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

/// Shortest and longest time between two announcements of this node's addresses.
const ANNOUNCE_PAUSE_MIN: Duration = Duration::from_secs(1);
const ANNOUNCE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longest time between an announcement that failed and the next one.
const ANNOUNCE_RETRY_MAX: Duration = Duration::from_secs(5);

/// Runs the monitor of `core` until it ends.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut directory = core.state.directory_watch();
    let mut leader_seen = Instant::now();
    let mut announcements = Announcements::default();
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
            let strange = node.member_view.take_stranger();
            // A leader is in touch when a majority confirms it: it may have been deposed, and removed, unawares.
            let mut of_leader = if core.is_leader() { None } else { ask_leader(&node).await };
            if of_leader.is_some() {
                leader_seen = Instant::now();
                node.note_accepted();
                lost_entries::compare_with_leader(&node, &core, ASK_TIMEOUT).await;
            } else if node.position() != Position::Holder || leader_seen.elapsed() > LEADERLESS || strange {
                of_leader = ask_others(&node, &core).await;
            }
            keep_connections(&node, &core);
            if node.position() == Position::Holder {
                if stay_fresh(&core).await && core.is_leader() {
                    leader_seen = Instant::now();
                    node.note_accepted();
                }
                compare_states(&node, &core).await;
            }
            remember(&node).await;
            announce(&node, &core, of_leader, &mut announcements).await;
        };
        tokio::select! {
            () = work => {}
            () = core.cancel.cancelled() => return,
        }
    }
}

/// Keeps the connections open that this node sends entries over when it leads: a new leader, or one that has not sent
/// anything for long, must not depend on name servers and firewalls that let a connection be made at that moment.
fn keep_connections(node: &Node, core: &Core) {
    let membership = core.raft.server_metrics().borrow_watched().membership_config.clone();
    let membership = membership.membership();
    let mut kept = BTreeMap::new();
    if membership.voter_ids().any(|id| id == core.id) {
        for (id, member) in membership.nodes().filter(|(id, _)| **id != core.id) {
            kept.insert(*id, node.network.address_book().get(*id).unwrap_or_else(|| member.raft.clone()));
        }
    }
    node.network.keep_open(&kept);
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
        let (id, address) = (m.node_id, node.address_of(m));
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

/// The states that a node tells of: where it is now, and its checkpoints.
fn states(of: &StateHash) -> impl Iterator<Item = (u64, u128)> {
    std::iter::once((of.applied_index, of.hash)).chain(of.checkpoints.iter().copied())
}

/// A log index at which a majority of all `voters` has one hash, and this node another: the present one, where nothing is
/// written now, or the newest checkpoint of that kind.
fn outvoted(mine: &StateHash, theirs: &[&StateHash], voters: usize) -> Option<(u64, u128, u128)> {
    states(mine).find_map(|(index, hash)| {
        let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
        for other in theirs {
            if let Some((_, h)) = states(other).find(|(i, _)| *i == index) {
                *votes.entry(h).or_default() += 1;
            }
        }
        votes.into_iter().find(|(h, n)| *h != hash && *n > voters / 2).map(|(h, _)| (index, hash, h))
    })
}

/// Asks the leader that this node believes in whether it leads, and what the members are: a node that was taken
/// out of the Raft membership gets no more entries that could tell it. Answers with what the leader answered.
async fn ask_leader(node: &Node) -> Option<ClusterInfo> {
    let info = leaders_answer(node, node.leader_id()?).await?;
    node.member_view.set([&info]);
    node.observe(Some(info.clone()));
    Some(info)
}

/// What node `id` answers, if it says that it leads.
async fn leaders_answer(node: &Node, id: NodeId) -> Option<ClusterInfo> {
    let address = node.network.address_book().get(id)?;
    match node.network.request(id, &address, PeerRequest::ClusterInfo, ASK_TIMEOUT).await {
        Ok(PeerResponse::ClusterInfo(info)) if info.leader == Some(id) => Some(info),
        Ok(_) | Err(_) => None,
    }
}

/// A node that is not in touch with its leader, or holds no data, learns from the others what the cluster is. If it holds
/// itself for the leader, and another one was elected later, it leads no more. Answers with what the leader answered, where
/// the others know one that does.
pub(crate) async fn ask_others(node: &Node, core: &Core) -> Option<ClusterInfo> {
    let identity = node.identity();
    identity.cluster_id?;
    let ask = |(id, listed): (NodeId, String)| async move {
        let address = node.network.address_book().get(id).unwrap_or(listed);
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
    let reported = join_all(others.map(ask)).await.into_iter().filter_map(|answer| match answer {
        Ok(PeerResponse::ClusterInfo(info)) if info.cluster_id == identity.cluster_id => Some(info),
        Ok(_) | Err(_) => None,
    });
    let reported: Vec<ClusterInfo> = reported.collect();
    node.member_view.set(&reported);
    // Only who knows at least as much as this node can tell it anything; a standby without a leader may know less.
    let applied = core.state.applied().map_or(0, |id| id.index);
    let knows_more = |info: &ClusterInfo| !info.members.is_empty() && info.applied_index >= applied;
    let best = reported
        .into_iter()
        .filter(knows_more)
        .max_by_key(|info| (info.term, info.leader.is_some(), info.applied_index));
    let info = best?;
    if core.is_leader() {
        step_down(node, core, &info).await;
    }
    let leader = info.leader.filter(|id| *id != core.id);
    node.observe(Some(info));
    leaders_answer(node, leader?).await
}

/// A deposed leader that was removed hears of it from nobody: whoever leads now sends it nothing, the voters that it
/// knows may be gone, and openraft sends no heartbeats between a hand-over and the next election. So it asks the leader
/// that the others named, and takes its answer for the heartbeat that it did not get.
async fn step_down(node: &Node, core: &Core, reported: &ClusterInfo) {
    let own = core.raft.server_metrics().borrow_watched().vote.leader_id;
    let named = reported.leader.filter(|id| *id != core.id && reported.term > own.term);
    let Some(leader) = reported.members.iter().find(|m| Some(m.node_id) == named) else { return };
    let asked =
        node.network.request(leader.node_id, &node.address_of(leader), PeerRequest::ClusterInfo, ASK_TIMEOUT).await;
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
        Ok(Err(e)) => tracing::warn!(error = %e, "Raft did not learn that this node leads no more; it is tried again"),
    }
}

/// Keeps the member list on disk, for a start at which this node holds no state of its own.
async fn remember(node: &Node) {
    let members = node.cluster().members;
    if members.is_empty() || node.peers_remembered(&members) {
        return;
    }
    let (data, stored) = (node.data.clone().lock_owned().await, members.clone());
    let stored = node.environment.driver.run(move || data.store_peers(&stored)).await;
    match stored.map_err(|e| e.to_string()).and_then(|stored| stored.map_err(|e| e.to_string())) {
        Ok(()) => node.remember_peers(members),
        Err(e) => tracing::warn!(error = %e, "the member list was not saved; it is tried again"),
    }
}

/// When this node's addresses may be announced next. Two nodes with one identity, of which each announces its own, must not
/// fill the log: the pause grows with every announcement, and shrinks while there is nothing to announce.
struct Announcements {
    next: Instant,
    pause: Duration,
}

impl Default for Announcements {
    fn default() -> Self {
        Self { next: Instant::now(), pause: ANNOUNCE_PAUSE_MIN }
    }
}

impl Announcements {
    /// Whether an announcement is due at `now`. One that is counts as made.
    fn take_turn(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        // Nothing was announced for at least as long as the last pause.
        let quiet = now.duration_since(self.next) >= self.pause.max(ANNOUNCE_PAUSE_MAX);
        self.pause = if quiet { ANNOUNCE_PAUSE_MIN } else { (self.pause * 2).min(ANNOUNCE_PAUSE_MAX) };
        self.next = now + self.pause;
        true
    }

    /// The last announcement failed.
    fn failed(&mut self, now: Instant) {
        self.pause = self.pause.min(ANNOUNCE_RETRY_MAX);
        self.next = now + self.pause;
    }
}

/// Announces this node's addresses and version to the leader, when its member list has others. `of_leader` is what the leader
/// answered; this node's own list may be old, or newer than what the leader has come to know.
async fn announce(node: &Node, core: &Core, of_leader: Option<ClusterInfo>, turns: &mut Announcements) {
    let led = core.is_leader();
    let members = match &of_leader {
        Some(info) => info.members.clone(),
        None if led => core.state.members(),
        None => return,
    };
    let Some(known) = members.iter().find(|m| m.node_id == core.id) else { return };
    let me = Member { leaving: known.leaving, ..node.as_member(core.id) };
    if *known == me || !turns.take_turn(Instant::now()) {
        return;
    }
    tracing::info!(http = me.http, raft = me.raft, listed = known.raft, "announcing new addresses");
    let command = Command::PutMember { member: me, replaces: None };
    let announced = match of_leader {
        Some(info) if !led => propose_to(node, info.node_id, &command).await,
        _ => node.propose(&command, ASK_TIMEOUT).await.map(|_| ()).map_err(|e| e.to_string()),
    };
    if let Err(why) = announced {
        tracing::warn!(why, "the addresses were not announced yet");
        turns.failed(Instant::now());
    }
}

/// Proposes to `leader`, which answered just now. This node's Raft may not know that it leads.
async fn propose_to(node: &Node, leader: NodeId, command: &Command) -> Result<(), String> {
    let address = node.network.address_book().get(leader).ok_or("the leader's address is not known")?;
    let request = PeerRequest::Propose(Proposal::new(command));
    match node.network.request(leader, &address, request, ASK_TIMEOUT).await {
        Ok(PeerResponse::Outcome(Outcome::Refused(refusal))) => Err(refusal.to_string()),
        Ok(PeerResponse::Outcome(_) | PeerResponse::OutcomeAt { .. }) => Ok(()),
        Ok(PeerResponse::Error(e)) => Err(e.to_string()),
        Ok(other) => Err(format!("the leader answered {other:?}")),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(checkpoints: &[(u64, u128)]) -> StateHash {
        StateHash { applied_index: 0, revision: 0, hash: 0, checkpoints: checkpoints.to_vec() }
    }

    #[tokio::test(start_paused = true)]
    async fn announcements_slow_down_until_there_are_none_for_a_while() {
        let mut turns = Announcements::default();
        assert!(turns.take_turn(Instant::now()), "the first one is made at once");
        let mut made = 0;
        for _ in 0..3600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            made += u32::from(turns.take_turn(Instant::now()));
        }
        assert!((50..80).contains(&made), "{made} in an hour");
        tokio::time::advance(3 * ANNOUNCE_PAUSE_MAX).await;
        assert!(turns.take_turn(Instant::now()));
        assert_eq!(turns.pause, ANNOUNCE_PAUSE_MIN);
    }

    #[test]
    fn states_at_one_index_are_compared_where_nothing_is_written() {
        let at = |applied_index, hash| StateHash { applied_index, hash, ..self::hash(&[]) };
        assert_eq!(outvoted(&at(7, 1), &[&at(7, 2), &at(7, 2)], 3), Some((7, 1, 2)));
        assert_eq!(outvoted(&at(7, 1), &[&at(8, 2), &at(8, 2)], 3), None, "they are further");
        assert_eq!(outvoted(&at(7, 1), &[&at(7, 1), &at(7, 2)], 3), None);
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
