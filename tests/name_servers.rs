//! Nodes whose hosts are names, and name servers that are slow, dead, or gone. Each node runs in a mount namespace with an
//! `/etc/resolv.conf` of the test's, which takes root.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{
    discovery::dns_server::{DnsServer, Record, address_record, address_record_v6},
    harness::{Cluster, Node, eventually, get, put, request, skipped},
};

/// The port that resolvers ask.
const DNS_PORT: u16 = 53;

/// A mount namespace in which name servers at these addresses are configured.
struct Resolver {
    /// Holds the namespace, and ends with its stdin.
    holder: Child,
    /// The name servers' addresses, in order.
    servers: Vec<SocketAddr>,
    _dir: tempfile::TempDir,
}

impl Resolver {
    /// With `count` name servers, none of them started; None, with the reason printed, where this machine cannot.
    fn new(count: u8) -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            skipped("only root can give nodes another /etc/resolv.conf");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Addresses that no other run of the tests uses at the same time.
        let mut id = [0; 2];
        let made = dir.path().to_string_lossy().bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
        id.copy_from_slice(&made.to_be_bytes()[2..]);
        let servers: Vec<SocketAddr> =
            (0..count).map(|n| (Ipv4Addr::new(127, 64 | (id[0] >> 2), id[1], 10 + n), DNS_PORT).into()).collect();
        let file = dir.path().join("resolv.conf");
        let lines: String = servers.iter().map(|server| format!("nameserver {}\n", server.ip())).collect();
        fs::write(&file, lines).expect("a file");
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c"]);
        holder.arg("mount --bind \"$0\" /etc/resolv.conf && echo mounted && exec cat").arg(&file);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare runs");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut said).expect("text");
        let this = Self { holder, servers, _dir: dir };
        if said != "mounted\n" {
            skipped("nothing can be mounted over /etc/resolv.conf");
            return None;
        }
        Some(this)
    }

    /// Three nodes with names as hosts, which see this resolver; none of them started.
    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::empty(&[("CLUSTER_DISCOVERY_TYPE", "static"), ("EPMD_PORT", "0")]);
        for _ in 0..3 {
            let node = cluster.add();
            node.name = format!("hex_hub{}@{}", node.index, host(node.index));
            node.env.insert("NODE_NAME".into(), node.name.clone());
            node.mounts_of = Some(self.holder.id());
        }
        let named = |node: &Node| format!("{}:{}", node.name, raft_port(node));
        let list = cluster.nodes.iter().map(named).collect::<Vec<_>>().join(",");
        for node in &mut cluster.nodes {
            node.env.insert("CLUSTER_NODES".into(), list.clone());
            node.env.insert("CLUSTER_SIZE".into(), "3".into());
            node.env.insert("NODE_INDEX".into(), node.index.to_string());
        }
        cluster
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        if let Err(e) = self.holder.wait() {
            eprintln!("what holds a namespace was not waited for: {e}");
        }
    }
}

fn host(index: usize) -> String {
    format!("host{index}.test")
}

fn raft_port(node: &Node) -> u16 {
    node.raft.rsplit(':').next().and_then(|port| port.parse().ok()).expect("host:port")
}

fn records() -> Vec<Record> {
    (1..=3).map(|index| address_record(&host(index), Ipv4Addr::LOCALHOST)).collect()
}

fn write(node: &Node, key: &str) {
    eventually("a write is acknowledged", || {
        let answer = request(&node.http, &put(&format!("/api/kv/{key}"), "x"))?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

/// A name server that is there and never answers.
fn silent(server: SocketAddr) -> UdpSocket {
    let bound = || UdpSocket::bind(server).map_err(|e| e.to_string());
    eventually("the port is free: a server that was there has ended", bound)
}

#[test]
fn a_dead_first_name_server_does_not_stop_formation() {
    let Some(resolver) = Resolver::new(2) else { return };
    let _dead = silent(resolver.servers[0]);
    let _good = DnsServer::start_at(resolver.servers[1], &records());
    let mut cluster = resolver.cluster();
    for node in &mut cluster.nodes {
        node.start();
    }
    // Each first look-up waits for the dead one, which is said.
    cluster.wait_formed(3);
    write(&cluster.nodes[0], "k");
    for node in &cluster.nodes {
        let logged = node.logged();
        assert!(logged.contains("see that every name server of /etc/resolv.conf answers"), "{logged}");
    }
}

#[test]
fn without_any_name_server_writes_and_failover_go_on() {
    let Some(resolver) = Resolver::new(1) else { return };
    let good = DnsServer::start_at(resolver.servers[0], &records());
    let mut cluster = resolver.cluster();
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_formed(3);
    drop(good);
    let _gone = silent(resolver.servers[0]);
    let old = cluster.leader();
    write(&cluster.nodes[old - 1], "before");
    cluster.node(old).kill();
    let new = eventually("another node leads", || {
        let left = cluster.nodes.iter().find(|node| node.index != old).expect("two are left");
        let leader = left.status()?["leader"].as_str().map(str::to_owned).ok_or("no leader")?;
        let found = cluster.nodes.iter().find(|node| node.name == leader && node.index != old);
        found.map(|node| node.index).ok_or(leader)
    });
    write(&cluster.nodes[new - 1], "after");
    let read = request(&cluster.nodes[new - 1].http, &get("/api/kv/before")).expect("an answer");
    assert_eq!(read.status, 200, "{read:?}");
    // A node that starts now can look up no name, and is found by the others.
    cluster.node(old).start();
    eventually("the restarted node is ready", || {
        let ready = request(&cluster.nodes[old - 1].http, &get("/health/ready"))?;
        if ready.status == 200 { Ok(()) } else { Err(ready.text()) }
    });
    write(&cluster.nodes[old - 1], "restarted");
}

/// A listening port whose queue of connections is full: attempts to connect are dropped, as behind a firewall.
struct Dropping {
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl Dropping {
    fn at(address: SocketAddr) -> Option<Self> {
        let listener = Socket::new(Domain::IPV6, Type::STREAM, None).ok()?;
        listener.set_only_v6(true).ok()?;
        listener.bind(&address.into()).ok()?;
        listener.listen(0).ok()?;
        let mut queued = Vec::new();
        // Until one waits: then the queue is full.
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
            assert!(queued.len() < 64, "the queue has no end");
        }
        Some(Self { _listener: listener, _queued: queued })
    }
}

#[test]
fn a_family_that_is_dropped_beside_a_working_one_does_not_matter() {
    let Some(resolver) = Resolver::new(1) else { return };
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        skipped("no IPv6 on the loopback interface");
        return;
    }
    let mut both = records();
    both.extend((1..=3).map(|index| address_record_v6(&host(index), Ipv6Addr::LOCALHOST)));
    let _good = DnsServer::start_at(resolver.servers[0], &both);
    let mut cluster = resolver.cluster();
    let dropping: Vec<Option<Dropping>> =
        cluster.nodes.iter().map(|node| Dropping::at((Ipv6Addr::LOCALHOST, raft_port(node)).into())).collect();
    assert!(dropping.iter().all(Option::is_some), "the ports are free for IPv6, too");
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_formed(3);
    write(&cluster.nodes[2], "k");
}
