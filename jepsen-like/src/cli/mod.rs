//! The command line.
//!
//! Exit codes: 0 = passed, 1 = the run failed or a verdict is not valid, 2 = the command line or the input makes no
//! sense and nothing was run, 130 = interrupted.

mod check;
mod list;
mod names;
mod run;
mod server;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hexkv_client::console::{note, print};
use rustix::fs::Mode;
use rustix::process::umask;

use crate::mutants::{MutantsArguments, main as mutate};
use crate::sim::cli::{SimArguments, main as simulate};

/// The run failed.
const FAILED: u8 = 1;
/// The command line or the input makes no sense.
const BAD_INPUT: u8 = 2;
/// What a run leaves (data of nodes, logs, histories, reports) is for its own user only.
const UMASK: Mode = Mode::from_raw_mode(0o077);
/// Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Fault-injection suite of hexkv: breaks real clusters under load, and judges what clients saw.
#[derive(Debug, Parser)]
#[command(name = "jepsen-like", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a workload against a cluster of real processes while faults strike
    Run(run::RunArguments),
    /// Runs many workloads under many faults, and prints one table
    Suite(suite::SuiteArguments),
    /// Runs simulated clusters: every fault and every choice follows from a seed
    Sim(SimArguments),
    /// Proves that the simulation finds deliberate faults; needs a build with the feature `mutants`
    Mutants(MutantsArguments),
    /// Judges a saved history again
    Check(check::CheckArguments),
    /// Shows workloads, faults and checkers
    List,
}

/// A command line or an input that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct BadInput(String);

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    umask(UMASK);
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Run(arguments) => run::main(arguments),
        Command::Suite(arguments) => suite::main(arguments),
        Command::Sim(arguments) => simulate(arguments).map_err(|e| BadInput(e.to_string())),
        Command::Mutants(arguments) => mutate(&arguments).map_err(|e| BadInput(e.to_string())),
        Command::Check(arguments) => check::main(&arguments),
        Command::List => {
            print(&list::text());
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|bad| {
        note(&format!("error: {bad}"));
        ExitCode::from(BAD_INPUT)
    })
}
