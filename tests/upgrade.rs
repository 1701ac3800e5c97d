//! Upgrades: what an earlier binary left is read and rolled forward; what a later one left is refused and kept.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread::JoinHandle,
};

use hexkv_raft_net::Refusal;
use hexkv_store::{
    codec,
    engine::{Batch, Engine, SledEngine, Span},
    record::KeyRange,
};

use crate::{
    harness::{Cluster, eventually, get, put, request, skipped},
    recover::tree,
};

/// The state hash of the fixture: see `fixtures/README.md`.
const FIXTURE_HASH: &str = "792e4c1709bda601a9d6666e648417df";
/// Ports of the nodes in the fixture, for clients and for nodes.
const HTTP_PORT: u16 = 4000;
const RAFT_PORT: u16 = 9100;
/// A version that no binary has yet.
const LATER: u8 = 99;

/// A cluster of three nodes on the fixture's directories, not started. Nodes find each other by the addresses in the
/// fixture, so one test at a time has them.
struct Fixture {
    cluster: Cluster,
    _turn: File,
}

impl Fixture {
    /// None, with the reason said, where its addresses cannot be had.
    fn unpack() -> Option<Self> {
        // Of each user its own: nobody can write to another's.
        let lock = format!("hexkv-fixture-format-3-{}.lock", rustix::process::getuid().as_raw());
        let turn = File::create(std::env::temp_dir().join(lock)).unwrap();
        turn.lock().unwrap();
        for address in (1..=3).flat_map(|i| [HTTP_PORT, RAFT_PORT].map(|port| format!("127.83.19.{i}:{port}"))) {
            if let Err(why) = TcpListener::bind(&address) {
                skipped(format!("the fixture's address {address} cannot be had: {why}"));
                return None;
            }
        }
        let names: Vec<String> = (1..=3).map(|i| format!("hex_hub{i}@127.83.19.{i}:{RAFT_PORT}")).collect();
        let nodes = names.join(",");
        let env = [
            ("COOKIE", "fixture-of-format-3"),
            ("EPMD_PORT", "0"),
            ("CLUSTER_DISCOVERY_TYPE", "static"),
            ("CLUSTER_NODES", nodes.as_str()),
            ("CLUSTER_SIZE", "3"),
            ("WAL_SEGMENT_BYTES", "10MiB"),
        ];
        let mut cluster = Cluster::empty(&env);
        for i in 1..=3 {
            let node = cluster.add();
            let host = format!("127.83.19.{i}");
            node.name = format!("hex_hub{i}@{host}");
            (node.http, node.raft) = (format!("{host}:{HTTP_PORT}"), format!("{host}:{RAFT_PORT}"));
            for (name, value) in [("NODE_NAME", node.name.clone()), ("BIND", host), ("NODE_INDEX", i.to_string())] {
                node.env.insert(name.into(), value);
            }
            node.env.insert("PORT".into(), HTTP_PORT.to_string());
            node.env.insert("RAFT_PORT".into(), RAFT_PORT.to_string());
        }
        let dir = cluster.node(1).data.parent().unwrap().to_path_buf();
        let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/format-3.tar.gz");
        let unpacked = Command::new("tar").arg("-C").arg(dir).args(["-xzf", archive]).status().unwrap();
        assert!(unpacked.success());
        Some(Self { cluster, _turn: turn })
    }

    fn start(&mut self) {
        for node in &mut self.cluster.nodes {
            node.start();
        }
        self.cluster.wait_formed(3);
    }
}

fn read(http: &str, key: &str) -> Option<String> {
    let answer = request(http, &get(&format!("/api/kv/{key}"))).unwrap();
    assert!(answer.status == 200 || answer.status == 404, "{answer:?}");
    (answer.status == 200).then(|| answer.text())
}

