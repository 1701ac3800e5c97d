//! Lost quorum: a new cluster from what survived, by `server recover`.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::harness::{Cluster, LONG_TESTS, Node, Stops, binary, eventually, get, put, request, said, skipped};

/// Every file below `dir` with its content.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

/// Writes `load/1`, `load/2`, ... in order, each until it is acknowledged.
fn writes(http: &[String], acknowledged: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let n = acknowledged.load(Ordering::Acquire) + 1;
        let at = &http[n as usize % http.len()];
        if request(at, &put(&format!("/api/kv/load/{n}?timeout=2s"), format!("{n}"))).is_ok_and(|a| a.status == 200) {
            acknowledged.store(n, Ordering::Release);
        }
    }
}

/// How many of the writes are there; they must be the first ones, without a gap.
fn found(http: &str) -> u64 {
    let listed = request(http, &get("/api/kv?prefix=load/&keys_only=true&limit=10000")).unwrap().json();
    let mut there: Vec<u64> =
        listed["items"].as_array().unwrap().iter().map(|i| i["key"].as_str().unwrap()[5..].parse().unwrap()).collect();
    there.sort_unstable();
    assert!(there.iter().copied().eq(1..=there.len() as u64), "a gap: {there:?}");
    there.len() as u64
}

/// `server recover` as `node`, from `dirs`.
fn recover(node: &Node, dirs: &[&Path], confirm: Option<&str>) -> (Option<i32>, String) {
    let mut args = vec!["recover"];
    for dir in dirs {
        args.extend(["--from", dir.to_str().unwrap()]);
    }
    if let Some(text) = confirm {
        args.extend(["--confirm", text]);
    }
    let done = node.offline(&args);
    (done.status.code(), said(&done))
}

/// Moves a data directory aside, as a failed node's disk that was rescued.
fn aside(node: &Node) -> PathBuf {
    let to = node.data.with_extension("lost");
    std::fs::rename(&node.data, &to).unwrap();
    to
}

#[test]
fn one_of_three_survives_and_the_cluster_goes_on_from_it() {
    let mut cluster = Cluster::start(3);
    let http: Vec<String> = cluster.nodes.iter().map(|n| n.http.clone()).collect();
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let survivor = {
        let leader = cluster.leader();
        cluster.other_than(leader)
    };
    let on_all = std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| writes(&http, &acknowledged, &stop));
        eventually(
            "some writes",
            || if acknowledged.load(Ordering::Acquire) > 50 { Ok(()) } else { Err(String::new()) },
        );
        // Whatever was acknowledged before the survivor answered a linearizable read is on it.
        let on_all = acknowledged.load(Ordering::Acquire);
        eventually("the survivor has as much", || {
            let read = request(&http[survivor - 1], &get(&format!("/api/kv/load/{on_all}")))?;
            if read.status == 200 { Ok(()) } else { Err(format!("{read:?}")) }
        });
        for node in &mut cluster.nodes {
            node.kill();
        }
        on_all
    });
    let old = cluster.node(survivor).status();
    assert!(old.is_err(), "all were killed");
    for index in (1..=3).filter(|index| *index != survivor) {
        std::fs::remove_dir_all(&cluster.node(index).data).unwrap();
    }
    let lost = aside(cluster.node(survivor));
    let before = tree(&lost);
    let name = cluster.node(survivor).name.clone();
    let (code, told) = recover(cluster.node(survivor), &[&lost], None);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("--confirm") && told.contains("1 of 3 voters are here"), "{told}");
    let (code, told) = recover(cluster.node(survivor), &[&lost], Some("yes"));
    assert_eq!(code, Some(2), "{told}");
    assert!(std::fs::read_dir(&cluster.node(survivor).data).unwrap().next().is_none(), "nothing was made");
    let (code, told) = recover(cluster.node(survivor), &[&lost], Some(&name));
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(tree(&lost), before, "the survivor is as it was");
    // One after the other, as the documentation says: empty nodes that see only each other would found a cluster.
    cluster.node(survivor).start();
    cluster.wait_formed(1);
    for (index, size) in (1..=3).filter(|index| *index != survivor).zip([2, 3]) {
        cluster.node(index).start();
        cluster.wait_formed(size);
    }
    let hash = cluster.wait_same_hash(&[1, 2, 3]);
    assert!(told.contains(&hash), "the state that was shown is the one that is served: {hash} {told}");
    let there = found(&http[survivor - 1]);
    assert!(there >= on_all && on_all > 50, "{there} of {on_all} that the survivor had");
    // One that was sent and not answered may be there; never more.
    assert!(there <= acknowledged.load(Ordering::Acquire) + 1);
    let written = request(&http[0], &put("/api/kv/after", "x")).unwrap();
    assert!(written.json()["revision"].as_u64().unwrap() > 1_000_000_000, "{written:?}");
}

