//! What the nodes say of themselves, asked past the proxies.

use std::time::Duration;

use futures_util::future::join_all;
use hexkv_client::api::{ClusterStatus, HashAnswer, Role};
use hexkv_client::cluster::HealthCheck;
use serde::Serialize;
use tokio::time::Instant;

use super::{Cluster, ClusterError, LOOK_INTERVAL};

/// Longest wait for a node's answer about itself.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Each node's answers at about one moment; None where it gave none.
#[derive(Debug)]
pub struct View(Vec<Option<(ClusterStatus, bool)>>);

/// Who leads, as far as a term is known to have a leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leadership {
    /// Position of the leader.
    pub node: usize,
    /// Its term.
    pub term: u64,
}

impl View {
    /// Asks all nodes at once.
    pub async fn of(cluster: &Cluster) -> Self {
        let asked = cluster.nodes.iter().map(|node| async {
            let status = node.direct.status().await.ok()?;
            Some((status, node.direct.health(HealthCheck::Ready).await.is_ok()))
        });
        Self(join_all(asked).await)
    }

    /// Why the nodes are not one cluster of `size`, if they are not.
    pub(super) fn unformed(&self, size: usize) -> Option<String> {
        self.0.iter().enumerate().find_map(|(position, answer)| {
            let name = format!("n{}", position + 1);
            let Some((status, ready)) = answer else { return Some(format!("{name} does not answer")) };
            let voters = status.members.iter().filter(|member| member.role == Role::Voter).count();
            let wanted = size.min(usize::try_from(status.replication_factor).unwrap_or(usize::MAX));
            match (status.members.len() == size, voters == wanted, ready) {
                (true, true, true) => None,
                (true, true, false) => Some(format!("{name} is not ready")),
                _ => Some(format!("{name} sees {} members, {voters} of them voters", status.members.len())),
            }
        })
    }
}

impl Cluster {
    /// The highest term that some node that answers knows, and its leader when that node knows it.
    pub async fn leadership(&self) -> (u64, Option<Leadership>) {
        let asked = self.nodes.iter().filter(|node| node.runs()).map(|node| node.direct.status());
        let answers: Vec<ClusterStatus> = join_all(asked).await.into_iter().flatten().collect();
        let term = answers.iter().map(|status| status.term).max().unwrap_or(0);
        let leader = answers.iter().filter(|status| status.term == term).find_map(|status| status.leader.as_ref());
        let node = leader.and_then(|name| self.nodes.iter().position(|node| node.full_name == *name));
        (term, node.map(|node| Leadership { node, term }))
    }

    /// Positions of the nodes that vote, as the node at `asked` says.
    ///
    /// # Errors
    /// [`ClusterError::Api`] when it does not answer.
    pub async fn voters(&self, asked: usize) -> Result<Vec<usize>, ClusterError> {
        let asked = &self.nodes[asked];
        let api = |source| ClusterError::Api { node: asked.name.clone(), source };
        let status = asked.direct.status().await.map_err(api)?;
        let votes = |name: &str| status.members.iter().any(|m| m.name == name && m.role == Role::Voter);
        let nodes = self.nodes.iter().enumerate().filter(|(_, node)| votes(&node.full_name));
        Ok(nodes.map(|(position, _)| position).collect())
    }

    /// Waits for a leader that satisfies `wanted`.
    ///
    /// # Errors
    /// [`ClusterError::Late`] after `patience`.
    pub async fn await_leader(
        &self,
        patience: Duration,
        what: &str,
        wanted: impl Fn(&Leadership) -> bool,
    ) -> Result<Leadership, ClusterError> {
        let deadline = Instant::now() + patience;
        loop {
            let (term, leader) = self.leadership().await;
            if let Some(leader) = leader.clone().filter(&wanted) {
                return Ok(leader);
            }
            if Instant::now() > deadline {
                return Err(ClusterError::late(what, patience, format!("term {term}, {leader:?}")));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// State hash of each node that holds data, with the node's position; standbys hold none.
    ///
    /// # Errors
    /// [`ClusterError::Api`] when a node does not answer.
    pub async fn hashes(&self) -> Result<Vec<(usize, HashAnswer)>, ClusterError> {
        let asked = self.nodes.iter().enumerate().map(|(position, node)| async move {
            let api = |source| ClusterError::Api { node: node.name.clone(), source };
            let status = node.direct.status().await.map_err(api)?;
            let me = status.members.iter().find(|member| member.name == node.full_name);
            if me.is_some_and(|me| me.role == Role::Standby) {
                return Ok(None);
            }
            node.direct.hash().await.map(|hash| Some((position, hash))).map_err(api)
        });
        let answers: Result<Vec<_>, ClusterError> = join_all(asked).await.into_iter().collect();
        Ok(answers?.into_iter().flatten().collect())
    }

    /// Waits until all nodes that hold data have applied the same entries, and gives their hashes, equal or not.
    ///
    /// # Errors
    /// [`ClusterError::Late`] after `patience`.
    pub async fn settled_hashes(&self, patience: Duration) -> Result<Vec<(usize, HashAnswer)>, ClusterError> {
        let deadline = Instant::now() + patience;
        loop {
            let why = match self.hashes().await {
                Ok(hashes) => {
                    let (first, rest) = hashes.split_first().map_or((None, &[][..]), |(a, b)| (Some(a), b));
                    let level = |other: &(usize, HashAnswer)| {
                        first.is_some_and(|first| first.1.applied_index == other.1.applied_index)
                    };
                    if first.is_some() && rest.iter().all(level) {
                        return Ok(hashes);
                    }
                    let applied: Vec<String> = hashes
                        .iter()
                        .map(|(position, hash)| format!("n{} applied {}", position + 1, hash.applied_index))
                        .collect();
                    applied.join(", ")
                }
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                return Err(ClusterError::late("all nodes have applied the same entries", patience, why));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
