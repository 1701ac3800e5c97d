//! Backups: saved while the cluster serves, verified, and restored into a new cluster.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use hexkv_client::{
    Client, Error, Options,
    api::Code,
    backup::{Checked, check},
    kv::KeyRange,
    watch::{Watch, WatchOptions, Watched},
};
use serde_json::{Value, json};

use crate::harness::{Cluster, Node, client, eventually, get, json as json_request, put, request, said};

/// By how much a restore raises revisions unless told otherwise.
const BUMP: u64 = 1_000_000_000;

/// Writes until it is acknowledged; gives the revision.
fn write(http: &str, key: &str, value: &str) -> u64 {
    let answer = eventually("a write", || match request(http, &put(&format!("/api/kv/{key}"), value)) {
        Ok(answer) if answer.status == 200 => Ok(answer),
        other => Err(format!("{other:?}")),
    });
    answer.json()["revision"].as_u64().expect("a revision")
}

fn read(http: &str, key: &str) -> Option<String> {
    let answer = eventually("a read", || match request(http, &get(&format!("/api/kv/{key}"))) {
        Ok(answer) if answer.status == 200 || answer.status == 404 => Ok(answer),
        other => Err(format!("{other:?}")),
    });
    (answer.status == 200).then(|| answer.text())
}

/// `client snapshot save`, which must succeed.
fn save(http: &str, file: &Path) -> Checked {
    let saved = client(http, &["snapshot", "save", file.to_str().expect("UTF-8")]);
    assert_eq!(saved.status.code(), Some(0), "{}", said(&saved));
    check(file).expect("what was saved is whole")
}

fn verify(file: &Path) -> (Option<i32>, String) {
    let verified = client("127.0.0.1:1", &["snapshot", "verify", file.to_str().expect("UTF-8")]);
    (verified.status.code(), said(&verified))
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Ends a load when dropped, also when a check failed: else the scope would wait for it forever.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_snapshot_is_saved_from_any_node_under_load() {
    let mut cluster = Cluster::start(4);
    let dir = tempfile::tempdir().unwrap();
    let holders = cluster.holders();
    assert_eq!(holders.len(), 3, "one of four is a standby");
    let stop = AtomicBool::new(false);
    let (acknowledged, target) = (AtomicU64::new(0), cluster.node(1).http.clone());
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let n = acknowledged.load(Ordering::Acquire) + 1;
                write(&target, &format!("load/{n}"), &format!("{n:<500}"));
                acknowledged.store(n, Ordering::Release);
            }
        });
        eventually("writes before the save", || {
            if acknowledged.load(Ordering::Acquire) > 20 { Ok(()) } else { Err(String::new()) }
        });
        for node in &cluster.nodes {
            let before = acknowledged.load(Ordering::Acquire);
            let file = dir.path().join(format!("of-{}.backup", node.index));
            let saved = save(&node.http, &file);
            assert!(
                saved.header.keys >= before && saved.header.revision >= before,
                "{saved:?}, {before} were acknowledged"
            );
            // A standby holds nothing, and sends the client to who does.
            let held = holders.iter().any(|i| cluster.nodes[i - 1].name == saved.header.made_by);
            assert!(held && (!holders.contains(&node.index) || saved.header.made_by == node.name), "{saved:?}");
            let (code, told) = verify(&file);
            assert_eq!(code, Some(0), "{told}");
            let revision = saved.header.revision.to_string();
            assert!(
                told.contains(&revision)
                    && told.contains(&saved.header.state_hash)
                    && told.contains(&node_count(&saved)),
                "{told}"
            );
        }
    });
    let saves = names(dir.path());
    assert_eq!(saves.len(), 4, "nothing but the files: {saves:?}");
    for index in holders {
        let left = cluster.node(index).data.join("saves");
        assert_eq!(names(&left), Vec::<String>::new(), "a save leaves nothing at the node");
    }
}

fn node_count(saved: &Checked) -> String {
    saved.header.keys.to_string()
}

