//! Settings with which nodes cannot find each other: refused at the start, naming the option and what to do.

use crate::harness::Cluster;

/// Settings, and what the refusal says of them.
type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);

#[test]
fn wrong_settings_of_discovery_are_refused_at_the_start() {
    let cases: &[Case] = &[
        (
            &[("CLUSTER_DISCOVERY_TYPE", "telepathy")],
            &["CLUSTER_DISCOVERY_TYPE", "telepathy", "epmd or static or dns or gossip"],
        ),
        (&[("CLUSTER_DISCOVERY_TYPE", "static")], &["CLUSTER_NODES must list the nodes", "name@host:port"]),
        (
            &[("CLUSTER_DISCOVERY_TYPE", "static"), ("CLUSTER_NODES", "a@h:1,b")],
            &["CLUSTER_NODES", "a@h:1,b", "name@host[:port]"],
        ),
        (
            &[("CLUSTER_DISCOVERY_TYPE", "static"), ("CLUSTER_NODES", "a@h:1,b@h:99999")],
            &["CLUSTER_NODES", "b@h:99999", "name@host[:port]"],
        ),
        (
            &[("CLUSTER_DISCOVERY_TYPE", "static"), ("CLUSTER_NODES", "a@h:1,b@h:2"), ("CLUSTER_SIZE", "5")],
            &["CLUSTER_NODES lists 2 nodes and CLUSTER_SIZE is 5", "list all of them"],
        ),
        (&[("CLUSTER_NODES", "a@h:1,a@h:2")], &["CLUSTER_NODES", "a@h twice"]),
        (&[("CLUSTER_DISCOVERY_TYPE", "dns"), ("CLUSTER_SIZE", "3")], &["CLUSTER_DNS_HOSTNAME must name the records"]),
        (
            &[("CLUSTER_DISCOVERY_TYPE", "dns"), ("CLUSTER_DNS_HOSTNAME", "nodes.test")],
            &["CLUSTER_SIZE must say how many nodes"],
        ),
        (&[("CLUSTER_DNS_HOSTNAME", "not a name")], &["CLUSTER_DNS_HOSTNAME", "not a name", "DNS name"]),
        (&[("CLUSTER_DNS_SERVER", "nowhere")], &["CLUSTER_DNS_SERVER", "nowhere", "address:port"]),
        (&[("CLUSTER_DNS_SERVER", "127.0.0.1:0")], &["CLUSTER_DNS_SERVER", "address:port"]),
        (&[("CLUSTER_DNS_INTERVAL", "5")], &["CLUSTER_DNS_INTERVAL", "with a unit"]),
        (&[("CLUSTER_DISCOVERY_TYPE", "gossip")], &["CLUSTER_SIZE must say how many nodes"]),
        (&[("CLUSTER_GOSSIP_ADDRESS", "10.0.0.1:45892")], &["CLUSTER_GOSSIP_ADDRESS", "10.0.0.1:45892", "224.0.0.0"]),
        (&[("CLUSTER_GOSSIP_ADDRESS", "239.255.255.250")], &["CLUSTER_GOSSIP_ADDRESS", "multicast address and port"]),
        (&[("CLUSTER_GOSSIP_INTERFACE", "eth0")], &["CLUSTER_GOSSIP_INTERFACE", "eth0", "IPv4 address"]),
        (
            &[
                ("CLUSTER_DISCOVERY_TYPE", "gossip"),
                ("CLUSTER_SIZE", "3"),
                // Of a network that is for examples.
                ("CLUSTER_GOSSIP_INTERFACE", "192.0.2.1"),
            ],
            &["cannot gossip", "192.0.2.1", "CLUSTER_GOSSIP_INTERFACE"],
        ),
    ];
    for (settings, parts) in cases {
        let mut cluster = Cluster::empty(&[]);
        super::set(cluster.add(), settings);
        let (code, said) = cluster.node(1).run_to_end();
        assert!(code.is_some_and(|code| code != 0), "{settings:?}: exit code {code:?}: {said}");
        for part in *parts {
            assert!(said.contains(part), "{settings:?}: {part:?} is not in {said}");
        }
    }
    // Without a name of its own every node would be the same one.
    let mut cluster = Cluster::empty(&[("CLUSTER_DISCOVERY_TYPE", "gossip"), ("CLUSTER_SIZE", "3")]);
    cluster.add().env.remove("NODE_NAME");
    let (code, said) = cluster.node(1).run_to_end();
    assert!(
        code.is_some_and(|code| code != 0) && said.contains("every node would be called hex_hub1@127.0.0.1"),
        "{said}"
    );
}
