//! Every directed link of the cluster, controlled on its own: a proxy stands before each node's ports, finds out who
//! opened a connection, and treats the bytes of each direction as the rule of that link says.
//!
//! | module | holds |
//! |---|---|
//! | [`rule`] | what a link does to its bytes, and what it has done so far |
//! | [`gate`] | the listening side of the proxy of one port |
//! | `opener` | which node a connection comes from |
//! | `carry` | one proxied connection |
//! | `pump` | one direction of it |

mod carry;
pub mod gate;
mod opener;
mod pump;
pub mod rule;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use gate::Gate;
pub use rule::{Counts, Flow, Rule};

use rule::Counters;

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// All clients of the suite.
    Clients,
    /// A node, by its position from 0.
    Node(usize),
}

/// A directed link: all bytes that travel from one party to another, whoever opened the connection.
#[derive(Debug)]
pub(crate) struct Link {
    rule: watch::Sender<Rule>,
    counters: Counters,
}

/// All links of a cluster. Clones share them.
#[derive(Debug, Clone)]
pub struct Links(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    nodes: usize,
    /// Row = from, column = to; the clients come last.
    links: Vec<Link>,
    /// Process of each node, while it runs.
    pids: Mutex<Vec<Option<u32>>>,
    /// Further processes that run under the identity of a node.
    copies: Mutex<Vec<(usize, u32)>>,
    /// Ends all proxied connections.
    end: CancellationToken,
}

impl Links {
    /// The links among `nodes` nodes and the clients, all of them healthy.
    pub fn new(nodes: usize) -> Self {
        let parties = nodes + 1;
        let link = |_| Link { rule: watch::Sender::new(Rule::default()), counters: Counters::default() };
        Self(Arc::new(Inner {
            nodes,
            links: (0..parties * parties).map(link).collect(),
            pids: Mutex::new(vec![None; nodes]),
            copies: Mutex::default(),
            end: CancellationToken::new(),
        }))
    }

    fn position(&self, party: Party) -> usize {
        match party {
            Party::Clients => self.0.nodes,
            Party::Node(index) => {
                assert!(index < self.0.nodes, "node {index} of {}", self.0.nodes);
                index
            }
        }
    }

    pub(crate) fn link(&self, from: Party, to: Party) -> &Link {
        &self.0.links[self.position(from) * (self.0.nodes + 1) + self.position(to)]
    }

    /// Changes the rule of one link; connections that are open follow at once.
    pub fn change(&self, from: Party, to: Party, change: impl FnOnce(&mut Rule)) {
        self.link(from, to).rule.send_modify(change);
    }

    /// Makes all links healthy. Connections that lost bytes meanwhile are reset: their streams have holes.
    pub fn heal(&self) {
        for link in &self.0.links {
            link.rule.send_modify(Rule::heal);
        }
    }

    /// What one link has done since the run began.
    pub fn counts(&self, from: Party, to: Party) -> Counts {
        self.link(from, to).counters.read()
    }

    /// What all links together have done since the run began.
    pub fn total(&self) -> Counts {
        self.0.links.iter().map(|link| link.counters.read()).sum()
    }

    /// Notes which process a node is now.
    pub fn set_pid(&self, node: usize, pid: Option<u32>) {
        self.0.pids.lock()[node] = pid;
    }

    /// Process `pid` runs under the identity of `node`: its connections pass as those of the node.
    pub fn add_copy(&self, node: usize, pid: u32) {
        self.0.copies.lock().push((node, pid));
    }

    /// The processes of the nodes that run, with the nodes' positions.
    fn pids(&self) -> Vec<(usize, u32)> {
        let pids = self.0.pids.lock();
        let nodes = pids.iter().enumerate().filter_map(|(node, pid)| Some((node, (*pid)?)));
        nodes.chain(self.0.copies.lock().iter().copied()).collect()
    }

    /// All ordered pairs of different nodes.
    pub fn node_pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let nodes = self.0.nodes;
        (0..nodes).flat_map(move |from| (0..nodes).map(move |to| (from, to))).filter(|(from, to)| from != to)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

#[cfg(test)]
mod tests;
