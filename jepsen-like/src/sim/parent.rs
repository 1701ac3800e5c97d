//! Runs many seeds, each in a fresh process, so that nothing of one reaches another; repeats some of them to prove that
//! they repeat; shrinks what fails.

use std::{
    io::{self, Read},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hexkv_client::console::print;

use super::{
    plan::Reduction,
    report::{Report, arguments, command},
    shrink,
};

/// Every so many seeds, one runs twice and must leave the same trace.
const REPEAT_EVERY: u64 = 50;
/// Longest real time of a seed; a process that needs longer is ended, and failed.
const SEED_TIME_MAX: Duration = Duration::from_secs(120);
/// How often it is looked whether a process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// A line of progress after so many seeds.
const PROGRESS_EVERY: u64 = 100;
/// Failing seeds that are shrunk; further ones are only named.
const SHRUNK_MAX: usize = 3;

/// Which seeds to run.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// How many processes at a time.
    pub jobs: usize,
    /// What is left out of all of them.
    pub reduction: Reduction,
}

#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    repeated: u64,
    strikes: u64,
    operations: u64,
    simulated_ms: u64,
    healed_ms_max: u64,
    writes_judged: u64,
    longest_write_ms: u64,
    failures: Vec<Report>,
}

/// Runs `campaign` and prints what came of it. Whether every seed passed.
///
/// # Errors
/// No process can be started.
pub fn run(campaign: &Campaign) -> io::Result<bool> {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..campaign.jobs.max(1)).map(|_| scope.spawn(|| work(campaign, &next, &sum))).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let took = began.elapsed();
    print(&format!(
        "{} seeds ({} of them twice) in {:.1} s, {:.0} a minute: {} faults struck, {} operations, {:.0} s simulated; \
         whole again at most {} ms after the last fault; {} writes through majorities in order took at most {} ms; {} failed",
        sum.seeds,
        sum.repeated,
        took.as_secs_f64(),
        sum.seeds as f64 * 60.0 / took.as_secs_f64(),
        sum.strikes,
        sum.operations,
        sum.simulated_ms as f64 / 1000.0,
        sum.healed_ms_max,
        sum.writes_judged,
        sum.longest_write_ms,
        sum.failures.len()
    ));
    for report in sum.failures.iter().take(SHRUNK_MAX) {
        shrink_and_tell(report, &campaign.reduction)?;
    }
    Ok(sum.failures.is_empty())
}

fn work(campaign: &Campaign, next: &AtomicU64, sum: &Mutex<Sum>) -> io::Result<()> {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= campaign.count {
            return Ok(());
        }
        let seed = campaign.first + n;
        let mut report = child(seed, &campaign.reduction, None)?;
        let repeated = seed.is_multiple_of(REPEAT_EVERY);
        if repeated && report.failure.is_none() {
            let again = child(seed, &campaign.reduction, None)?;
            if again.trace != report.trace {
                let message = format!("trace: {} the first time, {} the second", report.trace, again.trace);
                report.failure = Some(message);
            }
        }
        if let Some(failure) = &report.failure {
            print(&format!("seed {seed} FAILED: {failure}\n  repeat it: {}", command(seed, &campaign.reduction)));
        }
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        sum.add(report, repeated);
        if sum.seeds.is_multiple_of(PROGRESS_EVERY) {
            print(&format!("{} seeds, {} failed", sum.seeds, sum.failures.len()));
        }
    }
}

impl Sum {
    fn add(&mut self, report: Report, repeated: bool) {
        self.seeds += 1;
        self.repeated += u64::from(repeated);
        self.strikes += report.strikes;
        self.operations += report.operations as u64;
        self.simulated_ms += report.simulated_ms;
        self.healed_ms_max = self.healed_ms_max.max(report.healed_after_ms.unwrap_or(0));
        self.writes_judged += report.writes_judged;
        self.longest_write_ms = self.longest_write_ms.max(report.longest_write_ms);
        if report.failure.is_some() {
            self.failures.push(report);
        }
    }
}

fn shrink_and_tell(report: &Report, base: &Reduction) -> io::Result<()> {
    let shrunk = shrink::shrink(report, base, |reduction| child(report.seed, reduction, None))?;
    print(&format!(
        "seed {} still fails with {} operations and without {} of its faults ({} runs): {}\n  repeat it: {}",
        report.seed,
        shrunk.report.operations,
        shrunk.reduction.without.len() - base.without.len(),
        shrunk.runs,
        shrunk.report.failure.as_deref().unwrap_or_default(),
        command(report.seed, &shrunk.reduction)
    ));
    Ok(())
}

/// Runs `seed` in a process of its own, with that mutant where one is named. A process that ends without a report, or
/// not in time, counts as failed.
///
/// # Errors
/// The process cannot be started.
pub(crate) fn child(seed: u64, reduction: &Reduction, mutant: Option<&str>) -> io::Result<Report> {
    let mut command = Command::new(std::env::current_exe()?);
    match mutant {
        Some(mutant) => command.env(hexkv_store::mutants::VARIABLE, mutant),
        None => command.env_remove(hexkv_store::mutants::VARIABLE),
    };
    command.args(arguments(seed, reduction)).arg("--json").stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn()?;
    let deadline = Instant::now() + SEED_TIME_MAX;
    let status = loop {
        match process.try_wait()? {
            Some(status) => break status.to_string(),
            None if Instant::now() < deadline => thread::sleep(POLL_INTERVAL),
            None => {
                process.kill()?;
                process.wait()?;
                break format!("ended after {SEED_TIME_MAX:?}");
            }
        }
    };
    let mut output = String::new();
    if let Some(mut stdout) = process.stdout.take() {
        stdout.read_to_string(&mut output)?;
    }
    Ok(serde_json::from_str(&output).unwrap_or_else(|_| Report {
        seed,
        trace: String::new(),
        failure: Some(format!("process: no report, {status}")),
        faults: super::plan::Plan::new(seed, reduction).faults().iter().map(|f| f.name().to_string()).collect(),
        strikes: 0,
        operations: 0,
        simulated_ms: 0,
        healed_after_ms: None,
        longest_write_ms: 0,
        writes_judged: 0,
        real_ms: SEED_TIME_MAX.as_millis() as u64,
    }))
}
