//! Clients that go away while their requests wait: they lose their places and their sockets, however they go.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    process::{Command, Stdio},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    harness::{Cluster, Killed, Node, delete, eventually, get, json as request_with, put, request, skipped},
    limits::{connect, rest},
    metrics::page,
};

const LOCK: &str = "/api/locks/l";

fn lock(node: &Node) -> Value {
    request(&node.http, &get(LOCK)).expect("an answer").json()
}

/// Takes the lock for a long time; gives its token.
fn hold(node: &Node) -> String {
    let answer = request(&node.http, &request_with("POST", LOCK, &json!({"ttl": "600s", "owner": "holder"})));
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["token"].as_str().expect("a token").to_owned()
}

fn release(node: &Node, token: &str) {
    let answer = request(&node.http, &delete(&format!("{LOCK}?token={token}"))).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A request that waits for the lock, with `behind` after it.
fn waiting_request(behind: &str) -> Vec<u8> {
    let body = json!({"ttl": "600s", "wait": "600s", "owner": "gone"}).to_string();
    let length = body.len();
    let head = format!("POST {LOCK} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}");
    format!("{head}\r\n\r\n{body}{behind}").into_bytes()
}

fn wait_for_waiters(node: &Node, count: usize) {
    eventually("as many wait", || match lock(node)["waiters"].as_array().map(Vec::len) {
        Some(waiting) if waiting == count => Ok(()),
        other => Err(format!("{other:?} wait")),
    });
}

fn in_line(node: &Node, behind: &str) -> TcpStream {
    let mut stream = connect(&node.http);
    stream.write_all(&waiting_request(behind)).expect("sent");
    wait_for_waiters(node, 1);
    stream
}

#[test]
fn a_waiter_that_closes_loses_its_place_whatever_it_sent_behind() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let token = hold(node);
    let pipelined = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
    for behind in ["", "\r\n", "G", &pipelined, &"x".repeat(100_000)] {
        // With its place, then with half of the connection, then by a reset.
        drop(in_line(node, behind));
        wait_for_waiters(node, 0);
        let mut half = in_line(node, behind);
        half.shutdown(Shutdown::Write).expect("closed on this side");
        wait_for_waiters(node, 0);
        assert_eq!(rest(&mut half), "", "a place is not kept for a client that sends no more");
        let reset = in_line(node, behind);
        socket2::SockRef::from(&reset).set_linger(Some(std::time::Duration::ZERO)).expect("a socket option");
        drop(reset);
        wait_for_waiters(node, 0);
    }
    release(node, &token);
    assert_eq!(lock(node)["holder"], Value::Null);
}

#[test]
fn a_lock_that_is_granted_to_a_gone_client_is_given_back() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let paused = cluster.other_than(leader);
    for behind in ["", "\r\n"] {
        let token = hold(&cluster.nodes[leader - 1]);
        let waiter = in_line(&cluster.nodes[paused - 1], behind);
        // When it goes on, it finds both at once: that the lock is free, and that its client is gone.
        cluster.node(paused).signal(Signal::STOP);
        drop(waiter);
        release(&cluster.nodes[leader - 1], &token);
        cluster.node(paused).signal(Signal::CONT);
        eventually("the lock is free", || match lock(&cluster.nodes[leader - 1]) {
            line if line["holder"].is_null() && line["waiters"] == json!([]) => Ok(()),
            line => Err(line.to_string()),
        });
        cluster.wait_formed(3);
    }
}

#[test]
fn a_waiter_that_vanishes_without_a_packet_loses_its_place() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let token = hold(node);
    let (host, port) = node.http.split_once(':').expect("host:port");
    // TCP_REPAIR closes a socket without a packet, as a power cut does.
    let script = "import socket, sys\n\
        s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); s.sendall(bytes.fromhex(sys.argv[3]))\n\
        sys.stdin.readline()\n\
        try: s.setsockopt(socket.IPPROTO_TCP, 19, 1)\n\
        except PermissionError: print('not allowed', flush=True); sys.stdin.readline()\n\
        else: s.close(); print('gone', flush=True)\n";
    let sent: String = waiting_request("").iter().map(|byte| format!("{byte:02x}")).collect();
    let client = Command::new("python3")
        .args(["-c", script, host, port, &sent])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut client = Killed(client.expect("python3 runs"));
    wait_for_waiters(node, 1);
    client.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it listens");
    let mut said = [0; 4];
    client.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("it says what it did");
    if &said != b"gone" {
        return skipped("TCP_REPAIR needs root");
    }
    wait_for_waiters(node, 0);
    release(node, &token);
    assert_eq!(lock(node)["holder"], Value::Null);
}

#[test]
fn closed_long_polls_and_watches_keep_no_socket() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let requests = [
        "GET /api/kv/none?after=1&wait=300s HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /api/watch?prefix=none/&progress=300s HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /api/elections/none?watch HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /api/cluster/events HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /api/kv/none?min_revision=1000000&timeout=300s HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    request(&node.http, &put("/api/kv/k", "v")).expect("an answer");
    let mut held = Vec::new();
    for request in requests {
        for behind in ["", "\r\n", requests[0]] {
            let mut stream = connect(&node.http);
            stream.write_all(format!("{request}{behind}").as_bytes()).expect("sent");
            held.push(stream);
        }
    }
    let connections = || Ok::<_, String>(page(&node.http)?.must("hexkv_http_connections", &[]) as usize);
    let watchers = || Ok::<_, String>(page(&node.http)?.must("hexkv_watchers", &[]) as usize);
    eventually("all wait", || {
        let (connections, watchers) = (connections()?, watchers()?);
        if connections > held.len() && watchers >= 9 { Ok(()) } else { Err(format!("{connections}, {watchers}")) }
    });
    for (at, stream) in held.iter().enumerate() {
        let how = if at % 2 == 0 { Shutdown::Write } else { Shutdown::Both };
        stream.shutdown(how).expect("closed on this side");
    }
    eventually("none of them keeps its socket", || match (connections()?, watchers()?) {
        // The one that asks.
        (1, 0) => Ok(()),
        (connections, watchers) => Err(format!("{connections} connections, {watchers} watches")),
    });
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let change = "PUT /api/kv/half HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    let read = "GET /api/kv/half HTTP/1.1\r\nHost: x\r\n\r\n";
    let locked =
        "POST /api/locks/half HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    for (sent, found) in [(change, "\"revision\""), (read, "hello"), (locked, "\"token\"")] {
        let mut stream = connect(&node.http);
        stream.write_all(sent.as_bytes()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("closed on this side");
        let answer = rest(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(found), "{sent}: {answer:?}");
    }
    // Both of two requests that came together.
    let mut stream = connect(&node.http);
    stream.write_all(format!("{change}{read}").as_bytes()).expect("sent");
    stream.shutdown(Shutdown::Write).expect("closed on this side");
    let answers = rest(&mut stream);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers:?}");
}
