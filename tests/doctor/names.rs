//! Names that lead nowhere or elsewhere, and port mappers that are none.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use rustix::process::Signal;
use serde_json::Value;

use super::{doctor, finding, until_found};
use crate::harness::{Cluster, Node, eventually, free_ports};

/// Of nodes that are to know each other.
const COOKIE: &str = "of-the-names-test";

/// Asks until the doctor says nothing of `check` about any node.
fn until_silent(endpoints: &[String], check: &str) {
    eventually(&format!("the doctor says nothing of {check}"), || {
        let (_, report) = doctor(endpoints, &[]);
        finding(&report, check, "").map_or(Ok(()), |found| Err(found.to_string()))
    });
}

/// A cluster of two; the second node has the `name`, and listens on 127.0.0.1 like all others.
fn with_a_node_named(name: &str, epmd_port: u16) -> Cluster {
    let mut cluster = Cluster::empty(&[("COOKIE", COOKIE), ("EPMD_PORT", &epmd_port.to_string())]);
    let first = format!("hex_hub1@{}", cluster.add_running().raft);
    let second = cluster.add();
    second.name = name.to_owned();
    set(second, &[("NODE_NAME", name), ("BIND", "127.0.0.1"), ("ADVERTISE", "127.0.0.1")]);
    // It is not registered, and finds the first one by its list.
    set(second, &[("EPMD_PORT", "0"), ("CLUSTER_NODES", &first)]);
    second.start();
    eventually("it serves", || second.ready());
    assert_eq!(second.join(&first, false).status, 200);
    cluster
}

fn set(node: &mut Node, settings: &[(&str, &str)]) {
    node.env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
}

/// The first node starts again with this list.
fn restart_with_list(cluster: &mut Cluster, list: &str) {
    let node = cluster.node(1);
    node.stop();
    set(node, &[("CLUSTER_NODES", list)]);
    node.start();
}

/// The first node, as all that the doctor is told of.
fn first(cluster: &Cluster) -> [String; 1] {
    [cluster.nodes[0].http.clone()]
}

#[test]
fn names_that_lead_nowhere_are_found() {
    let mut cluster = Cluster::empty(&[("EPMD_PORT", "0")]);
    let first = format!("hex_hub1@{}", cluster.add_running().raft);
    assert_eq!(cluster.add_running().join(&first, false).status, 200);
    let (_, found) = until_found(&[cluster.node(1).http.clone()], &[], "names", "leads nowhere");
    assert_eq!(found["severity"], "warning");
}

#[test]
fn a_name_that_leads_to_another_node_is_found() {
    const NAME: &str = "hex_hub2@127.0.0.2";
    for (cookie, says) in
        [(COOKIE, "another node answers there: hex_hub2@127.0.0.2"), ("another-one", "the cookies differ")]
    {
        let epmd_port = free_ports(1)[0];
        // A node of another cluster has the same name, and serves the port mapper of its address.
        let mut others = Cluster::empty(&[("COOKIE", cookie), ("EPMD_PORT", &epmd_port.to_string())]);
        let stranger = others.add();
        set(stranger, &[("NODE_NAME", NAME), ("BIND", "127.0.0.2")]);
        stranger.http = stranger.http.replace("127.0.0.1", "127.0.0.2");
        stranger.raft = stranger.raft.replace("127.0.0.1", "127.0.0.2");
        stranger.start();
        eventually("the stranger serves", || stranger.ready());
        let cluster = with_a_node_named(NAME, epmd_port);
        let leads = format!("the name {NAME} leads to {}, and it is at {}: ", stranger.raft, cluster.nodes[1].raft);
        let (code, found) = until_found(&first(&cluster), &[], "names", &leads);
        assert!(found["what"].as_str().is_some_and(|what| what.contains(says)), "{found}");
        assert_eq!((&found["severity"], &found["node"]), (&"warning".into(), &cluster.nodes[0].name.as_str().into()));
        assert_eq!(code, 0, "members reach each other: {found}");
    }
}

