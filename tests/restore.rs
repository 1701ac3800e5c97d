//! Restores: a new cluster from a backup, under clients of the old one.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use hexkv_client::{
    Client, Error, Options,
    api::Code,
    kv::KeyRange,
    watch::{Watch, WatchOptions, Watched},
};
use serde_json::json;

use crate::{
    backup::{read, save, write},
    harness::{Cluster, delete, eventually, json as json_request, put, request, said},
};

/// By how much a restore raises revisions unless told otherwise.
const BUMP: u64 = 1_000_000_000;

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
    node.break_off(&restore);
    let restored = node.offline(&restore);
    assert_eq!(restored.status.code(), Some(0), "{}", said(&restored));
    node.start();
    eventually("it serves", || node.ready());
    assert_eq!(cluster.wait_same_hash(&[2]), hash);
    assert!(!cluster.node(2).data.join("making-work").exists());
}

/// The library's watch, which resumes by itself, until it is told that history is compacted; gives the revisions that it
/// was told. It ends with nothing when the other half of `given_up` is dropped.
fn watch_until_compacted(
    endpoints: Vec<String>,
    seen: &AtomicU64,
    given_up: tokio::sync::oneshot::Receiver<()>,
) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let watched = async {
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
    };
    runtime.block_on(async {
        tokio::select! {
            told = watched => told,
            _ = given_up => Vec::new(),
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
        // Dropped when a check fails: else the scope would wait for the watch forever.
        let (_goes_on, given_up) = tokio::sync::oneshot::channel();
        let watch = scope.spawn(|| watch_until_compacted(endpoints.clone(), &seen, given_up));
        eventually("the watch is there", || {
            if seen.load(Ordering::Acquire) >= after { Ok(()) } else { Err(String::new()) }
        });
        for node in &mut cluster.nodes {
            node.kill();
            std::fs::rename(&node.data, node.data.with_extension("old")).unwrap();
        }
        let restored = cluster.node(1).offline(&["restore", file.to_str().unwrap()]);
        assert_eq!(restored.status.code(), Some(0), "{}", said(&restored));
        // One after the other, as the documentation says: empty nodes that see only each other would found a cluster.
        for index in 1..=3 {
            cluster.node(index).start();
            cluster.wait_formed(index);
        }
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
    let released = request(&http, &delete(&format!("/api/locks/l?token={token}"))).unwrap();
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
    let removed = request(&http, &delete(&format!("/api/cluster/members/{name}"))).unwrap();
    assert_eq!(removed.status, 200, "{removed:?}");
    let joined = cluster.node(3).join(&target, true);
    assert_eq!(joined.status, 200, "{joined:?}");
    cluster.wait_formed(3);
    cluster.wait_same_hash(&[1, 2, 3]);
}
