//! The simulated cluster: turmoil's network, the machines, and what the invariants know of them.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hexkv_server::{core::Core, node::Position as Place};
use hexkv_store::{NodeId, fs::FaultyFs, log::LogStore};
use openraft::async_runtime::WatchReceiver;
use turmoil::Sim;

use super::{
    discovery::Surroundings,
    environment::EPOCH_MS,
    host::{Answers, Host},
    invariants::{Ledger, Observation, Violation},
    links::Links,
    observe,
    plan::Plan,
    seats::Seats,
    trace::Trace,
    wires::Wires,
};

/// One step of simulated time, in milliseconds.
pub const STEP_MS: u64 = 1;
/// Segments of a stream that the receiver has not read yet: a window of about a megabyte.
const STREAM_SEGMENTS_MAX: usize = 1024;

/// How a machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    /// Power cut; the seed decides what is lost of what was not synced.
    Power(u64),
    /// The process dies.
    Process,
    /// The disk is replaced by an empty one.
    Disk,
}

/// The simulated cluster.
pub struct Cluster {
    /// What the seed decided.
    pub plan: Plan,
    /// turmoil.
    pub sim: Sim<'static>,
    /// The machines, by index.
    pub hosts: Vec<Rc<Host>>,
    /// Who hears whom.
    pub links: Links,
    /// What nodes find each other with.
    pub surroundings: Surroundings,
    /// Who lost its seat, and whether by right.
    pub seats: Seats,
    /// What is seen.
    pub trace: Trace,
    /// Answers that were not looked at yet.
    pub answers: Answers,
    /// The cluster that was formed first, by all nodes.
    pub cluster_id: Option<u64>,
    /// Who began to lead the cluster, with the term, and was not looked at yet.
    pub new_leaders: Vec<(usize, u64)>,
    /// The highest term that somebody led the cluster in.
    led_term: u64,
    /// What was seen, by cluster: a node that left has one of its own.
    ledgers: BTreeMap<u64, Ledger>,
    last_looks: Vec<Option<Observation>>,
    /// Of machines that are on: the log of the last core.
    last_logs: Vec<Option<LastLog>>,
}

struct LastLog {
    cluster_id: u64,
    node: NodeId,
    life: u64,
    log: LogStore,
}

