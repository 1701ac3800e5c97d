//! Stands in for the crate `base2histogram` below openraft, which builds 26 MiB of lookup tables at its first use:
//! more than all else that an idle node has in memory. This one counts by powers of two, in 64 buckets, and
//! offers what openraft calls.

use std::{fmt, marker::PhantomData};

/// One bucket for each number of significant bits, 0 included.
const BUCKETS: usize = 65;

/// Counts of values by power of two. `T` is data that the original keeps with each period; openraft has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    data: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// Nothing recorded.
    pub fn new() -> Self {
        Self { counts: [0; BUCKETS], data: PhantomData }
    }

    /// Records `value` once.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Records `value` `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
    }

    /// The percentiles, each rounded down to a power of two.
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.counts.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
        let at = |permille: u64| {
            let rank = (u128::from(samples) * u128::from(permille)).div_ceil(1000).max(1);
            let mut seen = 0_u128;
            let bucket = self.counts.iter().position(|n| {
                seen += u128::from(*n);
                seen >= rank
            });
            bucket.filter(|b| *b > 0).map_or(0, |b| 1_u64 << (b - 1))
        };
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// Values recorded.
    pub samples: u64,
    /// 0.1 %.
    pub p0_1: u64,
    /// 1 %.
    pub p1: u64,
    /// 5 %.
    pub p5: u64,
    /// 10 %.
    pub p10: u64,
    /// 50 %.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n={} p50={} p90={} p99={} p99.9={}", self.samples, self.p50, self.p90, self.p99, self.p99_9)
    }
}

/// Histograms by name, a line each.
#[derive(Debug, Clone)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, PercentileStats)>,
    data: PhantomData<T>,
}

impl<T> AsciiChart<T> {
    /// No histograms.
    pub fn new() -> Self {
        Self { series: Vec::new(), data: PhantomData }
    }

    /// Adds a histogram.
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram<T>) -> Self {
        self.series.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.series.iter().try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}
