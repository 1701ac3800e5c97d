//! `jepsen-like sim`: one seed here, or many, each in a fresh process.

use std::{
    fmt, fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Args;
use hexkv_client::console::print;
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

use super::{
    fault::Fault,
    parent::{self, Campaign},
    plan::Reduction,
    report::Report,
    run::{Outcome, run},
};
use crate::history::{HISTORY_VERSION, Header};

/// Exit code of a run that found something.
const FAILED: u8 = 1;
/// Processes at a time when nobody says how many.
const JOBS_DEFAULT: usize = 2;

/// What `sim` takes.
#[derive(Debug, Clone, Args)]
pub struct SimArguments {
    /// How many seeds to run, each in a fresh process; a failing one is shrunk
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    seeds: Option<u64>,
    /// The first of --seeds
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    first_seed: u64,
    /// Processes at a time
    #[arg(long, value_name = "N", default_value_t = JOBS_DEFAULT)]
    jobs: usize,
    /// Run only this seed, in this process
    #[arg(long, value_name = "SEED", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// Leave out these faults, by commas
    #[arg(long, value_name = "FAULTS", value_delimiter = ',')]
    without: Vec<Fault>,
    /// Let clients begin at most so many operations
    #[arg(long, value_name = "N")]
    operations: Option<usize>,
    /// Print one line of JSON
    #[arg(long, requires = "seed")]
    json: bool,
    /// Print every event that goes into the trace hash, to stderr
    #[arg(long, requires = "seed")]
    print_trace: bool,
    /// Print the nodes' logs to stderr, by this filter
    #[arg(long, value_name = "FILTER", requires = "seed")]
    log: Option<String>,
    /// Save the history of the seed in this directory
    #[arg(long, value_name = "DIR", requires = "seed")]
    save: Option<PathBuf>,
}

/// Runs `jepsen-like sim`.
///
/// # Errors
/// No process can be started, the history cannot be saved, the log filter makes no sense.
pub fn main(arguments: SimArguments) -> io::Result<ExitCode> {
    let reduction =
        Reduction { without: arguments.without.iter().copied().collect(), operations: arguments.operations };
    let passed = match arguments.seed {
        Some(seed) => one(seed, &reduction, &arguments)?,
        None => {
            let seeds = arguments.seeds.expect("clap demands one of the two");
            let campaign = Campaign { first: arguments.first_seed, count: seeds, jobs: arguments.jobs, reduction };
            parent::run(&campaign)?
        }
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn one(seed: u64, reduction: &Reduction, arguments: &SimArguments) -> io::Result<bool> {
    if let Some(filter) = &arguments.log {
        let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(io::Error::other)?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(false)
            .with_timer(SimulatedTime)
            .init();
    }
    let began = Instant::now();
    let outcome = run(seed, reduction, arguments.print_trace);
    if let Some(dir) = &arguments.save {
        save(dir, &outcome)?;
    }
    let report = Report::new(seed, reduction, &outcome, began.elapsed());
    if arguments.json {
        print(&serde_json::to_string(&report)?);
    } else {
        print(&report.to_string());
    }
    Ok(report.failure.is_none())
}

/// Log lines show simulated time; the span around them, turmoil's, names the machine.
struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, line: &mut Writer<'_>) -> fmt::Result {
        match turmoil::sim_elapsed() {
            Some(elapsed) => write!(line, "{:>6} ms", elapsed.as_millis()),
            None => write!(line, "        -"),
        }
    }
}

fn save(dir: &Path, outcome: &Outcome) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut file = io::BufWriter::new(fs::File::create(dir.join(crate::history::HISTORY_FILE))?);
    writeln!(file, "{}", serde_json::to_string(&Header { history_version: HISTORY_VERSION })?)?;
    for event in &outcome.history {
        writeln!(file, "{}", serde_json::to_string(event)?)?;
    }
    file.flush()
}
