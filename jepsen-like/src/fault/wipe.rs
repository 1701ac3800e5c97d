//! A node that loses its disk and comes back empty.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hexkv_client::api::ClusterStatus;
use serde_json::json;

use super::{Aim, Effect, Fault, FaultError, Scene};
use crate::cluster::{Cluster, ClusterError};

/// Longest wait for a wiped node to be a member with all data again. Its old self has to be silent for two seconds
/// first.
const REJOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// kill -9, data deleted, started again under its old name.
pub(super) struct Wipe;

/// The node id of a member, as the first node that answers knows it.
async fn id_of(cluster: &Cluster, node: usize) -> Result<String, ClusterError> {
    let name = &cluster.nodes[node].full_name;
    let mut last = None;
    for other in &cluster.nodes {
        match other.direct.status().await {
            Ok(status) => {
                if let Some(id) = member_id(&status, name) {
                    return Ok(id);
                }
            }
            Err(source) => last = Some(ClusterError::Api { node: other.name.clone(), source }),
        }
    }
    let unknown = || ClusterError::late(&format!("{name} is a member"), Duration::ZERO, "nobody lists it".to_owned());
    Err(last.unwrap_or_else(unknown))
}

fn member_id(status: &ClusterStatus, name: &str) -> Option<String> {
    status.members.iter().find(|member| member.name == name).map(|member| member.id.clone())
}

impl Fault for Wipe {
    fn name(&self) -> &'static str {
        "wipe"
    }

    fn about(&self) -> &'static str {
        "kill -9, delete the data directory, start again; the node is a member with a new id"
    }

    fn nodes_min(&self) -> usize {
        3
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let target = scene.aim(&[Aim::One, Aim::Leader]).await?;
            let node = target.nodes[0];
            // What is acknowledged is on a majority, and one disk less must leave one: all have to be level before.
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let before = id_of(scene.cluster, node).await?;
            scene.announce(target.aim.as_str(), &target.nodes)?;
            scene.cluster.kill(node).await?;
            scene.cluster.nodes[node].wipe()?;
            scene.hold().await;
            scene.cluster.start(node).await?;
            scene.healed();
            scene.cluster.await_formed(REJOIN_TIMEOUT).await?;
            let after = id_of(scene.cluster, node).await?;
            Ok(Effect {
                bit: before != after,
                evidence: format!("{} lost its disk: id {before} -> {after}", scene.name_of(node)),
                facts: json!({"id": before, "id_after": after, "term": target.term}),
            })
        })
    }
}
