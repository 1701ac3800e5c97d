//! Backups: saved while the cluster serves, and verified; what a restore refuses.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use hexkv_client::backup::{Checked, check};
use serde_json::{Value, json};

use crate::harness::{Cluster, Node, Stops, client, eventually, get, put, request, said};

/// Writes until it is acknowledged; gives the revision.
pub fn write(http: &str, key: &str, value: &str) -> u64 {
    let answer = eventually("a write", || match request(http, &put(&format!("/api/kv/{key}"), value)) {
        Ok(answer) if answer.status == 200 => Ok(answer),
        other => Err(format!("{other:?}")),
    });
    answer.json()["revision"].as_u64().expect("a revision")
}

pub fn read(http: &str, key: &str) -> Option<String> {
    let answer = eventually("a read", || match request(http, &get(&format!("/api/kv/{key}"))) {
        Ok(answer) if answer.status == 200 || answer.status == 404 => Ok(answer),
        other => Err(format!("{other:?}")),
    });
    (answer.status == 200).then(|| answer.text())
}

/// `client snapshot save`, which must succeed.
pub fn save(http: &str, file: &Path) -> Checked {
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
                saved.header.revision >= before && saved.header.keys <= saved.header.revision,
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
                    && told.contains(&node.name) == (saved.header.made_by == node.name),
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
fn clients_that_do_not_read_their_saves_do_not_stop_others() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    // More than sockets hold, so that an answer that is not read is not sent.
    for n in 0..24 {
        write(&http, &format!("k{n}"), &"x".repeat(1_000_000));
    }
    let mut stalled: Vec<(TcpStream, String)> = (0..2).map(|_| reads_nothing(&http)).collect();
    assert!(stalled.iter().all(|(_, begin)| begin == "HTTP/1.1 200"), "{stalled:?}");
    // As many as there may be are saved; one more waits its turn, and one of the others is cut off for it.
    for _ in 0..3 {
        let saved = request(&http, &get("/api/snapshot?timeout=60s")).unwrap();
        assert_eq!(saved.status, 200, "{saved:?}");
        stalled.push(reads_nothing(&http));
    }
    let mut cut = Vec::new();
    let (first, _) = &mut stalled[0];
    let read = first.read_to_end(&mut cut);
    assert!(cut.len() < 24_000_000, "the whole file was sent: {read:?}");
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
