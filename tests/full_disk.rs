//! Disks that run full under real nodes: writes are refused before the log meets the end of the disk, reads and deletes go on,
//! and all of it heals by itself. The disks are tmpfs, mounted where only the nodes see them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    doctor::{finding, until_found},
    harness::{Answer, Cluster, Node, delete, eventually, get, json, put, request, skipped},
};

/// Size of a disk, in MiB: growth is refused below 20, which is an eighth, and 10 are in reserve.
const DISK_MIB: u64 = 160;
/// Size of a disk that has room for all that a test writes, in MiB: growth is refused below 30, and 20 are in reserve.
const LARGER_DISK_MIB: u64 = 400;
const SMALL_LOG: [(&str, &str); 1] = [("WAL_SEGMENT_BYTES", "10MiB")];

/// A small disk, mounted in a namespace that lasts as long as this and the node in it.
struct Disk {
    /// Holds the namespace, and ends when nothing holds the other end of its stdin.
    holder: Child,
    /// As the tests see it.
    seen: PathBuf,
}

impl Disk {
    /// Where `node` has its data; None, and a line that says why, where none can be mounted.
    fn of(node: &mut Node, mib: u64) -> Option<Self> {
        let mounted = Self::mount(&node.data, mib).map_err(|why| skipped(format!("no disk of its own: {why}"))).ok()?;
        node.mounts_of = Some(mounted.holder.id());
        Some(mounted)
    }

    fn mount(at: &Path, mib: u64) -> Result<Self, String> {
        if !rustix::process::getuid().is_root() {
            return Err("only root can mount a file system".into());
        }
        fs::create_dir_all(at).expect("a directory");
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c"]);
        holder.arg(format!("mount -t tmpfs -o size={mib}m tmpfs \"$0\" && echo mounted && exec cat")).arg(at);
        holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = holder.spawn().map_err(|e| format!("unshare: {e}"))?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("it is a pipe")).read_line(&mut line).expect("text");
        if line != "mounted\n" {
            let mut why = String::new();
            holder.stderr.take().expect("it is a pipe").read_to_string(&mut why).expect("text");
            holder.wait().expect("a child can be waited for");
            return Err(why.trim().to_owned());
        }
        let seen = PathBuf::from(format!("/proc/{}/root{}", holder.id(), at.display()));
        Ok(Self { holder, seen })
    }

    /// Another program's file takes all but `left_mib`.
    fn fill(&self, left_mib: u64) {
        let mut file = File::options().create(true).append(true).open(self.seen.join("filler")).expect("a file");
        let mib = vec![7; 1 << 20];
        while rustix::fs::statvfs(&self.seen).expect("it tells").f_bavail >> 8 > left_mib {
            if file.write_all(&mib).is_err() {
                break;
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.seen.join("filler")).expect("it is there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        if let Err(e) = self.holder.wait() {
            eprintln!("what holds {} was not waited for: {e}", self.seen.display());
        }
    }
}

/// Waits until `GET /health` of `node` says `status`, for a reason that contains `why`.
fn until_health(node: &Node, status: &str, why: &str) {
    eventually(&format!("the health is {status}: {why}"), || {
        let health = node.json("/health")?;
        let reason = health["reason"].as_str().unwrap_or_default();
        if health["status"] == status && reason.contains(why) { Ok(()) } else { Err(health.to_string()) }
    });
}

