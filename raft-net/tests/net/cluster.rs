//! A small openraft cluster over the wire.

use std::{collections::BTreeMap, sync::atomic::Ordering::SeqCst, time::Duration};

use hexkv_raft_net::STALL_TIMEOUT;
use hexkv_store::{
    Proposal, TypeConfig,
    raft_types::{LogId, Vote},
};
use openraft::{
    RaftNetworkFactory, ServerState,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RPCError, RaftError},
    network::{NetVote, RPCOption},
    raft::VoteRequest,
    type_config::alias::LeaderIdOf,
    vote::{RaftLeaderId, RaftVote},
};
use tokio::time::Instant;

use crate::{
    node::{PATIENCE, TestNode, eventually},
    proxy::Proxy,
};

const MIB: u64 = 1024 * 1024;

fn proposal(n: u64, bytes: usize) -> Proposal {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(bytes.max(8), n as u8);
    Proposal { time_ms: n, uptime_ms: n, idempotency: None, body: body.into() }
}

async fn cluster_of_three() -> Vec<TestNode> {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(TestNode::start_raft(id).await);
    }
    let members: BTreeMap<_, _> = nodes.iter().map(TestNode::as_member).collect();
    nodes[0].raft().initialize(members).await.unwrap();
    nodes
}

/// The node that leads in the eyes of all of `nodes`, and is one of them.
async fn leader<'a>(nodes: &'a [&'a TestNode]) -> &'a TestNode {
    let mut found = None;
    eventually("all know one leader", || {
        let seen: Vec<_> = nodes.iter().map(|n| n.raft().metrics().borrow_watched().current_leader).collect();
        found = nodes.iter().find(|n| seen.iter().all(|leader| *leader == Some(n.id)));
        std::future::ready(found.is_some())
    })
    .await;
    found.unwrap()
}

/// Proposes until the leader takes it: a fresh one takes nothing before a quorum has answered it.
async fn write(leader: &TestNode, proposal: Proposal) -> LogId {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match leader.raft().client_write(proposal.clone()).await {
            Ok(written) => return written.log_id,
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                assert!(Instant::now() < deadline, "the leader takes nothing");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Leaves the entries up to `last` in a snapshot only.
async fn snapshot_and_purge(node: &TestNode, last: LogId) {
    let raft = node.raft();
    raft.wait(Some(PATIENCE)).applied_index(Some(last.index), "applied").await.unwrap();
    raft.trigger().snapshot().await.unwrap();
    raft.wait(Some(PATIENCE)).snapshot(last, "snapshot").await.unwrap();
    raft.trigger().purge_log(last.index).await.unwrap();
    raft.wait(Some(PATIENCE)).purged(Some(last), "purged").await.unwrap();
}

async fn all_have(nodes: &[&TestNode], count: usize) {
    let have = || nodes.iter().map(|n| n.state.proposals().len()).collect::<Vec<_>>();
    let all = eventually("all nodes have all proposals", || std::future::ready(have().iter().all(|n| *n == count)));
    let in_time = tokio::time::timeout(PATIENCE * 9 / 10, all).await;
    assert!(in_time.is_ok(), "the nodes have {:?} proposals, not {count} each", have());
    let expected = nodes[0].state.proposals();
    assert!(nodes.iter().all(|n| n.state.proposals() == expected), "in one order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_replicate_and_hand_leadership_over() {
    let mut nodes = cluster_of_three().await;
    let (old, new) = {
        let all: Vec<_> = nodes.iter().collect();
        let old = leader(&all).await;
        futures_util::future::join_all((0..300).map(|n| write(old, proposal(n, 200)))).await;
        all_have(&all, 300).await;

        let new = all.iter().find(|n| n.id != old.id).unwrap().id;
        old.raft().trigger().transfer_leader(new).await.unwrap();
        eventually("leadership is handed over", || async { leader(&all).await.id == new }).await;
        let seen = nodes[new as usize - 1].network.last_contact(old.id).expect("the voters answered the new leader");
        assert!(seen.elapsed() < PATIENCE);
        (old.id, new)
    };
    assert_ne!(old, new);
    nodes[new as usize - 1].stop().await;
    let left: Vec<_> = nodes.iter().filter(|n| n.id != new).collect();
    let third = leader(&left).await;
    write(third, proposal(300, 200)).await;
    all_have(&left, 301).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_goes_on_after_conflicts_with_a_diverged_log() {
    let mut nodes = cluster_of_three().await;
    let old = leader(&nodes.iter().collect::<Vec<_>>()).await.id as usize - 1;
    let before = write(&nodes[old], proposal(0, 50)).await;
    let mut isolated = nodes.swap_remove(old);
    for node in &nodes {
        isolated.network.address_book().set(node.id, "127.0.0.1:1");
    }
    isolated.network.reset();
    let committed = before.index;
    for n in 0..20 {
        isolated.raft().client_write_ff(proposal(1000 + n, 50), None).await.unwrap();
    }
    let raft = isolated.raft();
    let appended = || raft.metrics().borrow_watched().last_log_index;
    eventually("what is never committed is in its log", || std::future::ready(appended() == Some(committed + 20)))
        .await;

    let others: Vec<_> = nodes.iter().collect();
    let new = leader(&others).await;
    for n in 1..10 {
        write(new, proposal(n, 50)).await;
    }
    isolated.listen_again().await;
    for node in &nodes {
        node.network.address_book().set(isolated.id, isolated.address.clone());
        isolated.network.address_book().remove(node.id);
    }
    all_have(&[&nodes[0], &nodes[1], &isolated], 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_resumed_where_the_connection_was_cut() {
    let (leading, learner) = (TestNode::start_raft(1).await, TestNode::start_raft(2).await);
    leading.raft().initialize(BTreeMap::from([leading.as_member()])).await.unwrap();
    leader(&[&leading]).await;
    let mut last = None;
    for n in 0..24 {
        last = Some(write(&leading, proposal(n, MIB as usize)).await);
    }
    snapshot_and_purge(&leading, last.unwrap()).await;

    let proxy = Proxy::to(&learner.address).await;
    proxy.cut_once_after(16 * MIB);
    leading.network.address_book().set(2, proxy.address.clone());
    leading.raft().add_learner(2, learner.as_member().1, false).await.unwrap();
    all_have(&[&leading, &learner], 24).await;

    assert_eq!(proxy.cuts(), 1, "the transfer was cut");
    assert!(proxy.forwarded() < 32 * MIB, "{} bytes were sent, so it began anew", proxy.forwarded());
    write(&leading, proposal(24, 10)).await;
    all_have(&[&leading, &learner], 25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_refused_and_sent_again() {
    let (leading, learner) = (TestNode::start_raft(1).await, TestNode::start_raft(2).await);
    leading.raft().initialize(BTreeMap::from([leading.as_member()])).await.unwrap();
    leader(&[&leading]).await;
    let last = write(&leading, proposal(0, 1000)).await;
    snapshot_and_purge(&leading, last).await;
    learner.service.refuse_snapshots.store(true, SeqCst);
    leading.raft().add_learner(2, learner.as_member().1, false).await.unwrap();
    let arrived = || std::future::ready(learner.service.snapshots.load(SeqCst) >= 2);
    eventually("it is refused, and sent from its first byte", arrived).await;
    assert!(learner.raft().metrics().borrow_watched().running_state.is_ok(), "the node goes on");
    assert_eq!(learner.state.proposals().len(), 0);
    learner.service.refuse_snapshots.store(false, SeqCst);
    all_have(&[&leading, &learner], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_pass_a_transfer_that_is_stuck() {
    /// Answers while one transfer is stuck: more than may have been under way when it got stuck, fewer than there are
    /// heartbeats until it is given up.
    const ANSWERS: usize = 5;
    let nodes = cluster_of_three().await;
    let all: Vec<_> = nodes.iter().collect();
    let leading = leader(&all).await;
    write(leading, proposal(0, 10)).await;
    all_have(&all, 1).await;
    let late = all.iter().find(|node| node.id != leading.id).unwrap();
    leading.network.address_book().set(late.id, "127.0.0.1:1");
    leading.network.reset();
    let mut last = None;
    for n in 1..24 {
        last = Some(write(leading, proposal(n, MIB as usize)).await);
    }
    snapshot_and_purge(leading, last.unwrap()).await;
    assert_eq!(late.state.proposals().len(), 1, "it needs the snapshot");

    let proxy = Proxy::to(&late.address).await;
    proxy.hold_after(MIB);
    leading.network.address_book().set(late.id, proxy.address.clone());
    eventually("a transfer is stuck", || std::future::ready(proxy.holds() == 1)).await;
    let vote = leading.raft().metrics().borrow_watched().vote;
    let mut contact = leading.network.last_contact(late.id);
    let (mut connections, mut holds, mut is_stuck, mut answers) = (proxy.connections(), proxy.holds(), true, 0);
    eventually("it answers heartbeats while a transfer is stuck", || {
        let answered = leading.network.last_contact(late.id) > contact;
        contact = leading.network.last_contact(late.id);
        // A stuck transfer is tried anew after a while. What its new connection answers before it is stuck does not count.
        if proxy.connections() != connections {
            (connections, is_stuck) = (proxy.connections(), false);
        } else if proxy.holds() != holds {
            (holds, is_stuck, answers) = (proxy.holds(), true, 0);
        } else if is_stuck && answered {
            answers += 1;
        }
        std::future::ready(answers >= ANSWERS)
    })
    .await;
    let metrics = late.raft().metrics().borrow_watched().clone();
    assert_eq!((metrics.vote, metrics.current_leader), (vote, Some(leading.id)), "it follows the same leader");
    assert_eq!(metrics.state, ServerState::Follower, "it has not stood for election");
    assert_eq!(late.state.proposals().len(), 1, "the transfer is stuck still");
    proxy.hold(false);
    all_have(&all, 24).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_a_dead_link_catches_up_soon_after_it_heals() {
    let (leading, learner) = (TestNode::start_raft(1).await, TestNode::start_raft(2).await);
    leading.raft().initialize(BTreeMap::from([leading.as_member()])).await.unwrap();
    leader(&[&leading]).await;
    write(&leading, proposal(0, 10)).await;
    let proxy = Proxy::to(&learner.address).await;
    leading.network.address_book().set(2, proxy.address.clone());
    leading.raft().add_learner(2, learner.as_member().1, true).await.unwrap();
    all_have(&[&leading, &learner], 1).await;

    proxy.hold(true);
    write(&leading, proposal(1, 10)).await;
    let connections = proxy.connections();
    eventually("the dead connections are given up", || std::future::ready(proxy.connections() > connections)).await;
    assert_eq!(learner.state.proposals().len(), 1, "nothing gets through");
    proxy.cut();
    proxy.hold(false);
    let healed = Instant::now();
    all_have(&[&leading, &learner], 2).await;
    assert!(healed.elapsed() < STALL_TIMEOUT + Duration::from_secs(3), "{:?}", healed.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_answers_no_votes_yet_votes_only_where_a_leader_hands_over() {
    let (candidate, voter) = (TestNode::start_raft(1).await, TestNode::start_raft(2).await);
    let mut client = candidate.network.factory().new_client(2, &voter.as_member().1).await;
    let request = |term| {
        let leader = LeaderIdOf::<TypeConfig>::new(term, 1);
        VoteRequest::<TypeConfig>::new(Vote::from_leader_id(leader, false), None)
    };
    let option = || RPCOption::new(PATIENCE);
    voter.service.votes.store(false, SeqCst);
    for error in
        [client.vote(request(5), option()).await.unwrap_err(), client.pre_vote(request(5), option()).await.unwrap_err()]
    {
        assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains("restarted a moment ago"), "{error}");
    }
    assert_eq!(voter.raft().metrics().borrow_watched().vote.leader_id.term, 0, "it has voted for nobody");
    let handed_over = VoteRequest { leadership_transfer: true, ..request(6) };
    assert!(client.vote(handed_over, option()).await.unwrap().vote_granted);
    voter.service.votes.store(true, SeqCst);
    assert!(client.pre_vote(request(7), option()).await.unwrap().vote_granted);
    assert!(client.vote(request(7), option()).await.unwrap().vote_granted);
}
