//! What a seed decides before the first step: how large the cluster is, how it is set, and which faults strike when.

use std::{collections::BTreeSet, time::Duration};

use hexkv_server::config::Config;
use hexkv_store::driver::Driver;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    application::{self, NAMES},
    discovery::{Discovery, Way},
    fault::{Fault, Strike},
};

/// Simulated time in which clients work and faults strike, in milliseconds.
const STORM_MS: u64 = 9_000;
/// Silences after which a voter is replaced: about as soon as it counts as down, within a strike, never.
const REPLACE_AFTER: [&str; 3] = ["1001ms", "2s", "0s"];
/// Share of the seeds with an application beside the registers.
const APPLICATION_SHARE: f64 = 0.6;
/// More revisions than a run makes.
const HISTORY_REVISIONS_ALL: u64 = 100_000;
/// Share of the fault kinds that a seed picks.
const FAULT_SHARE: f64 = 0.35;
/// Share of the seeds whose cluster loses its quorum at the end, where nobody needs the whole history.
const LOST_QUORUM_SHARE: f64 = 0.25;
/// Most strikes of one kind.
const STRIKES_MAX: u32 = 4;
/// Longest strike, in milliseconds.
const STRIKE_MS_MAX: u64 = 2_500;
/// Of this many seeds one has all faults strike one node, and for longer: the one with this remainder. A rule instead of a
/// chance, so that seeds that are known for what they find keep it.
const ONE_VICTIM_IN: u64 = 6;
const ONE_VICTIM_REMAINDER: u64 = 4;
/// Simulated time in which faults strike one node, in milliseconds.
const ONE_VICTIM_STORM_MS: u64 = 14_000;
/// How long they last, in milliseconds.
const ONE_VICTIM_STRIKE_MS: std::ops::RangeInclusive<u64> = 500..=9_000;
/// Share of the fault kinds that such a seed picks: of those that stop no node and report no error, of the others.
const ONE_VICTIM_SHARES: (f64, f64) = (0.45, 0.15);
/// `ELECTION_TIMEOUT_MAX` of a node whose timers do not drift, in milliseconds.
pub const ELECTION_TIMEOUT_MAX_MS: u64 = 400;
/// A write-ahead log segment, in bytes: small, so that rotation and purge happen all the time.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// Raft port of every node.
pub const RAFT_PORT: u16 = 9100;
/// HTTP port of every node.
pub const HTTP_PORT: u16 = 4000;

/// What can be left out of a seed, to find out what it takes to fail.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reduction {
    /// Fault kinds that do not strike.
    pub without: BTreeSet<Fault>,
    /// Operations that clients begin at most.
    pub operations: Option<usize>,
}

/// What a seed decides.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// `CLUSTER_SIZE`: how many of them are planned. All, unless a test has it otherwise.
    pub planned: usize,
    /// How they find each other.
    pub discovery: Discovery,
    /// How many of them vote.
    pub replication_factor: u32,
    /// How many clients.
    pub clients: usize,
    /// How many registers.
    pub registers: u64,
    /// Whether money moves beside the registers.
    pub bank: bool,
    /// Which workload of [`application::NAMES`] there is beside the registers.
    pub application: Option<&'static str>,
    /// Operations that clients begin at most.
    pub operations: usize,
    /// Longest pause of a client between two operations, in milliseconds.
    pub think_ms_max: u64,
    /// Longest latency of a message, in milliseconds.
    pub latency_ms_max: u64,
    /// Longest time for which a disk delays a write, in milliseconds.
    pub disk_ms_max: u64,
    /// Whether all faults strike one node, and the rest are left alone.
    pub one_victim: bool,
    /// Simulated time in which clients work and faults strike, in milliseconds.
    pub storm_ms: u64,
    /// What strikes, by time.
    pub strikes: Vec<Strike>,
    /// Whether the quorum is lost at the end, and what decides how.
    pub lost_quorum: Option<u64>,
    /// Per node: timers run at this many thousandths of their nominal rate.
    pub timer_permille: Vec<u64>,
    /// `REPLACE_AFTER` of all nodes.
    pub replace_after: &'static str,
    snapshot_log_bytes_min: u64,
    log_entries_kept: u64,
    history_revisions: u64,
}

/// A stream of randomness of its own for each purpose, so that leaving one out changes no other.
pub fn stream(seed: u64, purpose: &str) -> StdRng {
    StdRng::seed_from_u64(xxh3_64(format!("{seed}/{purpose}").as_bytes()))
}

