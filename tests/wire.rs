//! What strangers send to the raft port: refused, logged, nothing changed, no memory blow-up.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::harness::{Cluster, eventually, put, request};

/// More resident memory than a node may gain from garbage, in KiB.
const GAIN_KIB_MAX: u64 = 32 * 1024;

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a resident size");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    // The node may close while we still write: that is the refusal.
    let _ = stream.write_all(bytes);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 64 * 1024, "a stranger gets no more than a refusal");
}

#[test]
fn garbage_on_the_raft_port_is_refused() {
    let mut cluster = Cluster::start(1);
    let (http, raft, pid) =
        (cluster.node(1).http.clone(), cluster.node(1).raft.clone(), cluster.node(1).pid().expect("it runs"));
    request(&http, &put("/api/kv/k", "v")).expect("an answer");
    let before = (cluster.node(1).json("/api/cluster/hash").expect("a hash"), resident_kib(pid));
    let mut seed = 1_u64;
    let mut noise = |n: usize| -> Vec<u8> {
        (0..n)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as u8
            })
            .collect()
    };
    send(&raft, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    send(&raft, &[0; 1024]);
    send(&raft, &[0xff; 1024]);
    // Frames that announce far more than they hold, again and again.
    for _ in 0..50 {
        let mut lie = 0x7fff_ffff_u32.to_le_bytes().to_vec();
        lie.extend(noise(100));
        send(&raft, &lie);
    }
    for n in [1, 4, 12, 100, 5000] {
        let bytes = noise(n);
        send(&raft, &bytes);
    }
    eventually("the node logs that it refused something", || {
        let log = cluster.nodes[0].logged();
        if log.contains("WARN") && log.contains("refused") { Ok(()) } else { Err("nothing logged".into()) }
    });
    cluster.node(1).ready().expect("it serves as before");
    let after = (cluster.node(1).json("/api/cluster/hash").expect("a hash"), resident_kib(pid));
    assert_eq!(after.0, before.0, "nothing was changed");
    assert!(after.1 < before.1 + GAIN_KIB_MAX, "from {} to {} KiB", before.1, after.1);
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let mut cluster = Cluster::empty(&[]);
    cluster.add_running();
    cluster.add_running();
    let target = cluster.node(1).name.clone();
    assert_eq!(cluster.node(2).join(&target, false).status, 200);
    let id = cluster.node(1).status().expect("a status")["cluster_id"].as_str().expect("an id").to_owned();
    // The same machine under the same name, but a cluster of its own: its disk was wiped and it was told nothing.
    cluster.node(2).kill();
    let told: Vec<_> = cluster.nodes.iter().map(|node| node.logged().len()).collect();
    let data = cluster.node(2).data.clone();
    std::fs::rename(&data, data.with_extension("old")).expect("its disk is gone");
    cluster.node(2).start();
    for (node, told, whose) in [
        (&cluster.nodes[0], told[0], "refused by a node: cluster "),
        (&cluster.nodes[1], told[1], "refused a node: cluster "),
    ] {
        eventually("both log the refusal, and which clusters they are of", || {
            let log = node.logged()[told..].to_owned();
            let says = |line: &str| line.contains(whose) && line.contains("wrong_cluster") && line.contains(&id);
            if log.lines().any(says) { Ok(()) } else { Err(format!("{}: {log}", node.name)) }
        });
    }
    eventually("the wiped node is a cluster of its own", || {
        let status = cluster.nodes[1].status()?;
        if status["members"].as_array().map(Vec::len) == Some(1) { Ok(()) } else { Err(format!("{status}")) }
    });
}
