//! What one node's disk, links or copy do to the others: writes and reads through them go on. Each test measures the longest
//! time without an acknowledged operation through each of the other nodes and prints it; the bounds that fail a test are far
//! above what is promised (two seconds for writes, one for reads), because machines are shared.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jepsen_like::{
    cluster::{Cluster as Proxied, Volume},
    links::Party,
};

use crate::harness::{Cluster, PATIENCE, binary, client, eventually, free_ports, get, put, request, said, volume};

/// Longest time without an acknowledged write, and without an answered read, that passes.
const WRITE_GAP_MAX: Duration = Duration::from_secs(15);
const READ_GAP_MAX: Duration = Duration::from_secs(10);
/// How long each fault lasts: longer than any gap that passes.
const FAULT_TIME: Duration = Duration::from_secs(25);
/// Writes and reads of each node that a phase has to see, so that a gap means something.
const OPERATIONS_MIN: u64 = 20;
/// Size of every tenth value, in bytes: more than passes a hole for large messages.
const LARGE_VALUE_BYTES: usize = 20_000;
/// Largest message that passes the hole, in bytes.
const SMALL_MESSAGE_BYTES_MAX: usize = 1_000;
/// A file system that is small enough to be filled, in bytes.
const SMALL_VOLUME_BYTES: u64 = 192 << 20;
/// Longest wait for the copy of a node to end by itself.
const CLONE_PATIENCE: Duration = Duration::from_secs(30);

/// What is asked again and again.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Write,
    Read,
}

/// A client of one node that asks again and again, one request at a time, and notes the longest time without success.
struct Asker {
    kind: Kind,
    node: String,
    done: Arc<AtomicU64>,
    longest: JoinHandle<Duration>,
}

/// Clients of some nodes: a writer and a reader of linearizable values for each.
pub struct Askers {
    stop: Arc<AtomicBool>,
    all: Vec<Asker>,
}

impl Askers {
    pub fn start(addresses: &[String]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let all = addresses
            .iter()
            .flat_map(|address| [(address, Kind::Write), (address, Kind::Read)])
            .map(|(address, kind)| {
                let done = Arc::new(AtomicU64::new(0));
                let (stop, counted, node) = (stop.clone(), done.clone(), address.clone());
                let longest = std::thread::spawn(move || ask(kind, &node, &stop, &counted));
                Asker { kind, node: address.clone(), done, longest }
            })
            .collect();
        let askers = Self { stop, all };
        askers.wait_for(OPERATIONS_MIN);
        askers
    }

    /// Waits until every client succeeded `more` times again.
    pub fn wait_for(&self, more: u64) {
        let before: Vec<u64> = self.all.iter().map(|asker| asker.done.load(Ordering::Relaxed)).collect();
        for (asker, before) in self.all.iter().zip(before) {
            eventually("every client succeeds", || {
                let done = asker.done.load(Ordering::Relaxed);
                let (kind, node) = (asker.kind, &asker.node);
                if done >= before + more {
                    Ok(())
                } else {
                    Err(format!("{kind:?} through {node}: {done} of {before}+"))
                }
            });
        }
    }

    /// Ends the clients, prints the gaps, and holds them to the bounds.
    pub fn judge(mut self, fault: &str) {
        self.stop.store(true, Ordering::Relaxed);
        for asker in std::mem::take(&mut self.all) {
            let longest = asker.longest.join().expect("a client panicked");
            let done = asker.done.load(Ordering::Relaxed);
            println!("{fault}: {:?} through {}: {done} times, longest gap {longest:?}", asker.kind, asker.node);
            let bound = if asker.kind == Kind::Write { WRITE_GAP_MAX } else { READ_GAP_MAX };
            assert!(longest < bound, "{fault}: {:?} through {} stood still for {longest:?}", asker.kind, asker.node);
        }
    }
}

