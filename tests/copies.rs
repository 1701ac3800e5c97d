//! Copies of data directories: of two processes with one identity one goes on, and the other one stops and says why.

use std::{path::Path, process::Command};

use serde_json::{Value, json as document};

use crate::harness::{Cluster, eventually, json, put, request};

/// Entries that the leader itself may add while a copy tries.
const STEPS_MAX: u64 = 2;

/// The whole directory at `from`, as `to`, which does not exist.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "{} was not copied", from.display());
}

/// Adds a node on a copy of `data` with the name of node `index`, on ports of its own; not started. Gives its index.
fn add_copy(cluster: &mut Cluster, index: usize, data: &Path) -> usize {
    let (name, mut env) = (cluster.node(index).name.clone(), cluster.node(index).env.clone());
    let copy = cluster.add();
    for own in ["PORT", "RAFT_PORT", "DATA_DIR"] {
        env.insert(own.into(), copy.env[own].clone());
    }
    // Two processes of one name: the port mapper takes the first one only.
    env.insert("EPMD_PORT".into(), "0".into());
    (copy.name, copy.env) = (name, env);
    std::fs::rename(data, &copy.data).expect("the copy is moved into place");
    copy.index
}

/// Stops node `index`, copies its data directory, and starts it again.
fn copied(cluster: &mut Cluster, index: usize, size: usize) -> usize {
    assert_eq!(cluster.node(index).stop(), Some(0));
    let data = cluster.node(index).data.clone();
    let aside = data.with_extension("copy");
    copy(&data, &aside);
    cluster.node(index).start();
    cluster.wait_formed(size);
    add_copy(cluster, index, &aside)
}

fn addresses(cluster: &Cluster, through: usize) -> Vec<String> {
    let status = cluster.nodes[through - 1].status().expect("a status");
    let of = |m: &Value| format!("{} {} {}", m["id"], m["http"], m["raft"]);
    status["members"].as_array().expect("members").iter().map(of).collect()
}

/// Runs copy `copy` of node `index` to its end: it must stop with code 1, name both addresses, and change nothing.
fn stops(cluster: &mut Cluster, index: usize, copy: usize) {
    let (pid, original) = (cluster.node(index).pid(), cluster.node(index).raft.clone());
    let before = addresses(cluster, index);
    let committed = |cluster: &Cluster| {
        cluster.nodes[index - 1].status().expect("a status")["commit_index"].as_u64().expect("an index")
    };
    let entries = committed(cluster);
    let (code, log) = cluster.node(copy).run_to_end();
    assert_eq!(code, Some(1), "{log}");
    for part in ["it is a copy of a node that runs", original.as_str(), "empty DATA_DIR"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(log.lines().count() < 60, "it does not flood its log: {log}");
    assert!(cluster.node(index).runs() && cluster.node(index).pid() == pid, "the original goes on");
    assert_eq!(addresses(cluster, index), before);
    let after = committed(cluster);
    assert!(after <= entries + STEPS_MAX, "nothing of it entered the log: from {entries} to {after}");
}

fn finding(endpoint: &str, check: &str) -> Result<Value, String> {
    let output = crate::harness::client(endpoint, &["--output", "json", "doctor"]);
    let report: Value = serde_json::from_slice(&output.stdout).map_err(|e| format!("{e}: {output:?}"))?;
    let findings = report["findings"].as_array().ok_or("no findings")?;
    findings.iter().find(|f| f["check"] == check).cloned().ok_or_else(|| report.to_string())
}

#[test]
fn a_copy_of_a_running_follower_stops_and_changes_nothing() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let victim = cluster.other_than(leader);
    let copy = copied(&mut cluster, victim, 3);
    stops(&mut cluster, victim, copy);
    let leader = cluster.leader();
    let log = cluster.node(leader).logged();
    assert!(log.contains("copied_node") && log.contains(&cluster.node(victim).raft), "{log}");
    let found = finding(&cluster.node(leader).http.clone(), "copy").expect("the doctor finds it");
    assert_eq!((&found["severity"], &found["node"]), (&"error".into(), &cluster.node(victim).name.as_str().into()));
    let metrics = request(&cluster.node(leader).http, &crate::harness::get("/metrics")).expect("metrics").text();
    assert!(
        metrics.lines().any(|line| line == "hexkv_copied_nodes 1.0" || line == "hexkv_copied_nodes 1"),
        "{metrics}"
    );
}

#[test]
fn a_copy_of_the_leader_stops_and_changes_nothing() {
    let mut cluster = Cluster::start(3);
    let victim = cluster.leader();
    let copy = copied(&mut cluster, victim, 3);
    let now = cluster.nodes[..3].iter().map(|n| n.index).find(|i| *i != victim).expect("another node");
    let to = document!({ "to": cluster.node(victim).name });
    let answer =
        request(&cluster.node(now).http, &json("POST", "/api/cluster/transfer-leader", &to)).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("the victim leads", || {
        let leader = cluster.nodes[victim - 1].status()?["leader"].clone();
        if leader == cluster.nodes[victim - 1].name.as_str() { Ok(()) } else { Err(leader.to_string()) }
    });
    stops(&mut cluster, victim, copy);
}

