//! `jepsen-like` runs against real clusters: what it finds in order, what it finds vacuous, what it refuses.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{binary, skipped};

/// Operations that a run must have done at least: how many it does in its seconds says only how fast the machine is.
const OPERATIONS_MIN: u64 = 10;

fn suite(args: &[&str]) -> Output {
    let mut command = Command::new(binary("jepsen-like"));
    command.args(args).env_remove("RUST_LOG").output().expect("the suite runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn document(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs three nodes under `fault` for some seconds; gives `run.json` and the number of events.
fn passes(fault: &str, workload: &str, dir: &Path) -> (Value, usize) {
    let out = dir.display().to_string();
    let args = [
        "run",
        "--nodes",
        "3",
        "--workload",
        workload,
        "--faults",
        fault,
        "--time",
        "9s",
        "--seed",
        "7",
        "--out",
        &out,
    ];
    let output = suite(&args);
    assert!(output.status.success(), "{}", text(&output));
    let verdicts = document(&dir.join("verdicts.json"));
    let verdicts = verdicts.as_array().expect("a list");
    assert!(verdicts.iter().all(|verdict| verdict["valid"] == true), "{verdicts:?}");
    let names: Vec<&str> = verdicts.iter().filter_map(|verdict| verdict["checker"].as_str()).collect();
    assert!(names.len() >= 2 && names.contains(&"state-hash"), "{names:?}");
    let history = std::fs::read_to_string(dir.join("history.jsonl")).expect("a history");
    (document(&dir.join("run.json")), history.lines().count() - 1)
}

#[test]
fn registers_stay_linearizable_while_nodes_are_killed() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("run");
    let (run, events) = passes("kill", "register", &dir);
    assert_eq!(run["passed"], true);
    assert!(events as u64 > OPERATIONS_MIN, "{events} events");
    let strikes = run["strikes"].as_array().expect("a list");
    assert!(!strikes.is_empty() && strikes.iter().all(|strike| strike["effect"]["bit"] == true), "{strikes:?}");
    assert!(strikes.iter().all(|strike| strike["recovery_ms"].is_u64()), "{strikes:?}");
    for name in ["report.html", "history.edn", "n1.log", "n2.log", "n3.log"] {
        assert!(dir.join(name).exists(), "{name}");
    }
    assert!(!dir.join("data").exists(), "the data of a run that passed is deleted");
    assert!(!dir.read_dir().unwrap().any(|entry| entry.unwrap().path().extension().is_some_and(|e| e == "unfinished")));

    let again = suite(&["check", &dir.display().to_string()]);
    assert!(again.status.success() && text(&again).contains("linearizability"), "{}", text(&again));

    // A value that nobody wrote, in the last answered read that had one.
    let path = dir.join("history.jsonl");
    let history = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = history.lines().map(str::to_owned).collect();
    let answered = |line: &&mut String| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["type"] == "ok" && event["f"] == "read" && event["value"].is_u64()
    };
    let line = lines.iter_mut().rev().find(answered).expect("a read was answered");
    let mut event: Value = serde_json::from_str(line).unwrap();
    event["value"] = Value::from(987_654_321_000_u64);
    *line = event.to_string();
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let forged = suite(&["check", &dir.display().to_string()]);
    assert_eq!(forged.status.code(), Some(1), "{}", text(&forged));
    assert!(text(&forged).contains("INVALID"), "{}", text(&forged));
}

#[test]
fn a_set_keeps_its_elements_through_partitions() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("run");
    let (run, _) = passes("partition", "set", &dir);
    let counts = &run["strikes"][0]["effect"]["facts"]["counts"];
    let lost = counts["dropped_bytes"].as_u64().unwrap() + counts["held_bytes"].as_u64().unwrap();
    assert!(lost > 0, "{counts}");
    assert!(run["operations"]["add"]["ok"].as_u64().unwrap() > OPERATIONS_MIN, "{}", run["operations"]);
}

#[test]
fn transactions_stay_serializable_through_kills_and_pauses() {
    let home = tempfile::tempdir().unwrap();
    let (run, _) = passes("kill", "append", &home.path().join("append"));
    assert!(run["operations"]["txn"]["ok"].as_u64().unwrap() > OPERATIONS_MIN, "{}", run["operations"]);
    let (run, _) = passes("pause", "bank", &home.path().join("bank"));
    assert!(run["operations"]["transfer"]["ok"].as_u64().unwrap() > OPERATIONS_MIN, "{}", run["operations"]);
}

#[test]
fn watches_and_locks_leases_and_retries_keep_their_word_through_faults() {
    let home = tempfile::tempdir().unwrap();
    for (fault, workload, f, least) in [
        ("kill", "watch", "watch", 5),
        ("pause", "lock", "acquire", 3),
        ("kill", "lease", "grant", 5),
        ("partition", "idempotent", "once", OPERATIONS_MIN),
    ] {
        let (run, _) = passes(fault, workload, &home.path().join(workload));
        assert!(run["operations"][f]["ok"].as_u64().unwrap() > least, "{workload}: {}", run["operations"]);
    }
}

#[test]
fn registers_stay_linearizable_while_only_heartbeats_pass() {
    let home = tempfile::tempdir().unwrap();
    for (fault, count) in [("mtu-hole", "stuck"), ("no-connects", "lost_connects")] {
        let (run, _) = passes(fault, "register", &home.path().join(fault));
        let counts = &run["strikes"][0]["effect"]["facts"]["counts"];
        assert!(counts[count].as_u64().unwrap() > 0, "{fault}: {counts}");
    }
}

