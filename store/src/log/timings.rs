//! How the log's writer works, for whoever draws it.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Bounds of the sync times: from 50 us, doubled 14 times, to 0.8 s.
const SYNC_BUCKETS: (f64, f64, u16) = (0.000_05, 2.0, 15);
/// Bounds of the batch sizes: from 1, doubled 14 times, to the largest batch.
const BATCH_BUCKETS: (f64, f64, u16) = (1.0, 2.0, 15);

/// What the writer did since the log was opened. Clones share the values.
#[derive(Debug, Clone)]
pub struct LogTimings {
    /// How long each sync took, in seconds.
    pub sync_seconds: Histogram,
    /// How many operations (appends, votes, truncations, purges) shared each batch.
    pub batch_operations: Histogram,
}

impl Default for LogTimings {
    fn default() -> Self {
        let of = |(start, factor, length)| Histogram::new(exponential_buckets(start, factor, length));
        Self { sync_seconds: of(SYNC_BUCKETS), batch_operations: of(BATCH_BUCKETS) }
    }
}
