//! Packets that are to be ignored: garbage, forged, replayed, too long, too many.

use std::{
    collections::BTreeMap,
    net::{SocketAddrV4, UdpSocket},
};

use super::{Setup, Way, discovery, in_group, read, write};
use crate::harness::{Node, eventually};

/// More resident memory than a node may gain from a flood, in KiB.
const GAIN_KIB_MAX: u64 = 32 * 1024;
/// Packets of the flood.
const FLOOD: usize = 60_000;

fn group(setup: &Setup) -> SocketAddrV4 {
    setup.cluster.nodes[0].env["CLUSTER_GOSSIP_ADDRESS"].parse().expect("a group")
}

/// One packet of each node, by its name.
fn captured(socket: &UdpSocket, nodes: &[Node]) -> BTreeMap<String, Vec<u8>> {
    let mut packets = BTreeMap::new();
    eventually("every node is heard", || {
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
        let packet = &buffer[..length];
        let sender = nodes.iter().find(|node| packet.windows(node.name.len()).any(|part| part == node.name.as_bytes()));
        if let Some(sender) = sender {
            packets.insert(sender.name.clone(), packet.to_vec());
        }
        if packets.len() == nodes.len() { Ok(()) } else { Err(format!("{:?}", packets.keys())) }
    });
    packets
}

/// How many packets node says that it ignored, by reason; and how many other nodes it hears.
fn counts(node: &Node) -> Result<BTreeMap<&'static str, u64>, String> {
    let said = discovery(node)?;
    let number_before = |word: &str| {
        let before = said.split(word).next().filter(|before| before.len() < said.len())?;
        before.split([' ', ',', ':']).rfind(|part| !part.is_empty())?.parse().ok()
    };
    let words = [" malformed", " forged", " replayed", " too many", " other nodes heard"];
    words.into_iter().map(|word| Ok((word.trim(), number_before(word).ok_or_else(|| said.clone())?))).collect()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn forged_replayed_and_malformed_packets_are_ignored_and_a_flood_harms_nobody() {
    let Some(mut setup) = Setup::new(Way::Gossip, 3) else { return };
    let group = group(&setup);
    for index in 1..=3 {
        setup.cluster.node(index).start();
    }
    setup.cluster.wait_formed(3);
    let socket = in_group(group);
    let packets = captured(&socket, &setup.cluster.nodes);
    let victim = setup.cluster.node(1).name.clone();
    let other = packets.iter().find(|(name, _)| **name != victim).map(|(_, packet)| packet.clone()).expect("another");
    let send = |bytes: &[u8]| assert_eq!(socket.send_to(bytes, group).expect("it is sent"), bytes.len());
    let rises = |setup: &Setup, word: &str, bytes: &[u8]| {
        let before = counts(&setup.cluster.nodes[0]).expect("counts");
        eventually(&format!("{word} rises"), || {
            send(bytes);
            let now = counts(&setup.cluster.nodes[0])?;
            if now[word] > before[word] { Ok(()) } else { Err(format!("{now:?}")) }
        });
    };
    rises(&setup, "malformed", b"no packet");
    rises(&setup, "malformed", &[0x68; 2000]);
    let mut altered = other.clone();
    altered[20] ^= 1;
    rises(&setup, "forged", &altered);
    rises(&setup, "replayed", &other);
    let pid = setup.cluster.nodes[0].pid().expect("it runs");
    let before = resident_kib(pid);
    for _ in 0..FLOOD {
        // What the socket has no room for is lost: that is a flood, too.
        drop(socket.send_to(&altered, group));
    }
    write(&setup.cluster.nodes[0], "k", "v");
    assert_eq!(read(&setup.cluster.nodes[1], "k"), "v");
    let gain = resident_kib(pid).saturating_sub(before);
    assert!(gain < GAIN_KIB_MAX, "{gain} KiB");
    eventually("the nodes still hear each other", || {
        let now = counts(&setup.cluster.nodes[0])?;
        if now["other nodes heard"] == 2 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    // A node that is gone is not brought back by what it once said.
    let gone = packets[&setup.cluster.nodes[2].name].clone();
    setup.cluster.node(3).kill();
    eventually("the silence is noticed, whatever is replayed", || {
        send(&gone);
        let now = counts(&setup.cluster.nodes[0])?;
        if now["other nodes heard"] == 1 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    rises(&setup, "replayed", &gone);
    assert_eq!(counts(&setup.cluster.nodes[0]).expect("counts")["other nodes heard"], 1);
}

#[test]
fn a_node_with_another_cookie_is_not_heard() {
    let Some(mut setup) = Setup::new(Way::Gossip, 3) else { return };
    super::set(setup.cluster.node(3), &[("COOKIE", "another-one")]);
    for index in 1..=3 {
        setup.start(index);
    }
    setup.waits(1, "2 of 3 are there");
    setup.waits(3, "1 of 3 are there");
    eventually("its packets count as forged", || {
        let now = counts(&setup.cluster.nodes[0])?;
        if now["forged"] > 0 { Ok(()) } else { Err(format!("{now:?}")) }
    });
}
