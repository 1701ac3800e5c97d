//! A voter that is gone for good is replaced by a standby, without anyone's help.

use crate::{
    harness::{
        Cluster, eventually, get, json,
        load::{Load, addresses, progress},
        put, request,
    },
    metrics::Page,
};

/// Silence after which the tests give a voter up.
const REPLACE_AFTER: (&str, &str) = ("REPLACE_AFTER", "2s");

/// Silence after which a leader in touch with a majority would have given a voter up, in seconds: [`REPLACE_AFTER`] counts from
/// the first look that misses the voter, 1.5 s after it was heard, and looks may be late.
const GIVEN_UP_AFTER_SECONDS: f64 = 6.0;

/// The role of each member, by its index, as node `asked` says.
fn roles(cluster: &Cluster, asked: usize) -> Result<Vec<(usize, String)>, String> {
    let status = cluster.nodes[asked - 1].status()?;
    let members = status["members"].as_array().ok_or("no members")?;
    let index = |name: &str| cluster.nodes.iter().position(|node| node.name == name).map(|at| at + 1);
    members
        .iter()
        .map(|m| {
            let name = m["name"].as_str().unwrap_or_default();
            let index = index(name).ok_or_else(|| format!("{name} is none of ours"))?;
            Ok((index, m["role"].as_str().unwrap_or_default().to_string()))
        })
        .collect()
}

fn role(cluster: &Cluster, asked: usize, of: usize) -> Result<String, String> {
    let roles = roles(cluster, asked)?;
    roles.into_iter().find(|(index, _)| *index == of).map(|(_, role)| role).ok_or_else(|| format!("no node {of}"))
}

fn wait_role(cluster: &Cluster, asked: usize, of: usize, wanted: &str) {
    eventually(&format!("node {of} is a {wanted}"), || match role(cluster, asked, of)? {
        role if role == wanted => Ok(()),
        role => Err(format!("it is a {role}")),
    });
}

/// The leader, another voter, the third one, and the standby, of four.
fn cast(cluster: &mut Cluster) -> (usize, usize, usize, usize) {
    let leader = cluster.leader();
    let roles = roles(cluster, leader).expect("a status");
    let standby = roles.iter().find(|(_, role)| role == "standby").expect("three of four vote").0;
    let others: Vec<usize> = (1..=4).filter(|i| *i != leader && *i != standby).collect();
    (leader, others[0], others[1], standby)
}

