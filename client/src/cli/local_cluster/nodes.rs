//! The nodes of a cluster: starting, stopping, waiting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hexkv_client::cluster::HealthCheck;
use hexkv_client::local::{BASE_HTTP_PORT, LocalCluster, MAX_CLUSTER_SIZE, PORT_SPACING, env_number, formed};
use hexkv_client::{Client, Options};
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::Instant;

use super::record::{ClusterDir, Lock, Record};
use super::{check_size, ports, process, report, wanted_size};
use crate::cli::Failure;

/// Pause between two looks at processes or nodes.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long a node may take to stop when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a killed node may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node would take from the environment against its index.
const NOT_INHERITED: [&str; 2] = ["NODE_ROLE", "CI_CLUSTER_SIZE"];

/// A cluster that this command works on, alone.
///
/// Invariants: the record on disk names every process that was started and not seen to end; only processes that it
/// names and that still are what it says are ever signalled.
#[derive(Debug)]
pub struct Nodes {
    dir: ClusterDir,
    lock: Lock,
    record: Record,
    layout: LocalCluster,
}

/// How a node was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stopped {
    /// It did not run.
    Before,
    /// It went when asked to.
    Asked,
    /// It had to be killed.
    Killed,
}

/// Where the nodes of a recorded cluster are.
///
/// # Errors
/// When the record's ports make no cluster.
pub fn layout(record: &Record) -> Result<LocalCluster, Failure> {
    let max = env_number("MAX_CLUSTER_SIZE")?.unwrap_or(MAX_CLUSTER_SIZE).max(record.size);
    let max = record.processes.keys().copied().fold(max, u32::max);
    Ok(LocalCluster::new(record.base_http_port, record.port_spacing, max)?)
}

/// Checks that the cluster has a node with this index.
///
/// # Errors
/// [`Failure::Usage`] naming the range.
pub fn check_index(record: &Record, index: u32) -> Result<(), Failure> {
    if (1..=record.size).contains(&index) {
        return Ok(());
    }
    Err(Failure::Usage(format!("there is no node {index}: this cluster has nodes 1..={}", record.size)))
}

impl Nodes {
    /// The cluster that is in `dir`.
    ///
    /// # Errors
    /// When there is none, or another command works on it.
    pub fn open(dir: ClusterDir) -> Result<Self, Failure> {
        dir.expect()?;
        let lock = dir.lock()?;
        let record = dir.expect()?;
        Ok(Self { layout: layout(&record)?, dir, lock, record })
    }

    /// The same; makes one of the size that flag and environment ask for when there is none, and makes an existing
    /// one larger when `size` says so.
    ///
    /// # Errors
    /// When the size is out of range or smaller than the cluster, or the ports are not those of the cluster.
    pub fn open_or_create(dir: ClusterDir, size: Option<u32>) -> Result<Self, Failure> {
        let size = size.map(check_size).transpose()?;
        let base = env_number::<u16>("BASE_HTTP_PORT")?;
        let spacing = env_number::<u16>("PORT_SPACING")?;
        if dir.read()?.is_some() {
            let mut nodes = Self::open(dir)?;
            let moved = base.is_some_and(|base| base != 0 && base != nodes.record.base_http_port)
                || spacing.is_some_and(|spacing| spacing != nodes.record.port_spacing);
            if moved {
                return Err(Failure::Refused(format!(
                    "this cluster has BASE_HTTP_PORT={} and PORT_SPACING={}, its nodes know each other by these: unset \
                     them, or use another --dir",
                    nodes.record.base_http_port, nodes.record.port_spacing
                )));
            }
            if let Some(size) = size {
                if size < nodes.record.size {
                    return Err(Failure::Refused(format!(
                        "the cluster has {} nodes: `client cluster restart --size {size}` makes it smaller",
                        nodes.record.size
                    )));
                }
                nodes.set_size(size)?;
            }
            return Ok(nodes);
        }
        let size = wanted_size(size)?;
        let spacing = spacing.unwrap_or(PORT_SPACING);
        let max = env_number("MAX_CLUSTER_SIZE")?.unwrap_or(MAX_CLUSTER_SIZE);
        let epmd_port = env_number("EPMD_PORT")?;
        let (layout, epmd_port) = match base.unwrap_or(BASE_HTTP_PORT) {
            // The default port mapper may know nodes of the same names already.
            0 => (ports::free_layout(spacing, max)?, Some(epmd_port.map_or_else(ports::free_port, Ok)?)),
            base => (LocalCluster::new(base, spacing, max)?, epmd_port),
        };
        let lock = dir.create()?;
        let record = Record::new(size, &layout, epmd_port);
        dir.write(&lock, &record)?;
        Ok(Self { dir, lock, record, layout })
    }

