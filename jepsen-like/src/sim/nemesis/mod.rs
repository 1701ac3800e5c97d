//! Lets the faults of a plan strike, ends those that last, and looks after nodes that went down.
//!
//! | module | holds |
//! |---|---|
//! | `stuck` | faults that stop no node and report no error |
//! | `supervisor` | what becomes of nodes that went down |

mod stuck;
mod supervisor;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hexkv_store::{
    NodeId,
    fs::{FaultyFs, faulty::Fault as DiskFault},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use self::stuck::Stuck;
use super::{
    cluster::{Cluster, Off},
    fault::{Fault, Strike},
    links::Link,
    plan::{Plan, stream},
    request::{Admin, Request},
    shapes,
    workload::Workload,
};

/// A node that went down by itself is started again after so long, in milliseconds.
const RESTART_MS: std::ops::Range<u64> = 100..1_000;
/// A node that is in no cluster, or another, is told to join again every so many milliseconds.
const REJOIN_INTERVAL_MS: u64 = 700;
/// A node that so often in a row took itself for no member is told to join again.
const OUTSIDE_LOOKS: u32 = 5;
/// Most changing operations of a disk until a planned power cut.
const POWER_CUT_WITHIN: u64 = 40;
/// Share of the faults that strike the leader, of those that may strike any node.
const LEADER_SHARE: f64 = 0.6;
/// Most changing operations until a planned disk error is met.
const DISK_ERROR_WITHIN: u64 = 30;

/// How a fault that lasts is ended.
enum Undo {
    Mend(BTreeSet<Link>),
    Loss,
    Delay(Vec<(usize, usize)>),
    SwitchOn(Vec<usize>),
    Space(usize),
    Names,
    Stuck(Stuck),
}

/// Faults under way, and the supervisor of the nodes.
///
/// Invariant: a node that stops by itself, or does not start, without a disk fault in that life is a finding.
pub struct Nemesis {
    pending: VecDeque<Strike>,
    lasting: Vec<(u64, Undo)>,
    /// Machines that are off, and when they are switched on.
    off: BTreeMap<usize, u64>,
    stopping: BTreeMap<usize, u64>,
    /// Machines whose disk will stop in the middle of what it does: with which seed, and for how long they are off then.
    armed: BTreeMap<usize, (u64, u64)>,
    /// Machines whose disk failed in this life of their node.
    excused: BTreeSet<usize>,
    full: BTreeSet<usize>,
    /// The id of the node that was wiped and still counts.
    wiped: Option<NodeId>,
    next_rejoin_ms: u64,
    /// How often in a row a node took itself for no member.
    seen_outside: BTreeMap<usize, u32>,
    /// Images of disks, by node, and when a node is to be restarted with its image.
    images: BTreeMap<usize, (u64, FaultyFs)>,
    /// The node that all faults strike, in a seed that has one.
    victim: Option<usize>,
    rng: StdRng,
    strikes: u64,
}

impl Nemesis {
    /// The nemesis of `plan`, which does nothing yet but look after the nodes.
    pub fn new(plan: &Plan) -> Self {
        Self {
            pending: VecDeque::new(),
            lasting: Vec::new(),
            off: BTreeMap::new(),
            stopping: BTreeMap::new(),
            armed: BTreeMap::new(),
            excused: BTreeSet::new(),
            full: BTreeSet::new(),
            wiped: None,
            next_rejoin_ms: 0,
            seen_outside: BTreeMap::new(),
            images: BTreeMap::new(),
            victim: None,
            rng: stream(plan.seed, "supervisor"),
            strikes: 0,
        }
    }

    /// Lets the storm of `plan` begin at `begin_ms`.
    pub fn begin(&mut self, plan: &Plan, begin_ms: u64) {
        self.pending = plan.strikes.iter().map(|s| Strike { at_ms: s.at_ms + begin_ms, ..*s }).collect();
    }

    /// Which nodes are down or stopping; None = none.
    pub fn unsettled(&self) -> Option<String> {
        let down = || format!("{:?} are off, {:?} are stopping", self.off.keys(), self.stopping.keys());
        (!self.off.is_empty() || !self.stopping.is_empty()).then(down)
    }

