//! Records as they are in practice: addresses only, changing, missing, and servers that say nothing.

use std::net::{Ipv4Addr, UdpSocket};

use super::{
    HOSTNAME, Setup, Way, discovery,
    dns_server::{DnsServer, address_record},
    service_records, set,
};
use crate::harness::{Cluster, client, eventually, free_ports, said};

#[test]
fn addresses_alone_are_enough_where_all_nodes_have_one_raft_port() {
    let addresses: Vec<Ipv4Addr> = (1..=3).map(|last| Ipv4Addr::new(127, 0, 0, last)).collect();
    let records: Vec<_> = addresses.iter().map(|address| address_record(HOSTNAME, *address)).collect();
    let dns = DnsServer::start(&records);
    let server = dns.address.to_string();
    let mut cluster = Cluster::empty(&[("CLUSTER_DISCOVERY_TYPE", "dns"), ("EPMD_PORT", "0"), ("CLUSTER_SIZE", "3")]);
    let ports = free_ports(2);
    for address in addresses {
        let node = cluster.add();
        node.name = format!("node@{address}");
        (node.http, node.raft) = (format!("{address}:{}", ports[0]), format!("{address}:{}", ports[1]));
        let (name, http, raft, host) =
            (node.name.clone(), ports[0].to_string(), ports[1].to_string(), address.to_string());
        set(node, &[("NODE_NAME", &name), ("BIND", &host), ("PORT", &http), ("RAFT_PORT", &raft)]);
        set(node, &super::dns_settings(&server));
        node.start();
    }
    cluster.wait_formed(3);
    let told = said(&client(&cluster.nodes[0].http, &["doctor"]));
    assert!(!told.contains("not registered"), "nobody misses a port mapper that is switched off: {told}");
    Setup { cluster, dns: Some(dns) }.cluster_id();
}

#[test]
fn records_are_looked_at_again_and_a_name_that_does_not_exist_is_named() {
    let mut setup = Setup::new(Way::Dns, 3).expect("a name server works everywhere");
    let dns = setup.dns.as_ref().expect("it serves");
    dns.set(&[]);
    for index in 1..=3 {
        setup.start(index);
    }
    for index in 1..=3 {
        setup.waits(index, "the DNS name nodes.test does not exist: correct CLUSTER_DNS_HOSTNAME");
        assert!(setup.cluster.nodes[index - 1].logged().contains("nodes.test does not exist"));
    }
    let dns = setup.dns.as_ref().expect("it serves");
    dns.set(&service_records(&setup.cluster, 1));
    eventually("the first record is seen", || {
        let said = discovery(&setup.cluster.nodes[0])?;
        if said == "dns: 1 nodes at nodes.test" { Ok(()) } else { Err(said) }
    });
    setup.waits(2, "2 of 3 are there");
    let dns = setup.dns.as_ref().expect("it serves");
    dns.set(&service_records(&setup.cluster, 3));
    setup.cluster.wait_formed(3);
    let id = setup.cluster_id();
    // A running cluster needs no records; whoever comes back does.
    setup.dns.as_ref().expect("it serves").set(&[]);
    eventually("the missing name is seen", || {
        let said = discovery(&setup.cluster.nodes[0])?;
        if said.contains("does not exist") { Ok(()) } else { Err(said) }
    });
    super::write(&setup.cluster.nodes[1], "k", "v");
    assert_eq!(setup.cluster_id(), id);
}

#[test]
fn a_name_server_that_says_nothing_is_named_and_asked_again() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address").to_string();
    let mut setup = Setup::new(Way::Dns, 1).expect("a name server works everywhere");
    set(setup.cluster.node(1), &[("CLUSTER_DNS_SERVER", &address), ("CLUSTER_SIZE", "3")]);
    setup.start(1);
    setup.waits(1, &format!("the name server {address} does not answer for nodes.test"));
    let mut question = [0; 512];
    for _ in 0..4 {
        silent.set_read_timeout(Some(crate::harness::PATIENCE)).expect("a timeout");
        silent.recv(&mut question).expect("it is asked again");
    }
}
