//! Faults of processes: killed, paused, restarted in order.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use super::{Aim, Effect, Fault, FaultError, LEADER_PATIENCE, Scene, Target};
use crate::cluster::process::{STOPPED, state};
use crate::cluster::{Cluster, ClusterError, ELECTION_TIMEOUT_MAX, LOOK_INTERVAL};

/// Shortest pause: the others must have the time to elect, which takes up to twice the election timeout of silence.
const PAUSE_MIN: Duration = ELECTION_TIMEOUT_MAX.saturating_mul(3);
/// Longest wait for a signalled process to stop.
const STOPPED_PATIENCE: Duration = Duration::from_secs(2);

/// `kill -9`.
pub(super) struct Kill;

/// SIGSTOP and SIGCONT.
pub(super) struct Pause;

/// SIGTERM and a new start.
pub(super) struct Restart;

/// When the leader was hit, waits until a later term has one, and gives that term.
async fn next_term(cluster: &Cluster, target: &Target) -> Result<Option<u64>, ClusterError> {
    if !target.leads {
        return Ok(None);
    }
    let later = |leader: &crate::cluster::Leadership| leader.term > target.term;
    cluster.await_leader(LEADER_PATIENCE, "a new term has a leader", later).await.map(|leader| Some(leader.term))
}

fn term_words(target: &Target, after: Option<u64>) -> String {
    after.map_or_else(String::new, |after| format!(", term {} -> {after}", target.term))
}

impl Fault for Kill {
    fn name(&self) -> &'static str {
        "kill"
    }

    fn about(&self) -> &'static str {
        "kill -9 of one node, the leader, a majority or all; the process is gone by signal 9, a killed leader's term ends"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let target = scene.aim(&[Aim::One, Aim::Leader, Aim::Leader, Aim::Majority, Aim::All]).await?;
            scene.announce(target.aim.as_str(), &target.nodes)?;
            let mut pids = Vec::new();
            for node in &target.nodes {
                pids.push(scene.cluster.kill(*node).await?);
            }
            scene.hold().await;
            let mut later = Vec::new();
            for node in &target.nodes {
                scene.cluster.start(*node).await?;
                later.push(scene.cluster.nodes[*node].pid()?);
            }
            scene.healed();
            let term = next_term(scene.cluster, &target).await?;
            Ok(Effect {
                bit: pids.iter().zip(&later).all(|(before, after)| before != after),
                evidence: format!("{} gone by signal 9{}", scene.names_of(&target.nodes), term_words(&target, term)),
                facts: json!({"pids": pids, "pids_after": later, "term": target.term, "term_after": term}),
            })
        })
    }
}

impl Fault for Pause {
    fn name(&self) -> &'static str {
        "pause"
    }

    fn about(&self) -> &'static str {
        "SIGSTOP for longer than an election takes, then SIGCONT; /proc shows state T, a paused leader's term ends"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let target = scene.aim(&[Aim::One, Aim::Leader, Aim::Leader, Aim::Majority, Aim::All]).await?;
            scene.announce(target.aim.as_str(), &target.nodes)?;
            for node in &target.nodes {
                scene.cluster.nodes[*node].signal(Signal::STOP)?;
            }
            for node in &target.nodes {
                await_stopped(scene.cluster, *node).await?;
            }
            tokio::time::sleep(scene.hold.max(PAUSE_MIN)).await;
            // Still stopped at the end: nothing woke it in between.
            let mut stopped = true;
            for node in &target.nodes {
                stopped &= state_of(scene.cluster, *node)? == STOPPED;
            }
            for node in &target.nodes {
                scene.cluster.nodes[*node].signal(Signal::CONT)?;
            }
            scene.healed();
            // Where a majority stood still there was nobody to elect another leader.
            let elected = target.nodes.len() <= (scene.cluster.size() - 1) / 2;
            let term = if elected { next_term(scene.cluster, &target).await? } else { None };
            Ok(Effect {
                bit: stopped,
                evidence: format!("{} in state T{}", scene.names_of(&target.nodes), term_words(&target, term)),
                facts: json!({"state": STOPPED, "term": target.term, "term_after": term}),
            })
        })
    }
}

fn state_of(cluster: &Cluster, node: usize) -> Result<char, ClusterError> {
    let node = &cluster.nodes[node];
    state(node.pid()?).map_err(|source| ClusterError::Process { node: node.name.clone(), source })
}

async fn await_stopped(cluster: &Cluster, node: usize) -> Result<(), ClusterError> {
    let deadline = Instant::now() + STOPPED_PATIENCE;
    loop {
        let state = state_of(cluster, node)?;
        if state == STOPPED {
            return Ok(());
        }
        if Instant::now() > deadline {
            let what = format!("{} is stopped by SIGSTOP", cluster.nodes[node].name);
            return Err(ClusterError::late(&what, STOPPED_PATIENCE, format!("state {state}")));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

impl Fault for Restart {
    fn name(&self) -> &'static str {
        "restart"
    }

    fn about(&self) -> &'static str {
        "SIGTERM and a new start, of one node, the leader, or all in turn; exit code 0 and a new pid"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let target = scene.aim(&[Aim::One, Aim::Leader, Aim::All]).await?;
            scene.announce(target.aim.as_str(), &target.nodes)?;
            let mut pids = Vec::new();
            let away = scene.hold / u32::try_from(target.nodes.len()).expect("there are few nodes");
            for node in &target.nodes {
                let before = scene.cluster.terminate(*node).await?;
                tokio::time::sleep(away).await;
                scene.cluster.start(*node).await?;
                pids.push((before, scene.cluster.nodes[*node].pid()?));
                // In turn: the next one goes when there is a leader again.
                scene.cluster.await_leader(LEADER_PATIENCE, "there is a leader after a restart", |_| true).await?;
            }
            scene.healed();
            let term = next_term(scene.cluster, &target).await?;
            Ok(Effect {
                bit: pids.iter().all(|(before, after)| before != after),
                evidence: format!("{} ended with code 0{}", scene.names_of(&target.nodes), term_words(&target, term)),
                facts: json!({"pids": pids, "term": target.term, "term_after": term}),
            })
        })
    }
}
