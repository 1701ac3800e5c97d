//! Data directories that are the root of a file system, as a volume of its own often is: it cannot be renamed or removed, and
//! ext4 keeps `lost+found` there. The file systems lie in files, and are mounted where only the nodes see it.

use jepsen_like::cluster::Volume;

use crate::{
    backup::{read, save, write},
    harness::{Cluster, eventually, said, volume},
};

/// The names in `dir` of `volume`, sorted.
fn names(volume: &Volume, dir: &str) -> Vec<String> {
    let seen = volume.root().join(dir);
    let names = std::fs::read_dir(&seen).unwrap_or_else(|e| panic!("{}: {e}", seen.display()));
    let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
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
        let Some(volume) = volume::of(node, volume::BYTES_DEFAULT) else { return };
        assert_eq!(names(&volume, ""), ["lost+found"], "it is the root of a file system");
        let checked = node.offline(&["restore", "--check", file]);
        assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
        assert_eq!(names(&volume, ""), ["lost+found"], "a check leaves nothing behind, and takes nothing along");
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
    let Some(volume) = volume::of(node, volume::BYTES_DEFAULT) else { return };
    node.start();
    eventually("it serves", || node.ready());
    write(&node.http, "own", "put aside");
    let joined = node.join(&target, true);
    assert_eq!(joined.status, 200, "{joined:?}");
    eventually("it serves", || node.ready());
    assert_eq!((read(&node.http, "k").as_deref(), read(&node.http, "own")), (Some("kept"), None));
    let (names, aside) = (names(&volume, ""), names(&volume, "aside-1-before-join"));
    assert!(names.iter().any(|n| n == "lost+found") && names.iter().any(|n| n == "identity"), "{names:?}");
    assert!(!aside.iter().any(|n| n == "lost+found") && aside.iter().any(|n| n == "wal"), "{aside:?}");
    assert_eq!(node.stop(), Some(0));
    volumes.push(volume);
}
