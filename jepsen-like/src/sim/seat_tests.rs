//! Who loses its seat: a member that is silent for as long as was said, and none for what an earlier leadership remembers.

use hexkv_store::entropy;
use openraft::async_runtime::WatchReceiver;

use super::{
    cluster::{Cluster, Off},
    deposed_tests::until,
    fault::Fault,
    plan::{Plan, Reduction},
    request::{Admin, Request},
    trace::Trace,
};

/// Silence after which a voter is replaced, and the pause before silence counts, in simulated milliseconds.
const REPLACE_AFTER_MS: u64 = 4_000;
const UNHEARD_MS: u64 = 1_500;

/// Five nodes of which three vote, and no faults.
fn five_nodes() -> Cluster {
    let calm = Reduction { without: Fault::ALL.into(), operations: Some(0) };
    let fits = |plan: &Plan| plan.nodes == 5 && plan.replication_factor == 3;
    let mut plan = (0..).map(|seed| Plan::new(seed, &calm)).find(fits).expect("some seeds are like that");
    plan.timer_permille = vec![1000; plan.nodes];
    plan.replace_after = "4s";
    plan.latency_ms_max = 2;
    entropy::seed(plan.seed);
    let mut cluster = Cluster::new(plan, Trace::new(false));
    until(&mut cluster, "the cluster forms", |c| c.unsettled(3).is_none());
    cluster.cluster_id = cluster.hosts[0].node().unwrap().identity().cluster_id;
    // For longer than wishes of before are in progress: from now on every seat is looked after.
    pass(&mut cluster, 20_000);
    cluster
}

fn pass(cluster: &mut Cluster, ms: u64) {
    let end = cluster.now_ms() + ms;
    while cluster.now_ms() < end {
        cluster.step().unwrap();
    }
}

fn votes(cluster: &Cluster, index: usize) -> bool {
    let Some(leader) = cluster.leader().and_then(|leader| cluster.core(leader)) else { return false };
    let id = cluster.core(index).map(|core| core.id);
    id.is_some_and(|id| leader.raft.voter_ids().any(|voter| voter == id))
}

fn hand_over(cluster: &mut Cluster, from: usize, to: usize) {
    let name = cluster.hosts[to].config.node_name.to_string();
    let number = cluster.now_ms();
    assert!(cluster.hosts[from].submit(number, Request::Admin(Admin::Transfer(name)), None));
    until(cluster, "leadership moves", |c| c.leader() == Some(to));
}

/// The leader, and two others that vote.
fn holders(cluster: &Cluster) -> (usize, usize, usize) {
    let leader = cluster.leader().unwrap();
    let others: Vec<usize> = (0..5).filter(|i| *i != leader && votes(cluster, *i)).collect();
    (leader, others[0], others[1])
}

#[test]
fn a_leader_that_leads_again_does_not_count_what_it_missed_meanwhile() {
    let mut cluster = five_nodes();
    let (first, second, member) = holders(&cluster);
    let id = cluster.core(member).unwrap().id;
    // Silent for a moment, while the first one leads.
    let links = cluster.links.around(member);
    cluster.links.cut(&cluster.sim, &links);
    pass(&mut cluster, UNHEARD_MS + REPLACE_AFTER_MS / 4);
    hand_over(&mut cluster, first, second);
    cluster.links.mend(&cluster.sim, &links);
    pass(&mut cluster, 5 * REPLACE_AFTER_MS);
    assert!(votes(&cluster, member), "it was not silent for long");
    // Away for a moment when the first one leads again.
    cluster.switch_off(member, Off::Process);
    pass(&mut cluster, UNHEARD_MS + 100);
    hand_over(&mut cluster, second, first);
    pass(&mut cluster, REPLACE_AFTER_MS / 4);
    cluster.switch_on(member);
    until(&mut cluster, "it is back", |c| c.core(member).is_some());
    pass(&mut cluster, REPLACE_AFTER_MS);
    assert_eq!(cluster.core(member).unwrap().id, id);
    assert!(votes(&cluster, member), "it keeps its seat");
    assert_eq!(cluster.seats.given_up, 0);
}

#[test]
fn a_member_that_is_silent_for_long_loses_its_seat() {
    let mut cluster = five_nodes();
    let (leader, _, member) = holders(&cluster);
    let id = cluster.core(member).unwrap().id;
    cluster.switch_off(member, Off::Process);
    until(&mut cluster, "another takes its seat", |c| {
        let core = c.core(leader).unwrap();
        let metrics = core.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let sets = metrics.committed_membership_config.membership().get_joint_config().clone();
        sets.len() == 1 && sets[0].len() == 3 && !sets[0].contains(&id)
    });
    assert_eq!(cluster.seats.given_up, 1, "and that was judged");
}