impl Cluster {
    /// All machines of `plan`, switched on.
    pub fn new(plan: Plan, trace: Trace) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_millis(EPOCH_MS))
            .tick_duration(Duration::from_millis(STEP_MS))
            .simulation_duration(Duration::MAX)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(Duration::from_millis(plan.latency_ms_max))
            .tcp_capacity(STREAM_SEGMENTS_MAX)
            .enable_random_order()
            .build();
        let answers = Answers::default();
        let addresses: Vec<_> = (0..plan.nodes).map(|index| sim.lookup(Plan::host(index))).collect();
        let wires = Wires::new(addresses.clone());
        let surroundings = Surroundings::new(plan.seed, &plan.discovery, addresses);
        let host = |index| {
            let (sight, transport) = (surroundings.of(index), wires.of(index));
            Host::new(plan.config(index), plan.driver(), sight, transport, answers.clone())
        };
        let hosts: Vec<Rc<Host>> = (0..plan.nodes).map(|index| Rc::new(host(index))).collect();
        for (index, host) in hosts.iter().enumerate() {
            let host = host.clone();
            sim.host(Plan::host(index), move || host.clone().software());
        }
        Self {
            links: Links::new(plan.nodes, wires),
            surroundings,
            seats: Seats::new(plan.nodes),
            last_looks: vec![None; plan.nodes],
            last_logs: (0..plan.nodes).map(|_| None).collect(),
            new_leaders: Vec::new(),
            led_term: 0,
            ledgers: BTreeMap::new(),
            cluster_id: None,
            sim,
            hosts,
            trace,
            answers,
            plan,
        }
    }

    /// Simulated time since the beginning, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.sim.elapsed().as_millis() as u64
    }

    /// One step of simulated time, and a look at all nodes.
    ///
    /// # Errors
    /// An invariant does not hold.
    ///
    /// # Panics
    /// When a task of a node panicked.
    pub fn step(&mut self) -> Result<(), Violation> {
        if let Err(e) = self.sim.step() {
            panic!("the software of a host never ends, but: {e}");
        }
        for index in 0..self.hosts.len() {
            self.look(index)?;
        }
        let mut seats = std::mem::replace(&mut self.seats, Seats::new(0));
        let kept = seats.observe(self);
        self.seats = seats;
        kept
    }

    fn look(&mut self, index: usize) -> Result<(), Violation> {
        let Some(core) = self.core(index) else {
            // It ends in this very step, or did before.
            self.look_at_ended_log(index);
            return Ok(());
        };
        let life = self.hosts[index].life.get() * self.hosts.len() as u64 + index as u64;
        if let Some(cluster_id) = self.cluster_of(index) {
            self.last_logs[index] = Some(LastLog { cluster_id, node: core.id, life, log: core.log.clone() });
        }
        let Some(mut seen) = observe::look(&core, life) else {
            self.look_at_ended_log(index);
            return Ok(());
        };
        if self.last_looks[index].as_ref() == Some(&seen) {
            return Ok(());
        }
        self.last_looks[index] = Some(seen.clone());
        let now_ms = self.now_ms();
        self.trace.note(now_ms, &seen);
        let Some(cluster_id) = self.cluster_of(index) else { return Ok(()) };
        if let Some(ballot) = seen.leads.filter(|b| b.term > self.led_term && self.cluster_id == Some(cluster_id)) {
            self.led_term = ballot.term;
            self.new_leaders.push((index, ballot.term));
        }
        let ledger = self.ledgers.entry(cluster_id).or_default();
        if !observe::read_entries(&core, ledger.settled(core.id, life), &mut seen) {
            return Ok(());
        }
        ledger.observe(&seen)
    }

    /// A log does more between the last look at its node and its end: a leader that stops is replaced, and its successor's
    /// entries arrive.
    fn look_at_ended_log(&mut self, index: usize) {
        let Some(LastLog { cluster_id, node, life, log }) = &self.last_logs[index] else { return };
        if let Some(ledger) = self.ledgers.get_mut(cluster_id) {
            ledger.log_ended(*node, *life, &observe::look_at_ended_log(log));
        }
    }

    /// The core of node `index`, if it runs one.
    pub fn core(&self, index: usize) -> Option<Arc<Core>> {
        self.hosts[index].node()?.core()
    }

    /// Nodes that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|i| self.hosts[*i].node().is_some()).collect()
    }

    /// Nodes that run and belong to the cluster.
    pub fn members(&self) -> Vec<usize> {
        let belongs = |i: &usize| self.hosts[*i].node().is_some_and(|n| n.identity().cluster_id == self.cluster_id);
        (0..self.hosts.len()).filter(belongs).collect()
    }

    /// The node that leads the cluster under the highest ballot.
    pub fn leader(&self) -> Option<usize> {
        let ballot = |i: &usize| {
            let core = self.core(*i).filter(|c| c.is_leader())?;
            let vote = core.raft.metrics().borrow_watched().vote;
            Some((vote.leader_id.term, vote.leader_id.node_id))
        };
        self.members().into_iter().filter_map(|i| Some((ballot(&i)?, i))).max().map(|(_, i)| i)
    }

    /// Takes machine `index` down.
    pub fn switch_off(&mut self, index: usize, how: Off) {
        let disk = self.hosts[index].disk();
        let disk = match how {
            Off::Power(seed) => disk.crash(seed),
            Off::Process => disk.kill(),
            Off::Disk => {
                disk.kill();
                FaultyFs::new()
            }
        };
        self.hosts[index].lose(disk);
        // A machine without power says goodbye to nobody; a dead process's kernel does.
        let silenced = self.links.around(index);
        let silent = how != Off::Process;
        if silent {
            self.links.cut(&self.sim, &silenced);
        }
        self.sim.crash(Plan::host(index));
        if silent {
            self.links.mend(&self.sim, &silenced);
        }
        self.last_looks[index] = None;
        self.last_logs[index] = None;
    }

    /// Machine `index`, which is off, comes back with an earlier state of its disk: what was known of its node need not hold.
    pub fn forget(&mut self, index: usize) {
        let Some(id) = self.seats.id_of(index) else { return };
        self.ledgers.values_mut().for_each(|ledger| ledger.forget(id));
    }

    /// Starts machine `index`, which is off.
    pub fn switch_on(&mut self, index: usize) {
        self.sim.bounce(Plan::host(index));
    }

    /// Why the cluster is not yet as it should be when nothing is broken; None when it is.
    pub fn unsettled(&self, replication_factor: u32) -> Option<String> {
        let nodes = self.hosts.len();
        let running = self.running();
        if running.len() < nodes {
            return Some(format!("only nodes {running:?} run"));
        }
        let first = self.hosts[0].node()?.identity().cluster_id;
        let expected = self.cluster_id.or(first);
        let foreign: Vec<usize> =
            running.into_iter().filter(|i| self.cluster_of(*i) != expected || expected.is_none()).collect();
        if !foreign.is_empty() {
            return Some(format!("nodes {foreign:?} do not belong to the cluster"));
        }
        let Some(leader) = (0..nodes).find_map(|i| self.core(i).filter(|c| c.is_leader())) else {
            return Some("nobody leads".into());
        };
        let (voters, learners, last) = {
            let metrics = leader.raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            let learners: Vec<NodeId> = membership.learner_ids().collect();
            (membership.get_joint_config().clone(), learners, metrics.last_log_index)
        };
        let members = leader.state.members();
        let wanted = (replication_factor as usize).min(nodes);
        if voters.len() != 1 || voters[0].len() != wanted || !learners.is_empty() {
            return Some(format!("the voters are {voters:x?}, the learners {learners:x?}, {wanted} voters are due"));
        }
        if members.len() != nodes || members.iter().any(|m| m.leaving) {
            return Some(format!("the directory has {} members", members.len()));
        }
        (0..nodes).find_map(|i| self.node_unsettled(i, &voters[0], last))
    }

    fn node_unsettled(
        &self,
        index: usize,
        voters: &std::collections::BTreeSet<NodeId>,
        last: Option<u64>,
    ) -> Option<String> {
        let Some((node, core)) = self.hosts[index].node().zip(self.core(index)) else {
            return Some(format!("node {index} has no core"));
        };
        if let Some(why) = node.divergence() {
            return Some(format!("node {index} holds itself for divergent: {why}"));
        }
        // It is looked up once a second, and a leader refuses writes as long.
        if let Some(why) = node.storage_trouble() {
            return Some(format!("node {index} has a disk problem: {why}"));
        }
        let votes = voters.contains(&core.id);
        let place = if votes { Place::Holder } else { Place::Standby };
        if node.position() != place {
            return Some(format!("node {index} takes itself for {:?}", node.position()));
        }
        let applied = core.state.applied().map(|id| id.index);
        (votes && applied != last).then(|| format!("node {index} has applied {applied:?} of {last:?}"))
    }

    fn cluster_of(&self, index: usize) -> Option<u64> {
        self.hosts[index].node()?.identity().cluster_id
    }
}
