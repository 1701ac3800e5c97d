//! One cluster, whatever the order of starts, whoever is slow, and whoever lost its disk.

use super::{Setup, Way, read, set, write};
use crate::harness::{eventually, get, json, put, request};

const ORDERS: [[usize; 3]; 6] = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];

fn any_start_order_forms_one_cluster(way: Way) {
    for order in ORDERS {
        let Some(mut setup) = Setup::new(way, 3) else { return };
        for index in order {
            setup.start(index);
        }
        setup.cluster.wait_formed(3);
        setup.cluster_id();
    }
}

fn wiped_nodes_join_again_and_found_nothing(way: Way) {
    let Some(mut setup) = Setup::new(way, 3) else { return };
    for index in 1..=3 {
        setup.cluster.node(index).start();
    }
    setup.cluster.wait_formed(3);
    let id = setup.cluster_id();
    write(&setup.cluster.nodes[0], "k", "kept");
    for index in 1..=3 {
        setup.wipe(index);
        setup.cluster.node(index).start();
        setup.cluster.wait_formed(3);
        assert_eq!(setup.cluster_id(), id, "node {index} joined again");
        assert_eq!(read(&setup.cluster.nodes[index - 1], "k"), "kept");
    }
    setup.cluster.wait_same_hash(&[1, 2, 3]);
    // The first one, with all others down: alone it is no majority.
    for index in 1..=3 {
        setup.cluster.node(index).kill();
    }
    setup.wipe(1);
    setup.start(1);
    setup.waits(1, "1 of 3 are there");
    let refused = request(&setup.cluster.nodes[0].http, &put("/api/kv/k?timeout=2s", "lost")).expect("an answer");
    assert_eq!(refused.problem(), "not_in_cluster", "{refused:?}");
    for index in 2..=3 {
        setup.cluster.node(index).start();
    }
    setup.cluster.wait_formed(3);
    assert_eq!(setup.cluster_id(), id);
    assert_eq!(read(&setup.cluster.nodes[0], "k"), "kept");
}

#[test]
fn any_start_order_forms_one_cluster_by_epmd() {
    any_start_order_forms_one_cluster(Way::Epmd);
}

#[test]
fn any_start_order_forms_one_cluster_by_static() {
    any_start_order_forms_one_cluster(Way::Static);
}

#[test]
fn any_start_order_forms_one_cluster_by_dns() {
    any_start_order_forms_one_cluster(Way::Dns);
}

#[test]
fn any_start_order_forms_one_cluster_by_gossip() {
    any_start_order_forms_one_cluster(Way::Gossip);
}

#[test]
fn wiped_nodes_join_again_and_found_nothing_by_epmd() {
    wiped_nodes_join_again_and_found_nothing(Way::Epmd);
}

#[test]
fn wiped_nodes_join_again_and_found_nothing_by_static() {
    wiped_nodes_join_again_and_found_nothing(Way::Static);
}

#[test]
fn wiped_nodes_join_again_and_found_nothing_by_dns() {
    wiped_nodes_join_again_and_found_nothing(Way::Dns);
}

#[test]
fn wiped_nodes_join_again_and_found_nothing_by_gossip() {
    wiped_nodes_join_again_and_found_nothing(Way::Gossip);
}

#[test]
fn a_majority_of_the_listed_nodes_forms_a_cluster_and_the_rest_joins_it() {
    let mut setup = Setup::new(Way::Static, 3).expect("a list works everywhere");
    // Not the first one: anybody may found a cluster when enough agree.
    for index in [3, 2] {
        setup.start(index);
    }
    setup.cluster.wait_formed(2);
    let id = setup.cluster_id();
    setup.start(1);
    setup.cluster.wait_formed(3);
    assert_eq!(setup.cluster_id(), id);
}