fn metric(node: &Node, name: &str) -> f64 {
    let page = request(&node.http, &get("/metrics")).expect("an answer").text();
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {page}"))
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_deletes_and_heals() {
    let mut disks = Vec::new();
    let mut cluster = Cluster::empty(&SMALL_LOG);
    let node = cluster.add();
    let Some(disk) = Disk::of(node, DISK_MIB) else { return };
    node.start();
    eventually("it serves", || node.ready());
    let status = |answer: Result<Answer, String>| answer.expect("an answer").status;
    for n in 0..40 {
        assert_eq!(status(request(&node.http, &put(&format!("/api/kv/k{n}"), vec![b'v'; 1000]))), 200);
    }
    until_health(node, "ok", "");
    eventually("a reserve is kept", || disk.seen.join("reserve").metadata().map(|_| ()).map_err(|e| e.to_string()));

    disk.fill(30);
    until_health(node, "degraded", "the disk runs full");
    assert_eq!(status(request(&node.http, &put("/api/kv/low", "v"))), 200, "a shortage that is coming refuses nothing");

    disk.fill(0);
    until_health(node, "degraded", "the disk is full");
    eventually("the reserve is given up for what has to go on", || match disk.seen.join("reserve").exists() {
        true => Err("it is there".into()),
        false => Ok(()),
    });
    let refused = request(&node.http, &put("/api/kv/k1", "other")).expect("an answer");
    assert_eq!((refused.status, refused.problem().as_str()), (503, "unavailable"), "{refused:?}");
    let detail = refused.json()["detail"].as_str().expect("a detail").to_owned();
    assert!(detail.contains("the disk is full") && detail.contains("nothing was changed"), "{detail}");
    assert_eq!(
        request(&node.http, &get("/api/kv/k1")).expect("an answer").body,
        vec![b'v'; 1000],
        "nothing was changed"
    );
    for n in 2..40 {
        assert_eq!(status(request(&node.http, &delete(&format!("/api/kv/k{n}")))), 200, "k{n} is deleted");
    }
    assert_eq!(status(request(&node.http, &get("/api/kv/k2"))), 404);
    node.ready().expect("reads are served");
    assert_eq!((metric(node, "hexkv_disk_refuses_writes"), metric(node, "hexkv_disk_degraded")), (1.0, 1.0));
    let end = [node.http.clone()];
    let (code, found) = until_found(&end, &[], "disk", "the disk is full");
    assert_eq!((code, &found["severity"]), (1, &"error".into()), "{found}");

    disk.free();
    eventually("with room again it takes writes", || match request(&node.http, &put("/api/kv/k1", "after"))? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    until_health(node, "ok", "");
    assert_eq!(metric(node, "hexkv_disk_refuses_writes"), 0.0);
    let (_, report) = crate::doctor::doctor(&end, &[]);
    assert!(finding(&report, "disk", "the disk is full").is_none(), "{report}");
    assert!(node.runs(), "all of it without a restart");
    assert_eq!(node.stop(), Some(0));
    disks.push(disk);
}

#[test]
fn a_log_without_room_waits_and_the_other_nodes_go_on() {
    let mut disks = Vec::new();
    let mut cluster = Cluster::empty(&SMALL_LOG);
    for index in 1..=3 {
        let node = cluster.add();
        node.env.insert("NODE_INDEX".into(), index.to_string());
        node.env.insert("CLUSTER_SIZE".into(), "3".into());
        if index == 3 {
            match Disk::of(node, LARGER_DISK_MIB) {
                Some(disk) => disks.push(disk),
                None => return,
            }
        }
        node.start();
    }
    cluster.wait_formed(3);
    // The disk of a follower is to be full.
    let http = cluster.node(1).http.clone();
    if cluster.leader() == 3 {
        let to = json("POST", "/api/cluster/transfer-leader", &serde_json::json!({"to": cluster.node(1).name}));
        let moved = request(&http, &to).expect("an answer");
        assert_eq!(moved.status, 200, "{moved:?}");
        assert_ne!(cluster.leader(), 3);
    }
    disks[0].fill(0);
    until_health(&cluster.nodes[2], "degraded", "the disk is full");
    // More than what is left to it: two files of the log, and the reserve.
    let value = vec![b'v'; 1 << 20];
    for n in 0..45 {
        let written = request(&http, &put(&format!("/api/kv/{}", n % 5), value.clone())).expect("an answer");
        assert_eq!(written.status, 200, "write {n}: {written:?}");
    }
    assert!(cluster.node(3).runs(), "a full disk ends no node");
    disks[0].free();
    cluster.wait_same_hash(&[1, 2, 3]);
    until_health(&cluster.nodes[2], "ok", "");
}
