//! The supervisor: one thread apart from the node's runtime that ends the process in time, whatever the node's threads wait
//! for.
//!
//! A thread that writes to a disk which hangs, or a worker of the runtime that waits for such a thread, waits for ever. So
//! nothing that ends the process may depend on them: signals are watched here, deadlines pass here, and a task that has to see
//! that the storage failed can run here ([`Supervisor::handle`]).
//!
//! Invariants:
//! - From the first signal on, and from [`Supervisor::end_within`] on, the process ends within a bound; a bound only shortens.
//! - A second signal ends the process at once.
//! - No line of the log, which another process may have stopped reading, delays either by more than `LOG_TIMEOUT`.
//!
//! A thread that waits in the kernel for a device cannot be ended by any signal, SIGKILL included: the process is then gone as
//! soon as the device answers or is detached.

use std::{
    io,
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Exit code after a fatal error, or a stop that did not end in its time.
pub const EXIT_FAILED: i32 = 1;
/// Exit code of a stop that a second signal cut short.
pub const EXIT_CUT_SHORT: i32 = 130;
/// Longest time from the node's end, or its fatal error, to the end of the process.
pub const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time from a signal to the end of a process that does not serve yet: nothing has to be closed.
pub const START_STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a line of the log before the process ends.
const LOG_TIMEOUT: Duration = Duration::from_millis(200);

/// When the process ends at the latest, and with which code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ending {
    at: Instant,
    code: i32,
}

/// Ends the process in time; see the [module](self). Lives as long as the process.
#[derive(Debug)]
pub struct Supervisor {
    handle: Handle,
    ending: watch::Sender<Option<Ending>>,
    serving: Arc<AtomicBool>,
}

impl Supervisor {
    /// Begins to watch SIGTERM and SIGINT. The first cancels `stop`, and the process ends within `stop_timeout`, or within
    /// [`START_STOP_TIMEOUT`] when it does not serve yet.
    ///
    /// # Errors
    /// When signals cannot be watched, or the thread cannot be started.
    pub fn start(stop: CancellationToken, stop_timeout: Duration) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let signals = {
            let _inside = runtime.enter();
            Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? }
        };
        let ending = watch::Sender::new(None);
        let serving = Arc::new(AtomicBool::new(false));
        let watched = watch_signals(signals, stop, stop_timeout, serving.clone(), ending.clone());
        let ended = end_in_time(ending.subscribe());
        thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || runtime.block_on(async { tokio::join!(watched, ended) }))?;
        Ok(Self { handle, ending, serving })
    }

    /// Where a task runs that must go on whatever the node's threads wait for. It must not block.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// From here on a signal lets the node stop in order.
    pub fn serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// The process ends within `timeout`, with `code` if it does not end by itself.
    pub fn end_within(&self, timeout: Duration, code: i32) {
        shorten(&self.ending, timeout, code);
    }
}

fn shorten(ending: &watch::Sender<Option<Ending>>, timeout: Duration, code: i32) {
    let new = Ending { at: Instant::now() + timeout, code };
    ending.send_if_modified(|ending| {
        let sooner = ending.is_none_or(|ending| new.at < ending.at);
        if sooner {
            *ending = Some(new);
        }
        sooner
    });
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

async fn watch_signals(
    mut signals: Signals,
    stop: CancellationToken,
    stop_timeout: Duration,
    serving: Arc<AtomicBool>,
    ending: watch::Sender<Option<Ending>>,
) {
    signals.next().await;
    if serving.load(Ordering::Acquire) {
        shorten(&ending, stop_timeout, EXIT_FAILED);
    } else {
        shorten(&ending, START_STOP_TIMEOUT, 0);
    }
    stop.cancel();
    signals.next().await;
    log_in_time(|| tracing::warn!("second signal: ending without a graceful stop"));
    exit(EXIT_CUT_SHORT);
}

async fn end_in_time(mut ending: watch::Receiver<Option<Ending>>) {
    loop {
        let set = *ending.borrow_and_update();
        let changed = match set {
            None => ending.changed().await.is_ok(),
            Some(Ending { at, code }) => match timeout_at(at, ending.changed()).await {
                Ok(changed) => changed.is_ok(),
                Err(_) => {
                    log_in_time(|| {
                        tracing::error!(
                            "the process did not end in time: it is ended without waiting any longer; nothing that was acknowledged is lost"
                        )
                    });
                    exit(code);
                }
            },
        };
        if !changed {
            return;
        }
    }
}

/// Logs by a thread of its own, and waits for it for a bounded time.
fn log_in_time(line: impl FnOnce() + Send + 'static) {
    let (done, logged) = mpsc::channel();
    let logging = thread::Builder::new().name("last-words".into()).spawn(move || {
        line();
        done.send(())
    });
    // Without a thread there is no line, and with one that hangs neither: the process ends all the same.
    if logging.is_ok() {
        logged.recv_timeout(LOG_TIMEOUT).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_ending_is_only_ever_made_sooner() {
        let ending = watch::Sender::new(None);
        let began = Instant::now();
        shorten(&ending, Duration::from_secs(30), EXIT_FAILED);
        shorten(&ending, Duration::from_secs(60), 0);
        assert_eq!(*ending.borrow(), Some(Ending { at: began + Duration::from_secs(30), code: EXIT_FAILED }));
        shorten(&ending, Duration::from_secs(3), 0);
        assert_eq!(*ending.borrow(), Some(Ending { at: began + Duration::from_secs(3), code: 0 }));
    }
}
