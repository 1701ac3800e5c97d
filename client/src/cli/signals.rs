//! Signals that ask a command to end, as one stream.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::Failure;

/// Exit code of a process that ended by signal N is this plus N, as in shells.
pub(super) const SIGNAL_BASE: i32 = 128;

/// SIGTERM, SIGINT, SIGQUIT and SIGHUP. None is lost between [`Signals::install`] and the drop: one that comes while nothing
/// waits is given by the next [`Signals::next`].
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Stream,
    interrupt: Stream,
    quit: Stream,
    /// Not where `nohup` started this process.
    hang_up: Option<Stream>,
}

impl Signals {
    /// From now on these signals end nothing by themselves.
    pub fn install() -> Result<Self, Failure> {
        let installed = || {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                quit: signal(SignalKind::quit())?,
                hang_up: if is_ignored(Signal::HUP)? { None } else { Some(signal(SignalKind::hangup())?) },
            })
        };
        installed().map_err(Failure::local("signals cannot be watched"))
    }

    /// The next one. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = hang_up => Signal::HUP,
        }
    }

    /// One that has come already.
    pub fn pending(&mut self) -> Option<Signal> {
        use futures_util::FutureExt as _;
        self.next().now_or_never()
    }
}

/// What ends a command that `signal` ended.
pub(super) fn ended_by(signal: Signal) -> Failure {
    Failure::Ended(u8::try_from(SIGNAL_BASE + signal.as_raw()).unwrap_or(u8::MAX))
}

/// Whether this process was started with `signal` ignored.
fn is_ignored(signal: Signal) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let mask = mask.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no SigIgn"))?;
    Ok(mask & (1 << (signal.as_raw() - 1)) != 0)
}
