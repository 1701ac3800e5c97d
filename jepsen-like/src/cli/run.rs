//! `jepsen-like run`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hexkv_client::console::{note, print};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{BadInput, FAILED, INTERRUPTED, names, server};
use crate::cluster::NODES_MAX;
use crate::history::recorder::EVENTS_MAX;
use crate::run::{self, CLIENTS_MAX, Outcome, Plan, RATE_MAX, RunError, TIME_MAX, directory, table};

/// Clients a node, unless told otherwise.
const CLIENTS_PER_NODE: u64 = 2;
/// Operations a second, unless told otherwise: what a cluster of debug builds serves on a small machine.
const RATE: f64 = 300.0;

/// What `run` takes.
#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// Number of nodes, 1 to 10
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// What clients do; see `jepsen-like list`
    #[arg(long, default_value = "register")]
    workload: String,
    /// What breaks: names by commas, `all`, or `none`; see `jepsen-like list`
    #[arg(long, default_value = "kill,pause,partition")]
    faults: String,
    /// How long clients work and faults strike, such as 60s or 10m
    #[arg(long, default_value = "60s")]
    time: String,
    /// All choices follow from it; random unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Number of clients; two a node unless given
    #[arg(long)]
    clients: Option<u64>,
    /// Operations a second of all clients together, at most
    #[arg(long, default_value_t = RATE)]
    rate: f64,
    /// Directory of the run; below ./jepsen-like-runs unless given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The server binary; the one beside this binary unless given
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Keep the nodes' data also when the run passes
    #[arg(long)]
    keep: bool,
}

impl RunArguments {
    fn plan(self) -> Result<Plan, BadInput> {
        if !(1..=NODES_MAX).contains(&self.nodes) {
            return Err(BadInput(format!("--nodes {}: 1 to {NODES_MAX} nodes", self.nodes)));
        }
        let workload = names::workload(&self.workload)?;
        let faults = names::faults(&self.faults, self.nodes)?;
        if let Some((fault, why)) = faults.iter().find_map(|fault| Some((fault.name(), fault.unavailable()?))) {
            return Err(BadInput(format!("the fault {fault} cannot be had here: {why}")));
        }
        let time = duration(&self.time)?;
        let clients = self.clients.unwrap_or(CLIENTS_PER_NODE * self.nodes as u64);
        if !(1..=CLIENTS_MAX).contains(&clients) {
            return Err(BadInput(format!("--clients {clients}: 1 to {CLIENTS_MAX}")));
        }
        if !(self.rate > 0.0 && self.rate <= RATE_MAX) {
            return Err(BadInput(format!("--rate {}: above 0, at most {RATE_MAX}", self.rate)));
        }
        check_length(self.rate, time)?;
        let (server, server_version) = server::find(self.server)?;
        let seed = self.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
        let (nodes, rate) = (self.nodes, self.rate);
        let command = format!(
            "jepsen-like run --nodes {nodes} --workload {} --faults {} --time {} --seed {seed} --clients {clients} --rate {rate}",
            self.workload, self.faults, self.time
        );
        let out = self.out.unwrap_or_else(|| directory::default_path(workload.name(), seed));
        let keep = self.keep;
        Ok(Plan { nodes, workload, faults, time, seed, clients, rate, server, server_version, out, keep, command })
    }
}

fn duration(text: &str) -> Result<Duration, BadInput> {
    let bad = |why: &str| BadInput(format!("--time {text}: {why}; for example 60s, at most {TIME_MAX:?}"));
    let time = humantime::parse_duration(text).map_err(|error| bad(&error.to_string()))?;
    match time {
        Duration::ZERO => Err(bad("no time to run")),
        time if time > TIME_MAX => Err(bad("too long")),
        time => Ok(time),
    }
}

/// A history has a largest size, and a run that would fill it is refused before it starts.
fn check_length(rate: f64, time: Duration) -> Result<(), BadInput> {
    let events = 2.0 * rate * time.as_secs_f64();
    if events > EVENTS_MAX as f64 {
        return Err(BadInput(format!(
            "--rate {rate} for {time:?} may be {events:.0} events, and a history has {EVENTS_MAX} at most; lower one of the two"
        )));
    }
    Ok(())
}

/// Runs.
pub(super) fn main(arguments: RunArguments) -> Result<ExitCode, BadInput> {
    let plan = arguments.plan()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,jepsen_like=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| BadInput(format!("the async runtime did not start: {error}")))?;
    let out = plan.out.display().to_string();
    let faults: Vec<&str> = plan.faults.iter().map(|fault| fault.name()).collect();
    print(&format!(
        "{} nodes, {}, faults: {}\nseed {}, {out}",
        plan.nodes,
        plan.workload.name(),
        faults.join(", "),
        plan.seed
    ));
    // On this thread, because nodes end with the thread that started them.
    match runtime.block_on(interruptible(plan)) {
        None => Ok(cut_short(&out)),
        Some(Ok(outcome)) => {
            print(&table::outcome(&outcome));
            Ok(match outcome.interrupted {
                true => ExitCode::from(INTERRUPTED),
                false if outcome.record.passed => ExitCode::SUCCESS,
                false => ExitCode::from(FAILED),
            })
        }
        Some(Err(error @ RunError::NotEmpty(_))) => Err(BadInput(error.to_string())),
        Some(Err(RunError::Interrupted)) => Ok(cut_short(&out)),
        Some(Err(error)) => {
            note(&format!("error: {error}\nwhat there is, each node's log too, is in {out}"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// What is said, and the exit code, when there is nothing to judge.
pub(super) fn cut_short(out: &str) -> ExitCode {
    note(&format!("interrupted: all nodes were ended, what was recorded is in {out}"));
    ExitCode::from(INTERRUPTED)
}

/// Runs `plan`. The first Ctrl-C or SIGTERM ends its nodes and judges what was recorded until then; the second ends
/// it at once, with nothing judged: None.
pub(super) async fn interruptible(plan: Plan) -> Option<Result<Outcome, RunError>> {
    let stop = CancellationToken::new();
    let stopped = async {
        signalled().await;
        note("interrupted: the nodes end, and what was recorded is judged; once more ends it at once");
        stop.cancel();
        signalled().await;
    };
    tokio::select! {
        done = run::execute(plan, stop.clone()) => Some(done),
        () = stopped => None,
    }
}

async fn signalled() {
    if let Err(error) = stop_signal().await {
        note(&format!("signals cannot be watched, so this ends now: {error}"));
    }
}

/// Ctrl-C, or SIGTERM.
async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}