    /// How many faults struck.
    pub fn strikes(&self) -> u64 {
        self.strikes
    }

    /// Ends what is over, lets strike what is due, and restarts what went down.
    ///
    /// # Errors
    /// A node ended or did not start, and nothing explains it.
    pub fn step(&mut self, cluster: &mut Cluster, workload: &mut Workload) -> Result<(), String> {
        let now_ms = cluster.now_ms();
        let (over, lasting) = std::mem::take(&mut self.lasting).into_iter().partition(|(until, _)| *until <= now_ms);
        self.lasting = lasting;
        let over: Vec<(u64, Undo)> = over;
        for (_, undo) in over {
            self.undo(cluster, undo);
        }
        while let Some(strike) = self.pending.front().copied().filter(|s| s.at_ms <= now_ms) {
            self.pending.pop_front();
            let what = self.strike(cluster, workload, &strike);
            self.strikes += u64::from(!what.is_null());
            workload.note_fault(cluster, strike.fault.name(), what);
        }
        self.supervise(cluster, workload)
    }

    /// Ends all faults for good.
    pub fn heal(&mut self, cluster: &mut Cluster, workload: &mut Workload) {
        self.pending.clear();
        self.armed.clear();
        self.images.clear();
        for (_, undo) in std::mem::take(&mut self.lasting) {
            self.undo(cluster, undo);
        }
        cluster.links.heal(&mut cluster.sim, cluster.plan.latency_ms_max);
        for host in &cluster.hosts {
            host.skew.set(0, 0);
            host.disk().repair();
        }
        self.set_replication_factor(cluster, workload);
        workload.note_fault(cluster, "heal", Value::Null);
    }

    /// Asks every node that there is for the planned replication factor; it is set when one of them does it.
    pub fn set_replication_factor(&mut self, cluster: &Cluster, workload: &mut Workload) {
        let factor = cluster.plan.replication_factor;
        for node in cluster.members() {
            let number = workload.number();
            cluster.hosts[node].submit(number, Request::Admin(Admin::ReplicationFactor(factor)), None);
        }
    }

    fn undo(&mut self, cluster: &mut Cluster, undo: Undo) {
        match undo {
            Undo::Mend(links) => cluster.links.mend(&cluster.sim, &links),
            Undo::Loss => {
                cluster.links.rough -= 1;
                cluster.sim.set_fail_rate(0.0);
            }
            Undo::Delay(pairs) => {
                cluster.links.rough -= 1;
                shapes::set_latency(cluster, &pairs, cluster.plan.latency_ms_max);
            }
            Undo::SwitchOn(nodes) => {
                for node in nodes {
                    self.switch_on(cluster, node);
                }
            }
            Undo::Space(node) => {
                self.full.remove(&node);
                cluster.hosts[node].disk().set_capacity(None);
            }
            Undo::Names => cluster.surroundings.zone.correct(),
            Undo::Stuck(stuck) => stuck.undo(cluster),
        }
    }