impl Plan {
    /// The plan of `seed`, with what `reduction` leaves out.
    pub fn new(seed: u64, reduction: &Reduction) -> Self {
        let mut rng = stream(seed, "plan");
        let nodes = if rng.random_bool(0.7) { 3 } else { 5 };
        let replication_factor = if nodes == 5 && rng.random_bool(0.6) { 5 } else { 3 };
        let drifting = rng.random_bool(0.3);
        let mut timer = || if drifting { rng.random_range(800..1250) } else { 1000 };
        let timer_permille = (0..nodes).map(|_| timer()).collect();
        let mut plan = Self {
            seed,
            nodes,
            planned: nodes,
            discovery: Discovery::of(seed),
            replication_factor,
            clients: rng.random_range(3..=8),
            registers: rng.random_range(1..=4),
            bank: rng.random_bool(0.4),
            application: None,
            operations: rng.random_range(150..=600),
            think_ms_max: *[5, 20, 100].get(rng.random_range(0..3)).expect("three pauses"),
            latency_ms_max: *[2, 8, 30].get(rng.random_range(0..3)).expect("three latencies"),
            disk_ms_max: *[0, 0, 2, 10, 40].get(rng.random_range(0..5)).expect("five disks"),
            one_victim: seed % ONE_VICTIM_IN == ONE_VICTIM_REMAINDER,
            storm_ms: STORM_MS,
            strikes: Vec::new(),
            lost_quorum: None,
            timer_permille,
            replace_after: REPLACE_AFTER[stream(seed, "healing").random_range(0..REPLACE_AFTER.len())],
            snapshot_log_bytes_min: *[2048, 8192, 1 << 30].get(rng.random_range(0..3)).expect("three thresholds"),
            log_entries_kept: *[0, 5, 50].get(rng.random_range(0..3)).expect("three lengths"),
            history_revisions: *[10, 100, HISTORY_REVISIONS_ALL].get(rng.random_range(0..3)).expect("three lengths"),
        };
        let mut rng = stream(seed, "application");
        plan.application = rng.random_bool(APPLICATION_SHARE).then(|| NAMES[rng.random_range(0..NAMES.len())]);
        if plan.application.is_some_and(application::needs_history) {
            plan.history_revisions = HISTORY_REVISIONS_ALL;
        }
        plan.operations = plan.operations.min(reduction.operations.unwrap_or(usize::MAX));
        if plan.one_victim {
            plan.storm_ms = ONE_VICTIM_STORM_MS;
            plan.strikes = strikes_of_one_node(seed, &reduction.without);
        } else {
            plan.strikes = strikes(seed, &reduction.without);
        }
        let mut rng = stream(seed, Fault::LostQuorum.name());
        let due = rng.random_bool(LOST_QUORUM_SHARE) && !reduction.without.contains(&Fault::LostQuorum);
        // History ends with the old cluster.
        let possible = !plan.application.is_some_and(application::needs_history);
        plan.lost_quorum = (due && possible).then(|| rng.random());
        let (dns, one_victim) = (plan.discovery.way == Way::Dns, plan.one_victim);
        plan.strikes.retain(|strike| match strike.fault {
            Fault::Names => dns,
            Fault::Rollback => one_victim,
            _ => true,
        });
        plan
    }

    /// The kinds of faults that strike.
    pub fn faults(&self) -> BTreeSet<Fault> {
        self.strikes.iter().map(|s| s.fault).chain(self.lost_quorum.map(|_| Fault::LostQuorum)).collect()
    }

    /// What runs work that blocks: nothing but the task that asks for it.
    pub fn driver(&self) -> Driver {
        match self.disk_ms_max {
            0 => Driver::Task,
            ms => Driver::SlowTask(Duration::from_millis(ms)),
        }
    }

    /// Name of node `index`, as turmoil's hosts are called.
    pub fn host(index: usize) -> String {
        format!("host{}", index + 1)
    }