    /// Nodes the cluster has.
    pub fn size(&self) -> u32 {
        self.record.size
    }

    /// What is remembered of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where its nodes are.
    pub fn layout(&self) -> &LocalCluster {
        &self.layout
    }

    /// Its directory.
    pub fn dir(&self) -> &ClusterDir {
        &self.dir
    }

    /// Nodes that run, by index.
    pub fn running(&self) -> Vec<u32> {
        let running = self.record.processes.iter().filter(|(_, process)| process.runs());
        running.map(|(index, _)| *index).collect()
    }

    /// Remembers another size; starts and stops nothing.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn set_size(&mut self, size: u32) -> Result<(), Failure> {
        self.record.size = size;
        self.dir.write(&self.lock, &self.record)
    }

    /// Starts all nodes that do not run.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_all(&mut self, server: Option<&Path>) -> Result<(), Failure> {
        let all: Vec<u32> = (1..=self.record.size).collect();
        self.start(&all, server).await
    }

    /// Starts those of these nodes that do not run, after a look at all their ports.
    ///
    /// # Errors
    /// When a port is taken or the server cannot be started.
    pub async fn start(&mut self, indices: &[u32], server: Option<&Path>) -> Result<(), Failure> {
        let running = self.running();
        let missing: Vec<u32> = indices.iter().copied().filter(|index| !running.contains(index)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let server = server_binary(server)?;
        // A node that was killed a moment ago may still hold its ports.
        self.wait_ended(&missing, KILL_TIMEOUT).await;
        missing.iter().try_for_each(|&index| ports::check_free(&self.layout, index))?;
        for index in missing {
            let log = self.dir.log(index);
            let started = process::start_detached(self.command(&server, index), &log);
            let process = started.map_err(Failure::local(format!("cannot start {}", server.display())))?;
            match process {
                Some(process) => self.record.processes.insert(index, process),
                None => self.record.processes.remove(&index),
            };
            self.dir.write(&self.lock, &self.record)?;
        }
        Ok(())
    }

    fn command(&self, server: &Path, index: u32) -> Command {
        let mut command = Command::new(server);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command
            .env("NODE_INDEX", index.to_string())
            .env("CLUSTER_SIZE", self.record.size.to_string())
            .env("NODE_NAME", LocalCluster::name(index))
            .env("BASE_HTTP_PORT", self.record.base_http_port.to_string())
            .env("PORT_SPACING", self.record.port_spacing.to_string())
            .env("PORT", self.layout.http_port(index).to_string())
            .env("RAFT_PORT", self.layout.raft_port(index).to_string())
            .env("DATA_DIR", self.dir.data(index));
        if let Some(port) = self.record.epmd_port {
            command.env("EPMD_PORT", port.to_string());
        }
        command
    }

    /// Waits until all nodes are ready and know each other as members.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] with the failing node's last log lines when a node ends or time runs out.
    pub async fn wait_formed(&self, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            for index in 1..=self.record.size {
                self.check_runs(index)?;
            }
            let probes = self.layout.probe_nodes(self.record.size).await?;
            let Err(why) = formed(&probes) else { return Ok(()) };
            if Instant::now() + POLL_INTERVAL >= deadline {
                let culprit = probes.iter().find(|probe| probe.ready.is_err()).map_or(1, |probe| probe.index);
                let said = format!("no cluster of {} within {timeout:?}: {why}", self.record.size);
                return Err(self.failed(culprit, &said));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until one node answers, in a cluster or not.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] with its last log lines when it ends or time runs out.
    pub async fn wait_alive(&self, index: u32, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        let options =
            Options { attempts_max: 1, timeout: Options::default().read_attempt_timeout, ..Options::default() };
        let client = Client::with_endpoints(vec![self.layout.endpoint(index)], options)?;
        loop {
            self.check_runs(index)?;
            let Err(error) = client.health(HealthCheck::Node).await else { return Ok(()) };
            if Instant::now() + POLL_INTERVAL >= deadline {
                let said = format!("{} does not answer within {timeout:?}: {error}", LocalCluster::name(index));
                return Err(self.failed(index, &said));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Checks that the process of a node is there.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] with its last log lines.
    pub fn check_runs(&self, index: u32) -> Result<(), Failure> {
        if self.record.processes.get(&index).is_some_and(process::ProcessRecord::runs) {
            return Ok(());
        }
        Err(self.failed(index, &format!("{} has ended", LocalCluster::name(index))))
    }

    fn failed(&self, index: u32, said: &str) -> Failure {
        let log = self.dir.log(index);
        Failure::Node { what: said.to_owned(), log: log.display().to_string(), last_lines: report::last_lines(&log) }
    }

    /// Stops these nodes: asks first, kills those that do not go. A recorded pid that is another process by now is left
    /// alone.
    ///
    /// # Errors
    /// When the system refuses to signal a node, or one does not even go when killed.
    pub async fn stop(&mut self, indices: &[u32]) -> Result<BTreeMap<u32, Stopped>, Failure> {
        let mut stopped = BTreeMap::new();
        for &index in indices {
            let asked = self.signal(index, Signal::TERM)?;
            stopped.insert(index, if asked { Stopped::Asked } else { Stopped::Before });
        }
        self.wait_ended(indices, STOP_TIMEOUT).await;
        for &index in indices {
            if self.signal(index, Signal::KILL)? {
                stopped.insert(index, Stopped::Killed);
            }
        }
        self.wait_ended(indices, KILL_TIMEOUT).await;
        let left = self.running();
        if let Some(index) = indices.iter().find(|index| left.contains(index)) {
            return Err(Failure::Unavailable(format!("{} was killed and does not go", LocalCluster::name(*index))));
        }
        self.record.processes.retain(|index, _| !indices.contains(index));
        self.dir.write(&self.lock, &self.record)?;
        Ok(stopped)
    }

    fn signal(&self, index: u32, signal: Signal) -> Result<bool, Failure> {
        let Some(process) = self.record.processes.get(&index) else { return Ok(false) };
        process.signal(signal).map_err(Failure::local(format!("cannot signal {}", LocalCluster::name(index))))
    }

    async fn wait_ended(&self, indices: &[u32], timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let left = |index: &u32| self.record.processes.get(index).is_some_and(|process| !process.is_gone());
        while indices.iter().any(left) && Instant::now() < deadline {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Lets the nodes beyond `size` leave the cluster, the last one first, and stops them.
    ///
    /// # Errors
    /// When a node refuses to leave or does not manage in `timeout`.
    pub async fn shrink(&mut self, size: u32, timeout: Duration) -> Result<(), Failure> {
        for index in (size + 1..=self.record.size).rev() {
            let options = Options { timeout, ..Options::default() };
            Client::with_endpoints(vec![self.layout.endpoint(index)], options)?.leave().await?;
            self.stop(&[index]).await?;
            self.set_size(index - 1)?;
        }
        Ok(())
    }

    /// Stops all nodes and removes what they left; answers whether the directory is gone.
    ///
    /// # Errors
    /// See [`Self::stop`] and [`ClusterDir::remove`].
    pub async fn clean(mut self) -> Result<bool, Failure> {
        let all: Vec<u32> = self.record.processes.keys().copied().collect();
        self.stop(&all).await?;
        self.dir.remove(self.lock)
    }
}

/// The server binary: the one asked for, or `server` beside this program.
fn server_binary(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = match asked {
        Some(path) => std::path::absolute(path).map_err(Failure::local(path.display().to_string()))?,
        None => {
            let this = std::env::current_exe().map_err(Failure::local("cannot find this program's own path"))?;
            this.with_file_name("server")
        }
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::Refused(format!(
        "there is no server binary at {}: build it (cargo build --release), or name it with --server or HEXKV_SERVER",
        path.display()
    )))
}
