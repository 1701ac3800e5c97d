//! `/api/cluster/events`: every node tells what happens to the cluster.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use crate::harness::{Cluster, Event, Events, Killed, PATIENCE, binary, get, json, request};

fn follow(cluster: &Cluster, index: usize) -> Events {
    Events::begin(&cluster.nodes[index - 1].http, "/api/cluster/events", None)
}

/// The next event that fits; panics, with what came instead, when the stream ends or is silent for too long.
fn until(events: &mut Events, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
    let mut passed = Vec::new();
    loop {
        match events.next() {
            Ok(Some(event)) if fits(&event) => return event,
            Ok(Some(event)) => passed.push(event),
            other => panic!("{what}: {other:?} after {passed:#?}"),
        }
    }
}

fn member<'a>(event: &'a Event, name: &str) -> Option<&'a Value> {
    event.data["members"].as_array()?.iter().find(|m| m["name"] == name)
}

fn has_role(event: &Event, name: &str, role: &str) -> bool {
    member(event, name).is_some_and(|m| m["role"] == role)
}

#[test]
fn every_node_tells_that_a_node_is_down_and_up_and_who_leads() {
    let mut cluster = Cluster::start(4);
    let leader = cluster.leader();
    let others: Vec<usize> = (1..=4).filter(|index| *index != leader).collect();
    let mut streams: Vec<Events> = others.iter().map(|index| follow(&cluster, *index)).collect();
    for (index, events) in others.iter().zip(&mut streams) {
        let state = events.must();
        assert_eq!(
            (state.name.as_str(), &state.data["node"]),
            ("state", &cluster.nodes[index - 1].name.as_str().into())
        );
        assert_eq!(state.data["members"].as_array().map(Vec::len), Some(4), "{state:?}");
        assert!(state.data["cluster_id"].as_str().is_some_and(|id| id.len() == 16), "{state:?}");
    }
    let name = cluster.node(leader).name.clone();
    cluster.node(leader).kill();
    let about = |event: &Event, kind: &str| event.name == kind && event.data["member"] == name.as_str();
    for events in &mut streams {
        // In whichever order.
        let (mut down, mut elected, mut id) = (false, false, None);
        while !(down && elected) {
            let event = until(events, "the leader is down", |_| true);
            assert!(event.id > id, "ids grow: {event:?} after {id:?}");
            id = event.id;
            down |= about(&event, "node_down");
            elected |=
                event.name == "leader" && event.data["leader"].is_string() && event.data["leader"] != name.as_str();
        }
    }
    // Whoever comes now is told so at once.
    let state = until(&mut follow(&cluster, others[0]), "the state", |e| e.name == "state");
    assert_eq!(member(&state, &name).expect("it is a member")["state"], "down");
    cluster.node(leader).start();
    for events in &mut streams {
        until(events, "it is up again", |event| about(event, "node_up"));
    }
    let log = cluster.node(others[0]).logged();
    assert!(log.contains("member does not answer") && log.contains("member is up again"), "{log}");
}

#[test]
fn joins_leaves_and_the_replication_factor_are_told() {
    let mut cluster = Cluster::start(1);
    let seed = cluster.node(1).raft.clone();
    let mut first = follow(&cluster, 1);
    assert_eq!(first.must().name, "state");
    let joined_cluster = cluster.node(1).status().expect("a status");
    cluster.add_running();
    let mut second = follow(&cluster, 2);
    let alone = second.must();
    assert_eq!(alone.data["members"].as_array().map(Vec::len), Some(1), "{alone:?}");
    let name = cluster.node(2).name.clone();
    assert_eq!(cluster.node(2).join(&format!("hex_hub1@{seed}"), false).status, 200);
    let joined = until(&mut first, "it joined", |e| e.name == "membership" && e.data["joined"][0] == name.as_str());
    assert!(member(&joined, &name).is_some());
    // Both may have been seen at once.
    if !has_role(&joined, &name, "voter") {
        until(&mut first, "it votes", |e| e.name == "membership" && has_role(e, &name, "voter"));
    }
    // The node that joined is in another cluster now: it tells all of it anew.
    let anew = until(&mut second, "the state of its new cluster", |e| {
        e.name == "state" && e.data["cluster_id"] == joined_cluster["cluster_id"]
    });
    assert_eq!(anew.data["node"], name.as_str());
    let body = serde_json::json!({"value": 1});
    let answer =
        request(&cluster.node(1).http, &json("PUT", "/api/cluster/replication-factor", &body)).expect("an answer");
    assert_eq!(answer.status, 200);
    let changed = until(&mut first, "the replication factor", |e| e.name == "replication_factor");
    assert_eq!((&changed.data["from"], &changed.data["to"]), (&3.into(), &1.into()));
    until(&mut second, "the same there", |e| e.name == "replication_factor");
    let body = serde_json::json!({});
    let answer = request(&cluster.node(2).http, &json("POST", "/api/cluster/leave", &body)).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    until(&mut first, "it left", |e| e.name == "membership" && e.data["left"][0] == name.as_str());
}

