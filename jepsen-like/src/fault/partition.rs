//! Partitions: some directed links carry nothing for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use serde_json::json;
use tokio::time::Instant;

use super::{Effect, Fault, FaultError, LEADER_PATIENCE, Scene};
use crate::cluster::Cluster;
use crate::links::{Flow, Party};

/// Time between two changes of a flapping partition.
const FLAP_INTERVAL: Duration = Duration::from_millis(300);
/// Share of the partitions in which clients cannot reach the smaller side either.
const CLIENTS_CUT_SHARE: f64 = 0.25;

/// Links of all shapes.
pub(super) struct Partition;

/// Which links are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    IsolateLeader,
    IsolateOne,
    Halves,
    Bridge,
    MajoritiesRing,
    LeaderMute,
    LeaderDeaf,
    Flapping,
    SwizzleClog,
}

const SHAPES: [Shape; 9] = [
    Shape::IsolateLeader,
    Shape::IsolateOne,
    Shape::Halves,
    Shape::Bridge,
    Shape::MajoritiesRing,
    Shape::LeaderMute,
    Shape::LeaderDeaf,
    Shape::Flapping,
    Shape::SwizzleClog,
];

/// Directed links, from position to position.
type Pairs = BTreeSet<(usize, usize)>;

impl Shape {
    fn as_str(self) -> &'static str {
        match self {
            Self::IsolateLeader => "isolate-leader",
            Self::IsolateOne => "isolate-one",
            Self::Halves => "halves",
            Self::Bridge => "bridge",
            Self::MajoritiesRing => "majorities-ring",
            Self::LeaderMute => "leader-mute",
            Self::LeaderDeaf => "leader-deaf",
            Self::Flapping => "flapping",
            Self::SwizzleClog => "swizzle-clog",
        }
    }

    /// The links it cuts, and the nodes that are worse off, for the history. `order` is a random order of all nodes.
    fn cut(self, order: &[usize], leader: usize) -> (Pairs, Vec<usize>) {
        let n = order.len();
        let isolated = |node: usize| order.iter().filter(move |other| **other != node).map(move |other| (node, *other));
        match self {
            Self::IsolateLeader | Self::Flapping => (both_ways(isolated(leader)), vec![leader]),
            Self::IsolateOne => (both_ways(isolated(order[0])), vec![order[0]]),
            // So many that for a moment nobody has a majority.
            Self::SwizzleClog => {
                let clogged = &order[..n / 2 + 1];
                (both_ways(clogged.iter().flat_map(|node| isolated(*node))), clogged.to_vec())
            }
            Self::Halves => {
                let minority = &order[..n / 2];
                let across = |a: &usize| order[n / 2..].iter().map(move |b| (*a, *b)).collect::<Vec<_>>();
                (both_ways(minority.iter().flat_map(across)), minority.to_vec())
            }
            Self::Bridge => {
                // The last of the order sees everybody, the two halves of the others do not see each other.
                let (left, right) = order[..n - 1].split_at((n - 1) / 2);
                let across = |a: &usize| right.iter().map(move |b| (*a, *b)).collect::<Vec<_>>();
                (both_ways(left.iter().flat_map(across)), left.to_vec())
            }
            Self::MajoritiesRing => (ring(order), order.to_vec()),
            Self::LeaderMute => (isolated(leader).collect(), vec![leader]),
            Self::LeaderDeaf => (isolated(leader).map(|(a, b)| (b, a)).collect(), vec![leader]),
        }
    }
}

fn both_ways(pairs: impl Iterator<Item = (usize, usize)>) -> Pairs {
    pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

/// Every node sees a majority, and no two nodes the same one: each sees its nearest neighbours on a ring. Fewer than
/// four nodes have no such ring: two of them do not see each other.
fn ring(order: &[usize]) -> Pairs {
    let n = order.len();
    if n < 4 {
        let (first, last) = (order[0], order[n - 1]);
        return both_ways(std::iter::once((first, last)).filter(|(a, b)| a != b));
    }
    let reach = (n / 2).div_ceil(2);
    let far = |i: usize, j: usize| {
        let apart = i.abs_diff(j);
        apart.min(n - apart) > reach
    };
    let pairs = (0..n).flat_map(|i| (0..n).map(move |j| (i, j)));
    pairs.filter(|(i, j)| far(*i, *j)).map(|(i, j)| (order[i], order[j])).collect()
}

fn set(cluster: &Cluster, pairs: &Pairs, flow: Flow) {
    for (from, to) in pairs {
        cluster.links.change(Party::Node(*from), Party::Node(*to), |rule| rule.flow = flow);
    }
}

impl Fault for Partition {
    fn name(&self) -> &'static str {
        "partition"
    }

    fn about(&self) -> &'static str {
        "isolated leader or node, halves, bridge, ring of majorities, one-way, flapping, swizzle-clog; bytes were lost or held"
    }

    fn strike<'a>(&'a self, mut scene: Scene<'a>) -> BoxFuture<'a, Result<Effect, FaultError>> {
        Box::pin(async move {
            let leader = scene.cluster.await_leader(LEADER_PATIENCE, "there is a leader to cut off", |_| true).await?;
            let shape = *SHAPES.choose(scene.rng).expect("there are shapes");
            let flow = if scene.rng.random_bool(0.5) { Flow::Hold } else { Flow::Drop };
            let clients_too = scene.rng.random_bool(CLIENTS_CUT_SHARE);
            let order = scene.shuffled();
            let (pairs, weak) = shape.cut(&order, leader.node);
            scene.announce(shape.as_str(), &weak)?;
            let before = scene.cluster.links.total();
            // A ring has no smaller side.
            if clients_too && shape != Shape::MajoritiesRing {
                for node in &weak {
                    scene.cluster.links.change(Party::Clients, Party::Node(*node), |rule| rule.flow = flow);
                    scene.cluster.links.change(Party::Node(*node), Party::Clients, |rule| rule.flow = flow);
                }
            }
            match shape {
                Shape::Flapping => flap(&mut scene, &pairs, flow).await,
                Shape::SwizzleClog => swizzle(&mut scene, &weak, flow).await,
                _ => {
                    set(scene.cluster, &pairs, flow);
                    scene.hold().await;
                }
            }
            let did = scene.cluster.links.total() - before;
            scene.cluster.links.heal();
            scene.healed();
            let after =
                scene.cluster.await_leader(LEADER_PATIENCE, "there is a leader after the heal", |_| true).await?;
            let bytes = did.dropped_bytes + did.held_bytes;
            let what = if flow == Flow::Drop { "lost" } else { "held" };
            Ok(Effect {
                bit: bytes > 0,
                evidence: format!(
                    "{} of {}: {bytes} bytes {what} on {} links, {} connects unanswered, term {} -> {}",
                    shape.as_str(),
                    scene.names_of(&weak),
                    pairs.len(),
                    did.lost_connects,
                    leader.term,
                    after.term
                ),
                facts: json!({"counts": did, "term": leader.term, "term_after": after.term, "clients_cut": clients_too}),
            })
        })
    }
}

