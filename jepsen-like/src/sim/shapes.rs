//! Shapes of partitions.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

use super::{cluster::Cluster, links::Link, plan::Plan};

/// Nodes that do not hear each other, and what that is called.
pub fn partition(rng: &mut StdRng, nodes: usize, leader: Option<usize>) -> (String, BTreeSet<Link>) {
    let mut order: Vec<usize> = (0..nodes).collect();
    order.shuffle(rng);
    match rng.random_range(0..5) {
        0 => (format!("alone {}", order[0]), between(&order[..1], &order[1..])),
        1 if let Some(leader) = leader => {
            let others: Vec<usize> = order.into_iter().filter(|n| *n != leader).collect();
            (format!("leader alone {leader}"), between(&[leader], &others))
        }
        2 => {
            // One node hears both halves, which do not hear each other.
            let half = nodes / 2;
            let (bridge, rest) = order.split_at(1);
            (format!("bridge {bridge:?}"), between(&rest[..half], &rest[half..]))
        }
        3 => {
            // Every node hears its neighbours on a ring: with five nodes each sees another majority.
            let mut links = BTreeSet::new();
            for (i, a) in order.iter().enumerate() {
                for (j, b) in order.iter().enumerate() {
                    let apart = (i + nodes - j) % nodes;
                    if apart > 1 && apart < nodes - 1 {
                        links.insert((*a, *b));
                    }
                }
            }
            (format!("ring {order:?}"), links)
        }
        _ => {
            let at = rng.random_range(1..nodes);
            (format!("split {:?} {:?}", &order[..at], &order[at..]), between(&order[..at], &order[at..]))
        }
    }
}

/// Nodes that some others do not hear, though they hear those.
pub fn one_way(rng: &mut StdRng, nodes: usize, leader: Option<usize>) -> (String, BTreeSet<Link>) {
    let node = leader.filter(|_| rng.random_bool(0.5)).unwrap_or_else(|| rng.random_range(0..nodes));
    let others = || (0..nodes).filter(|other| *other != node);
    match rng.random_range(0..3) {
        0 => (format!("mute {node}"), others().map(|other| (node, other)).collect()),
        1 => (format!("deaf {node}"), others().map(|other| (other, node)).collect()),
        _ => {
            let all = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))).filter(|(a, b)| a != b);
            let links: BTreeSet<Link> = all.filter(|_| rng.random_bool(0.3)).collect();
            (format!("random {links:?}"), links)
        }
    }
}

/// All links between `node` and the others, to it, from it, or one of them.
pub fn around(rng: &mut StdRng, nodes: usize, node: usize) -> (String, BTreeSet<Link>) {
    let others = || (0..nodes).filter(|other| *other != node);
    let (from, to) = (others().map(|other| (node, other)), others().map(|other| (other, node)));
    match rng.random_range(0..6) {
        0..3 => (format!("from {node}"), from.collect()),
        3 => (format!("to {node}"), to.collect()),
        4 => (format!("around {node}"), from.chain(to).collect()),
        _ => {
            let other = (node + rng.random_range(1..nodes)) % nodes;
            (format!("from {node} to {other}"), [(node, other)].into())
        }
    }
}

/// A partition that leaves `node` alone, or a one-way one in which it is mute or deaf.
pub fn alone(rng: &mut StdRng, nodes: usize, node: usize, one_way: bool) -> (String, BTreeSet<Link>) {
    let others = || (0..nodes).filter(|other| *other != node);
    match (one_way, rng.random_bool(0.5)) {
        (false, _) => (format!("alone {node}"), others().flat_map(|other| [(node, other), (other, node)]).collect()),
        (true, true) => (format!("mute {node}"), others().map(|other| (node, other)).collect()),
        (true, false) => (format!("deaf {node}"), others().map(|other| (other, node)).collect()),
    }
}

/// Some pairs of nodes, at least one.
pub fn some_pairs(rng: &mut StdRng, nodes: usize) -> Vec<(usize, usize)> {
    let mut pairs: Vec<(usize, usize)> = (0..nodes).flat_map(|a| (0..a).map(move |b| (a, b))).collect();
    pairs.shuffle(rng);
    pairs.truncate(rng.random_range(1..=pairs.len()));
    pairs
}

/// Sets the longest latency between the nodes of each of `pairs`.
pub fn set_latency(cluster: &Cluster, pairs: &[(usize, usize)], latency_ms_max: u64) {
    for (a, b) in pairs {
        let latency = Duration::from_millis(latency_ms_max);
        cluster.sim.set_link_max_message_latency(Plan::host(*a), Plan::host(*b), latency);
    }
}

fn between(these: &[usize], those: &[usize]) -> BTreeSet<Link> {
    these.iter().flat_map(|a| those.iter().flat_map(move |b| [(*a, *b), (*b, *a)])).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_shape_appears_and_cuts_no_node_from_itself() {
        let mut names = BTreeSet::new();
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            for (name, links) in [partition(&mut rng, 5, Some(2)), one_way(&mut rng, 5, Some(2))] {
                assert!(links.iter().all(|(a, b)| a != b), "{name}");
                names.insert(name.split([' ', '[']).next().unwrap_or_default().to_string());
            }
        }
        let expected = ["alone", "bridge", "deaf", "leader", "mute", "random", "ring", "split"];
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn on_a_ring_of_five_every_node_hears_a_majority() {
        for seed in 0..100 {
            let (name, links) = partition(&mut StdRng::seed_from_u64(seed), 5, None);
            if name.starts_with("ring") {
                for node in 0..5 {
                    assert_eq!(links.iter().filter(|(from, _)| *from == node).count(), 2, "{name}: {links:?}");
                }
            }
        }
    }
}
