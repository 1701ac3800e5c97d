//! `jepsen-like suite`: many runs, one after the other, and one table.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use hexkv_client::console::{note, print};

use super::{
    BadInput, FAILED, INTERRUPTED, names,
    run::{cut_short, interruptible},
    server,
};
use crate::run::{self, Outcome, Plan, RunError, directory};
use crate::workload;

/// How long the faults of one cell strike, in the short suite.
const CELL_TIME: Duration = Duration::from_secs(20);
/// The same in the long suite.
const CELL_TIME_LONG: Duration = Duration::from_secs(55);
/// Operations a second of all clients of a cell, at most.
const RATE: f64 = 2_000.0;
/// Clients of a cell.
const CLIENTS: u64 = 24;
/// Workload, faults, nodes: each workload, each fault and each size at least once.
const CELLS: &[(&str, &str, usize)] = &[
    ("register", "kill", 5),
    ("register", "partition", 5),
    ("register", "member", 5),
    ("read-modes", "pause,half-open", 5),
    ("read-modes", "wipe,partition", 3),
    ("set", "kill,restart", 3),
    ("set", "partition,slow", 7),
    ("bank", "kill,partition", 5),
    ("bank", "pause,reset", 3),
    ("append", "partition,cut", 5),
    ("append", "kill,pause", 3),
    ("register", "lost-quorum,kill", 3),
    ("watch", "kill,partition", 5),
    ("lock", "pause,partition", 3),
    ("lease", "kill,pause", 3),
    ("idempotent", "kill,pause", 3),
    ("register", "mtu-hole,no-connects", 3),
    ("set", "stalled-disk", 3),
    ("register", "clone,rollback", 3),
];

/// The cells of the long suite: each workload under these, with five nodes, and once each with three and seven.
const LONG_FAULTS: &[&str] =
    &["kill,restart", "pause,slow", "partition", "wipe,member", "reset,half-open,cut", "mtu-hole,no-connects", "all"];

/// Cells of the long suite with faults that `all` does not mean.
const LONG_FAULTS_APART: &[(&str, &str, usize)] = &[
    ("register", "lost-quorum", 5),
    ("append", "lost-quorum,pause", 3),
    ("idempotent", "lost-quorum,kill", 5),
    ("register", "stalled-disk", 3),
    ("bank", "stalled-disk,kill", 5),
    ("append", "clone,rollback", 3),
];

/// What `suite` takes.
#[derive(Debug, Args)]
pub(super) struct SuiteArguments {
    /// Every workload under every fault: 87 cells, about 82 minutes of load alone
    #[arg(long)]
    long: bool,
    /// Seed of the first cell; the others follow
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cell to begin with, counted from 1: goes on with a suite that was interrupted
    #[arg(long, value_name = "CELL", default_value_t = 1)]
    from: usize,
    /// Directory of the runs; below ./jepsen-like-runs unless given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The server binary; the one beside this binary unless given
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
}

struct Cell {
    workload: &'static str,
    faults: &'static str,
    nodes: usize,
    seed: u64,
}

fn cells(long: bool, seed: u64) -> Vec<Cell> {
    let mut chosen: Vec<(&str, &str, usize)> = Vec::new();
    if long {
        for workload in workload::ALL {
            chosen.extend(LONG_FAULTS.iter().map(|faults| (workload.name(), *faults, 5)));
        }
        chosen.extend(workload::ALL.iter().flat_map(|workload| [3, 7].map(|nodes| (workload.name(), "all", nodes))));
        chosen.extend(LONG_FAULTS_APART);
    } else {
        chosen.extend(CELLS);
    }
    let cell = |(i, (workload, faults, nodes))| Cell { workload, faults, nodes, seed: seed + i as u64 };
    chosen.into_iter().enumerate().map(cell).collect()
}

