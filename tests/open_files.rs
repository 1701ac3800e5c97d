//! Few open files: clients get what storage and other nodes leave, and can take nothing from those.

use std::{io::Write, net::TcpStream};

use crate::{
    harness::{Cluster, eventually, get, put, request},
    limits::{connect, raise_files, rest},
    metrics::page,
};

/// Files that a node may open in these tests.
const FILES: u64 = 512;
/// Connections that it takes then.
const CONNECTIONS: usize = 256;

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process has files").count()
}

/// Three nodes with few files each, which often open new ones.
fn limited() -> Cluster {
    let mut cluster = Cluster::empty(&[("WAL_SEGMENT_BYTES", "10MiB"), ("SNAPSHOT_LOG_BYTES_MIN", "1MiB")]);
    for index in 1..=3 {
        let node = cluster.add();
        node.files_max = Some(FILES);
        node.env.insert("NODE_INDEX".into(), index.to_string());
        node.env.insert("CLUSTER_SIZE".into(), "3".into());
        node.start();
    }
    cluster.wait_formed(3);
    cluster
}

#[test]
fn clients_that_take_all_connections_leave_files_for_storage() {
    raise_files();
    let mut cluster = limited();
    for index in [cluster.leader(), cluster.leader() % 3 + 1] {
        let (http, pid) = (cluster.node(index).http.clone(), cluster.node(index).pid().expect("it runs"));
        let other = cluster.other_than(index);
        let other = cluster.node(other).http.clone();
        let warned = cluster.node(index).logged();
        assert!(warned.contains("only 512 files may be open, so this node takes 256 connections"), "{warned}");
        let shown = page(&http).expect("metrics").must("hexkv_http_connections_max", &[]);
        assert_eq!(shown as usize, CONNECTIONS);
        // Watches, long polls, unfinished requests: a connection is a connection.
        let requests: [&[u8]; 3] = [
            b"GET /api/watch?prefix=none/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /api/kv/none?after=1&wait=300s HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PUT /api/kv/none HTTP/1.1\r\n",
        ];
        let held: Vec<TcpStream> = (0..2 * FILES as usize)
            .map(|at| {
                let mut stream = connect(&http);
                // Beyond the limit it may be closed by now.
                let sent = stream.write_all(requests[at % requests.len()]);
                drop(sent);
                stream
            })
            .collect();
        let refused = eventually("a connection too many is refused", || {
            let answer = rest(&mut connect(&http));
            if answer.starts_with("HTTP/1.1 429") { Ok(answer) } else { Err(answer) }
        });
        assert!(refused.contains("overloaded"), "{refused}");
        for i in 0..40 {
            let answer =
                request(&other, &put(&format!("/api/kv/big{i}?timeout=60s"), vec![i; 1_000_000])).expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let files = open_files(pid);
        println!("node {index}: {files} files of {FILES}");
        assert!(files as u64 <= FILES - FILES / 4, "{files} files of {FILES} are open");
        assert!(cluster.node(index).runs(), "it goes on");
        drop(held);
        eventually("its clients are gone", || {
            cluster.node(index).ready()?;
            let open = page(&http)?.must("hexkv_http_connections", &[]);
            if open < 10.0 { Ok(()) } else { Err(format!("{open} connections")) }
        });
        let answer = request(&http, &get("/api/kv/big39")).expect("an answer");
        assert_eq!((answer.status, answer.body.len()), (200, 1_000_000));
    }
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn too_few_files_are_an_error_and_the_limit_is_shown() {
    let mut cluster = Cluster::empty(&[]);
    let node = cluster.add();
    node.files_max = Some(200);
    let (code, log) = node.run_to_end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("only 200 files may be open, and a node needs 256"), "{log}");
    node.files_max = Some(4096);
    let shown = node.offline(&["--print-config"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for line in ["# files_open_max = 4096 ", "# files_reserved = 1088 ", "# connections_effective = 3008 "] {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
}
