//! Arguments, and who carries them out.

mod bench;
mod cluster;
mod command;
mod completions;
mod doctor;
mod events;
#[cfg(test)]
mod examples;
mod export;
mod failure;
pub mod guard;
mod hold;
mod import;
mod input;
mod kv;
mod lease;
mod local_cluster;
mod output;
mod proc;
mod registry;
mod signals;
mod snapshot;
mod target;
mod terminal;
mod txn;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use hexkv_client::console::visible;
use hexkv_client::{Client, Endpoint, Options};

pub use failure::Failure;
use output::Output;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused: key not found, condition not met, name taken, ...; nothing was changed
  2  the command line makes no sense; nothing was sent
  3  unavailable: no node could do it in time; nothing was changed, try again
  4  outcome unknown: a change was sent and no answer settles whether it happened

Examples:
  client cluster start --size 3
  client put greeting hello
  client get greeting
  client --endpoints 127.0.0.1:4000,127.0.0.1:4010 status";

/// How long an ordinary command may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often the command line sends a request: a person waits for the answer.
const ATTEMPTS_MAX: u32 = 5;

/// Reads and writes a hexkv cluster, manages its members, and runs clusters on this machine.
#[derive(Debug, Parser)]
#[command(name = "client", version, after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

impl Arguments {
    /// Those of this process.
    ///
    /// # Errors
    /// The exit code, after the help that was asked for or what is wrong was printed.
    pub fn from_process() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| {
            // The message quotes arguments, which others may have written.
            let shown = std::env::args_os().map(|argument| visible(&argument.to_string_lossy()).into_owned());
            failure::report_usage(&Self::try_parse_from(shown).err().unwrap_or(error))
        })
    }
}

/// What every command understands.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// Nodes to talk to, any of the cluster, comma-separated
    #[arg(
        long,
        global = true,
        env = "HEXKV_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:4000",
        value_name = "HOST:PORT"
    )]
    endpoints: Vec<Endpoint>,
    /// For people or for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Give up after this, like 500ms or 10s [default: 10s; more for commands that wait for nodes]
    #[arg(long, global = true, value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Option<Duration>,
}

impl Global {
    /// A client of the given endpoints whose calls last `default` at most, unless `--timeout` says otherwise.
    fn client(&self, default: Duration) -> Result<Client, Failure> {
        self.client_of(self.endpoints.clone(), default)
    }

    /// Whether nobody said how long to try.
    fn timeout_is_default(&self) -> bool {
        self.timeout.is_none()
    }

    /// The same, of other endpoints.
    fn client_of(&self, endpoints: Vec<Endpoint>, default: Duration) -> Result<Client, Failure> {
        let timeout = self.timeout.unwrap_or(default);
        let options = Options { timeout, attempts_max: ATTEMPTS_MAX, exactly_once: true, ..Options::default() };
        Ok(Client::with_endpoints(endpoints, options)?)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    Kv(kv::Verb),
    /// Prints changes as they happen, until it is interrupted
    Watch(watch::Arguments),
    /// Looks for what goes wrong in practice, and says what to do about it
    Doctor(doctor::Arguments),
    /// Prints what happens to the cluster, until it is interrupted: nodes up and down, leaders, members
    Events(events::Arguments),
    /// Forgets history below a revision
    #[command(after_help = "Examples:\n  client compact 100000")]
    Compact {
        /// The oldest revision that stays readable
        revision: u64,
    },
    /// Does several operations at one revision, or none
    Txn(txn::Arguments),
    /// Writes all records at one revision as JSON lines
    Export(export::Arguments),
    /// Puts an export's records back
    Import(import::Arguments),
    /// Saves the whole store to a file, and checks such files
    #[command(subcommand, after_help = snapshot::AFTER_HELP)]
    Snapshot(snapshot::Verb),
    /// Grants leases, keeps them alive and ends them: a key put with one goes when it ends
    #[command(subcommand, after_help = lease::AFTER_HELP)]
    Lease(lease::Verb),
    /// Runs a command while it holds a lock
    Lock(hold::LockArguments),
    /// Runs a command while it leads
    Elect(hold::ElectArguments),
    #[command(flatten)]
    Registry(registry::Verb),
    #[command(flatten)]
    Members(cluster::Verb),
    /// Measures throughput and latency: keep-alive connections, each sends its next request when the last is answered
    Bench(bench::Arguments),
    /// Runs a cluster of several nodes on this machine
    Cluster(local_cluster::Arguments),
    /// Prints completions of this command line for a shell
    Completions(completions::Arguments),
}

/// Carries out the command.
///
/// # Errors
/// [`Failure`], which knows its exit code.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { global, verb } = arguments;
    match verb {
        Verb::Kv(verb) => kv::run(&global, verb).await,
        Verb::Watch(arguments) => watch::run(&global, arguments).await,
        Verb::Doctor(arguments) => doctor::run(&global, &arguments).await,
        Verb::Events(arguments) => events::run(&global, arguments).await,
        Verb::Compact { revision } => watch::compact(&global, revision).await,
        Verb::Txn(arguments) => txn::run(&global, arguments).await,
        Verb::Export(arguments) => export::run(&global, arguments).await,
        Verb::Import(arguments) => import::run(&global, arguments).await,
        Verb::Snapshot(verb) => snapshot::run(&global, verb).await,
        Verb::Lease(verb) => lease::run(&global, verb).await,
        Verb::Lock(arguments) => hold::lock(&global, arguments).await,
        Verb::Elect(arguments) => hold::elect(&global, arguments).await,
        Verb::Registry(verb) => registry::run(&global, verb).await,
        Verb::Members(verb) => cluster::run(&global, verb).await,
        Verb::Bench(arguments) => bench::run(&global, arguments).await,
        Verb::Cluster(arguments) => local_cluster::run(&global, arguments).await,
        Verb::Completions(arguments) => completions::run(&arguments),
    }
}
