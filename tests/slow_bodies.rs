//! Bodies that are announced, stall, trickle or come slowly, many at a time: they cost bounded memory, and others are served.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{Cluster, Node, PATIENCE, Stops, eventually, json as request_with, put, request},
    limits::{MIB, connect, raise_files, rest, rss},
    metrics::page,
};

/// Bodies that a node receives at a time at most, in bytes, buffers included.
const BODIES_BYTES_MAX: u64 = 256 * MIB;
/// Between two pieces of a slow body.
const PAUSE: Duration = Duration::from_millis(250);

fn begun(address: &str, head: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(format!("{head}\r\nHost: x\r\n\r\n").as_bytes()).expect("sent");
    stream
}

fn assert_small_changes_work(http: &str) {
    let answer = request(http, &put("/api/kv/small", vec![b's'; 200])).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let change = json!({"success": [{"op": "put", "key": "t", "text": "v"}]});
    let answer = request(http, &request_with("POST", "/api/txn", &change)).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn assert_ended_with_408(stream: &mut TcpStream) {
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer:?}");
    assert!(answer.contains("\"request_timeout\"") && answer.contains("nothing was changed"), "{answer:?}");
}

fn bodies(node: &Node) -> Result<(f64, f64), String> {
    let page = page(&node.http)?;
    Ok((page.must("hexkv_request_bodies", &[]), page.must("hexkv_request_bodies_bytes", &[])))
}

#[test]
fn silent_bodies_take_no_room_and_are_ended_with_408() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let chunked = "POST /api/txn?timeout=300s HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked";
    let announced = "PUT /api/kv/big?timeout=300s HTTP/1.1\r\nContent-Length: 1572864";
    let small = "POST /api/locks/l HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 10";
    let heads = [(chunked, 40), (announced, 400), (small, 20)];
    let mut silent: Vec<TcpStream> =
        heads.iter().flat_map(|(head, count)| (0..*count).map(|_| begun(&http, head))).collect();
    eventually("all are being received", || match bodies(cluster.node(1))? {
        (count, bytes) if count >= 460.0 && bytes < 64.0 * MIB as f64 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_small_changes_work(&http);
    for stream in &mut silent {
        assert_ended_with_408(stream);
    }
    assert_small_changes_work(&http);
    assert_eq!(bodies(cluster.node(1)).expect("metrics"), (0.0, 0.0));
}

#[test]
fn a_body_that_trickles_is_ended_and_a_slow_one_is_taken() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    // A burst at the beginning does not pay for silence later.
    let mut trickling = begun(&http, "PUT /api/kv/trickle?timeout=300s HTTP/1.1\r\nContent-Length: 1000000");
    trickling.write_all(&[1; 100_000]).expect("sent");
    let (size, piece) = (60 * 1024, 1024);
    let mut slow =
        begun(&http, &format!("PUT /api/kv/slow?timeout=300s HTTP/1.1\r\nConnection: close\r\nContent-Length: {size}"));
    let began = Instant::now();
    for _ in 0..size / piece {
        slow.write_all(&vec![2; piece]).expect("4 KiB/s are enough");
        if trickling.write_all(b"x").is_err() {
            assert!(began.elapsed() > Duration::from_secs(4));
        }
        std::thread::park_timeout(PAUSE);
    }
    assert!(began.elapsed() > Duration::from_secs(10), "longer than two windows: {:?}", began.elapsed());
    let answer = rest(&mut slow);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    // What it sent after the answer may have reset the connection, so that the answer is lost; the end is not.
    let answer = rest(&mut trickling);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer:?}");
    assert_eq!(request(&http, &crate::harness::get("/api/kv/trickle")).expect("an answer").status, 404);
}

/// Keeps bodies at the rate of 4 KiB/s until `stop`, and counts those that the node ended.
fn keep_sending(streams: &mut Vec<TcpStream>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        streams.retain_mut(|stream| match stream.write_all(&[3; 1024]) {
            Ok(()) => true,
            Err(e) => !matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        });
        std::thread::park_timeout(PAUSE);
    }
}

#[test]
fn slow_large_bodies_make_room_for_bodies_that_send() {
    const SLOW: usize = 40;
    let mut cluster = Cluster::start_with(1, &[("VALUE_BYTES_MAX", "8MiB")]);
    let http = cluster.node(1).http.clone();
    let before = rss(cluster.node(1));
    let size = 8 * MIB as usize;
    let mut slow: Vec<TcpStream> = (0..SLOW)
        .map(|_| begun(&http, &format!("PUT /api/kv/slow?timeout=300s HTTP/1.1\r\nContent-Length: {size}")))
        .collect();
    // Together more than all room: those that send last make the others go.
    let first = vec![1; size - MIB as usize];
    for stream in &mut slow {
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        // The node may end one in the middle of it.
        if let Err(e) = stream.write_all(&first) {
            assert!(matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{e}");
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| keep_sending(&mut slow, &stop));
        let (count, bytes) = bodies(cluster.node(1)).expect("metrics");
        println!("{count} bodies of {SLOW} hold {} MiB", bytes as u64 / MIB);
        assert!(count >= 20.0 && bytes <= BODIES_BYTES_MAX as f64, "{count} bodies, {bytes} bytes");
        for _ in 0..20 {
            assert_small_changes_work(&http);
        }
        let large = request(&http, &put("/api/kv/large", vec![7; 7 * MIB as usize])).expect("an answer");
        assert_eq!(large.status, 200, "{large:?}");
        let during = rss(cluster.node(1));
        println!("{} MiB, then {} MiB", before / MIB, during / MIB);
        // Beside the bodies: the log and the state of what was written, and what the allocator keeps.
        assert!(during < before + BODIES_BYTES_MAX + 160 * MIB, "from {} to {} MiB", before / MIB, during / MIB);
    });
    drop(slow);
    eventually("the room is given back", || match bodies(cluster.node(1))? {
        (0.0, 0.0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn thousands_of_partial_bodies_cost_bounded_memory() {
    let count = 7_000.min(raise_files().saturating_sub(500));
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let before = rss(cluster.node(1));
    let partial =
        [b"PUT /api/kv/part HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".as_slice(), &[9; 40_000]].concat();
    let mut most = 0;
    let streams: Vec<TcpStream> = (0..count)
        .map(|at| {
            let mut stream = connect(&http);
            if let Err(e) = stream.write_all(&partial) {
                assert!(matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{e}");
            }
            if at % 500 == 0 {
                most = most.max(rss(cluster.node(1)));
            }
            stream
        })
        .collect();
    let (bodies, bytes) = bodies(cluster.node(1)).expect("metrics");
    most = most.max(rss(cluster.node(1)));
    let (before, most) = (before / MIB, most / MIB);
    println!("{count} connections, {bodies} bodies in {} MiB: {before} MiB, then {most} MiB", bytes as u64 / MIB);
    assert!(bytes <= BODIES_BYTES_MAX as f64);
    assert!(most < before + BODIES_BYTES_MAX / MIB + 64, "from {before} to {most} MiB");
    assert_small_changes_work(&http);
    // Each of them gets an answer, or its end.
    for mut stream in streams.into_iter().step_by(100) {
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}"),
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let ended = ["HTTP/1.1 408", "HTTP/1.1 429"].iter().any(|status| answer.starts_with(status));
        assert!(answer.is_empty() || ended, "{answer:?}");
    }
}
