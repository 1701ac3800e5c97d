//! Nodes that form their cluster while the network and the machines are attacked.

use std::collections::BTreeSet;

use hexkv_store::entropy;
use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

use super::{
    cluster::{Cluster, Off},
    discovery::{Discovery, Way},
    fault::Fault,
    links::Link,
    plan::{Plan, Reduction, stream},
    trace::Trace,
};

/// Clusters that are formed. Each takes about a second.
const SEEDS: u64 = 25;
/// How long the attack lasts, in simulated milliseconds: longer than a majority waits for the rest, and the others for the first.
pub(super) const ATTACK_MS: u64 = 16_000;
/// Longest time after it until the cluster is whole, in simulated milliseconds.
const FORM_MS_MAX: u64 = 60_000;
/// Shortest and longest strike, in simulated milliseconds.
const STRIKE_MS: std::ops::Range<u64> = 50..6_000;

/// Chance of a strike in a step. Discovery is attacked harder until there is a cluster: there soon is one.
const STRIKE_CHANCE: f64 = 0.004;
const EARLY_STRIKE_CHANCE: f64 = 0.015;
/// Share of the disks that are lost of those that go down while they may be.
const WIPE_SHARE: f64 = 0.6;

/// What is broken until a time.
enum Strike {
    Cut(BTreeSet<Link>),
    Off(usize),
    Names,
}

/// What struck before there was a cluster.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) crashes: u32,
    pub(super) wipes: u32,
    /// Kinds of wrong answers that name servers gave.
    pub(super) answers: BTreeSet<&'static str>,
    /// Datagrams that were lost, came again, came late.
    pub(super) datagrams: [u64; 3],
}

/// A cluster that is formed under attack.
pub(super) struct Attack {
    pub(super) cluster: Cluster,
    pub(super) rng: StdRng,
    strikes: Vec<(u64, Strike)>,
    off: BTreeSet<usize>,
    /// Every cluster that a node ever belonged to.
    pub(super) founded: BTreeSet<u64>,
    pub(super) before_founding: Before,
}

/// The plan of `seed` without its faults, for nodes that find each other by `way`.
pub(super) fn calm(seed: u64, way: Way) -> Plan {
    let mut plan = Plan::new(seed, &Reduction { without: Fault::ALL.into(), operations: Some(0) });
    plan.discovery = Discovery::by(way, seed);
    plan
}

impl Attack {
    pub(super) fn new(plan: Plan) -> Self {
        entropy::seed(plan.seed);
        Self {
            rng: stream(plan.seed, "formation"),
            cluster: Cluster::new(plan, Trace::new(false)),
            strikes: Vec::new(),
            off: BTreeSet::new(),
            founded: BTreeSet::new(),
            before_founding: Before::default(),
        }
    }

    pub(super) fn step(&mut self) {
        self.cluster.step().expect("the invariants hold");
        let ids = self.cluster.hosts.iter().filter_map(|host| host.node()?.identity().cluster_id);
        let ids: BTreeSet<u64> = ids.collect();
        if self.founded.is_empty() && !ids.is_empty() {
            self.before_founding.answers = self.cluster.surroundings.zone.given();
            self.before_founding.datagrams = self.cluster.surroundings.air.counts();
        }
        self.founded.extend(ids);
        assert!(self.founded.len() <= 1, "two clusters: {:x?}", self.founded);
    }

    fn strike(&mut self) {
        let until = self.cluster.now_ms() + self.rng.random_range(STRIKE_MS);
        let nodes = self.cluster.plan.nodes;
        if self.cluster.plan.discovery.way == Way::Dns && self.rng.random_bool(0.4) {
            self.err(until);
            return;
        }
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
            let how = if self.may_wipe() && self.rng.random_bool(WIPE_SHARE) {
                Off::Disk
            } else if self.rng.random_bool(0.5) {
                Off::Power(self.rng.random())
            } else {
                Off::Process
            };
            self.before_founding.crashes += u32::from(self.founded.is_empty());
            self.before_founding.wipes += u32::from(how == Off::Disk);
            self.cluster.switch_off(index, how);
            self.strikes.push((until, Strike::Off(index)));
        }
    }

    /// Name servers give wrong answers until a time.
    fn err(&mut self, until: u64) {
        self.cluster.surroundings.zone.err(&mut self.rng);
        self.strikes.push((until, Strike::Names));
    }

    /// Before there is a cluster, disks may be lost where all the planned nodes have to agree to it. Where a majority does,
    /// another majority may form as soon as one of it forgets.
    fn may_wipe(&self) -> bool {
        self.founded.is_empty() && !self.cluster.plan.discovery.indexed
    }

    /// Takes node `index` its disk until a strike ends. To be done when all nodes are members: one disk is no majority.
    pub(super) fn wipe(&mut self, index: usize) {
        let until = self.cluster.now_ms() + self.rng.random_range(STRIKE_MS);
        self.off.insert(index);
        self.cluster.switch_off(index, Off::Disk);
        self.strikes.push((until, Strike::Off(index)));
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
                Strike::Names => self.cluster.surroundings.zone.correct(),
            }
        }
    }

    /// Attacks for `ms`, then lets the cluster become whole.
    pub(super) fn run(&mut self, ms: u64) {
        let end = self.cluster.now_ms() + ms;
        if self.cluster.plan.discovery.way == Way::Dns {
            // Wrong from the first question on.
            self.err(self.cluster.now_ms() + STRIKE_MS.end);
        }
        while self.cluster.now_ms() < end {
            let early = self.founded.is_empty() && self.cluster.plan.discovery.way != Way::List;
            if self.rng.random_bool(if early { EARLY_STRIKE_CHANCE } else { STRIKE_CHANCE }) {
                self.strike();
            }
            self.end_strikes(false);
            self.step();
        }
        self.end_strikes(true);
        self.become_whole();
    }

    /// Waits until all nodes are members of one cluster.
    pub(super) fn become_whole(&mut self) {
        let factor = self.cluster.plan.replication_factor;
        let deadline = self.cluster.now_ms() + FORM_MS_MAX;
        while let Some(why) = self.cluster.unsettled(factor) {
            assert!(self.cluster.now_ms() < deadline, "not within {FORM_MS_MAX} ms: {why}");
            self.step();
        }
        assert_eq!(self.founded.len(), 1);
    }

    /// Does `work`; the seed is printed when that fails. Answers what struck before there was a cluster.
    pub(super) fn through(mut self, work: impl FnOnce(&mut Self)) -> Before {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut self)));
        let before = std::mem::take(&mut self.before_founding);
        if let Err(panic) = ended {
            eprintln!("seed {}, {:?}", self.cluster.plan.seed, self.cluster.plan.discovery);
            // A cluster in which something panicked cannot be dropped in order.
            std::mem::forget(self);
            std::panic::resume_unwind(panic);
        }
        before
    }
}

#[test]
fn one_cluster_is_formed_through_partitions_and_crashes() {
    let attacks = (0..SEEDS).map(|seed| Attack::new(calm(seed, Way::List)).through(|attack| attack.run(ATTACK_MS)));
    let crashes: u32 = attacks.map(|before| before.crashes).sum();
    assert!(u64::from(crashes) > SEEDS, "nodes crashed {crashes} times before there was a cluster");
}