fn write(cluster: &mut Cluster, through: usize, key: &str) {
    let address = cluster.node(through).http.clone();
    eventually("a write is acknowledged", || match request(&address, &put(&format!("/api/kv/{key}"), key))? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
}

fn reads(cluster: &mut Cluster, through: usize, key: &str) {
    let read = request(&cluster.node(through).http.clone(), &get(&format!("/api/kv/{key}"))).expect("an answer");
    assert_eq!((read.status, read.text()), (200, key.to_string()), "through node {through}");
}

#[test]
fn a_standby_takes_the_seat_of_a_dead_voter_and_the_next_loss_is_survived_too() {
    let mut cluster = Cluster::start_with(4, &[REPLACE_AFTER]);
    let (leader, dead, other, standby) = cast(&mut cluster);
    write(&mut cluster, leader, "before");
    cluster.node(dead).kill();
    wait_role(&cluster, leader, standby, "voter");
    wait_role(&cluster, leader, dead, "standby");
    let why = cluster.nodes[standby - 1].json("/api/cluster/explain").expect("any node can say why");
    let steps: Vec<&str> = why["steps"].as_array().expect("steps").iter().filter_map(|s| s["step"].as_str()).collect();
    let standby_name = cluster.node(standby).name.clone();
    let gave = format!("give {standby_name} the data");
    assert!(steps.contains(&gave.as_str()), "{gave}: {why}");
    write(&mut cluster, standby, "between");
    // Two of the first three voters are gone now, and what they had is still there.
    cluster.node(other).kill();
    write(&mut cluster, leader, "after");
    for key in ["before", "between", "after"] {
        reads(&mut cluster, standby, key);
    }
    // The first one comes back as what it is now, and is given the seat of the second.
    cluster.node(dead).start();
    wait_role(&cluster, leader, dead, "voter");
    wait_role(&cluster, leader, other, "standby");
    cluster.node(other).start();
    eventually("all are up", || cluster.nodes[other - 1].ready());
    cluster.wait_same_hash(&[leader, dead, standby]);
    reads(&mut cluster, other, "after");
}

/// What node `asked` says of the membership.
fn remarks(cluster: &Cluster, asked: usize) -> Result<String, String> {
    let answer = request(&cluster.nodes[asked - 1].http, &get("/api/cluster/explain"))?;
    if answer.status == 200 { Ok(answer.json()["remarks"].to_string()) } else { Err(format!("{answer:?}")) }
}

#[test]
fn nobody_is_replaced_without_a_standby() {
    let mut cluster = Cluster::start_with(4, &[REPLACE_AFTER]);
    let (leader, first, second, standby) = cast(&mut cluster);
    write(&mut cluster, leader, "before");
    cluster.node(standby).kill();
    cluster.node(first).kill();
    let given_up = "no standby that answers could take its seat";
    eventually("the silent voter was given up", || match remarks(&cluster, leader)? {
        said if said.contains(&cluster.nodes[first - 1].name) && said.contains(given_up) => Ok(()),
        said => Err(said),
    });
    for voter in [leader, first, second] {
        assert_eq!(role(&cluster, leader, voter).expect("a status"), "voter", "node {voter}");
    }
    cluster.node(standby).start();
    wait_role(&cluster, leader, standby, "voter");
    wait_role(&cluster, leader, first, "standby");
    cluster.node(first).start();
    write(&mut cluster, first, "after");
    cluster.wait_same_hash(&[leader, second, standby]);
}

#[test]
fn nobody_is_replaced_without_a_majority() {
    let mut cluster = Cluster::start_with(4, &[REPLACE_AFTER]);
    let (leader, first, second, standby) = cast(&mut cluster);
    write(&mut cluster, leader, "before");
    let steps = |cluster: &Cluster| cluster.nodes[leader - 1].logged().matches("membership step").count();
    let before = steps(&cluster);
    assert!(before > 0, "steps are logged");
    // One of three voters is left, and a standby that could take a seat.
    cluster.node(first).kill();
    cluster.node(second).kill();
    eventually("the leader says that it is alone, and both were silent for long enough", || {
        let page = Page::of(&cluster.nodes[leader - 1]);
        for lost in [first, second] {
            let name = &cluster.nodes[lost - 1].name;
            let silent = page.must("hexkv_peer_last_contact_seconds", &[("peer", name)]);
            if silent < GIVEN_UP_AFTER_SECONDS {
                return Err(format!("{name} has been silent for {silent} s"));
            }
        }
        match remarks(&cluster, leader)? {
            said if said.contains("without a majority nothing is changed") => Ok(()),
            said => Err(said),
        }
    });
    for (node, wanted) in [(leader, "voter"), (first, "voter"), (second, "voter"), (standby, "standby")] {
        assert_eq!(role(&cluster, leader, node).expect("a status"), wanted, "node {node}");
    }
    assert_eq!(steps(&cluster), before, "no step was tried");
    // What it could not do alone it does with the first that is back.
    cluster.node(first).start();
    wait_role(&cluster, first, standby, "voter");
    wait_role(&cluster, first, second, "standby");
    cluster.node(second).start();
    write(&mut cluster, second, "after");
    cluster.wait_same_hash(&[leader, first, standby]);
}

#[test]
fn a_leader_that_was_paused_for_longer_replaces_nobody_when_it_goes_on() {
    let mut cluster = Cluster::start_with(4, &[REPLACE_AFTER]);
    let (paused, first, second, standby) = cast(&mut cluster);
    write(&mut cluster, paused, "before");
    cluster.node(paused).signal(rustix::process::Signal::STOP);
    wait_role(&cluster, first, standby, "voter");
    wait_role(&cluster, first, paused, "standby");
    cluster.node(paused).signal(rustix::process::Signal::CONT);
    eventually("the paused one knows its place", || match role(&cluster, paused, paused)?.as_str() {
        "standby" => Ok(()),
        role => Err(format!("it takes itself for a {role}")),
    });
    write(&mut cluster, paused, "after");
    for voter in [first, second, standby] {
        assert_eq!(role(&cluster, first, voter).expect("a status"), "voter", "node {voter} kept its seat");
    }
    cluster.wait_same_hash(&[first, second, standby]);
}

/// Waits until all nodes see `count` voters, and nobody on the way to be one.
fn wait_voters(cluster: &Cluster, count: usize) {
    eventually("the voters follow the replication factor", || {
        for node in &cluster.nodes {
            let status = node.status()?;
            let members = status["members"].as_array().ok_or("no members")?;
            let of = |role: &str| members.iter().filter(|m| m["role"] == role).count();
            if (of("voter"), of("learner")) != (count, 0) {
                return Err(format!("{} sees {status}", node.name));
            }
        }
        Ok(())
    });
}

#[test]
fn the_replication_factor_goes_up_and_down_under_load() {
    let mut cluster = Cluster::start(5);
    let load = Load::start(&addresses(&cluster), 4, 64);
    for factor in [5, 3, 1, 3, 5, 3] {
        let address = cluster.node(1 + factor % 5).http.clone();
        let set =
            request(&address, &json("PUT", "/api/cluster/replication-factor", &serde_json::json!({"value": factor})))
                .expect("an answer");
        assert_eq!(set.status, 200, "{set:?}");
        wait_voters(&cluster, factor);
        progress(&cluster, 1, 30);
    }
    let acknowledged = load.check(&cluster.node(2).http.clone());
    assert!(acknowledged > 150, "the load ran: {acknowledged}");
    cluster.wait_holders_agree(3);
    for bad in [0, 100] {
        let set = json("PUT", "/api/cluster/replication-factor", &serde_json::json!({"value": bad}));
        let refused = request(&cluster.node(1).http, &set).expect("an answer");
        assert_eq!((refused.status, refused.problem()), (400, "invalid_argument".into()));
        assert!(refused.text().contains("1..=") || refused.text().contains("1 to"), "the range is named: {refused:?}");
    }
    wait_voters(&cluster, 3);
}
