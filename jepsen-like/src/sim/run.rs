//! One seed: form a cluster, let clients and faults loose on it, heal it, and judge what was seen.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use hexkv_server::node::Position;
use hexkv_store::entropy;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    cluster::{Cluster, STEP_MS},
    judge, lost_quorum,
    nemesis::Nemesis,
    plan::{Plan, Reduction},
    progress::Progress,
    request::Request,
    trace::Trace,
    workload::Workload,
};
use crate::history::{Event, Kind, LEADER};

/// Longest time for a cluster to form, in simulated milliseconds.
const FORM_MS_MAX: u64 = 30_000;
/// Longest time after the last fault until the cluster is whole, in simulated milliseconds.
pub const HEAL_MS_MAX: u64 = 40_000;
/// A node must serve in one of so many rounds of last reads.
const LAST_READ_ROUNDS_MAX: u32 = 3;
/// Longest time for a round of last reads, in simulated milliseconds.
const LAST_READS_MS_MAX: u64 = 5_000;
/// Most attempts at one of the application's last operations.
const LAST_ATTEMPTS_MAX: usize = 6;
/// Longest time for one of them, in simulated milliseconds.
const LAST_OPERATION_MS_MAX: u64 = 40_000;
/// While the cluster is being healed, the replication factor is asked for this often, in simulated milliseconds.
const FACTOR_INTERVAL_MS: u64 = 2_000;

/// What came of a seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Hash of everything that was seen.
    pub trace: u128,
    /// What is wrong; None = nothing.
    pub failure: Option<String>,
    /// Faults that struck.
    pub strikes: u64,
    /// Client operations that were begun.
    pub operations: usize,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Simulated time from the end of the last fault until the cluster was whole, in milliseconds.
    pub healed_after_ms: Option<u64>,
    /// Longest time in which a majority that was in order acknowledged a write, in milliseconds.
    pub longest_write_ms: u64,
    /// Writes that such a majority acknowledged.
    pub writes_judged: u64,
    /// What clients did and saw.
    pub history: Vec<Event>,
}

/// Runs `seed` on this thread, whose randomness it takes over.
pub fn run(seed: u64, reduction: &Reduction, print_trace: bool) -> Outcome {
    static PANIC: Mutex<Option<String>> = Mutex::new(None);
    std::panic::set_hook(Box::new(|panic| {
        let mut first = PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The first is the cause; turmoil panics after it because a task did.
        first.get_or_insert_with(|| panic.to_string());
    }));
    entropy::seed(xxh3_64(&seed.to_le_bytes()));
    let plan = Plan::new(seed, reduction);
    let mut run = Run {
        workload: Workload::new(&plan),
        nemesis: Nemesis::new(&plan),
        progress: Progress::new(&plan),
        cluster: Cluster::new(plan, Trace::new(print_trace)),
        healed_after_ms: None,
    };
    let result = catch_unwind(AssertUnwindSafe(|| run.all()));
    let failure = match result {
        Ok(result) => result.err(),
        Err(_) => {
            let panic = PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            Some(format!("panic: {}", panic.unwrap_or_default()))
        }
    };
    let history = run.workload.history().to_vec();
    let outcome = Outcome {
        trace: run.cluster.trace.digest(),
        failure,
        strikes: run.nemesis.strikes(),
        operations: history.iter().filter(|e| e.kind == Kind::Invoke).count(),
        simulated_ms: run.cluster.now_ms(),
        healed_after_ms: run.healed_after_ms,
        longest_write_ms: run.progress.longest_ms(),
        writes_judged: run.progress.writes(),
        history,
    };
    // A cluster in which something panicked cannot be dropped in order, and the process ends anyway.
    std::mem::forget(run);
    outcome
}

pub(super) struct Run {
    pub(super) cluster: Cluster,
    pub(super) workload: Workload,
    nemesis: Nemesis,
    progress: Progress,
    healed_after_ms: Option<u64>,
}

impl Run {
    fn all(&mut self) -> Result<(), String> {
        self.form()?;
        self.storm()?;
        self.heal()?;
        if let Some(seed) = self.cluster.plan.lost_quorum {
            lost_quorum::strike(self, seed)?;
        }
        self.end_application()?;
        self.last_reads()?;
        judge::judge(self.workload.history())
    }

    fn form(&mut self) -> Result<(), String> {
        let factor = self.cluster.plan.replication_factor;
        self.until(FORM_MS_MAX, "the cluster forms", |run| run.cluster.unsettled(factor))?;
        self.cluster.cluster_id = self.cluster.hosts[0].node().and_then(|n| n.identity().cluster_id);
        Ok(())
    }

    /// Opens the accounts, if this seed has any, and waits until every node has them.
    fn open_bank(&mut self) -> Result<(), String> {
        if !self.cluster.plan.bank {
            return Ok(());
        }
        let factor = self.cluster.plan.replication_factor;
        let before = self.cluster.core(0).map_or(0, |core| core.state.revision());
        let number = self.workload.number();
        self.cluster.hosts[0].submit(number, Request::OpenBank, None);
        self.until(LAST_READS_MS_MAX, "the bank opens", |run| {
            let opened = (0..run.cluster.hosts.len())
                .any(|node| run.cluster.core(node).is_some_and(|core| core.state.revision() > before));
            if opened { run.cluster.unsettled(factor) } else { Some("no account is there".into()) }
        })
    }