#[test]
fn a_cluster_of_format_3_is_read_and_rolled_forward_node_by_node() {
    let Some(mut fixture) = Fixture::unpack() else { return };
    fixture.start();
    let cluster = &mut fixture.cluster;
    assert_eq!(cluster.wait_same_hash(&[1, 2, 3]), FIXTURE_HASH, "the state is the one that was left");
    let http: Vec<String> = cluster.nodes.iter().map(|n| n.http.clone()).collect();
    for (n, at) in (2..60).zip(http.iter().cycle()) {
        assert_eq!(read(at, &format!("fixture/key{n}")), Some(format!("value {n} of the fixture")));
    }
    assert_eq!(read(&http[0], "fixture/key1").as_deref(), Some("second version"));
    assert_eq!(read(&http[1], "fixture/key60"), None, "it was deleted");
    assert_eq!(read(&http[2], "fixture/later30").as_deref(), Some("later 30"), "from the log, behind the snapshot");
    let past = request(&http[0], &get("/api/kv/fixture/key1?revision=60")).unwrap();
    assert_eq!(past.text(), "value 1 of the fixture", "history is kept");
    let leased = request(&http[0], &get("/api/kv/fixture/leased")).unwrap();
    assert!(leased.status == 200 && leased.headers.contains_key("x-hexkv-lease"), "{leased:?}");
    let lock = cluster.node(2).json("/api/locks/fixture-lock").unwrap();
    assert_eq!(lock["holder"]["fencing_token"], 64, "{lock}");
    let once = put("/api/kv/fixture/once", "written once").with("Idempotency-Key", "fixture-once");
    // As curl sent it.
    let once = once.with("Content-Type", "application/x-www-form-urlencoded");
    let replayed = request(&http[1], &once).unwrap();
    assert_eq!(replayed.headers.get("idempotent-replay").map(String::as_str), Some("true"), "{replayed:?}");
    for index in 1..=3 {
        let at = &http[index % 3];
        assert_eq!(cluster.node(index).stop(), Some(0));
        eventually("writes while a node is away", || {
            let answer = request(at, &put(&format!("/api/kv/rolled/{index}"), "x"))?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
        cluster.node(index).start();
        cluster.wait_formed(3);
    }
    cluster.wait_same_hash(&[1, 2, 3]);
    for (index, at) in http.iter().enumerate() {
        assert_eq!(read(at, &format!("rolled/{}", index + 1)).as_deref(), Some("x"));
        assert_eq!(read(at, "fixture/key7").as_deref(), Some("value 7 of the fixture"));
    }
}

/// The only file in `dir` with this extension, or the first by name.
fn first(dir: &Path, extension: &str) -> PathBuf {
    let paths = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    paths.filter(|p| p.extension().is_some_and(|e| e == extension)).min().expect("there is one")
}

/// Writes [`LATER`] at byte `at` of `file`, and the checksum over `covered` at `sum_at`.
fn patch(file: &Path, at: usize, covered: impl Fn(&[u8]) -> (Vec<u8>, usize)) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at..at + 4].copy_from_slice(&u32::from(LATER).to_le_bytes());
    let (covered, sum_at) = covered(&bytes);
    bytes[sum_at..sum_at + 4].copy_from_slice(&crc32fast::hash(&covered).to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}

/// Version and checksum of a small file, a segment, a snapshot.
fn patch_small(file: &Path) {
    patch(file, 8, |bytes| ([&bytes[..16], &bytes[20..]].concat(), 16));
}

fn patch_segment(file: &Path) {
    patch(file, 8, |bytes| {
        let payload = u32::from_le_bytes(bytes[40..44].try_into().unwrap()) as usize;
        (bytes[..44 + payload].to_vec(), 44 + payload)
    });
}

fn patch_snapshot(file: &Path) {
    patch(file, 8, |bytes| (bytes[..16].to_vec(), 16));
}

/// The row that says how far the state is, in the state database.
fn patch_rows(sled: &Path) {
    let engine = SledEngine::open(sled, 16 * 1024 * 1024).unwrap();
    let (mut found, mut batch) = (0, Batch::default());
    let mut visit = |key: &[u8], value: &[u8]| {
        if key.ends_with(b"progress") {
            let mut row = value.to_vec();
            row[4] = LATER;
            let crc = crc32fast::hash(&row[4..]).to_le_bytes();
            row[..4].copy_from_slice(&crc);
            batch.put(key.to_vec(), row);
            found += 1;
        }
        std::ops::ControlFlow::Continue(())
    };
    engine.scan(&Span::new(&KeyRange::default(), false), &mut visit).unwrap();
    assert_eq!(found, 1);
    engine.write(&batch).unwrap();
    engine.sync().unwrap();
}

#[test]
fn what_a_later_version_wrote_is_refused_and_kept() {
    let Some(mut fixture) = Fixture::unpack() else { return };
    let cluster = &mut fixture.cluster;
    let data = cluster.node(1).data.clone();
    let good = data.with_extension("good");
    let copy = |from: &Path, to: &Path| {
        if to.is_dir() {
            std::fs::remove_dir_all(to).unwrap();
        }
        assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
    };
    copy(&data, &good);
    let state = data.join("state/1");
    type Patch<'a> = (&'a str, PathBuf, fn(&Path));
    let places: [Patch<'_>; 7] = [
        ("identity", data.join("identity"), patch_small),
        ("run", data.join("run"), patch_small),
        ("peers", data.join("peers"), patch_small),
        ("the log", first(&data.join("wal"), "wal"), patch_segment),
        ("the change log", first(&state.join("changes"), "log"), patch_segment),
        ("a snapshot", first(&data.join("snapshots"), "snap"), patch_snapshot),
        ("the state's progress", state.join("sled"), patch_rows),
    ];
    // What every start notes, the log's mark that it was closed, and what sled does by itself.
    let noted = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        ["identity", "run", "lock", "CLEAN"].contains(&name.as_str())
            || path.starts_with(state.join("sled"))
            || path.starts_with(data.join("wal"))
    };
    for (what, path, patch) in places {
        patch(&path);
        let kept = || tree(&data).into_iter().filter(|(path, _)| !noted(path)).collect::<Vec<_>>();
        let before = kept();
        let (code, log) = cluster.node(1).run_to_end();
        assert_eq!(code, Some(1), "{what}: {log}");
        let says = log.contains(&format!("format version {LATER}")) && log.contains("this binary reads version");
        assert!(says && log.contains("use the binary that wrote it"), "{what}: {log}");
        let after = kept();
        let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&after), names(&before), "{what}");
        for ((path, before), (_, after)) in before.iter().zip(&after) {
            assert!(before == after, "{what}: {} was changed", path.display());
        }
        // Only what was patched: the rest is as the refused starts left it, and the cluster goes on with that.
        copy(&good.join(path.strip_prefix(&data).unwrap()), &path);
    }
    fixture.start();
    assert_eq!(fixture.cluster.wait_same_hash(&[1, 2, 3]), FIXTURE_HASH);
}

