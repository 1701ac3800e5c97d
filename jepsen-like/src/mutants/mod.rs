//! `jepsen-like mutants`: lets the simulation loose on deliberately broken nodes, and tells which faults it finds. What
//! it does not find, it cannot be said to exclude in the sound ones.

#[cfg(feature = "mutants")]
mod campaign;
#[cfg(any(feature = "mutants", test))]
mod sentence;

use std::{io, process::ExitCode};

use clap::Args;
#[cfg(not(feature = "mutants"))]
use hexkv_client::console::note;

/// Exit code when a mutant survived, or a sound build failed.
#[cfg(feature = "mutants")]
const SURVIVED: u8 = 1;
/// Exit code of a build that has no mutants in it.
#[cfg(not(feature = "mutants"))]
const NOT_BUILT: u8 = 2;
/// Seeds that are tried on a mutant when nobody says how many.
const BUDGET_SEEDS_DEFAULT: u64 = 100;
/// Mutants at a time when nobody says how many.
const JOBS_DEFAULT: usize = 2;

/// What `mutants` takes.
#[derive(Debug, Clone, Args)]
pub struct MutantsArguments {
    /// Most seeds that are tried on each mutant
    #[arg(long, value_name = "N", default_value_t = BUDGET_SEEDS_DEFAULT)]
    budget_seeds: u64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    first_seed: u64,
    /// Only these, by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Mutants at a time
    #[arg(long, value_name = "N", default_value_t = JOBS_DEFAULT)]
    jobs: usize,
}

/// Runs `jepsen-like mutants`.
///
/// # Errors
/// No process can be started; a name that is no mutant.
#[cfg(feature = "mutants")]
pub fn main(arguments: &MutantsArguments) -> io::Result<ExitCode> {
    let all_killed = campaign::run(arguments)?;
    Ok(if all_killed { ExitCode::SUCCESS } else { ExitCode::from(SURVIVED) })
}

/// Says how to build what could run it.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "mutants"))]
pub fn main(arguments: &MutantsArguments) -> io::Result<ExitCode> {
    let MutantsArguments { budget_seeds, first_seed, only, jobs } = arguments;
    let only = if only.is_empty() { String::new() } else { format!(" --only {}", only.join(",")) };
    note(&format!(
        "error: this build has no mutants in it\nhint: cargo build --release -p jepsen-like --features mutants --target-dir \
         target/mutants, then target/mutants/release/jepsen-like mutants --budget-seeds {budget_seeds} --first-seed \
         {first_seed} --jobs {jobs}{only}"
    ));
    Ok(ExitCode::from(NOT_BUILT))
}
