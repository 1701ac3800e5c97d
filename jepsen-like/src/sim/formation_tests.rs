//! Nodes that form their cluster while the network and the machines are attacked.

use std::collections::BTreeSet;

use hexkv_store::entropy;
use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

use super::{
    cluster::{Cluster, Off},
    fault::Fault,
    links::Link,
    plan::{Plan, Reduction, stream},
    trace::Trace,
};

/// Clusters that are formed. Each takes about a second.
const SEEDS: u64 = 25;
/// How long the attack lasts, in simulated milliseconds: longer than a majority waits for the rest, and the others for the first.
const ATTACK_MS: u64 = 16_000;
/// Longest time after it until the cluster is whole, in simulated milliseconds.
const FORM_MS_MAX: u64 = 60_000;
/// Shortest and longest strike, in simulated milliseconds.
const STRIKE_MS: std::ops::Range<u64> = 50..6_000;

/// What is broken until a time.
enum Strike {
    Cut(BTreeSet<Link>),
    Off(usize),
}

struct Attack {
    cluster: Cluster,
    rng: StdRng,
    strikes: Vec<(u64, Strike)>,
    off: BTreeSet<usize>,
    /// Every cluster that a node ever belonged to.
    founded: BTreeSet<u64>,
    crashes_before_founding: u32,
}

impl Attack {
    fn new(seed: u64) -> Self {
        let calm = Reduction { without: Fault::ALL.into(), operations: Some(0) };
        let plan = Plan::new(seed, &calm);
        entropy::seed(seed);
        Self {
            cluster: Cluster::new(plan, Trace::new(false)),
            rng: stream(seed, "formation"),
            strikes: Vec::new(),
            off: BTreeSet::new(),
            founded: BTreeSet::new(),
            crashes_before_founding: 0,
        }
    }

    fn step(&mut self) {
        self.cluster.step().expect("the invariants hold");
        let ids = self.cluster.hosts.iter().filter_map(|host| host.node()?.identity().cluster_id);
        self.founded.extend(ids);
        assert!(self.founded.len() <= 1, "two clusters: {:x?}", self.founded);
    }

    fn strike(&mut self) {
        let until = self.cluster.now_ms() + self.rng.random_range(STRIKE_MS);
        let nodes = self.cluster.plan.nodes;
        if self.rng.random_bool(0.5) {
            let mut order: Vec<usize> = (0..nodes).collect();
            order.shuffle(&mut self.rng);
            let (one, other) = order.split_at(self.rng.random_range(1..nodes));
            let one_way = self.rng.random_bool(0.3);
            let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b)));
            let links: BTreeSet<Link> =
                pairs.flat_map(|(a, b)| if one_way { vec![(a, b)] } else { vec![(a, b), (b, a)] }).collect();
            self.cluster.links.cut(&self.cluster.sim, &links);
            self.strikes.push((until, Strike::Cut(links)));
            return;
        }
        let index = self.rng.random_range(0..nodes);
        if self.off.insert(index) {
            let how = if self.rng.random_bool(0.5) { Off::Power(self.rng.random()) } else { Off::Process };
            self.cluster.switch_off(index, how);
            self.crashes_before_founding += u32::from(self.founded.is_empty());
            self.strikes.push((until, Strike::Off(index)));
        }
    }

    fn end_strikes(&mut self, all: bool) {
        let now = self.cluster.now_ms();
        let (over, lasting) =
            std::mem::take(&mut self.strikes).into_iter().partition(|(until, _)| all || *until <= now);
        self.strikes = lasting;
        let over: Vec<(u64, Strike)> = over;
        for (_, strike) in over {
            match strike {
                Strike::Cut(links) => self.cluster.links.mend(&self.cluster.sim, &links),
                Strike::Off(index) => {
                    self.off.remove(&index);
                    self.cluster.switch_on(index);
                }
            }
        }
    }

    /// Attacks from the first moment on, then lets the cluster form.
    fn run(&mut self) {
        while self.cluster.now_ms() < ATTACK_MS {
            if self.rng.random_bool(0.004) {
                self.strike();
            }
            self.end_strikes(false);
            self.step();
        }
        self.end_strikes(true);
        let factor = self.cluster.plan.replication_factor;
        let deadline = self.cluster.now_ms() + FORM_MS_MAX;
        while let Some(why) = self.cluster.unsettled(factor) {
            assert!(self.cluster.now_ms() < deadline, "not within {FORM_MS_MAX} ms: {why}");
            self.step();
        }
        assert_eq!(self.founded.len(), 1);
    }
}

#[test]
fn one_cluster_is_formed_through_partitions_and_crashes() {
    let mut crashes = 0;
    for seed in 0..SEEDS {
        let mut attack = Attack::new(seed);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack.run()));
        crashes += attack.crashes_before_founding;
        if let Err(panic) = ended {
            // A cluster in which something panicked cannot be dropped in order.
            std::mem::forget(attack);
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
    assert!(u64::from(crashes) > SEEDS, "nodes crashed {crashes} times before there was a cluster");
}
