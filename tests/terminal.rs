//! What people see: nothing that others wrote acts on their terminal, a closed pipe is no crash, and an interactive command has
//! the terminal.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    sync::mpsc,
    time::Instant,
};

use rustix::{
    fs::{Mode, OFlags, open},
    process::{ioctl_tiocsctty, setsid},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::json;

use crate::harness::{
    Cluster, Killed, PATIENCE, binary, client, eventually, get, inheriting, json as request_with, put, request, said,
};

/// What a terminal would act on: cursor, window title, C1, direction, lines.
const HOSTILE: &str = "x\x1b[2J\x1b]0;owned\x07\u{7f}\u{9b}1m\u{202e}\u{2066}\r\nFORGED";

fn acts_on_terminal(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Checks that `output` shows nothing of [`HOSTILE`] as it is.
fn assert_harmless(what: &str, text: &str) {
    assert!(!text.contains(acts_on_terminal), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{what} has a forged line: {text:?}");
}

/// HOSTILE in a path.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn plant(http: &str) {
    let key = encoded(HOSTILE);
    let value = request(http, &put(&format!("/api/kv/{key}"), HOSTILE.as_bytes())).expect("an answer");
    assert_eq!(value.status, 200, "{value:?}");
    for (method, target, body) in [
        ("POST", format!("/api/locks/{key}"), json!({"owner": HOSTILE, "ttl": "600s"})),
        ("POST", format!("/api/elections/{key}"), json!({"candidate": HOSTILE, "value": HOSTILE, "ttl": "600s"})),
        ("PUT", format!("/api/registry/{key}"), json!({"owner": HOSTILE, "address": HOSTILE, "ttl": "600s"})),
    ] {
        let planted = request(http, &request_with(method, &target, &body)).expect("an answer");
        assert_eq!(planted.status, 200, "{method} {target}: {planted:?}");
    }
}

/// The verbs that `client ARGS --help` lists.
fn verbs(args: &[&str]) -> Vec<String> {
    let help = said(&inheriting("client").args(args).arg("--help").output().expect("the client runs"));
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|verb| verb != "help")
        .collect()
}

/// What is run: `%` is [`HOSTILE`], `&` the file of a transaction. At least one line for each verb.
const CASES: &str = "\
get % --meta
get -o json %
get %missing
put % % --if-none-match
put k v --content-type %
del %missing
list
list --keys-only
list --all
list -o json
watch --bad %
doctor
doctor -o json
events %
compact %
txn &
txn %
export
export --file /no/%/file
import %
snapshot verify %
snapshot save /no/%/file
lease list
lease show %
lock %
lock % -o json
lock % --wait 0s -- true
lock free -- %
elect %
elect % --candidate % --wait 0s -- true
register % % --owner another --once
unregister % --owner another
registry
registry %
registry -o json
join %@127.0.0.1
leave %
status
status --explain
members
remove %@127.0.0.1
transfer-leader %@127.0.0.1
replication-factor %
hash
health
discover --size %
wait --size %
bench --duration %
cluster logs %
cluster --dir % status
completions %
%";

#[test]
fn a_hostile_name_reaches_no_terminal_from_any_verb() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    plant(&http);
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("txn.json");
    let txn = json!({"success": [{"op": "get", "key": HOSTILE}, {"op": "list", "prefix": ""}]});
    std::fs::write(&file, txn.to_string()).unwrap();
    let word = |word: &str| word.replace('&', file.to_str().unwrap()).replace('%', HOSTILE);
    let cases: Vec<Vec<String>> = CASES.lines().map(|line| line.split(' ').map(word).collect()).collect();
    let known: BTreeSet<&String> = cases.iter().map(|case| &case[0]).collect();
    let all = verbs(&[]);
    assert!(all.len() > 25, "{all:?}");
    let missing: Vec<_> = all.iter().filter(|verb| !known.contains(*verb)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
    for case in &cases {
        let output = client(&http, &case.iter().map(String::as_str).collect::<Vec<_>>());
        assert_harmless(&format!("{case:?}"), &said(&output));
    }
    let listed = said(&client(&http, &["list", "--keys-only"]));
    assert!(listed.contains("x\\x1b[2J\\x1b]0;owned\\x07\\x7f\\u{9b}1m\\u{202e}\\u{2066}\\r\\nFORGED"), "{listed}");
    let got = client(&http, &["get", HOSTILE]);
    assert_eq!(got.stdout, HOSTILE.as_bytes(), "a pipe gets the bytes as they are");
    let raw: serde_json::Value =
        serde_json::from_slice(&client(&http, &["list", "-o", "json"]).stdout).expect("JSON that says the same");
    assert_eq!(raw["items"][0]["key"], HOSTILE);
    assert_harmless("the log of the node", &cluster.node(1).logged());
}

#[test]
fn events_and_watches_are_shown_without_effect() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    plant(&http);
    for args in [&["watch", "--from-revision", "1"] as &[&str], &["elect", HOSTILE, "--observe"]] {
        for format in ["table", "json"] {
            let mut command = inheriting("client");
            command.args(["--endpoints", &http, "-o", format]).args(args).stdout(Stdio::piped());
            let mut running = Killed(command.spawn().expect("the client runs"));
            let mut seen = vec![0; 16 << 10];
            let mut stdout = running.stdout.take().unwrap();
            let read = stdout.read(&mut seen).expect("it prints");
            assert!(read > 0, "{args:?}");
            assert_harmless(&format!("{args:?}"), &String::from_utf8_lossy(&seen[..read]));
        }
    }
}

