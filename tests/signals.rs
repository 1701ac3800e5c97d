//! What is held ends with the command that runs under it, and the command with what is held, whatever signals come.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Cluster, Killed, binary, delete, eventually, get, json as request_with, request};

/// Grants that a signal meets.
const GRANTS: u32 = 60;
/// How far signals are spread around the moment of a grant, in steps of this.
const SPREAD: Duration = Duration::from_micros(150);
/// Longer than any test: what is free before was released.
const TTL: &str = "600s";

fn client(address: &str, args: &[&str]) -> Command {
    // A signal that was ignored by what runs the tests (nohup, a shell's background job) would stay ignored.
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,QUIT,TERM").arg(binary("client"));
    command.args(["--endpoints", address]).args(args).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn spawned(mut command: Command) -> Killed {
    Killed(command.spawn().expect("the client runs"))
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process has a positive id");
    kill_process(pid, signal).expect("it can be signalled");
}

fn code(child: &mut Child) -> Option<i32> {
    eventually("the client ends", || match child.try_wait().expect("a child can be waited for") {
        Some(status) => Ok(status.code()),
        None => Err("it runs".to_owned()),
    })
}

fn lock(address: &str) -> Value {
    request(address, &get("/api/locks/l")).expect("an answer").json()
}

fn acquire(address: &str) -> String {
    let asked = json!({"ttl": TTL, "owner": "other"});
    let taken = request(address, &request_with("POST", "/api/locks/l", &asked)).expect("an answer").json();
    taken["token"].as_str().expect("a token").to_owned()
}

fn release(address: &str, token: &str) {
    let released = request(address, &delete(&format!("/api/locks/l?token={token}"))).expect("an answer");
    assert_eq!(released.status, 200, "{released:?}");
}

fn wait_free(address: &str) {
    eventually("the lock is free", || match lock(address) {
        line if line["holder"].is_null() && line["waiters"] == json!([]) => Ok(()),
        line => Err(line.to_string()),
    });
}

fn wait_in_line(address: &str) {
    eventually("it waits", || match lock(address)["waiters"].as_array().map(Vec::len) {
        Some(1) => Ok(()),
        waiters => Err(format!("{waiters:?} wait")),
    });
}

/// The id of a process, once it has written it to `file`.
fn pid_in(file: &Path) -> u32 {
    eventually("it runs", || {
        let text = fs::read_to_string(file).map_err(|e| e.to_string())?;
        text.strip_suffix('\n').ok_or("not whole yet")?.parse().map_err(|e| format!("{text:?}: {e}"))
    })
}

fn wait_gone(what: &str, pid: u32) {
    eventually(&format!("{what} has ended"), || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) if !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")) => Err(stat),
        Ok(_) | Err(_) => Ok(()),
    });
}

#[test]
fn signals_reach_the_command_before_the_lock_is_free() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let home = tempfile::tempdir().unwrap();
    for (signal, expected) in [(Signal::HUP, 143), (Signal::TERM, 143), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let file = home.path().join(signal.as_raw().to_string());
        let script = format!("ulimit -c 0; echo $$ > {}; exec sleep 600", file.display());
        let mut holder = spawned(client(&address, &["lock", "l", "--ttl", TTL, "--", "sh", "-c", &script]));
        let pid = pid_in(&file);
        send(&holder, signal);
        assert_eq!(code(&mut holder), Some(expected), "{signal:?}");
        wait_gone("the command", pid);
        wait_free(&address);
    }
    // The command decides; what comes while it ends is passed on too.
    let (ready, first) = (home.path().join("ready"), home.path().join("first"));
    let script = format!(
        "trap 'echo $$ > {0}; trap \"exit 9\" TERM' TERM; echo $$ > {1}; while :; do sleep 0.05; done",
        first.display(),
        ready.display()
    );
    let mut holder = spawned(client(&address, &["lock", "l", "--ttl", TTL, "--", "bash", "-c", &script]));
    pid_in(&ready);
    send(&holder, Signal::TERM);
    pid_in(&first);
    assert!(!lock(&address)["holder"].is_null(), "the command runs on, and so the lock is held");
    send(&holder, Signal::TERM);
    assert_eq!(code(&mut holder), Some(9));
    wait_free(&address);
}

#[test]
fn a_stopped_command_is_ended_by_a_signal_too() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("pid");
    let script = format!("echo $$ > {}; kill -STOP $$; exit 8", file.display());
    let mut holder = spawned(client(&address, &["lock", "l", "--ttl", TTL, "--", "sh", "-c", &script]));
    let pid = pid_in(&file);
    eventually("the command is stopped", || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) if stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) => Ok(()),
        stat => Err(format!("{stat:?}")),
    });
    send(&holder, Signal::TERM);
    assert_eq!(code(&mut holder), Some(143));
    wait_free(&address);
}

#[test]
fn a_signal_while_waiting_gives_the_place_up() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let token = acquire(&address);
    for (signal, expected) in [(Signal::HUP, 129), (Signal::TERM, 143), (Signal::INT, 130)] {
        let mut waiting = spawned(client(&address, &["lock", "l", "--ttl", TTL, "--", "true"]));
        wait_in_line(&address);
        send(&waiting, signal);
        assert_eq!(code(&mut waiting), Some(expected), "{signal:?}");
        eventually("its place is free", || match lock(&address)["waiters"] == json!([]) {
            true => Ok(()),
            false => Err("it waits".to_owned()),
        });
    }
    release(&address, &token);
    wait_free(&address);
}

