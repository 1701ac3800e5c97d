//! Reads under the leader's lease: as new as linearizable ones, without asking anyone while the lease runs.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Cluster, Node, binary, eventually, get, put, request};

/// A lease that outlives any pause of a slow machine: half of it, 2 minutes, is used.
const LONG_LEASE: [(&str, &str); 3] =
    [("HEARTBEAT_INTERVAL", "100ms"), ("ELECTION_TIMEOUT_MIN", "200ms"), ("ELECTION_TIMEOUT_MAX", "240s")];

fn lease(key: &str) -> String {
    format!("/api/kv/{key}?consistency=lease")
}

#[test]
fn a_lease_read_sees_the_last_change_through_every_node() {
    let mut cluster = Cluster::start(4);
    let leader = cluster.leader();
    for turn in 0..40 {
        let (writer, value) = (1 + turn % 4, format!("v{turn}"));
        let written = request(&cluster.node(writer).http, &put("/api/kv/a%20key", value.clone())).unwrap();
        assert_eq!(written.status, 200, "{written:?}");
        for reader in 1..=4 {
            let read = request(&cluster.node(reader).http, &get(&lease("a%20key"))).unwrap();
            assert_eq!((read.status, read.text()), (200, value.clone()), "node {reader}, {leader} leads");
            assert_eq!(read.etag(), written.etag());
            assert!(!read.headers.contains_key("x-hexkv-staleness"), "{read:?}");
        }
    }
    for reader in 1..=4 {
        let http = cluster.node(reader).http.clone();
        let list = request(&http, &get("/api/kv?prefix=a&consistency=lease")).unwrap();
        assert_eq!(list.json()["items"][0]["key"], "a key", "{list:?}");
        let head =
            request(&http, &crate::harness::Request { method: "HEAD".into(), ..get(&lease("a%20key")) }).unwrap();
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(request(&http, &get(&lease("nothing"))).unwrap().problem(), "key_not_found");
        for bad in ["consistency=Lease", "consistency=leases", "consistency="] {
            for path in ["/api/kv/k", "/api/kv"] {
                let refused = request(&http, &get(&format!("{path}?{bad}"))).unwrap();
                assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid_argument"));
                for allowed in ["linearizable", "lease", "stale"] {
                    assert!(refused.text().contains(&format!("`{allowed}`")), "{refused:?}");
                }
            }
        }
        let refused = request(&http, &get("/api/kv/k?consistency=lease&max_staleness=1s")).unwrap();
        assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid_argument"));
    }
}

#[test]
fn the_command_line_reads_under_the_lease() {
    let cluster = {
        let mut cluster = Cluster::empty(&[]);
        cluster.add_running();
        cluster
    };
    let http = &cluster.nodes[0].http;
    assert_eq!(request(http, &put("/api/kv/k", "v")).unwrap().status, 200);
    let client = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary("client"));
        command.args(["--endpoints", http]).args(arguments).output().expect("the client runs")
    };
    let got = client(&["get", "k", "--consistency", "lease"]);
    assert_eq!((got.status.code(), got.stdout.as_slice()), (Some(0), b"v".as_slice()), "{got:?}");
    let listed = client(&["list", "--consistency", "lease", "--keys-only"]);
    assert_eq!((listed.status.code(), listed.stdout.as_slice()), (Some(0), b"k\n".as_slice()), "{listed:?}");
    let refused = client(&["get", "k", "--consistency", "leased"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("linearizable, lease or stale"), "{refused:?}");
}

