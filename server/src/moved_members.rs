//! Finds members that listen at other addresses than the member list has: all machines may get new addresses at once.
//!
//! A node announces a new address to the leader. That does not work while no leader can be elected since each node has
//! old addresses of the others. So members that do not answer are looked for where discovery finds nodes. A node is taken for a
//! member only when the handshake proves that it has the cookie, the cluster's id and a member's node id.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use hexkv_raft_net::{
    PeerIdentity,
    rpc::{PeerRequest, PeerResponse},
};
use hexkv_store::NodeId;

use crate::{config::Target, core::Core, node::Node};

/// A member that did not answer for this long is looked for elsewhere.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// Shortest pause between two searches. It doubles while they find nothing.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause between two searches while this node knows no leader.
const PAUSE_LEADERLESS_MAX: Duration = Duration::from_secs(5);
/// Longest pause between two searches while a leader is known: the members that do not answer are most likely down.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// One question to an address.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;

/// Searches whenever a member of `core`'s cluster does not answer, until the core ends.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut pause = PAUSE_MIN;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.cancel.cancelled() => return,
        }
        let silent = silent_members(&node, &core);
        if silent.is_empty() {
            pause = PAUSE_MIN;
            continue;
        }
        let found = tokio::select! {
            found = search(&node, &core, &silent) => found,
            () = core.cancel.cancelled() => return,
        };
        let longest = if node.leader_id().is_some() { PAUSE_MAX } else { PAUSE_LEADERLESS_MAX };
        pause = if found { PAUSE_MIN } else { (pause * 2).min(longest) };
    }
}

/// Members that have not answered lately, and the addresses that the member list has for them.
fn silent_members(node: &Node, core: &Core) -> BTreeMap<NodeId, String> {
    if node.identity().cluster_id.is_none() {
        return BTreeMap::new();
    }
    let silent = |id: NodeId| node.network.last_contact(id).is_none_or(|last| last.elapsed() > SILENT_AFTER);
    node.known_peers().into_iter().filter(|(id, _)| *id != core.id && silent(*id)).collect()
}

/// Asks at all addresses where a member may be. Answers whether one was found at another address than before.
async fn search(node: &Node, core: &Core, silent: &BTreeMap<NodeId, String>) -> bool {
    let mut addresses: BTreeSet<String> = silent.values().cloned().collect();
    addresses.extend(node.naming.places(targets(node, silent)).await.addresses);
    addresses.remove(&node.addresses.raft);
    let asked = stream::iter(addresses).map(|address| async move {
        let answer = node.network.request_as_guest(&address, PeerRequest::ClusterInfo, ASK_TIMEOUT).await;
        (address, answer)
    });
    let mut answers = asked.buffered(ASKED_AT_ONCE);
    let cluster_id = node.identity().cluster_id;
    let (mut found, mut reports) = (false, Vec::new());
    while let Some((address, answer)) = answers.next().await {
        let peer = match answer {
            Ok((peer, PeerResponse::ClusterInfo(info))) if info.cluster_id == cluster_id => {
                reports.push(info);
                peer
            }
            Ok((peer, _)) => peer,
            Err(e) => {
                tracing::debug!(address, error = %e, "no member was found there");
                continue;
            }
        };
        if let Some(listed) = listed_elsewhere(&peer, cluster_id, core.id, silent) {
            let news = node.network.address_book().found(peer.node_id, &address);
            if news && address != listed {
                tracing::warn!(%peer, address, listed, "a member answers at another address than the member list has; it is used from now on");
            }
            found |= news;
        }
    }
    node.member_view.set_discovered(&reports);
    found
}

/// What discovery is asked for: the nodes of the configuration, and, where a port mapper knows their ports, the silent members.
fn targets(node: &Node, silent: &BTreeMap<NodeId, String>) -> Vec<Target> {
    let mut targets = node.expected_peers();
    if node.config.epmd_port == 0 {
        return targets;
    }
    for member in node.cluster().members.iter().filter(|m| silent.contains_key(&m.node_id)) {
        let Ok(named) = member.name.parse::<Target>() else { continue };
        if targets.iter().all(|target| target.node != named.node) {
            targets.push(named);
        }
    }
    targets
}

/// The address that the member list has for `peer`, if that is one of the `silent` members.
fn listed_elsewhere<'a>(
    peer: &PeerIdentity,
    cluster_id: Option<u64>,
    me: NodeId,
    silent: &'a BTreeMap<NodeId, String>,
) -> Option<&'a str> {
    if cluster_id.is_none() || peer.cluster_id != cluster_id || peer.node_id == me {
        return None;
    }
    silent.get(&peer.node_id).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_silent_member_of_the_same_cluster_is_found() {
        let silent = BTreeMap::from([(2, "old:1".to_string())]);
        let peer = |node_id, cluster_id| PeerIdentity {
            cluster_id,
            node_id,
            incarnation: 1,
            name: "n@h".into(),
            process: None,
            guest: true,
        };
        let listed = |peer: &PeerIdentity| listed_elsewhere(peer, Some(7), 1, &silent).map(str::to_owned);
        assert_eq!(listed(&peer(2, Some(7))).as_deref(), Some("old:1"));
        assert_eq!(listed(&peer(3, Some(7))), None, "it is not silent, or no member");
        assert_eq!(listed(&peer(2, Some(8))), None, "it is of another cluster");
        assert_eq!(listed(&peer(2, None)), None, "it has none");
        assert_eq!(listed(&peer(1, Some(7))), None, "this node itself");
    }
}
