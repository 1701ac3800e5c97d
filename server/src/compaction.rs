//! The leader's compaction: history beyond what is kept is forgotten, by a replicated command, so that all nodes
//! answer the same revisions.

use std::{sync::Arc, time::Duration};

use hexkv_store::command::Command;

use crate::{core::Core, node::Node};

/// How often the leader looks whether history has grown beyond what is kept.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// One compaction; beyond, the next look proposes it again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until `core` ends. Only acts while this node leads.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = core.cancel.cancelled() => return,
        }
        if !core.is_leader() {
            continue;
        }
        let Some(revision) = core.state.compaction_target(node.environment.unix_time_ms()) else { continue };
        let compact = Command::Compact(revision);
        let compacted = tokio::select! {
            done = node.propose(&compact, PROPOSE_TIMEOUT) => done,
            () = core.cancel.cancelled() => return,
        };
        match compacted {
            Ok(_) => tracing::info!(revision, "history compacted"),
            Err(e) => tracing::warn!(revision, error = %e, "history was not compacted; it is tried again"),
        }
    }
}
