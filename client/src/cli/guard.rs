//! Ends a command whose client was killed: a process that waits for the client's end.
//!
//! SIGKILL leaves the client no time to end anything, and the kernel's own signal at a parent's death (`PR_SET_PDEATHSIG`) reaches
//! the command only, not the processes that it started. So a second process of this binary holds the reading end of a pipe
//! whose writing end only the client has. When the pipe closes, it sends SIGKILL to the command's process group.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

/// Name under which this binary is a guard.
const NAME: &str = "hexkv-command-guard";

/// A running guard of a process group. When it is dropped and not dismissed, it ends the group.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// Starts one for `group`.
    pub fn start(group: Pid) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME).arg(group.as_raw_nonzero().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // What the terminal sends to the client is not for the guard.
        command.process_group(0);
        command.spawn().map(Self)
    }

    /// Ends it, and not the group.
    pub fn dismiss(mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

/// The process group that this process guards, when it was started as a guard.
pub fn guarded() -> Option<Pid> {
    let mut arguments = std::env::args_os();
    if arguments.next().as_deref() != Some(OsStr::new(NAME)) {
        return None;
    }
    Pid::from_raw(arguments.next()?.to_str()?.parse().ok()?)
}

/// Waits for the end of the client, and kills `group`.
pub fn main(group: Pid) -> ExitCode {
    let mut byte = [0];
    let mut client = io::stdin().lock();
    loop {
        match client.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The client cannot be watched any more.
            Err(_) => break,
        }
    }
    match kill_process_group(group, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
