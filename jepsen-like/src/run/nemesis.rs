//! The strikes of a run, one after the other.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::time::Instant;

use super::Trouble;
use super::record::Strike;
use crate::cluster::Cluster;
use crate::fault::{Fault, Recovery, Scene};
use crate::history::{Entry, Recorder};
use crate::schedule::Step;
use crate::workload::Crew;

/// Longest strike, healing included: joining and catching up take up to 70 s by themselves.
const STRIKE_TIMEOUT: Duration = Duration::from_secs(240);
/// Between two looks at clients and processes while nothing else happens.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// What breaks, and what came of it so far.
pub(super) struct Nemesis {
    steps: Vec<Step>,
    time: Duration,
    began: Instant,
    /// The strikes that were carried out.
    pub strikes: Vec<Strike>,
}

impl Nemesis {
    pub fn new(steps: Vec<Step>, time: Duration, began: Instant) -> Self {
        Self { steps, time, began, strikes: Vec::new() }
    }

    /// Strikes until the time is over; a strike that has begun is finished.
    pub async fn rage(&mut self, cluster: &mut Cluster, crew: &mut Crew, recorder: &Recorder) -> Result<(), Trouble> {
        let end = Instant::now() + self.time;
        for step in std::mem::take(&mut self.steps) {
            if Instant::now() + step.quiet >= end {
                break;
            }
            watch(Instant::now() + step.quiet, cluster, crew).await?;
            let strike = self.strike(step, cluster, recorder).await?;
            tracing::info!(fault = strike.fault, bit = strike.effect.bit, "{}", strike.effect.evidence);
            self.strikes.push(strike);
            crew.trouble()?;
            cluster.casualties()?;
        }
        watch(end, cluster, crew).await
    }

    async fn strike(&self, step: Step, cluster: &mut Cluster, recorder: &Recorder) -> Result<Strike, Trouble> {
        let (name, at) = (step.fault.name(), self.began.elapsed());
        let mut rng = StdRng::seed_from_u64(step.seed);
        let mut recovery: Option<Recovery> = None;
        let scene = Scene::new(cluster, &mut rng, step.hold, name, recorder, &mut recovery);
        let struck = tokio::time::timeout(STRIKE_TIMEOUT, step.fault.strike(scene)).await;
        let effect = struck.map_err(|_| Trouble::StrikeTooLong { fault: name, limit: STRIKE_TIMEOUT })??;
        let recovered = match recovery {
            Some(recovery) => recovery.time().await,
            None => unreachable!("{name} says when it has healed"),
        };
        let recovery_ms = recovered.map(millis);
        let value = json!({"phase": "end", "bit": effect.bit, "evidence": effect.evidence, "facts": effect.facts,
            "recovery_ms": recovery_ms});
        recorder.record(Entry::nemesis(name).value(value))?;
        let took = self.began.elapsed() - at;
        Ok(Strike {
            fault: name.to_owned(),
            at_ms: millis(at),
            took_ms: millis(took),
            hold_ms: millis(step.hold),
            seed: step.seed,
            recovery_ms,
            effect,
        })
    }

    /// The faults without any strike that had its effect, and why.
    pub fn vacuous(&self, faults: &[&'static dyn Fault]) -> Vec<String> {
        let words = |fault: &&'static dyn Fault| {
            let strikes: Vec<_> = self.strikes.iter().filter(|strike| strike.fault == fault.name()).collect();
            match strikes.iter().any(|strike| strike.effect.bit) {
                true => None,
                false if strikes.is_empty() => Some(format!("{}: never struck, the time was too short", fault.name())),
                false => Some(format!("{}: no strike had an effect", fault.name())),
            }
        };
        faults.iter().filter_map(words).collect()
    }

    /// From the last heal to the first write.
    pub fn last_recovery_ms(&self) -> Option<u64> {
        self.strikes.last().and_then(|strike| strike.recovery_ms)
    }
}

/// Lets time pass until `end`, as long as clients and nodes are well.
async fn watch(end: Instant, cluster: &mut Cluster, crew: &mut Crew) -> Result<(), Trouble> {
    while Instant::now() < end {
        crew.trouble()?;
        cluster.casualties()?;
        tokio::time::sleep_until(end.min(Instant::now() + WATCH_INTERVAL)).await;
    }
    Ok(())
}

/// Milliseconds, rounded down.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a run is shorter than 500 million years")
}
