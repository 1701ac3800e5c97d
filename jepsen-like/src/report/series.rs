//! A history as numbers over time: rates for each kind of operation and outcome, and latencies.

use std::collections::HashMap;

use super::operations::{OUTCOMES, Operation, Outcome};
use super::text;

/// Most steps of time a chart has.
pub(super) const BUCKETS_MAX: u64 = 240;
/// Kinds of operations with a line of their own; the rarest beyond them share the last line.
pub(super) const LINES_MAX: usize = 6;

/// Widths of a step that people can read, in milliseconds.
const WIDTHS_MS: [u64; 18] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000,
];

/// Time cut into equal steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Buckets {
    /// Of the whole chart, above 0.
    pub(super) span_ns: u64,
    /// Of a step.
    pub(super) width_ns: u64,
    /// How many, at most [`BUCKETS_MAX`].
    pub(super) count: usize,
}

impl Buckets {
    /// Steps for a run of this length.
    pub(super) fn new(span_ns: u64) -> Self {
        let span_ns = span_ns.max(1_000_000);
        let least_ns = span_ns.div_ceil(BUCKETS_MAX);
        let width_ns = WIDTHS_MS.iter().map(|ms| ms * 1_000_000).find(|width| *width >= least_ns).unwrap_or(least_ns);
        Self { span_ns, width_ns, count: (span_ns.saturating_add(width_ns / 2) / width_ns).max(1) as usize }
    }

    /// The step a moment falls into; what is past the end counts in the last.
    pub(super) fn position(&self, time_ns: u64) -> usize {
        ((time_ns / self.width_ns) as usize).min(self.count - 1)
    }

    /// When a step begins.
    pub(super) fn start_ns(&self, position: usize) -> u64 {
        position as u64 * self.width_ns
    }

    /// When a step ends. The last one ends with the run: it has half a width at least, lest its rate mean nothing, and
    /// one and a half at most (a run shorter than that is one step).
    pub(super) fn end_ns(&self, position: usize) -> u64 {
        if position + 1 == self.count { self.span_ns } else { self.start_ns(position + 1) }
    }

    /// How long a step is, in seconds.
    fn seconds(&self, position: usize) -> f64 {
        (self.end_ns(position) - self.start_ns(position)) as f64 / 1e9
    }
}

/// One kind of operation.
#[derive(Debug)]
pub(super) struct Line {
    /// Its `f`, or how many kinds share the line.
    pub(super) name: String,
    /// How many of each outcome, by [`Outcome::position`], in each step.
    counts: [Vec<u64>; OUTCOMES.len()],
    /// Latencies of those that happened.
    pub(super) latency: Option<Quantiles>,
}

impl Line {
    /// Operations a second in a step.
    pub(super) fn rate(&self, buckets: &Buckets, outcome: Outcome, position: usize) -> f64 {
        self.counts[outcome.position()][position] as f64 / buckets.seconds(position)
    }

    /// Operations of that outcome in the whole run.
    pub(super) fn total(&self, outcome: Outcome) -> u64 {
        self.counts[outcome.position()].iter().sum()
    }
}

/// Latencies of a group of operations, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quantiles {
    /// Half are faster.
    pub(super) p50_ns: u64,
    /// 95 of 100 are faster.
    pub(super) p95_ns: u64,
    /// 99 of 100 are faster.
    pub(super) p99_ns: u64,
    /// The slowest.
    pub(super) max_ns: u64,
}

/// Nearest rank; None of nothing. Sorts `latencies_ns`.
fn quantiles(latencies_ns: &mut [u64]) -> Option<Quantiles> {
    latencies_ns.sort_unstable();
    let last = latencies_ns.len().checked_sub(1)?;
    let rank = |percent: usize| latencies_ns[(latencies_ns.len() * percent).div_ceil(100).saturating_sub(1).min(last)];
    Some(Quantiles { p50_ns: rank(50), p95_ns: rank(95), p99_ns: rank(99), max_ns: latencies_ns[last] })
}

