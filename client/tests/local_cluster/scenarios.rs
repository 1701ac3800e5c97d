//! What `client cluster` does to processes, ports and files.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::node::BROKEN;

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

/// All scenarios, by name.
pub const ALL: &[(&str, fn())] = &[
    ("a_cluster_lives_through_all_verbs", a_cluster_lives_through_all_verbs),
    ("nodes_outlive_the_terminal", nodes_outlive_the_terminal),
    ("a_single_node_is_started_and_stopped", a_single_node_is_started_and_stopped),
    ("a_cluster_grows_and_shrinks", a_cluster_grows_and_shrinks),
    ("a_taken_port_is_named_and_nothing_is_started", a_taken_port_is_named_and_nothing_is_started),
    ("a_node_that_fails_shows_its_last_words", a_node_that_fails_shows_its_last_words),
    ("a_deaf_node_is_killed", a_deaf_node_is_killed),
    ("sizes_out_of_range_name_the_range", sizes_out_of_range_name_the_range),
    ("strangers_are_left_alone", strangers_are_left_alone),
    ("foreign_directories_are_left_alone", foreign_directories_are_left_alone),
    ("run_ends_with_the_code_of_its_command", run_ends_with_the_code_of_its_command),
    ("run_cleans_up_when_interrupted", run_cleans_up_when_interrupted),
];