    /// The configuration of node `index`.
    ///
    /// # Panics
    /// When the server refuses it: the simulation is out of date then.
    pub fn config(&self, index: usize) -> Config {
        let name = |i: usize| format!("hex_hub{}@{}", i + 1, Self::host(i));
        let others: Vec<String> =
            (0..self.nodes).filter(|i| *i != index).map(|i| format!("{}:{RAFT_PORT}", name(i))).collect();
        let timer = |ms: u64| (ms * 1000 / self.timer_permille[index]).to_string();
        let environment = [
            ("NODE_NAME", name(index)),
            ("CLUSTER_SIZE", self.planned.to_string()),
            ("REPLICATION_FACTOR", self.replication_factor.to_string()),
            ("REPLACE_AFTER", self.replace_after.into()),
            ("BIND", "0.0.0.0".into()),
            ("PORT", HTTP_PORT.to_string()),
            ("RAFT_PORT", RAFT_PORT.to_string()),
            ("EPMD_PORT", "0".into()),
            ("COOKIE", "simulated-cluster".into()),
            ("ENGINE", "memory".into()),
            ("DATA_DIR", "/data".into()),
            ("HEARTBEAT_INTERVAL", timer(100)),
            ("ELECTION_TIMEOUT_MIN", timer(200)),
            ("ELECTION_TIMEOUT_MAX", timer(ELECTION_TIMEOUT_MAX_MS)),
            ("SNAPSHOT_LOG_BYTES_MIN", self.snapshot_log_bytes_min.to_string()),
            ("LOG_ENTRIES_KEPT", self.log_entries_kept.to_string()),
            ("HISTORY_REVISIONS", self.history_revisions.to_string()),
            ("HISTORY_AGE", "0s".into()),
        ];
        let environment =
            environment.into_iter().chain(self.discovery.settings(index, &others)).map(|(k, v)| (k.into(), v.into()));
        let (mut config, _) = Config::load(["server"], environment).expect("the server takes this configuration");
        // Below what the option allows: segments are kept in memory here, twice.
        config.wal_segment_bytes = SEGMENT_BYTES;
        config
    }
}

fn strikes(seed: u64, without: &BTreeSet<Fault>) -> Vec<Strike> {
    let mut strikes = Vec::new();
    for fault in Fault::ALL.into_iter().filter(|fault| *fault != Fault::LostQuorum) {
        let mut rng = stream(seed, fault.name());
        let picked = rng.random_bool(FAULT_SHARE);
        let count = rng.random_range(1..=STRIKES_MAX);
        let drawn: Vec<Strike> = (0..count)
            .map(|_| Strike {
                fault,
                at_ms: rng.random_range(0..STORM_MS),
                length_ms: rng.random_range(50..=STRIKE_MS_MAX),
                seed: rng.random(),
            })
            .collect();
        if picked && !without.contains(&fault) {
            strikes.extend(drawn);
        }
    }
    strikes.sort_by_key(|s| (s.at_ms, s.seed));
    strikes
}

/// Of a seed in which all faults strike one node.
fn strikes_of_one_node(seed: u64, without: &BTreeSet<Fault>) -> Vec<Strike> {
    let mut strikes = Vec::new();
    for fault in Fault::OF_ONE_NODE {
        let mut rng = stream(seed, &format!("one victim/{fault}"));
        let quiet = matches!(fault, Fault::StalledDisk | Fault::MtuHole | Fault::NoConnects | Fault::Resolver);
        let picked = rng.random_bool(if quiet { ONE_VICTIM_SHARES.0 } else { ONE_VICTIM_SHARES.1 });
        let strike = Strike {
            fault,
            at_ms: rng.random_range(0..ONE_VICTIM_STORM_MS / 2),
            length_ms: rng.random_range(ONE_VICTIM_STRIKE_MS),
            seed: rng.random(),
        };
        if picked && !without.contains(&fault) {
            strikes.push(strike);
        }
    }
    strikes.sort_by_key(|s| (s.at_ms, s.seed));
    strikes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything_and_leaving_a_fault_out_changes_nothing_else() {
        let whole = Plan::new(11, &Reduction::default());
        assert_eq!(whole.strikes, Plan::new(11, &Reduction::default()).strikes);
        let left_out = *whole.faults().first().expect("this seed has faults");
        let reduction = Reduction { without: [left_out].into(), operations: Some(7) };
        let reduced = Plan::new(11, &reduction);
        let rest: Vec<Strike> = whole.strikes.iter().filter(|s| s.fault != left_out).copied().collect();
        assert_eq!(reduced.strikes, rest);
        assert_eq!((reduced.operations, reduced.nodes), (7, whole.nodes));
    }

    #[test]
    fn every_kind_of_fault_strikes_in_some_seed_and_every_configuration_is_accepted() {
        let (mut seen, mut applications, mut ways) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        // Enough for what only seeds with one victim draw.
        for seed in 0..1_000 {
            let plan = Plan::new(seed, &Reduction::default());
            seen.extend(plan.faults());
            applications.extend(plan.application);
            ways.push(plan.discovery.way);
            for index in 0..plan.nodes {
                plan.config(index);
            }
        }
        assert_eq!(seen.len(), Fault::ALL.len());
        assert_eq!(applications, NAMES.into());
        assert!([Way::List, Way::Dns, Way::Gossip].iter().all(|way| ways.contains(way)));
    }
}