#[test]
fn a_copy_of_a_standby_stops_and_changes_nothing() {
    let mut cluster = Cluster::start(3);
    let target = cluster.node(1).name.clone();
    let joined = cluster.add_running().join(&target, false);
    assert_eq!(joined.status, 200, "{}", joined.text());
    cluster.wait_formed(4);
    let copy = copied(&mut cluster, 4, 4);
    stops(&mut cluster, 4, copy);
}

#[test]
fn copies_of_a_whole_cluster_stop_beside_it() {
    let mut cluster = Cluster::start(3);
    for index in 1..=3 {
        assert_eq!(cluster.node(index).stop(), Some(0));
    }
    let asides: Vec<_> = (1..=3).map(|i| cluster.node(i).data.with_extension("copy")).collect();
    for (index, aside) in (1..=3).zip(&asides) {
        copy(&cluster.node(index).data.clone(), aside);
    }
    for index in 1..=3 {
        cluster.node(index).start();
    }
    cluster.wait_formed(3);
    let copies: Vec<usize> = (1..=3).zip(&asides).map(|(index, aside)| add_copy(&mut cluster, index, aside)).collect();
    let before = addresses(&cluster, 1);
    for copy in &copies {
        cluster.node(*copy).start();
    }
    for (index, copy) in (1..=3).zip(&copies) {
        eventually("each copy stops", || if cluster.node(*copy).runs() { Err("it runs".into()) } else { Ok(()) });
        let log = cluster.node(*copy).logged();
        assert!(log.contains("it is a copy of a node that runs"), "{log}");
        assert!(cluster.node(index).runs(), "the original goes on");
    }
    assert_eq!(addresses(&cluster, 1), before);
    let written = request(&cluster.node(1).http, &put("/api/kv/k", "v")).expect("an answer");
    assert_eq!(written.status, 200, "{}", written.text());
}

#[test]
fn an_original_behind_its_copy_stops_and_comes_back_as_new() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let victim = cluster.other_than(leader);
    let before = id_of(&cluster, leader, victim).expect("it is a member");
    assert_eq!(cluster.node(victim).stop(), Some(0));
    let data = cluster.node(victim).data.clone();
    copy(&data, &data.with_extension("copy"));
    let copy = add_copy(&mut cluster, victim, &data.with_extension("copy"));
    cluster.node(copy).start();
    eventually("the copy takes the place that is free", || cluster.nodes[copy - 1].ready());
    let (code, log) = cluster.node(victim).run_to_end();
    assert!(code == Some(1) && log.contains("it is a copy of a node that runs"), "{code:?} {log}");
    assert!(cluster.node(copy).runs(), "the first one goes on");
    for i in 0..30 {
        let answer = request(&cluster.node(leader).http, &put(&format!("/api/kv/w{i}"), "v")).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // The original lacks what its copy acknowledged.
    cluster.node(copy).kill();
    cluster.nodes.truncate(3);
    cluster.node(victim).start();
    eventually("it votes under a new id", || match id_of(&cluster, leader, victim) {
        Some(id) if id != before => Ok(()),
        other => Err(format!("{other:?}, it was {before}")),
    });
    let log = cluster.node(victim).logged();
    assert!(log.contains("the data directory is an old one"), "also for a new leader: {log}");
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
}

/// The id under which node `index` votes, as node `asked` says.
pub fn id_of(cluster: &Cluster, asked: usize, index: usize) -> Option<String> {
    let name = cluster.nodes[index - 1].name.as_str();
    let status = cluster.nodes[asked - 1].status().ok()?;
    let member = status["members"].as_array()?.iter().find(|m| m["name"] == name && m["role"] == "voter")?.clone();
    member["id"].as_str().map(str::to_string)
}

#[test]
fn restarts_at_once_and_at_new_addresses_are_not_refused() {
    let mut cluster = Cluster::start(3);
    for round in 0..3 {
        let victim = round % 3 + 1;
        cluster.node(victim).kill();
        cluster.node(victim).start();
        cluster.wait_formed(3);
        cluster.node(victim).kill();
        let ports = crate::harness::free_ports(2);
        let node = cluster.node(victim);
        node.env.insert("PORT".into(), ports[0].to_string());
        node.env.insert("RAFT_PORT".into(), ports[1].to_string());
        (node.http, node.raft) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
        node.start();
        cluster.wait_formed(3);
    }
    for node in &cluster.nodes {
        let log = node.logged();
        assert!(!log.contains("copied_node") && !log.contains("rolled_back"), "{log}");
    }
}
