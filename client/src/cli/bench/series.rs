//! What the loads beside get and put have in common: latencies of one kind, their report, an orderly end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use hexkv_client::Endpoint;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::connection::{Ask, Caller, Refused};
use super::tally::{self, Latencies, TITLES};
use super::worker::ERROR_PAUSE;
use super::{Failure, Frame, show_progress};
use crate::cli::output::{self, Output};
use crate::cli::signals::{Signals, ended_by};

/// Latencies of one kind, and what failed.
#[derive(Debug)]
pub struct Series {
    latencies: Histogram<u32>,
    errors: BTreeMap<String, u64>,
}

impl Default for Series {
    fn default() -> Self {
        Self { latencies: tally::histogram(), errors: BTreeMap::new() }
    }
}

impl Series {
    /// Counts a success.
    pub fn succeeded(&mut self, latency: Duration) {
        tally::record(&mut self.latencies, latency);
    }

    /// Counts a failure; its latency does not count.
    pub fn failed(&mut self, why: &str) {
        tally::count(&mut self.errors, why);
    }

    /// Adds what another connection measured.
    pub fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).expect("a growing histogram takes all");
        for (why, count) in &other.errors {
            *self.errors.entry(why.clone()).or_default() += count;
        }
    }
}

/// When it is measured.
#[derive(Debug, Clone)]
pub struct Clock {
    /// What is sent before does not count.
    pub begin: Instant,
    /// Nothing is sent from then on.
    pub end: Instant,
    /// Successes, for the progress bar.
    pub done: Arc<AtomicU64>,
}

impl Clock {
    /// Begins now.
    pub fn start(frame: &Frame) -> Self {
        let begin = Instant::now() + frame.warmup;
        Self { begin, end: begin + frame.duration, done: Arc::default() }
    }

    /// Sends what `next` gives, one after the other, until the end.
    pub async fn repeat(&self, mut caller: Caller, mut next: impl FnMut() -> Ask) -> Series {
        let mut series = Series::default();
        loop {
            let sent = Instant::now();
            if sent >= self.end {
                return series;
            }
            let result = caller.ask(next()).await;
            if sent >= self.begin {
                match &result {
                    Ok(_) => series.succeeded(sent.elapsed()),
                    Err(Refused(why)) => series.failed(why),
                }
            }
            if result.is_ok() {
                self.done.fetch_add(1, Ordering::Relaxed);
            } else {
                sleep(ERROR_PAUSE).await;
            }
        }
    }

    /// Waits for all connections, beside a progress bar; a signal that asks for the end ends them.
    pub async fn gather<T: Send + 'static>(&self, mut connections: JoinSet<T>) -> Result<Vec<T>, Failure> {
        let mut signals = Signals::install()?;
        let progress = tokio::spawn(show_progress(Arc::clone(&self.done), self.begin, self.end));
        let mut gathered = Vec::with_capacity(connections.len());
        let ended = loop {
            tokio::select! {
                joined = connections.join_next() => match joined {
                    None => break Ok(gathered),
                    Some(Ok(part)) => gathered.push(part),
                    Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                },
                signal = signals.next() => break Err(ended_by(signal)),
            }
        };
        if ended.is_ok() && Instant::now() >= self.end {
            // It clears its bar, and ends at the same time.
            progress.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        } else {
            progress.abort();
        }
        ended
    }
}

/// What was measured, and how.
#[derive(Debug, Serialize)]
pub struct Report {
    load: &'static str,
    endpoints: Vec<String>,
    seconds: f64,
    settings: BTreeMap<&'static str, u64>,
    measured: BTreeMap<&'static str, Latencies>,
    errors: BTreeMap<String, u64>,
}

impl Report {
    /// A report of `load`, measured over `elapsed`.
    pub fn new(load: &'static str, targets: &[Endpoint], elapsed: Duration) -> Self {
        Self {
            load,
            endpoints: targets.iter().map(ToString::to_string).collect(),
            seconds: elapsed.as_secs_f64(),
            settings: BTreeMap::new(),
            measured: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    /// How it was measured.
    pub fn set(mut self, name: &'static str, value: impl Into<u64>) -> Self {
        self.settings.insert(name, value.into());
        self
    }

    /// What was measured, under a name.
    pub fn measured(mut self, name: &'static str, series: &Series) -> Self {
        let elapsed = Duration::from_secs_f64(self.seconds);
        self.measured.insert(name, Latencies::new(&series.latencies, elapsed));
        for (why, count) in &series.errors {
            *self.errors.entry(why.clone()).or_default() += count;
        }
        self
    }

    /// Prints it.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when nothing succeeded.
    pub fn print(&self, output: Output) -> Result<(), Failure> {
        match output {
            Output::Json => output::json(self)?,
            Output::Table => {
                let settings: Vec<String> =
                    self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
                let endpoints = self.endpoints.join(", ");
                output::line(&format!(
                    "{}: {}, to {endpoints}, {:.1} s",
                    self.load,
                    settings.join(", "),
                    self.seconds
                ))?;
                output::line("")?;
                let mut table = output::table(&TITLES);
                for (name, part) in &self.measured {
                    table.add_row(part.row(name));
                }
                output::print_table(&table)?;
                self.errors.iter().try_for_each(|(why, count)| output::line(&format!("error {why}: {count}")))?;
            }
        }
        if self.measured.values().any(|part| part.requests > 0) {
            return Ok(());
        }
        Err(Failure::Unavailable("no request succeeded: `client health` and `client status` show why".to_owned()))
    }
}

/// A name that no other run has.
pub fn run_name() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// The failure that came first: of the measurement, or of what cleans up behind it.
pub fn cleaned<T>(measured: Result<T, Failure>, cleaned: Result<(), Failure>) -> Result<T, Failure> {
    let measured = measured?;
    cleaned.map(|()| measured)
}
