//! Nodes on simulated disks: power cuts that lose what was not synced, and disks that run full. The nodes are the
//! real ones, run inside this process, over TCP; only the files below them are simulated (so the state is the
//! in-memory engine, rebuilt from snapshot and log at each start).

use std::{
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hexkv_server::{
    config::Config,
    environment::Environment,
    run::{RunError, run_in},
};
use hexkv_store::fs::FaultyFs;
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENCE, eventually, free_ports, get, json, load::Load, put, request};

/// Power cuts of the test, and writes that are acknowledged before each.
const POWER_CUTS: u64 = 3;
const WRITES_BEFORE_CUT: u64 = 120;

/// A node in this process.
struct Inside {
    disk: FaultyFs,
    http: String,
    raft: u16,
    env: Vec<(String, String)>,
    running: Option<(CancellationToken, JoinHandle<Result<(), RunError>>)>,
}

impl Inside {
    fn new(index: usize) -> Self {
        let ports = free_ports(2);
        let env = [
            ("NODE_NAME", format!("hex_hub{index}@127.0.0.1")),
            ("PORT", ports[0].to_string()),
            ("RAFT_PORT", ports[1].to_string()),
            ("EPMD_PORT", "0".into()),
            ("COOKIE", "simulated-cluster".into()),
            ("ENGINE", "memory".into()),
            ("DATA_DIR", format!("/simulated/node{index}")),
            ("SNAPSHOT_LOG_BYTES_MIN", "64KiB".into()),
            ("LOG_ENTRIES_KEPT", "10".into()),
            // After a power cut nobody waits for answers that are under way.
            ("SHUTDOWN_TIMEOUT", "100ms".into()),
        ];
        let env = env.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        Self { disk: FaultyFs::new(), http: format!("127.0.0.1:{}", ports[0]), raft: ports[1], env, running: None }
    }

    fn start(&mut self) {
        let environment = self.env.iter().map(|(k, v)| (k.into(), v.into()));
        let (config, _) = Config::load(["server"], environment).expect("the configuration is right");
        let stop = CancellationToken::new();
        let environment = Environment { fs: Arc::new(self.disk.clone()), ..Environment::real() };
        let stopped = stop.clone();
        let node = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime starts");
            let result = runtime.block_on(run_in(environment, config, stopped));
            runtime.shutdown_timeout(Duration::from_secs(5));
            result
        });
        self.running = Some((stop, node));
        eventually("the node answers", || request(&self.http, &get("/health/live")).map(|_| ()));
    }

    /// Waits until the node ended, and gives why.
    fn ended(&mut self) -> Result<(), RunError> {
        let (_, node) = self.running.take().expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        while !node.is_finished() {
            assert!(Instant::now() < deadline, "the node does not end");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        node.join().expect("it did not panic")
    }

    /// Cuts the power: what was not synced is lost or torn, as `seed` has it.
    fn cut_power(&mut self, seed: u64) {
        self.disk = self.disk.crash(seed);
    }

    /// Ends what still runs after a power cut: in an error or in the attempt to stop, its disk no longer takes anything.
    fn goes_dark(&mut self) {
        if self.running.is_some() {
            self.begin_stop();
            let _ = self.ended();
        }
    }

    fn begin_stop(&self) {
        if let Some((stop, _)) = &self.running {
            stop.cancel();
        }
    }
}

fn cluster(size: usize) -> Vec<Inside> {
    let mut nodes: Vec<Inside> = (1..=size).map(Inside::new).collect();
    for node in &mut nodes {
        node.start();
        eventually("a node started alone serves", || ready(&node.http));
    }
    let target = format!("hex_hub1@127.0.0.1:{}", nodes[0].raft);
    for node in &nodes[1..] {
        let joined = request(&node.http, &json("POST", "/api/cluster/join", &serde_json::json!({"node": target})));
        assert_eq!(joined.as_ref().map(|j| j.status), Ok(200), "{joined:?}");
    }
    nodes
}

/// Stops all nodes together: the last of several would look for a successor in vain.
fn stop(nodes: &mut [Inside]) {
    nodes.iter().for_each(Inside::begin_stop);
    for node in nodes {
        node.ended().expect("a graceful stop");
    }
}