/// A directory for a cluster; what runs there is ended when this is dropped.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("cluster")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
        command.arg("cluster").args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command
            .env("BASE_HTTP_PORT", "0")
            .env("MAX_CLUSTER_SIZE", "4")
            .env("HEXKV_CLUSTER_DIR", self.dir())
            .env("HEXKV_SERVER", std::env::current_exe().unwrap())
            .env("TMPDIR", self.0.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; its stdout.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn record(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir().join("cluster.json")).unwrap()).unwrap()
    }

    fn pid(&self, index: u32) -> u64 {
        self.record()["processes"][index.to_string()]["pid"].as_u64().unwrap()
    }

    fn states(&self) -> Vec<String> {
        let rows: Value = serde_json::from_str(&self.ok(&["status", "-o", "json"])).unwrap();
        rows.as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect()
    }

    fn log(&self, index: u32) -> String {
        fs::read_to_string(self.dir().join(format!("hex_hub{index}.log"))).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.dir().join("cluster.json").exists() {
            let output = self.run(&["clean"]);
            assert!(output.status.success() || std::thread::panicking(), "{}", stderr(&output));
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a process is there and has not ended.
fn lives(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn a_cluster_lives_through_all_verbs() {
    let home = Home::new();
    let shown = home.ok(&["start", "--size", "3"]);
    for index in 1..=3 {
        assert!(
            shown.contains(&format!("hex_hub{index}@127.0.0.1")) && shown.contains(&home.pid(index).to_string()),
            "{shown}"
        );
    }
    assert_eq!(shown.matches("  curl ").count(), 3, "{shown}");
    assert_eq!(shown.matches("leader").count(), 1, "{shown}");
    home.ok(&["health"]);

    let pids = [1, 2, 3].map(|index| home.pid(index));
    let again = home.run(&["start"]);
    assert!(again.status.success() && stderr(&again).contains("runs already"), "{}", stderr(&again));
    assert_eq!([1, 2, 3].map(|index| home.pid(index)), pids);

    assert_eq!(home.ok(&["stop", "hex_hub2"]), "hex_hub2@127.0.0.1 stopped\n");
    assert_eq!(home.states(), ["ready", "stopped", "ready"]);
    assert!(!lives(pids[1]) && lives(pids[0]));
    assert_eq!(home.run(&["health"]).status.code(), Some(3));
    home.ok(&["start"]);
    assert_eq!((home.pid(1), home.pid(3)), (pids[0], pids[2]));
    assert_ne!(home.pid(2), pids[1]);
    assert_eq!(home.ok(&["logs", "2"]).matches("hex_hub2@127.0.0.1 serves").count(), 2);

    let stopped: Value = serde_json::from_str(&home.ok(&["stop", "-o", "json"])).unwrap();
    assert_eq!(stopped["hex_hub3@127.0.0.1"], "asked");
    assert_eq!(home.states(), ["stopped"; 3]);
    assert!(home.dir().join("hex_hub1/identity").exists(), "a stopped cluster keeps its data");
    home.ok(&["restart"]);
    assert_eq!(home.states(), ["ready"; 3]);
    let pids = [1, 2, 3].map(|index| home.pid(index));
    home.ok(&["clean"]);
    assert!(!home.dir().exists() && pids.iter().all(|pid| !lives(*pid)));
    assert_eq!(home.run(&["status"]).status.code(), Some(1));
}

fn nodes_outlive_the_terminal() {
    let home = Home::new();
    home.ok(&["start", "--size", "1"]);
    let pid = home.pid(1);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid, "a node is in a session of its own");
}

fn a_single_node_is_started_and_stopped() {
    let home = Home::new();
    home.ok(&["start-node", "2", "--size", "3"]);
    assert_eq!(home.states(), ["stopped", "ready", "stopped"]);
    assert_eq!(home.run(&["start-node", "4"]).status.code(), Some(2));
    assert_eq!(home.run(&["stop-node", "0"]).status.code(), Some(2));
    assert_eq!(home.ok(&["stop-node", "2"]), "hex_hub2@127.0.0.1 stopped\n");
    assert_eq!(home.ok(&["stop-node", "2"]), "hex_hub2@127.0.0.1 did not run\n");
}

fn a_cluster_grows_and_shrinks() {
    let home = Home::new();
    home.ok(&["start", "--size", "2"]);
    let first = home.pid(1);
    home.ok(&["start", "--size", "3"]);
    assert_eq!((home.states().len(), home.pid(1)), (3, first));
    let smaller = home.run(&["start", "--size", "2"]);
    assert!(smaller.status.code() == Some(1) && stderr(&smaller).contains("restart --size 2"), "{}", stderr(&smaller));
    let third = home.pid(3);
    home.ok(&["restart", "--size", "2"]);
    assert_eq!(home.states(), ["ready"; 2]);
    assert!(home.log(3).contains("asked to leave") && !home.log(2).contains("asked to leave"));
    assert!(!lives(third));
    home.ok(&["restart", "--size", "4"]);
    assert_eq!(home.states(), ["ready"; 4]);
    let moved = home.command(&["start"]).env("BASE_HTTP_PORT", "4000").output().unwrap();
    assert!(moved.status.code() == Some(1) && stderr(&moved).contains("BASE_HTTP_PORT"), "{}", stderr(&moved));
}

fn a_taken_port_is_named_and_nothing_is_started() {
    let home = Home::new();
    home.ok(&["start", "--size", "2"]);
    home.ok(&["stop"]);
    let port = u16::try_from(home.record()["base_http_port"].as_u64().unwrap()).unwrap() + 10 + 5100;
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let output = home.run(&["start"]);
    let said = stderr(&output);
    assert!(output.status.code() == Some(1) && said.contains(&format!("raft port {port} of hex_hub2")), "{said}");
    assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
    assert_eq!(home.states(), ["stopped"; 2]);
    drop(taken);
    home.ok(&["start"]);
}

fn a_node_that_fails_shows_its_last_words() {
    let home = Home::new();
    let output = home.command(&["start", "--size", "2"]).env(BROKEN, "2").output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("hex_hub2@127.0.0.1 has ended") && said.contains("told to be broken"), "{said}");
    home.ok(&["start"]);
    assert_eq!(home.states(), ["ready"; 2]);
    let missing = home.command(&["restart"]).env("HEXKV_SERVER", "/nowhere/server").output().unwrap();
    assert!(missing.status.code() == Some(1) && stderr(&missing).contains("/nowhere/server"), "{}", stderr(&missing));
}

fn a_deaf_node_is_killed() {
    let home = Home::new();
    // An ignored signal stays ignored across exec, from the shell to the client to the node.
    let script = format!("trap '' TERM; exec {} cluster start --size 1", env!("CARGO_BIN_EXE_client"));
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script);
    for (name, value) in home.command(&[]).get_envs() {
        shell.env(name, value.unwrap());
    }
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let pid = home.pid(1);
    assert!(home.ok(&["stop"]).contains("was killed"));
    assert!(!lives(pid));
}

