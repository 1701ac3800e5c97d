//! One client that uses every limit of a node to its end, one after the other: writes and reads through the other nodes go on, and
//! the node itself serves again once the client has gone.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    availability::Askers,
    harness::{Cluster, eventually, get, json as request_with, put, request},
    limits::{connect, raise_files},
};

/// Connections that node 1 takes.
const CONNECTIONS_MAX: usize = 1_500;
/// How long each limit is held at its end.
const HOLD: Duration = Duration::from_secs(3);
/// Connections that flood the node with requests, and requests that each sends ahead.
const FLOODING: usize = 8;
const AHEAD: usize = 64;

/// Begins a request whose answer is not read.
fn begin(address: &str, head: &str, body: &str) -> TcpStream {
    let mut stream = connect(address);
    let length =
        if head.contains("Transfer-Encoding") { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    // The node may refuse, and close, before all is sent.
    stream.write_all(format!("{head}\r\nHost: x\r\n{length}\r\n{body}").as_bytes()).ok();
    stream
}

fn held(address: &str, count: usize, mut request: impl FnMut(usize) -> (String, String)) {
    let streams: Vec<TcpStream> = (0..count)
        .map(|n| {
            let (head, body) = request(n);
            begin(address, &head, &body)
        })
        .collect();
    std::thread::park_timeout(HOLD);
    drop(streams);
}

/// Sends requests as fast as the node answers them, over [`FLOODING`] connections.
fn flood(address: &str, request: impl Fn(usize) -> String + Sync) {
    let end = Instant::now() + HOLD;
    std::thread::scope(|scope| {
        for connection in 0..FLOODING {
            let request = &request;
            scope.spawn(move || {
                let mut stream = connect(address);
                let mut answers = [0; 64 * 1024];
                let mut number = connection;
                while Instant::now() < end {
                    let mut ahead = String::new();
                    for _ in 0..AHEAD {
                        ahead += &request(number);
                        number += FLOODING;
                    }
                    if stream.write_all(ahead.as_bytes()).is_err() || !matches!(stream.read(&mut answers), Ok(1..)) {
                        stream = connect(address);
                    }
                }
            });
        }
    });
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn serves(address: &str) {
    eventually("the node serves again", || {
        let written = request(address, &put("/api/kv/after", "v"))?;
        let read = request(address, &get("/api/kv/after"))?;
        if (written.status, read.status) == (200, 200) { Ok(()) } else { Err(format!("{written:?} {read:?}")) }
    });
}

#[test]
fn one_client_at_every_limit_stops_no_other() {
    assert!(raise_files() > 4 * CONNECTIONS_MAX as u64, "the test itself needs files");
    let mut cluster = Cluster::start_with(3, &[("CONNECTIONS_MAX", &CONNECTIONS_MAX.to_string())]);
    let node = cluster.node(1).http.clone();
    for from in (0..2_000).step_by(125) {
        let puts: Vec<_> =
            (from..from + 125).map(|i| json!({"op": "put", "key": format!("m/{i:04}"), "text": "v"})).collect();
        let answer = request(&node, &request_with("POST", "/api/txn", &json!({ "success": puts }))).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let others = [cluster.node(2).http.clone(), cluster.node(3).http.clone()];
    let counts = json!({ "success": vec![json!({"op": "list", "prefix": "m/", "count_only": true}); 100] }).to_string();
    let get_head = |path: &str| (format!("GET {path} HTTP/1.1"), String::new());
    let typed = "Content-Type: application/json";
    let steps: [(&str, &dyn Fn()); 11] = [
        ("silent bodies", &|| {
            held(&node, 600, |_| {
                (format!("POST /api/txn?timeout=300s HTTP/1.1\r\n{typed}\r\nTransfer-Encoding: chunked"), String::new())
            });
        }),
        ("unread listings", &|| held(&node, 200, |_| get_head("/api/kv?prefix=m/"))),
        ("unread snapshots", &|| held(&node, 8, |_| get_head("/api/snapshot"))),
        ("watches", &|| held(&node, 1_000, |_| get_head("/api/watch?prefix=m/"))),
        ("long polls", &|| held(&node, 1_000, |n| get_head(&format!("/api/kv/poll{}?after=0&wait=300s", n % 3)))),
        ("waiters for locks", &|| {
            held(&node, 500, |n| {
                (
                    format!("POST /api/locks/l{} HTTP/1.1\r\n{typed}", n % 3),
                    json!({"ttl": "2s", "wait": "60s"}).to_string(),
                )
            });
        }),
        ("event readers", &|| held(&node, 1_000, |_| get_head("/api/cluster/events"))),
        ("transactions that count", &|| flood(&node, |_| post("/api/txn", "", &counts))),
        ("writes with a key each", &|| {
            flood(&node, |n| {
                post(
                    "/api/txn",
                    &format!("Idempotency-Key: k{n}\r\n"),
                    r#"{"success":[{"op":"put","key":"i","text":"v"}]}"#,
                )
            });
        }),
        ("leases", &|| flood(&node, |_| post("/api/leases", "", r#"{"ttl":"2s"}"#))),
        ("connections", &|| held(&node, CONNECTIONS_MAX + 500, |_| get_head("/api/kv/slow"))),
    ];
    for (limit, reach) in steps {
        let askers = Askers::start(&others);
        reach();
        askers.wait_for(1);
        askers.judge(limit);
        serves(&node);
    }
    cluster.wait_same_hash(&[1, 2, 3]);
}