    fn storm(&mut self) -> Result<(), String> {
        self.open_bank()?;
        self.nemesis.begin(&self.cluster.plan, self.cluster.now_ms());
        let end = self.cluster.now_ms() + self.cluster.plan.storm_ms;
        while self.cluster.now_ms() < end {
            self.workload.begin(&mut self.cluster);
            self.step()?;
            self.progress.step(&mut self.cluster, &self.nemesis, &mut self.workload)?;
        }
        Ok(())
    }

    fn heal(&mut self) -> Result<(), String> {
        self.nemesis.heal(&mut self.cluster, &mut self.workload);
        let began_ms = self.cluster.now_ms();
        let factor = self.cluster.plan.replication_factor;
        self.until(HEAL_MS_MAX, "the cluster heals", |run| {
            if run.cluster.now_ms() % FACTOR_INTERVAL_MS < STEP_MS {
                run.nemesis.set_replication_factor(&run.cluster, &mut run.workload);
            }
            let busy = (!run.workload.is_idle()).then(|| "operations are under way".to_string());
            busy.or_else(|| run.nemesis.unsettled()).or_else(|| run.cluster.unsettled(factor))
        })?;
        self.healed_after_ms = Some(self.cluster.now_ms() - began_ms);
        Ok(())
    }

    /// What the application does last, each through one node after the other until one does it.
    fn end_application(&mut self) -> Result<(), String> {
        for attempts in self.workload.last_of_application(LAST_ATTEMPTS_MAX) {
            let f = attempts[0].f;
            let mut refusal = None;
            for (attempt, operation) in attempts.into_iter().enumerate() {
                let from = self.workload.history().len();
                let node = attempt % self.cluster.hosts.len();
                self.workload.begin_last(&mut self.cluster, node, operation);
                self.until(LAST_OPERATION_MS_MAX, "the application ends", |run| {
                    (!run.workload.is_idle()).then(|| format!("{f} is under way"))
                })?;
                let ended =
                    self.workload.history()[from..].iter().rfind(|e| e.f == f).expect("it was begun, and has ended");
                if ended.kind == Kind::Ok {
                    refusal = None;
                    break;
                }
                refusal.clone_from(&ended.error);
            }
            if let Some(why) = refusal {
                return Err(format!("after healing, {f} is not done: {why}"));
            }
        }
        // The states are compared next: nothing may change them any more, and every node has to have what did.
        let factor = self.cluster.plan.replication_factor;
        self.until(HEAL_MS_MAX, "all is quiet", |run| {
            let holds = |node: &usize| {
                let holder = run.cluster.hosts[*node].node().is_some_and(|n| n.position() == Position::Holder);
                holder && run.cluster.core(*node).is_some_and(|core| !core.state.leases(0, 1).items.is_empty())
            };
            let held = (0..run.cluster.hosts.len()).find(holds);
            held.map(|node| format!("node {node} still has leases")).or_else(|| run.cluster.unsettled(factor))
        })
    }

    /// Reads through every node. A stream that lost a segment stalls for good here, and is given up only after a while: so
    /// a node may refuse in the first rounds.
    fn last_reads(&mut self) -> Result<(), String> {
        let mut result = Ok(());
        for _ in 0..LAST_READ_ROUNDS_MAX {
            result = self.read_everywhere();
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn read_everywhere(&mut self) -> Result<(), String> {
        let from = self.workload.history().len();
        self.workload.begin_final_reads(&mut self.cluster);
        self.until(LAST_READS_MS_MAX, "every node answers", |run| {
            (!run.workload.is_idle()).then(|| "reads are under way".to_string())
        })?;
        let refused = self.workload.history()[from..].iter().find(|e| e.kind == Kind::Fail && e.f == "read");
        refused.map_or(Ok(()), |e| Err(format!("after healing {:?} does not serve: {:?}", e.node, e.error)))
    }

    pub(super) fn step(&mut self) -> Result<(), String> {
        self.nemesis.step(&mut self.cluster, &mut self.workload)?;
        self.cluster.step().map_err(|violation| violation.to_string())?;
        for (node, term) in std::mem::take(&mut self.cluster.new_leaders) {
            self.workload.note_fault(&mut self.cluster, LEADER, json!({"term": term, "node": Plan::host(node)}));
        }
        let answers = std::mem::take(&mut *self.cluster.answers.borrow_mut());
        for (number, answer) in answers {
            self.workload.complete(&mut self.cluster, number, answer);
        }
        Ok(())
    }

    /// Steps until `missing` says that nothing is missing.
    pub(super) fn until(
        &mut self,
        ms_max: u64,
        what: &str,
        mut missing: impl FnMut(&mut Self) -> Option<String>,
    ) -> Result<(), String> {
        let deadline = self.cluster.now_ms() + ms_max;
        loop {
            let Some(why) = missing(self) else { return Ok(()) };
            if self.cluster.now_ms() >= deadline {
                return Err(format!("not within {ms_max} ms: {what}; {why}"));
            }
            self.step()?;
        }
    }
}