#[test]
fn a_save_tells_what_it_is_and_overwrites_only_by_force() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("one.backup");
    write(&http, "a", "1");
    let leased = request(&http, &put("/api/kv/leased?ttl=1h", "2").with("Idempotency-Key", "once")).unwrap();
    assert_eq!(leased.status, 200, "{leased:?}");
    let answer = request(&http, &get("/api/snapshot")).unwrap();
    let hash = cluster.node(1).json("/api/cluster/hash").unwrap();
    assert_eq!(answer.status, 200);
    let header = |name: &str| answer.headers.get(name).cloned().unwrap_or_default();
    assert_eq!(header("x-hexkv-revision"), "2");
    assert_eq!(header("x-hexkv-state-hash"), hash["hash"].as_str().unwrap());
    assert_eq!(header("x-hexkv-applied-index"), hash["applied_index"].to_string());
    let status = cluster.node(1).status().unwrap();
    assert_eq!(header("x-hexkv-cluster-id"), status["cluster_id"].as_str().unwrap());
    // What curl would have saved is a backup, too.
    std::fs::write(&file, &answer.body).unwrap();
    assert_eq!(verify(&file).0, Some(0));
    let refused = client(&http, &["snapshot", "save", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("--force"), "{}", said(&refused));
    assert_eq!(std::fs::read(&file).unwrap(), answer.body, "it is as it was");
    write(&http, "a", "3");
    let forced = client(&http, &["-o", "json", "snapshot", "save", "--force", file.to_str().unwrap()]);
    assert_eq!(forced.status.code(), Some(0), "{}", said(&forced));
    let told: Value = serde_json::from_slice(&forced.stdout).expect("JSON");
    assert_eq!(
        (&told["revision"], &told["keys"], &told["leases"], &told["outcomes"]),
        (&json!(3), &json!(2), &json!(1), &json!(1)),
        "{told}"
    );
    assert_eq!(names(dir.path()), ["one.backup"]);
    let nowhere = client(&http, &["snapshot", "save", dir.path().join("no/such/dir/f").to_str().unwrap()]);
    assert_eq!(nowhere.status.code(), Some(1), "{}", said(&nowhere));
    let nobody = client("127.0.0.1:1", &["snapshot", "save", dir.path().join("none").to_str().unwrap()]);
    assert_eq!(nobody.status.code(), Some(3), "{}", said(&nobody));
    assert_eq!(names(dir.path()), ["one.backup"], "a save that failed leaves nothing");
}

/// Answers one request for a snapshot with `body`, of which it announces all and sends `sent` bytes.
fn broken_node(body: Vec<u8>, sent: usize) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            asked.push(byte[0]);
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // The client may hang up as soon as it knows enough.
        let _ = stream.write_all(&body[..sent]);
    });
    (address, served)
}

#[test]
fn a_transfer_that_breaks_off_or_is_altered_leaves_no_file() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for n in 0..40 {
        write(&http, &format!("k{n}"), &format!("{n:<2000}"));
    }
    let whole = request(&http, &get("/api/snapshot")).unwrap().body;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("f");
    let length = whole.len();
    let mut altered = whole.clone();
    altered[length / 2] ^= 1;
    // The whole one shows that it is the damage that is refused.
    let cases = [
        (whole.clone(), length, Some(0)),
        (whole.clone(), length / 2, Some(3)),
        (whole.clone(), 10, Some(3)),
        (altered, length, Some(1)),
    ];
    for (body, sent, expected) in cases {
        let (address, served) = broken_node(body, sent);
        let saved = client(&address, &["snapshot", "save", "--force", target.to_str().unwrap()]);
        assert_eq!(saved.status.code(), expected, "{sent} of {length} bytes: {}", said(&saved));
        served.join().unwrap();
        let left = names(dir.path());
        assert_eq!(left.is_empty(), expected != Some(0), "{left:?}");
        if expected == Some(0) {
            std::fs::remove_file(&target).unwrap();
        }
    }
}

/// A connection that asks for a snapshot and reads no more than the first bytes of the answer.
fn reads_nothing(http: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(http).unwrap();
    stream.write_all(format!("GET /api/snapshot HTTP/1.1\r\nHost: {http}\r\n\r\n").as_bytes()).unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).unwrap();
    (stream, String::from_utf8_lossy(&begin).into_owned())
}

