//! What a seed's process tells, to people and to the process that started it.

use std::{collections::BTreeSet, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    plan::{Plan, Reduction},
    run::Outcome,
};

/// What came of one seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The trace hash, in hexadecimal digits.
    pub trace: String,
    /// What is wrong; None = nothing.
    pub failure: Option<String>,
    /// The kinds of faults that were planned.
    pub faults: BTreeSet<String>,
    /// Faults that struck.
    pub strikes: u64,
    /// Client operations that were begun.
    pub operations: usize,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Simulated time from the last fault until the cluster was whole, in milliseconds.
    pub healed_after_ms: Option<u64>,
    /// Longest time in which a majority that was in order acknowledged a write, in milliseconds.
    pub longest_write_ms: u64,
    /// Writes that such a majority acknowledged.
    pub writes_judged: u64,
    /// Real time, in milliseconds.
    pub real_ms: u64,
}

impl Report {
    /// Of `outcome`.
    pub fn new(seed: u64, reduction: &Reduction, outcome: &Outcome, took: Duration) -> Self {
        let faults = Plan::new(seed, reduction).faults();
        Self {
            seed,
            trace: format!("{:032x}", outcome.trace),
            failure: outcome.failure.clone(),
            faults: faults.into_iter().map(|f| f.name().to_string()).collect(),
            strikes: outcome.strikes,
            operations: outcome.operations,
            simulated_ms: outcome.simulated_ms,
            healed_after_ms: outcome.healed_after_ms,
            longest_write_ms: outcome.longest_write_ms,
            writes_judged: outcome.writes_judged,
            real_ms: took.as_millis() as u64,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<&str> = self.faults.iter().map(String::as_str).collect();
        write!(
            f,
            "seed {} trace {}: {} faults struck ({}), {} operations, {} ms simulated in {} ms",
            self.seed,
            self.trace,
            self.strikes,
            faults.join(", "),
            self.operations,
            self.simulated_ms,
            self.real_ms
        )?;
        if self.writes_judged > 0 {
            let (writes, ms) = (self.writes_judged, self.longest_write_ms);
            write!(f, ", {writes} writes through a majority in order took at most {ms} ms")?;
        }
        if let Some(healed) = self.healed_after_ms {
            write!(f, ", whole {healed} ms after the last fault")?;
        }
        match &self.failure {
            None => write!(f, "\npassed"),
            Some(failure) => write!(f, "\nFAILED: {failure}"),
        }
    }
}

/// The command that repeats a run.
pub fn command(seed: u64, reduction: &Reduction) -> String {
    format!("jepsen-like {}", arguments(seed, reduction).join(" "))
}

/// The arguments of the process that runs `seed`.
pub fn arguments(seed: u64, reduction: &Reduction) -> Vec<String> {
    let mut arguments = vec!["sim".to_string(), "--seed".into(), seed.to_string()];
    if !reduction.without.is_empty() {
        let names: Vec<&str> = reduction.without.iter().map(|f| f.name()).collect();
        arguments.extend(["--without".into(), names.join(",")]);
    }
    if let Some(operations) = reduction.operations {
        arguments.extend(["--operations".into(), operations.to_string()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::fault::Fault;

    #[test]
    fn the_command_names_what_is_left_out() {
        let reduction = Reduction { without: [Fault::Loss, Fault::OneWay].into(), operations: Some(12) };
        assert_eq!(command(7, &reduction), "jepsen-like sim --seed 7 --without one-way,loss --operations 12");
        assert_eq!(command(7, &Reduction::default()), "jepsen-like sim --seed 7");
    }
}
