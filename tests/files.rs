//! Files that the binaries write: only their owner reads them, and what is not a file is never replaced by one.

use std::{
    fs::{self, Permissions},
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
};

use crate::harness::{Cluster, Killed, binary, client, eventually, inheriting, local::Local, put, request, said};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mode() & 0o777
}

/// Checks that no other user can read or change `path` or what is in it. Answers how many files there are.
fn assert_private(path: &Path) -> usize {
    let kind = fs::symlink_metadata(path).unwrap();
    assert_eq!(mode(path) & 0o077, 0, "{} has mode {:o}", path.display(), mode(path));
    if !kind.is_dir() {
        return 1;
    }
    fs::read_dir(path).unwrap().map(|entry| assert_private(&entry.unwrap().path())).sum()
}

#[test]
fn data_directories_are_for_their_owner_only() {
    let mut cluster = Cluster::empty(&[("STATE_ENGINE", "sled")]);
    let node = cluster.add();
    // As a version before left it.
    fs::create_dir(&node.data).unwrap();
    fs::set_permissions(&node.data, Permissions::from_mode(0o755)).unwrap();
    node.start();
    eventually("it serves", || node.ready());
    assert_eq!(request(&node.http, &put("/api/kv/k", b"v")).unwrap().status, 200);
    assert_eq!(mode(&node.data), 0o700);
    let log = node.logged();
    assert_eq!(log.matches("other users had access to the data directory (mode 755)").count(), 1, "{log}");
    let files = assert_private(&node.data);
    assert!(files > 3, "{files} files");
    let home = tempfile::tempdir().unwrap();
    let backup = home.path().join("backup");
    let saved = client(&node.http, &["snapshot", "save", backup.to_str().unwrap()]);
    assert_eq!(saved.status.code(), Some(0), "{}", said(&saved));
    assert_eq!(mode(&backup), 0o600);
    let restored = cluster.add();
    let made = restored.offline(&["restore", backup.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    assert!(assert_private(&restored.data) > 3);
}

#[test]
fn local_clusters_are_for_their_owner_only() {
    let local = Local::new(0);
    let started = local.run(&["start", "--size", "1"]);
    assert_eq!(started.status.code(), Some(0), "{}", said(&started));
    assert!(assert_private(&local.dir.path().join("cluster")) > 5, "record, lock, log and data");
}

#[test]
fn an_export_replaces_regular_files_only() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    assert_eq!(request(&http, &put("/api/kv/k", b"v")).unwrap().status, 200);
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let export = |path: &Path| client(&http, &["export", "--file", path.to_str().unwrap()]);

    let new = at("new");
    assert_eq!(export(&new).status.code(), Some(0));
    assert_eq!(mode(&new), 0o600);
    let whole = fs::read(&new).unwrap();
    for kept in [0o600, 0o644] {
        fs::set_permissions(&new, Permissions::from_mode(kept)).unwrap();
        assert_eq!(export(&new).status.code(), Some(0));
        assert_eq!(mode(&new), kept, "the mode of a file stays");
    }

    symlink(&new, at("link")).unwrap();
    fs::write(&new, "before").unwrap();
    assert_eq!(export(&at("link")).status.code(), Some(0));
    assert!(at("link").is_symlink() && fs::read(&new).unwrap() == whole, "the link's target is written");
    symlink(at("nowhere"), at("dangling")).unwrap();
    let refused = export(&at("dangling"));
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(!at("nowhere").exists());

    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let mut command = inheriting("client");
    command.args(["--endpoints", &http, "export", "--file"]).arg(at("fifo")).stderr(Stdio::null());
    let mut exporting = Killed(command.spawn().unwrap());
    let mut came = Vec::new();
    fs::File::open(at("fifo")).unwrap().read_to_end(&mut came).unwrap();
    assert!(exporting.wait().unwrap().success());
    assert_eq!(came, whole, "a FIFO gets the bytes");
    assert!(fs::symlink_metadata(at("fifo")).unwrap().file_type().is_fifo());
    let out = export(Path::new("/dev/stdout"));
    assert_eq!((out.status.code(), &out.stdout), (Some(0), &whole), "{}", said(&out));
    assert_eq!(export(Path::new("/dev/null")).status.code(), Some(0));

    fs::create_dir(at("dir")).unwrap();
    let refused = export(&at("dir"));
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("not a regular file"), "{}", said(&refused));
    fs::write(at("victim"), "precious").unwrap();
    symlink(at("victim"), at("planted.partial")).unwrap();
    let refused = export(&at("planted"));
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert_eq!(fs::read(at("victim")).unwrap(), b"precious", "what is planted is not followed");
    let left = fs::read_dir(home.path()).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".partial") && name != "planted.partial"
    });
    assert_eq!(left.count(), 0, "nothing unfinished is left");
}

#[test]
fn a_snapshot_replaces_regular_files_only() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let save = |path: &Path| client(&http, &["snapshot", "save", "--force", path.to_str().unwrap()]);
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    fs::create_dir(at("dir")).unwrap();
    for path in [&at("fifo"), &at("dir"), Path::new("/dev/null")] {
        let refused = save(path);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(said(&refused).contains("not a regular file"), "{}", said(&refused));
    }
    assert!(fs::symlink_metadata(at("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata("/dev/null").unwrap().file_type().is_char_device());
    fs::write(at("file"), "before").unwrap();
    fs::set_permissions(at("file"), Permissions::from_mode(0o640)).unwrap();
    symlink(at("file"), at("link")).unwrap();
    let refused = client(&http, &["snapshot", "save", at("link").to_str().unwrap()]);
    assert!(said(&refused).contains("--force replaces it"), "{}", said(&refused));
    assert_eq!(fs::read(at("file")).unwrap(), b"before");
    let saved = save(&at("link"));
    assert_eq!(saved.status.code(), Some(0), "{}", said(&saved));
    assert!(at("link").is_symlink() && mode(&at("file")) == 0o640);
    let whole = client(&http, &["snapshot", "verify", at("file").to_str().unwrap()]);
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
}

#[test]
fn input_without_an_end_is_refused_at_once() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let refused = client(&http, &["put", "k", "--file", "/dev/zero"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("more than 8388608 bytes"), "{}", said(&refused));
    let endless = |args: &[&str]| {
        let mut yes = Killed(Command::new("yes").stdout(Stdio::piped()).spawn().unwrap());
        let mut command = inheriting("client");
        command.args(["--endpoints", &http]).args(args).stdin(yes.stdout.take().unwrap());
        command.output().unwrap()
    };
    for (args, expected) in [
        (&["put", "k", "-"] as &[&str], "more than 8388608 bytes"),
        (&["txn"], "more than 16777216 bytes"),
        (&["import"], "line 1"),
        (&["import", "/dev/zero"], "longer than"),
    ] {
        let refused = endless(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {}", said(&refused));
        assert!(said(&refused).contains(expected), "{args:?}: {}", said(&refused));
    }
    assert_eq!(client(&http, &["get", "k"]).status.code(), Some(1), "nothing was written");
    let refused = Command::new(binary("server")).args(["--config", "/dev/zero", "--print-config"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
}
