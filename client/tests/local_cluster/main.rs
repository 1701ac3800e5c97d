//! `client cluster` drives real processes: this binary starts itself as their server.
//!
//! Without `NODE_INDEX` it runs all scenarios, or those whose name contains its first argument.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;
mod scenarios;

use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os("NODE_INDEX").is_some() {
        return node::serve();
    }
    let mut arguments = std::env::args().skip(1);
    let filter = arguments.find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let chosen: Vec<_> = scenarios::ALL.iter().filter(|(name, _)| name.contains(&filter)).collect();
    let failed: Vec<&str> = chosen
        .iter()
        .filter(|(name, scenario)| {
            let failed = catch_unwind(scenario).is_err();
            println!("test {name} ... {}", if failed { "FAILED" } else { "ok" });
            failed
        })
        .map(|(name, _)| *name)
        .collect();
    println!("\n{} passed, {} failed {failed:?}", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
