//! What clients do. A workload is one file and one line in [`ALL`].
//!
//! Each client is one task with one [`Session`]; it does one operation at a time, with one attempt, and writes down
//! what it did and what came of it.

mod append;
mod bank;
mod client;
mod idempotent;
mod lease;
mod lock;
mod optimistic;
mod outcome;
mod register;
mod set;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hexkv_client::Client;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::history::Mode;

pub use client::{Crew, CrewPlan};
pub use lease::PREFIX as LEASE_PREFIX;
pub use outcome::Outcome;

/// Longest time for one operation, as the client sees it. Longer than the nodes' `REQUEST_TIMEOUT`, which lets them say
/// that nothing was changed.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time to open a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// One operation, before it is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// As in the history.
    pub f: &'static str,
    /// As in the history.
    pub key: Option<String>,
    /// The argument.
    pub value: Value,
    /// How a read is asked for.
    pub mode: Option<Mode>,
    /// Position of the node that is asked; the client's own unless given.
    pub via: Option<usize>,
}

impl Operation {
    /// An operation on one key.
    pub fn on(key: &str, f: &'static str, value: Value) -> Self {
        Self { f, key: Some(key.to_owned()), value, mode: None, via: None }
    }

    /// An operation on everything.
    pub fn whole(f: &'static str, value: Value) -> Self {
        Self { f, key: None, value, mode: None, via: None }
    }
}

/// What tells sessions how far the run is.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's clock, since the run began.
    Machine(std::time::Instant),
    /// Simulated time, in milliseconds, as the simulation sets it.
    Simulated(Arc<AtomicU64>),
}

impl Clock {
    /// Time since the run began.
    pub fn now(&self) -> Duration {
        match self {
            Self::Machine(began) => began.elapsed(),
            Self::Simulated(now_ms) => Duration::from_millis(now_ms.load(Ordering::Relaxed)),
        }
    }
}

/// What all sessions of a run share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// How far the run is.
    pub clock: Clock,
    /// Number of sessions.
    pub sessions: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Operations begun so far, by all; what a session makes of it is its own affair.
    pub begun: Arc<AtomicU64>,
    /// What is to be done once more after everything has healed, by names that the sessions choose.
    pub unsettled: Arc<Mutex<BTreeMap<String, Operation>>>,
    /// The resource that locks protect: the largest fencing token that it has seen, by lock.
    pub largest_tokens: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Shared {
    /// Nothing has begun.
    pub fn new(sessions: u64, nodes: usize) -> Self {
        Self {
            clock: Clock::Machine(std::time::Instant::now()),
            sessions,
            nodes,
            begun: Arc::default(),
            unsettled: Arc::default(),
            largest_tokens: Arc::default(),
        }
    }
}

/// One client's side of a workload.
pub trait Session: Send {
    /// Chooses the next operation. All choices come from `rng`.
    fn next(&mut self, rng: &mut StdRng) -> Operation;

    /// Learns what came of an operation that it chose, however it was sent.
    fn learn(&mut self, _operation: &Operation, _outcome: &Outcome) {}

    /// What an operation that asks nobody comes to; None for the others, which are sent.
    fn at_once(&mut self, _operation: &Operation) -> Option<Outcome> {
        None
    }

    /// Sends it, once, and judges the answer.
    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome>;
}

/// A kind of work.
pub trait Workload: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// One line: what is done, and what judges it.
    fn about(&self) -> &'static str;

    /// The checkers that must find something to judge in its history; without their verdicts a run proves nothing.
    fn checkers(&self) -> &'static [&'static str];

    /// What has to be there before the first operation.
    fn prepare<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, Result<(), hexkv_client::Error>> {
        Box::pin(async { Ok(()) })
    }

    /// The side of client `index`.
    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session>;

    /// What is read after everything has healed, by sessions in turn.
    fn last_reads(&self, shared: &Shared) -> Vec<Operation>;
}

/// The workload `name`.
pub fn workload(name: &str) -> Option<&'static dyn Workload> {
    ALL.iter().copied().find(|workload| workload.name() == name)
}

/// All workloads.
pub static ALL: &[&dyn Workload] = &[
    &register::Register,
    &register::ReadModes,
    &set::Set,
    &bank::Bank,
    &append::Append,
    &watch::Watching,
    &lock::Locks,
    &lease::Leases,
    &idempotent::Idempotent,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker;

    #[test]
    fn every_workload_is_judged_by_a_checker_that_exists() {
        for workload in ALL {
            assert!(!workload.checkers().is_empty(), "{}", workload.name());
            for name in workload.checkers() {
                assert!(checker::all().iter().any(|checker| checker.name() == *name), "{}: {name}", workload.name());
            }
        }
    }
}
