//! Nodes as processes. A cluster that a test starts ends with it; when the test fails, each node's last log
//! lines are printed.

mod guards;
mod http;
pub mod load;
pub mod local;
pub mod peer;
mod ports;
pub mod python;
mod sse;
pub mod volume;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

pub use guards::{Killed, LONG_TESTS, Stops, inheriting, skipped};
pub use http::{Answer, Request, begin, delete, get, json, put, request};
pub use ports::free_ports;
use serde_json::Value;
pub use sse::{Event, Events};

/// Longest wait for anything; generous, because machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Between two looks at something that is over soon.
const SHORT_LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How often a command is run until it is caught in the middle.
const BREAK_OFF_TRIES: usize = 20;
/// Log lines shown of each node when a test fails.
const LOG_LINES_SHOWN: usize = 30;

/// The directory of the binaries, built once a test run.
pub fn binary(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let test = std::env::current_exe().expect("the test binary has a path");
        let dir = test.parent().and_then(Path::parent).expect("it lies in target/PROFILE/deps").to_path_buf();
        let mut build = Command::new(env!("CARGO"));
        // All of the workspace: with fewer packages features would be resolved anew, and everything compiled again.
        build.args(["build", "--quiet", "--locked", "--bins", "--workspace"]);
        if dir.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        build.arg("--target-dir").arg(dir.parent().expect("target/PROFILE is in target"));
        assert!(build.status().expect("cargo runs").success(), "the binaries do not build");
        dir
    });
    dir.join(name)
}

/// Runs `client` with these endpoints.
pub fn client(endpoints: &str, args: &[&str]) -> Output {
    let mut command = Command::new(binary("client"));
    command.env_remove("HEXKV_ENDPOINTS").args(["--endpoints", endpoints]).args(args);
    command.output().expect("the client runs")
}

/// What a process printed.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until `condition` gives a value; panics with `what` and the last refusal after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => panic!("{what}: not within {PATIENCE:?}; last: {why}"),
            Err(_) => std::thread::park_timeout(LOOK_INTERVAL),
        }
    }
}

/// One node: a process, now and then.
pub struct Node {
    /// 1-based.
    pub index: usize,
    /// Full name.
    pub name: String,
    /// `127.0.0.1:port` for clients.
    pub http: String,
    /// `127.0.0.1:port` for nodes.
    pub raft: String,
    /// Data directory.
    pub data: PathBuf,
    /// Log of all its runs.
    pub log: PathBuf,
    /// Environment beyond the defaults.
    pub env: BTreeMap<String, String>,
    /// The process whose mounts it sees, where they are not those of the tests.
    pub mounts_of: Option<u32>,
    /// Files that it may open, where that is not as many as the tests may.
    pub files_max: Option<u64>,
    child: Option<Child>,
}

