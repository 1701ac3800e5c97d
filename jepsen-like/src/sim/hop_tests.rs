//! A change that was forwarded once is not forwarded again.

use bytes::Bytes;
use futures_util::FutureExt;
use hexkv_raft_net::{
    Service,
    rpc::{PeerError, PeerRequest, PeerResponse},
};
use hexkv_server::{core::Core, service::NodeService};
use hexkv_store::{
    Proposal,
    command::{Command, Txn, TxnOp},
};
use openraft::async_runtime::WatchReceiver;

use super::deposed_tests::{three_nodes, until};

/// In simulated milliseconds: longer than a change takes that is forwarded.
const LONGER_THAN_A_CHANGE_MS: u64 = 2_000;

fn appended(core: &Core) -> Option<u64> {
    core.raft.metrics().borrow_watched().last_log_index
}

#[test]
fn a_follower_that_is_sent_a_change_says_who_leads_and_does_nothing() {
    let mut cluster = three_nodes();
    let leader = cluster.leader().unwrap();
    let (follower, sender) = ((leader + 1) % 3, (leader + 2) % 3);
    let key = Bytes::from_static(b"forwarded twice");
    let put = TxnOp::Put { key: key.clone(), value: key.clone(), content_type: None, lease: 0, prev: false };
    let request = PeerRequest::Propose(Proposal::new(&Command::Txn(Txn::unconditional(put))));
    let from = cluster.hosts[sender].node().unwrap().as_peer();
    let expected = cluster.core(leader).unwrap().id;

    let before = appended(&cluster.core(follower).unwrap());
    let service = NodeService(cluster.hosts[follower].node().unwrap());
    let answer = service.peer(from.clone(), request.clone()).now_or_never().expect("it asks nobody");
    match answer {
        PeerResponse::Error(PeerError::NotLeader { leader }) => assert_eq!(leader, Some(expected)),
        other => panic!("{other:?}"),
    }
    assert_eq!(appended(&cluster.core(follower).unwrap()), before);
    let later = cluster.now_ms() + LONGER_THAN_A_CHANGE_MS;
    until(&mut cluster, "time passes", |c| c.now_ms() >= later);
    for node in 0..3 {
        let found = cluster.core(node).unwrap().state.get(&key, 0).unwrap().0;
        assert_eq!(found, None, "node {node} has what nobody appended");
    }
}
