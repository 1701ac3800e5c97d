//! What one machine does not have by itself: clocks an hour apart, other versions, states that differ, a log that is far behind.
//! The doctor is shown it by someone between it and the nodes.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use serde_json::Value;

use super::until_found;
use crate::harness::{Cluster, Node, get, request};

/// A node as someone between it and the doctor shows it: each JSON answer is changed by a function of path and answer.
struct Disguise {
    http: String,
}

type Change = dyn Fn(&str, &mut Value) + Send + Sync;

impl Disguise {
    fn of(node: &Node, change: Arc<Change>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (http, behind) = (listener.local_addr().expect("bound").to_string(), node.http.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (behind, change) = (behind.clone(), change.clone());
                std::thread::spawn(move || serve(stream, &behind, &*change));
            }
        });
        Self { http }
    }
}

/// One request a connection.
fn serve(mut stream: TcpStream, behind: &str, change: &Change) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    let answer = request(behind, &get(&path)).ok()?;
    let body = match serde_json::from_slice::<Value>(&answer.body) {
        Ok(mut body) => {
            change(&path, &mut body);
            body.to_string().into_bytes()
        }
        Err(_) => answer.body,
    };
    let head = format!(
        "HTTP/1.1 {} X\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        answer.status,
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok()
}

/// A cluster of two of which the doctor sees each through a disguise.
fn disguised(cluster: &Cluster, change: impl Fn(usize, &str, &mut Value) + Send + Sync + 'static) -> Vec<String> {
    let change = Arc::new(change);
    let of = |(index, node): (usize, &Node)| {
        let change = change.clone();
        Disguise::of(node, Arc::new(move |path: &str, answer: &mut Value| change(index, path, answer))).http
    };
    cluster.nodes.iter().enumerate().map(of).collect()
}

#[test]
fn clocks_versions_lag_progress_and_states_are_findings() {
    let cluster = Cluster::start(2);
    // The second node's clock is an hour ahead, its version and its state are others, and it is far behind.
    let ends = disguised(&cluster, |index, path, answer| {
        if path == "/api/cluster/check" && index == 1 {
            let time = answer["time_ms"].as_u64().expect("a time");
            answer["time_ms"] = (time + 3_600_000).into();
            answer["version"] = "9.9.9".into();
        }
        if path == "/api/cluster/hash" && index == 1 {
            answer["hash"] = "00000000000000000000000000000bad".into();
        }
        if path == "/api/cluster/status" {
            for member in answer["members"].as_array_mut().expect("members") {
                member["lag_entries"] = 20_000.into();
                member["stalled_ms"] = 9_000.into();
            }
            answer["stalled"] = "nothing was committed for 4.0 s".into();
        }
    });
    let (code, clock) = until_found(&ends, &[], "clock", "ahead of that of");
    assert_eq!((code, &clock["severity"]), (1, &"error".into()));
    assert!(
        clock["what"].as_str().is_some_and(|what| what.contains(&format!("clock of {} is 3", cluster.nodes[1].name))),
        "{clock}"
    );
    let (_, versions) = until_found(&ends, &[], "versions", "9.9.9 on");
    assert_eq!(versions["severity"], "warning");
    assert_eq!(until_found(&ends, &[], "state", "states differ at log index").1["severity"], "error");
    assert_eq!(until_found(&ends, &[], "lag", "lacks 20000 entries").1["severity"], "warning");
    assert_eq!(until_found(&ends, &[], "progress", "nothing was committed for 4.0 s").1["severity"], "error");
    assert_eq!(until_found(&ends, &[], "progress", "has taken no entry of the log for 9.0 s").1["severity"], "error");
}
