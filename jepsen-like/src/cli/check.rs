//! `jepsen-like check DIR`: judges a saved history again.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hexkv_client::console::print;

use super::{BadInput, FAILED};
use crate::checker;
use crate::history::{HISTORY_FILE, read_file};
use crate::run::table;

/// What `check` takes.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// Directory of a run, or a history file
    #[arg(value_name = "DIR")]
    path: PathBuf,
}

/// Judges.
pub(super) fn main(arguments: &CheckArguments) -> Result<ExitCode, BadInput> {
    let path = match arguments.path.is_dir() {
        true => arguments.path.join(HISTORY_FILE),
        false => arguments.path.clone(),
    };
    let events = read_file(&path).map_err(|error| BadInput(format!("{}: {error}", path.display())))?;
    let verdicts = checker::judge(&events);
    print(&format!("{} events of {}\n{}", events.len(), path.display(), table::verdicts(&verdicts)));
    let valid = verdicts.iter().all(|verdict| verdict.valid);
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
