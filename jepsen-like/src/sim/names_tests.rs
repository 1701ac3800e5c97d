//! Name servers that are gone for a long time: nodes go on with what they know of each other, through restarts and elections too.

use openraft::async_runtime::WatchReceiver;

use super::{
    cluster::{Cluster, Off},
    deposed_tests::{three_nodes, until},
    lease_tests::{ask, write},
    request::Request,
};
use crate::history::{Kind, Mode};

/// Simulated time without name servers.
const OUTAGE_MS: u64 = 10 * 60_000;
/// From one restart of the leader to the next.
const RESTART_EVERY_MS: u64 = 60_000;
/// From one write and read to the next, in the calm between restarts.
const ROUND_MS: u64 = 1_000;
/// Longest time in which writes, and reads, may stop.
const WRITES_STOP_MAX_MS: u64 = 2_000;
const READS_STOP_MAX_MS: u64 = 1_000;

fn pass(cluster: &mut Cluster, ms: u64) {
    let end = cluster.now_ms() + ms;
    while cluster.now_ms() < end {
        cluster.step().unwrap();
    }
}

/// One write and one read through node `index`, each in time.
fn serves(cluster: &mut Cluster, index: usize, value: u64) {
    let began_ms = cluster.now_ms();
    write(cluster, index, value);
    let written_ms = cluster.now_ms();
    assert!(
        written_ms - began_ms <= WRITES_STOP_MAX_MS,
        "a write through node {index} took {} ms",
        written_ms - began_ms
    );
    let read = ask(cluster, index, Request::Read { key: "r0".into(), mode: Mode::Linearizable });
    assert_eq!((read.kind, read.value), (Kind::Ok, Some(value.into())), "{:?}", read.error);
    let read_ms = cluster.now_ms() - written_ms;
    assert!(read_ms <= READS_STOP_MAX_MS, "a read through node {index} took {read_ms} ms");
}

#[test]
fn writes_reads_failover_and_restarts_need_no_name_server() {
    let mut cluster = three_nodes();
    (0..3).for_each(|node| cluster.links.wires.lose_resolver(node));
    let end_ms = cluster.now_ms() + OUTAGE_MS;
    let mut value = 0;
    while cluster.now_ms() < end_ms {
        let restart_ms = cluster.now_ms() + RESTART_EVERY_MS;
        while cluster.now_ms() < restart_ms {
            value += 1;
            serves(&mut cluster, value as usize % 3, value);
            pass(&mut cluster, ROUND_MS);
        }
        let old = cluster.leader().unwrap();
        cluster.switch_off(old, Off::Process);
        let off_ms = cluster.now_ms();
        until(&mut cluster, "another leader", |c| c.leader().is_some_and(|leader| leader != old));
        let stopped_ms = cluster.now_ms() - off_ms;
        assert!(stopped_ms <= WRITES_STOP_MAX_MS, "no leader for {stopped_ms} ms");
        value += 1;
        serves(&mut cluster, (old + 1) % 3, value);
        cluster.switch_on(old);
        until(&mut cluster, "the restarted node takes part", |c| {
            c.core(old).is_some_and(|core| core.raft.server_metrics().borrow_watched().current_leader.is_some())
        });
    }
    assert!(cluster.links.wires.lost().lookups > 0, "names were looked up");
}
