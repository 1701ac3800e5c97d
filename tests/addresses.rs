//! Addresses of nodes that are wrong, or change: of one node, and of all at once.

use std::net::TcpListener;

use serde_json::Value;

use crate::harness::{Cluster, Node, eventually, free_ports, get, json, put, request};

/// An address of the loopback network at which no node listens.
const ELSEWHERE: &str = "127.0.0.2";

/// Three nodes that know each other by `CLUSTER_NODES` and ask no port mapper, none of them started.
fn listed(env: &[(&str, &str)]) -> Cluster {
    let mut settings = vec![("CLUSTER_DISCOVERY_TYPE", "static"), ("EPMD_PORT", "0")];
    settings.extend(env);
    let mut cluster = Cluster::empty(&settings);
    for _ in 0..3 {
        cluster.add();
    }
    list(&mut cluster);
    cluster
}

/// Gives all nodes the list of where all are.
fn list(cluster: &mut Cluster) {
    let named = |node: &Node| format!("{}:{}", node.name, port(&node.raft));
    let list = cluster.nodes.iter().map(named).collect::<Vec<_>>().join(",");
    for node in &mut cluster.nodes {
        node.env.insert("CLUSTER_NODES".into(), list.clone());
        node.env.insert("NODE_INDEX".into(), node.index.to_string());
        node.env.insert("CLUSTER_SIZE".into(), "3".into());
    }
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().expect("host:port")
}

fn start_all(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_formed(3);
}

