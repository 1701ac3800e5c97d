//! Join, leave, remove, transfer: through HTTP, between real processes.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Cluster, Node, eventually, get, json, put, request};

fn role_of(cluster: &Cluster, asked: usize, name: &str) -> Result<String, String> {
    let status = cluster.nodes[asked - 1].status()?;
    let members = status["members"].as_array().ok_or("no members")?;
    let member = members.iter().find(|m| m["name"] == name).ok_or_else(|| format!("{name} is no member: {status}"))?;
    Ok(member["role"].as_str().unwrap_or_default().to_string())
}

/// What earlier lives of `node` left on its disk.
pub fn aside(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(&node.data).expect("the data directory").map(|entry| entry.expect("an entry"));
    let names = entries.map(|entry| entry.file_name().into_string().expect("text"));
    let mut names: Vec<_> = names.filter(|name| name.starts_with("aside-")).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_node_started_alone_serves_and_joins_by_name() {
    let mut cluster = Cluster::empty(&[]);
    cluster.add_running();
    let first = cluster.node(1).http.clone();
    assert_eq!(
        request(&first, &put("/api/kv/before", "the join")).expect("an answer").status,
        200,
        "a cluster of one serves at once"
    );
    cluster.add_running();
    let joined = cluster.node(2).join("hex_hub1@127.0.0.1", false);
    assert_eq!(joined.status, 200, "{joined:?}");
    let status = joined.json();
    assert_eq!(
        (&status["node"], status["members"].as_array().map(Vec::len)),
        (&"hex_hub2@127.0.0.1".into(), Some(2)),
        "{status}"
    );
    cluster.add_running();
    let target = format!("hex_hub2@{}", cluster.node(2).raft);
    let joined = cluster.node(3).join(&target, false);
    assert_eq!(joined.status, 200, "by name@host:port, through a node that does not lead: {joined:?}");
    cluster.wait_formed(3);
    for i in 1..=3 {
        let read = request(&cluster.node(i).http.clone(), &get("/api/kv/before")).expect("an answer");
        assert_eq!((read.status, read.text()), (200, "the join".into()));
    }
    cluster.wait_same_hash(&[1, 2, 3]);

    let again = cluster.node(3).join("hex_hub1@127.0.0.1", false);
    assert_eq!((again.status, again.problem()), (409, "cluster_mismatch".into()), "a member already");
    let itself = cluster.node(3).join("hex_hub3@127.0.0.1", false);
    assert_eq!((itself.status, itself.problem()), (400, "invalid_argument".into()));
}

#[test]
fn a_node_with_data_of_its_own_joins_only_when_told_to_discard_it() {
    let mut cluster = Cluster::empty(&[]);
    cluster.add_running();
    cluster.add_running();
    let second = cluster.node(2).http.clone();
    request(&second, &put("/api/kv/mine", "precious")).expect("an answer");
    let refused = cluster.node(2).join("hex_hub1@127.0.0.1", false);
    assert_eq!((refused.status, refused.problem()), (409, "has_data".into()));
    let read = request(&second, &get("/api/kv/mine")).expect("an answer");
    assert_eq!((read.status, read.text()), (200, "precious".into()), "a refused join changes nothing");
    let joined = cluster.node(2).join("hex_hub1@127.0.0.1", true);
    assert_eq!(joined.status, 200, "{joined:?}");
    assert_eq!(request(&second, &get("/api/kv/mine")).expect("an answer").status, 404);
    assert_eq!(aside(cluster.node(2)), ["aside-1-before-join"], "the old data is kept");
}

#[test]
fn a_node_that_leaves_is_fresh_and_a_standby_takes_its_place() {
    let mut cluster = Cluster::start(4);
    let leader = cluster.leader();
    let address = cluster.node(leader).http.clone();
    request(&address, &put("/api/kv/shared", "stays")).expect("an answer");
    let left = request(&address, &json("POST", "/api/cluster/leave", &serde_json::json!({}))).expect("an answer");
    assert_eq!(left.status, 200, "the leader leaves: {left:?}");
    assert_eq!(left.json()["members"].as_array().map(Vec::len), Some(1), "{left:?}");
    assert_eq!(request(&address, &get("/api/kv/shared")).expect("an answer").status, 404, "it is fresh");
    let kept = aside(cluster.node(leader));
    assert!(kept.last().is_some_and(|name| name.ends_with("-left")), "its data of before is kept: {kept:?}");
    assert_eq!(
        request(&address, &put("/api/kv/own", "new")).expect("an answer").status,
        200,
        "and a cluster of its own"
    );
    let rest: Vec<usize> = (1..=4).filter(|i| *i != leader).collect();
    for i in &rest {
        eventually("the three that stay vote", || {
            for j in &rest {
                let role = role_of(&cluster, *i, &format!("hex_hub{j}@127.0.0.1"))?;
                if role != "voter" {
                    return Err(format!("node {j} is a {role}"));
                }
            }
            Ok(())
        });
        let read = request(&cluster.node(*i).http.clone(), &get("/api/kv/shared")).expect("an answer");
        assert_eq!((read.status, read.text()), (200, "stays".into()));
    }
    cluster.wait_same_hash(&rest);
    let back = cluster.node(leader).join(&format!("hex_hub{}@127.0.0.1", rest[0]), true);
    assert_eq!(back.status, 200, "it may come back: {back:?}");
}

#[test]
fn the_last_member_cannot_leave() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let refused = request(&address, &json("POST", "/api/cluster/leave", &serde_json::json!({}))).expect("an answer");
    assert_eq!((refused.status, refused.problem()), (409, "last_member".into()));
    assert_eq!(request(&address, &put("/api/kv/k", "v")).expect("an answer").status, 200);
}

