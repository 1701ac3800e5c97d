//! The founder rule against an adversary: messages are lost, doubled and overtake each other, nodes crash between any two
//! steps and come back, disks are lost. Whatever happens there is one cluster at most; when all is well again there is one.
//! And with a flaw put into the rule the same adversary finds two: the test can fail.

use std::collections::{BTreeMap, BTreeSet};

use hexkv_raft_net::rpc::Plan;
use hexkv_store::founding::{Ballot, Founder, Grant, Promise};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::rule::{Choice, Voice, choose, quorum, votes};

/// Histories that are tried of each plan.
const SEEDS: u64 = 1_500;
/// Steps of the adversary in each.
const STEPS: usize = 400;
/// Messages under way at most; the oldest are lost.
const UNDER_WAY_MAX: usize = 40;
/// Rounds in which every node tries once, within which a cluster is founded when all is well.
const ROUNDS_MAX: usize = 20;

/// What is wrong with the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    Nothing,
    /// A promise is told before it is on disk, and lost in a crash.
    PromiseNotSynced,
    /// One vote too few decides.
    QuorumTooSmall,
    /// What was granted before binds nobody.
    GrantsForgotten,
}

#[derive(Debug, Clone)]
struct Disk {
    node_id: u64,
    promise: Promise,
    cluster: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Attempt {
    ballot: Ballot,
    promised: BTreeMap<String, Voice>,
    granted: BTreeMap<String, Voice>,
    proposed: bool,
    won: bool,
}

#[derive(Debug, Clone)]
struct Node {
    name: String,
    index: u32,
    up: bool,
    disk: Disk,
    attempt: Option<Attempt>,
}

#[derive(Debug, Clone)]
enum Message {
    Ask { to: usize, from: usize, ballot: Ballot, founder: Option<Founder> },
    Promised { to: usize, ballot: Ballot, voice: Voice },
    Granted { to: usize, ballot: Ballot, voice: Voice },
}

struct World {
    plan: Plan,
    flaw: Flaw,
    nodes: Vec<Node>,
    under_way: Vec<Message>,
    ids: u64,
    rng: StdRng,
}

impl World {
    fn new(plan: Plan, nodes: usize, flaw: Flaw, seed: u64) -> Self {
        let nodes = (0..nodes as u32)
            .map(|i| Node {
                name: format!("n{i}"),
                index: i + 1,
                up: true,
                disk: Disk { node_id: u64::from(i) + 1, promise: Promise::default(), cluster: None },
                attempt: None,
            })
            .collect::<Vec<_>>();
        let ids = nodes.len() as u64;
        Self { plan, flaw, nodes, under_way: Vec::new(), ids, rng: StdRng::seed_from_u64(seed) }
    }

    fn fresh_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn clusters(&self) -> BTreeSet<u64> {
        self.nodes.iter().filter_map(|node| node.disk.cluster).collect()
    }

    fn enough(&self) -> usize {
        quorum(&self.plan) - usize::from(self.flaw == Flaw::QuorumTooSmall)
    }

    fn begin(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if !node.up || node.disk.cluster.is_some() || node.attempt.as_ref().is_some_and(|a| a.won) {
            return;
        }
        let ballot = Ballot { round: node.disk.promise.promised.round + 1, node_id: node.disk.node_id };
        let granted = node.disk.promise.prepare(ballot).expect("it is higher than all before");
        let own = Voice { name: node.name.clone(), index: Some(node.index), granted };
        let promised = BTreeMap::from([(node.name.clone(), own)]);
        node.attempt = Some(Attempt { ballot, promised, ..Attempt::default() });
        self.ask_all(i, ballot, None);
        self.go_on(i);
    }

