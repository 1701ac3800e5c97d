//! Faults of copies of a node's disk: a copy that is started beside the node, and an older copy in place of the disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::{Aim, Effect, Fault, FaultError, Scene};
use crate::cluster::{ClusterError, node::copy};

/// Longest wait for the copy of a node to end by itself.
const CLONE_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for a node to take part again.
const REJOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A copy of a node's disk, started on other ports while the node runs.
pub(super) struct Clone;

/// A node that comes back with an older state of its disk.
pub(super) struct Rollback;

/// Copies the data of `node`, which does not run.
fn copied(scene: &Scene<'_>, node: usize) -> Result<PathBuf, ClusterError> {
    let data = &scene.cluster.nodes[node].data;
    let to = data.with_extension("copy");
    let copied = std::fs::create_dir(&to).and_then(|()| copy(data, &to));
    copied.map_err(|source| ClusterError::file(&to, source)).map(|()| to)
}

fn removed(dir: &Path) -> Result<(), ClusterError> {
    std::fs::remove_dir_all(dir).map_err(|source| ClusterError::file(dir, source))
}

/// Index of the last entry that a node has applied.
async fn applied(scene: &Scene<'_>, node: usize) -> Result<u64, ClusterError> {
    let asked = &scene.cluster.nodes[node];
    let api = |source| ClusterError::Api { node: asked.name.clone(), source };
    asked.direct.hash().await.map(|hash| hash.applied_index).map_err(api)
}

impl Fault for Clone {
    fn name(&self) -> &'static str {
        "clone"
    }

    fn about(&self) -> &'static str {
        "a copy of a node's disk is started on other ports while the node runs; the copy ends with an error"
    }

    fn nodes_min(&self) -> usize {
        3
    }

    /// It waits for a process for long.
    fn in_all(&self) -> bool {
        false
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let target = scene.aim(&[Aim::One, Aim::Leader]).await?;
            let node = target.nodes[0];
            scene.announce(target.aim.as_str(), &target.nodes)?;
            scene.cluster.terminate(node).await?;
            let copy = copied(&scene, node)?;
            scene.cluster.start(node).await?;
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let links = scene.cluster.links.clone();
            let started = |pid| links.add_copy(node, pid);
            let ended = scene.cluster.nodes[node].run_copy(&copy, CLONE_PATIENCE, started).await?;
            removed(&copy)?;
            scene.healed();
            let refused = ended.is_some_and(|status| !status.success());
            let how =
                ended.map_or_else(|| format!("ran on for {CLONE_PATIENCE:?}"), |status| format!("ended: {status}"));
            Ok(Effect {
                bit: refused,
                evidence: format!("the copy of {} {how}", scene.name_of(node)),
                facts: json!({"term": target.term, "code": ended.and_then(|status| status.code())}),
            })
        })
    }
}

impl Fault for Rollback {
    fn name(&self) -> &'static str {
        "rollback"
    }

    fn about(&self) -> &'static str {
        "a node is restarted with an older copy of its disk; it had applied more before, and has caught up in the end"
    }

    fn nodes_min(&self) -> usize {
        3
    }

    /// What a majority had is on a majority no more: another fault at that moment could lose it by right.
    fn in_all(&self) -> bool {
        false
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let target = scene.aim(&[Aim::One]).await?;
            let node = target.nodes[0];
            scene.announce(target.aim.as_str(), &target.nodes)?;
            let then = applied(&scene, node).await?;
            scene.cluster.terminate(node).await?;
            let copy = copied(&scene, node)?;
            scene.cluster.start(node).await?;
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            scene.hold().await;
            let now = applied(&scene, node).await?;
            scene.cluster.terminate(node).await?;
            scene.cluster.nodes[node].replace_data(&copy)?;
            scene.cluster.start(node).await?;
            scene.healed();
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let after = applied(&scene, node).await?;
            Ok(Effect {
                bit: now > then && after >= now,
                evidence: format!("{} went back from entry {now} to {then}, then to {after}", scene.name_of(node)),
                facts: json!({"copied_at": then, "replaced_at": now, "applied_after": after}),
            })
        })
    }
}