impl Node {
    fn command(&self) -> Command {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("the log opens");
        let mut command = Command::new(binary("server"));
        if let Some(pid) = self.mounts_of {
            command = Command::new("nsenter");
            command.arg(format!("--mount=/proc/{pid}/ns/mnt")).arg(binary("server"));
        }
        if let Some(files) = self.files_max {
            command = Command::new("sh");
            command.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]).arg(binary("server"));
        }
        command
            .env_clear()
            .envs(std::env::vars().filter(|(k, _)| k == "PATH" || k == "HOME" || k == "RUST_BACKTRACE"))
            .env("RUST_LOG", "info,openraft=warn,sled=warn")
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("the log is shared")))
            .stderr(Stdio::from(log));
        command
    }

    /// Starts the process; it is not waited for.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.child = Some(self.command().spawn().expect("the server starts"));
    }

    /// Starts the process, waits for its end, and gives its exit code and what it logged in this run.
    pub fn run_to_end(&mut self) -> (Option<i32>, String) {
        let before = std::fs::read_to_string(&self.log).unwrap_or_default().len();
        self.start();
        let child = self.child.take().expect("just started");
        let code = ended(child, &self.name);
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        (code, log[before..].to_string())
    }

    /// `server ARGS` as this node, to its end: for what is done while no node runs.
    pub fn offline(&self, args: &[&str]) -> Output {
        self.offline_command(args).output().expect("the server binary runs")
    }

    /// The same, not started.
    pub fn offline_command(&self, args: &[&str]) -> Command {
        let mut command = self.command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `server ARGS` as this node, killed while it makes the data directory, on which no server starts then. A run that is over
    /// before it is seen to be under way, or killed, is undone, and begun again.
    pub fn break_off(&mut self, args: &[&str]) {
        for _ in 0..BREAK_OFF_TRIES {
            let mut running = self.offline_command(args).spawn().expect("the server binary runs");
            let deadline = Instant::now() + PATIENCE;
            while !self.data.join("making-work").exists()
                && running.try_wait().expect("a child can be waited for").is_none()
                && Instant::now() < deadline
            {
                std::thread::park_timeout(SHORT_LOOK_INTERVAL);
            }
            running.kill().expect("a child can be killed");
            let ended = running.wait_with_output().expect("a child can be waited for");
            if !self.data.join("identity").exists() {
                assert_eq!(ended.status.code(), None, "it was killed: {}", said(&ended));
                let (code, log) = self.run_to_end();
                assert!(code == Some(1) && log.contains("broken off"), "{code:?} {log}");
                return;
            }
            std::fs::remove_dir_all(&self.data).expect("what it made can be removed");
        }
        panic!("{args:?} was not caught in the middle in {BREAK_OFF_TRIES} runs");
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the process runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| c.try_wait().expect("a child can be waited for").is_none())
    }

    /// The exit code of a process that ended by itself; None while it runs.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.as_mut().and_then(|c| c.try_wait().expect("a child can be waited for"))?.code()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.pid().expect("it runs");
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid is positive");
        rustix::process::kill_process(pid, signal).expect("a child can be signalled");
    }

    /// SIGTERM, and waits for the end; gives the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let child = self.child.take().expect("it runs");
        ended(child, &self.name)
    }

    /// Everything it logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// GET of a JSON document.
    pub fn json(&self, path: &str) -> Result<Value, String> {
        let answer = request(&self.http, &get(path))?;
        serde_json::from_slice(&answer.body).map_err(|e| format!("{path} on {}: {e}: {answer:?}", self.name))
    }

    /// The cluster as it sees it.
    pub fn status(&self) -> Result<Value, String> {
        self.json("/api/cluster/status")
    }

    /// Whether it serves linearizable requests.
    pub fn ready(&self) -> Result<(), String> {
        let answer = request(&self.http, &get("/health/ready"))?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{}: {}", self.name, answer.text())) }
    }

    /// Sends this node a join.
    pub fn join(&self, target: &str, discard: bool) -> Answer {
        let body = serde_json::json!({"node": target, "discard_local_data": discard});
        request(&self.http, &json("POST", "/api/cluster/join", &body)).expect("the node answers")
    }
}

/// Waits until `child` ended by itself, and gives its exit code.
fn ended(mut child: Child, name: &str) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code();
        }
        std::thread::park_timeout(LOOK_INTERVAL);
    }
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    panic!("{name} did not end by itself");
}

/// Some nodes in one temporary directory, with a cookie and a port mapper port of their own.
pub struct Cluster {
    /// Node I at `I - 1`.
    pub nodes: Vec<Node>,
    /// Environment of nodes that are added.
    env: BTreeMap<String, String>,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// No nodes yet; `env` goes to all.
    pub fn empty(env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut common: BTreeMap<String, String> = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        common.entry("COOKIE".into()).or_insert_with(|| format!("cookie-{}", dir.path().display()));
        common.entry("EPMD_PORT".into()).or_insert_with(|| free_ports(1)[0].to_string());
        Self { nodes: Vec::new(), env: common, dir }
    }

    /// `size` nodes that form one cluster by themselves, all ready.
    pub fn start(size: usize) -> Self {
        Self::start_with(size, &[])
    }

    /// As [`Cluster::start`], with environment for all.
    pub fn start_with(size: usize, env: &[(&str, &str)]) -> Self {
        let mut cluster = Self::empty(env);
        for index in 1..=size {
            let node = cluster.add();
            node.env.insert("NODE_INDEX".into(), index.to_string());
            node.env.insert("CLUSTER_SIZE".into(), size.to_string());
            node.start();
        }
        cluster.wait_formed(size);
        cluster
    }

    /// A further node, alone as far as it knows; not started.
    pub fn add(&mut self) -> &mut Node {
        let index = self.nodes.len() + 1;
        let ports = free_ports(2);
        let mut env = self.env.clone();
        let name = format!("hex_hub{index}@127.0.0.1");
        let data = self.dir.path().join(format!("node{index}"));
        env.insert("NODE_NAME".into(), name.clone());
        env.insert("PORT".into(), ports[0].to_string());
        env.insert("RAFT_PORT".into(), ports[1].to_string());
        env.insert("DATA_DIR".into(), data.display().to_string());
        self.nodes.push(Node {
            index,
            name,
            http: format!("127.0.0.1:{}", ports[0]),
            raft: format!("127.0.0.1:{}", ports[1]),
            data,
            log: self.dir.path().join(format!("node{index}.log")),
            env,
            mounts_of: None,
            files_max: None,
            child: None,
        });
        self.nodes.last_mut().expect("just added")
    }