#[test]
fn a_list_that_leads_to_nobody_is_found() {
    let mut cluster = with_a_node_named("hex_hub2@127.0.0.2", 0);
    let wrong = format!("127.0.0.2:{}", free_ports(1)[0]);
    restart_with_list(&mut cluster, &format!("hex_hub2@{wrong}"));
    let (_, found) = until_found(&first(&cluster), &[], "names", &format!("leads to {wrong}, and it is at"));
    assert!(found["what"].as_str().is_some_and(|what| what.contains("refused")), "{found}");
}

#[test]
fn a_name_that_is_written_unlike_the_address_is_no_finding() {
    let mut cluster = with_a_node_named("hex_hub2@localhost", 0);
    let localhost = cluster.nodes[1].raft.replace("127.0.0.1", "localhost");
    restart_with_list(&mut cluster, &format!("hex_hub2@{localhost}"));
    until_silent(&first(&cluster), "names");
    let check = cluster.nodes[0].json("/api/cluster/check").expect("a check");
    assert_eq!((&check["peers"][0]["resolved"], &check["peers"][0]["elsewhere"]), (&localhost.into(), &Value::Null));
}

#[test]
fn what_took_the_port_mappers_port_is_found_until_it_is_gone() {
    let mut cluster = Cluster::empty(&[]);
    let epmd_port = cluster.add_running().env["EPMD_PORT"].clone();
    let ends = [cluster.add_running().http.clone()];
    until_silent(&ends, "names");
    // The first node served the port mapper. Before the second one notices that it is gone, an HTTP server has the port.
    cluster.node(2).signal(Signal::STOP);
    cluster.node(1).kill();
    let taker = cluster.add();
    taker.env.insert("EPMD_PORT".into(), "0".into());
    taker.env.insert("PORT".into(), epmd_port.clone());
    taker.http = format!("127.0.0.1:{epmd_port}");
    taker.start();
    eventually("the port is taken", || taker.ready());
    cluster.node(2).signal(Signal::CONT);
    let asked = format!("the port mapper does not lead to this node: asked the port mapper at 127.0.0.1:{epmd_port}");
    let (code, found) = until_found(&ends, &[], "names", &asked);
    assert_eq!((code, &found["severity"]), (0, &"warning".into()));
    cluster.node(3).kill();
    until_silent(&ends, "names");
}

/// Serves the port mapper's protocol on `port` of 127.0.0.1: grants every registration, and answers `told` whatever is asked.
fn foreign_mapper(port: u16, told: &'static [u8]) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let answer = move |mut stream: TcpStream| -> io::Result<()> {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut asked = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut asked)?;
        // ALIVE2_REQ is granted by ALIVE2_X_RESP, and lasts as long as its connection.
        if asked.first() == Some(&120) {
            stream.write_all(&[118, 0, 0, 0, 0, 1])?;
            return stream.read_exact(&mut [0]);
        }
        stream.write_all(if asked.first() == Some(&110) { &[0; 4] } else { told })
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A node that went away ends its connection only.
            thread::spawn(move || drop(answer(stream)));
        }
    });
    Ok(())
}

#[test]
fn a_port_mapper_that_forgets_a_name_or_leads_elsewhere_is_found() {
    // PORT2_RESP: no such name; port 4369 of a hidden node.
    const UNKNOWN: &[u8] = &[119, 1];
    const ANOTHER: &[u8] =
        &[119, 0, 0x11, 0x11, 72, 0, 0, 6, 0, 6, 0, 8, b'h', b'e', b'x', b'_', b'h', b'u', b'b', b'1', 0, 0];
    for (told, what) in
        [(UNKNOWN, "no node named hex_hub1 is registered"), (ANOTHER, "it says that hex_hub1 is at port 4369")]
    {
        let epmd_port = free_ports(1)[0];
        foreign_mapper(epmd_port, told).expect("the port is free");
        let mut cluster = Cluster::empty(&[("EPMD_PORT", &epmd_port.to_string())]);
        cluster.add_running();
        let (_, found) = until_found(&first(&cluster), &[], "names", what);
        assert_eq!(found["severity"], "warning");
    }
}
