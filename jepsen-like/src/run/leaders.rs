//! Who led when, as the nodes say. It is in the history, too, for checkers of what lasts longer under a new leader.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hexkv_client::Client;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::history::{Entry, LEADER, Recorder};
use crate::report::LeaderChange;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(150);
/// A node that does not answer within this is passed over.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// Changes kept; the rest of a very long run goes without.
const CHANGES_MAX: usize = 10_000;

/// A look at the leader, again and again.
pub(super) struct Leaders {
    stop: CancellationToken,
    task: JoinHandle<Vec<LeaderChange>>,
}

impl Leaders {
    /// Looks from now on; `began` is the history's time 0.
    pub fn watch(cluster: &Cluster, began: Instant, recorder: Arc<Recorder>) -> Self {
        let names = cluster.nodes.iter().map(|node| (node.full_name.clone(), node.name.clone())).collect();
        let clients = cluster.nodes.iter().map(|node| node.direct.clone()).collect();
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(look(names, clients, began, recorder, stop.clone())), stop }
    }

    /// Every leader seen, in the order of time.
    pub async fn stop(self) -> Vec<LeaderChange> {
        self.stop.cancel();
        self.task.await.expect("the look at the leader panicked")
    }
}

async fn look(
    names: Vec<(String, String)>,
    clients: Vec<Client>,
    began: Instant,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
) -> Vec<LeaderChange> {
    let mut changes: Vec<LeaderChange> = Vec::new();
    while changes.len() < CHANGES_MAX && !stop.is_cancelled() {
        let asked = clients.iter().map(|client| tokio::time::timeout(ANSWER_TIMEOUT, client.status()));
        let answers = join_all(asked).await.into_iter().flatten().flatten();
        let newest = answers.filter(|status| status.leader.is_some()).max_by_key(|status| status.term);
        if let Some(status) = newest
            && changes.last().is_none_or(|last| last.term < status.term)
            && let Some((_, name)) = names.iter().find(|(full, _)| Some(full) == status.leader.as_ref())
        {
            let time_ns = u64::try_from(began.elapsed().as_nanos()).expect("a run is shorter than 500 years");
            let entry = Entry::nemesis(LEADER).value(json!({"term": status.term})).node(name);
            if let Err(error) = recorder.record(entry) {
                // The clients find the same, and end the run.
                tracing::warn!(%error, "a leader change is not in the history");
            }
            changes.push(LeaderChange { time_ns, node: name.clone(), term: status.term });
        }
        stop.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await;
    }
    changes
}
