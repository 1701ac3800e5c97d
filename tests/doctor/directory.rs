//! Data directories that refuse.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path};

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use super::{doctor, finding, until_found};
use crate::harness::{Cluster, Node, binary, eventually, put, request};

/// Starts `node` so that permissions of files hold for it: root is above them, so its node is one that lacks that power.
fn start_under_permissions(node: &mut Node) -> io::Result<()> {
    binary("server");
    let starting = move || -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            // Of this thread, and of the process that it starts.
            remove_capability_from_bounding_set(CapabilitySet::DAC_OVERRIDE)?;
        }
        node.start();
        Ok(())
    };
    std::thread::scope(|scope| scope.spawn(starting).join().expect("the server starts"))
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn a_directory_that_cannot_be_written_to_is_an_error_while_the_node_goes_on() {
    let mut cluster = Cluster::empty(&[]);
    let node = cluster.add();
    if let Err(e) = start_under_permissions(node) {
        eprintln!("skipped: root's power over files cannot be given up here: {e}");
        return;
    }
    eventually("it serves", || node.ready());
    let end = [node.http.clone()];
    let (_, report) = doctor(&end, &[]);
    assert!(finding(&report, "data_dir", "").is_none(), "{report}");
    for (part, what) in [("", "cannot be written to: Permission denied"), ("wal", "wal in it: Permission denied")] {
        let path = node.data.join(part);
        set_mode(&path, 0o555);
        let (code, found) = until_found(&end, &[], "data_dir", what);
        assert_eq!((code, &found["severity"]), (1, &"error".into()));
        assert!(found["what"].as_str().is_some_and(|what| what.contains(&node.data.display().to_string())), "{found}");
        let answer = request(&node.http, &put("/api/kv/still", "served")).expect("an answer");
        assert_eq!((answer.status, node.runs()), (200, true), "{answer:?}");
        set_mode(&path, 0o755);
        let (_, report) = doctor(&end, &[]);
        assert!(finding(&report, "data_dir", "").is_none(), "{report}");
    }
}