#[test]
fn saves_beyond_the_bound_are_refused_until_there_is_room() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    // More than sockets hold, so that an answer nobody reads is not sent.
    for n in 0..24 {
        write(&http, &format!("k{n}"), &"x".repeat(1_000_000));
    }
    let first = reads_nothing(&http);
    let second = reads_nothing(&http);
    assert_eq!((first.1.as_str(), second.1.as_str()), ("HTTP/1.1 200", "HTTP/1.1 200"));
    let third = request(&http, &get("/api/snapshot")).unwrap();
    assert_eq!((third.status, third.problem().as_str()), (429, "overloaded"), "{third:?}");
    assert!(third.headers.contains_key("retry-after"));
    drop(first);
    eventually("room for another save", || {
        let (stream, begin) = reads_nothing(&http);
        drop(stream);
        if begin == "HTTP/1.1 200" { Ok(()) } else { Err(begin) }
    });
}

#[test]
fn a_file_that_is_cut_or_altered_anywhere_is_refused_and_nothing_is_made() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for n in 0..10 {
        write(&http, &format!("k{n}"), &format!("value {n}"));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("good.backup");
    let length = usize::try_from(save(&http, &file).bytes).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let bad = dir.path().join("bad.backup");
    for at in 0..length {
        let mut altered = whole.clone();
        altered[at] ^= 0x40;
        std::fs::write(&bad, &altered).unwrap();
        check(&bad).expect_err("an altered file");
        std::fs::write(&bad, &whole[..at]).unwrap();
        check(&bad).expect_err("a cut file");
    }
    let node = cluster.add();
    let restore = |node: &Node, file: &Path| {
        let restored = node.offline(&["restore", file.to_str().unwrap()]);
        (restored.status.code(), said(&restored))
    };
    for at in [0, 9, 30, length / 2, length - 1] {
        let mut altered = whole.clone();
        altered[at] ^= 1;
        std::fs::write(&bad, altered).unwrap();
        let ((code, told), (restored, why)) = (verify(&bad), restore(node, &bad));
        assert_eq!((code, restored), (Some(1), Some(1)), "byte {at}: {told} {why}");
        assert!(told.contains("bad.backup") && why.contains("bad.backup"), "{told} {why}");
        assert!(!node.data.exists(), "nothing was made");
    }
    let mut newer = whole.clone();
    newer[8] = 9;
    std::fs::write(&bad, newer).unwrap();
    let (code, why) = restore(node, &bad);
    assert_eq!(code, Some(1));
    assert!(why.contains("format version 9") && why.contains("version 1") && why.contains("newer binary"), "{why}");
    let (code, why) = restore(node, &dir.path().join("missing"));
    assert!(code == Some(1) && why.contains("missing"), "{why}");
}

#[test]
fn a_restore_needs_an_empty_directory_and_a_check_leaves_it_so() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b");
    write(&http, "k", "v");
    save(&http, &file);
    let file = file.to_str().unwrap().to_owned();
    let on_running = cluster.node(1).offline(&["restore", &file]);
    assert_eq!(on_running.status.code(), Some(1), "{}", said(&on_running));
    assert!(said(&on_running).contains("data directory of a node"), "{}", said(&on_running));
    assert_eq!(read(&http, "k").as_deref(), Some("v"), "the running node took no harm");
    let node = cluster.add();
    std::fs::create_dir_all(&node.data).unwrap();
    std::fs::write(node.data.join("notes.txt"), "mine").unwrap();
    let foreign = node.offline(&["restore", &file]);
    assert_eq!(foreign.status.code(), Some(1), "{}", said(&foreign));
    assert!(said(&foreign).contains("notes.txt"), "{}", said(&foreign));
    assert_eq!(names(&node.data), ["notes.txt"]);
    std::fs::remove_file(node.data.join("notes.txt")).unwrap();
    let checked = node.offline(&["restore", "--check", &file]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    assert!(said(&checked).contains("loads to that state hash"), "{}", said(&checked));
    assert_eq!(names(&node.data), Vec::<String>::new());
    let far = node.offline(&["restore", "--bump-revision", "18446744073709551615", &file]);
    assert_eq!(far.status.code(), Some(1), "{}", said(&far));
    assert!(said(&far).contains("cannot be raised"), "{}", said(&far));
    assert_eq!(node.offline(&["restore"]).status.code(), Some(2), "a file is needed");
    assert_eq!(names(&node.data), Vec::<String>::new());
}

