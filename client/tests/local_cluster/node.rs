//! A server that knows as members whatever listens on the ports of its cluster.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

use serde_json::{Value, json};

/// Makes the node fail at start.
pub const BROKEN: &str = "FAKE_NODE_BROKEN";

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn env_port(name: &str) -> u16 {
    env(name).parse().unwrap()
}

/// Serves until it is ended from outside.
pub fn serve() -> ExitCode {
    let name = env("NODE_NAME");
    if std::env::var_os(BROKEN).is_some_and(|index| index == *env("NODE_INDEX")) {
        println!("{name} cannot open its data: told to be broken");
        return ExitCode::from(3);
    }
    std::fs::create_dir_all(env("DATA_DIR")).unwrap();
    std::fs::write(format!("{}/identity", env("DATA_DIR")), &name).unwrap();
    let _raft = TcpListener::bind(("127.0.0.1", env_port("RAFT_PORT"))).unwrap();
    let http = TcpListener::bind(("127.0.0.1", env_port("PORT"))).unwrap();
    println!("{name} serves");
    for stream in http.incoming() {
        let stream = stream.unwrap();
        std::thread::spawn(move || while answer(&stream).is_some() {});
    }
    unreachable!("a listener never stops");
}

/// Answers the next request; `None` when the connection is closed.
fn answer(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    reader.take(length).read_to_end(&mut Vec::new()).ok()?;
    let target = first.split(' ').nth(1)?;
    if target.starts_with("/api/cluster/leave") {
        println!("{} was asked to leave", env("NODE_NAME"));
    }
    let body = if target.starts_with("/api/cluster/") { status() } else { json!({"status": "ok"}) };
    let body = body.to_string();
    let mut stream = stream;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()
}

fn status() -> Value {
    let (base, spacing) = (env_port("BASE_HTTP_PORT"), env_port("PORT_SPACING"));
    let listens = |index: &u16| TcpStream::connect(("127.0.0.1", base + (index - 1) * spacing + 5100)).is_ok();
    let members: Vec<Value> = (1..=4)
        .filter(listens)
        .map(|index| {
            json!({"name": format!("hex_hub{index}@127.0.0.1"), "id": "1f", "role": if index <= 3 { "voter" } else { "standby" }, "state": "up",
                   "http": "-", "raft": "-", "version": "0.1.0"})
        })
        .collect();
    json!({"cluster_id": "c1", "node": env("NODE_NAME"), "leader": "hex_hub1@127.0.0.1", "term": 1,
           "replication_factor": 3, "quorum": true, "members": members, "commit_index": 1, "applied_index": 1,
           "revision": 0})
}
