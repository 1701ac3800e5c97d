//! Faults that stop no node and report no error: a disk that hangs, a link that loses large messages, one that lets no new
//! connection through, a resolver that does not answer. Heartbeats pass meanwhile.

use std::collections::BTreeSet;

use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};

use crate::sim::{cluster::Cluster, fault::Fault, links::Link, shapes};

/// One of these faults in force, and what it takes to end it.
pub(super) enum Stuck {
    Disk(usize),
    Hole(BTreeSet<Link>),
    Silence(BTreeSet<Link>),
    Resolvers(Vec<usize>),
}

impl Stuck {
    /// Lets `fault` strike `node`; with the words for the history.
    ///
    /// # Panics
    /// When `fault` is not of these kinds.
    pub(super) fn strike(cluster: &Cluster, fault: Fault, node: usize, rng: &mut StdRng) -> (Self, Value) {
        let (nodes, wires) = (cluster.hosts.len(), &cluster.links.wires);
        match fault {
            Fault::StalledDisk => {
                cluster.hosts[node].disk().stall();
                (Self::Disk(node), json!(node))
            }
            Fault::MtuHole => {
                let (shape, links) = shapes::around(rng, nodes, node);
                links.iter().for_each(|link| wires.open_hole(*link));
                (Self::Hole(links), json!(shape))
            }
            Fault::NoConnects => {
                let (shape, links) = shapes::around(rng, nodes, node);
                links.iter().for_each(|link| wires.silence(*link));
                (Self::Silence(links), json!(shape))
            }
            Fault::Resolver => {
                let victims = if rng.random_bool(0.5) { (0..nodes).collect() } else { vec![node] };
                victims.iter().for_each(|victim| wires.lose_resolver(*victim));
                let shown = json!(victims);
                (Self::Resolvers(victims), shown)
            }
            other => unreachable!("{other} is struck elsewhere"),
        }
    }

    /// Ends it. A disk that was replaced meanwhile does not hang.
    pub(super) fn undo(self, cluster: &Cluster) {
        let wires = &cluster.links.wires;
        match self {
            Self::Disk(node) => cluster.hosts[node].disk().unstall(),
            Self::Hole(links) => links.into_iter().for_each(|link| wires.close_hole(link)),
            Self::Silence(links) => links.into_iter().for_each(|link| wires.unsilence(link)),
            Self::Resolvers(nodes) => nodes.into_iter().for_each(|node| wires.return_resolver(node)),
        }
    }
}