    /// A further node that runs and is ready, as a cluster of one.
    pub fn add_running(&mut self) -> &mut Node {
        let node = self.add();
        node.start();
        eventually("a node started alone serves", || node.ready());
        node
    }

    /// Node `index`, 1-based.
    pub fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index - 1]
    }

    /// Waits until all running nodes are ready and see `size` members, of which min(size, 3) vote.
    pub fn wait_formed(&mut self, size: usize) {
        for node in self.nodes.iter_mut().filter(|n| n.child.is_some()) {
            eventually("the cluster forms", || {
                node.ready()?;
                let status = node.status()?;
                let members = status["members"].as_array().ok_or("no members")?;
                let voters = members.iter().filter(|m| m["role"] == "voter").count();
                let wanted = size.min(status["replication_factor"].as_u64().unwrap_or(0) as usize);
                if members.len() == size && voters == wanted { Ok(()) } else { Err(format!("{}: {status}", node.name)) }
            });
        }
    }

    /// The index of the node that all running nodes agree leads.
    pub fn leader(&mut self) -> usize {
        eventually("all running nodes agree on a leader", || {
            let mut leaders = Vec::new();
            for node in self.nodes.iter().filter(|n| n.child.is_some()) {
                leaders.push(node.status()?["leader"].as_str().map(str::to_string));
            }
            leaders.dedup();
            match &leaders[..] {
                [Some(name)] => {
                    let leader = self
                        .nodes
                        .iter()
                        .find(|n| n.name == *name)
                        .ok_or_else(|| format!("{name} is no node of this test"))?;
                    if leader.child.is_some() { Ok(leader.index) } else { Err(format!("{name} does not run")) }
                }
                other => Err(format!("{other:?}")),
            }
        })
    }

    /// Some running node that is not `index`.
    pub fn other_than(&self, index: usize) -> usize {
        self.nodes.iter().find(|n| n.index != index && n.child.is_some()).expect("another node runs").index
    }

    /// A log index of node `index`, by the metric that shows it.
    fn log_index(&self, index: usize, metric: &str) -> Result<u64, String> {
        let metrics = request(&self.nodes[index - 1].http, &get("/metrics"))?.text();
        let value = metrics.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        let value: Option<f64> = value.and_then(|value| value.parse().ok());
        value.map(|value| value as u64).ok_or_else(|| format!("no {metric}"))
    }

    /// Index of the last entry in the log of node `index`.
    pub fn last_log_index(&self, index: usize) -> u64 {
        eventually("the node shows its log", || self.log_index(index, "hexkv_raft_last_log_index"))
    }

    /// Whether node `index` keeps nothing any more of the log up to the entry behind `last`, which a node that ends with `last` lacks.
    pub fn purged_past(&self, index: usize, last: u64) -> Result<(), String> {
        let first = self.log_index(index, "hexkv_raft_first_log_index")?;
        if first > last + 1 { Ok(()) } else { Err(format!("the log begins with entry {first}, and not behind {last}")) }
    }

    /// The nodes that vote and hold the data, as the first node's status says.
    pub fn holders(&self) -> Vec<usize> {
        let status = self.nodes[0].status().expect("a status");
        let members = status["members"].as_array().expect("members");
        let votes = |node: &Node| members.iter().any(|m| m["name"] == node.name.as_str() && m["role"] == "voter");
        (1..=self.nodes.len()).filter(|index| votes(&self.nodes[index - 1])).collect()
    }

    /// [`Cluster::wait_same_hash`] of the `count` nodes that hold the data.
    pub fn wait_holders_agree(&self, count: usize) {
        let holders = self.holders();
        assert_eq!(holders.len(), count, "{:?}", self.nodes[0].status());
        self.wait_same_hash(&holders);
    }

    /// Waits until all nodes of `indexes` have one state hash at one applied index, and gives it.
    pub fn wait_same_hash(&self, indexes: &[usize]) -> String {
        eventually("the states agree", || {
            let mut hashes = Vec::new();
            for index in indexes {
                let h = self.nodes[index - 1].json("/api/cluster/hash")?;
                hashes.push((h["applied_index"].as_u64(), h["hash"].as_str().map(str::to_string)));
            }
            let all = hashes.clone();
            hashes.dedup();
            match &hashes[..] {
                [(Some(_), Some(hash))] => Ok(hash.clone()),
                _ => Err(format!("{all:?}")),
            }
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
            if std::thread::panicking() {
                let log = node.logged();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- the last lines of {}:", node.name);
                for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}
