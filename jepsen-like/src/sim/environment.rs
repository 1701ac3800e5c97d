//! The simulated world that a real node runs in: turmoil's network, a wall clock that drifts and jumps, and what nodes find
//! each other with.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use hexkv_raft_net::transport::AnyTransport;
use hexkv_server::environment::{Clock, Environment};
use hexkv_store::{driver::Driver, fs::FaultyFs};

use super::{discovery::Sight, wires::SimulatedTransport};

/// Wall time at the beginning of every simulation, in milliseconds since the Unix epoch: 2026-01-01.
pub const EPOCH_MS: u64 = 1_767_225_600_000;

/// How far a node's wall clock is off; shared with the nemesis that turns it.
#[derive(Debug, Default)]
pub struct Skew {
    offset_ms: AtomicI64,
    drift_ppm: AtomicI64,
}

impl Skew {
    /// Sets the clock `offset_ms` off and lets it run `drift_ppm` millionths too fast (or, negative, too slow).
    pub fn set(&self, offset_ms: i64, drift_ppm: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
        self.drift_ppm.store(drift_ppm, Ordering::Relaxed);
    }

    fn shown_ms(&self, elapsed: Duration) -> u64 {
        let elapsed_ms = elapsed.as_millis() as i64;
        let drift_ms = elapsed_ms * self.drift_ppm.load(Ordering::Relaxed) / 1_000_000;
        EPOCH_MS.saturating_add_signed(elapsed_ms + drift_ms + self.offset_ms.load(Ordering::Relaxed))
    }
}

/// A wall clock that follows simulated time as its skew has it.
#[derive(Debug)]
struct SkewedClock(Arc<Skew>);

impl Clock for SkewedClock {
    fn now(&self) -> SystemTime {
        let elapsed = turmoil::sim_elapsed().expect("clocks are read by the software of simulated hosts only");
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.shown_ms(elapsed))
    }
}

/// What a node on `disk` runs in, that finds others by what is in `sight`, and reaches them by `transport`.
pub fn simulated(
    disk: FaultyFs,
    driver: Driver,
    skew: Arc<Skew>,
    sight: Sight,
    transport: SimulatedTransport,
) -> Environment {
    Environment {
        fs: Arc::new(disk),
        transport: AnyTransport::new(transport),
        names: sight.names,
        multicast: sight.multicast,
        clock: Arc::new(SkewedClock(skew)),
        driver,
        apart: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skewed_clock_is_off_by_its_offset_and_its_drift() {
        let skew = Skew::default();
        assert_eq!(skew.shown_ms(Duration::from_secs(10)), EPOCH_MS + 10_000);
        skew.set(-300, 50_000);
        assert_eq!(skew.shown_ms(Duration::from_secs(10)), EPOCH_MS + 10_000 + 500 - 300);
        skew.set(i64::MIN / 2, 0);
        assert_eq!(skew.shown_ms(Duration::from_secs(10)), 0, "it does not wrap around");
    }
}
