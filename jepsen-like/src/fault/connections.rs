//! Faults of connections: slow, reset, half-open, cut inside a frame.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::RngExt as _;
use serde_json::json;
use tokio::time::Instant;

use super::{Aim, Effect, Fault, FaultError, Scene};
use crate::cluster::Cluster;
use crate::links::{Counts, Party, Rule};

/// Most delay of a slow link; half of it on average, and the same again as jitter.
const DELAY_MAX: Duration = Duration::from_millis(120);
/// Range of the bandwidth of a narrow link, in bytes a second.
const BYTES_PER_SECOND: std::ops::Range<u64> = 16 * 1024..512 * 1024;
/// Range of the time between two resets.
const RESET_INTERVAL_MS: std::ops::Range<u64> = 100..600;
/// Range of the number of bytes after which a connection is cut: within a frame's header, or within its body.
const CUT_BYTES: std::ops::Range<u64> = 1..400;

/// Delay, jitter, little bandwidth.
pub(super) struct Slow;

/// Connections reset again and again.
pub(super) struct Reset;

/// Connections of which one side does not know that they are gone.
pub(super) struct HalfOpen;

/// Connections reset after some bytes.
pub(super) struct Cut;

/// Changes the rules of all links of some nodes, those of clients too.
fn around(cluster: &Cluster, nodes: &[usize], change: impl Fn(&mut Rule)) {
    for node in nodes {
        let others = (0..cluster.size()).filter(|other| other != node).map(Party::Node);
        for other in others.chain([Party::Clients]) {
            cluster.links.change(Party::Node(*node), other, &change);
            cluster.links.change(other, Party::Node(*node), &change);
        }
    }
}

/// Chooses whom to hit, and whether it is one node or all.
async fn begin(scene: &mut Scene<'_>) -> Result<(Vec<usize>, Counts), FaultError> {
    let target = scene.aim(&[Aim::One, Aim::Leader, Aim::All]).await?;
    scene.announce(target.aim.as_str(), &target.nodes)?;
    Ok((target.nodes, scene.cluster.links.total()))
}

/// Heals, and says what was done.
fn finish(
    scene: &mut Scene<'_>,
    before: Counts,
    proof: impl Fn(&Counts) -> u64,
    words: &str,
    nodes: &[usize],
) -> Effect {
    let did = scene.cluster.links.total() - before;
    scene.cluster.links.heal();
    scene.healed();
    let proof = proof(&did);
    let evidence = format!("{}: {proof} {words}", scene.names_of(nodes));
    Effect { bit: proof > 0, evidence, facts: json!({"counts": did}) }
}

impl Fault for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn about(&self) -> &'static str {
        "delay, jitter and little bandwidth on all links of a node, the leader or all; bytes came late"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let delay = DELAY_MAX.mul_f64(scene.rng.random_range(0.05..1.0));
            let narrow = scene.rng.random_bool(0.5).then(|| scene.rng.random_range(BYTES_PER_SECOND));
            let (nodes, before) = begin(&mut scene).await?;
            around(scene.cluster, &nodes, |rule| {
                (rule.delay, rule.jitter, rule.bytes_per_second) = (delay, delay, narrow);
            });
            scene.hold().await;
            let words = format!("bytes late by {delay:?} and as much jitter");
            Ok(finish(&mut scene, before, |did| did.delayed_bytes, &words, &nodes))
        })
    }
}

impl Fault for Reset {
    fn name(&self) -> &'static str {
        "reset"
    }

    fn about(&self) -> &'static str {
        "all connections of a node, the leader or all are reset, several times a second; connections were reset"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let (nodes, before) = begin(&mut scene).await?;
            let end = Instant::now() + scene.hold;
            while Instant::now() < end {
                around(scene.cluster, &nodes, |rule| rule.resets += 1);
                let pause = Duration::from_millis(scene.rng.random_range(RESET_INTERVAL_MS));
                tokio::time::sleep(pause).await;
            }
            Ok(finish(&mut scene, before, |did| did.resets, "connections reset", &nodes))
        })
    }
}

impl Fault for HalfOpen {
    fn name(&self) -> &'static str {
        "half-open"
    }

    fn about(&self) -> &'static str {
        "the accepting side of connections is reset, the other side learns nothing; connections were half-open"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let (nodes, before) = begin(&mut scene).await?;
            around(scene.cluster, &nodes, |rule| rule.half_opens += 1);
            scene.hold().await;
            Ok(finish(&mut scene, before, |did| did.half_opened, "connections half-open", &nodes))
        })
    }
}

impl Fault for Cut {
    fn name(&self) -> &'static str {
        "cut"
    }

    fn about(&self) -> &'static str {
        "each connection of a node, the leader or all is reset after some bytes, inside a frame; connections were cut"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let bytes = scene.rng.random_range(CUT_BYTES);
            let (nodes, before) = begin(&mut scene).await?;
            around(scene.cluster, &nodes, |rule| rule.cut_after_bytes = Some(bytes));
            scene.hold().await;
            let words = format!("connections cut after {bytes} bytes");
            Ok(finish(&mut scene, before, |did| did.cuts, &words, &nodes))
        })
    }
}
