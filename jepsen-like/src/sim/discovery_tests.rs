//! Nodes that find each other by name servers which err, or by datagrams which get lost, while the network and the machines are
//! attacked and disks are lost.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rand::RngExt;

use super::{
    discovery::{Discovery, Way, multicast::Weather, names::Answer},
    formation_tests::{ATTACK_MS, Attack, Before, calm},
};

/// Clusters that are formed by each way.
const SEEDS: u64 = 20;
/// How long the attack lasts on a cluster of which a node lost its disk, in simulated milliseconds.
const WIPED_ATTACK_MS: u64 = 6_000;
/// By then nodes that can found a cluster have done so, in simulated milliseconds: the first of them is not waited for so long.
const FOUND_MS_MAX: u64 = 15_000;

/// Forms a cluster of each seed under attack, then takes one of its nodes its disk, under attack again.
fn form_and_wipe(way: Way) -> Vec<Before> {
    let work = |attack: &mut Attack| {
        attack.run(ATTACK_MS);
        attack.cluster.cluster_id = attack.founded.first().copied();
        let nodes = attack.cluster.plan.nodes;
        let wiped = attack.rng.random_range(0..nodes);
        attack.wipe(wiped);
        attack.run(WIPED_ATTACK_MS);
    };
    (0..SEEDS).map(|seed| Attack::new(calm(seed, way)).through(work)).collect()
}

/// Demands that in so many seeds at least `has` was so before there was a cluster.
fn demand(befores: &[Before], seeds: usize, what: &str, has: impl Fn(&Before) -> bool) {
    let count = befores.iter().filter(|before| has(before)).count();
    assert!(count >= seeds, "{what} before there was a cluster: in {count} of {SEEDS} seeds");
}

#[test]
fn one_cluster_is_formed_by_name_servers_that_err() {
    let befores = form_and_wipe(Way::Dns);
    let answers: BTreeSet<&str> = befores.iter().flat_map(|before| before.answers.iter().copied()).collect();
    let all = ["empty", "late", "no such name", "silence", "some", "strangers"];
    assert_eq!(answers, all.into(), "every kind of wrong answer was given before there was a cluster");
    demand(&befores, 18, "wrong answers", |before| !before.answers.is_empty());
    demand(&befores, 10, "crashes", |before| before.crashes > 0);
    demand(&befores, 4, "lost disks", |before| before.wipes > 0);
}

#[test]
fn one_cluster_is_formed_by_datagrams_that_get_lost() {
    let befores = form_and_wipe(Way::Gossip);
    for (kind, what) in ["lost datagrams", "datagrams that came again", "datagrams that came late"].iter().enumerate() {
        demand(&befores, 10, what, |before| before.datagrams[kind] > 0);
    }
    demand(&befores, 10, "crashes", |before| before.crashes > 0);
    demand(&befores, 4, "lost disks", |before| before.wipes > 0);
}

/// `nodes` nodes without indexes, of which `planned` are planned and see each other: the first ones, and the others.
fn divided(way: Way, nodes: usize, planned: usize) -> Attack {
    let mut plan = calm(1, way);
    (plan.nodes, plan.planned, plan.replication_factor) = (nodes, planned, 3);
    plan.timer_permille = vec![1000; nodes];
    plan.discovery = Discovery { way, indexed: false, services: true, weather: Weather::CALM };
    let mut attack = Attack::new(plan);
    let side = |node: usize| node < 2;
    for asker in 0..nodes {
        let seen = (0..nodes).filter(|node| side(*node) == side(asker)).collect();
        attack.cluster.surroundings.zone.set(asker, Answer::only(seen));
    }
    if way == Way::Gossip {
        let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
        let links = pairs.filter(|(a, b)| side(*a) != side(*b)).collect();
        attack.cluster.links.cut(&attack.cluster.sim, &links);
    }
    attack
}

fn pass(attack: &mut Attack, ms: u64) {
    let end = attack.cluster.now_ms() + ms;
    while attack.cluster.now_ms() < end {
        attack.step();
    }
}

/// More nodes start than may (docs/decisions.md, "Which sets decide"), and what each finds keeps the halves apart: two clusters,
/// which must be seen.
#[test]
fn two_clusters_of_twice_as_many_nodes_as_are_planned_are_condemned() {
    for way in [Way::Dns, Way::Gossip] {
        let mut attack = divided(way, 4, 2);
        let panic = catch_unwind(AssertUnwindSafe(|| pass(&mut attack, FOUND_MS_MAX)));
        // A cluster in which something panicked cannot be dropped in order.
        std::mem::forget(attack);
        let panic = panic.expect_err("each half founds a cluster");
        let message = panic.downcast_ref::<String>().expect("an assertion with values");
        assert!(message.starts_with("two clusters"), "{way:?}: {message}");
    }
}

#[test]
fn nodes_that_do_not_see_all_the_planned_ones_found_nothing_until_they_do() {
    for way in [Way::Dns, Way::Gossip] {
        divided(way, 3, 3).through(|attack| {
            pass(attack, FOUND_MS_MAX);
            assert!(attack.founded.is_empty(), "two of three founded {:x?}", attack.founded);
            attack.cluster.surroundings.zone.correct();
            let latency_ms_max = attack.cluster.plan.latency_ms_max;
            attack.cluster.links.heal(&mut attack.cluster.sim, latency_ms_max);
            attack.become_whole();
        });
    }
}
