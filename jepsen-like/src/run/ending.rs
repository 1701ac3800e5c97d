//! After the last fault: all nodes are one cluster again, take part, and have the same state.

use std::time::Duration;

use serde_json::json;

use super::Trouble;
use crate::cluster::{Cluster, FORM_TIMEOUT};
use crate::history::{Entry, Kind, Recorder};
use crate::workload::Crew;

/// Longest wait for all nodes to have applied the same entries.
const LEVEL_TIMEOUT: Duration = Duration::from_secs(30);

/// What was seen at the end.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// All nodes are members, ready, and in their roles.
    pub whole: bool,
    /// The applied index at which their states were compared.
    pub compared_at: Option<u64>,
}

impl Ending {
    /// Heals what is left to heal, reads for the last time, and takes the hashes.
    pub async fn conclude(
        &mut self,
        cluster: &mut Cluster,
        crew: &mut Crew,
        recorder: &Recorder,
    ) -> Result<(), Trouble> {
        cluster.heal().await?;
        cluster.await_formed(FORM_TIMEOUT).await?;
        self.whole = true;
        crew.last_reads().await?;
        let hashes = cluster.settled_hashes(LEVEL_TIMEOUT).await?;
        self.compared_at = hashes.first().map(|(_, hash)| hash.applied_index);
        // One copy has nothing to be compared with.
        if hashes.len() < 2 {
            return Ok(());
        }
        for (position, hash) in hashes {
            let entry = Entry::invoke(crew.new_process(), "hash").node(&cluster.nodes[position].name);
            recorder.record(entry.clone())?;
            let value = json!({"applied_index": hash.applied_index, "revision": hash.revision, "hash": hash.hash});
            recorder.record(entry.completed(Kind::Ok).value(value))?;
        }
        Ok(())
    }
}
