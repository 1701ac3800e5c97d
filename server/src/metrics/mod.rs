//! What `GET /metrics` tells: counters that the node keeps, and what is looked up when it is asked.
//!
//! | part | what |
//! |---|---|
//! | [`Metrics`] | what has to be counted as it happens |
//! | [`page`](mod@page) | Prometheus' text form: HELP and TYPE for each family |
//! | [`http`] | requests, by route |
//! | `raft` | consensus and members |
//! | `storage` | log, state, history, snapshots |
//! | `work` | what is in flight |
//! | `process` | this process |

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use crate::node::Node;

pub mod http;
pub mod page;
mod process;
mod raft;
mod storage;
mod work;

/// What a node counts as it happens. It outlives cores, so these counters go on when the node changes clusters.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests, once the routes are known.
    pub http: OnceLock<http::HttpMetrics>,
    /// Elections in which this node stood.
    pub elections: Counter,
    /// Times that this node learned of another leader than the one before.
    pub leader_changes: Counter,
    refused_peer_requests: Mutex<BTreeMap<&'static str, u64>>,
}

impl Metrics {
    /// A request of another node was refused for `reason`.
    pub fn refused_peer_request(&self, reason: &'static str) {
        *self.refused_peer_requests.lock().entry(reason).or_default() += 1;
    }

    fn peer_requests_refused(&self) -> Vec<(page::Labels<1>, f64)> {
        let refused = self.refused_peer_requests.lock();
        refused.iter().map(|(reason, count)| ([("reason", (*reason).to_owned())], *count as f64)).collect()
    }
}

/// All families of `node` in Prometheus' text form.
///
/// # Errors
/// When they cannot be written to memory.
pub fn render(node: &Arc<Node>) -> Result<String, fmt::Error> {
    let node = node.clone();
    page::render(move |page| {
        page.gauges(
            "hexkv_build_info",
            "The version that runs; always 1",
            [([("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
        )?;
        raft::tell(page, &node)?;
        storage::tell(page, &node)?;
        storage::disk(page, &node)?;
        work::tell(page, &node)?;
        if let Some(http) = node.metrics.http.get() {
            http.tell(page)?;
        }
        process::tell(page)
    })
}
