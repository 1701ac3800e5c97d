//! lock, elect: what is held while a command runs.

use std::pin::{Pin, pin};
use std::time::Duration;

use clap::Args;
use hexkv_client::api::{CampaignRequest, ElectionStatus, LockRequest, Ttl};
use hexkv_client::console::{note, visible};
use hexkv_client::coordination::Holding;
use hexkv_client::{Client, Error};

use super::output::{self, Output};
use super::signals::{Signals, ended_by};
use super::{Failure, Global, TIMEOUT, command};

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
refuse smaller fencing tokens than it has seen. When the lock is lost (no node renewed it), COMMAND's process group gets
SIGTERM, and SIGKILL 5 s later. SIGTERM, SIGINT, SIGQUIT and SIGHUP (as SIGTERM) go to COMMAND's process group; while waiting they
give the place in line up. The lock is released when the whole group has ended. The exit code is COMMAND's.

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
    run_while_held(global, &command, async |stop: Stop<'_>| client.lock_unless(&name, &request, stop).await).await
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
    run_while_held(global, &command, async |stop: Stop<'_>| client.campaign_unless(&name, &request, stop).await).await
}

/// Completes when the wait is to end.
type Stop<'s> = Pin<&'s mut dyn Future<Output = ()>>;

/// Runs `command` while what `take` gets is held. A signal ends the wait; `take` leaves nothing held then.
async fn run_while_held(
    global: &Global,
    command: &[String],
    take: impl AsyncFnOnce(Stop<'_>) -> Result<Option<Holding>, Error>,
) -> Result<(), Failure> {
    let client = global.client(TIMEOUT)?;
    // Before the request, so that none is lost.
    let mut signals = Signals::install()?;
    let mut stopped = None;
    let taken = take(pin!(async { stopped = Some(signals.next().await) })).await;
    match (taken, stopped) {
        (Ok(Some(holding)), _) => command::run(&client, holding, command, signals).await,
        (Ok(None), Some(signal)) => Err(ended_by(signal)),
        (Ok(None), None) => unreachable!("a wait ends with a grant, an error or a signal"),
        (Err(error), Some(signal)) => {
            note(&error.to_string());
            Err(ended_by(signal))
        }
        (Err(error), None) => Err(error.into()),
    }
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
                note(&format!("{}; trying on", visible(&detail)));
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
