//! lock, elect: what is held while a command runs.

use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use hexkv_client::api::{CampaignRequest, ElectionStatus, LockRequest, Ttl};
use hexkv_client::coordination::Holding;
use hexkv_client::{Client, Error};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT};

/// A command that does not end when it is told to, because what it needs was lost, is killed after this.
const GRACE: Duration = Duration::from_secs(5);
/// Exit code of a process that ended by signal N is this plus N, as in shells.
pub(super) const SIGNAL_BASE: i32 = 128;

/// What is held, and how.
#[derive(Debug, Args)]
struct Terms {
    /// It is lost so long after the last renewal; it is renewed three times as often
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// How long to wait for it; 0s to try once
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "\
COMMAND runs while the lock is held, with HEXKV_FENCING_TOKEN and HEXKV_TOKEN in its environment. What it changes should
refuse smaller fencing tokens than it has seen. When the lock is lost (nobody could renew it), COMMAND gets SIGTERM, and
SIGKILL 5 s later. The exit code is COMMAND's.

Examples:
  client lock backup -- ./backup.sh              # waits for its turn
  client lock backup --wait 0s -- ./backup.sh    # ends with code 1 when another one holds it
  client lock backup                             # shows who holds it")]
pub struct LockArguments {
    /// Name of the lock
    name: String,
    #[command(flatten)]
    terms: Terms,
    /// Who holds it, for others to read
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// What to run while it is held; without it the lock's state is shown
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
COMMAND runs while CANDIDATE leads, with HEXKV_FENCING_TOKEN and HEXKV_TOKEN in its environment; it is ended when leadership
is lost. Without COMMAND the leader is shown.

Examples:
  client elect scheduler --candidate host-1 --value 10.0.0.1:9000 -- ./scheduler
  client elect scheduler              # shows who leads
  client elect scheduler --observe    # a line for each new leader, until Ctrl-C")]
pub struct ElectArguments {
    /// Name of the election
    name: String,
    #[command(flatten)]
    terms: Terms,
    /// Who stands for election
    #[arg(long, requires = "command")]
    candidate: Option<String>,
    /// What the leader tells everyone
    #[arg(long)]
    value: Option<String>,
    /// Show who leads, and each change of that, through whichever node answers, until Ctrl-C; with -o json one answer a line
    #[arg(long, conflicts_with_all = ["candidate", "value", "command"])]
    observe: bool,
    /// What to run while it leads; without it the leader is shown
    #[arg(last = true, value_name = "COMMAND", requires = "candidate")]
    command: Vec<String>,
}

/// Runs a command under a lock, or shows the lock.
pub async fn lock(global: &Global, arguments: LockArguments) -> Result<(), Failure> {
    let LockArguments { name, terms, owner, command } = arguments;
    if command.is_empty() {
        let status = global.client(TIMEOUT)?.lock_status(&name).await?;
        return match (global.output, &status.holder) {
            (Output::Json, _) => output::json(&status),
            (Output::Table, None) => output::line("free"),
            (Output::Table, Some(holder)) => output::line(&format!(
                "held by {:?}, fencing token {}, {} waiting",
                holder.owner,
                holder.fencing_token,
                status.waiters.len()
            )),
        };
    }
    let client = waiting(global, &terms)?;
    let request = LockRequest {
        ttl: Some(ttl(&terms)),
        wait: Some(text(terms.wait)),
        owner: (!owner.is_empty()).then_some(owner),
    };
    let holding = interruptible(client.lock(&name, &request)).await?;
    run_while_held(&global.client(TIMEOUT)?, holding, &command).await
}

/// Runs a command while it leads, or shows who leads.
pub async fn elect(global: &Global, arguments: ElectArguments) -> Result<(), Failure> {
    let ElectArguments { name, terms, candidate, value, observe, command } = arguments;
    if observe {
        return self::observe(global, &name).await;
    }
    let Some(candidate) = candidate.filter(|_| !command.is_empty()) else {
        let status = global.client(TIMEOUT)?.election(&name).await?;
        return match global.output {
            Output::Json => output::json(&status),
            Output::Table => output::line(&described(&status)),
        };
    };
    let client = waiting(global, &terms)?;
    let request = CampaignRequest { candidate, value, ttl: Some(ttl(&terms)), wait: Some(text(terms.wait)) };
    let holding = interruptible(client.campaign(&name, &request)).await?;
    run_while_held(&global.client(TIMEOUT)?, holding, &command).await
}

/// Prints who leads, and each change of that.
async fn observe(global: &Global, name: &str) -> Result<(), Failure> {
    let mut observer = global.client(TIMEOUT)?.observe(name);
    let mut began = false;
    loop {
        match observer.next().await {
            Ok(status) => {
                began = true;
                match global.output {
                    Output::Json => output::json_line(&status)?,
                    Output::Table => output::line(&described(&status))?,
                }
            }
            // Nobody may be able to answer for longer than a call may take; the election goes on.
            Err(Error::Unavailable { detail, .. }) if began && global.timeout_is_default() => {
                eprintln!("{detail}; trying on");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn described(status: &ElectionStatus) -> String {
    let Some(leader) = &status.leader else { return "nobody leads".to_owned() };
    format!(
        "{} leads, value {:?}, fencing token {}, {} waiting",
        leader.candidate,
        leader.value.as_deref().unwrap_or_default(),
        leader.fencing_token,
        status.candidates.len()
    )
}

/// A client whose calls may last as long as the wait.
fn waiting(global: &Global, terms: &Terms) -> Result<Client, Failure> {
    global.client(TIMEOUT + terms.wait)
}

fn ttl(terms: &Terms) -> Ttl {
    Ttl::from_millis(u64::try_from(terms.ttl.as_millis()).unwrap_or(u64::MAX))
}

fn text(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// Ends with Ctrl-C; the connection ends with it, and so the place in the line.
async fn interruptible(asked: impl Future<Output = Result<Holding, Error>>) -> Result<Holding, Failure> {
    tokio::select! {
        answer = asked => Ok(answer?),
        stop = stopped() => {
            let signal = stop.map_err(Failure::local("signals cannot be watched"))?;
            Err(Failure::Ended(u8::try_from(SIGNAL_BASE + signal.as_raw()).unwrap_or(u8::MAX)))
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub(super) async fn stopped() -> std::io::Result<Signal> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(Signal::TERM),
        _ = interrupt.recv() => Ok(Signal::INT),
    }
}

async fn run_while_held(client: &Client, mut holding: Holding, command: &[String]) -> Result<(), Failure> {
    let (program, arguments) = command.split_first().expect("looked at before");
    let started = Command::new(program)
        .args(arguments)
        .env("HEXKV_TOKEN", &holding.token)
        .env("HEXKV_FENCING_TOKEN", holding.fencing_token.to_string())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            client.release(&holding).await?;
            return Err(Failure::Local { what: format!("{program} cannot be started"), source: error });
        }
    };
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended.map_err(Failure::local(format!("{program} cannot be waited for")))?,
            why = client.keep(&mut holding) => {
                end(&mut child).await.map_err(Failure::local(format!("{program} cannot be ended")))?;
                return Err(Failure::Unavailable(format!("lost while {program} ran, which was ended: {why}")));
            }
            stop = stopped() => {
                // The command decides what the signal means; it is waited for.
                let stop = stop.map_err(Failure::local("signals cannot be watched"))?;
                tell(&child, stop).map_err(Failure::local(format!("{program} cannot be signalled")))?;
            }
        }
    };
    client.release(&holding).await?;
    match code(ended) {
        0 => Ok(()),
        code => Err(Failure::Ended(code)),
    }
}

/// SIGTERM, and SIGKILL when that does not end it.
async fn end(child: &mut Child) -> std::io::Result<()> {
    tell(child, Signal::TERM)?;
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        tell(child, Signal::KILL)?;
        child.wait().await?;
    }
    Ok(())
}

fn tell(child: &Child, signal: Signal) -> std::io::Result<()> {
    match child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        Some(group) => Ok(kill_process_group(group, signal)?),
        // It ended by itself.
        None => Ok(()),
    }
}

fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().unwrap_or_else(|| SIGNAL_BASE + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}
