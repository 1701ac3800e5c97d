//! Nodes find each other and form one cluster by themselves, in every way that there is, whatever happens meanwhile.

mod dns;
pub mod dns_server;
mod epmd;
mod formation;
mod gossip;
mod settings;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use dns_server::{DnsServer, address_record, service_record};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{Cluster, Node, eventually, free_ports, get, put, request};

/// The name of the nodes' records.
const HOSTNAME: &str = "nodes.test";

/// How nodes find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Epmd,
    Static,
    Dns,
    Gossip,
}

/// Nodes that are to find each other, none of them started.
struct Setup {
    cluster: Cluster,
    /// Serves the nodes' records.
    dns: Option<DnsServer>,
}

impl Setup {
    /// `size` nodes that find each other in this `way`; None, with the reason printed, where this machine cannot.
    fn new(way: Way, size: usize) -> Option<Self> {
        let common: &[(&str, &str)] = match way {
            Way::Epmd => &[],
            Way::Static => &[("CLUSTER_DISCOVERY_TYPE", "static"), ("EPMD_PORT", "0")],
            Way::Dns => &[("CLUSTER_DISCOVERY_TYPE", "dns"), ("EPMD_PORT", "0")],
            Way::Gossip => &[("CLUSTER_DISCOVERY_TYPE", "gossip"), ("EPMD_PORT", "0")],
        };
        if way == Way::Gossip && !multicast_works() {
            crate::harness::skipped("multicast does not work on this machine's loopback interface");
            return None;
        }
        let mut cluster = Cluster::empty(common);
        for _ in 0..size {
            cluster.add();
        }
        let named: Vec<String> =
            cluster.nodes.iter().map(|node| format!("{}:{}", node.name, port(&node.raft))).collect();
        let dns = (way == Way::Dns).then(|| DnsServer::start(&service_records(&cluster, size)));
        let group = format!("239.255.255.250:{}", free_ports(1)[0]);
        for node in &mut cluster.nodes {
            let index = node.index.to_string();
            match way {
                Way::Epmd => set(node, &[("NODE_INDEX", &index), ("CLUSTER_SIZE", &size.to_string())]),
                Way::Static => set(node, &[("CLUSTER_NODES", &named.join(","))]),
                Way::Dns => {
                    let server = dns.as_ref().expect("just started").address.to_string();
                    set(node, &dns_settings(&server));
                    set(node, &[("CLUSTER_SIZE", &size.to_string())]);
                }
                Way::Gossip => set(node, &[("CLUSTER_GOSSIP_ADDRESS", &group), ("CLUSTER_SIZE", &size.to_string())]),
            }
        }
        Some(Self { cluster, dns })
    }

    /// Starts node `index`, and waits until it answers: not until it has a cluster.
    fn start(&mut self, index: usize) {
        self.cluster.node(index).start();
        let node = &self.cluster.nodes[index - 1];
        eventually("the node answers", || live(node));
    }

    /// Kills node `index`, and takes its disk away.
    fn wipe(&mut self, index: usize) {
        self.cluster.node(index).kill();
        std::fs::remove_dir_all(&self.cluster.node(index).data).expect("its disk is lost");
    }

    /// The one cluster that all running nodes belong to.
    fn cluster_id(&mut self) -> String {
        let ids: Vec<Value> = self
            .cluster
            .nodes
            .iter()
            .filter(|node| node.pid().is_some())
            .map(|node| node.status().expect("a status")["cluster_id"].clone())
            .collect();
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
        ids[0].as_str().expect("a cluster").to_owned()
    }

    /// Waits until node `index` says, in its health, that it has no cluster and why; `part` is in the reason.
    fn waits(&self, index: usize, part: &str) {
        let node = &self.cluster.nodes[index - 1];
        eventually(&format!("node {index} says {part:?}"), || {
            let answer = request(&node.http, &get("/health/ready"))?;
            if answer.status == 503 && answer.problem() == "not_in_cluster" && answer.text().contains(part) {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            }
        });
        assert_eq!(node.status().expect("a status")["cluster_id"], Value::Null);
    }
}

fn dns_settings(server: &str) -> [(&str, &str); 3] {
    [("CLUSTER_DNS_HOSTNAME", HOSTNAME), ("CLUSTER_DNS_SERVER", server), ("CLUSTER_DNS_INTERVAL", "100ms")]
}

/// SRV records of the first `count` nodes, whose hosts are names too.
fn service_records(cluster: &Cluster, count: usize) -> Vec<dns_server::Record> {
    let records = cluster.nodes.iter().take(count).flat_map(|node| {
        let host = format!("host{}.test", node.index);
        [service_record(HOSTNAME, &host, port(&node.raft)), address_record(&host, Ipv4Addr::LOCALHOST)]
    });
    records.collect()
}

fn set(node: &mut Node, settings: &[(&str, &str)]) {
    node.env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("host:port")
}

fn live(node: &Node) -> Result<(), String> {
    let answer = request(&node.http, &get("/health/live"))?;
    if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
}

fn write(node: &Node, key: &str, value: &str) {
    let answer = request(&node.http, &put(&format!("/api/kv/{key}"), value.to_owned())).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn read(node: &Node, key: &str) -> String {
    let answer = request(&node.http, &get(&format!("/api/kv/{key}"))).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

/// What a node says of its discovery.
fn discovery(node: &Node) -> Result<String, String> {
    let health = node.json("/api/health")?;
    health["services"]["discovery"].as_str().map(str::to_owned).ok_or_else(|| health.to_string())
}

/// A socket in the multicast group of the loopback interface: it hears what nodes say, and speaks there.
fn in_group(group: SocketAddrV4) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
    socket.set_reuse_address(true).expect("shared");
    socket.bind(&SocketAddr::V4(group).into()).expect("bound to the group");
    socket.join_multicast_v4(group.ip(), &Ipv4Addr::LOCALHOST).expect("joined");
    socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).expect("the loopback interface");
    socket.set_multicast_loop_v4(true).expect("heard here, too");
    let socket: UdpSocket = socket.into();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a timeout");
    socket
}

fn multicast_works() -> bool {
    let group = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), free_ports(1)[0]);
    let tried = std::panic::catch_unwind(|| {
        let socket = in_group(group);
        let mut heard = [0; 16];
        socket.send_to(b"heard?", group).is_ok() && socket.recv(&mut heard).is_ok_and(|n| &heard[..n] == b"heard?")
    });
    tried.unwrap_or(false)
}
