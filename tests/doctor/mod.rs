//! `client doctor`: each check is provoked, by what it looks for wherever a machine can have that.

mod directory;
mod disguise;
mod names;

use std::{io::Write, net::TcpListener, os::unix::fs::PermissionsExt as _, process::Command};

use serde_json::Value;

use crate::harness::{Cluster, binary, eventually, json, request};

/// Exit code, and the document that it printed.
pub fn doctor(endpoints: &[String], more: &[&str]) -> (i32, Value) {
    let output = Command::new(binary("client"))
        .args(["--endpoints", &endpoints.join(","), "--output", "json", "doctor"])
        .args(more)
        .output()
        .expect("the client runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text:?} {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("an exit code"), report)
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    cluster.nodes.iter().map(|node| node.http.clone()).collect()
}

/// The first finding of `check` that says `what`, with the rules that all findings keep.
pub fn finding(report: &Value, check: &str, what: &str) -> Option<Value> {
    let findings = report["findings"].as_array().expect("findings");
    for finding in findings {
        for field in ["severity", "check", "what", "next"] {
            assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {finding}");
        }
    }
    let fits = |f: &&Value| f["check"] == check && f["what"].as_str().is_some_and(|text| text.contains(what));
    findings.iter().find(fits).cloned()
}

/// Asks until it finds that, and gives exit code and finding.
pub fn until_found(endpoints: &[String], more: &[&str], check: &str, what: &str) -> (i32, Value) {
    eventually(&format!("the doctor finds {check}: {what}"), || {
        let (code, report) = doctor(endpoints, more);
        finding(&report, check, what).map(|found| (code, found)).ok_or_else(|| report.to_string())
    })
}

#[test]
fn a_cluster_in_good_health_has_no_findings() {
    let cluster = Cluster::start(3);
    let (code, report) = eventually("nothing is found", || {
        let (code, report) = doctor(&endpoints(&cluster)[..1], &["--disk-free-min", "1"]);
        // The limit of open files is this machine's.
        let others = report["findings"].as_array().ok_or("no findings")?.iter().filter(|f| f["check"] != "open_files");
        if others.count() == 0 { Ok((code, report)) } else { Err(report.to_string()) }
    });
    assert_eq!((code, &report["ok"], &report["nodes_checked"]), (0, &true.into(), &3.into()), "{report}");
}

#[test]
fn ports_without_a_node_and_ports_of_others_are_named() {
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = stranger.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for mut stream in stranger.incoming().flatten() {
            // The client may have gone.
            drop(stream.write_all(b"220 this is something else\r\n"));
        }
    });
    let free = crate::harness::free_ports(1)[0];
    let (code, report) = doctor(&[address.clone(), format!("127.0.0.1:{free}")], &["--timeout", "2s"]);
    assert_eq!((code, &report["nodes_checked"]), (1, &0.into()));
    let me = format!("(pid {})", std::process::id());
    let taken = finding(&report, "ports", &me).unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&taken["severity"], &taken["node"]), (&"error".into(), &format!("http://{address}").into()));
    assert!(finding(&report, "ports", "no hexkv node answers").is_some(), "{report}");
}

#[test]
fn members_that_are_down_and_a_lost_quorum_are_errors() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let ends = endpoints(&cluster);
    let gone = cluster.other_than(leader);
    let name = cluster.node(gone).name.clone();
    cluster.node(gone).kill();
    let through = [ends[leader - 1].clone()];
    let (code, found) = until_found(&through, &[], "members", "the leader does not hear it");
    assert_eq!((code, &found["node"], &found["severity"]), (1, &name.as_str().into(), &"error".into()));
    until_found(&through, &[], "members", "it does not answer at");
    until_found(&through, &[], "raft_port", &name);
    let last = (1..=3).find(|index| *index != leader && *index != gone).expect("three nodes");
    cluster.node(last).kill();
    let (code, _) = until_found(&through, &[], "quorum", "");
    assert_eq!(code, 1);
    until_found(&through, &[], "ready", "serves no linearizable requests");
}

#[test]
fn another_cookie_is_found_by_those_who_try() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let other = cluster.other_than(leader);
    let name = cluster.node(other).name.clone();
    cluster.node(other).kill();
    cluster.node(other).env.insert("COOKIE".into(), "another-cookie".into());
    cluster.node(other).start();
    // It says the same of the leader.
    let said = format!("{name} has another cookie");
    let (code, found) = until_found(&[cluster.node(leader).http.clone()], &[], "cookie", &said);
    assert_eq!((code, &found["severity"]), (1, &"error".into()));
}