#[test]
fn a_killed_restore_is_no_data_directory_and_can_be_run_again() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for n in 0..30 {
        write(&http, &format!("k{n}"), &"x".repeat(1_000_000));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b");
    save(&http, &file);
    let hash = cluster.wait_same_hash(&[1]);
    let node = cluster.add();
    let restore = ["restore", file.to_str().unwrap()];
    let mut running = node.offline_command(&restore).spawn().unwrap();
    eventually("the restore is under way", || {
        if node.data.join("making-work").exists() { Ok(()) } else { Err("not yet".into()) }
    });
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(!node.data.join("identity").exists(), "it was killed in the middle");
    let (code, log) = node.run_to_end();
    assert!(code == Some(1) && log.contains("broken off"), "{code:?} {log}");
    let restored = node.offline(&restore);
    assert_eq!(restored.status.code(), Some(0), "{}", said(&restored));
    node.start();
    eventually("it serves", || node.ready());
    assert_eq!(cluster.wait_same_hash(&[2]), hash);
    assert!(!cluster.node(2).data.join("making-work").exists());
}

/// The library's watch, which resumes by itself, until it is told that history is compacted; gives the revisions that it
/// was told.
fn watch_until_compacted(endpoints: Vec<String>, seen: &AtomicU64) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client =
            Client::new(endpoints, Options { timeout: Duration::from_secs(120), ..Options::default() }).unwrap();
        let watched = Watched::Range(KeyRange::Prefix("w/".into()));
        let mut watcher = client.watch(watched, &WatchOptions { from_revision: Some(1), ..WatchOptions::default() });
        let mut told = Vec::new();
        loop {
            match watcher.next().await {
                Ok(Watch::Revision { revision, .. }) => {
                    told.push(revision);
                    seen.store(revision, Ordering::Release);
                }
                Ok(Watch::Progress(_)) | Err(Error::Unavailable { .. }) => {}
                Err(Error::Rejected { code: Code::Compacted, store_revision, .. }) => {
                    // Read the present state, and watch from there, as the error says.
                    let from = store_revision.expect("it says where it is") + 1;
                    told.push(from - 1);
                    let watched = Watched::Range(KeyRange::Prefix("w/".into()));
                    let options = WatchOptions { from_revision: Some(from), ..WatchOptions::default() };
                    let mut further = client.watch(watched, &options);
                    seen.store(u64::MAX, Ordering::Release);
                    loop {
                        if let Watch::Revision { revision, .. } = further.next().await.expect("the watch goes on") {
                            told.push(revision);
                            return told;
                        }
                    }
                }
                Err(other) => panic!("{other}"),
            }
        }
    })
}

