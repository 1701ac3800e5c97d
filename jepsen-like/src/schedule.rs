//! Which fault strikes when. Everything here follows from the seed, before anything runs.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::fault::Fault;

/// Shortest and longest time for which something stays broken.
pub const HOLD: (Duration, Duration) = (Duration::from_millis(1200), Duration::from_secs(4));
/// Shortest and longest time in which everything is whole between two faults.
pub const QUIET: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(3));
/// Strikes in one run at most.
const STEPS_MAX: usize = 10_000;

/// One strike.
#[derive(Clone, Copy)]
pub struct Step {
    /// What breaks.
    pub fault: &'static dyn Fault,
    /// Quiet time before it.
    pub quiet: Duration,
    /// How long it stays broken.
    pub hold: Duration,
    /// Where its choices come from.
    pub seed: u64,
}

/// The strikes of a run: in rounds, each of which has every fault once, in random order. A run with little time for
/// many faults holds each for a shorter time, so that one round fits if it can.
pub fn plan(faults: &[&'static dyn Fault], time: Duration, seed: u64) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let Some(share) = u32::try_from(faults.len()).ok().filter(|count| *count > 0).map(|count| time / count) else {
        return Vec::new();
    };
    // Starting, electing and catching up take their own time.
    let hold_max = share.mul_f64(0.4).clamp(HOLD.0, HOLD.1);
    let quiet_max = share.mul_f64(0.3).clamp(QUIET.0, QUIET.1);
    let mut between = |least: Duration, most: Duration| least + (most - least).mul_f64(rng.random_range(0.0..=1.0));
    let (mut steps, mut until) = (Vec::new(), Duration::ZERO);
    let mut order = faults.to_vec();
    let mut orders = StdRng::seed_from_u64(seed.wrapping_add(1));
    while until < time && steps.len() < STEPS_MAX {
        order.shuffle(&mut orders);
        for fault in &order {
            let (quiet, hold) = (between(QUIET.0, quiet_max), between(HOLD.0, hold_max));
            until += quiet + hold;
            steps.push(Step { fault: *fault, quiet, hold, seed: orders.random() });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fault::ALL;

    fn shown(steps: &[Step]) -> Vec<(&'static str, Duration, Duration, u64)> {
        steps.iter().map(|step| (step.fault.name(), step.quiet, step.hold, step.seed)).collect()
    }

    #[test]
    fn the_seed_decides_and_every_round_has_every_fault() {
        let steps = plan(ALL, Duration::from_secs(120), 7);
        assert_eq!(shown(&steps), shown(&plan(ALL, Duration::from_secs(120), 7)));
        assert_ne!(shown(&steps), shown(&plan(ALL, Duration::from_secs(120), 8)));
        for round in steps.chunks(ALL.len()) {
            let names: BTreeSet<_> = round.iter().map(|step| step.fault.name()).collect();
            assert_eq!(names.len(), ALL.len());
        }
        assert!(steps.iter().all(|step| step.hold >= HOLD.0 && step.hold <= HOLD.1));
        assert!(steps.iter().all(|step| step.quiet >= QUIET.0 && step.quiet <= QUIET.1));
    }

    #[test]
    fn no_faults_are_no_strikes() {
        assert!(plan(&[], Duration::from_secs(60), 1).is_empty());
    }
}
