//! What must not get in, and what it must not cost.

use std::time::Duration;

use hexkv_raft_net::{
    FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, NetError, Refusal,
    rpc::{PeerRequest, PeerResponse},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use crate::{
    log,
    node::{CLUSTER, PATIENCE, TestNode, eventually},
    proxy::{Proxy, Side},
};

async fn refusal(from: &TestNode, target: u64, address: &str) -> Refusal {
    let answer = from.network.request(target, address, PeerRequest::ClusterInfo, PATIENCE).await;
    match answer {
        Err(error @ NetError::Refused(_)) => {
            assert!(!error.maybe_delivered());
            match error {
                NetError::Refused(refusal) => refusal,
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

async fn assert_serves(node: &TestNode) {
    let friend = TestNode::start(77).await;
    let answer = friend.network.request(node.id, &node.address, PeerRequest::ClusterInfo, PATIENCE).await;
    assert!(matches!(answer, Ok(PeerResponse::ClusterInfo(_))), "{answer:?}");
}

#[tokio::test]
async fn nodes_that_do_not_belong_together_refuse_each_other_by_name() {
    let node = TestNode::start(2).await;
    let stranger = TestNode::start_as(1, Some(CLUSTER), "another cookie").await;
    assert_eq!(refusal(&stranger, 2, &node.address).await, Refusal::WrongCookie);
    let guest = stranger.network.request_as_guest(&node.address, PeerRequest::ClusterInfo, PATIENCE).await;
    assert!(matches!(guest, Err(NetError::Refused(Refusal::WrongCookie))), "{guest:?}");
    for theirs in [None, Some(CLUSTER + 1)] {
        let foreigner = TestNode::start_as(1, theirs, "cookie").await;
        let expected = Refusal::WrongCluster { ours: Some(CLUSTER), theirs };
        assert_eq!(refusal(&foreigner, 2, &node.address).await, expected);
    }
    let lost = TestNode::start(1).await;
    assert_eq!(refusal(&lost, 3, &node.address).await, Refusal::WrongNode { ours: 2, expected: 3 });
    assert_eq!(node.asked(), 0, "nothing got through to the service");
    assert_serves(&node).await;
}

#[tokio::test]
async fn raft_votes_of_strangers_do_not_reach_raft() {
    use openraft::{
        RaftNetworkFactory,
        async_runtime::watch::WatchReceiver,
        network::{NetVote, RPCOption},
        raft::VoteRequest,
        type_config::alias::LeaderIdOf,
        vote::{RaftLeaderId, RaftVote},
    };
    let node = TestNode::start_raft(2).await;
    let before = node.raft().metrics().borrow_watched().vote;
    let leader = LeaderIdOf::<hexkv_store::TypeConfig>::new(1_000, 1);
    let request = VoteRequest::new(hexkv_store::raft_types::Vote::from_leader_id(leader, false), None);
    for (cluster, cookie) in [(Some(CLUSTER), "another cookie"), (Some(CLUSTER + 1), "cookie"), (None, "cookie")] {
        let stranger = TestNode::start_as(1, cluster, cookie).await;
        let mut client = stranger.network.factory().new_client(2, &node.as_member().1).await;
        let answer = client.vote(request.clone(), RPCOption::new(PATIENCE)).await;
        assert!(matches!(answer, Err(openraft::errors::RPCError::Unreachable(_))), "{answer:?}");
    }
    assert_eq!(node.raft().metrics().borrow_watched().vote, before);
    // A node of the cluster that is in no membership, and that no member vouches for.
    let member = TestNode::start(1).await;
    let mut client = member.network.factory().new_client(2, &node.as_member().1).await;
    node.service.strangers.lock().insert(1);
    let error = client.vote(request.clone(), RPCOption::new(PATIENCE)).await.unwrap_err();
    assert!(error.to_string().contains("only members"), "{error}");
    assert_eq!(node.raft().metrics().borrow_watched().vote, before);
    // The same vote from a member gets through.
    node.service.strangers.lock().clear();
    let answer = client.vote(request.clone(), RPCOption::new(PATIENCE)).await.unwrap();
    assert_eq!(answer.vote, request.vote);
}

#[tokio::test]
async fn what_a_stranger_says_forges_no_log_line() {
    log::keep();
    let node = TestNode::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let refusal = Refusal::Senseless(format!("\u{1b}[2J\n2026 ERROR forged by {address}{}", "x".repeat(2_000)));
    let body = hexkv_store::codec::encode(&refusal);
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&frame_of(5, &body)).await.unwrap();
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = node.network.request(2, &address, PeerRequest::ClusterInfo, PATIENCE) => answer,
        () = answering => unreachable!("it never ends"),
    };
    let Err(NetError::Refused(Refusal::Senseless(why))) = answer else { panic!("{answer:?}") };
    assert!(!why.contains(char::is_control) && why.len() <= hexkv_raft_net::PEER_TEXT_BYTES_MAX, "{why:?}");
    assert_eq!(log::lines_with(&["refused by a node", &address, "forged"]).len(), 1);
}

/// Sends `bytes` and waits until the node hangs up.
async fn hung_up_on(address: &str, bytes: &[u8]) -> Duration {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The node may hang up before it has read everything.
    let sent = stream.write_all(bytes).await;
    let mut answer = [0; 1024];
    let received = timeout(PATIENCE, stream.read(&mut answer)).await.expect("the node hangs up");
    match received {
        Ok(0) | Err(_) => {}
        Ok(n) => panic!("answered {:?} after {sent:?}", &answer[..n]),
    }
    started.elapsed()
}

#[tokio::test]
async fn garbage_on_the_port_is_hung_up_on() {
    let node = TestNode::start(2).await;
    let mut too_long = ((FRAME_BYTES_MAX + 1) as u32).to_le_bytes().to_vec();
    too_long.extend_from_slice(&[0; 100]);
    let mut long_for_a_handshake = 4097u32.to_le_bytes().to_vec();
    long_for_a_handshake.extend_from_slice(&[0; 100]);
    let inputs: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &[0; 4096],
        &[0xff; 4096],
        &too_long,
        &long_for_a_handshake,
        &[9, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ];
    for input in inputs {
        let after = hung_up_on(&node.address, input).await;
        assert!(after < HANDSHAKE_TIMEOUT, "{input:?} kept it waiting");
    }
    assert_eq!(node.asked(), 0);
    assert_serves(&node).await;
}

#[tokio::test]
async fn a_node_says_that_what_answers_it_is_no_node() {
    log::keep();
    let node = TestNode::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = node.network.request(2, &address, PeerRequest::ClusterInfo, PATIENCE) => answer,
        () = answering => unreachable!("it never ends"),
    };
    assert!(matches!(answer, Err(NetError::Connect { .. })), "{answer:?}");
    let lines = log::lines_with(&[&address, "refused a node: this is no hexkv node"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
}

/// A frame with a right checksum, of `kind` and without a body.
fn frame_of_kind(kind: u8) -> Vec<u8> {
    frame_of(kind, &[])
}

fn frame_of(kind: u8, body: &[u8]) -> Vec<u8> {
    let content = [&[0; 8][..], &[kind], body].concat();
    let length = (content.len() as u32).to_le_bytes();
    let checksum = crc32fast::hash(&[&length[..], &content].concat()).to_le_bytes();
    [&length[..], &checksum, &content].concat()
}

#[tokio::test]
async fn nonsense_after_the_handshake_ends_the_connection_and_both_sides_say_so() {
    /// A kind that no frame has.
    const UNKNOWN_KIND: u8 = 250;
    /// AppendEntries, on a connection that is not for them, and as an answer.
    const APPEND: u8 = 16;
    log::keep();
    let too_long = ((FRAME_BYTES_MAX + 1) as u32).to_le_bytes();
    let mut damaged = frame_of_kind(APPEND);
    damaged[4] ^= 1;
    let inputs = [
        ([too_long, [0; 4]].concat(), "a frame of 16777217 bytes"),
        (damaged, "checksum mismatch"),
        (frame_of_kind(UNKNOWN_KIND), "unknown frame kind 250"),
        (frame_of_kind(APPEND), "Append"),
    ];
    for (input, why) in inputs {
        for side in [Side::Target, Side::Caller] {
            let (caller, target) = (TestNode::start(1).await, TestNode::start(2).await);
            let proxy = Proxy::to(&target.address).await;
            let ask = || caller.network.request(2, &proxy.address, PeerRequest::ClusterInfo, PATIENCE);
            ask().await.unwrap();
            // What listens tells addresses without ports, which are the same for all nodes.
            let of_target = |by: &str| {
                let all = log::lines_with(&[by, "makes no sense here", why]);
                all.iter().filter(|line| line.contains("address=\"127.0.0.1\"")).count()
            };
            let of_caller = |by: &str| log::lines_with(&[by, "makes no sense here", why, &proxy.address]).len();
            let (by_target, by_caller) = match side {
                Side::Target => ("refused a node", "refused by a node"),
                Side::Caller => ("refused by a node", "refused a node"),
            };
            let before = of_target(by_target);
            proxy.slip_in(side, input.clone());
            let said = || of_target(by_target) > before && of_caller(by_caller) == 1;
            eventually(&format!("both say {why}"), || std::future::ready(said())).await;
            assert_eq!(target.asked(), 1, "{why}: it does not reach the service");
            ask().await.unwrap();
            assert_eq!(proxy.connections(), 2, "{why}: the first connection has ended");
        }
    }
}

#[tokio::test]
async fn whoever_dawdles_in_the_handshake_is_hung_up_on_and_keeps_nobody_out() {
    let node = TestNode::start(2).await;
    let mut slow = Vec::new();
    for _ in 0..2 * HANDSHAKES_MAX {
        let mut stream = TcpStream::connect(&node.address).await.unwrap();
        stream.write_all(&[40, 0]).await.unwrap();
        slow.push(stream);
    }
    let started = Instant::now();
    assert_serves(&node).await;
    assert!(started.elapsed() < HANDSHAKE_TIMEOUT, "an honest node does not wait for slow ones");
    for stream in &mut slow {
        let mut byte = [0; 1];
        let end = timeout(HANDSHAKE_TIMEOUT * 2, stream.read(&mut byte)).await.expect("hung up on");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}
