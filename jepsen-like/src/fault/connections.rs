//! Faults of connections: slow, reset, half-open, cut inside a frame; large messages that do not pass, connections that
//! cannot be made, while heartbeats pass.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hexkv_client::kv::PutOptions;
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

/// Largest message that passes a hole, in bytes: heartbeats and votes are smaller.
const SMALL_MESSAGE_BYTES_MAX: usize = 1_000;
/// Size of the value that a strike writes, so that a large message is sent whatever clients write, in bytes.
const LARGE_VALUE_BYTES: usize = 20_000;
/// The key of that value; no workload uses it.
const LARGE_KEY: &str = "probe/large";

/// Delay, jitter, little bandwidth.
pub(super) struct Slow;

/// Connections reset again and again.
pub(super) struct Reset;

/// Connections of which one side does not know that they are gone.
pub(super) struct HalfOpen;

/// Connections reset after some bytes.
pub(super) struct Cut;

/// Large messages do not pass, small ones do.
pub(super) struct MtuHole;

/// Connections that carry large messages are reset, and no new ones can be made.
pub(super) struct NoConnects;

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

/// Writes a large value through `node`, past the proxy of its clients; answers what came of it.
async fn write_large(scene: &Scene<'_>, node: usize) -> String {
    let (value, options) = (vec![b'x'; LARGE_VALUE_BYTES], PutOptions::default());
    let written = scene.cluster.nodes[node].direct.put(LARGE_KEY, value, &options).await;
    written.map_or_else(|error| error.to_string(), |_| "acknowledged".to_owned())
}

/// Changes the rules of the links among nodes that carry what `node` sends to the others, and, where `both`, what it receives.
fn among_nodes(cluster: &Cluster, node: usize, both: bool, change: impl Fn(&mut Rule)) {
    for other in (0..cluster.size()).filter(|other| *other != node) {
        cluster.links.change(Party::Node(node), Party::Node(other), &change);
        if both {
            cluster.links.change(Party::Node(other), Party::Node(node), &change);
        }
    }
}

impl Fault for MtuHole {
    fn name(&self) -> &'static str {
        "mtu-hole"
    }

    fn about(&self) -> &'static str {
        "what a node or the leader sends to other nodes passes only in small messages; connections were stuck"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let target = scene.aim(&[Aim::One, Aim::Leader, Aim::Leader]).await?;
            let (node, before) = (target.nodes[0], scene.cluster.links.total());
            scene.announce(target.aim.as_str(), &target.nodes)?;
            among_nodes(scene.cluster, node, false, |rule| rule.hold_above_bytes = Some(SMALL_MESSAGE_BYTES_MAX));
            let (large, ()) = tokio::join!(write_large(&scene, node), scene.hold());
            let words =
                format!("connections stuck behind more than {SMALL_MESSAGE_BYTES_MAX} bytes; a large put: {large}");
            Ok(finish(&mut scene, before, |did| did.stuck, &words, &target.nodes))
        })
    }
}

impl Fault for NoConnects {
    fn name(&self) -> &'static str {
        "no-connects"
    }

    fn about(&self) -> &'static str {
        "connections of a node or the leader to other nodes end at a large message, and new ones meet silence; attempts were lost"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let target = scene.aim(&[Aim::One, Aim::Leader, Aim::Leader]).await?;
            let (node, before) = (target.nodes[0], scene.cluster.links.total());
            scene.announce(target.aim.as_str(), &target.nodes)?;
            among_nodes(scene.cluster, node, true, |rule| {
                (rule.silence, rule.reset_above_bytes) = (true, Some(SMALL_MESSAGE_BYTES_MAX));
            });
            let (large, ()) = tokio::join!(write_large(&scene, node), scene.hold());
            let words = format!("attempts to connect met silence; a large put: {large}");
            Ok(finish(&mut scene, before, |did| did.lost_connects, &words, &target.nodes))
        })
    }
}
