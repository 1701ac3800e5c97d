//! Counts and latencies.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use hexkv_client::Endpoint;
use serde::Serialize;

use super::{Arguments, Failure};
use crate::cli::output::{self, Output};

/// Longest latency told from longer ones, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Significant digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A get.
    Read,
    /// A put.
    Write,
}

/// What one connection, or all of them, measured.
#[derive(Debug)]
pub struct Tally {
    reads: Histogram<u32>,
    writes: Histogram<u32>,
    errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { reads: histogram(), writes: histogram(), errors: BTreeMap::new() }
    }
}

impl Tally {
    /// Counts a success.
    pub fn succeeded(&mut self, kind: Kind, latency: Duration) {
        let latencies = match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
        };
        record(latencies, latency);
    }

    /// Counts a failure; its latency does not count.
    pub fn failed(&mut self, why: &str) {
        count(&mut self.errors, why);
    }

    /// Adds what another connection measured.
    pub fn add(&mut self, other: &Self) {
        self.reads.add(&other.reads).expect("a growing histogram takes all");
        self.writes.add(&other.writes).expect("a growing histogram takes all");
        for (why, count) in &other.errors {
            *self.errors.entry(why.clone()).or_default() += count;
        }
    }
}

/// An empty histogram of latencies.
pub(super) fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).expect("the bounds are constants in range")
}

/// Adds a latency.
pub(super) fn record(histogram: &mut Histogram<u32>, latency: Duration) {
    let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX).min(LATENCY_US_MAX);
    histogram.record(us).expect("a growing histogram takes all");
}

/// Counts an error.
pub(super) fn count(errors: &mut BTreeMap<String, u64>, why: &str) {
    match errors.get_mut(why) {
        Some(count) => *count += 1,
        None => {
            errors.insert(why.to_owned(), 1);
        }
    }
}

/// Latencies of one kind of request.
#[derive(Debug, Serialize)]
pub(super) struct Latencies {
    pub(super) requests: u64,
    requests_per_second: f64,
    mean_us: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p99_9_us: u64,
    max_us: u64,
}

impl Latencies {
    pub(super) fn new(histogram: &Histogram<u32>, elapsed: Duration) -> Self {
        Self {
            requests: histogram.len(),
            requests_per_second: histogram.len() as f64 / elapsed.as_secs_f64(),
            mean_us: histogram.mean(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p99_9_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

/// Titles of the rows that [`Latencies::row`] makes.
pub(super) const TITLES: [&str; 9] = ["", "REQUESTS", "PER SECOND", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"];

impl Latencies {
    /// A row of a table.
    pub(super) fn row(&self, name: &str) -> Vec<String> {
        let times = [self.p50_us, self.p90_us, self.p99_us, self.p99_9_us, self.max_us].map(|us| us as f64);
        let mut row = vec![name.to_owned(), self.requests.to_string(), format!("{:.0}", self.requests_per_second)];
        row.extend([self.mean_us].into_iter().chain(times).map(|us| format!("{:.2} ms", us / 1000.0)));
        row
    }
}

/// What was measured, and how.
#[derive(Debug, Serialize)]
pub struct Report {
    endpoints: Vec<String>,
    connections: u32,
    value_bytes: u32,
    keys: u32,
    read_share: f64,
    consistency: &'static str,
    seconds: f64,
    reads: Latencies,
    writes: Latencies,
    all: Latencies,
    errors: BTreeMap<String, u64>,
}

impl Report {
    /// A report of `tally`, measured over `elapsed`.
    pub fn new(tally: &Tally, elapsed: Duration, arguments: &Arguments, targets: &[Endpoint]) -> Self {
        let mut all = tally.reads.clone();
        all.add(&tally.writes).expect("a growing histogram takes all");
        Self {
            endpoints: targets.iter().map(ToString::to_string).collect(),
            connections: arguments.connections,
            value_bytes: arguments.value_size,
            keys: arguments.keys,
            read_share: arguments.read_share,
            consistency: arguments.consistency.as_str(),
            seconds: elapsed.as_secs_f64(),
            reads: Latencies::new(&tally.reads, elapsed),
            writes: Latencies::new(&tally.writes, elapsed),
            all: Latencies::new(&all, elapsed),
            errors: tally.errors.clone(),
        }
    }

    /// Requests that succeeded.
    pub fn answered(&self) -> u64 {
        self.all.requests
    }

    /// Prints it.
    pub fn print(&self, output: Output) -> Result<(), Failure> {
        if output == Output::Json {
            return output::json(self);
        }
        output::line(&format!(
            "{} connections to {}, {} keys, values of {} bytes, {} reads, {:.1} s",
            self.connections,
            self.endpoints.join(", "),
            self.keys,
            self.value_bytes,
            self.consistency,
            self.seconds
        ))?;
        output::line("")?;
        let mut table = output::table(&TITLES);
        for (name, part) in [("reads", &self.reads), ("writes", &self.writes), ("all", &self.all)] {
            if part.requests == 0 || (name == "all" && part.requests == self.reads.requests.max(self.writes.requests)) {
                continue;
            }
            table.add_row(part.row(name));
        }
        output::print_table(&table)?;
        for (why, count) in &self.errors {
            output::line(&format!("error {why}: {count}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_of_connections_add_up() {
        let mut all = Tally::default();
        for part in 1..=3_u64 {
            let mut tally = Tally::default();
            tally.succeeded(Kind::Read, Duration::from_millis(part));
            tally.succeeded(Kind::Write, Duration::from_secs(3600));
            tally.failed("no_leader");
            all.add(&tally);
        }
        assert_eq!((all.reads.len(), all.writes.len(), all.errors["no_leader"]), (3, 3, 3));
        assert_eq!(all.reads.value_at_quantile(0.5) / 10, 200);
        assert!(all.writes.max() >= LATENCY_US_MAX, "latencies beyond the scale count as the longest");
    }
}