/// Cut and whole in quick turns. Held bytes arrive in each whole turn; streams that lost bytes are reset in it.
async fn flap(scene: &mut Scene<'_>, pairs: &Pairs, flow: Flow) {
    let end = Instant::now() + scene.hold;
    let mut cut = true;
    while Instant::now() < end {
        set(scene.cluster, pairs, if cut { flow } else { Flow::Pass });
        cut = !cut;
        tokio::time::sleep(FLAP_INTERVAL).await;
    }
}

/// Cuts nodes off one after the other, and lets them back in another order.
async fn swizzle(scene: &mut Scene<'_>, nodes: &[usize], flow: Flow) {
    let all: Vec<usize> = (0..scene.cluster.size()).collect();
    let step = scene.hold / u32::try_from(2 * nodes.len().max(1)).expect("there are few nodes");
    let around = |node: usize| both_ways(all.iter().filter(|other| **other != node).map(|other| (node, *other)));
    let mut cut: BTreeSet<usize> = BTreeSet::new();
    for (order, off) in [(shuffle(nodes, scene.rng), true), (shuffle(nodes, scene.rng), false)] {
        for node in order {
            if off {
                cut.insert(node)
            } else {
                cut.remove(&node)
            };
            // A link between two nodes stays cut until both are back.
            let still: Pairs = cut.iter().flat_map(|node| around(*node)).collect();
            let free: Pairs = around(node).difference(&still).copied().collect();
            set(scene.cluster, &still, flow);
            set(scene.cluster, &free, Flow::Pass);
            tokio::time::sleep(step).await;
        }
    }
}

fn shuffle(nodes: &[usize], rng: &mut StdRng) -> Vec<usize> {
    let mut nodes = nodes.to_vec();
    nodes.shuffle(rng);
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sees(n: usize, pairs: &Pairs, node: usize) -> usize {
        (0..n).filter(|other| !pairs.contains(&(node, *other))).count()
    }

    #[test]
    fn on_a_ring_everybody_sees_a_majority_and_nobody_sees_all() {
        for n in 4..=10 {
            let order: Vec<usize> = (0..n).collect();
            let (pairs, _) = Shape::MajoritiesRing.cut(&order, 0);
            for node in 0..n {
                let seen = sees(n, &pairs, node);
                assert!(seen > n / 2 && seen < n, "of {n} nodes, {node} sees {seen}");
            }
        }
        let (three, _) = Shape::MajoritiesRing.cut(&[2, 0, 1], 0);
        assert_eq!(three, Pairs::from([(2, 1), (1, 2)]));
    }

    #[test]
    fn the_bridge_sees_all_and_the_halves_do_not_see_each_other() {
        let (pairs, left) = Shape::Bridge.cut(&[4, 3, 2, 1, 0], 0);
        assert_eq!(left, [4, 3]);
        assert_eq!(sees(5, &pairs, 0), 5);
        assert!((1..5).all(|node| sees(5, &pairs, node) == 3));
    }

    #[test]
    fn one_way_shapes_cut_one_way() {
        let (mute, _) = Shape::LeaderMute.cut(&[0, 1, 2], 1);
        let (deaf, _) = Shape::LeaderDeaf.cut(&[0, 1, 2], 1);
        assert_eq!(mute, Pairs::from([(1, 0), (1, 2)]));
        assert_eq!(deaf, Pairs::from([(0, 1), (2, 1)]));
    }

    #[test]
    fn a_single_node_has_no_link_to_cut() {
        for shape in SHAPES {
            assert!(shape.cut(&[0], 0).0.is_empty(), "{shape:?}");
        }
    }
}
