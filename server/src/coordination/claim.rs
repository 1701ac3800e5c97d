//! A lease that is ended when its owner goes away before it has what it wanted.

use std::{sync::Arc, time::Duration};

use hexkv_store::command::{Command, Txn, TxnOp};

use super::STEP_TIMEOUT;
use crate::node::Node;

/// Ends the lease when it is dropped, unless it was kept.
pub(super) struct Claim {
    node: Arc<Node>,
    pub(super) lease: u64,
    ttl: Duration,
    kept: bool,
}

impl Claim {
    pub(super) fn new(node: &Arc<Node>, lease: u64, ttl: Duration) -> Self {
        Self { node: node.clone(), lease, ttl, kept: false }
    }

    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// Ends it now.
    pub(super) async fn give_up(mut self) {
        self.kept = true;
        end_lease(self.node.clone(), self.lease, self.ttl).await;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept && !self.node.stopping.is_cancelled() {
            self.node.tasks.spawn(end_lease(self.node.clone(), self.lease, self.ttl));
        }
    }
}

/// Ends `lease`; when that does not work its time to live does it.
async fn end_lease(node: Arc<Node>, lease: u64, ttl: Duration) {
    let command = Command::Txn(Txn::unconditional(TxnOp::EndLease { id: lease }));
    match node.propose(&command, STEP_TIMEOUT.min(ttl)).await {
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, lease, "a place was not given up; it ends with its lease"),
    }
}