#[test]
fn a_replacement_is_told_by_every_node_and_its_steps_by_the_leader() {
    let mut cluster = Cluster::start_with(4, &[("REPLACE_AFTER", "2s")]);
    let leader = cluster.leader();
    let state = until(&mut follow(&cluster, leader), "the state", |e| e.name == "state");
    let index_of = |role: &str, but: usize| {
        let is = |node: &&crate::harness::Node| node.index != but && has_role(&state, &node.name, role);
        cluster.nodes.iter().find(is).expect("a member of that role").index
    };
    let (dead, standby) = (index_of("voter", leader), index_of("standby", leader));
    let (dead_name, standby_name) = (cluster.nodes[dead - 1].name.clone(), cluster.nodes[standby - 1].name.clone());
    let living: Vec<usize> = (1..=4).filter(|index| *index != dead).collect();
    let mut streams: Vec<(usize, Events)> = living.iter().map(|index| (*index, follow(&cluster, *index))).collect();
    cluster.node(dead).kill();
    for (index, events) in &mut streams {
        let (mut down, mut seated, mut unseated, mut decided) = (false, false, false, *index != leader);
        while !(down && seated && unseated && decided) {
            let event = until(events, "a standby takes the seat", |_| true);
            down |= event.name == "node_down" && event.data["member"] == dead_name.as_str();
            let membership = event.name == "membership";
            seated |= membership && has_role(&event, &standby_name, "voter");
            unseated |= membership && has_role(&event, &dead_name, "standby");
            decided |= event.name == "step"
                && event.data["step"] == format!("give {standby_name} the data")
                && event.data.get("refused").is_none();
            assert!(event.name != "step" || *index == leader, "node {index} does not lead: {event:?}");
        }
    }
}

#[test]
fn a_stream_ends_with_a_word_when_its_node_stops() {
    let mut cluster = Cluster::start(1);
    let mut events = follow(&cluster, 1);
    assert_eq!(events.must().name, "state");
    assert_eq!(cluster.node(1).stop(), Some(0));
    let closed = until(&mut events, "the end", |e| e.name == "closed");
    assert!(closed.data["reason"].as_str().is_some_and(|why| why.contains("stops")), "{closed:?}");
    assert_eq!(events.next().expect("an end in order"), None);
}

#[test]
fn the_command_line_follows_the_events_and_goes_on_through_another_node() {
    let mut cluster = Cluster::start(3);
    let endpoints: Vec<String> = cluster.nodes.iter().map(|node| node.http.clone()).collect();
    let client = Command::new(binary("client"))
        .args(["--endpoints", &endpoints.join(","), "events", "--output", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the client starts");
    let mut client = Killed(client);
    let stdout = client.stdout.take().expect("piped");
    let (told, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Until the test has seen enough.
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| told.send(line).ok())
    });
    let next =
        || -> Value { serde_json::from_str(&lines.recv_timeout(PATIENCE).expect("a line in time")).expect("JSON") };
    let first = next();
    assert_eq!(first["event"], "state");
    let asked = cluster.nodes.iter().find(|node| first["node"] == node.name.as_str()).expect("one of ours").index;
    let name = cluster.node(asked).name.clone();
    cluster.node(asked).kill();
    let anew = loop {
        let event = next();
        if event["event"] == "state" {
            break event;
        }
    };
    assert_ne!(anew["node"], first["node"], "another node tells now");
    let members = anew["members"].as_array().expect("members");
    // Whoever tells now may have noticed before it was asked.
    if !members.iter().any(|m| m["name"] == name.as_str() && m["state"] == "down") {
        while next()["event"] != "node_down" {}
    }
    cluster.node(asked).start();
    loop {
        let event = next();
        if event["event"] == "node_up" && event["member"] == name.as_str() {
            break;
        }
    }
    assert_eq!(client.try_wait().expect("a child can be waited for"), None, "it runs until it is ended");
}

#[test]
fn one_reader_too_many_takes_the_place_of_the_oldest() {
    const READERS_MAX: usize = 1024;
    // Each reader is a descriptor of this process.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let cluster = Cluster::start(1);
    let state = |events: &mut Events| until(events, "the state comes first", |event| event.name == "state");
    let mut all: Vec<Events> = (0..READERS_MAX + 2).map(|_| follow(&cluster, 1)).collect();
    for newest in &mut all[READERS_MAX..] {
        assert_eq!(newest.status, 200);
        state(newest);
    }
    for oldest in &mut all[..2] {
        state(oldest);
        let closed = until(oldest, "it learns why it ends", |event| event.name == "closed");
        let reason = closed.data["reason"].as_str().expect("a reason");
        assert!(reason.contains("connect again"), "{reason}");
        assert!(matches!(oldest.next(), Ok(None)), "its stream ends");
    }
    let metrics = request(&cluster.nodes[0].http, &get("/metrics")).expect("an answer").text();
    let readers = metrics.lines().find_map(|line| line.strip_prefix("hexkv_event_readers "));
    assert_eq!(readers.and_then(|number| number.parse().ok()), Some(READERS_MAX as f64));
}