/// A frame as nodes send it: length and checksum in front.
fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let content = [&0_u64.to_le_bytes()[..], &[kind], body].concat();
    let length = (content.len() as u32).to_le_bytes();
    let crc = crc32fast::hash(&[&length[..], &content].concat()).to_le_bytes();
    [&length[..], &crc, &content].concat()
}

/// Versions 98 and 99, in the form that announces a range.
const LATER_VERSIONS: u32 = LATER as u32 | 1 << 16;
/// What stands in front of the versions.
const MAGIC: &[u8] = b"hexkv/rn";
/// Kinds of frames, and the byte that says which one it is.
const HELLO: u8 = 1;
const REFUSED: u8 = 5;
const KIND_AT: usize = 16;

/// A listener that refuses whoever connects first, as a node of later versions does; its address.
fn later_node() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let refusing = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; KIND_AT + 1 + MAGIC.len() + 4];
        stream.read_exact(&mut hello).unwrap();
        let (head, versions) = hello.split_at(KIND_AT + 1 + MAGIC.len());
        assert!(head[KIND_AT] == HELLO && head.ends_with(MAGIC), "{head:?}");
        let theirs = u32::from_le_bytes(versions.try_into().unwrap());
        let refusal = Refusal::WrongVersion { ours: LATER_VERSIONS, theirs };
        stream.write_all(&frame(REFUSED, &codec::encode(&refusal))).unwrap();
        // Until the other side has read it and closes.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    (address, refusing)
}

#[test]
fn a_node_of_another_wire_version_is_refused_and_both_versions_are_named() {
    let mut cluster = Cluster::start(1);
    let hash = cluster.node(1).json("/api/cluster/hash").unwrap();
    let logs = |cluster: &Cluster, line: &str| {
        eventually("the node says why", || {
            let log = cluster.nodes[0].logged();
            if log.contains(line) { Ok(()) } else { Err(log) }
        });
    };
    let mut stream = TcpStream::connect(&cluster.node(1).raft).unwrap();
    // What follows only they understand.
    let hello = [MAGIC, &LATER_VERSIONS.to_le_bytes(), b"of a later layout"].concat();
    stream.write_all(&frame(HELLO, &hello)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[KIND_AT], REFUSED, "a refusal, not just the end: {answer:?}");
    logs(&cluster, "refused a node: protocol version 4 against versions 98 to 99");

    let (address, refusing) = later_node();
    let joined = cluster.node(1).join(&format!("hex_hub9@{address}"), false);
    assert_eq!((joined.status, joined.problem()), (409, "cluster_mismatch".into()), "{joined:?}");
    assert!(joined.text().contains("protocol versions 98 to 99 against version 4"), "{joined:?}");
    refusing.join().unwrap();
    logs(&cluster, "refused by a node: protocol versions 98 to 99 against version 4");
    cluster.node(1).ready().unwrap();
    assert_eq!(cluster.node(1).json("/api/cluster/hash").unwrap(), hash, "nothing was changed");
}