#[test]
fn the_furthest_of_several_is_chosen_and_the_damaged_one_is_not() {
    let mut cluster = Cluster::start_with(5, &[("REPLICATION_FACTOR", "5"), ("REPLACE_AFTER", "0s")]);
    let leader = cluster.leader();
    let others: Vec<usize> = (1..=5).filter(|index| *index != leader).collect();
    let (lagging, damaged) = (others[0], others[1]);
    let http = cluster.node(leader).http.clone();
    let put_many = |from: u64, to: u64| {
        for n in from..=to {
            eventually("a write", || {
                let answer = request(&http, &put(&format!("/api/kv/load/{n}"), format!("{n}")))?;
                if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
            });
        }
    };
    put_many(1, 30);
    cluster.wait_same_hash(&[1, 2, 3, 4, 5]);
    cluster.node(lagging).kill();
    put_many(31, 60);
    // The leader has applied what it acknowledged.
    let hash = cluster.node(leader).json("/api/cluster/hash").unwrap()["hash"].as_str().unwrap().to_owned();
    for node in &mut cluster.nodes {
        node.kill();
    }
    let dirs: Vec<PathBuf> = [lagging, damaged, leader].iter().map(|index| aside(cluster.node(*index))).collect();
    // In the middle of the log: no torn tail explains it.
    let segment = std::fs::read_dir(dirs[1].join("wal")).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 600] ^= 0xff;
    std::fs::write(&segment, bytes).unwrap();
    let before: Vec<_> = dirs.iter().map(|dir| tree(dir)).collect();
    let (name, id) = (cluster.node(leader).name.clone(), cluster.node(lagging).name.clone());
    let given: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
    let (code, told) = recover(cluster.node(leader), &given, Some(&id));
    assert_eq!(code, Some(2), "the name of one that is not the best confirms nothing: {told}");
    let (code, told) = recover(cluster.node(leader), &given, Some(&name));
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains(&format!("Best: {name}")) && told.contains("not usable"), "{told}");
    assert!(told.contains("2 of 5 voters are here"), "a damaged one does not count: {told}");
    assert_eq!(dirs.iter().map(|dir| tree(dir)).collect::<Vec<_>>(), before);
    cluster.node(leader).start();
    eventually("the recovered node serves", || cluster.nodes[leader - 1].ready());
    assert_eq!(found(&http), 60, "all that was acknowledged");
    assert_eq!(cluster.wait_same_hash(&[leader]), hash);
    // A node of the old cluster with its old directory is refused, and says why.
    let old = cluster.node(lagging).data.clone();
    std::fs::rename(&dirs[0], &old).unwrap();
    let target = cluster.node(leader).name.clone();
    cluster.node(lagging).start();
    let http = cluster.nodes[lagging - 1].http.clone();
    eventually("it has opened its data", || match request(&http, &get("/api/cluster/status"))? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.text()),
    });
    let refused = cluster.node(lagging).join(&target, false);
    assert_eq!((refused.status, refused.problem().as_str()), (409, "cluster_mismatch"), "{refused:?}");
    let joined = cluster.node(lagging).join(&target, true);
    assert_eq!(joined.status, 200, "{joined:?}");
    cluster.wait_same_hash(&[leader, lagging]);
}

