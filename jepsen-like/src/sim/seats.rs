//! `seat-kept`: a member that the leader could hear loses its seat only when it leaves or fewer are to vote. The reconciler
//! decides by what it knows; this looks at what was so.
//!
//! Judged are changes of the voters by a leader that wants at least as many as there were: whoever goes then, and does not
//! leave, was given up for silence. It must have been out of the leader's hearing for `REPLACE_AFTER`, at the least.

use std::{collections::BTreeSet, time::Duration};

use hexkv_store::{LogId, NodeId};
use openraft::async_runtime::WatchReceiver;

use super::{cluster::Cluster, invariants::Violation};

/// Two nodes that run, and between which nothing is broken, hear each other after so long, in milliseconds: streams that lost
/// something meanwhile stall, are given up and made anew.
const HEARING_MS: u64 = 5_000;
/// A membership change that was decided on earlier wishes is in progress for so long at most, in milliseconds.
const WISH_MS: u64 = 15_000;

/// What is known of who could hear whom, and who votes.
#[derive(Debug)]
pub struct Seats {
    /// By pair of nodes: since when nothing is broken between them, in milliseconds.
    whole_since: Vec<Vec<Option<u64>>>,
    /// By pair of nodes: when they could last hear each other, in milliseconds.
    heard: Vec<Vec<Option<u64>>>,
    /// By node: its id in this life.
    ids: Vec<Option<NodeId>>,
    /// The replication factor that the leader knows, and since when, in milliseconds.
    factor: (u32, u64),
    /// The membership that the leader goes by, and who leads.
    last: Option<(usize, Option<LogId>, Vec<BTreeSet<NodeId>>)>,
    /// Seats that were lost to silence.
    pub given_up: u64,
}

impl Seats {
    /// Of `nodes` nodes, of which nothing is known.
    pub fn new(nodes: usize) -> Self {
        Self {
            whole_since: vec![vec![None; nodes]; nodes],
            heard: vec![vec![None; nodes]; nodes],
            ids: vec![None; nodes],
            factor: (0, 0),
            last: None,
            given_up: 0,
        }
    }

    /// The id that node `index` has, or had when it ran last.
    pub fn id_of(&self, index: usize) -> Option<NodeId> {
        self.ids[index]
    }

    /// Takes in what is so now.
    ///
    /// # Errors
    /// Somebody lost its seat who could be heard.
    pub fn observe(&mut self, cluster: &Cluster) -> Result<(), Violation> {
        let now_ms = cluster.now_ms();
        self.listen(cluster, now_ms);
        let Some((leader, core)) = cluster.leader().and_then(|leader| Some((leader, cluster.core(leader)?))) else {
            return Ok(());
        };
        let factor = core.state.replication_factor();
        if factor != self.factor.0 {
            self.factor = (factor, now_ms);
        }
        let (at, voters) = {
            let metrics = core.raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = &metrics.membership_config;
            if self.last.as_ref().is_some_and(|(who, at, _)| *who == leader && at == membership.log_id()) {
                return Ok(());
            }
            (*membership.log_id(), membership.membership().get_joint_config().clone())
        };
        let before = self.last.replace((leader, at, voters.clone()));
        let Some((_, _, before)) = before.filter(|(who, ..)| *who == leader) else { return Ok(()) };
        let ([before], Some(after)) = (&before[..], voters.last()) else { return Ok(()) };
        if (factor as usize) < before.len() || now_ms < self.factor.1 + WISH_MS {
            return Ok(());
        }
        let members = core.state.members();
        for gone in before.difference(after) {
            if members.iter().any(|m| m.node_id == *gone && !m.leaving) {
                self.given_up += 1;
                self.judge(cluster, leader, *gone, now_ms)?;
            }
        }
        Ok(())
    }

    fn judge(&self, cluster: &Cluster, leader: usize, gone: NodeId, now_ms: u64) -> Result<(), Violation> {
        let Some(node) = self.ids.iter().position(|id| *id == Some(gone)) else { return Ok(()) };
        let limit = cluster.hosts[leader].config.replace_after;
        let unheard = self.heard[leader][node].map(|at| Duration::from_millis(now_ms - at));
        let Some(unheard) = unheard.filter(|unheard| limit.is_none_or(|limit| *unheard < limit)) else {
            return Ok(());
        };
        Err(Violation {
            invariant: "seat-kept",
            message: format!(
                "node {node} ({gone:x}) lost its seat, though the leader, node {leader}, could hear it {unheard:?} ago; \
                 REPLACE_AFTER is {limit:?}"
            ),
        })
    }

    fn listen(&mut self, cluster: &Cluster, now_ms: u64) {
        for (index, id) in self.ids.iter_mut().enumerate() {
            // A machine that is off keeps the name that it had.
            if let Some(core) = cluster.core(index) {
                *id = Some(core.id);
            }
        }
        let runs: Vec<bool> = cluster.hosts.iter().map(|host| host.node().is_some() && !host.is_stopping()).collect();
        for (a, b) in (0..runs.len()).flat_map(|a| (0..runs.len()).map(move |b| (a, b))) {
            let whole = runs[a] && runs[b] && !cluster.links.broken(a, b);
            let since = &mut self.whole_since[a][b];
            *since = if whole { since.or(Some(now_ms)) } else { None };
            if since.is_some_and(|since| now_ms >= since + HEARING_MS) {
                self.heard[a][b] = Some(now_ms);
            }
        }
    }
}
