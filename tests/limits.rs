//! What a node takes, and what it refuses: memory stays bounded, and what is refused changes nothing.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::harness::{Cluster, Node, eventually, get, put, request};

pub const MIB: u64 = 1024 * 1024;
/// Connections that a node is to hold.
const CONNECTIONS: u64 = 10_000;
/// Longest wait for what a node has to do by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory that the node's process has, in bytes.
pub fn rss(node: &Node) -> u64 {
    let path = format!("/proc/{}/status", node.pid().expect("it runs"));
    let status = std::fs::read_to_string(path).expect("a process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    stream
}

/// Lets the tests open as many files as they may; how many that is.
pub fn raise_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Sends `bytes`, and reads until the node closes the connection, which it has to do.
fn until_closed(address: &str, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(bytes).expect("the node takes it");
    rest(&mut stream)
}

pub fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("the connection stays open after {:?}: {e}", String::from_utf8_lossy(&answer)),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn requests_that_can_be_read_in_two_ways_are_refused_and_end_their_connection() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    request(&http, &put("/api/kv/k", "v")).expect("an answer");
    let hash = cluster.node(1).json("/api/cluster/hash").expect("a hash")["hash"].clone();
    // Behind each stands a request that must never be taken for one.
    let smuggled = "PUT /api/kv/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\ns";
    let chunked = "Transfer-Encoding: chunked\r\n";
    for head in [
        "Content-Length: 0\r\nContent-Length: 5\r\n\r\n".to_owned(),
        "Content-Length: 0, 5\r\n\r\n".to_owned(),
        "Content-Length: -1\r\n\r\n".to_owned(),
        "Content-Length: +1\r\n\r\n".to_owned(),
        "Content-Length: 0x1\r\n\r\n".to_owned(),
        "Content-Length: 99999999999999999999\r\n\r\n".to_owned(),
        "Content-Length : 0\r\n\r\n".to_owned(),
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".to_owned(),
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".to_owned(),
        "X-Folded: a\r\n b\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "X-Nul: a\0b\r\nContent-Length: 0\r\n\r\n".to_owned(),
        format!("{chunked}\r\nZZ\r\n"),
        format!("{chunked}\r\n-1\r\n"),
        format!("{chunked}\r\n10000000000000000\r\n"),
        format!("{chunked}\r\n1\r\nabc\r\n0\r\n\r\n"),
    ] {
        let bytes = format!("PUT /api/kv/refused HTTP/1.1\r\nHost: x\r\n{head}{smuggled}");
        let answer = until_closed(&http, bytes.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{head:?}: {answer:?}");
    }
    for line in ["PUT  /api/kv/refused HTTP/1.1", "PUT /api/kv/refused", "PUT /api/kv/refused HTTP/3.7", "\0", "{}"] {
        let answer = until_closed(&http, format!("{line}\r\nHost: x\r\n\r\n{smuggled}").as_bytes());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{line:?}: {answer:?}");
    }
    let after = cluster.node(1).json("/api/cluster/hash").expect("a hash")["hash"].clone();
    assert_eq!(after, hash, "nothing was changed");
    // With both lengths the chunks count, as RFC 9112 has it, and nothing after them is read.
    for lengths in [format!("{chunked}Content-Length: 5\r\n"), format!("Content-Length: 5\r\n{chunked}")] {
        let whole = format!("PUT /api/kv/last HTTP/1.1\r\nHost: x\r\n{lengths}\r\n1\r\nx\r\n0\r\n\r\n{smuggled}");
        let answer = until_closed(&http, whole.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200") && answer.matches("HTTP/1.1").count() == 1, "{answer:?}");
        assert_eq!(request(&http, &get("/api/kv/last")).expect("an answer").text(), "x");
    }
    assert_eq!(request(&http, &get("/api/kv/smuggled")).expect("an answer").status, 404);
}

#[test]
fn a_second_request_inside_of_a_body_is_never_carried_out() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let smuggled = "PUT /api/kv/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\ns";
    let length = smuggled.len();
    let chunk = format!("{length:x}\r\n{smuggled}\r\n0\r\n\r\n");
    // Lines that end in LF alone are lines (RFC 9112, 2.2), so that the body begins where every reader has it begin, and both
    // lengths with a chunked body are one request, the last on its connection.
    for (head, body) in [
        (format!("PUT /api/kv/outer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"), smuggled.to_owned()),
        (format!("PUT /api/kv/outer HTTP/1.1\nHost: x\nContent-Length: {length}\n\n"), smuggled.to_owned()),
        (format!("PUT /api/kv/outer HTTP/1.1\r\nHost: x\nContent-Length: {length}\r\n\n"), smuggled.to_owned()),
        ("PUT /api/kv/outer HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n".to_owned(), chunk.clone()),
        (
            "PUT /api/kv/outer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"
                .to_owned(),
            chunk.clone(),
        ),
        (
            "PUT /api/kv/outer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n"
                .to_owned(),
            chunk,
        ),
    ] {
        // What follows is read where the body ends, or not at all where that could be read in two ways.
        let last = "GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = until_closed(&http, format!("{head}{body}{last}").as_bytes());
        let answers = if head.contains("chunked") { 1 } else { 2 };
        assert!(answer.starts_with("HTTP/1.1 200"), "{head:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), answers, "{head:?}: {answer:?}");
        let outer = request(&http, &get("/api/kv/outer")).expect("an answer");
        assert_eq!(outer.text(), smuggled, "{head:?}: the whole body is the value");
        let inner = request(&http, &get("/api/kv/smuggled")).expect("an answer");
        assert_eq!(inner.status, 404, "{head:?}");
        assert_eq!(request(&http, &crate::harness::delete("/api/kv/outer")).expect("an answer").status, 200);
    }
    // A chunk's size ends in CRLF, or the request does not count.
    let bare =
        format!("PUT /api/kv/outer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n{smuggled}");
    let answer = until_closed(&http, bare.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400") && answer.matches("HTTP/1.1").count() == 1, "{answer:?}");
    assert_eq!(request(&http, &get("/api/kv/smuggled")).expect("an answer").status, 404);
}

#[test]
fn listings_that_find_no_room_in_their_time_are_told_so() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for i in 0..40 {
        let answer = request(&http, &put(&format!("/api/kv/large/{i}"), vec![i; 170 * 1024])).expect("an answer");
        assert_eq!(answer.status, 200);
    }
    let refused = eventually("a listing finds no room within a millisecond", || {
        // No read of a leader's confirmation comes before: the time is for the scan alone.
        let target = "/api/kv?prefix=large/&consistency=stale&timeout=1ms";
        let asked: Vec<_> = (0..64)
            .map(|_| {
                let http = http.clone();
                std::thread::spawn(move || request(&http, &get(target)))
            })
            .collect();
        let answers: Vec<_> = asked.into_iter().map(|asked| asked.join().expect("no panic")).collect();
        let busy = |answer: &crate::harness::Answer| answer.status == 429 && answer.text().contains("being read");
        answers.into_iter().flatten().find(busy).ok_or_else(|| "all had room".to_owned())
    });
    assert_eq!((refused.problem().as_str(), refused.headers["retry-after"].as_str()), ("overloaded", "1"));
    assert_eq!(request(&http, &get("/api/kv?prefix=large/")).expect("an answer").status, 200);
}

#[test]
fn a_body_that_is_cut_short_or_never_comes_changes_nothing() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let hash = cluster.node(1).json("/api/cluster/hash").expect("a hash")["hash"].clone();
    let bodies: [(&str, &str); 3] = [
        ("PUT /api/kv/cut", "Content-Length: 100\r\n\r\nshort"),
        ("PUT /api/kv/cut", "Transfer-Encoding: chunked\r\n\r\n64\r\nshort"),
        ("POST /api/txn", "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"success\":[]"),
    ];
    for (line, body) in bodies {
        let mut stream = connect(&http);
        stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\n{body}").as_bytes()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("closed on this side");
        let answer = rest(&mut stream);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{line}: {answer:?}");
    }
    for (line, body) in bodies.into_iter().chain([
        ("POST /api/cluster/join", "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"),
        ("PUT /api/cluster/replication-factor", "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"),
    ]) {
        let began = Instant::now();
        let answer = until_closed(&http, format!("{line}?timeout=300ms HTTP/1.1\r\nHost: x\r\n{body}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("in time"), "{line}: {answer:?}");
        assert!(began.elapsed() >= Duration::from_millis(300), "{line}");
    }
    let after = cluster.node(1).json("/api/cluster/hash").expect("a hash")["hash"].clone();
    assert_eq!(after, hash, "nothing was changed");
}

#[test]
fn a_head_that_trickles_and_a_connection_that_idles_are_cut_off() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let began = Instant::now();
    let mut idle = connect(&http);
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let mut slow = connect(&http);
    slow.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ").expect("sent");
    // A byte now and then does not prolong it.
    let mut trickle = slow.try_clone().expect("a second handle");
    let trickling = std::thread::spawn(move || {
        while trickle.write_all(b"a").is_ok() && began.elapsed() < PATIENCE {
            std::thread::park_timeout(Duration::from_millis(200));
        }
    });
    rest(&mut slow);
    assert!(rest(&mut idle).starts_with("HTTP/1.1 200"));
    assert!(began.elapsed() > Duration::from_secs(5) && began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    trickling.join().expect("it ends when the connection does");
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let mut cluster = Cluster::start_with(1, &[("CONNECTIONS_MAX", "5")]);
    let http = cluster.node(1).http.clone();
    let held: Vec<TcpStream> = (0..5).map(|_| connect(&http)).collect();
    eventually("a connection too many is refused", || {
        let refused = rest(&mut connect(&http));
        let told = refused.starts_with("HTTP/1.1 429") && refused.contains("Retry-After: 1");
        if told && refused.contains("overloaded") { Ok(()) } else { Err(refused) }
    });
    // A supervisor that ended the process would make it worse.
    let alive = request(&http, &get("/health/live")).expect("an answer");
    assert_eq!((alive.status, alive.json()["status"].as_str()), (200, Some("ok")), "{alive:?}");
    for other in [get("/health/ready"), put("/api/kv/k", "v"), get("/health/live/x")] {
        let refused = request(&http, &other).expect("an answer");
        assert_eq!((refused.status, refused.problem().as_str()), (429, "overloaded"), "{refused:?}");
    }
    drop(held);
    eventually("there is room again", || {
        let answer = request(&http, &get("/health/live"))?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

#[test]
fn changes_beyond_the_limit_are_answered_429_at_once_and_nothing_is_changed() {
    let mut cluster = Cluster::start_with(3, &[("PROPOSALS_MAX", "1")]);
    let leader = cluster.leader();
    let http = cluster.node(leader).http.clone();
    let others: Vec<usize> = (1..=3).filter(|index| *index != leader).collect();
    for index in &others {
        cluster.node(*index).signal(Signal::STOP);
    }
    let mut pending = Vec::new();
    let refused = eventually("the second change is refused", || {
        // It stays in flight, because nobody else takes it; unless another change was there before it.
        let mut first = connect(&http);
        first
            .write_all(b"PUT /api/kv/pending?timeout=20s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\np")
            .expect("sent");
        pending.push(first);
        let answer = request(&http, &put("/api/kv/refused?timeout=100ms", "r"))?;
        if answer.status == 429 { Ok(answer) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!(refused.problem(), "overloaded");
    assert_eq!(refused.headers["retry-after"], "1");
    for index in &others {
        cluster.node(*index).signal(Signal::CONT);
    }
    drop(pending);
    cluster.wait_formed(3);
    eventually("changes are taken again", || {
        let answer = request(&http, &put("/api/kv/again", "a"))?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

#[test]
fn clients_that_do_not_take_their_listings_cost_bounded_memory() {
    const READERS: usize = 80;
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for i in 0..40 {
        let answer = request(&http, &put(&format!("/api/kv/large/{i}"), vec![i; 170 * 1024])).expect("an answer");
        assert_eq!(answer.status, 200);
    }
    let whole = request(&http, &get("/api/kv?prefix=large/")).expect("an answer").json();
    assert_eq!(whole["count"], 40);
    let before = rss(cluster.node(1));
    let mut readers: Vec<TcpStream> = (0..READERS)
        .map(|_| {
            let mut stream = connect(&http);
            // Each page is read before it is refused, eight at a time; no request waits longer for its turn than it says.
            stream.set_read_timeout(Some(4 * PATIENCE)).expect("a socket takes a timeout");
            stream.write_all(b"GET /api/kv?prefix=large/&timeout=120s HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
            stream
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for reader in &mut readers {
        let mut line = [0; 12];
        reader.read_exact(&mut line).expect("an answer begins");
        match &line {
            b"HTTP/1.1 200" => served += 1,
            b"HTTP/1.1 429" => refused += 1,
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
    }
    let during = rss(cluster.node(1));
    println!("{served} listings of 7 MiB held, {refused} refused: {} MiB, then {} MiB", before / MIB, during / MIB);
    assert!(served >= 30, "{served} served, {refused} refused");
    // All of them would take 80 times 9 MiB, in base64. What is held is bounded by 256 MiB; eight more are being read, and the
    // allocator keeps some of what was freed.
    assert!(during < before + 512 * MIB, "from {} to {} MiB", before / MIB, during / MIB);
    // They do not stand in the way of others: a small listing, and large ones, for which some of them are cut off.
    assert_eq!(request(&http, &get("/api/kv?prefix=large/1&keys_only=true")).expect("an answer").json()["count"], 11);
    for _ in 0..5 {
        eventually("there is room for a client that takes its listing", || {
            let answer = request(&http, &get("/api/kv?prefix=large/"))?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }
    drop(readers);
}

#[test]
fn ten_thousand_connections_cost_bounded_memory() {
    let allowed = raise_files();
    // The node keeps some for itself.
    let count = CONNECTIONS.min(allowed.saturating_sub(3_000));
    if count < CONNECTIONS {
        println!("only {count} connections: {allowed} files may be open");
    }
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let before = rss(cluster.node(1));
    // With the beginning of a request on each, so that each is a reader's state as well.
    let connections: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = connect(&http);
            stream.write_all(b"GET /api/kv/k HTTP/1.1\r\nHost: x\r\n").expect("sent");
            stream
        })
        .collect();
    let answer = request(&http, &put("/api/kv/k", "v")).expect("an answer");
    let during = rss(cluster.node(1));
    println!("{count} connections: {} MiB, then {} MiB", before / MIB, during / MIB);
    assert_eq!(answer.status, 200);
    assert!(during < before + 400 * MIB, "from {} to {} MiB", before / MIB, during / MIB);
    drop(connections);
}

#[test]
fn the_largest_value_of_the_longest_key_takes_a_condition() {
    let mut cluster = Cluster::start_with(3, &[("VALUE_BYTES_MAX", "8MiB")]);
    let target = format!("/api/kv/{}", "k".repeat(4096));
    let mut etag: Option<String> = None;
    for index in 1..=3 {
        let value = vec![b'0' + index as u8; 8 * MIB as usize];
        let change = match &etag {
            None => put(&target, value.clone()).with("If-None-Match", "*"),
            Some(etag) => put(&target, value.clone()).with("If-Match", etag),
        };
        let answer = request(&cluster.node(index).http, &change).expect("an answer");
        assert_eq!(answer.status, 200, "through node {index}: {answer:?}");
        let refused = request(&cluster.node(index).http, &change).expect("an answer");
        assert_eq!((refused.status, refused.etag()), (412, answer.etag()), "through node {index}: {refused:?}");
        let read = request(&cluster.node(index).http, &get(&target)).expect("an answer");
        assert!(read.body == value, "node {index} has another value");
        etag = Some(answer.headers["etag"].clone());
    }
}
