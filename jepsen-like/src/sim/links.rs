//! Which node hears which: overlapping partitions, each of which ends on its own.

use std::{collections::BTreeSet, time::Duration};

use turmoil::Sim;

use super::{plan::Plan, wires::Wires};

/// A directed link, from one node to another, by index.
pub type Link = (usize, usize);

/// The links between nodes. Invariant: a link is cut in turmoil exactly when at least one partition cuts it here.
#[derive(Debug)]
pub struct Links {
    nodes: usize,
    /// How many partitions cut a link.
    cuts: Vec<Vec<u32>>,
    /// Faults under way that lose or delay messages anywhere.
    pub rough: u32,
    /// What breaks single messages and connections.
    pub wires: Wires,
}

impl Links {
    /// All nodes reach each other, by `wires`.
    pub fn new(nodes: usize, wires: Wires) -> Self {
        Self { nodes, cuts: vec![vec![0; nodes]; nodes], rough: 0, wires }
    }

    /// Cuts `links`.
    pub fn cut(&mut self, sim: &Sim<'_>, links: &BTreeSet<Link>) {
        for (from, to) in links {
            let cuts = &mut self.cuts[*from][*to];
            *cuts += 1;
            if *cuts == 1 {
                sim.partition_oneway(Plan::host(*from), Plan::host(*to));
            }
        }
    }

    /// Takes back one cut of each of `links`.
    pub fn mend(&mut self, sim: &Sim<'_>, links: &BTreeSet<Link>) {
        for (from, to) in links {
            let cuts = &mut self.cuts[*from][*to];
            *cuts = cuts.checked_sub(1).expect("only what was cut is mended");
            if *cuts == 0 {
                sim.repair_oneway(Plan::host(*from), Plan::host(*to));
            }
        }
    }

    /// Whether a message of any size, or a request to connect, from one of the two to the other may be lost or late.
    pub fn broken(&self, a: usize, b: usize) -> bool {
        let cut = self.rough > 0 || self.cuts[a][b] > 0 || self.cuts[b][a] > 0;
        cut || self.wires.broken(a, b) || self.wires.broken(b, a)
    }

    /// All links from and to `node`.
    pub fn around(&self, node: usize) -> BTreeSet<Link> {
        (0..self.nodes).filter(|other| *other != node).flat_map(|other| [(node, other), (other, node)]).collect()
    }

    /// Mends everything that any fault did to the network.
    pub fn heal(&mut self, sim: &mut Sim<'_>, latency_ms_max: u64) {
        sim.set_fail_rate(0.0);
        for (a, b) in (0..self.nodes).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let (a, b) = (Plan::host(a), Plan::host(b));
            sim.set_link_max_message_latency(a.clone(), b.clone(), Duration::from_millis(latency_ms_max));
            sim.repair(a, b);
        }
        self.cuts = vec![vec![0; self.nodes]; self.nodes];
        self.rough = 0;
        self.wires.heal();
    }
}
