//! Reads through a leader that has been replaced: under its lease, cut off and with voters that forgot the lease over a restart,
//! and linearizable ones.

use super::{
    cluster::{Cluster, Off},
    deposed_tests::{three_nodes, three_nodes_slowed, until},
    request::{Answer, Request},
};
use crate::history::{Kind, Mode};

const KEY: &str = "r0";

/// Asks node `index`, and waits for the answer.
pub(super) fn ask(cluster: &mut Cluster, index: usize, request: Request) -> Answer {
    let number = cluster.now_ms();
    assert!(cluster.hosts[index].submit(number, request, None), "node {index} runs");
    until(cluster, "an answer", |c| c.answers.borrow().iter().any(|(n, _)| *n == number));
    let mut answers = cluster.answers.borrow_mut();
    let at = answers.iter().position(|(n, _)| *n == number).expect("it is there");
    answers.swap_remove(at).1
}

pub(super) fn write(cluster: &mut Cluster, index: usize, value: u64) {
    let answer = ask(cluster, index, Request::Write { key: KEY.into(), value, digits: 0 });
    assert_eq!(answer.kind, Kind::Ok, "{answer:?}");
}

fn lease_read(cluster: &mut Cluster, index: usize) -> Answer {
    ask(cluster, index, Request::Read { key: KEY.into(), mode: Mode::Lease })
}

/// What is read through the old leader once another has taken a change.
fn shows_nothing_old(cluster: &mut Cluster, old: usize) {
    assert!(cluster.core(old).unwrap().is_leader(), "it knows nothing of all that");
    let read = lease_read(cluster, old);
    assert_eq!(read.kind, Kind::Fail, "nobody confirms it, and its lease is over: {read:?}");
}

#[test]
fn a_leader_that_is_cut_off_reads_under_its_lease_no_longer_than_it_runs() {
    let mut cluster = three_nodes();
    let old = cluster.leader().unwrap();
    write(&mut cluster, old, 1);
    let links = cluster.links.around(old);
    cluster.links.cut(&cluster.sim, &links);
    let read = lease_read(&mut cluster, old);
    assert_eq!((read.kind, read.value), (Kind::Ok, Some(1.into())), "the lease runs, nobody was asked");
    until(&mut cluster, "another leader", |c| c.leader() != Some(old));
    let new = cluster.leader().unwrap();
    write(&mut cluster, new, 2);
    shows_nothing_old(&mut cluster, old);
    cluster.links.mend(&cluster.sim, &links);
    until(&mut cluster, "it follows", |c| !c.core(old).unwrap().is_leader());
    for index in 0..3 {
        assert_eq!(lease_read(&mut cluster, index).value, Some(2.into()), "node {index}");
    }
}

#[test]
fn a_leader_that_is_cut_off_gives_no_read_index() {
    let mut cluster = three_nodes();
    let old = cluster.leader().unwrap();
    write(&mut cluster, old, 1);
    let links = cluster.links.around(old);
    cluster.links.cut(&cluster.sim, &links);
    until(&mut cluster, "another leader", |c| c.leader() != Some(old));
    let new = cluster.leader().unwrap();
    write(&mut cluster, new, 2);
    assert!(cluster.core(old).unwrap().is_leader(), "it knows nothing of all that");
    let read = ask(&mut cluster, old, Request::Read { key: KEY.into(), mode: Mode::Linearizable });
    assert_eq!(read.kind, Kind::Fail, "no quorum confirms it: {read:?}");
    cluster.links.mend(&cluster.sim, &links);
    until(&mut cluster, "it follows", |c| !c.core(old).unwrap().is_leader());
}

#[test]
fn voters_that_are_restarted_keep_the_lease_that_they_gave() {
    // A lease that is long beside what a restart and a vote take.
    let mut cluster = three_nodes_slowed(8);
    let old = cluster.leader().unwrap();
    write(&mut cluster, old, 1);
    let links = cluster.links.around(old);
    cluster.links.cut(&cluster.sim, &links);
    let cut_at_ms = cluster.now_ms();
    let others = [(old + 1) % 3, (old + 2) % 3];
    for index in others {
        cluster.switch_off(index, Off::Process);
        cluster.switch_on(index);
    }
    until(&mut cluster, "the restarted ones have a leader", |c| {
        others.iter().any(|i| c.core(*i).is_some_and(|core| core.is_leader()))
    });
    let elected_after_ms = cluster.now_ms() - cut_at_ms;
    let new = others.into_iter().find(|i| cluster.core(*i).is_some_and(|core| core.is_leader())).unwrap();
    let lease_ms = cluster.hosts[new].config.election_timeout_max.as_millis() as u64;
    assert!(elected_after_ms >= lease_ms, "another leads {elected_after_ms} ms after the lease was given");
    write(&mut cluster, new, 2);
    shows_nothing_old(&mut cluster, old);
}
