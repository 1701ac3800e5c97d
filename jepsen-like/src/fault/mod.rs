//! What breaks, how it heals, and the proof that it did break. A fault is one struct and one line in [`ALL`].
//!
//! A strike announces itself in the history, breaks something, holds it broken, heals it, and says what was seen of
//! it. A fault none of whose strikes had an effect makes the run vacuous: it failed, for it proves nothing.

mod connections;
mod copies;
mod disk;
mod lost_quorum;
mod member;
mod partition;
mod process;
mod recovery;
mod wipe;

use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::{Cluster, ClusterError};
use crate::history::{Entry, RecordError, Recorder};

pub use recovery::{RECOVERY_ALLOWANCE, RECOVERY_BUDGET, Recovery};

/// Longest wait for a leader after a strike; the time is recorded, and judged at the end of the run.
pub const LEADER_PATIENCE: Duration = Duration::from_secs(30);

/// Why a strike could not be carried out; ends the run.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The history.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What a strike did, as far as it was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effect {
    /// Whether the effect that the fault is there for was seen.
    pub bit: bool,
    /// What was seen, for people.
    pub evidence: String,
    /// The same in figures.
    pub facts: Value,
}

/// What a strike has to work with.
pub struct Scene<'a> {
    /// The victim.
    pub cluster: &'a mut Cluster,
    /// Where all choices come from.
    pub rng: &'a mut StdRng,
    /// How long it stays broken.
    pub hold: Duration,
    name: &'static str,
    recorder: &'a Recorder,
    recovery: &'a mut Option<Recovery>,
}

impl<'a> Scene<'a> {
    /// The scene of one strike of the fault `name`.
    pub fn new(
        cluster: &'a mut Cluster,
        rng: &'a mut StdRng,
        hold: Duration,
        name: &'static str,
        recorder: &'a Recorder,
        recovery: &'a mut Option<Recovery>,
    ) -> Self {
        Self { cluster, rng, hold, name, recorder, recovery }
    }

    /// Everything is whole again: from now on the time until the cluster accepts a write is measured.
    pub fn healed(&mut self) {
        *self.recovery = Some(Recovery::watch(self.cluster));
    }

    /// Takes down that the fault begins, and what it hits.
    ///
    /// # Errors
    /// When the history takes no more.
    pub fn announce(&self, how: &str, nodes: &[usize]) -> Result<(), RecordError> {
        let names: Vec<String> = nodes.iter().map(|position| self.name_of(*position)).collect();
        let value = json!({"phase": "begin", "how": how, "nodes": names});
        self.recorder.record(Entry::nemesis(self.name).value(value)).map(drop)
    }

    /// Name of a node, as in the history.
    pub fn name_of(&self, position: usize) -> String {
        self.cluster.nodes[position].name.clone()
    }

    /// Names of nodes.
    pub fn names_of(&self, positions: &[usize]) -> String {
        positions.iter().map(|position| self.name_of(*position)).collect::<Vec<_>>().join(", ")
    }

    /// Lets the fault stay.
    pub async fn hold(&self) {
        tokio::time::sleep(self.hold).await;
    }

    /// All nodes, in random order.
    pub fn shuffled(&mut self) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.cluster.size()).collect();
        nodes.shuffle(self.rng);
        nodes
    }

    /// Chooses whom to hit, out of `aims`.
    ///
    /// # Errors
    /// When there is no leader, or it does not say who votes.
    pub async fn aim(&mut self, aims: &[Aim]) -> Result<Target, FaultError> {
        let leader = self.cluster.await_leader(LEADER_PATIENCE, "there is a leader to aim at", |_| true).await?;
        let aim = *aims.choose(self.rng).expect("a fault aims at something");
        let shuffled = self.shuffled();
        let nodes = match aim {
            Aim::One => shuffled[..1].to_vec(),
            Aim::Leader => vec![leader.node],
            Aim::Majority => majority(&shuffled, &self.cluster.voters(leader.node).await?),
            Aim::All => shuffled,
        };
        Ok(Target { aim, leads: nodes.contains(&leader.node), term: leader.term, nodes })
    }
}

/// The first of `nodes` that are a majority of `voters`: those who hold no data are none, however many they are.
fn majority(nodes: &[usize], voters: &[usize]) -> Vec<usize> {
    nodes.iter().filter(|node| voters.contains(node)).take(voters.len() / 2 + 1).copied().collect()
}

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Any node.
    One,
    /// The leader.
    Leader,
    /// So many voters that the rest is no majority.
    Majority,
    /// Every node.
    All,
}

impl Aim {
    /// As in the history.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Leader => "leader",
            Self::Majority => "majority",
            Self::All => "all",
        }
    }
}

/// The nodes that are hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How they were chosen.
    pub aim: Aim,
    /// Positions.
    pub nodes: Vec<usize>,
    /// Whether the leader is among them.
    pub leads: bool,
    /// The term before.
    pub term: u64,
}

/// A kind of fault.
pub trait Fault: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// One line: what is broken, and what proves it.
    fn about(&self) -> &'static str;

    /// Fewest nodes with which it can be survived.
    fn nodes_min(&self) -> usize {
        1
    }

    /// Whether `all` means it too: not where some workload cannot tell it from a fault of the cluster.
    fn in_all(&self) -> bool {
        true
    }

    /// Why this machine or user cannot have it; None when it can.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// Breaks, holds, heals.
    fn strike<'a>(&'a self, scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>>;
}

/// All faults, in the order of `jepsen-like list`.
pub static ALL: &[&dyn Fault] = &[
    &process::Kill,
    &process::Pause,
    &process::Restart,
    &wipe::Wipe,
    &partition::Partition,
    &connections::Slow,
    &connections::Reset,
    &connections::HalfOpen,
    &connections::Cut,
    &connections::MtuHole,
    &connections::NoConnects,
    &disk::StalledDisk,
    &copies::Clone,
    &copies::Rollback,
    &member::Member,
    &lost_quorum::LostQuorum,
];

#[cfg(test)]
mod tests {
    use super::majority;

    #[test]
    fn a_majority_is_one_of_the_voters() {
        assert_eq!(majority(&[2, 0, 1], &[0, 1, 2]), [2, 0]);
        let voters = [0, 1, 2, 3, 4, 5, 6];
        assert_eq!(majority(&[8, 9, 7, 6, 0, 5, 1, 2, 3, 4], &voters), [6, 0, 5, 1], "of ten nodes seven vote");
        assert_eq!(majority(&[3, 2, 1, 0], &[0, 1, 2, 3]), [3, 2, 1]);
    }
}