fn sizes_out_of_range_name_the_range() {
    let home = Home::new();
    for size in ["0", "5"] {
        let output = home.run(&["start", "--size", size]);
        assert!(output.status.code() == Some(2) && stderr(&output).contains("outside 1..=4"), "{}", stderr(&output));
    }
    let ten = home.command(&["start", "--size", "11"]).env_remove("MAX_CLUSTER_SIZE").output().unwrap();
    assert!(ten.status.code() == Some(2) && stderr(&ten).contains("outside 1..=10"), "{}", stderr(&ten));
    for (variables, said) in [
        (&[("CLUSTER_SIZE", "7")] as &[(&str, &str)], Some("cluster size 7 is outside")),
        (&[("CLUSTER_SIZE", "many")], Some("CLUSTER_SIZE=\"many\"")),
        (&[("CLUSTER_SIZE", "1"), ("CI_CLUSTER_SIZE", "8"), ("CI", "true")], Some("cluster size 8 is outside")),
        (&[("CLUSTER_SIZE", "1"), ("CI_CLUSTER_SIZE", "8")], None),
    ] {
        let output = home.command(&["start"]).envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(if said.is_some() { 2 } else { 0 }), "{}", stderr(&output));
        assert!(stderr(&output).contains(said.unwrap_or_default()), "{}", stderr(&output));
    }
    assert_eq!(home.states().len(), 1);
}

fn strangers_are_left_alone() {
    let home = Home::new();
    home.ok(&["start", "--size", "2"]);
    let ours = home.pid(1);
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let mut record = home.record();
    record["processes"]["2"]["pid"] = json!(stranger.id());
    let real = home.pid(2);
    fs::write(home.dir().join("cluster.json"), record.to_string()).unwrap();

    assert_eq!(home.states()[1], "stopped");
    let stopped = home.ok(&["stop"]);
    assert!(stopped.contains("hex_hub2@127.0.0.1 did not run"), "{stopped}");
    assert!(!lives(ours));
    assert!(lives(u64::from(stranger.id())), "a process that merely has the recorded pid was ended");
    stranger.kill().unwrap();
    stranger.wait().unwrap();

    record["processes"]["2"]["pid"] = json!(real);
    fs::write(home.dir().join("cluster.json"), record.to_string()).unwrap();
    assert!(home.ok(&["stop"]).contains("hex_hub2@127.0.0.1 stopped"));
}

fn foreign_directories_are_left_alone() {
    let home = Home::new();
    fs::create_dir(home.dir()).unwrap();
    let thesis = home.dir().join("thesis.tex");
    fs::write(&thesis, "x").unwrap();
    for verb in ["clean", "start", "stop", "status"] {
        let output = home.run(&[verb]);
        assert_eq!(output.status.code(), Some(1), "{verb}: {}", stderr(&output));
    }
    assert!(thesis.exists() && fs::read_dir(home.dir()).unwrap().count() == 1);
}

fn run_ends_with_the_code_of_its_command() {
    let home = Home::new();
    let seen = home.0.path().join("seen");
    let script = format!("echo $CLUSTER_SIZE $HEXKV_ENDPOINTS > {}; exit ", seen.display());
    let ended = home.run(&["run", "--size", "2", "--", "sh", "-c", &format!("{script} 0")]);
    assert_eq!(ended.status.code(), Some(0), "{}", stderr(&ended));
    assert!(!home.dir().exists(), "a cluster that did its work is removed");
    let text = fs::read_to_string(&seen).unwrap();
    assert!(text.starts_with("2 http://127.0.0.1:") && text.matches("http://").count() == 2, "{text}");

    let failed = home.run(&["run", "--size", "1", "--", "sh", "-c", &format!("{script} 7")]);
    assert_eq!(failed.status.code(), Some(7), "{}", stderr(&failed));
    assert!(stderr(&failed).contains(&home.dir().display().to_string()), "{}", stderr(&failed));
    assert_eq!(home.states(), ["stopped"]);
    assert_eq!(home.run(&["run", "--", "true"]).status.code(), Some(1), "`run` never takes a cluster that is there");

    let elsewhere =
        home.command(&["run", "--size", "1", "--", "true"]).env_remove("HEXKV_CLUSTER_DIR").output().unwrap();
    assert!(elsewhere.status.success(), "{}", stderr(&elsewhere));
    let left = fs::read_dir(home.0.path()).unwrap().flatten().filter(|entry| is_run_dir(&entry.path()));
    assert_eq!(left.count(), 0, "the temporary directory is removed");
}

fn is_run_dir(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("hexkv-run-"))
}

fn run_cleans_up_when_interrupted() {
    let home = Home::new();
    let started = home.0.path().join("started");
    let script = format!("touch {}; exec sleep 600", started.display());
    let mut run = home.command(&["run", "--size", "1", "--", "sh", "-c", &script]).spawn().unwrap();
    wait_until("the command runs", || started.exists());
    let node = home.pid(1);
    assert!(lives(node));
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(128 + 15));
    wait_until("the node has ended", || !lives(node));
}
