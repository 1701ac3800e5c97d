//! The `client` binary against real nodes, as a user types it.

use std::{
    io::{BufRead as _, BufReader},
    process::{ChildStdout, Stdio},
    sync::mpsc,
    time::Instant,
};

use crate::harness::{Cluster, Killed, PATIENCE, client, free_ports, local::Local, said};

/// The lines that come through `pipe`, read by a thread of their own, so that who waits for one can give up.
fn lines(pipe: ChildStdout) -> mpsc::Receiver<String> {
    let (line, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for read in BufReader::new(pipe).lines() {
            // Who no longer listens has seen enough.
            if line.send(read.expect("text")).is_err() {
                break;
            }
        }
    });
    lines
}

fn wait_line(lines: &mpsc::Receiver<String>, part: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = lines.recv_timeout(left).unwrap_or_else(|e| panic!("no line with {part:?}: {e}"));
        if line.contains(part) {
            return;
        }
    }
}

#[test]
fn keys_and_values_from_the_command_line() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let run = |args: &[&str]| client(&http, args);
    let put = run(&["put", "greeting", "hello"]);
    assert_eq!(put.status.code(), Some(0), "{}", said(&put));
    let got = run(&["get", "greeting"]);
    assert_eq!((got.status.code(), &got.stdout[..]), (Some(0), &b"hello"[..]), "raw bytes, nothing added");
    let missing = run(&["get", "nothing"]);
    assert_eq!(missing.status.code(), Some(1), "{}", said(&missing));
    assert!(missing.stdout.is_empty() && !missing.stderr.is_empty());
    let exists = run(&["put", "greeting", "again", "--if-none-match"]);
    assert_eq!(exists.status.code(), Some(1), "create only: {}", said(&exists));
    let listed = run(&["-o", "json", "list", "gree"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!((&listed["count"], &listed["items"][0]["key"]), (&1.into(), &"greeting".into()), "{listed}");
    assert!(said(&run(&["list"])).contains("greeting"), "a table by default");
    assert_eq!(run(&["del", "greeting"]).status.code(), Some(0));
    assert_eq!(run(&["get", "greeting"]).status.code(), Some(1));
    assert_eq!(run(&["frobnicate"]).status.code(), Some(2), "usage");
    let nobody = client(&format!("127.0.0.1:{}", free_ports(1)[0]), &["--timeout", "1s", "get", "k"]);
    assert_eq!(nobody.status.code(), Some(3), "unavailable: {}", said(&nobody));
}

#[test]
fn a_cluster_grows_and_shrinks_from_the_command_line() {
    let mut cluster = Cluster::empty(&[]);
    cluster.add_running();
    cluster.add_running();
    let (first, second) = (cluster.node(1).http.clone(), cluster.node(2).http.clone());
    let joined = client(&second, &["join", "hex_hub1@127.0.0.1"]);
    assert_eq!(joined.status.code(), Some(0), "{}", said(&joined));
    let status = client(&first, &["-o", "json", "status"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["members"].as_array().map(Vec::len), Some(2), "{status}");
    let members = said(&client(&first, &["members"]));
    assert!(
        members.contains("hex_hub1@127.0.0.1") && members.contains("hex_hub2@127.0.0.1") && members.contains("voter"),
        "{members}"
    );
    let moved = client(&first, &["transfer-leader", "hex_hub2@127.0.0.1"]);
    assert_eq!(moved.status.code(), Some(0), "{}", said(&moved));
    let left = client(&second, &["leave"]);
    assert_eq!(left.status.code(), Some(0), "{}", said(&left));
    // Whoever is down may come up: it is tried again until the time is over.
    let down = format!("hex_hub3@127.0.0.1:{}", free_ports(1)[0]);
    let refused = client(&second, &["--timeout", "2s", "join", &down]);
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    assert!(said(&refused).contains("does not answer"), "{}", said(&refused));
    let refused = client(&second, &["join", "hex_hub3@127.0.0.1"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("cannot join"), "{}", said(&refused));
    let by_address = format!("hex_hub1@{}", cluster.node(1).raft);
    let joined = client(&second, &["join", &by_address]);
    assert_eq!(joined.status.code(), Some(0), "by name@host:port: {}", said(&joined));
    let nobody = client(&first, &["remove", "hex_hub3@127.0.0.1"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", said(&nobody));
    let removed = client(&first, &["remove", "hex_hub2@127.0.0.1"]);
    assert_eq!(removed.status.code(), Some(0), "{}", said(&removed));
    let members = said(&client(&first, &["members"]));
    assert!(members.contains("hex_hub1@127.0.0.1") && !members.contains("hex_hub2@127.0.0.1"), "{members}");
    let last = client(&first, &["leave"]);
    assert_eq!(last.status.code(), Some(1), "the last member cannot leave: {}", said(&last));
    let itself = client(&first, &["join", "hex_hub1@127.0.0.1"]);
    assert_eq!(itself.status.code(), Some(1), "{}", said(&itself));
}

#[test]
fn a_local_cluster_starts_survives_and_is_cleaned_up() {
    let local = Local::new(0);
    let smaller = local.run(&["start", "--size", "2"]);
    assert_eq!(smaller.status.code(), Some(0), "{}", said(&smaller));
    assert_eq!(client(&local.endpoint(1), &["put", "early", "kept"]).status.code(), Some(0));
    let started = local.run(&["start", "--size", "3"]);
    assert_eq!(started.status.code(), Some(0), "it grows: {}", said(&started));
    let report = said(&started);
    for expected in ["hex_hub1@127.0.0.1", "hex_hub3@127.0.0.1", "curl"] {
        assert!(report.contains(expected), "{expected} is not in the report: {report}");
    }
    let endpoint = local.endpoint(3);
    assert!(report.contains(&endpoint), "{report}");
    assert_eq!(client(&endpoint, &["put", "k", "kept"]).status.code(), Some(0));
    let status = said(&local.run(&["status"]));
    assert!(status.contains("voter"), "{status}");
    assert_eq!(local.run(&["health"]).status.code(), Some(0));
    assert!(said(&local.run(&["logs", "2"])).contains("serving"), "the log of node 2");
    let mut follow = local.command(&["logs", "1", "-f"]);
    let mut follow = Killed(follow.stdout(Stdio::piped()).spawn().expect("the client runs"));
    let log = lines(follow.stdout.take().expect("it is a pipe"));
    wait_line(&log, "serving");
    assert_eq!(local.run(&["stop-node", "1"]).status.code(), Some(0));
    wait_line(&log, "stopped");
    drop(follow);
    assert_eq!(client(&endpoint, &["get", "k"]).stdout, b"kept", "two of three go on");
    assert_eq!(local.run(&["start-node", "1", "--size", "3"]).status.code(), Some(0));
    let rows: serde_json::Value = serde_json::from_slice(&local.run(&["status", "-o", "json"]).stdout).expect("JSON");
    let pid = rows[1]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("node 2 runs"), rustix::process::Signal::KILL).expect("it is killed");
    let again = local.run(&["start-node", "2", "--size", "3"]);
    assert_eq!(again.status.code(), Some(0), "at once after a kill: {}", said(&again));
    assert_eq!(local.run(&["stop", "2"]).status.code(), Some(0));
    let states = || {
        let listed = local.run(&["status", "-o", "json"]);
        let rows: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        let states =
            rows.as_array().expect("rows").iter().map(|row| row["state"].as_str().expect("a state").to_owned());
        states.collect::<Vec<_>>()
    };
    assert_eq!(states(), ["ready", "stopped", "ready"]);
    assert_eq!(client(&endpoint, &["get", "k"]).stdout, b"kept", "the other two go on");
    assert_eq!(local.run(&["restart"]).status.code(), Some(0));
    assert_eq!(states(), ["ready"; 3]);
    assert_eq!(client(&endpoint, &["get", "k"]).stdout, b"kept", "a restart keeps the data");
    let shrunk = local.run(&["restart", "--size", "2"]);
    assert_eq!(shrunk.status.code(), Some(0), "{}", said(&shrunk));
    assert_eq!(states(), ["ready"; 2]);
    let first = local.endpoint(1);
    let members = client(&first, &["-o", "json", "members"]);
    let members: serde_json::Value = serde_json::from_slice(&members.stdout).expect("JSON");
    assert_eq!(members.as_array().map(Vec::len), Some(2), "{members}");
    assert_eq!(client(&first, &["get", "k"]).stdout, b"kept", "so does a smaller cluster");
    assert_eq!(client(&first, &["get", "early"]).stdout, b"kept");
    assert_eq!(local.run(&["stop"]).status.code(), Some(0));
    assert_eq!(client(&first, &["--timeout", "1s", "get", "k"]).status.code(), Some(3));
    assert_eq!(local.run(&["clean"]).status.code(), Some(0));
    assert!(!local.dir.path().join("cluster").exists(), "clean removes its directory");
}

#[test]
fn a_local_cluster_refuses_sizes_out_of_range_and_taken_ports() {
    let local = Local::new(free_ports(1)[0]);
    for size in ["0", "11"] {
        let refused = local.run(&["start", "--size", size]);
        assert_ne!(refused.status.code(), Some(0));
        assert!(said(&refused).contains("10"), "the range is named: {}", said(&refused));
    }
    let taken = std::net::TcpListener::bind(("127.0.0.1", local.base)).expect("the port is free");
    let refused = local.run(&["start", "--size", "1"]);
    assert_ne!(refused.status.code(), Some(0));
    assert!(said(&refused).contains(&local.base.to_string()), "{}", said(&refused));
    drop(taken);
}

#[test]
fn run_starts_a_fresh_cluster_runs_the_command_and_gives_its_exit_code() {
    let local = Local::new(0);
    let tested = local.run(&["run", "--size", "2"]);
    assert_eq!(tested.status.code(), Some(0), "without a command, a test of its own: {}", said(&tested));
    assert!(said(&tested).contains("ok: equal state hashes"), "{}", said(&tested));
    assert!(!local.dir.path().join("cluster").exists(), "nothing is left of it");
    let ran = local.run(&[
        "run",
        "--size",
        "2",
        "--",
        "sh",
        "-c",
        "test \"$CLUSTER_SIZE\" = 2 && test -n \"$HEXKV_ENDPOINTS\" && exit 7",
    ]);
    assert_eq!(ran.status.code(), Some(7), "{}", said(&ran));
}

#[test]
fn bench_measures_and_counts() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let ran = client(
        &http,
        &[
            "-o",
            "json",
            "bench",
            "--connections",
            "4",
            "--keys",
            "50",
            "--value-size",
            "64",
            "--read-share",
            "0.5",
            "--duration",
            "1s",
        ],
    );
    assert_eq!(ran.status.code(), Some(0), "{}", said(&ran));
    assert!(ran.stderr.is_empty(), "progress is shown on terminals only: {}", said(&ran));
    let report: serde_json::Value =
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&ran)));
    let number =
        |part: &str, name: &str| report[part][name].as_u64().unwrap_or_else(|| panic!("{part} {name}: {report}"));
    for part in ["reads", "writes", "all"] {
        assert!(number(part, "requests") > 0, "{report}");
        let times = ["p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"].map(|name| number(part, name));
        assert!(times[0] > 0 && times.is_sorted(), "{part}: {report}");
    }
    assert_eq!(number("all", "requests"), number("reads", "requests") + number("writes", "requests"), "{report}");
}