    /// Lets `strike` strike; answers whom and how, null when it found no target.
    fn strike(&mut self, cluster: &mut Cluster, workload: &mut Workload, strike: &Strike) -> Value {
        let mut rng = StdRng::seed_from_u64(strike.seed);
        let until = cluster.now_ms() + strike.length_ms;
        let nodes = cluster.hosts.len();
        let any = self.target(cluster, strike.fault, &mut rng);
        match strike.fault {
            Fault::Partition | Fault::OneWay => {
                let leader = cluster.leader();
                let (shape, links) = match strike.fault {
                    fault if self.victim.is_some() => shapes::alone(&mut rng, nodes, any, fault == Fault::OneWay),
                    Fault::Partition => shapes::partition(&mut rng, nodes, leader),
                    _ => shapes::one_way(&mut rng, nodes, leader),
                };
                cluster.links.cut(&cluster.sim, &links);
                self.lasting.push((until, Undo::Mend(links)));
                json!(shape)
            }
            Fault::Loss => {
                let rate = rng.random_range(0.001..0.02);
                cluster.links.rough += 1;
                cluster.sim.set_fail_rate(rate);
                self.lasting.push((until, Undo::Loss));
                json!(rate)
            }
            Fault::Delay => {
                let pairs = shapes::some_pairs(&mut rng, nodes);
                cluster.links.rough += 1;
                shapes::set_latency(cluster, &pairs, rng.random_range(50..600));
                self.lasting.push((until, Undo::Delay(pairs.clone())));
                json!(pairs)
            }
            Fault::PowerCut | Fault::Kill => self.take_down(cluster, workload, strike, &mut rng),
            Fault::Restart => {
                if self.is_up(cluster, any) {
                    cluster.hosts[any].stop();
                    self.stopping.insert(any, strike.length_ms);
                    return json!(any);
                }
                Value::Null
            }
            Fault::DiskFull | Fault::DiskError => self.break_disk(cluster, strike.fault, any, until, &mut rng),
            Fault::Clock => {
                let (offset_ms, drift_ppm) =
                    (rng.random_range(-3_600_000..3_600_000), rng.random_range(-200_000..200_000));
                cluster.hosts[any].skew.set(offset_ms, drift_ppm);
                json!([any, offset_ms, drift_ppm])
            }
            Fault::Membership => self.change_membership(cluster, workload, any, &mut rng),
            Fault::Transfer => {
                let to = name(cluster, rng.random_range(0..nodes));
                self.administer(cluster, workload, any, Admin::Transfer(to))
            }
            Fault::Snapshot => self.administer(cluster, workload, any, Admin::Snapshot),
            Fault::Wipe => self.wipe(cluster, workload, any, until),
            Fault::Names => self.mislead(cluster, until, &mut rng),
            Fault::StalledDisk | Fault::MtuHole | Fault::NoConnects | Fault::Resolver => {
                let (stuck, what) = Stuck::strike(cluster, strike.fault, any, &mut rng);
                self.lasting.push((until, Undo::Stuck(stuck)));
                what
            }
            Fault::Rollback => {
                self.images.insert(any, (until, cluster.hosts[any].disk().image()));
                json!([any, "image"])
            }
            Fault::LostQuorum => unreachable!("it comes after all others"),
        }
    }

    /// The node that a fault strikes: any; the victim of a seed that has one, which is most often the leader at the first
    /// strike.
    fn target(&mut self, cluster: &Cluster, fault: Fault, rng: &mut StdRng) -> usize {
        let any = rng.random_range(0..cluster.hosts.len());
        let leader = |rng: &mut StdRng| cluster.leader().filter(|_| rng.random_bool(LEADER_SHARE));
        if cluster.plan.one_victim {
            return *self.victim.get_or_insert_with(|| leader(rng).unwrap_or(any));
        }
        let stuck = matches!(fault, Fault::StalledDisk | Fault::MtuHole | Fault::NoConnects | Fault::Resolver);
        if stuck { leader(rng).unwrap_or(any) } else { any }
    }

    fn break_disk(&mut self, cluster: &Cluster, fault: Fault, node: usize, until: u64, rng: &mut StdRng) -> Value {
        let disk = cluster.hosts[node].disk();
        self.excused.insert(node);
        if fault == Fault::DiskFull {
            disk.set_capacity(Some(disk.used_bytes() + rng.random_range(0..20_000)));
            self.full.insert(node);
            self.lasting.push((until, Undo::Space(node)));
            return json!(node);
        }
        let error = if rng.random_bool(0.7) { DiskFault::Io } else { DiskFault::NoSpace };
        disk.fail_operation(disk.operations() + rng.random_range(1..=DISK_ERROR_WITHIN), error);
        json!([node, format!("{error:?}")])
    }