#[test]
fn a_restore_under_a_running_watch_tells_it_and_no_revision_comes_twice() {
    let mut cluster = Cluster::start(3);
    let endpoints: Vec<String> = cluster.nodes.iter().map(|n| n.http.clone()).collect();
    let http = endpoints[0].clone();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b");
    for n in 0..10 {
        write(&http, &format!("w/{n}"), "before");
    }
    let lock = request(&http, &json_request("POST", "/api/locks/l", &json!({"ttl": "1h"}))).unwrap();
    assert_eq!(lock.status, 200, "{lock:?}");
    let once = || put("/api/kv/once", "x").with("Idempotency-Key", "first");
    assert_eq!(request(&http, &once()).unwrap().status, 200);
    let saved = save(&http, &file);
    let after = (0..5).map(|n| write(&http, &format!("w/after{n}"), "lost")).max().unwrap();
    let seen = AtomicU64::new(0);
    let told = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch_until_compacted(endpoints.clone(), &seen));
        eventually("the watch is there", || {
            if seen.load(Ordering::Acquire) >= after { Ok(()) } else { Err(String::new()) }
        });
        for node in &mut cluster.nodes {
            node.kill();
            std::fs::rename(&node.data, node.data.with_extension("old")).unwrap();
        }
        let restored = cluster.node(1).offline(&["restore", file.to_str().unwrap()]);
        assert_eq!(restored.status.code(), Some(0), "{}", said(&restored));
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.wait_formed(3);
        eventually("the watch was told", || {
            if seen.load(Ordering::Acquire) == u64::MAX { Ok(()) } else { Err(String::new()) }
        });
        write(&http, "w/new", "after the restore");
        watch.join().unwrap()
    });
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "no revision goes back: {told:?}");
    assert_eq!(told.iter().filter(|r| **r >= saved.header.revision + BUMP).count(), 2, "{told:?}");
    assert_eq!(read(&http, "w/3").as_deref(), Some("before"));
    assert_eq!(read(&http, "w/after0"), None, "what came after the backup is gone");
    let status = cluster.node(2).status().unwrap();
    assert_ne!(status["cluster_id"].as_str(), Some(saved.header.cluster_id.as_str()), "a new cluster");
    // The lock is held still, by its lease; the next grant is beyond what the old cluster can have given.
    let held = cluster.node(3).json("/api/locks/l").unwrap();
    assert_eq!(held["holder"]["fencing_token"], lock.json()["fencing_token"], "{held}");
    let token = lock.json()["token"].as_str().unwrap().to_owned();
    let released = request(&http, &crate::harness::delete(&format!("/api/locks/l?token={token}"))).unwrap();
    assert_eq!(released.status, 200, "{released:?}");
    let again = request(&http, &json_request("POST", "/api/locks/l", &json!({"ttl": "1h"}))).unwrap();
    assert!(again.json()["fencing_token"].as_u64().unwrap() > BUMP, "{again:?}");
    // What was done once with an idempotency key is not done again.
    let replayed = request(&http, &once()).unwrap();
    assert_eq!(replayed.headers.get("idempotent-replay").map(String::as_str), Some("true"), "{replayed:?}");
    cluster.wait_same_hash(&[1, 2, 3]);
    old_members_are_refused(&mut cluster);
}

/// A node of the old cluster that comes back is refused by the new one, and knows why; with its data discarded it may join.
fn old_members_are_refused(cluster: &mut Cluster) {
    let old: PathBuf = cluster.node(3).data.with_extension("old");
    cluster.node(3).kill();
    let new = cluster.node(3).data.with_extension("new");
    std::fs::rename(&cluster.node(3).data, &new).unwrap();
    std::fs::rename(&old, &cluster.node(3).data).unwrap();
    let before = cluster.node(3).logged().len();
    cluster.node(3).start();
    for index in [1, 3] {
        eventually("both sides say that the clusters differ", || {
            let log = cluster.node(index).logged();
            let log = if index == 3 { &log[before..] } else { &log[..] };
            if log.contains("a node has to join a cluster first") { Ok(()) } else { Err(format!("node {index}")) }
        });
    }
    let target = cluster.node(1).name.clone();
    let refused = cluster.node(3).join(&target, false);
    assert_eq!((refused.status, refused.problem().as_str()), (409, "cluster_mismatch"), "{refused:?}");
    assert!(refused.text().contains("discard_local_data"), "{refused:?}");
    assert_eq!(cluster.node(1).status().unwrap()["members"].as_array().unwrap().len(), 3);
    let name = cluster.node(3).name.clone();
    let http = cluster.node(1).http.clone();
    let removed = request(&http, &crate::harness::delete(&format!("/api/cluster/members/{name}"))).unwrap();
    assert_eq!(removed.status, 200, "{removed:?}");
    let joined = cluster.node(3).join(&target, true);
    assert_eq!(joined.status, 200, "{joined:?}");
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
}
