//! Faults of disks: one that hangs without an error.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::{Aim, Effect, Fault, FaultError, Scene};
use crate::cluster::process::{UNINTERRUPTIBLE, threads_in};
use crate::cluster::{ClusterError, volume};

/// Longest wait for a node that was moved to another disk to take part again.
const REJOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Shortest stall: the others must have the time to notice and to elect.
const STALL_MIN: Duration = Duration::from_secs(3);

/// `fsfreeze` of the file system of one node.
pub(super) struct StalledDisk;

impl Fault for StalledDisk {
    fn name(&self) -> &'static str {
        "stalled-disk"
    }

    fn about(&self) -> &'static str {
        "root only: a node moves to a file system of its own, which is frozen; its threads wait in state D, without an error"
    }

    fn nodes_min(&self) -> usize {
        3
    }

    /// It takes root.
    fn in_all(&self) -> bool {
        false
    }

    fn unavailable(&self) -> Option<String> {
        volume::unavailable()
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let target = scene.aim(&[Aim::One, Aim::Leader, Aim::Leader]).await?;
            let node = target.nodes[0];
            scene.cluster.terminate(node).await?;
            scene.cluster.nodes[node].move_to_volume()?;
            scene.cluster.start(node).await?;
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let leads = target.leads && lead(&scene, node).await?;
            scene.announce(if leads { "leader" } else { "one" }, &target.nodes)?;
            let mut volume = scene.cluster.nodes[node].take_volume();
            let failed = |source| ClusterError::file(&scene.cluster.nodes[node].data, source);
            let frozen = volume.freeze().map_err(failed)?;
            tokio::time::sleep(scene.hold.max(STALL_MIN)).await;
            let process = |source| ClusterError::Process { node: scene.name_of(node), source };
            let waiting = threads_in(scene.cluster.nodes[node].pid()?, UNINTERRUPTIBLE).map_err(process)?;
            drop(frozen);
            scene.cluster.nodes[node].keep_volume(volume);
            scene.healed();
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            scene.cluster.terminate(node).await?;
            scene.cluster.nodes[node].move_from_volume()?;
            scene.cluster.start(node).await?;
            Ok(Effect {
                bit: waiting > 0,
                evidence: format!(
                    "the disk of {}{} was frozen, {waiting} of its threads waited in state D",
                    scene.name_of(node),
                    if leads { ", which led," } else { "" }
                ),
                facts: json!({"threads": waiting, "led": leads, "term": target.term}),
            })
        })
    }
}

/// Asks for the leadership of `node`; whether it leads then.
async fn lead(scene: &Scene<'_>, node: usize) -> Result<bool, FaultError> {
    let name = &scene.cluster.nodes[node].full_name;
    // A refusal, or another election meanwhile, leaves a follower: its disk is frozen then.
    if let Err(error) = scene.cluster.nodes[node].patient.transfer_leader(name).await {
        tracing::info!(%error, "leadership was not handed over before the disk is frozen");
    }
    let (_, leader) = scene.cluster.leadership().await;
    Ok(leader.is_some_and(|leader| leader.node == node))
}
