//! Job control: which process group has the terminal, and stopping with it.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::ptr;

use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process_group};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// The terminal that this process was started on, to be lent to one process group.
///
/// Only where stdin and stdout both are a terminal: in a pipeline (`client lock x -- report | less`) the other processes of this
/// group need the terminal themselves.
#[derive(Debug)]
pub(super) struct Terminal(File);

impl Terminal {
    /// The controlling terminal, when this process has one that it can lend.
    pub fn controlling() -> Option<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        File::options().read(true).write(true).open("/dev/tty").ok().map(Self)
    }

    /// Whether this process is in the foreground.
    pub fn is_ours(&self) -> bool {
        tcgetpgrp(&self.0).is_ok_and(|foreground| foreground == getpgrp())
    }

    /// Its descriptor, for [`claim`].
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Lends it to `group`, if it is this process's own.
    pub fn lend(&self, group: Pid) -> io::Result<()> {
        if self.is_ours() {
            tcsetpgrp(&self.0, group)?;
        }
        Ok(())
    }

    /// Takes it back from `group`, if that has it.
    pub fn take_back(&self, group: Pid) -> io::Result<()> {
        if tcgetpgrp(&self.0).is_ok_and(|foreground| foreground == group) {
            from_background(|| tcsetpgrp(&self.0, getpgrp()))??;
        }
        Ok(())
    }
}

/// Makes the calling process's group, which it leads, the foreground of the terminal `descriptor`.
///
/// Only bare system calls, so it may be called between fork and exec.
///
/// # Errors
/// Those of the system calls.
pub(super) fn claim(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: the caller's descriptor is open: its owner outlives the start of the process.
    let terminal = unsafe { BorrowedFd::borrow_raw(descriptor) };
    from_background(|| tcsetpgrp(terminal, getpid()))??;
    Ok(())
}

/// Runs `work` while SIGTTOU is blocked: a background process may set the foreground group only so.
fn from_background<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let (mut blocked, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the first call initialises `blocked`, the last one `before` when it succeeds.
    let changed = unsafe {
        libc::sigemptyset(blocked.as_mut_ptr());
        libc::sigaddset(blocked.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr())
    };
    if changed != 0 {
        return Err(io::Error::from_raw_os_error(changed));
    }
    let done = work();
    // SAFETY: `before` was filled by the call above.
    let restored = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    if restored == 0 { Ok(done) } else { Err(io::Error::from_raw_os_error(restored)) }
}

/// Stops this process's group as Ctrl-Z does without a handler, where a shell can continue it: the kernel stops no group that no
/// shell watches. `wait` completes when the process goes on.
pub(super) async fn stop(wait: impl Future<Output = ()>) -> io::Result<()> {
    let (mut default, mut before) =
        (MaybeUninit::<libc::sigaction>::zeroed(), MaybeUninit::<libc::sigaction>::uninit());
    // SAFETY: a zeroed `sigaction` is SIG_DFL without flags; `before` is written before it is read.
    let changed = unsafe {
        libc::sigemptyset(&raw mut (*default.as_mut_ptr()).sa_mask);
        libc::sigaction(libc::SIGTSTP, default.as_ptr(), before.as_mut_ptr())
    };
    if changed != 0 {
        return Err(io::Error::last_os_error());
    }
    let stopped = kill_process_group(getpgrp(), Signal::TSTP);
    wait.await;
    // SAFETY: `before` is the disposition that the call above found.
    let restored = unsafe { libc::sigaction(libc::SIGTSTP, before.as_ptr(), ptr::null_mut()) };
    stopped?;
    if restored == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