#[test]
fn nodes_without_an_index_wait_until_as_many_as_planned_are_there() {
    let mut setup = Setup::new(Way::Dns, 3).expect("a name server works everywhere");
    for index in [1, 2] {
        setup.start(index);
        setup.waits(index, &format!("{index} of 3 are there"));
    }
    setup.start(3);
    setup.cluster.wait_formed(3);
    // One more than planned joins what is there.
    let server = setup.dns.as_ref().expect("it serves").address.to_string();
    let fourth = setup.cluster.add();
    set(fourth, &super::dns_settings(&server));
    set(fourth, &[("CLUSTER_SIZE", "3")]);
    setup.start(4);
    setup.cluster.wait_formed(4);
    setup.cluster_id();
}

#[test]
fn as_many_as_planned_wait_for_whoever_is_silent_at_a_known_address() {
    let mut setup = Setup::new(Way::Dns, 3).expect("a name server works everywhere");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address");
    let mut records = super::service_records(&setup.cluster, 3);
    records.push(super::service_record(super::HOSTNAME, "host1.test", address.port()));
    setup.dns.as_ref().expect("it serves").set(&records);
    for index in 1..=3 {
        setup.start(index);
    }
    // It takes the connection, and never says a word: it may have a cluster.
    setup.waits(3, &format!("; nobody answers at {address}"));
    setup.waits(1, "3 of 3 are there");
    setup.cluster.wait_formed(3);
    setup.cluster_id();
}

/// Three nodes with a cluster, of which only the first still runs, and a fourth that was killed while it joined it.
fn with_an_interrupted_join() -> (Setup, String) {
    let mut setup = Setup::new(Way::Dns, 3).expect("a name server works everywhere");
    for index in 1..=3 {
        setup.start(index);
    }
    setup.cluster.wait_formed(3);
    let id = setup.cluster_id();
    for index in [2, 3] {
        setup.cluster.node(index).kill();
    }
    let server = setup.dns.as_ref().expect("it serves").address.to_string();
    let target = format!("127.0.0.1:{}", super::port(&setup.cluster.nodes[0].raft));
    let fourth = setup.cluster.add();
    set(fourth, &super::dns_settings(&server));
    set(fourth, &[("CLUSTER_SIZE", "3")]);
    fourth.start();
    let noted = |node: &crate::harness::Node| {
        let identity = std::fs::read(node.data.join("identity")).map_err(|e| e.to_string())?;
        let found = identity.windows(target.len()).any(|part| part == target.as_bytes());
        if found { Ok(()) } else { Err(format!("{target} is not in the identity")) }
    };
    eventually("a join is noted that nobody can grant", || noted(&setup.cluster.nodes[3]));
    setup.cluster.node(4).kill();
    noted(&setup.cluster.nodes[3]).expect("it was killed in the middle");
    setup.cluster.node(1).kill();
    (setup, id)
}

#[test]
fn an_interrupted_join_goes_on_with_whoever_has_the_cluster_by_now() {
    let (mut setup, id) = with_an_interrupted_join();
    // Whom it asked first is gone for good.
    for index in [2, 3, 4] {
        setup.start(index);
    }
    eventually("the fourth has joined", || {
        let node = &setup.cluster.nodes[3];
        node.ready()?;
        let status = node.status()?;
        if status["cluster_id"] == id.as_str() { Ok(()) } else { Err(format!("{status}")) }
    });
}

#[test]
fn a_node_whose_interrupted_join_is_refused_looks_for_others() {
    let (mut setup, id) = with_an_interrupted_join();
    // Where it asked first there is another cluster now.
    setup.wipe(1);
    set(setup.cluster.node(1), &[("CLUSTER_SIZE", "1")]);
    setup.start(1);
    setup.start(4);
    setup.cluster.wait_formed(2);
    assert_ne!(setup.cluster_id(), id);
}

#[test]
fn two_nodes_of_one_name_found_nothing_and_say_so() {
    let mut setup = Setup::new(Way::Dns, 3).expect("a name server works everywhere");
    let (name, second) = (setup.cluster.node(1).name.clone(), setup.cluster.node(2).name.clone());
    set(setup.cluster.node(2), &[("NODE_NAME", &name)]);
    for index in 1..=3 {
        setup.start(index);
    }
    for index in [1, 2] {
        setup.waits(index, &format!("is called {name} too: give each node a NODE_NAME of its own"));
    }
    setup.waits(3, "2 of 3 are there");
    // Corrected, they go on.
    setup.wipe(2);
    set(setup.cluster.node(2), &[("NODE_NAME", &second)]);
    setup.start(2);
    setup.cluster.wait_formed(3);
    setup.cluster_id();
}

