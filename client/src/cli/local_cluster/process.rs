//! Processes of this machine: started apart from the terminal, recognised again later, ended only when they are ours.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, setsid};
use serde::{Deserialize, Serialize};

use crate::cli::proc::{Stat, has_no_further_thread};
use crate::cli::target::FILE_MODE;

/// What the kernel appends to the path of an executable that was replaced while it ran.
const DELETED_MARK: &str = " (deleted)";

/// A process, told apart from any later one that gets the same pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The boot that this was counted from.
    pub boot_id: String,
    /// What it runs.
    pub executable: PathBuf,
}

impl ProcessRecord {
    /// What there is under `pid` now.
    ///
    /// # Errors
    /// `NotFound` when nothing runs there; whatever `/proc` answers otherwise.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::of(pid)?;
        if stat.has_ended() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended")));
        }
        let executable = fs::read_link(format!("/proc/{pid}/exe"))?;
        let executable = match executable.to_str().and_then(|path| path.strip_suffix(DELETED_MARK)) {
            Some(path) => PathBuf::from(path),
            None => executable,
        };
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id, executable })
    }

    /// Whether the recorded process still runs: same pid, same start, same executable.
    pub fn runs(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Whether nothing of the recorded process is left: also no thread that still holds its ports and files. Between
    /// running and this, a process that ends has no executable any more, but still listens.
    pub fn is_gone(&self) -> bool {
        let Ok(stat) = Stat::of(self.pid) else { return true };
        stat.start_ticks != self.start_ticks || (stat.has_ended() && has_no_further_thread(self.pid))
    }

    /// Sends a signal to the recorded process and to no other; false when it has ended.
    ///
    /// # Errors
    /// When the system refuses to signal it.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
        // The descriptor stays with one process: what is verified after it was opened is what gets the signal.
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.runs() {
            return Ok(false);
        }
        match pidfd_send_signal(descriptor, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Starts `command` in a session of its own, so that neither Ctrl-C nor a closed terminal ends it; stdout and stderr
/// are appended to `log`. `None` when it has ended already.
///
/// # Errors
/// When the log cannot be opened or the program cannot be started.
pub fn start_detached(mut command: Command, log: &Path) -> io::Result<Option<ProcessRecord>> {
    let log = File::options().create(true).append(true).mode(FILE_MODE).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; setsid is a bare system call, and
    // turning its error into an io::Error does not allocate.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    match ProcessRecord::of(child.id()) {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => child.wait().map(|_| None),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use super::*;

    fn sleeper() -> (Child, ProcessRecord) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let record = ProcessRecord::of(child.id()).unwrap();
        (child, record)
    }

    #[test]
    fn a_recorded_process_runs_until_it_ends() {
        let (mut child, record) = sleeper();
        assert!(record.runs());
        assert!(record.signal(Signal::TERM).unwrap());
        child.wait().unwrap();
        assert!(!record.runs());
        assert!(!record.signal(Signal::TERM).unwrap());
    }

    #[test]
    fn a_process_whose_executable_was_replaced_is_still_the_same() {
        let home = tempfile::tempdir().unwrap();
        let program = home.path().join("sleep");
        // Copied by another process: were the file open for writing in this one, a child that another test forks
        // meanwhile would hold it open too, and a file open for writing cannot be started (ETXTBSY).
        assert!(Command::new("cp").arg("/bin/sleep").arg(&program).status().unwrap().success());
        let mut child = Command::new(&program).arg("600").spawn().unwrap();
        let record = ProcessRecord::of(child.id()).unwrap();
        fs::remove_file(&program).unwrap();
        let still = record.runs();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(still && record.executable == program);
    }

    #[test]
    fn a_program_that_ends_at_once_is_started_all_the_same() {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("log");
        for _ in 0..20 {
            let mut command = Command::new("sh");
            command.args(["-c", "echo gone"]);
            if let Some(record) = start_detached(command, &log).unwrap() {
                assert_ne!(record.pid, std::process::id());
            }
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while fs::read_to_string(&log).unwrap().lines().count() < 20 {
            assert!(std::time::Instant::now() < deadline, "not all of them have run");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_ended_child_that_nobody_reaped_does_not_run() {
        let (mut child, record) = sleeper();
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while record.runs() {
            assert!(std::time::Instant::now() < deadline, "a killed process still counts as running");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_pid_that_now_belongs_to_another_process_is_not_touched() {
        let (mut child, record) = sleeper();
        let others = [
            ProcessRecord { start_ticks: record.start_ticks + 1, ..record.clone() },
            ProcessRecord { executable: "/usr/bin/other".into(), ..record.clone() },
            ProcessRecord { boot_id: "another-boot".to_owned(), ..record.clone() },
        ];
        for other in others {
            assert!(!other.runs());
            assert!(!other.signal(Signal::KILL).unwrap());
        }
        assert!(record.runs(), "the process that has the pid now was hit");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_gone_when_it_ended_and_not_before() {
        let (mut child, record) = sleeper();
        assert!(!record.is_gone());
        let later = ProcessRecord { start_ticks: record.start_ticks + 1, ..record.clone() };
        assert!(later.is_gone(), "another process has the pid now");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(record.is_gone());
    }
}