/// A terminal: our side of it, and the side of a process on it.
fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("it is ours");
    unlockpt(&ours).expect("it can be opened");
    let name = ptsname(&ours, Vec::new()).expect("it has a name");
    let theirs = open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).expect("it opens");
    (File::from(ours), theirs)
}

/// Runs `command` as the leader of a session on a terminal of its own.
fn on_terminal(mut command: Command) -> (Killed, File) {
    let (ours, theirs) = terminal();
    let side = || theirs.try_clone().expect("it can be shared");
    command.stdin(side()).stdout(side()).stderr(side());
    // SAFETY: bare system calls, which are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            ioctl_tiocsctty(std::io::stdin())?;
            Ok(())
        });
    }
    (Killed(command.spawn().expect("the client runs")), ours)
}

/// What is shown on the terminal, piece by piece, by a thread of its own.
fn shown(terminal: &File) -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel();
    let mut terminal = terminal.try_clone().expect("it can be shared");
    std::thread::spawn(move || {
        let mut piece = vec![0; 4096];
        // It fails when the last process on the terminal has ended.
        while let Ok(read @ 1..) = terminal.read(&mut piece) {
            if sender.send(piece[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    pieces
}

/// What is shown until `wanted` is, or until the end.
fn until(pieces: &mpsc::Receiver<Vec<u8>>, wanted: Option<&str>) -> String {
    let (deadline, mut text) = (Instant::now() + PATIENCE, Vec::new());
    loop {
        let seen = String::from_utf8_lossy(&text).into_owned();
        if wanted.is_some_and(|wanted| seen.contains(wanted)) {
            return seen;
        }
        match pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => text.extend(piece),
            Err(mpsc::RecvTimeoutError::Disconnected) if wanted.is_none() => return seen,
            Err(error) => panic!("{wanted:?} is not shown ({error}): {seen:?}"),
        }
    }
}

fn wait_code(child: &mut Killed) -> Option<i32> {
    eventually("it ends", || match child.try_wait().expect("a child can be waited for") {
        Some(status) => Ok(status.code()),
        None => Err("it runs".to_owned()),
    })
}

#[test]
fn a_value_is_shown_on_a_terminal_and_not_obeyed() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    plant(&http);
    let mut command = inheriting("client");
    command.args(["--endpoints", &http, "get", HOSTILE]);
    let (mut getting, terminal) = on_terminal(command);
    let pieces = shown(&terminal);
    assert_eq!(wait_code(&mut getting), Some(0));
    let text = until(&pieces, None).replace("\r\n", "\n");
    assert!(!text.contains(acts_on_terminal), "{text:?}");
    assert!(text.contains("x\\x1b[2J") && text.contains("hint: "), "{text:?}");
}

#[test]
fn an_interactive_command_has_the_terminal() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let run = |script: &str| {
        let mut command = inheriting("client");
        command.args(["--endpoints", &http, "lock", "l", "--ttl", "600s", "--", "sh", "-c", script]);
        on_terminal(command)
    };
    let (mut reading, mut terminal) = run("echo ready; read line; echo \"got $line\"; exit 4");
    let pieces = shown(&terminal);
    until(&pieces, Some("ready"));
    terminal.write_all(b"hello\n").expect("it can be typed");
    until(&pieces, Some("got hello"));
    assert_eq!(wait_code(&mut reading), Some(4));
    let (mut sleeping, mut terminal) = run("echo ready; exec sleep 600");
    let pieces = shown(&terminal);
    until(&pieces, Some("ready"));
    // Ctrl-Z where no shell could continue it: the command goes on.
    terminal.write_all(b"\x1a").expect("it can be typed");
    // Ctrl-C is for the command.
    eventually("it is interrupted", || {
        terminal.write_all(b"\x03").map_err(|e| e.to_string())?;
        if sleeping.try_wait().unwrap().is_some() { Ok(()) } else { Err("it runs".to_owned()) }
    });
    assert_eq!(wait_code(&mut sleeping), Some(130));
    let line = request(&http, &get("/api/locks/l")).expect("an answer").json();
    assert!(line["holder"].is_null(), "{line}");
}

#[test]
fn a_reader_that_goes_away_crashes_no_binary() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    assert_eq!(request(&http, &put("/api/kv/k", b"v")).unwrap().status, 200);
    let cases: &[(&str, &[&str], i32)] = &[
        ("server", &["--print-config"], 0),
        ("server", &["--help"], 0),
        ("server", &["--no-such-option"], 2),
        ("server", &["restore", "/no/such/file"], 1),
        ("client", &["--help"], 0),
        ("client", &["list"], 0),
        ("client", &["list", "-o", "json"], 0),
        ("client", &["status"], 0),
        ("client", &["export"], 0),
        ("client", &["doctor"], 0),
        ("client", &["completions", "bash"], 0),
        ("client", &["get", "missing"], 1),
        ("client", &["--no-such-option"], 2),
        ("jepsen-like", &["list"], 0),
        ("jepsen-like", &["--help"], 0),
        ("jepsen-like", &["check", "/no/such/file"], 2),
    ];
    for (name, args, code) in cases {
        // A pipe that no process reads.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(binary(name));
        command.args(*args).env("HEXKV_ENDPOINTS", &http).env_remove(crate::harness::LONG_TESTS);
        if *name != "client" {
            command.env_remove("HEXKV_ENDPOINTS");
        }
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(*code), "{name} {args:?}");
    }
}
