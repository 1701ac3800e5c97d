//! A command that runs while something is held, and never longer.
//!
//! Invariants: nothing is released before the command and all of its process group have ended; when what is held was lost, the
//! group gets SIGTERM, and SIGKILL after [`GRACE`]; when this process ends in any other way, the group is killed
//! ([`Guard`], `PR_SET_PDEATHSIG`); no signal that asks this process to end is lost.
//!
//! The command leads a process group of its own, so that it can be ended with all that it started. It gets the terminal
//! where it is started in the foreground, and a stop (Ctrl-Z) stops this process with it.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::pin::pin;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use hexkv_client::console::note;
use hexkv_client::coordination::Holding;
use hexkv_client::{Client, Error};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process_group, set_parent_process_death_signal, waitid,
};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Failure;
use super::guard::Guard;
use super::proc::group_runs;
use super::signals::{SIGNAL_BASE, Signals, ended_by};
use super::terminal::{self, Terminal};

/// What was asked to end and did not is killed after this.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at a process group whose leader has ended.
const GROUP_POLL: Duration = Duration::from_millis(50);
/// Processes that run on for this long after the command are worth a note.
const NOTE_AFTER: Duration = Duration::from_secs(1);
/// A stop of this process happens within this, or not at all.
const STOP_MAX: Duration = Duration::from_millis(100);

/// Runs `command` while `holding` is held, and releases it. The result is the command's: [`Failure::Ended`] unless it is 0.
pub(super) async fn run(
    client: &Client,
    mut holding: Holding,
    command: &[String],
    mut signals: Signals,
) -> Result<(), Failure> {
    // One that came with the grant.
    if let Some(signal) = signals.pending() {
        client.release(&holding).await?;
        return Err(ended_by(signal));
    }
    let program = &command[0];
    let mut running = match Running::start(command, &holding) {
        Ok(running) => running,
        Err(error) => {
            client.release(&holding).await?;
            return Err(Failure::Local { what: format!("{program} cannot be started"), source: error });
        }
    };
    let lost = running.supervise(client, &mut holding, &mut signals).await;
    let lost = lost.map_err(Failure::local(format!("{program} cannot be watched, and is killed")))?;
    let ended = running.finish().map_err(Failure::local(format!("{program} cannot be waited for")))?;
    if let Some(why) = lost {
        return Err(Failure::Unavailable(format!("lost while {program} ran, which was ended: {why}")));
    }
    client.release(&holding).await?;
    match code(ended) {
        0 => Ok(()),
        code => Err(Failure::Ended(code)),
    }
}

/// A started command, its process group, and what watches over them.
#[derive(Debug)]
struct Running {
    program: String,
    /// The leader of the group. Not reaped before the end, so that no other group can get its number.
    child: Child,
    group: Pid,
    guard: Option<Guard>,
    terminal: Option<Terminal>,
    children: Stream,
    stop_typed: Stream,
    /// The command itself has ended.
    ended: Option<Instant>,
    /// It was noted that others of the group run on.
    noted: bool,
    /// A signal asked the command to end.
    asked: bool,
    killed: bool,
}

/// What became of the command.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// All of its group has ended.
    Ended,
    /// It, or this process, is to stop until a shell continues it.
    Stopped,
}

impl Running {
    fn start(command: &[String], holding: &Holding) -> io::Result<Self> {
        // Before the start, so that no change is missed.
        let children = signal(SignalKind::child())?;
        let stop_typed = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
        let terminal = Terminal::controlling();
        let foreground = terminal.as_ref().filter(|terminal| terminal.is_ours()).map(Terminal::descriptor);
        let parent = getpid();
        let mut started = Command::new(&command[0]);
        started
            .args(&command[1..])
            .env("HEXKV_TOKEN", &holding.token)
            .env("HEXKV_FENCING_TOKEN", holding.fencing_token.to_string())
            .process_group(0);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are bare system calls, and turning their
        // errors into an io::Error does not allocate.
        unsafe {
            started.pre_exec(move || {
                // The parent is the thread that forks: the main thread, which lives as long as the process.
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() != Some(parent) {
                    return Err(Errno::SRCH.into());
                }
                foreground.map_or(Ok(()), terminal::claim)
            });
        }
        let child = started.spawn()?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process has a positive id");
        let mut running = Self {
            program: command[0].clone(),
            child,
            group,
            guard: None,
            terminal,
            children,
            stop_typed,
            ended: None,
            noted: false,
            asked: false,
            killed: false,
        };
        match Guard::start(group) {
            Ok(guard) => running.guard = Some(guard),
            Err(error) => {
                running.signal(Signal::KILL)?;
                running.finish()?;
                return Err(error);
            }
        }
        Ok(running)
    }

