//! A leader that is replaced and loses its vote while nobody can tell it so.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use hexkv_server::node::Position;
use hexkv_store::entropy;
use openraft::async_runtime::WatchReceiver;

use super::{
    cluster::Cluster,
    fault::Fault,
    plan::{Plan, Reduction},
    request::{Admin, Request},
    trace::Trace,
};

/// Longest wait for a condition, in simulated milliseconds.
const PATIENCE_MS: u64 = 20_000;

pub(super) fn until(cluster: &mut Cluster, what: &str, mut holds: impl FnMut(&Cluster) -> bool) {
    let deadline = cluster.now_ms() + PATIENCE_MS;
    while !holds(cluster) {
        assert!(cluster.now_ms() < deadline, "not within {PATIENCE_MS} ms: {what}");
        cluster.step().unwrap();
    }
}

/// Three nodes in one cluster, all of them voters, and no faults.
pub(super) fn three_nodes() -> Cluster {
    three_nodes_slowed(1)
}

/// The same, with all timers so many times as long.
pub(super) fn three_nodes_slowed(times: u64) -> Cluster {
    let calm = Reduction { without: Fault::ALL.into(), operations: Some(0) };
    let fits = |plan: &Plan| plan.nodes == 3 && plan.replication_factor == 3;
    let mut plan = (0..).map(|seed| Plan::new(seed, &calm)).find(fits).expect("most seeds are like that");
    plan.timer_permille = vec![1000 / times; plan.nodes];
    entropy::seed(plan.seed);
    let mut cluster = Cluster::new(plan, Trace::new(false));
    until(&mut cluster, "the cluster forms", |c| c.unsettled(3).is_none());
    cluster.cluster_id = cluster.hosts[0].node().unwrap().identity().cluster_id;
    cluster
}

#[test]
fn a_leader_that_was_handing_over_while_it_was_removed_steps_down() {
    let mut cluster = three_nodes();
    let old = cluster.leader().unwrap();
    let heir = cluster.core((old + 1) % 3).unwrap().id;
    let links = cluster.links.around(old);
    cluster.links.cut(&cluster.sim, &links);
    // Not by the node, which would ask the heir first. From now on openraft sends no heartbeats.
    let asked = cluster.core(old).unwrap().raft.trigger().transfer_leader(heir).now_or_never();
    asked.expect("there is room for a command").unwrap();
    until(&mut cluster, "another leader", |c| c.leader() != Some(old));
    let new = cluster.leader().unwrap();
    cluster.hosts[new].submit(0, Request::Admin(Admin::ReplicationFactor(1)), None);
    let only = BTreeSet::from([cluster.core(new).unwrap().id]);
    until(&mut cluster, "the new leader alone votes", |c| {
        let raft = &c.core(new).unwrap().raft;
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        *metrics.committed_membership_config.membership().get_joint_config() == [only.clone()]
    });
    assert!(cluster.core(old).unwrap().is_leader(), "it knows nothing of all that");
    cluster.links.mend(&cluster.sim, &links);
    until(&mut cluster, "the old leader learns it", |c| !c.core(old).unwrap().is_leader());
    until(&mut cluster, "it finds its place", |c| c.hosts[old].node().unwrap().position() == Position::Standby);
    assert_eq!(cluster.leader(), Some(new));
}
