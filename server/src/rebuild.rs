//! A node whose state differs from the majority's gives its place up and comes back as a new member, with the state
//! of the others. Whatever made it differ, nothing of what it holds is trusted: its data is kept aside.

use std::{sync::Arc, time::Duration};

use hexkv_store::{
    NodeId, entropy,
    identity::{JoinIntent, fresh_node_id},
};

use crate::{error::Error, node::Node};

/// How long a leader that has to be rebuilt waits until another node has taken over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// Rebuilds `node` in the background, and goes on until that is done or the node stops.
pub fn begin(node: &Arc<Node>) {
    let (node, stopping) = (node.clone(), node.stopping.clone());
    node.tasks.clone().spawn(async move {
        tokio::select! {
            () = run(&node) => {}
            () = stopping.cancelled() => {}
        }
    });
}

async fn run(node: &Arc<Node>) {
    let _turn = node.lifecycle.lock().await;
    let mut last_refusal = String::new();
    // A join or leave that had the turn before may have ended the life that differs.
    while node.divergence().is_some() {
        match attempt(node).await {
            Ok(()) => tracing::info!("this node's state was rebuilt from the others'"),
            // The new life has begun; its role comes later.
            Err(e) if node.divergence().is_none() => tracing::warn!(error = %e, "rebuilt, without a role yet"),
            Err(e) if e.detail == last_refusal => {}
            Err(e) => {
                tracing::warn!(error = %e, "this node could not be rebuilt yet; it is tried again");
                last_refusal = e.detail;
            }
        }
        if node.divergence().is_some() {
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn attempt(node: &Arc<Node>) -> Result<(), Error> {
    if node.barred().is_some()
        && let Some(core) = node.core()
    {
        // It must not lead: its log lacks what it acknowledged.
        core.raft.runtime_config().elect(false);
    }
    node.hand_over_leadership(HAND_OVER_TIMEOUT).await;
    let identity = node.identity();
    let cluster_id = identity.cluster_id.ok_or_else(Error::no_leader)?;
    let target = other_member(node).ok_or_else(Error::no_leader)?;
    // The node id of an attempt whose outcome is not known stays: being taken in twice under one id does nothing.
    let node_id = identity.pending_join.map_or_else(fresh_node_id, |begun| begun.node_id);
    let intent = JoinIntent { node_id, cluster_id, target };
    node.note_join(Some(intent.clone())).await?;
    node.finish_join(intent, true).await
}

/// Where the leader is reached, or else any other member. One of them may be this node's next life, which was taken in before
/// this life ended: its address is this node's own, and nobody answers there yet.
fn other_member(node: &Node) -> Option<String> {
    let leader = node.leader_id();
    let mut others: Vec<(NodeId, String)> =
        node.known_peers().into_iter().filter(|(_, address)| *address != node.addresses.raft).collect();
    match others.iter().position(|(id, _)| Some(*id) == leader) {
        Some(at) => Some(others.swap_remove(at).1),
        // Whoever is asked may be down: the next attempt asks another one.
        None if others.is_empty() => None,
        None => Some(others.swap_remove(entropy::random_range(0..others.len())).1),
    }
}