#[test]
fn a_recovery_touches_no_running_node_and_nothing_that_it_does_not_understand() {
    let mut cluster = Cluster::empty(&[]);
    cluster.add_running();
    cluster.add_running();
    cluster.add();
    let (one, two) = (cluster.node(1).data.clone(), cluster.node(2).data.clone());
    assert_eq!(request(&cluster.node(1).http.clone(), &put("/api/kv/k", "v")).unwrap().status, 200);
    let refused = |cluster: &mut Cluster, dirs: &[&Path], expected: &str| {
        let (code, told) = recover(cluster.node(3), dirs, Some("hex_hub1@127.0.0.1"));
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains(expected) && told.contains("nothing was changed"), "{expected}: {told}");
        assert!(!cluster.node(3).data.exists(), "{told}");
    };
    refused(&mut cluster, &[&one], "its node runs");
    cluster.node(1).ready().expect("it took no harm");
    cluster.node(2).stop();
    refused(&mut cluster, &[&two, &one], "its node runs");
    cluster.node(1).stop();
    refused(&mut cluster, &[&one, &two], "directories of one cluster");
    refused(&mut cluster, &[&one, &one], "given twice");
    refused(&mut cluster, &[&one.join("wal")], "no identity");
    refused(&mut cluster, &[Path::new("/no/such/directory")], "no such directory");
    let (code, told) = recover(cluster.node(1), &[&one], Some("hex_hub1@127.0.0.1"));
    assert!(code == Some(1) && told.contains("before-recovery"), "{told}");
    let all_damaged = {
        let copy = one.with_extension("damaged");
        let copied = std::process::Command::new("cp").arg("-r").arg(&one).arg(&copy).status().unwrap();
        assert!(copied.success());
        std::fs::remove_dir_all(copy.join("wal")).unwrap();
        copy
    };
    let (code, told) = recover(cluster.node(3), &[&all_damaged], Some("hex_hub1@127.0.0.1"));
    assert!(code == Some(1) && told.contains("none of these directories can be used"), "{told}");
    cluster.node(1).start();
    eventually("it serves again", || cluster.nodes[0].ready());
    let read = request(&cluster.node(1).http.clone(), &get("/api/kv/k")).unwrap();
    assert_eq!(read.text(), "v");
}

#[test]
fn a_killed_recovery_can_be_repeated() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for n in 0..30 {
        let answer = request(&http, &put(&format!("/api/kv/load/{}", n + 1), "x".repeat(1_000_000))).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let hash = cluster.wait_same_hash(&[1]);
    cluster.node(1).kill();
    let lost = aside(cluster.node(1));
    let before = tree(&lost);
    let node = cluster.node(1);
    let args = ["recover", "--from", lost.to_str().unwrap(), "--confirm", "hex_hub1@127.0.0.1"];
    node.break_off(&args);
    let repeated = node.offline(&args);
    assert_eq!(repeated.status.code(), Some(0), "{}", said(&repeated));
    assert_eq!(tree(&lost), before);
    node.start();
    eventually("it serves", || node.ready());
    assert_eq!(found(&http), 30);
    assert_eq!(cluster.wait_same_hash(&[1]), hash);
}

#[test]
fn what_is_typed_at_a_terminal_confirms_and_nothing_else_does() {
    // It gives its child a terminal, and types there what it reads itself (Debian package bsdutils).
    const TERMINAL: &str = "script";
    if Command::new(TERMINAL).arg("--version").output().is_err() {
        return skipped(format!("no {TERMINAL} on the PATH (Debian package bsdutils)"));
    }
    let mut cluster = Cluster::empty(&[]);
    let node = cluster.add_running();
    assert_eq!(request(&node.http, &put("/api/kv/k", "kept")).unwrap().status, 200);
    assert_eq!(node.stop(), Some(0));
    let lost = aside(node);
    let line = format!("{} recover --from {}", binary("server").display(), lost.display());
    let typed = |node: &Node, text: &str| {
        let mut terminal = Command::new(TERMINAL);
        terminal
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env_remove(LONG_TESTS)
            .envs(&node.env)
            .env("SHELL", "/bin/sh");
        let mut terminal =
            terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        terminal.stdin.take().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
        let done = terminal.wait_with_output().unwrap();
        (done.status.code(), said(&done))
    };
    for wrong in ["yes", "", "hex_hub9@127.0.0.1"] {
        let (code, told) = typed(node, wrong);
        assert_eq!(code, Some(2), "{told}");
        assert!(
            told.contains("To begin a new cluster with this, type") && told.contains("nothing was changed"),
            "{told}"
        );
    }
    let (code, told) = typed(node, &node.name.clone());
    assert_eq!(code, Some(0), "{told}");
    node.start();
    let read = eventually("it serves", || {
        request(&node.http, &get("/api/kv/k"))
            .and_then(|read| if read.status == 200 { Ok(read) } else { Err(format!("{read:?}")) })
    });
    assert_eq!(read.text(), "kept");
}