impl Drop for Askers {
    /// A test that failed has no use for what is asked further.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks `node` until `stop`, and gives the longest time between two successes.
fn ask(kind: Kind, node: &str, stop: &AtomicBool, done: &AtomicU64) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let path = format!("/api/kv/availability/{}?timeout=1s", node.replace([':', '.'], "-"));
    for n in 0_u64.. {
        let request_of = match kind {
            Kind::Write if n.is_multiple_of(10) => put(&path, format!("{n:<LARGE_VALUE_BYTES$}")),
            Kind::Write => put(&path, n.to_string()),
            Kind::Read => get(&path),
        };
        let answer = request(node, &request_of);
        // A key that was not written yet is an answer, too.
        let succeeded = answer.is_ok_and(|a| a.status == 200 || (kind == Kind::Read && a.status == 404));
        longest = longest.max(last.elapsed());
        if succeeded {
            last = Instant::now();
            done.fetch_add(1, Ordering::Relaxed);
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    longest
}

/// Lets a fault last.
fn hold(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// Three nodes that form a cluster; node 1 has a file system of `bytes` bytes of its own, which the caller keeps for longer than
/// the cluster. None where it cannot be had.
fn three_with_a_volume(bytes: u64) -> Option<(Volume, Cluster)> {
    let mut cluster = Cluster::empty(&[("WAL_SEGMENT_BYTES", "10MiB"), ("SNAPSHOT_LOG_BYTES_MIN", "1MiB")]);
    let mut volume = None;
    for index in 1..=3 {
        let node = cluster.add();
        node.env.insert("NODE_INDEX".into(), index.to_string());
        node.env.insert("CLUSTER_SIZE".into(), "3".into());
        if index == 1 {
            volume = Some(volume::of(node, bytes)?);
        }
        node.start();
    }
    cluster.wait_formed(3);
    Some((volume?, cluster))
}

/// Lets node 1 lead.
fn lead(cluster: &mut Cluster) {
    let name = cluster.node(1).name.clone();
    eventually("node 1 leads", || match cluster.leader() {
        1 => Ok(()),
        other => {
            let output = client(&cluster.node(other).http, &["transfer-leader", &name]);
            Err(format!("node {other} leads: {}", said(&output)))
        }
    });
}

#[test]
fn frozen_disk_of_the_leader_stops_no_other_node() {
    // Declared before the cluster, whose nodes have to end first; frozen after it, so that it is thawed before.
    let Some((mut volume, mut cluster)) = three_with_a_volume(volume::BYTES_DEFAULT) else { return };
    lead(&mut cluster);
    let others = [cluster.node(2).http.clone(), cluster.node(3).http.clone()];
    let askers = Askers::start(&others);
    let frozen = volume.freeze().expect("a mounted file system can be frozen");
    hold(FAULT_TIME);
    askers.wait_for(1);
    drop(frozen);
    askers.wait_for(OPERATIONS_MIN);
    askers.judge("frozen disk");
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
    drop(cluster);
}

#[test]
fn full_disk_of_one_node_stops_no_other_node() {
    let Some((volume, mut cluster)) = three_with_a_volume(SMALL_VOLUME_BYTES) else { return };
    lead(&mut cluster);
    let others = [cluster.node(2).http.clone(), cluster.node(3).http.clone()];
    let askers = Askers::start(&others);
    fill(&volume.root().join("filler"));
    hold(FAULT_TIME);
    askers.wait_for(OPERATIONS_MIN);
    askers.judge("full disk");
    drop(cluster);
}

/// Writes a file until there is no room for more.
fn fill(path: &Path) {
    let mut file = File::create_new(path).expect("a file can be created");
    let piece = vec![b'x'; 1 << 20];
    let full = loop {
        if let Err(e) = file.write_all(&piece) {
            break e;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
}

#[test]
fn copy_of_a_node_stops_no_node_and_ends_by_itself() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let copied = cluster.other_than(leader);
    let others = cluster.nodes.iter().filter(|node| node.index != copied);
    let askers = Askers::start(&others.map(|node| node.http.clone()).collect::<Vec<_>>());
    assert_eq!(cluster.node(copied).stop(), Some(0));
    let (data, name) = (cluster.node(copied).data.clone(), cluster.node(copied).name.clone());
    let clone = cluster.add();
    let copy = Command::new("cp").arg("-a").arg(&data).arg(&clone.data).status();
    assert!(copy.is_ok_and(|status| status.success()), "the directory is copied");
    let (clone_index, ports) = (clone.index, free_ports(2));
    clone.env.insert("NODE_NAME".into(), name);
    clone.env.insert("NODE_INDEX".into(), copied.to_string());
    clone.env.insert("CLUSTER_SIZE".into(), "3".into());
    clone.env.insert("PORT".into(), ports[0].to_string());
    clone.env.insert("RAFT_PORT".into(), ports[1].to_string());
    cluster.node(copied).start();
    eventually("the node is back", || cluster.nodes[copied - 1].ready());
    cluster.node(clone_index).start();
    let began = Instant::now();
    while cluster.node(clone_index).runs() && began.elapsed() < CLONE_PATIENCE {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let (ended, log) = (!cluster.node(clone_index).runs(), cluster.node(clone_index).logged());
    assert!(ended, "the copy still runs after {CLONE_PATIENCE:?}: {log}");
    askers.wait_for(OPERATIONS_MIN);
    askers.judge("copy of a node");
    assert!(cluster.node(copied).runs(), "the node that was copied goes on");
}

#[test]
fn large_messages_that_do_not_pass_stop_no_other_node() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
    let dir = tempfile::tempdir().unwrap();
    // On this thread, because nodes end with the thread that started them.
    runtime.block_on(async {
        let mut cluster = Proxied::new(&binary("server"), dir.path(), 3).await.expect("there are addresses");
        cluster.form().await.expect("the cluster forms");
        let leader = cluster.await_leader(PATIENCE, "a leader", |_| true).await.expect("a leader").node;
        let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
        let addresses: Vec<String> = others.iter().map(|node| cluster.nodes[*node].http.clone()).collect();
        let askers = tokio::task::spawn_blocking(move || Askers::start(&addresses)).await.expect("they start");
        for other in &others {
            let (from, to) = (Party::Node(leader), Party::Node(*other));
            cluster.links.change(from, to, |rule| rule.hold_above_bytes = Some(SMALL_MESSAGE_BYTES_MAX));
        }
        tokio::task::spawn_blocking(|| hold(FAULT_TIME)).await.expect("it ends");
        let stuck = cluster.links.total().stuck;
        assert!(stuck > 0, "no large message was sent");
        cluster.links.heal();
        let judged = tokio::task::spawn_blocking(move || {
            askers.wait_for(OPERATIONS_MIN);
            askers.judge("large messages lost");
        });
        judged.await.expect("writes and reads go on");
        cluster.end().await.expect("the nodes end");
    });
}