#[test]
fn signals_at_the_moment_of_the_grant_leave_nothing_held() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    for grant in 0..GRANTS {
        let token = acquire(&address);
        let args = ["lock", "l", "--ttl", TTL, "--owner", "me", "--", "sleep", "600"];
        let mut waiting = spawned(client(&address, &args));
        wait_in_line(&address);
        std::thread::scope(|scope| {
            scope.spawn(|| release(&address, &token));
            let at = Instant::now() + SPREAD * grant;
            while Instant::now() < at {
                std::hint::spin_loop();
            }
            send(&waiting, Signal::TERM);
            send(&waiting, Signal::TERM);
        });
        assert_eq!(code(&mut waiting), Some(143), "grant {grant}");
        wait_free(&address);
    }
}

#[test]
fn a_signal_between_start_and_grant_is_never_lost() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let mut held = 0;
    for start in 0..GRANTS {
        let mut starting = spawned(client(&address, &["lock", "l", "--ttl", TTL, "--", "sleep", "600"]));
        let at = Instant::now() + Duration::from_millis(1) * start;
        while Instant::now() < at {
            std::hint::spin_loop();
        }
        held += usize::from(!lock(&address)["holder"].is_null());
        send(&starting, Signal::TERM);
        // Before the signal is watched it ends the client itself, which holds nothing then.
        let code = code(&mut starting);
        assert!(code == Some(143) || code.is_none(), "start {start}: {code:?}");
        wait_free(&address);
    }
    assert!(held > 0, "no signal came after a grant: they are spread too little");
}

#[test]
fn a_lost_lock_ends_all_of_the_group() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let home = tempfile::tempdir().unwrap();
    let (worker, token) = (home.path().join("worker"), home.path().join("token"));
    let script = format!(
        "bash -c 'trap \"\" TERM; echo $$ > {0}; while :; do sleep 0.1; done' & trap 'exit 0' TERM; echo $HEXKV_TOKEN > {1}; wait",
        worker.display(),
        token.display()
    );
    let mut holder = spawned(client(&address, &["lock", "l", "--ttl", "3s", "--", "bash", "-c", &script]));
    let pid = pid_in(&worker);
    let lease = eventually("it has a token", || {
        let text = fs::read_to_string(&token).map_err(|e| e.to_string())?;
        text.strip_suffix('\n').map(str::to_owned).ok_or_else(|| "not whole yet".to_owned())
    });
    let ended = request(&address, &delete(&format!("/api/leases/{lease}"))).expect("an answer");
    assert_eq!(ended.status, 200, "{ended:?}");
    assert_eq!(code(&mut holder), Some(3), "unavailable");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z"), "the worker ended before the client: {stat}");
}

#[test]
fn a_killed_client_takes_the_command_with_it() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let home = tempfile::tempdir().unwrap();
    let (parent, child) = (home.path().join("parent"), home.path().join("child"));
    let script = format!("sleep 600 & echo $! > {}; echo $$ > {}; wait", child.display(), parent.display());
    let holder = spawned(client(&address, &["lock", "l", "--ttl", "2s", "--", "sh", "-c", &script]));
    let (parent, child) = (pid_in(&parent), pid_in(&child));
    send(&holder, Signal::KILL);
    wait_gone("the command", parent);
    wait_gone("what the command started", child);
}

#[test]
fn the_lock_is_held_until_the_last_of_the_group_ends() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let home = tempfile::tempdir().unwrap();
    let (fifo, parent) = (home.path().join("fifo"), home.path().join("parent"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script = format!("cat {} > /dev/null & echo $$ > {}; exit 5", fifo.display(), parent.display());
    let mut holder = spawned(client(&address, &["lock", "l", "--ttl", "2s", "--", "sh", "-c", &script]));
    // It opens once it is read.
    let writer = fs::File::options().write(true).open(&fifo).unwrap();
    wait_gone("the command", pid_in(&parent));
    let before = Instant::now();
    eventually("twice the time to live is over", || match before.elapsed() > Duration::from_secs(4) {
        true => Ok(()),
        false => Err("not yet".to_owned()),
    });
    assert!(!lock(&address)["holder"].is_null(), "it is renewed");
    assert!(holder.try_wait().unwrap().is_none(), "the client waits");
    drop(writer);
    assert_eq!(code(&mut holder), Some(5), "the command's own code");
    wait_free(&address);
}

#[test]
fn leadership_ends_with_a_signal_too() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let mut leader = spawned(client(&address, &["elect", "e", "--candidate", "c", "--ttl", TTL, "--", "sleep", "600"]));
    let leads = || request(&address, &get("/api/elections/e")).expect("an answer").json()["leader"].clone();
    eventually("it leads", || if leads().is_null() { Err("not yet".to_owned()) } else { Ok(()) });
    send(&leader, Signal::HUP);
    assert_eq!(code(&mut leader), Some(143));
    assert_eq!(leads(), Value::Null, "it resigned before it ended");
}

#[test]
fn a_registered_name_is_given_back_on_every_signal() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let registered = || request(&address, &get("/api/registry/n")).expect("an answer").status == 200;
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let args = ["register", "n", "10.0.0.1:1", "--owner", "o", "--ttl", TTL];
        let mut command = client(&address, &args);
        command.stdout(Stdio::null());
        let mut holder = spawned(command);
        eventually("it is registered", || if registered() { Ok(()) } else { Err("not yet".to_owned()) });
        send(&holder, signal);
        assert_eq!(code(&mut holder), Some(0), "{signal:?}");
        assert!(!registered(), "{signal:?}: it was given back before the client ended");
    }
}
