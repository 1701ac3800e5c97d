//! Changes of membership under load: leave and join, removal, replication factor, transfer of leadership.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hexkv_client::Error;
use hexkv_client::api::{ClusterStatus, Code, Role};
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use serde_json::json;
use tokio::time::Instant;

use super::{Aim, Effect, Fault, FaultError, Scene};
use crate::cluster::{Cluster, ClusterError, LOOK_INTERVAL};
use crate::links::Party;

/// Longest wait for a change of membership to be complete.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Changes of membership are asked for again while a leader is missing, for so long.
const RETRY_PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Membership changes.
pub(super) struct Member;

#[derive(Debug, Clone, Copy)]
enum Change {
    LeaveAndJoin,
    RemoveAndJoin,
    ReplicationFactor,
    TransferLeader,
}

const CHANGES: [Change; 4] =
    [Change::LeaveAndJoin, Change::RemoveAndJoin, Change::ReplicationFactor, Change::TransferLeader];

impl Fault for Member {
    fn name(&self) -> &'static str {
        "member"
    }

    fn about(&self) -> &'static str {
        "leave and join, remove and join, another replication factor, leadership transfer; membership or leader changed"
    }

    fn nodes_min(&self) -> usize {
        3
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            scene.cluster.await_formed(SETTLE_TIMEOUT).await?;
            match *CHANGES.choose(scene.rng).expect("there are changes") {
                Change::LeaveAndJoin => leave_and_join(&mut scene).await,
                Change::RemoveAndJoin => remove_and_join(&mut scene).await,
                Change::ReplicationFactor => replication_factor(&mut scene).await,
                Change::TransferLeader => transfer_leader(&mut scene).await,
            }
        })
    }
}

/// Some node other than `node`.
fn other_than(scene: &mut Scene<'_>, node: usize) -> usize {
    scene.shuffled().into_iter().find(|other| *other != node).expect("there are at least three")
}