#[test]
fn two_nodes_of_one_index_found_nothing_and_say_so() {
    let mut setup = Setup::new(Way::Dns, 3).expect("a name server works everywhere");
    for (index, wrong) in [(1, "1"), (2, "2"), (3, "2")] {
        set(setup.cluster.node(index), &[("NODE_INDEX", wrong)]);
        setup.start(index);
    }
    setup.waits(1, "both have NODE_INDEX 2: give each node another one, 1..=3");
    setup.cluster.node(3).kill();
    set(setup.cluster.node(3), &[("NODE_INDEX", "3")]);
    setup.start(3);
    setup.cluster.wait_formed(3);
    setup.cluster_id();
}

#[test]
fn nodes_with_different_plans_found_nothing_and_say_so() {
    let mut setup = Setup::new(Way::Dns, 3).expect("a name server works everywhere");
    set(setup.cluster.node(1), &[("CLUSTER_SIZE", "2")]);
    set(setup.cluster.node(2), &[("CLUSTER_SIZE", "2")]);
    set(setup.cluster.node(2), &[("NODE_INDEX", "2")]);
    for index in [1, 2] {
        setup.start(index);
    }
    setup.waits(1, "plans with other nodes");
    setup.cluster.node(2).kill();
    setup.cluster.node(2).env.remove("NODE_INDEX");
    setup.start(2);
    setup.cluster.wait_formed(2);
    setup.cluster_id();
}

#[test]
fn a_node_that_waits_says_what_for_and_joins_by_hand() {
    let mut setup = Setup::new(Way::Static, 3).expect("a list works everywhere");
    setup.start(1);
    setup.waits(1, "1 of 3 are there");
    let other = setup.cluster.add();
    for key in ["CLUSTER_DISCOVERY_TYPE", "CLUSTER_NODES"] {
        other.env.remove(key);
    }
    other.start();
    eventually("a node alone serves", || setup.cluster.nodes[3].ready());
    let target = format!("{}:{}", setup.cluster.nodes[3].name, super::port(&setup.cluster.nodes[3].raft));
    let joined = setup.cluster.nodes[0].join(&target, false);
    assert_eq!(joined.status, 200, "{joined:?}");
    setup.cluster.wait_formed(2);
    // Who starts now finds it there.
    for index in [2, 3] {
        setup.start(index);
    }
    setup.cluster.wait_formed(4);
    setup.cluster_id();
    let health = request(&setup.cluster.nodes[0].http, &get("/health/ready")).expect("an answer");
    assert_eq!(health.status, 200, "{health:?}");
}

#[test]
fn a_node_that_left_draws_nobody_into_its_own_cluster() {
    let mut setup = Setup::new(Way::Static, 4).expect("a list works everywhere");
    for index in 1..=4 {
        setup.cluster.node(index).start();
    }
    setup.cluster.wait_formed(4);
    let id = setup.cluster_id();
    let leaver = setup.cluster.nodes[0].http.clone();
    let left = request(&leaver, &json("POST", "/api/cluster/leave", &serde_json::json!({}))).expect("an answer");
    assert_eq!(left.status, 200, "{left:?}");
    let own = eventually("it has a cluster of its own", || {
        let status = setup.cluster.nodes[0].status()?;
        match status["cluster_id"].as_str() {
            Some(own) if own != id => Ok(own.to_owned()),
            _ => Err(format!("{status}")),
        }
    });
    setup.wipe(3);
    setup.start(3);
    eventually("the wiped node finds the cluster of the others", || {
        let status = setup.cluster.nodes[2].status()?;
        assert_ne!(status["cluster_id"], own.as_str(), "it joined the node that left");
        if status["cluster_id"] == id.as_str() { Ok(()) } else { Err(format!("{status}")) }
    });
}