fn ready(http: &str) -> Result<(), String> {
    let answer = request(http, &get("/health/ready"))?;
    if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
}

/// Which of the nodes, all running, leads.
fn leader(nodes: &[Inside]) -> usize {
    eventually("one of them leads", || {
        for (index, node) in nodes.iter().enumerate() {
            let status = request(&node.http, &get("/api/cluster/status"))?.json();
            if status["leader"] == status["node"] {
                return Ok(index);
            }
        }
        Err("none does".into())
    })
}

/// Writes numbered keys through all nodes until `enough` were acknowledged or `give_up` says so; gives those.
fn write(nodes: &[Inside], round: u64, enough: usize, mut give_up: impl FnMut(usize) -> bool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if acknowledged.len() >= enough || give_up(acknowledged.len()) {
            break;
        }
        let key = format!("/api/kv/{round}/{n}");
        let answer = request(&nodes[n % nodes.len()].http, &put(&format!("{key}?timeout=2s"), format!("{n:<1000}")));
        if answer.is_ok_and(|a| a.status == 200) {
            acknowledged.push(key);
        }
    }
    acknowledged
}

#[test]
fn a_power_cut_of_all_nodes_loses_nothing_acknowledged() {
    assert!(Path::new("/proc/sys/kernel/random/boot_id").exists(), "these tests need Linux");
    let mut nodes = cluster(3);
    let addresses: Vec<_> = nodes.iter().map(|node| node.http.clone()).collect();
    let (mut loads, mut lost) = (Vec::new(), 0);
    for round in 0..POWER_CUTS {
        let load = Load::start(&addresses, 4, 1000);
        eventually("the load runs", || {
            let written = load.acknowledged();
            if written >= WRITES_BEFORE_CUT { Ok(()) } else { Err(format!("{written} writes are acknowledged")) }
        });
        // Of all three within a moment, and in the middle of writes.
        for (i, node) in nodes.iter_mut().enumerate() {
            node.cut_power(round * 10 + i as u64);
        }
        nodes.iter_mut().for_each(Inside::goes_dark);
        lost += nodes.iter().map(|node| node.disk.lost()).sum::<u64>();
        loads.push(load.end());
        nodes.iter_mut().for_each(Inside::start);
        for node in &nodes {
            eventually("the cluster comes back", || ready(&node.http));
        }
        for load in &loads {
            load.check(&addresses[round as usize % addresses.len()]);
        }
    }
    assert!(lost > 0, "the power cuts took nothing that was not synced");
    stop(&mut nodes);
}

#[test]
fn a_follower_with_a_full_disk_delays_no_other_node_and_heals() {
    let mut nodes = cluster(3);
    let mut all = write(&nodes, 0, 60, |_| false);
    let full = (leader(&nodes) + 1) % nodes.len();
    let health = |node: &Inside| request(&node.http, &get("/health")).map(|answer| answer.text());
    eventually("its node says so", || {
        // Room for a little more than there is, also once the reserve is given up.
        nodes[full].disk.set_capacity(Some(nodes[full].disk.used_bytes() + 4096));
        match health(&nodes[full])? {
            text if text.contains("degraded") && text.contains("the disk is full") => Ok(()),
            text => Err(text),
        }
    });
    let others: Vec<usize> = (0..nodes.len()).filter(|index| *index != full).collect();
    for n in 0..120 {
        let key = format!("/api/kv/full/{n}");
        let written = request(&nodes[others[n % 2]].http, &put(&key, format!("{n:<1000}"))).expect("an answer");
        assert_eq!(written.status, 200, "{key}: {written:?}");
        all.push(key);
    }
    assert!(nodes[full].running.as_ref().is_some_and(|(_, node)| !node.is_finished()), "a full disk ends no node");
    nodes[full].disk.set_capacity(None);
    eventually("with room again all is well", || match health(&nodes[full])? {
        text if text.contains("\"ok\"") => Ok(()),
        text => Err(text),
    });
    for key in &all {
        let read = request(&nodes[full].http, &get(key)).expect("an answer");
        assert_eq!(read.status, 200, "{key} was acknowledged: {read:?}");
    }
    stop(&mut nodes);
}