/// Everything the charts of a run draw.
#[derive(Debug)]
pub(super) struct Series {
    /// The steps of time.
    pub(super) buckets: Buckets,
    /// The most frequent kind first; at most [`LINES_MAX`].
    pub(super) lines: Vec<Line>,
    /// Latencies of the operations that happened, by the step in which they were sent.
    pub(super) latency: Vec<Option<Quantiles>>,
}

impl Series {
    /// Counts `operations` over a run of `span_ns`.
    pub(super) fn new(operations: &[Operation<'_>], span_ns: u64) -> Self {
        let buckets = Buckets::new(span_ns);
        let (names, line_of) = lines_of(operations);
        let mut counts = vec![[(); OUTCOMES.len()].map(|()| vec![0; buckets.count]); names.len()];
        let mut by_bucket = vec![Vec::new(); buckets.count];
        let mut by_line = vec![Vec::new(); names.len()];
        for operation in operations {
            let line = line_of[operation.invoke.f.as_str()];
            let outcome = operation.outcome();
            counts[line][outcome.position()][buckets.position(operation.counted_at_ns())] += 1;
            if let (Outcome::Ok, Some(latency_ns)) = (outcome, operation.latency_ns()) {
                by_bucket[buckets.position(operation.invoke.time_ns)].push(latency_ns);
                by_line[line].push(latency_ns);
            }
        }
        let lines = names.into_iter().zip(counts).zip(by_line);
        Self {
            buckets,
            lines: lines
                .map(|((name, counts), mut latencies)| Line { name, counts, latency: quantiles(&mut latencies) })
                .collect(),
            latency: by_bucket.iter_mut().map(|latencies| quantiles(latencies)).collect(),
        }
    }
}

/// The names of the lines, and the line of each kind of operation.
fn lines_of<'a>(operations: &[Operation<'a>]) -> (Vec<String>, HashMap<&'a str, usize>) {
    let mut frequency: HashMap<&str, u64> = HashMap::new();
    for operation in operations {
        *frequency.entry(operation.invoke.f.as_str()).or_default() += 1;
    }
    let mut kinds: Vec<(&str, u64)> = frequency.into_iter().collect();
    kinds.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let own = if kinds.len() > LINES_MAX { LINES_MAX - 1 } else { kinds.len() };
    let mut names: Vec<String> = kinds[..own].iter().map(|(f, _)| text::bounded(f, 40)).collect();
    if own < kinds.len() {
        names.push(format!("{} others", kinds.len() - own));
    }
    (names, kinds.iter().enumerate().map(|(position, (f, _))| (*f, position.min(own))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_bounded_whatever_the_length() {
        for span_ns in [0, 1, 999, 1_000_000, 60_000_000_000, 60_001_000_000, 86_400_000_000_000, u64::MAX] {
            let buckets = Buckets::new(span_ns);
            assert!((1..=BUCKETS_MAX as usize).contains(&buckets.count), "{span_ns} {buckets:?}");
            assert_eq!(buckets.position(u64::MAX), buckets.count - 1);
            assert_eq!(buckets.end_ns(buckets.count - 1), buckets.span_ns);
            let last_ns = buckets.span_ns - buckets.start_ns(buckets.count - 1);
            assert!(buckets.count == 1 || last_ns >= buckets.width_ns / 2, "{span_ns} {buckets:?}");
        }
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let mut latencies: Vec<u64> = (1..=200).rev().collect();
        let expected = Quantiles { p50_ns: 100, p95_ns: 190, p99_ns: 198, max_ns: 200 };
        assert_eq!(quantiles(&mut latencies), Some(expected));
        assert_eq!(quantiles(&mut [7]).map(|q| q.p50_ns), Some(7));
        assert_eq!(quantiles(&mut []), None);
    }
}