    fn ask_all(&mut self, from: usize, ballot: Ballot, founder: Option<Founder>) {
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            self.under_way.push(Message::Ask { to, from, ballot, founder: founder.clone() });
        }
        let surplus = self.under_way.len().saturating_sub(UNDER_WAY_MAX);
        self.under_way.drain(..surplus);
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Ask { to, from, ballot, founder } => {
                let node = &mut self.nodes[to];
                if !node.up || node.disk.cluster.is_some() {
                    return;
                }
                let voice =
                    |granted: Option<Grant>| Voice { name: node.name.clone(), index: Some(node.index), granted };
                let answer = match founder {
                    None => node.disk.promise.prepare(ballot).map(|granted| Message::Promised {
                        to: from,
                        ballot,
                        voice: voice(granted),
                    }),
                    Some(founder) => node.disk.promise.grant(ballot, founder).then(|| Message::Granted {
                        to: from,
                        ballot,
                        voice: voice(None),
                    }),
                };
                self.under_way.extend(answer);
            }
            Message::Promised { to, ballot, mut voice } => {
                if self.flaw == Flaw::GrantsForgotten {
                    voice.granted = None;
                }
                if let Some(attempt) = self.attempt_of(to, ballot).filter(|attempt| !attempt.proposed) {
                    attempt.promised.insert(voice.name.clone(), voice);
                    self.go_on(to);
                }
            }
            Message::Granted { to, ballot, voice } => {
                let enough = self.enough();
                let plan = self.plan.clone();
                if let Some(attempt) = self.attempt_of(to, ballot) {
                    attempt.granted.insert(voice.name.clone(), voice);
                    let voices: Vec<Voice> = attempt.granted.values().cloned().collect();
                    attempt.won |= votes(&plan, &voices).expect("every index is there once") >= enough;
                }
            }
        }
    }

    /// The attempt that an answer is to: answers to those of earlier lives are lost with their connections.
    fn attempt_of(&mut self, i: usize, ballot: Ballot) -> Option<&mut Attempt> {
        self.nodes[i].attempt.as_mut().filter(|attempt| attempt.ballot == ballot)
    }

    fn go_on(&mut self, i: usize) {
        let (plan, enough, flaw) = (self.plan.clone(), self.enough(), self.flaw);
        let node = &mut self.nodes[i];
        let me = Founder { node_id: node.disk.node_id, name: node.name.clone() };
        let Some(attempt) = node.attempt.as_mut() else { return };
        let voices: Vec<Voice> = attempt.promised.values().cloned().collect();
        let mut choice = choose(&me, &plan, &voices).expect("every index is there once");
        if flaw == Flaw::QuorumTooSmall && choice == Choice::TooFew && voices.len() >= enough {
            choice = Choice::Propose;
        }
        if choice != Choice::Propose || !node.disk.promise.grant(attempt.ballot, me.clone()) {
            return;
        }
        attempt.proposed = true;
        let own = Voice { name: node.name.clone(), index: Some(node.index), granted: None };
        attempt.granted.insert(node.name.clone(), own);
        attempt.won |= enough <= 1;
        let ballot = attempt.ballot;
        self.ask_all(i, ballot, Some(me));
    }

    fn found(&mut self, i: usize) {
        if self.nodes[i].up && self.nodes[i].attempt.as_ref().is_some_and(|attempt| attempt.won) {
            let id = self.fresh_id();
            let node = &mut self.nodes[i];
            node.attempt = None;
            node.disk.cluster.get_or_insert(id);
        }
    }

    fn join(&mut self, i: usize) {
        let cluster = self.nodes.iter().filter(|node| node.up).find_map(|node| node.disk.cluster);
        let node = &mut self.nodes[i];
        if node.up && node.disk.cluster.is_none() {
            node.disk.cluster = cluster;
        }
    }

    fn crash(&mut self, i: usize) {
        let forgets = self.flaw == Flaw::PromiseNotSynced;
        let node = &mut self.nodes[i];
        (node.up, node.attempt) = (false, None);
        if forgets {
            node.disk.promise = Promise::default();
        }
    }

    fn wipe(&mut self, i: usize) {
        self.crash(i);
        let node_id = self.fresh_id();
        self.nodes[i].disk = Disk { node_id, promise: Promise::default(), cluster: None };
    }

    fn adversary(&mut self, wipes: bool) {
        let i = self.rng.random_range(0..self.nodes.len());
        let message = (!self.under_way.is_empty()).then(|| self.rng.random_range(0..self.under_way.len()));
        match (self.rng.random_range(0..100), message) {
            (0..55, Some(m)) => {
                let message = self.under_way.swap_remove(m);
                self.deliver(message);
            }
            (55..60, Some(m)) => {
                let message = self.under_way[m].clone();
                self.deliver(message);
            }
            (60..66, Some(m)) => drop(self.under_way.swap_remove(m)),
            (66..80, _) => self.begin(i),
            (80..84, _) => self.found(i),
            (84..85, _) => self.join(i),
            (85..90, _) => self.crash(i),
            (90..92, _) if wipes => self.wipe(i),
            _ => self.nodes[i].up = true,
        }
    }

    /// All run, nothing is lost, each tries in turn.
    fn heal(&mut self) {
        for node in &mut self.nodes {
            node.up = true;
        }
        for _ in 0..ROUNDS_MAX {
            for i in 0..self.nodes.len() {
                self.begin(i);
                while let Some(message) = self.under_way.pop() {
                    self.deliver(message);
                }
                self.found(i);
                (0..self.nodes.len()).for_each(|i| self.join(i));
            }
        }
    }
}

/// The seed after which there are two clusters, or none when all is well again.
fn first_bad_history(plan: &Plan, nodes: usize, wipes: bool, flaw: Flaw) -> Option<(u64, BTreeSet<u64>)> {
    (0..SEEDS).find_map(|seed| {
        let mut world = World::new(plan.clone(), nodes, flaw, seed);
        for _ in 0..STEPS {
            world.adversary(wipes);
            if world.clusters().len() > 1 {
                return Some((seed, world.clusters()));
            }
        }
        world.heal();
        (world.clusters().len() != 1).then(|| (seed, world.clusters()))
    })
}

fn listed(size: u32) -> Plan {
    Plan::Listed((0..size).map(|i| format!("n{i}")).collect())
}

#[test]
fn never_two_clusters_and_one_when_all_is_well_again() {
    let cases = [
        (Plan::Indexed(2), 2, false),
        (Plan::Indexed(3), 3, false),
        (Plan::Indexed(4), 4, false),
        (listed(5), 5, false),
        // All the planned nodes have to agree: disks may be lost at any time.
        (Plan::Anyone(3), 3, true),
        (Plan::Anyone(4), 4, true),
        // More nodes than planned, in whatever order they are seen.
        (Plan::Anyone(3), 5, false),
    ];
    for (plan, nodes, wipes) in cases {
        let bad = first_bad_history(&plan, nodes, wipes, Flaw::Nothing);
        assert_eq!(bad, None, "{plan:?} with {nodes} nodes, lost disks: {wipes}");
    }
}

#[test]
fn the_adversary_finds_each_flaw_in_the_rule() {
    for (flaw, plan, nodes) in [
        (Flaw::PromiseNotSynced, Plan::Indexed(3), 3),
        (Flaw::QuorumTooSmall, Plan::Indexed(3), 3),
        (Flaw::QuorumTooSmall, Plan::Anyone(3), 5),
        (Flaw::GrantsForgotten, listed(4), 4),
    ] {
        let bad = first_bad_history(&plan, nodes, false, flaw);
        assert!(bad.is_some(), "{flaw:?} under {plan:?} stayed unseen");
    }
}
