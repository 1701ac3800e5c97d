//! One server process, now and then.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hexkv_client::{Client, Options};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use super::view::ASK_TIMEOUT;
use super::{Addresses, ClusterError, STOP_TIMEOUT, Volume};

/// Longest wait for a join, leave or removal: the server's own limits are 10 s to be taken in and 60 s to settle.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(75);

/// How far the ports of a copy of a node are from those of the node.
const OTHER_PORTS: u16 = 2;
/// Size of a file system of a node's own, in bytes; its file is sparse.
const VOLUME_BYTES: u64 = 1 << 30;

/// A node: its place, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// As histories name it: `n1` is at position 0.
    pub name: String,
    /// As the cluster names it.
    pub full_name: String,
    /// `name@host:raft_port`, for joins.
    pub target: String,
    /// `host:port` for clients: the proxy.
    pub http: String,
    /// Data directory.
    pub data: PathBuf,
    /// Log of all its runs.
    pub log: PathBuf,
    /// Asks the node past its proxy, once.
    pub direct: Client,
    /// The same, with the time that a change of membership takes.
    pub patient: Client,
    server: PathBuf,
    env: Vec<(String, String)>,
    /// The file system of its own that its data is on, for the time of a fault.
    volume: Option<Volume>,
    child: Option<Child>,
}

impl Node {
    /// A node that was not started yet.
    pub(super) fn new(
        server: &Path,
        dir: &Path,
        addresses: &Addresses,
        position: usize,
        mut env: Vec<(String, String)>,
    ) -> Result<Self, ClusterError> {
        let name = format!("n{}", position + 1);
        let data = dir.join("data").join(&name);
        fs::create_dir_all(&data).map_err(|source| ClusterError::file(&data, source))?;
        let private = addresses.private(position, addresses.http_port);
        let public = addresses.public(position, addresses.http_port);
        let full_name = addresses.full_name(position);
        env.extend([
            ("NODE_NAME".to_owned(), full_name.clone()),
            ("NODE_INDEX".to_owned(), (position + 1).to_string()),
            ("BIND".to_owned(), private.ip().to_string()),
            ("ADVERTISE".to_owned(), public.ip().to_string()),
            ("PORT".to_owned(), addresses.http_port.to_string()),
            ("RAFT_PORT".to_owned(), addresses.raft_port.to_string()),
            ("DATA_DIR".to_owned(), data.display().to_string()),
        ]);
        let once = Options { attempts_max: 1, timeout: ASK_TIMEOUT, ..Options::default() };
        let patient = Options { timeout: MEMBERSHIP_TIMEOUT, ..once.clone() };
        let client = |options| Client::new([private.to_string()], options).expect("an address is an endpoint");
        Ok(Self {
            full_name,
            target: addresses.target(position),
            http: public.to_string(),
            log: dir.join(format!("{name}.log")),
            name,
            data,
            direct: client(once),
            patient: client(patient),
            server: server.to_owned(),
            env,
            volume: None,
            child: None,
        })
    }

