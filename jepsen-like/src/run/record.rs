//! `run.json`: what was run, what broke, and what came of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ending::Ending;
use crate::fault::{Effect, RECOVERY_ALLOWANCE, RECOVERY_BUDGET};
use crate::history::{Event, Kind, Process};
use crate::links::Counts;
use crate::report::RunInfo;

/// One strike of a fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Strike {
    /// Which fault.
    pub fault: String,
    /// When it began, in milliseconds of the history's time.
    pub at_ms: u64,
    /// How long it took, healing included.
    pub took_ms: u64,
    /// How long it stayed broken.
    pub hold_ms: u64,
    /// Where its choices came from.
    pub seed: u64,
    /// From everything being whole to the first acknowledged write; None = never.
    pub recovery_ms: Option<u64>,
    /// What it did.
    pub effect: Effect,
}

/// How long the cluster took to accept writes after each strike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recoveries {
    /// Twice the election timeout.
    pub budget_ms: u64,
    /// What is added before the run fails.
    pub allowance_ms: u64,
    /// Strikes after which it took no longer than the budget.
    pub within_budget: usize,
    /// All strikes.
    pub strikes: usize,
    /// The longest; None when there was none, or one never ended.
    pub longest_ms: Option<u64>,
}

/// How operations ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// They happened.
    pub ok: u64,
    /// They did not.
    pub fail: u64,
    /// Nobody knows.
    pub info: u64,
}

/// `run.json`.
#[derive(Debug, Clone, Serialize)]
pub struct RunRecord {
    /// What the report needs to know.
    pub info: RunInfo,
    /// Whether the run is a success: all verdicts valid, no fault vacuous, healed in time, nothing went wrong.
    pub passed: bool,
    /// Operations by `f`.
    pub operations: BTreeMap<String, Tally>,
    /// The strikes, in the order of time.
    pub strikes: Vec<Strike>,
    /// Strikes and those that had their effect, by fault.
    pub faults: BTreeMap<String, (usize, usize)>,
    /// How fast the cluster was back.
    pub recovery: Recoveries,
    /// The applied index at which the nodes' states were compared at the end.
    pub compared_at_index: Option<u64>,
    /// What the proxies did to all links together.
    pub links: Counts,
}

impl RunRecord {
    /// Why the run is no success, apart from the verdicts.
    pub fn failures(&self) -> Vec<String> {
        let vacuous = self.info.vacuous.iter().map(|vacuous| format!("vacuous: {vacuous}"));
        self.info.problems.iter().cloned().chain(vacuous).collect()
    }

    pub(super) fn new(
        mut info: RunInfo,
        events: &[Event],
        strikes: Vec<Strike>,
        ending: Ending,
        links: Counts,
    ) -> Self {
        let operations = tally(events);
        let recovery = recoveries(&strikes);
        info.problems.extend(late(&strikes));
        if info.problems.is_empty() && info.vacuous.is_empty() && !ending.whole {
            info.problems.push("the nodes did not become one cluster again".to_owned());
        }
        if operations.values().all(|tally| tally.ok == 0) {
            info.problems.push("vacuous: no operation of a client was acknowledged".to_owned());
        }
        // The report has words of its own for vacuous faults.
        info.valid &= info.problems.is_empty();
        let mut faults: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for strike in &strikes {
            let (struck, bit) = faults.entry(strike.fault.clone()).or_default();
            *struck += 1;
            *bit += usize::from(strike.effect.bit);
        }
        Self {
            passed: info.valid && info.vacuous.is_empty(),
            info,
            operations,
            strikes,
            faults,
            recovery,
            compared_at_index: ending.compared_at,
            links,
        }
    }
}

fn tally(events: &[Event]) -> BTreeMap<String, Tally> {
    let mut operations: BTreeMap<String, Tally> = BTreeMap::new();
    for event in events.iter().filter(|event| matches!(event.process, Process::Client(_)) && event.f != "hash") {
        let tally = operations.entry(event.f.clone()).or_default();
        match event.kind {
            Kind::Invoke => {}
            Kind::Ok => tally.ok += 1,
            Kind::Fail => tally.fail += 1,
            Kind::Info => tally.info += 1,
        }
    }
    operations
}

fn recoveries(strikes: &[Strike]) -> Recoveries {
    let times: Option<Vec<u64>> = strikes.iter().map(|strike| strike.recovery_ms).collect();
    let within = |strike: &&Strike| strike.recovery_ms.is_some_and(|ms| u128::from(ms) <= RECOVERY_BUDGET.as_millis());
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).expect("a constant of seconds");
    Recoveries {
        budget_ms: millis(RECOVERY_BUDGET),
        allowance_ms: millis(RECOVERY_ALLOWANCE),
        within_budget: strikes.iter().filter(within).count(),
        strikes: strikes.len(),
        longest_ms: times.and_then(|times| times.into_iter().max()),
    }
}

/// The strikes after which writes came back too late.
fn late(strikes: &[Strike]) -> impl Iterator<Item = String> {
    let allowed = (RECOVERY_BUDGET + RECOVERY_ALLOWANCE).as_millis();
    strikes.iter().filter_map(move |strike| {
        let took = match strike.recovery_ms {
            Some(ms) if u128::from(ms) <= allowed => return None,
            Some(ms) => format!("{ms} ms"),
            None => "for ever".to_owned(),
        };
        Some(format!(
            "no writes {took} after {} at {} ms healed ({allowed} ms are allowed)",
            strike.fault, strike.at_ms
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn strike(recovery_ms: Option<u64>) -> Strike {
        let effect = Effect { bit: true, evidence: String::new(), facts: Value::Null };
        Strike { fault: "kill".into(), at_ms: 0, took_ms: 0, hold_ms: 0, seed: 0, recovery_ms, effect }
    }

    #[test]
    fn late_and_lost_recoveries_are_problems() {
        let allowed = u64::try_from((RECOVERY_BUDGET + RECOVERY_ALLOWANCE).as_millis()).unwrap();
        assert_eq!(late(&[strike(Some(0)), strike(Some(allowed))]).count(), 0);
        assert_eq!(late(&[strike(Some(allowed + 1)), strike(None)]).count(), 2);
        assert_eq!(recoveries(&[strike(Some(5)), strike(None)]).longest_ms, None);
        assert_eq!(recoveries(&[strike(Some(5)), strike(Some(801))]).within_budget, 1);
    }
}