/// Runs the suite.
pub(super) fn main(arguments: SuiteArguments) -> Result<ExitCode, BadInput> {
    let mut cells = cells(arguments.long, arguments.seed);
    if !(1..=cells.len()).contains(&arguments.from) {
        return Err(BadInput(format!("--from {}: there are {} cells", arguments.from, cells.len())));
    }
    cells.drain(..arguments.from - 1);
    let (server, version) = server::find(arguments.server.clone())?;
    let out = arguments.out.clone().unwrap_or_else(|| directory::default_path("suite", arguments.seed));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| BadInput(format!("the async runtime did not start: {error}")))?;
    print(&heading(&version, arguments.long));
    let (began, mut total, mut all_passed) = (Instant::now(), Total::default(), true);
    let time = if arguments.long { CELL_TIME_LONG } else { CELL_TIME };
    for cell in cells {
        let plan = plan(&cell, time, &server, &version, &out)?;
        if let Some(why) = plan.faults.iter().find_map(|fault| fault.unavailable()) {
            let Cell { workload, faults, nodes, seed } = cell;
            print(&format!("| {workload} | {faults} | {nodes} | {seed} | | | | skipped: {why} |"));
            continue;
        }
        let command = plan.command.clone();
        // On this thread, because nodes end with the thread that started them.
        match runtime.block_on(interruptible(plan)) {
            None | Some(Err(RunError::Interrupted)) => return Ok(cut_short(&out.display().to_string())),
            Some(Ok(outcome)) => {
                print(&row(&cell, &outcome));
                total.add(&outcome);
                if !outcome.record.passed {
                    all_passed = false;
                    print(&run::table::outcome(&outcome));
                }
                if outcome.interrupted {
                    return Ok(ExitCode::from(INTERRUPTED));
                }
            }
            Some(Err(error @ RunError::NotEmpty(_))) => return Err(BadInput(error.to_string())),
            Some(Err(error)) => {
                all_passed = false;
                print(&format!(
                    "| {} | {} | {} | {} | | | | **did not run** |",
                    cell.workload, cell.faults, cell.nodes, cell.seed
                ));
                note(&format!("error: {error}\nagain: {command}"));
            }
        }
    }
    print(&format!("\n{}\n{}", total.text(began.elapsed()), if all_passed { "passed" } else { "FAILED" }));
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn plan(
    cell: &Cell,
    time: Duration,
    server: &std::path::Path,
    version: &str,
    out: &std::path::Path,
) -> Result<Plan, BadInput> {
    let Cell { workload, faults, nodes, seed } = *cell;
    let command = format!(
        "jepsen-like run --nodes {nodes} --workload {workload} --faults {faults} --time {}s --seed {seed} --clients {CLIENTS} --rate {RATE}",
        time.as_secs()
    );
    Ok(Plan {
        nodes,
        workload: names::workload(workload)?,
        faults: names::faults(faults, nodes)?,
        time,
        seed,
        clients: CLIENTS,
        rate: RATE,
        server: server.to_owned(),
        server_version: version.to_owned(),
        out: out.join(format!("{workload}-{}-{nodes}-seed{seed}", faults.replace(',', "-"))),
        keep: false,
        command,
    })
}

/// Date, commit and the head of the table.
fn heading(version: &str, long: bool) -> String {
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let git = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = git.ok().filter(|output| output.status.success());
    let commit =
        commit.map_or_else(|| "no checkout".to_owned(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    format!(
        "{}, version {version}, commit {commit}, {} suite\n\n\
         | workload | faults | nodes | seed | operations (ok, fail, unknown) | strikes that bit | writes again after, at most | verdict |\n\
         |---|---|---|---|---|---|---|---|",
        &date[..10],
        if long { "long" } else { "short" },
    )
}

fn row(cell: &Cell, outcome: &Outcome) -> String {
    let record = &outcome.record;
    let sum = |of: fn(&run::record::Tally) -> u64| record.operations.values().map(of).sum::<u64>();
    let bit = record.strikes.iter().filter(|strike| strike.effect.bit).count();
    let broken: Vec<&str> = outcome.verdicts.iter().filter(|v| !v.valid).map(|v| v.checker.as_str()).collect();
    let verdict = match (record.passed, broken.is_empty()) {
        (true, _) => format!("valid ({} checkers)", outcome.verdicts.len()),
        (false, false) => format!("**invalid: {}**", broken.join(", ")),
        (false, true) => format!("**failed: {}**", record.failures().join("; ")),
    };
    let mut row = String::new();
    write!(
        row,
        "| {} | {} | {} | {} | {}, {}, {} | {bit} of {} | {} | {verdict} |",
        cell.workload,
        cell.faults,
        cell.nodes,
        cell.seed,
        sum(|t| t.ok),
        sum(|t| t.fail),
        sum(|t| t.info),
        record.strikes.len(),
        record.recovery.longest_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
    )
    .expect("a String takes all");
    row
}

/// What all cells did together.
#[derive(Default)]
struct Total {
    cells: usize,
    operations: u64,
    strikes: usize,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.cells += 1;
        self.operations += outcome.record.operations.values().map(|t| t.ok + t.fail + t.info).sum::<u64>();
        self.strikes += outcome.record.strikes.iter().filter(|strike| strike.effect.bit).count();
    }

    fn text(&self, took: Duration) -> String {
        let Self { cells, operations, strikes } = self;
        format!("{cells} cells, {operations} operations, {strikes} faults that bit, in {} s", took.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fault;

    #[test]
    fn every_workload_and_every_fault_is_in_both_suites() {
        for long in [false, true] {
            let cells = cells(long, 1);
            let workloads: BTreeSet<&str> = cells.iter().map(|cell| cell.workload).collect();
            assert_eq!(workloads, workload::ALL.iter().map(|workload| workload.name()).collect());
            let mut faults = BTreeSet::new();
            for cell in &cells {
                let time = if long { CELL_TIME_LONG } else { CELL_TIME };
                let plan = plan(cell, time, "server".as_ref(), "0", "out".as_ref()).expect("the table is right");
                faults.extend(plan.faults.iter().map(|fault| fault.name()));
            }
            assert_eq!(faults, fault::ALL.iter().map(|fault| fault.name()).collect());
            let seeds: BTreeSet<u64> = cells.iter().map(|cell| cell.seed).collect();
            assert_eq!(seeds.len(), cells.len());
        }
    }
}
