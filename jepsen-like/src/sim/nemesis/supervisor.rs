//! Looks after nodes that went down: restarts them, and does what an operator would do for those that are outside of the cluster.

use hexkv_server::node::Position;
use rand::RngExt;
use serde_json::json;

use super::{Nemesis, OUTSIDE_LOOKS, REJOIN_INTERVAL_MS, RESTART_MS, Undo, name};
use crate::sim::{
    cluster::{Cluster, Off},
    fault::Fault,
    host::End,
    plan::RAFT_PORT,
    request::Admin,
    workload::Workload,
};

impl Nemesis {
    pub(super) fn supervise(&mut self, cluster: &mut Cluster, workload: &mut Workload) -> Result<(), String> {
        let now_ms = cluster.now_ms();
        for (node, (seed, length_ms)) in self.armed.clone() {
            if cluster.hosts[node].disk().stopped() {
                workload.note_fault(cluster, "power-cut", json!([node, "in a write"]));
                self.switch_off(cluster, workload, node, Off::Power(seed), now_ms + length_ms);
            }
        }
        self.roll_back(cluster, workload);
        for node in 0..cluster.hosts.len() {
            let Some(end) = cluster.hosts[node].ended() else { continue };
            let by_itself = self.rng.random_range(RESTART_MS);
            let pause_ms = match &end {
                End::Stopped => self.stopping.get(&node).copied().unwrap_or(by_itself),
                End::NotStarted(_) | End::Failed(_) => by_itself,
            };
            if end != End::Stopped && !self.excused.contains(&node) {
                return Err(format!("node {node} ended and its disk is in order: {end:?}"));
            }
            workload.note_fault(cluster, "ended", json!([node, format!("{end:?}")]));
            self.switch_off(cluster, workload, node, Off::Process, now_ms + pause_ms);
        }
        let due: Vec<usize> = self.off.iter().filter(|(_, at)| **at <= now_ms).map(|(node, _)| *node).collect();
        self.undo(cluster, Undo::SwitchOn(due));
        if now_ms >= self.next_rejoin_ms {
            self.next_rejoin_ms = now_ms + REJOIN_INTERVAL_MS;
            self.rejoin(cluster, workload);
            self.forget_wiped(cluster);
        }
        Ok(())
    }

    /// Tells nodes that founded a cluster of their own, because they left, to come back; and those that know for a while
    /// that they are no members any more, because they were killed while they left. That is what an operator would do.
    fn rejoin(&mut self, cluster: &Cluster, workload: &mut Workload) {
        let members = cluster.members();
        for node in cluster.running() {
            let Some((id, place)) = cluster.hosts[node].node().map(|n| (n.identity().cluster_id, n.position())) else {
                continue;
            };
            let outside = place == Position::Outside;
            let looks = self.seen_outside.entry(node).or_default();
            *looks = if outside { *looks + 1 } else { 0 };
            let gone = *looks >= OUTSIDE_LOOKS || (id.is_some() && id != cluster.cluster_id);
            if gone && !members.is_empty() {
                let target = members[self.rng.random_range(0..members.len())];
                let target = format!("{}:{RAFT_PORT}", name(cluster, target));
                self.administer(cluster, workload, node, Admin::Join(target));
            }
        }
    }

    fn forget_wiped(&mut self, cluster: &Cluster) {
        let Some(wiped) = self.wiped else { return };
        let Some(core) = cluster.leader().and_then(|leader| cluster.core(leader)) else { return };
        let votes = core.raft.voter_ids().any(|id| id == wiped);
        let known = core.state.members().iter().any(|m| m.node_id == wiped);
        if !votes && !known {
            self.wiped = None;
        }
    }

    /// Restarts nodes with the images of their disks that are due. All others have to have what such a node forgets, so
    /// it waits until the cluster is whole, and another node leads.
    fn roll_back(&mut self, cluster: &mut Cluster, workload: &mut Workload) {
        let now_ms = cluster.now_ms();
        let due = self.images.iter().find(|(_, (at, _))| *at <= now_ms).map(|(node, _)| *node);
        let Some(node) = due else { return };
        let whole = cluster.unsettled(cluster.plan.replication_factor).is_none();
        if !whole || cluster.leader() == Some(node) {
            return;
        }
        let Some((_, image)) = self.images.remove(&node) else { return };
        workload.note_fault(cluster, Fault::Rollback.name(), json!(node));
        self.switch_off(cluster, workload, node, Off::Disk, now_ms + RESTART_MS.start);
        cluster.hosts[node].lose(image);
        cluster.forget(node);
        // It may refuse to go on with what it has.
        self.excused.insert(node);
    }
}