    /// Watches until all of the group has ended. Answers why what is held was lost, when it was.
    async fn supervise(
        &mut self,
        client: &Client,
        holding: &mut Holding,
        signals: &mut Signals,
    ) -> io::Result<Option<Error>> {
        loop {
            {
                // One renewal schedule, whatever signals come.
                let mut keep = pin!(client.keep(holding));
                loop {
                    tokio::select! {
                        why = &mut keep => {
                            self.end(signals).await?;
                            return Ok(Some(why));
                        }
                        signal = signals.next() => self.forward(signal)?,
                        change = self.change() => match change? {
                            Change::Ended => return Ok(None),
                            Change::Stopped => break,
                        }
                    }
                }
            }
            self.stop().await?;
            // Nothing was renewed meanwhile. What is lost does not go on.
            if let Err(error) = client.renew(holding).await
                && (matches!(error, Error::Rejected { .. }) || Instant::now() >= holding.until)
            {
                self.end(signals).await?;
                return Ok(Some(error));
            }
            if let Some(terminal) = &self.terminal {
                terminal.lend(self.group)?;
            }
            self.signal(Signal::CONT)?;
        }
    }

    /// The next change. Cancel safe.
    async fn change(&mut self) -> io::Result<Change> {
        loop {
            if self.ended.is_some() || self.leader_has_ended()? {
                if !group_runs(self.group)? {
                    return Ok(Change::Ended);
                }
                self.rest_goes_on()?;
                sleep(GROUP_POLL).await;
                continue;
            }
            if self.terminal.is_some() && self.leader_has_stopped()? {
                return Ok(Change::Stopped);
            }
            tokio::select! {
                _ = self.children.recv() => {}
                _ = self.stop_typed.recv() => return Ok(Change::Stopped),
            }
        }
    }

    fn leader_has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.group), options)?.is_some())
    }

    fn leader_has_stopped(&self) -> io::Result<bool> {
        Ok(waitid(WaitId::Pid(self.group), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG)?.is_some())
    }

    /// The command has ended, and others of its group run: they are waited for, and killed where a signal asked for the end.
    fn rest_goes_on(&mut self) -> io::Result<()> {
        let ended = *self.ended.get_or_insert_with(Instant::now);
        if !self.noted && ended.elapsed() >= NOTE_AFTER {
            self.noted = true;
            note(&format!("{} has ended; processes of its group run on and are waited for", self.program));
        }
        if self.asked && !self.killed && ended.elapsed() >= GRACE {
            self.killed = true;
            self.signal(Signal::KILL)?;
        }
        Ok(())
    }

    /// Passes on what asks for the end. The command decides what it means, and is waited for. One that is stopped is continued, or it
    /// would never decide.
    fn forward(&mut self, signal: Signal) -> io::Result<()> {
        self.asked = true;
        self.signal(if signal == Signal::HUP { Signal::TERM } else { signal })?;
        self.signal(Signal::CONT)
    }

    /// Sends `signal` to all of the group.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        match kill_process_group(self.group, signal) {
            // It ended by itself.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            // It runs as another user, which may still end it.
            Err(Errno::PERM) => {
                note(&format!("{} may not be signalled: it is waited for", self.program));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// SIGTERM, and SIGKILL when that does not end all of the group.
    async fn end(&mut self, signals: &mut Signals) -> io::Result<()> {
        self.forward(Signal::TERM)?;
        // What is stopped would not notice.
        self.signal(Signal::CONT)?;
        let deadline = Instant::now() + GRACE;
        loop {
            tokio::select! {
                change = self.change() => match change? {
                    Change::Ended => return Ok(()),
                    Change::Stopped => self.signal(Signal::CONT)?,
                },
                signal = signals.next() => self.forward(signal)?,
                () = sleep_until(deadline), if !self.killed => {
                    self.killed = true;
                    self.signal(Signal::KILL)?;
                }
            }
        }
    }

    /// Stops this process with the command, until a shell continues it.
    async fn stop(&mut self) -> io::Result<()> {
        // Also what takes no heed of SIGTSTP: nothing is renewed from here on.
        self.signal(Signal::STOP)?;
        if let Some(terminal) = &self.terminal {
            terminal.take_back(self.group)?;
        }
        let mut continued = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        terminal::stop(async move {
            // Where the kernel stopped nothing there is nothing to wait for.
            let _ = timeout(STOP_MAX, continued.recv()).await;
        })
        .await?;
        // The stop itself is not news.
        self.leader_has_stopped().map(drop)
    }

    /// Gives the terminal back and reaps the command, whose group has ended.
    fn finish(mut self) -> io::Result<ExitStatus> {
        if let Some(terminal) = &self.terminal {
            terminal.take_back(self.group)?;
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss()?;
        }
        self.child.wait()
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| SIGNAL_BASE + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}