#[test]
fn registers_stay_linearizable_while_a_disk_hangs() {
    if let Some(why) = jepsen_like::cluster::volume::unavailable() {
        return skipped(why);
    }
    let home = tempfile::tempdir().unwrap();
    let (run, _) = passes("stalled-disk", "register", &home.path().join("run"));
    let facts = &run["strikes"][0]["effect"]["facts"];
    assert!(facts["threads"].as_u64().unwrap() > 0, "{facts}");
}

#[test]
fn a_run_whose_fault_had_no_effect_fails_as_vacuous() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("run").display().to_string();
    // One node has no links to other nodes: there is nothing to cut.
    let output = suite(&["run", "--nodes", "1", "--faults", "partition", "--time", "6s", "--seed", "1", "--out", &dir]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("vacuous: partition: no strike had an effect"), "{}", text(&output));
    let run = document(&home.path().join("run/run.json"));
    assert_eq!((&run["passed"], &run["info"]["valid"]), (&Value::from(false), &Value::from(true)));
    assert!(home.path().join("run/data").exists(), "the data of a run that failed is kept");

    let dir = home.path().join("short").display().to_string();
    let output = suite(&["run", "--nodes", "1", "--faults", "kill", "--time", "300ms", "--seed", "1", "--out", &dir]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("vacuous: kill: never struck"), "{}", text(&output));
}

#[test]
fn an_interrupted_suite_leaves_no_server_behind() {
    use std::io::{BufRead as _, BufReader, Read as _};
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("run");
        let mut child = Command::new(binary("jepsen-like"))
            .args(["run", "--nodes", "3", "--faults", "pause", "--time", "60s", "--out"])
            .arg(&dir)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Held to the end: the suite says more than one line.
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut String::new()).unwrap();
        let serves = |i: usize| {
            let log = std::fs::read_to_string(dir.join(format!("n{i}.log"))).unwrap_or_default();
            if log.contains("serving") { Ok(()) } else { Err(log) }
        };
        let pids: Vec<u32> = (1..=3)
            .map(|i| {
                crate::harness::eventually("a node serves", || serves(i));
                // The lock names the process that holds the directory.
                let lock = std::fs::read_to_string(dir.join(format!("data/n{i}/lock"))).unwrap();
                lock.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
            })
            .collect();
        // Clients work: there is something to judge.
        crate::harness::eventually("operations are recorded", || {
            let history = std::fs::read_to_string(dir.join("history.jsonl")).unwrap_or_default();
            if history.contains("\"type\":\"ok\"") { Ok(()) } else { Err(history) }
        });
        assert!(pids.iter().all(|pid| Path::new(&format!("/proc/{pid}")).exists()), "{pids:?}");
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let status = child.wait().unwrap();
        let interrupted = signal == rustix::process::Signal::INT;
        assert_eq!(status.code(), interrupted.then_some(130));
        assert_eq!(dir.join("report.html").exists(), interrupted, "Ctrl-C still writes the report");
        if interrupted {
            let run = document(&dir.join("run.json"));
            assert_eq!(run["passed"], Value::from(false));
            assert!(run["info"]["problems"].to_string().contains("interrupted"), "{run}");
            let mut rest = String::new();
            said.read_to_string(&mut rest).unwrap();
            assert!(rest.contains("interrupted"), "{rest}");
        }
        for pid in pids {
            crate::harness::eventually("the node is gone", || {
                let runs = std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
                if runs { Err(format!("{pid} runs")) } else { Ok(()) }
            });
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).display().to_string();
    std::fs::write(home.path().join("full"), "").unwrap();
    std::fs::write(home.path().join("damaged"), "{\"history_version\":1}\n{\"index\":0,\n").unwrap();
    let (full, damaged, missing) = (home.path().display().to_string(), path("damaged"), path("missing"));
    let empty = path("full");
    let cases: &[(&[&str], &str)] = &[
        (&["run", "--workload", "regster"], "did you mean register?"),
        (&["run", "--faults", "kil"], "did you mean kill?"),
        (&["run", "--nodes", "0"], "1 to 10"),
        (&["run", "--nodes", "11"], "1 to 10"),
        (&["run", "--nodes", "2", "--faults", "wipe"], "at least 3 nodes"),
        (&["run", "--time", "0s"], "no time to run"),
        (&["run", "--time", "soon"], "for example 60s"),
        (&["run", "--rate", "0"], "above 0"),
        (&["run", "--rate", "1000", "--time", "1h"], "lower one of the two"),
        (&["run", "--clients", "0"], "1 to"),
        (&["run", "--server", &missing], "cargo build --release"),
        (&["run", "--out", &full], "is not empty"),
        (&["check", &missing], "missing"),
        (&["check", &damaged], "line 2"),
        (&["check", &empty], "line 1"),
        (&["check", &home.path().join("full").join("x").display().to_string()], "full/x"),
        (&["suite", "--from", "0"], "there are 19 cells"),
        (&["fly"], "unrecognized subcommand"),
    ];
    for (args, reason) in cases {
        let output = suite(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(reason), "{args:?}: {}", text(&output));
    }
}

#[test]
fn every_workload_fault_and_checker_is_listed() {
    let listed = text(&suite(&["list"]));
    for name in [
        "register",
        "set",
        "bank",
        "append",
        "read-modes",
        "kill",
        "pause",
        "partition",
        "wipe",
        "member",
        "mtu-hole",
        "no-connects",
        "stalled-disk",
        "clone",
        "rollback",
        "linearizability",
        "state-hash",
    ] {
        assert!(listed.lines().any(|line| line.trim_start().starts_with(name)), "{name} is not in {listed}");
    }
}
