//! How long a cluster takes to accept a write again.

use std::time::Duration;

use futures_util::future::select_all;
use hexkv_client::Client;
use hexkv_client::kv::PutOptions;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::{Cluster, ELECTION_TIMEOUT_MAX};

/// What is promised: twice the election timeout after everything is whole.
pub const RECOVERY_BUDGET: Duration = ELECTION_TIMEOUT_MAX.saturating_mul(2);
/// What is added before the run fails. The nodes, their clients and maybe other runs share the cores and the disk of
/// one machine, all nodes of a cluster may be starting at this moment, and a split vote costs another election. The
/// time itself is always recorded, so that a quiet machine can be held to the budget alone.
pub const RECOVERY_ALLOWANCE: Duration = Duration::from_millis(4200);
/// Longest wait before it counts as never.
pub const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts at one node.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// The key that is written; no workload uses it.
const KEY: &str = "probe/recovery";

/// A measurement under way.
#[derive(Debug)]
pub struct Recovery(JoinHandle<Option<Duration>>);

impl Recovery {
    /// Measures from now until any node acknowledges a write. Nodes are asked past their proxies.
    pub fn watch(cluster: &Cluster) -> Self {
        let began = Instant::now();
        let clients: Vec<Client> = cluster.nodes.iter().map(|node| node.direct.clone()).collect();
        Self(tokio::spawn(async move {
            let writes = clients.into_iter().map(|client| Box::pin(write(client)));
            let first = select_all(writes);
            tokio::time::timeout(RECOVERY_PATIENCE, first).await.ok().map(|_| began.elapsed())
        }))
    }

    /// The time it took; None when it took longer than `RECOVERY_PATIENCE`.
    pub async fn time(self) -> Option<Duration> {
        self.0.await.expect("the measurement panicked")
    }
}

/// Writes until it is acknowledged.
async fn write(client: Client) {
    while client.put(KEY, "again", &PutOptions::default()).await.is_err() {
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
