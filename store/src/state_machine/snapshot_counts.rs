//! How snapshots are made and taken over, for whoever draws it.

use prometheus_client::metrics::{
    counter::Counter,
    histogram::{Histogram, exponential_buckets},
};

/// Bounds of the building times: from 10 ms, doubled 15 times, to 328 s.
const BUILD_BUCKETS: (f64, f64, u16) = (0.01, 2.0, 16);

/// What happened to snapshots since the state was opened. Clones share the values.
#[derive(Debug, Clone)]
pub struct SnapshotCounts {
    /// How long each one took that was built here, in seconds.
    pub build_seconds: Histogram,
    /// Built here.
    pub built: Counter,
    /// Taken over from another node.
    pub installed: Counter,
}

impl Default for SnapshotCounts {
    fn default() -> Self {
        let (start, factor, length) = BUILD_BUCKETS;
        Self {
            build_seconds: Histogram::new(exponential_buckets(start, factor, length)),
            built: Counter::default(),
            installed: Counter::default(),
        }
    }
}
