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
use super::{Addresses, ClusterError, STOP_TIMEOUT};

/// Longest wait for a join, leave or removal: the server's own limits are 10 s to be taken in and 60 s to settle.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(75);

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
        let mut command = Command::new(&self.server);
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
