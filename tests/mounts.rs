//! Data directories that are the root of a file system, as a volume of its own often is: it cannot be renamed or removed, and
//! ext4 keeps `lost+found` there. The file systems lie in files, and are mounted where only the nodes see it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    backup::{read, save, write},
    containers::engine::run,
    harness::{Cluster, Node, eventually, said},
};

/// Size of a file system; its file is sparse.
const VOLUME_BYTES: u64 = 1 << 30;

/// An empty ext4, mounted in a namespace that lasts as long as this and the nodes in it.
struct Volume {
    /// Holds the namespace, and ends when nobody holds the other end of its stdin.
    holder: Child,
    at: PathBuf,
    _image: tempfile::TempDir,
}

impl Volume {
    /// Mounted at `at`; or why that cannot be had on this machine.
    fn mount(at: &Path) -> Result<Self, String> {
        if !rustix::process::getuid().is_root() {
            return Err("only root can mount a file system".into());
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        File::create_new(&image).and_then(|file| file.set_len(VOLUME_BYTES)).expect("a sparse file");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        fs::create_dir_all(at).expect("a directory");
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c"]);
        holder.arg("mount -o loop \"$0\" \"$1\" && echo mounted && exec cat").arg(&image).arg(at);
        holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = holder.spawn().map_err(|e| format!("unshare: {e}"))?;
        let mut told = String::new();
        BufReader::new(holder.stdout.take().expect("it is a pipe")).read_line(&mut told).expect("text");
        if told != "mounted\n" {
            let mut why = String::new();
            holder.stderr.take().expect("it is a pipe").read_to_string(&mut why).expect("text");
            holder.wait().expect("a child can be waited for");
            return Err(format!("a file system cannot be mounted: {}", why.trim()));
        }
        Ok(Self { holder, at: at.to_path_buf(), _image: dir })
    }

    /// Mounted where `node` has its data, and the node is to see it; None, and a line that says why, where it cannot be.
    fn of(node: &mut Node) -> Option<Self> {
        let volume =
            Self::mount(&node.data).map_err(|why| println!("skipped: no volume on this machine: {why}")).ok()?;
        node.mounts_of = Some(volume.holder.id());
        assert_eq!(volume.names(""), ["lost+found"], "it is the root of a file system");
        Some(volume)
    }

    /// The names in `dir` of it, sorted.
    fn names(&self, dir: &str) -> Vec<String> {
        let seen = format!("/proc/{}/root{}/{dir}", self.holder.id(), self.at.display());
        let names = fs::read_dir(&seen).unwrap_or_else(|e| panic!("{seen}: {e}"));
        let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        if let Err(e) = self.holder.wait() {
            eprintln!("what holds {} was not waited for: {e}", self.at.display());
        }
    }
}

#[test]
fn a_mounts_root_with_lost_and_found_takes_a_restore_a_recovery_and_a_new_node() {
    // Before the cluster, whose nodes are to end first.
    let mut volumes = Vec::new();
    let mut cluster = Cluster::start(1);
    let (first, name) = (cluster.node(1).http.clone(), cluster.node(1).name.clone());
    write(&first, "k", "kept");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b");
    save(&first, &file);
    assert_eq!(cluster.node(1).stop(), Some(0));
    let (file, lost) = (file.to_str().unwrap(), cluster.node(1).data.clone());

    let made: [&[&str]; 2] =
        [&["restore", file], &["recover", "--from", lost.to_str().unwrap(), "--confirm", name.as_str()]];
    for args in made {
        let node = cluster.add();
        let Some(volume) = Volume::of(node) else { return };
        let checked = node.offline(&["restore", "--check", file]);
        assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
        assert_eq!(volume.names(""), ["lost+found"], "a check leaves nothing behind, and takes nothing along");
        let done = node.offline(args);
        assert_eq!(done.status.code(), Some(0), "{args:?}: {}", said(&done));
        node.start();
        eventually("it serves", || node.ready());
        assert_eq!(read(&node.http, "k").as_deref(), Some("kept"), "{args:?}");
        volumes.push(volume);
    }

    // A join puts the data that the node had before aside, and not what is the file system's.
    let target = format!("{name}:{}", cluster.node(2).raft.rsplit(':').next().unwrap()).replace("hub1", "hub2");
    let node = cluster.add();
    let Some(volume) = Volume::of(node) else { return };
    node.start();
    eventually("it serves", || node.ready());
    write(&node.http, "own", "put aside");
    let joined = node.join(&target, true);
    assert_eq!(joined.status, 200, "{joined:?}");
    eventually("it serves", || node.ready());
    assert_eq!((read(&node.http, "k").as_deref(), read(&node.http, "own")), (Some("kept"), None));
    let (names, aside) = (volume.names(""), volume.names("aside-1-before-join"));
    assert!(names.iter().any(|n| n == "lost+found") && names.iter().any(|n| n == "identity"), "{names:?}");
    assert!(!aside.iter().any(|n| n == "lost+found") && aside.iter().any(|n| n == "wal"), "{aside:?}");
    assert_eq!(node.stop(), Some(0));
    volumes.push(volume);
}
