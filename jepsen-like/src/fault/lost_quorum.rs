//! All nodes die, some of their disks are gone, and an operator begins a new cluster with the best that is left.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::{Aim, Effect, Fault, FaultError, Scene};
use crate::cluster::ClusterError;

/// Longest wait for the nodes that lost their disks to be members of the new cluster.
const REJOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// kill -9 of all, all data but a majority's deleted, `server recover`, the others join empty.
pub(super) struct LostQuorum;

impl Fault for LostQuorum {
    fn name(&self) -> &'static str {
        "lost-quorum"
    }

    fn about(&self) -> &'static str {
        "kill -9 of all, only a majority's disks left, `server recover` with the best of them; another cluster id"
    }

    fn nodes_min(&self) -> usize {
        3
    }

    /// History ends with the old cluster, so that a watch is told that what it asks for is compacted.
    fn in_all(&self) -> bool {
        false
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            // Whatever was acknowledged is on a majority, so that any majority's best has it: nothing may be lost.
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let target = scene.aim(&[Aim::Majority]).await?;
            let before = cluster_id(&scene, target.nodes[0]).await?;
            scene.announce("only these disks are left", &target.nodes)?;
            for node in scene.shuffled() {
                scene.cluster.kill(node).await?;
            }
            scene.hold().await;
            let mut from: Vec<PathBuf> = Vec::new();
            for node in &target.nodes {
                from.push(scene.cluster.nodes[*node].set_aside()?);
            }
            for node in &scene.cluster.nodes {
                node.wipe()?;
            }
            let heir = target.nodes[0];
            let said = scene.cluster.nodes[heir].recover(&from, &before).await?;
            for dir in from {
                std::fs::remove_dir_all(&dir).map_err(|source| ClusterError::file(&dir, source))?;
            }
            // First the one with the data: by themselves the others would begin with nothing.
            scene.cluster.start(heir).await?;
            scene.healed();
            for node in scene.shuffled().into_iter().filter(|node| *node != heir) {
                scene.cluster.start(node).await?;
            }
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let after = cluster_id(&scene, heir).await?;
            Ok(Effect {
                bit: before != after,
                evidence: format!(
                    "the disks of {} were left: cluster {before} -> {after}",
                    scene.names_of(&target.nodes)
                ),
                facts: json!({"cluster": before, "cluster_after": after, "heir": scene.name_of(heir), "said": said}),
            })
        })
    }
}

async fn cluster_id(scene: &Scene<'_>, node: usize) -> Result<String, ClusterError> {
    let asked = &scene.cluster.nodes[node];
    let status =
        asked.direct.status().await.map_err(|source| ClusterError::Api { node: asked.name.clone(), source })?;
    let none = || ClusterError::late("it has a cluster", Duration::ZERO, format!("{} names none", asked.name));
    status.cluster_id.ok_or_else(none)
}