#[test]
fn a_cookie_that_can_be_guessed_is_a_warning() {
    let mut cluster = Cluster::start_with(2, &[("COOKIE", "hex_hub_cluster")]);
    let (http, name) = (cluster.node(1).http.clone(), cluster.node(2).name.clone());
    let (_, found) = until_found(&[http], &[], "cookie", "can be guessed");
    assert_eq!(found["severity"], "warning");
    assert!(found["next"].as_str().is_some_and(|next| next.contains("openssl rand")), "{found}");
    for node in &cluster.nodes {
        let log = node.logged();
        assert!(log.contains("WARN") && log.contains("the cookie has fewer than 16 characters"), "{name}: {log}");
    }
}

#[test]
fn a_cookie_file_that_is_open_or_gone_and_an_open_directory_are_found() {
    let home = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::empty(&[]);
    let file = home.path().join(".hexkv.cookie");
    let node = cluster.add();
    node.env.remove("COOKIE");
    node.env.insert("HOME".into(), home.path().display().to_string());
    node.start();
    eventually("it serves", || node.ready());
    let end = [node.http.clone()];
    let (_, report) = doctor(&end, &[]);
    assert!(finding(&report, "cookie", "").is_none(), "{report}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let (code, found) = until_found(&end, &[], "cookie", "mode 644");
    assert_eq!((code, &found["severity"]), (1, &"error".into()));
    std::fs::remove_file(&file).expect("removed");
    assert_eq!(until_found(&end, &[], "cookie", "is gone").0, 1);
    assert!(!file.exists(), "the doctor makes nothing");
    std::fs::set_permissions(&node.data, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    until_found(&end, &[], "data_dir", "others may write");
    until_found(&end, &["--disk-free-min", "1000TiB"], "disk", "MiB free");
}

#[test]
fn a_replication_factor_that_makes_no_sense_is_a_warning() {
    let cluster = Cluster::start_with(1, &[("REPLICATION_FACTOR", "4")]);
    let (_, even) = until_found(&endpoints(&cluster), &[], "replication_factor", "is even");
    assert_eq!(even["severity"], "warning");
    until_found(&endpoints(&cluster), &[], "replication_factor", "the cluster has 1 members");
    let (code, report) = doctor(&endpoints(&cluster), &[]);
    assert_eq!((code, &report["ok"]), (0, &true.into()), "warnings alone are no failure: {report}");
}

#[test]
fn few_open_files_are_a_warning() {
    let mut cluster = Cluster::empty(&[]);
    let node = cluster.add();
    node.start();
    eventually("it serves", || node.ready());
    let pid = rustix::process::Pid::from_raw(node.pid().expect("it runs") as i32).expect("a pid");
    let limit = rustix::process::Rlimit { current: Some(1000), maximum: Some(1000) };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit).expect("a child's limit can be set");
    let (_, found) = until_found(std::slice::from_ref(&node.http), &[], "open_files", "only 1000 files");
    assert_eq!(found["severity"], "warning");
}

#[test]
fn people_are_told_what_to_do_and_bad_arguments_are_refused() {
    let cluster = Cluster::start(1);
    let run = |more: &[&str]| {
        let mut command = Command::new(binary("client"));
        command.args(["--endpoints", &cluster.nodes[0].http, "doctor"]).args(more).output().expect("the client runs")
    };
    let told = run(&["--disk-free-min", "1000TiB"]);
    let text = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success() && text.contains("WARNING [disk]") && text.contains("free some"), "{text}");
    assert!(text.contains("WARNING [replication_factor]") && text.contains("1 nodes checked: 0 errors"), "{text}");
    assert_eq!(run(&["--disk-free-min", "lots"]).status.code(), Some(2));
    let body = serde_json::json!({"value": 1});
    assert_eq!(
        request(&cluster.nodes[0].http, &json("PUT", "/api/cluster/replication-factor", &body))
            .expect("an answer")
            .status,
        200
    );
    let (_, report) = doctor(&endpoints(&cluster), &[]);
    assert!(finding(&report, "replication_factor", "").is_none(), "{report}");
}