/// Asks until it is done: what changed nothing is asked again, an unknown outcome too, as these changes may be repeated.
/// None: a refusal says that an earlier attempt, whose answer was lost, has done it.
async fn insist<T, F>(what: &str, node: &str, mut ask: impl FnMut() -> F) -> Result<Option<T>, ClusterError>
where
    F: Future<Output = Result<T, Error>>,
{
    let deadline = Instant::now() + RETRY_PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return Ok(Some(answer)),
            Err(Error::Rejected { code: Code::NotFound | Code::ClusterMismatch, .. }) => return Ok(None),
            Err(source @ Error::Rejected { .. }) => {
                return Err(ClusterError::Api { node: node.to_owned(), source });
            }
            Err(error) if Instant::now() > deadline => {
                return Err(ClusterError::late(what, RETRY_PATIENCE, error.to_string()));
            }
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

/// Waits until `node` sees a cluster of which `wanted` is true.
async fn await_status(
    cluster: &Cluster,
    node: usize,
    what: &str,
    wanted: impl Fn(&ClusterStatus) -> bool,
) -> Result<ClusterStatus, ClusterError> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let why = match cluster.nodes[node].direct.status().await {
            Ok(status) if wanted(&status) => return Ok(status),
            Ok(status) => format!("{} members, {} voters", status.members.len(), voters(&status)),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(ClusterError::late(what, SETTLE_TIMEOUT, why));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn voters(status: &ClusterStatus) -> usize {
    status.members.iter().filter(|member| member.role == Role::Voter).count()
}

/// A node outside the cluster is a cluster of its own: clients have to go elsewhere, as when it is taken out of
/// service.
fn close_to_clients(cluster: &Cluster, node: usize) {
    cluster.links.change(Party::Clients, Party::Node(node), |rule| {
        rule.refuse = true;
        rule.resets += 1;
    });
}

/// Joins and waits until the cluster is whole.
async fn join(scene: &mut Scene<'_>, node: usize, through: usize) -> Result<(), FaultError> {
    let cluster = &scene.cluster;
    let (joining, target) = (&cluster.nodes[node], &cluster.nodes[through].target);
    insist("the node joins", &joining.name, || joining.patient.join(target, true)).await?;
    cluster.await_formed(SETTLE_TIMEOUT).await?;
    cluster.links.heal();
    scene.healed();
    Ok(())
}

async fn leave_and_join(scene: &mut Scene<'_>) -> Result<Effect, FaultError> {
    let target = scene.aim(&[Aim::One, Aim::Leader]).await?;
    let node = target.nodes[0];
    let other = other_than(scene, node);
    scene.announce("leave", &target.nodes)?;
    close_to_clients(scene.cluster, node);
    let leaving = &scene.cluster.nodes[node];
    insist("the node leaves", &leaving.name, || leaving.patient.leave()).await?;
    let fewer = scene.cluster.size() - 1;
    let left = await_status(scene.cluster, other, "a member is gone", |status| status.members.len() == fewer).await?;
    scene.hold().await;
    join(scene, node, other).await?;
    Ok(Effect {
        bit: left.members.len() == fewer,
        evidence: format!("{} left: {fewer} members, and joined again", scene.name_of(node)),
        facts: json!({"members": fewer + 1, "members_without": left.members.len(), "led": target.leads}),
    })
}

async fn remove_and_join(scene: &mut Scene<'_>) -> Result<Effect, FaultError> {
    let target = scene.aim(&[Aim::One, Aim::Leader]).await?;
    let node = target.nodes[0];
    let other = other_than(scene, node);
    scene.announce("remove", &target.nodes)?;
    close_to_clients(scene.cluster, node);
    scene.cluster.kill(node).await?;
    let (name, asked) = (scene.cluster.nodes[node].full_name.clone(), &scene.cluster.nodes[other]);
    insist("a dead member is removed", &asked.name, || asked.patient.remove_member(&name)).await?;
    let fewer = scene.cluster.size() - 1;
    let left = await_status(scene.cluster, other, "a member is gone", |status| status.members.len() == fewer).await?;
    scene.hold().await;
    // A removed node that comes back with its data is outside; an operator gives it a fresh disk.
    scene.cluster.nodes[node].wipe()?;
    scene.cluster.start(node).await?;
    scene.cluster.await_formed(SETTLE_TIMEOUT).await?;
    scene.cluster.links.heal();
    scene.healed();
    Ok(Effect {
        bit: left.members.len() == fewer,
        evidence: format!("{} removed: {fewer} members, and came back empty", scene.name_of(node)),
        facts: json!({"members": fewer + 1, "members_without": left.members.len(), "led": target.leads}),
    })
}

async fn replication_factor(scene: &mut Scene<'_>) -> Result<Effect, FaultError> {
    let asked = scene.shuffled()[0];
    let before = await_status(scene.cluster, asked, "a status", |_| true).await?;
    let most = voters(&before);
    let fewer = scene.rng.random_range(1..most);
    scene.announce(&format!("replication factor {fewer}"), &[])?;
    let mut seen = Vec::new();
    for wanted in [fewer, most] {
        let node = &scene.cluster.nodes[asked];
        let value = u32::try_from(wanted).expect("there are few nodes");
        insist("the replication factor is set", &node.name, || node.patient.set_replication_factor(value)).await?;
        let what = format!("{wanted} voters");
        let now = await_status(scene.cluster, asked, &what, |status| voters(status) == wanted).await?;
        seen.push(voters(&now));
        if wanted == fewer {
            scene.hold().await;
        }
    }
    scene.cluster.await_formed(SETTLE_TIMEOUT).await?;
    scene.healed();
    Ok(Effect {
        bit: seen == [fewer, most] && fewer != most,
        evidence: format!("{most} voters -> {fewer} -> {most}"),
        facts: json!({"voters": most, "voters_between": fewer}),
    })
}

async fn transfer_leader(scene: &mut Scene<'_>) -> Result<Effect, FaultError> {
    let target = scene.aim(&[Aim::Leader]).await?;
    let status = await_status(scene.cluster, target.nodes[0], "a status", |_| true).await?;
    let is_voter = |name: &str| status.members.iter().any(|m| m.name == name && m.role == Role::Voter);
    let order = scene.shuffled();
    let voter = |node: &&usize| **node != target.nodes[0] && is_voter(&scene.cluster.nodes[**node].full_name);
    let to = *order.iter().find(voter).expect("at least two of three nodes vote");
    scene.announce("transfer leader", &[to])?;
    let asked = &scene.cluster.nodes[target.nodes[0]];
    let name = scene.cluster.nodes[to].full_name.clone();
    insist("leadership is transferred", &asked.name, || asked.patient.transfer_leader(&name)).await?;
    let later = |leader: &crate::cluster::Leadership| leader.term > target.term;
    let leader = scene.cluster.await_leader(SETTLE_TIMEOUT, "a new term has a leader", later).await?;
    scene.healed();
    scene.hold().await;
    Ok(Effect {
        bit: leader.term > target.term,
        evidence: format!(
            "{} -> {}, term {} -> {}",
            scene.name_of(target.nodes[0]),
            scene.name_of(leader.node),
            target.term,
            leader.term
        ),
        facts: json!({"to": scene.name_of(to), "leader": scene.name_of(leader.node), "term": target.term, "term_after": leader.term}),
    })
}
