//! Finds out that this node lost log entries that it acknowledged: its log ends before what the leader knows to be on its disk.
//! A disk that was rolled back, or that did not keep what it reported as synced, does that.

use std::{sync::Arc, time::Duration};

use crate::{copies, core::Core, node::Node};
use hexkv_raft_net::rpc::{PeerRequest, PeerResponse};

/// Compares this node's log with what it acknowledged to the leader, and has this node rebuilt where entries are missing.
///
/// What a node acknowledged under one leader may be cut only under another one. So the comparison counts only while the vote stays.
pub async fn compare_with_leader(node: &Arc<Node>, core: &Core, timeout: Duration) {
    // The log's own vote: it changes before anything is cut, and what Raft shows may be older.
    let following = || core.log.vote().filter(|vote| vote.committed && vote.leader_id.node_id != core.id);
    let Some(vote) = following() else { return };
    let leader = vote.leader_id.node_id;
    let Some(address) = node.network.address_book().get(leader) else { return };
    let asked = node.network.request(leader, &address, PeerRequest::MemberHealth, timeout).await;
    let Ok(PeerResponse::MemberHealth(members)) = asked else { return };
    let acknowledged = members.iter().find(|m| m.node_id == core.id).and_then(|m| m.matched_index);
    let held = core.log.stats().last_index;
    let Some(acknowledged) = acknowledged.filter(|index| held.is_none_or(|held| *index > held)) else { return };
    if following() != Some(vote) {
        return;
    }
    let held = held.map_or("nothing".to_string(), |held| format!("entries up to {held}"));
    copies::lost_entries(
        node,
        format!(
            "this node acknowledged log entries up to {acknowledged}, and its log holds {held}: its disk lost them"
        ),
    );
}