    fn take_down(
        &mut self,
        cluster: &mut Cluster,
        workload: &mut Workload,
        strike: &Strike,
        rng: &mut StdRng,
    ) -> Value {
        let nodes = cluster.hosts.len();
        let count = match rng.random_range(0..10) {
            0..6 => 1,
            6..8 => rng.random_range(1..=nodes),
            _ => nodes,
        };
        let first = match cluster.leader() {
            Some(leader) if rng.random_bool(0.5) => leader,
            _ => rng.random_range(0..nodes),
        };
        let (first, count) = self.victim.map_or((first, count), |victim| (victim, 1));
        let victims: Vec<usize> = (0..count).map(|i| (first + i) % nodes).filter(|i| self.is_up(cluster, *i)).collect();
        for victim in &victims {
            if strike.fault == Fault::PowerCut && rng.random_bool(0.6) {
                let disk = cluster.hosts[*victim].disk();
                disk.stop_at_operation(disk.operations() + rng.random_range(1..=POWER_CUT_WITHIN));
                self.excused.insert(*victim);
                self.armed.insert(*victim, (rng.random(), strike.length_ms));
                continue;
            }
            let how = match strike.fault {
                Fault::PowerCut => Off::Power(rng.random()),
                _ => Off::Process,
            };
            let on_at = cluster.now_ms() + strike.length_ms + rng.random_range(0..200);
            self.switch_off(cluster, workload, *victim, how, on_at);
        }
        if victims.is_empty() { Value::Null } else { json!(victims) }
    }

    fn mislead(&mut self, cluster: &Cluster, until: u64, rng: &mut StdRng) -> Value {
        let given = cluster.surroundings.zone.err(rng);
        self.lasting.push((until, Undo::Names));
        json!(given.iter().map(|(node, answer)| json!([node, answer.word()])).collect::<Vec<_>>())
    }

    fn change_membership(
        &mut self,
        cluster: &mut Cluster,
        workload: &mut Workload,
        node: usize,
        rng: &mut StdRng,
    ) -> Value {
        // A cluster that lost a disk for good may not shrink before it is whole again: a node that starts without a disk
        // might find the cluster of one of a node that just left, and join that.
        if self.wiped.is_some() {
            return Value::Null;
        }
        if rng.random_bool(0.5) {
            let factor = rng.random_range(1..=cluster.hosts.len() as u32);
            return self.administer(cluster, workload, node, Admin::ReplicationFactor(factor));
        }
        self.administer(cluster, workload, node, Admin::Leave)
    }

    fn administer(&mut self, cluster: &Cluster, workload: &mut Workload, node: usize, admin: Admin) -> Value {
        let shown = format!("{node}: {admin:?}");
        let number = workload.number();
        let asked = cluster.hosts[node].submit(number, Request::Admin(admin), None);
        if asked { json!(shown) } else { Value::Null }
    }

    /// Takes a node its disk, where the others can spare it: all are up, three or more vote, and no node that was wiped
    /// before still counts.
    fn wipe(&mut self, cluster: &mut Cluster, workload: &mut Workload, node: usize, until: u64) -> Value {
        let Some(core) = cluster.core(node) else { return Value::Null };
        if self.wiped.is_some() || cluster.unsettled(cluster.plan.replication_factor).is_some() {
            return Value::Null;
        }
        self.wiped = Some(core.id);
        drop(core);
        self.switch_off(cluster, workload, node, Off::Disk, until);
        json!(node)
    }

    /// Whether `node` runs, and its disk is in order and will stay so.
    pub fn is_well(&self, cluster: &Cluster, node: usize) -> bool {
        let disk = !self.excused.contains(&node) && !self.full.contains(&node) && !self.armed.contains_key(&node);
        let host = &cluster.hosts[node];
        self.is_up(cluster, node) && disk && !host.is_stopping() && host.ended().is_none() && !host.disk().is_stalled()
    }

    fn is_up(&self, cluster: &Cluster, node: usize) -> bool {
        !self.off.contains_key(&node) && cluster.hosts[node].node().is_some()
    }

    fn switch_off(&mut self, cluster: &mut Cluster, workload: &mut Workload, node: usize, how: Off, on_at: u64) {
        cluster.switch_off(node, how);
        workload.node_lost(cluster, node);
        // The disk that its successor finds has no failures planned; a full one stays full.
        if !self.full.contains(&node) {
            self.excused.remove(&node);
        }
        self.stopping.remove(&node);
        self.armed.remove(&node);
        self.off.insert(node, on_at);
    }

    fn switch_on(&mut self, cluster: &mut Cluster, node: usize) {
        if self.off.remove(&node).is_some() {
            cluster.switch_on(node);
        }
    }
}

fn name(cluster: &Cluster, node: usize) -> String {
    cluster.hosts[node].config.node_name.to_string()
}
