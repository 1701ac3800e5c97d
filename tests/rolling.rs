//! A restart of one node after the other, under clients that follow what they are told.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::harness::{client, get, local::Local, request, said};

/// Nodes of the cluster, and clients a node.
const NODES: usize = 3;
const CLIENTS_A_NODE: usize = 2;
/// Longest time in which a client gives up on one request.
const PATIENCE: Duration = Duration::from_secs(60);
/// After no node could be connected to.
const RECONNECT: Duration = Duration::from_millis(20);

/// A client as HTTP wants it: it keeps its connection until it is told that it closes, waits as long as Retry-After says,
/// and goes to another node when a connection is refused. A connection that breaks after a request was sent is a failure.
struct Patient {
    endpoints: Vec<String>,
    at: usize,
    stream: Option<BufReader<TcpStream>>,
}

struct Reply {
    status: u16,
    retry_after: Option<u64>,
    closes: bool,
    body: Vec<u8>,
}

impl Patient {
    /// The answer to `method target`, however often it is told to come back later.
    fn ask(&mut self, method: &str, target: &str, body: &str) -> Result<Vec<u8>, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::from("no node accepts connections");
        while Instant::now() < deadline {
            let Some(mut stream) = self.stream.take().or_else(|| self.connect()) else {
                std::thread::park_timeout(RECONNECT);
                continue;
            };
            let endpoint = &self.endpoints[self.at];
            let reply = exchange(&mut stream, endpoint, method, target, body)
                .map_err(|e| format!("{method} {target} at {endpoint}: {e}"))?;
            if !reply.closes {
                self.stream = Some(stream);
            }
            match (reply.status, reply.retry_after) {
                (200, _) => return Ok(reply.body),
                (429 | 503, Some(seconds)) => {
                    last = String::from_utf8_lossy(&reply.body).into_owned();
                    std::thread::park_timeout(Duration::from_secs(seconds));
                }
                (status, _) => {
                    return Err(format!("{method} {target}: {status} {}", String::from_utf8_lossy(&reply.body)));
                }
            }
        }
        Err(format!("{method} {target}: nothing within {PATIENCE:?}: {last}"))
    }

    /// A connection to this node, else to the next one that accepts.
    fn connect(&mut self) -> Option<BufReader<TcpStream>> {
        for _ in 0..self.endpoints.len() {
            if let Ok(stream) = TcpStream::connect(&self.endpoints[self.at]) {
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                stream.set_nodelay(true).expect("an option");
                return Some(BufReader::new(stream));
            }
            self.at = (self.at + 1) % self.endpoints.len();
        }
        None
    }
}

fn exchange(
    stream: &mut BufReader<TcpStream>,
    host: &str,
    method: &str,
    target: &str,
    body: &str,
) -> Result<Reply, String> {
    let text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.get_mut().write_all(text.as_bytes()).map_err(|e| format!("while it was sent: {e}"))?;
    let broken = |e: std::io::Error| format!("no whole answer: {e}");
    let mut line = String::new();
    if stream.read_line(&mut line).map_err(broken)? == 0 {
        return Err("the connection was closed instead of an answer".into());
    }
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| format!("no status: {line:?}"))?;
    let mut reply = Reply { status, retry_after: None, closes: false, body: Vec::new() };
    loop {
        line.clear();
        stream.read_line(&mut line).map_err(broken)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => reply.body = vec![0; value.parse().map_err(|_| format!("a length: {line:?}"))?],
            "retry-after" => reply.retry_after = value.parse().ok(),
            "connection" => reply.closes = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    stream.read_exact(&mut reply.body).map_err(broken)?;
    Ok(reply)
}

/// Writes and reads back keys of its own until `stop`; how many.
fn work(mut patient: Patient, who: usize, stop: &AtomicBool) -> Result<usize, String> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let (target, value) = (format!("/api/kv/rolling/{who}/{count}"), format!("value {count}"));
        patient.ask("PUT", &target, &value)?;
        count += 1;
        let read = patient.ask("GET", &target, "")?;
        if read != value.as_bytes() {
            return Err(format!("{target} reads {:?}", String::from_utf8_lossy(&read)));
        }
    }
    Ok(count)
}

fn pids(local: &Local) -> Vec<u64> {
    let status = local.run(&["status", "-o", "json"]);
    let rows: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    rows.as_array().expect("rows").iter().map(|row| row["pid"].as_u64().expect("it runs")).collect()
}

#[test]
fn a_rolling_restart_fails_no_request_of_a_client_that_follows_retry_after() {
    let local = Local::new(0);
    let started = local.run(&["start", "--size", &NODES.to_string()]);
    assert_eq!(started.status.code(), Some(0), "{}", said(&started));
    let endpoints: Vec<String> = (1..=NODES).map(|index| local.endpoint(index)).collect();
    let before = pids(&local);
    let stop = AtomicBool::new(false);
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..NODES * CLIENTS_A_NODE)
            .map(|who| {
                let patient = Patient { endpoints: endpoints.clone(), at: who % NODES, stream: None };
                let stop = &stop;
                scope.spawn(move || work(patient, who, stop))
            })
            .collect();
        let restarted = local.run(&["restart", "--rolling"]);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(restarted.status.code(), Some(0), "{}", said(&restarted));
        let done = clients.into_iter().map(|client| client.join().expect("a client ends"));
        done.collect::<Result<_, _>>().expect("no request fails")
    });
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let after = pids(&local);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} {after:?}");
    let listed = request(&endpoints[0], &get("/api/kv?prefix=rolling/&count_only=true")).expect("an answer").json();
    assert_eq!(listed["count"].as_u64(), Some(counts.iter().sum::<usize>() as u64), "{listed}");
    let hash = client(&endpoints[0], &["hash"]);
    assert_eq!(hash.status.code(), Some(0), "{}", said(&hash));
}

#[test]
fn a_cluster_that_cannot_miss_a_node_is_not_restarted_one_by_one() {
    let local = Local::new(0);
    assert_eq!(local.run(&["start", "--size", "2"]).status.code(), Some(0));
    let before = pids(&local);
    let refused = local.run(&["restart", "--rolling"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("stands still"), "{}", said(&refused));
    assert_eq!(pids(&local), before, "nothing was stopped");
    assert_eq!(local.run(&["restart", "--rolling", "--size", "3"]).status.code(), Some(2), "usage");
}
