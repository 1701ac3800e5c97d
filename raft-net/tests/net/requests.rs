//! Requests between nodes: order, deadlines, lost connections.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use hexkv_raft_net::{
    NetError, REQUESTS_SERVED_MAX, Refusal, STALL_TIMEOUT,
    rpc::{PeerRequest, PeerResponse},
};
use hexkv_store::Proposal;

use crate::{
    node::{CLUSTER, PATIENCE, TestNode, eventually},
    proxy::Proxy,
};

async fn pair() -> (TestNode, TestNode) {
    (TestNode::start(1).await, TestNode::start(2).await)
}

/// Asks for what is answered at once.
async fn ask(from: &TestNode, to: u64, address: &str) -> Result<(), NetError> {
    match from.network.request(to, address, PeerRequest::ClusterInfo, PATIENCE).await? {
        PeerResponse::ClusterInfo(info) => {
            assert_eq!((info.node_id, info.leader), (to, Some(from.id)));
            Ok(())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn pipelined_requests_share_a_connection_and_are_answered_as_they_finish() {
    let (a, b) = pair().await;
    let proxy = Proxy::to(&b.address).await;
    let slow = {
        let (network, address) = (a.network.clone(), proxy.address.clone());
        tokio::spawn(async move { network.request(2, &address, PeerRequest::ReadIndex, PATIENCE).await })
    };
    eventually("the slow request has arrived", || std::future::ready(b.asked() == 1)).await;
    let many = (0..500).map(|_| ask(&a, 2, &proxy.address));
    for answer in futures_util::future::join_all(many).await {
        answer.unwrap();
    }
    assert!(!slow.is_finished());
    b.service.release.notify_one();
    assert!(matches!(slow.await.unwrap(), Ok(PeerResponse::ReadIndex(42))));
    assert_eq!(proxy.connections(), 1);
    assert!(a.network.last_contact(2).unwrap().elapsed() < PATIENCE);
    assert!(a.network.last_contact(3).is_none());
}

#[tokio::test]
async fn a_deadline_holds_and_says_that_the_request_was_sent() {
    let (a, b) = pair().await;
    let timeout = STALL_TIMEOUT * 2;
    let started = tokio::time::Instant::now();
    let error = a.network.request(2, &b.address, PeerRequest::StateHash, timeout).await.unwrap_err();
    assert!(matches!(error, NetError::Timeout { sent: true }), "{error:?}: the peer gave signs of life");
    assert!(error.maybe_delivered());
    assert!(started.elapsed() >= timeout);
    ask(&a, 2, &b.address).await.unwrap();
}

#[tokio::test]
async fn a_connection_cut_while_a_request_is_under_way_leaves_it_in_doubt() {
    let (a, b) = pair().await;
    let proxy = Proxy::to(&b.address).await;
    let asking = a.network.request(2, &proxy.address, PeerRequest::StateHash, PATIENCE);
    let cutting = async {
        eventually("the request has arrived", || std::future::ready(b.asked() == 1)).await;
        proxy.cut();
    };
    let (answer, ()) = tokio::join!(asking, cutting);
    let error = answer.unwrap_err();
    assert!(matches!(error, NetError::Closed { sent: true }), "{error:?}");
    assert!(error.maybe_delivered());
    eventually("the proxy has cut", || std::future::ready(proxy.cuts() == 1)).await;
    ask(&a, 2, &proxy.address).await.unwrap();
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn where_nobody_listens_nothing_is_delivered() {
    let (a, b) = pair().await;
    let error = ask(&a, 2, "127.0.0.1:1").await.unwrap_err();
    assert!(matches!(&error, NetError::Connect { address, .. } if address == "127.0.0.1:1"), "{error:?}");
    assert!(!error.maybe_delivered());
    // The next request tries the address it was given, after a short delay.
    ask(&a, 2, &b.address).await.unwrap();
}

#[tokio::test]
async fn a_dead_connection_is_given_up_and_the_next_request_has_a_new_one() {
    let (a, b) = pair().await;
    let proxy = Proxy::to(&b.address).await;
    ask(&a, 2, &proxy.address).await.unwrap();
    proxy.hold(true);
    let started = tokio::time::Instant::now();
    let error = ask(&a, 2, &proxy.address).await.unwrap_err();
    assert!(matches!(error, NetError::Closed { sent: true }), "{error:?}");
    assert!(started.elapsed() < STALL_TIMEOUT + Duration::from_secs(2), "{:?}", started.elapsed());
    proxy.hold(false);
    ask(&a, 2, &proxy.address).await.unwrap();
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn what_is_more_than_a_connection_may_serve_waits_unread() {
    const MORE: usize = 100;
    let (a, b) = pair().await;
    let asking = (0..REQUESTS_SERVED_MAX + MORE).map(|_| async {
        a.network.request(2, &b.address, PeerRequest::ReadIndex, PATIENCE).await.unwrap();
    });
    let serving = async {
        eventually("as many as allowed are served", || std::future::ready(b.asked() >= REQUESTS_SERVED_MAX)).await;
        // A round trip on another connection, after which the rest would have been read.
        a.network.request_as_guest(&b.address, PeerRequest::ClusterInfo, PATIENCE).await.unwrap();
        assert_eq!(b.asked(), REQUESTS_SERVED_MAX + 1);
        loop {
            b.service.release.notify_waiters();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = futures_util::future::join_all(asking) => {}
        () = serving => unreachable!("it never ends"),
    }
    assert_eq!(b.asked(), REQUESTS_SERVED_MAX + MORE + 1);
}

#[tokio::test]
async fn guests_may_ask_what_is_open_to_them_and_nothing_else() {
    let member = TestNode::start(2).await;
    for cluster in [None, Some(CLUSTER + 1)] {
        let guest = TestNode::start_as(1, cluster, "cookie").await;
        let asked = member.asked();
        let (who, answer) =
            guest.network.request_as_guest(&member.address, PeerRequest::ClusterInfo, PATIENCE).await.unwrap();
        assert_eq!((who.node_id, who.cluster_id, who.name.as_str()), (2, Some(CLUSTER), "n2@127.0.0.1"));
        assert!(matches!(answer, PeerResponse::ClusterInfo(info) if info.leader == Some(1)));
        let write =
            PeerRequest::Propose(Proposal { time_ms: 0, uptime_ms: 0, idempotency: None, body: bytes::Bytes::new() });
        let error = guest.network.request_as_guest(&member.address, write, PATIENCE).await.unwrap_err();
        assert!(matches!(error, NetError::Refused(Refusal::NotAMember)), "{error:?}");
        assert!(!error.maybe_delivered());
        assert_eq!(member.asked(), asked + 1, "the second one never reached the service");
    }
    let own = member.network.request_as_guest(&member.address, PeerRequest::ClusterInfo, PATIENCE).await;
    assert!(matches!(own, Err(NetError::Refused(Refusal::OwnAddress))), "{own:?}");
}

#[tokio::test]
async fn a_guest_request_that_is_not_answered_times_out() {
    let member = TestNode::start(2).await;
    let guest = TestNode::start_as(1, None, "cookie").await;
    let proxy = Proxy::to(&member.address).await;
    proxy.hold(true);
    let timeout = Duration::from_millis(200);
    let error = guest.network.request_as_guest(&proxy.address, PeerRequest::ClusterInfo, timeout).await.unwrap_err();
    // What ended first is either the whole request or the attempt to connect, which says what it waited for.
    assert!(matches!(error, NetError::Timeout { sent: false } | NetError::Connect { .. }), "{error:?}");
    assert!(!error.maybe_delivered());
}

#[tokio::test]
async fn requests_on_a_connection_of_an_earlier_identity_are_refused() {
    let (a, b) = pair().await;
    ask(&a, 2, &b.address).await.unwrap();
    let asked = b.asked();
    b.service.identity.lock().node_id = 20;
    let error = ask(&a, 2, &b.address).await.unwrap_err();
    assert!(matches!(error, NetError::Refused(Refusal::IdentityChanged)), "{error:?}");
    let error = ask(&a, 2, &b.address).await.unwrap_err();
    assert!(matches!(error, NetError::Refused(Refusal::WrongNode { ours: 20, expected: 2 })), "{error:?}");
    assert_eq!(b.asked(), asked, "the service saw none of them");
    ask(&a, 20, &b.address).await.unwrap();
    b.service.identity.lock().cluster_id = None;
    let error = ask(&a, 20, &b.address).await.unwrap_err();
    assert!(matches!(error, NetError::Refused(Refusal::IdentityChanged)), "{error:?}");
}

#[tokio::test]
async fn reset_drops_connections_and_the_next_handshake_tells_the_new_identity() {
    let (a, b) = pair().await;
    let proxy = Proxy::to(&b.address).await;
    ask(&a, 2, &proxy.address).await.unwrap();
    let waiting = a.network.request(2, &proxy.address, PeerRequest::StateHash, PATIENCE);
    let resetting = async {
        eventually("the request has arrived", || std::future::ready(b.asked() == 2)).await;
        a.service.identity.lock().node_id = 10;
        a.network.reset();
    };
    let (answer, ()) = tokio::join!(waiting, resetting);
    assert!(matches!(answer, Err(NetError::Closed { sent: true })), "{answer:?}");
    match a.network.request(2, &proxy.address, PeerRequest::ClusterInfo, PATIENCE).await.unwrap() {
        PeerResponse::ClusterInfo(info) => assert_eq!(info.leader, Some(10), "asked as the new node"),
        other => panic!("{other:?}"),
    }
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn a_node_that_stops_finishes_what_it_has_begun() {
    let (a, mut b) = pair().await;
    let address = b.address.clone();
    let asking = a.network.request(2, &address, PeerRequest::ReadIndex, PATIENCE);
    let release = b.service.release.clone();
    let service = b.service.clone();
    let stopping = async {
        eventually("the request has arrived", || std::future::ready(service.asked.load(SeqCst) == 1)).await;
        tokio::join!(b.stop_listening(), async {
            // Stops first, then finishes.
            tokio::task::yield_now().await;
            release.notify_one();
        });
    };
    let (answer, ()) = tokio::join!(asking, stopping);
    assert!(matches!(answer, Ok(PeerResponse::ReadIndex(42))), "{answer:?}");
    let error = ask(&a, 2, &b.address).await.unwrap_err();
    assert!(matches!(error, NetError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_vote_takes_the_connection_that_urgent_questions_keep_open() {
    use openraft::{
        RaftNetworkFactory,
        network::{NetVote, RPCOption},
        raft::VoteRequest,
        type_config::alias::LeaderIdOf,
        vote::{RaftLeaderId, RaftVote},
    };
    let (a, b) = (TestNode::start(1).await, TestNode::start_raft(2).await);
    let proxy = Proxy::to(&b.address).await;
    let urgent = a.network.request_urgent(2, &proxy.address, PeerRequest::ClusterInfo, PATIENCE).await.unwrap();
    assert!(matches!(urgent, PeerResponse::ClusterInfo(_)), "{urgent:?}");
    let (_, mut member) = b.as_member();
    member.raft.clone_from(&proxy.address);
    let mut client = a.network.factory().new_client(2, &member).await;
    let leader = LeaderIdOf::<hexkv_store::TypeConfig>::new(1_000, 1);
    let request = VoteRequest::new(hexkv_store::raft_types::Vote::from_leader_id(leader, false), None);
    client.pre_vote(request.clone(), RPCOption::new(PATIENCE)).await.unwrap();
    assert_eq!(client.vote(request.clone(), RPCOption::new(PATIENCE)).await.unwrap().vote, request.vote);
    assert_eq!(proxy.connections(), 1, "nothing had to be connected for the election");
    ask(&a, 2, &proxy.address).await.unwrap();
    assert_eq!(proxy.connections(), 2, "what may be large has another one");
}