    /// Starts the process and gives its pid. Must be called on a thread that lives as long as the suite: the kernel
    /// ends the child when the thread that started it ends.
    pub(super) fn spawn(&mut self) -> Result<u32, ClusterError> {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.and_then(|log| Ok((log.try_clone()?, log)));
        let (stdout, stderr) = log.map_err(|source| ClusterError::file(&self.log, source))?;
        let mut command = match &self.volume {
            None => Command::new(&self.server),
            Some(volume) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--mount=/proc/{}/ns/mnt", volume.holder())).arg(&self.server);
                command
            }
        };
        command.env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true);
        // Ctrl-C at a terminal is for the suite, which ends its nodes itself.
        command.process_group(0);
        let suite = rustix::process::getpid();
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are bare system calls, and
        // turning their errors into io::Error does not allocate.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // The suite may have ended before the line above took effect.
                let orphaned = rustix::process::getppid() != Some(suite);
                if orphaned { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
            });
        }
        let child = command.spawn().map_err(|source| ClusterError::Spawn { server: self.server.clone(), source })?;
        let pid = child.id().expect("a child that nobody waited for has a pid");
        self.child = Some(child);
        Ok(pid)
    }

    /// Whether it was started and not ended by the suite since.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The process id, while it runs.
    ///
    /// # Errors
    /// [`ClusterError::NotRunning`].
    pub fn pid(&self) -> Result<u32, ClusterError> {
        let pid = self.child.as_ref().and_then(Child::id);
        pid.ok_or_else(|| ClusterError::NotRunning { node: self.name.clone() })
    }

    /// How it ended, when it ended by itself.
    pub(super) fn exited(&mut self) -> Result<Option<ExitStatus>, ClusterError> {
        match &mut self.child {
            None => Ok(None),
            Some(child) => child.try_wait().map_err(|source| self.process_error(source)),
        }
    }

    fn process_error(&self, source: io::Error) -> ClusterError {
        ClusterError::Process { node: self.name.clone(), source }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it does not run or cannot be signalled.
    pub fn signal(&self, signal: Signal) -> Result<(), ClusterError> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).expect("a pid is a positive number");
        kill_process(pid, signal).map_err(|error| self.process_error(error.into()))
    }

    pub(super) async fn kill(&mut self) -> Result<u32, ClusterError> {
        let pid = self.pid()?;
        self.signal(Signal::KILL)?;
        let status = self.ended().await?;
        // Anything else means that it was gone before.
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        if killed { Ok(pid) } else { Err(ClusterError::died(self, status)) }
    }

    pub(super) async fn terminate(&mut self) -> Result<u32, ClusterError> {
        let pid = self.pid()?;
        self.signal(Signal::TERM)?;
        let status = self.ended().await?;
        if status.success() { Ok(pid) } else { Err(ClusterError::died(self, status)) }
    }

    async fn ended(&mut self) -> Result<ExitStatus, ClusterError> {
        let Some(child) = &mut self.child else {
            return Err(ClusterError::NotRunning { node: self.name.clone() });
        };
        match tokio::time::timeout(STOP_TIMEOUT, child.wait()).await {
            Ok(Ok(status)) => {
                self.child = None;
                Ok(status)
            }
            Ok(Err(source)) => Err(self.process_error(source)),
            Err(_) => {
                let what = format!("{} ends after a signal", self.name);
                Err(ClusterError::late(&what, STOP_TIMEOUT, "it still runs".to_owned()))
            }
        }
    }

    /// Deletes everything the node has on disk.
    ///
    /// # Errors
    /// When the files cannot be deleted.
    pub fn wipe(&self) -> Result<(), ClusterError> {
        assert!(!self.runs(), "{} runs", self.name);
        let wiped = fs::remove_dir_all(&self.data).and_then(|()| fs::create_dir_all(&self.data));
        wiped.map_err(|source| ClusterError::file(&self.data, source))
    }

    /// Moves the node's data to where it is found afterwards, and leaves it none.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_aside(&self) -> Result<PathBuf, ClusterError> {
        assert!(!self.runs(), "{} runs", self.name);
        let aside = self.data.with_extension("aside");
        let moved = fs::rename(&self.data, &aside).and_then(|()| fs::create_dir_all(&self.data));
        moved.map_err(|source| ClusterError::file(&self.data, source)).map(|()| aside)
    }

    /// Replaces the node's data by directory `by`, which is gone afterwards.
    ///
    /// # Errors
    /// When the files cannot be deleted or moved.
    pub fn replace_data(&self, by: &Path) -> Result<(), ClusterError> {
        assert!(!self.runs(), "{} runs", self.name);
        let replaced = fs::remove_dir_all(&self.data).and_then(|()| fs::rename(by, &self.data));
        replaced.map_err(|source| ClusterError::file(&self.data, source))
    }

    /// Starts the server under the node's name on `data`, a copy of its data, on other ports of its address, and waits until
    /// it ends by itself: how it ended, or None when it still ran after `patience`, and was killed. `started` gets its pid.
    ///
    /// # Errors
    /// When it cannot be started or waited for.
    pub async fn run_copy(
        &self,
        data: &Path,
        patience: Duration,
        started: impl FnOnce(u32),
    ) -> Result<Option<ExitStatus>, ClusterError> {
        let log = self.log.with_extension("copy.log");
        let file = File::options().create(true).append(true).open(&log);
        let files = file.and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = files.map_err(|source| ClusterError::file(&log, source))?;
        let mut command = Command::new(&self.server);
        command.env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.env("DATA_DIR", data).envs(self.other_ports());
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true).process_group(0);
        let mut child =
            command.spawn().map_err(|source| ClusterError::Spawn { server: self.server.clone(), source })?;
        started(child.id().expect("a child that was not waited for has a pid"));
        match tokio::time::timeout(patience, child.wait()).await {
            Ok(ended) => ended.map(Some).map_err(|source| self.process_error(source)),
            Err(_) => child.kill().await.map(|()| None).map_err(|source| self.process_error(source)),
        }
    }

    /// Ports that no node of the run has, and where the proxies are not before: as settings.
    fn other_ports(&self) -> Vec<(String, String)> {
        let setting = |wanted: &str| self.env.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let moved = |name: &str| {
            let port = setting(name).and_then(|port| port.parse::<u16>().ok()).expect("every node has its ports");
            (name.to_owned(), (port + OTHER_PORTS).to_string())
        };
        let bind = setting("BIND").expect("every node has an address");
        vec![moved("PORT"), moved("RAFT_PORT"), ("ADVERTISE".to_owned(), bind)]
    }

    /// Puts the node's data on a file system of its own, see [`Volume`].
    ///
    /// # Errors
    /// When there can be no such file system here, or the data cannot be copied.
    pub fn move_to_volume(&mut self) -> Result<(), ClusterError> {
        assert!(!self.runs() && self.volume.is_none(), "{} runs, or has a volume", self.name);
        let volume = Volume::mount(&self.data.with_extension("image"), VOLUME_BYTES, &self.data);
        let copied = volume.and_then(|volume| copy(&self.data, &volume.root()).map(|()| volume));
        self.volume = Some(copied.map_err(|source| ClusterError::file(&self.data, source))?);
        Ok(())
    }

    /// Puts the node's data back to where it was, and ends the file system of its own.
    ///
    /// # Errors
    /// When the data cannot be copied.
    pub fn move_from_volume(&mut self) -> Result<(), ClusterError> {
        let volume = self.take_volume();
        // The directory itself stays: removing it would detach what is mounted on it in the other namespace.
        let copied = empty(&self.data).and_then(|()| copy(&volume.root(), &self.data));
        // Of the file system, not of the node.
        let copied = copied.and_then(|()| fs::remove_dir(self.data.join("lost+found")));
        copied.map_err(|source| ClusterError::file(&self.data, source))
    }

    /// The node's file system, which is given back by [`Node::keep_volume`] before the node is started again.
    ///
    /// # Panics
    /// When it has none.
    pub fn take_volume(&mut self) -> Volume {
        self.volume.take().expect("its data was moved to a volume")
    }

    /// See [`Node::take_volume`].
    pub fn keep_volume(&mut self, volume: Volume) {
        self.volume = Some(volume);
    }

    /// Begins a new cluster with the best of the data in `from`, which was cluster `cluster_id`'s; answers what the server
    /// said.
    ///
    /// # Errors
    /// When the server does not do that.
    pub async fn recover(&self, from: &[PathBuf], cluster_id: &str) -> Result<String, ClusterError> {
        let mut command = Command::new(&self.server);
        command.env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.arg("recover").args(["--confirm", cluster_id, "--bump-revision", "0"]);
        for dir in from {
            command.arg("--from").arg(dir);
        }
        let done = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let done = done.map_err(|source| ClusterError::Spawn { server: self.server.clone(), source })?;
        let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        if done.status.success() {
            return Ok(said);
        }
        Err(ClusterError::NotRecovered { node: self.name.clone(), status: done.status, said })
    }
}

/// Removes all that is in directory `dir`, and not the directory.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Copies all that is in directory `from` into directory `to`, as it is.
///
/// # Errors
/// What `cp` reports.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let copied = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).output()?;
    if copied.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("cp: {}", String::from_utf8_lossy(&copied.stderr).trim())))
}