fn write(node: &Node, key: &str) {
    eventually("a write is acknowledged", || {
        let answer = request(&node.http, &put(&format!("/api/kv/{key}"), "x"))?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

fn restart(node: &mut Node) {
    assert_eq!(node.stop(), Some(0));
    node.start();
}

/// What node `asked` says of member `name`.
fn member(asked: &Node, name: &str) -> Result<Value, String> {
    let status = asked.status()?;
    let members = status["members"].as_array().ok_or("no members")?;
    members.iter().find(|m| m["name"] == name).cloned().ok_or_else(|| format!("{name} is no member: {status}"))
}

fn last_log_index(node: &Node) -> u64 {
    let metrics = request(&node.http, &get("/metrics")).expect("metrics").text();
    let last = metrics.lines().find_map(|line| line.strip_prefix("hexkv_raft_last_log_index ").map(str::to_owned));
    last.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no last index: {metrics}")) as u64
}

#[test]
fn all_addresses_change_at_once_and_a_right_list_is_enough() {
    let mut cluster = listed(&[]);
    start_all(&mut cluster);
    write(&cluster.nodes[0], "before");
    for node in &mut cluster.nodes {
        assert_eq!(node.stop(), Some(0));
    }
    for node in &mut cluster.nodes {
        let ports = free_ports(2);
        node.http = format!("127.0.0.1:{}", ports[0]);
        node.raft = format!("127.0.0.1:{}", ports[1]);
        node.env.insert("PORT".into(), ports[0].to_string());
        node.env.insert("RAFT_PORT".into(), ports[1].to_string());
    }
    list(&mut cluster);
    start_all(&mut cluster);
    write(&cluster.nodes[1], "after");
    for node in &cluster.nodes {
        for key in ["before", "after"] {
            assert_eq!(request(&node.http, &get(&format!("/api/kv/{key}"))).expect("an answer").status, 200);
        }
    }
    // The member list is corrected, so that the next start needs no discovery.
    let raft: Vec<(String, String)> = cluster.nodes.iter().map(|n| (n.name.clone(), n.raft.clone())).collect();
    eventually("the member list has the new addresses", || {
        for (name, raft) in &raft {
            let listed = member(&cluster.nodes[0], name)?;
            if listed["raft"] != raft.as_str() {
                return Err(listed.to_string());
            }
        }
        Ok(())
    });
}

#[test]
fn a_voter_with_a_wrong_address_comes_back_when_it_is_corrected() {
    // Joined by address: discovery knows nothing that could make up for the wrong one.
    let mut cluster = Cluster::empty(&[("EPMD_PORT", "0")]);
    cluster.add_running();
    let first = &cluster.nodes[0];
    let target = format!("{}:{}", first.name, port(&first.raft));
    for index in 2..=3 {
        cluster.add_running();
        let joined = cluster.node(index).join(&target, false);
        assert_eq!(joined.status, 200, "{joined:?}");
    }
    cluster.wait_formed(3);
    let leader = cluster.leader();
    let moved = cluster.other_than(leader);
    let name = cluster.node(moved).name.clone();
    cluster.node(moved).env.insert("ADVERTISE".into(), ELSEWHERE.into());
    restart(cluster.node(moved));
    eventually("its wrong address is in the member list", || {
        let listed = member(&cluster.nodes[leader - 1], &name)?;
        let wrong = listed["raft"].as_str().is_some_and(|raft| raft.starts_with(ELSEWHERE));
        if wrong { Ok(()) } else { Err(listed.to_string()) }
    });
    // The connections that were made to the right one end with its process.
    restart(cluster.node(moved));
    eventually("it is not reached there", || {
        let listed = member(&cluster.nodes[leader - 1], &name)?;
        if listed["state"] == "down" { Ok(()) } else { Err(listed.to_string()) }
    });
    // While it is wrong the node must not fill the log with announcements of itself.
    let first = last_log_index(&cluster.nodes[leader - 1]);
    let explained = eventually("the leader says why", || {
        let text = cluster.nodes[leader - 1].json("/api/cluster/explain")?.to_string();
        if text.contains(&format!("{name} cannot be reached at {ELSEWHERE}:")) { Ok(text) } else { Err(text) }
    });
    assert!(explained.contains("ADVERTISE"), "{explained}");

    cluster.node(moved).env.remove("ADVERTISE");
    restart(cluster.node(moved));
    eventually("the voter is back", || {
        cluster.nodes[moved - 1].ready()?;
        let listed = member(&cluster.nodes[leader - 1], &name)?;
        if listed["raft"] == cluster.nodes[moved - 1].raft.as_str() && listed["state"] == "up" {
            Ok(())
        } else {
            Err(listed.to_string())
        }
    });
    let grown = last_log_index(&cluster.nodes[leader - 1]) - first;
    assert!(grown <= 5, "the log grew by {grown} entries without a write");
    write(&cluster.nodes[moved - 1], "after");
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn a_join_that_is_not_reached_where_it_is_advertised_says_so() {
    let mut cluster = Cluster::empty(&[("EPMD_PORT", "0")]);
    cluster.add_running();
    let first = &cluster.nodes[0];
    let target = format!("{}:{}", first.name, port(&first.raft));
    cluster.add().env.insert("ADVERTISE".into(), ELSEWHERE.into());
    cluster.node(2).start();
    eventually("it serves", || cluster.nodes[1].ready());
    let joined = cluster.node(2).join(&target, false);
    let text = joined.text();
    let advertised = format!("{ELSEWHERE}:{}", port(&cluster.node(2).raft.clone()));
    for part in [advertised.as_str(), "cannot be reached", "refused", "ADVERTISE", "RAFT_PORT"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(joined.status, 504, "it is a member, and has no data: {text}");
    let logged = cluster.node(2).logged();
    assert!(logged.contains(&format!("cannot be reached at {advertised}")), "{logged}");

    // Corrected, it gets what it lacks.
    assert_eq!(cluster.node(2).stop(), Some(0));
    cluster.node(2).env.remove("ADVERTISE");
    cluster.node(2).start();
    cluster.wait_formed(2);
}

#[test]
fn a_port_mapper_that_hangs_does_not_keep_nodes_from_forming() {
    // Connections are made by the system, and never answered.
    let hung = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mapper = hung.local_addr().expect("an address").port().to_string();
    let mut cluster = listed(&[("EPMD_PORT", &mapper), ("CLUSTER_DISCOVERY_TYPE", "epmd")]);
    // One more that is not there, and whose port only the mapper could know.
    for node in &mut cluster.nodes {
        let list = format!("{},hex_hub9@127.0.0.1", node.env["CLUSTER_NODES"]);
        node.env.insert("CLUSTER_NODES".into(), list);
    }
    start_all(&mut cluster);
    for node in &cluster.nodes {
        write(node, &format!("k{}", node.index));
        let health = node.json("/api/health").expect("its health");
        assert!(health["services"]["discovery"].to_string().contains("does not answer"), "{health}");
        assert!(node.logged().contains(&format!("the port mapper on port {mapper} does not answer")), "{}", node.name);
    }
    let alone = json("POST", "/api/cluster/join", &serde_json::json!({"node": "hex_hub9@127.0.0.1"}));
    let refused = request(&cluster.nodes[0].http, &alone).expect("an answer");
    assert!(refused.text().contains("no answer in time"), "{refused:?}");
    drop(hung);
}