#[test]
fn a_dead_node_is_removed_and_its_wiped_self_comes_back_as_a_new_member() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let dead = cluster.other_than(leader);
    let name = cluster.node(dead).name.clone();
    let address = cluster.node(leader).http.clone();
    let old_id = {
        let status = cluster.node(leader).status().expect("a status");
        status["members"].as_array().expect("members").iter().find(|m| m["name"] == name.as_str()).expect("a member")["id"].clone()
    };
    cluster.node(dead).kill();
    let data = cluster.node(dead).data.clone();
    std::fs::remove_dir_all(&data).expect("its disk is lost");
    request(&address, &put("/api/kv/while", "it was dead")).expect("an answer");
    // It is not removed first: coming back under its old name is enough.
    cluster.node(dead).start();
    cluster.wait_formed(3);
    let status = cluster.node(leader).status().expect("a status");
    let member = status["members"]
        .as_array()
        .expect("members")
        .iter()
        .find(|m| m["name"] == name.as_str())
        .expect("a member")
        .clone();
    assert_ne!(member["id"], old_id, "a new member under the old name");
    let read = request(&cluster.node(dead).http.clone(), &get("/api/kv/while")).expect("an answer");
    assert_eq!((read.status, read.text()), (200, "it was dead".into()));
    cluster.wait_same_hash(&[1, 2, 3]);

    cluster.node(dead).kill();
    let target = format!("/api/cluster/members/{name}");
    let removed = request(&address, &crate::harness::delete(&target)).expect("an answer");
    assert_eq!(removed.status, 200, "{removed:?}");
    assert_eq!(removed.json()["members"].as_array().map(Vec::len), Some(2));
    let unknown = request(&address, &crate::harness::delete(&target)).expect("an answer");
    assert_eq!((unknown.status, unknown.problem()), (404, "not_found".into()));
    cluster.node(dead).start();
    eventually("a removed node says that it is in no cluster", || {
        let answer = request(&cluster.nodes[dead - 1].http, &get("/api/kv/while"))?;
        if answer.status == 503 && answer.problem() == "not_in_cluster" { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!(request(&address, &put("/api/kv/still", "serving")).expect("an answer").status, 200, "it harms nobody");
}

#[test]
fn a_first_node_that_lost_its_disk_joins_again_and_founds_no_second_cluster() {
    let mut cluster = Cluster::start(3);
    let other = cluster.other_than(1);
    request(&cluster.node(other).http.clone(), &put("/api/kv/k", "kept")).expect("an answer");
    let id = cluster.node(other).status().expect("a status")["cluster_id"].clone();
    cluster.node(1).kill();
    let data = cluster.node(1).data.clone();
    std::fs::remove_dir_all(&data).expect("its disk is lost");
    // At once: the others still count its old self as alive, and refuse it at first.
    cluster.node(1).start();
    cluster.wait_formed(3);
    assert_eq!(cluster.node(1).status().expect("a status")["cluster_id"], id);
    let read = request(&cluster.node(1).http.clone(), &get("/api/kv/k")).expect("an answer");
    assert_eq!((read.status, read.text()), (200, "kept".into()));
    // With all others down it waits, however long: alone it is no majority of the three.
    for i in 1..=3 {
        cluster.node(i).kill();
    }
    std::fs::remove_dir_all(&data).expect("its disk is lost");
    cluster.node(1).start();
    eventually("it looks for the others", || {
        let answer = request(&cluster.nodes[0].http, &put("/api/kv/k?timeout=2s", "lost"))?;
        if answer.problem() == "not_in_cluster" { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    for i in 2..=3 {
        cluster.node(i).start();
    }
    cluster.wait_formed(3);
    let read = request(&cluster.node(1).http.clone(), &get("/api/kv/k")).expect("an answer");
    assert_eq!((read.status, read.text()), (200, "kept".into()));
}

#[test]
fn leadership_is_handed_over_on_request_and_at_a_graceful_stop() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let other = cluster.other_than(leader);
    let (asked, to) = (cluster.node(other).http.clone(), cluster.node(other).name.clone());
    let moved = request(&asked, &json("POST", "/api/cluster/transfer-leader", &serde_json::json!({"to": to})))
        .expect("an answer");
    assert_eq!((moved.status, &moved.json()["leader"]), (200, &to.as_str().into()), "{moved:?}");
    let nobody =
        request(&asked, &json("POST", "/api/cluster/transfer-leader", &serde_json::json!({"to": "nobody@127.0.0.1"})))
            .expect("an answer");
    assert_eq!((nobody.status, nobody.problem()), (404, "not_found".into()));
    let leader = cluster.leader();
    assert_eq!(leader, other);
    assert_eq!(cluster.node(leader).stop(), Some(0));
    assert!(cluster.node(leader).logged().contains("handed leadership over"), "the stopping leader hands over");
    let survivor = cluster.other_than(leader);
    assert_eq!(request(&cluster.node(survivor).http.clone(), &put("/api/kv/k", "v")).expect("an answer").status, 200);
}

#[test]
fn the_replication_factor_changes_at_run_time() {
    let mut cluster = Cluster::start(3);
    let address = cluster.node(1).http.clone();
    for (value, voters) in [(1, 1), (3, 3)] {
        let set =
            request(&address, &json("PUT", "/api/cluster/replication-factor", &serde_json::json!({"value": value})))
                .expect("an answer");
        assert_eq!(set.status, 200, "{set:?}");
        for i in 1..=3 {
            eventually("the voters follow the replication factor", || {
                let status = cluster.nodes[i - 1].status()?;
                let n =
                    status["members"].as_array().ok_or("no members")?.iter().filter(|m| m["role"] == "voter").count();
                if n == voters { Ok(()) } else { Err(format!("node {i}: {status}")) }
            });
            let answer =
                request(&cluster.node(i).http.clone(), &put("/api/kv/rf", value.to_string())).expect("an answer");
            assert_eq!(answer.status, 200, "through node {i} at replication factor {value}: {answer:?}");
        }
    }
    cluster.wait_same_hash(&[1, 2, 3]);
    for bad in [0, 65] {
        let refused =
            request(&address, &json("PUT", "/api/cluster/replication-factor", &serde_json::json!({"value": bad})))
                .expect("an answer");
        assert_eq!((refused.status, refused.problem()), (400, "invalid_argument".into()));
    }
}

#[test]
fn stale_reads_never_go_back_while_a_node_becomes_a_standby_and_a_voter_again() {
    let mut cluster = Cluster::start(3);
    let addresses: Vec<String> = (1..=3).map(|index| cluster.node(index).http.clone()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_at_end = StopAtEnd(&stop);
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                // A write may be refused while leadership moves; the next one is tried.
                drop(request(&addresses[number % 3], &put("/api/kv/w", number.to_string())));
            }
        });
        let readers: Vec<_> = addresses
            .iter()
            .map(|address| {
                let stop = &stop;
                scope.spawn(move || {
                    let (mut newest, mut reads) = (0, 0_u64);
                    while !stop.load(Ordering::Acquire) {
                        let Ok(read) = request(address, &get("/api/kv/w?consistency=stale")) else { continue };
                        let Some(revision) = read.headers.get("x-hexkv-revision") else { continue };
                        let revision: u64 = revision.parse().expect("a number");
                        assert!(revision >= newest, "{address} answered {newest}, then {revision}");
                        (newest, reads) = (revision, reads + 1);
                    }
                    reads
                })
            })
            .collect();
        for voters in [1, 3, 1, 3] {
            let factor = json("PUT", "/api/cluster/replication-factor", &serde_json::json!({"value": voters}));
            assert_eq!(request(&addresses[0], &factor).expect("an answer").status, 200);
            eventually("as many voters", || {
                let members = cluster.nodes[0].status()?["members"].clone();
                let members = members.as_array().cloned().unwrap_or_default();
                let counted = members.iter().filter(|member| member["role"] == "voter").count();
                if counted == voters { Ok(()) } else { Err(format!("{members:?}")) }
            });
        }
        drop(stop_at_end);
        for reader in readers {
            assert!(reader.join().expect("no read went back") > 10, "hardly anything was read");
        }
    });
}

/// Lets the threads of a test end also when it fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