#[test]
fn a_lease_read_asks_nobody_while_the_lease_runs() {
    let mut cluster = Cluster::start_with(3, &LONG_LEASE);
    let leader = cluster.leader();
    let written = request(&cluster.node(leader).http, &put("/api/kv/k", "v")).unwrap();
    assert_eq!(written.status, 200, "{written:?}");
    for node in cluster.nodes.iter().filter(|n| n.index != leader) {
        node.signal(Signal::STOP);
    }
    let http = cluster.node(leader).http.clone();
    // Answers that were on their way may still confirm a round or two.
    eventually("nobody confirms the leader", || match request(&http, &get("/api/kv/k?timeout=300ms")).unwrap() {
        answer if answer.status == 503 => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    for _ in 0..20 {
        let read = request(&http, &get("/api/kv/k?consistency=lease&timeout=5s")).unwrap();
        assert_eq!((read.status, read.text().as_str()), (200, "v"), "two of three voters are stopped");
    }
    for node in cluster.nodes.iter().filter(|n| n.index != leader) {
        node.signal(Signal::CONT);
    }
    eventually("a round is confirmed again", || match request(&http, &get("/api/kv/k?timeout=1s")).unwrap() {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
}

#[test]
fn a_leader_that_was_paused_shows_no_old_value_under_its_lease() {
    let mut cluster = Cluster::start(3);
    for round in 0..3 {
        let paused = cluster.leader();
        let (old, new) = (format!("old{round}"), format!("new{round}"));
        let at_paused = cluster.node(paused).http.clone();
        assert_eq!(request(&at_paused, &put("/api/kv/k", old.clone())).unwrap().status, 200);
        assert_eq!(request(&at_paused, &get(&lease("k"))).unwrap().text(), old, "it has a lease");
        cluster.node(paused).signal(Signal::STOP);
        // The kernel takes connections and requests for a stopped process; it reads them when it goes on. These are
        // there before the new value is: they may show either.
        let ask = |at: String| std::thread::spawn(move || request(&at, &get(&lease("k"))));
        let before: Vec<_> = (0..8).map(|_| ask(at_paused.clone())).collect();
        let other = cluster.other_than(paused);
        let at_other = cluster.node(other).http.clone();
        eventually("another leads and takes the change", || {
            match request(&at_other, &put("/api/kv/k", new.clone()))? {
                answer if answer.status == 200 => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        });
        let after: Vec<_> = (0..32).map(|_| ask(at_paused.clone())).collect();
        cluster.node(paused).signal(Signal::CONT);
        let mut answered = 0;
        for read in after {
            let read = read.join().unwrap().unwrap();
            if read.status == 200 {
                assert_eq!(read.text(), new, "the lease ran out while the leader was paused");
                answered += 1;
            } else {
                assert_eq!(read.status, 503, "{read:?}");
            }
        }
        for read in before {
            let read = read.join().unwrap().unwrap();
            assert!(read.status == 503 || [&old, &new].contains(&&read.text()), "{read:?}");
        }
        assert!(answered > 0, "all were refused");
        cluster.wait_formed(3);
    }
}

/// `name@host:raft port`.
fn named(node: &Node) -> String {
    let (_, port) = node.raft.rsplit_once(':').expect("host:port");
    format!("{}:{port}", node.name)
}

#[test]
fn restarted_voters_keep_the_lease_that_they_gave() {
    const LEASE: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::empty(&[
        ("ELECTION_TIMEOUT_MIN", "200ms"),
        ("ELECTION_TIMEOUT_MAX", "4s"),
        // The first node would serve the port mapper, and it may be the one that is stopped.
        ("CLUSTER_DISCOVERY_TYPE", "static"),
        ("EPMD_PORT", "0"),
        ("CLUSTER_SIZE", "3"),
    ]);
    let addresses: Vec<String> = (0..3).map(|_| named(cluster.add())).collect();
    for node in &mut cluster.nodes {
        node.env.insert("NODE_INDEX".into(), node.index.to_string());
        node.env.insert("CLUSTER_NODES".into(), addresses.join(","));
        node.start();
    }
    cluster.wait_formed(3);
    let old = cluster.leader();
    let at_old = cluster.node(old).http.clone();
    assert_eq!(request(&at_old, &put("/api/kv/k", "old")).unwrap().status, 200);
    let others: Vec<usize> = (1..=3).filter(|i| *i != old).collect();
    cluster.node(old).signal(Signal::STOP);
    for index in &others {
        cluster.node(*index).kill();
    }
    // The lease runs for its time from here at most, and those who gave it forget it here.
    let killed = Instant::now();
    for index in &others {
        cluster.node(*index).start();
    }
    let at_other = cluster.node(others[0]).http.clone();
    eventually("the restarted ones elect and take a change", || {
        match request(&at_other, &put("/api/kv/k?timeout=1s", "new"))? {
            answer if answer.status == 200 => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    });
    assert!(killed.elapsed() >= LEASE, "elected after {:?}: the lease may still have run", killed.elapsed());
    cluster.node(old).signal(Signal::CONT);
    let read = request(&at_old, &get(&lease("k"))).unwrap();
    assert!(read.status == 503 || read.text() == "new", "{read:?}");
}
