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
    /// Who has the name of the granted founder, and another disk, takes its place once the planned number of nodes agrees.
    EarlierSelfReplaced,
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
    /// Disks that may still be lost.
    wipes: usize,
    /// Processes that were replaced under their name, with an empty disk, while they stood still after they had won: they
    /// may go on at any time.
    replaced: usize,
    /// What those founded.
    founded_late: BTreeSet<u64>,
    under_way: Vec<Message>,
    ids: u64,
    rng: StdRng,
}

impl World {
    fn new(Case { plan, nodes, wipes }: &Case, flaw: Flaw, seed: u64) -> Self {
        let nodes = (0..*nodes as u32)
            .map(|i| Node {
                name: format!("n{i}"),
                index: i + 1,
                up: true,
                disk: Disk { node_id: u64::from(i) + 1, promise: Promise::default(), cluster: None },
                attempt: None,
            })
            .collect::<Vec<_>>();
        let ids = nodes.len() as u64;
        Self {
            plan: plan.clone(),
            flaw,
            nodes,
            wipes: *wipes,
            replaced: 0,
            founded_late: BTreeSet::new(),
            under_way: Vec::new(),
            ids,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn clusters(&self) -> BTreeSet<u64> {
        self.nodes.iter().filter_map(|node| node.disk.cluster).chain(self.founded_late.clone()).collect()
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
        let mut choice = choose(&me, &plan, &voices, true).expect("every index is there once");
        if flaw == Flaw::QuorumTooSmall && choice == Choice::TooFew && voices.len() >= enough {
            choice = Choice::Propose;
        }
        let replaces = matches!(&choice, Choice::WaitFor(founder) if founder.name == me.name);
        if flaw == Flaw::EarlierSelfReplaced && replaces && voices.len() >= enough {
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
        let up = self.nodes.iter().filter(|node| node.up);
        let cluster = up.filter_map(|node| node.disk.cluster).chain(self.founded_late.first().copied()).next();
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

    /// Its disk is lost. Sometimes the process that had it is not dead, only nobody hears of it.
    fn wipe(&mut self, i: usize) {
        self.wipes -= 1;
        let node = &self.nodes[i];
        let had_won = node.up && node.attempt.as_ref().is_some_and(|attempt| attempt.won);
        self.replaced += usize::from(had_won && self.rng.random_bool(0.5));
        self.crash(i);
        let node_id = self.fresh_id();
        self.nodes[i].disk = Disk { node_id, promise: Promise::default(), cluster: None };
    }

    fn go_on_late(&mut self) {
        if self.replaced > 0 {
            self.replaced -= 1;
            let id = self.fresh_id();
            self.founded_late.insert(id);
        }
    }

    fn adversary(&mut self) {
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
            (90..92, _) if self.wipes > 0 => self.wipe(i),
            (92..93, _) => self.go_on_late(),
            _ => self.nodes[i].up = true,
        }
    }

    /// Whether the founder that was granted last is nobody's any more.
    fn founder_is_lost(&self) -> bool {
        let newest =
            self.nodes.iter().filter_map(|node| node.disk.promise.granted.as_ref()).max_by_key(|grant| grant.0);
        newest.is_some_and(|(_, founder)| self.nodes.iter().all(|node| node.disk.node_id != founder.node_id))
    }

    /// All run, nothing is lost, each tries in turn.
    fn heal(&mut self) {
        for node in &mut self.nodes {
            node.up = true;
        }
        while self.replaced > 0 {
            self.go_on_late();
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

/// What the adversary has to do with.
#[derive(Debug)]
struct Case {
    plan: Plan,
    /// How many nodes there are.
    nodes: usize,
    /// How many disks are lost at most.
    wipes: usize,
}

/// The seed after which there are two clusters, or none when all is well again.
fn first_bad_history(case: &Case, flaw: Flaw) -> Option<(u64, BTreeSet<u64>)> {
    (0..SEEDS).find_map(|seed| {
        let mut world = World::new(case, flaw, seed);
        for _ in 0..STEPS {
            world.adversary();
            if world.clusters().len() > 1 {
                return Some((seed, world.clusters()));
            }
        }
        world.heal();
        if world.clusters().is_empty() && world.founder_is_lost() {
            // What its operator is told to do then.
            world.wipes = world.nodes.len();
            (0..world.nodes.len()).for_each(|i| world.wipe(i));
            world.heal();
        }
        (world.clusters().len() != 1).then(|| (seed, world.clusters()))
    })
}

fn listed(size: u32) -> Plan {
    Plan::Listed((0..size).map(|i| format!("n{i}")).collect())
}

#[test]
fn never_two_clusters_and_one_when_all_is_well_again() {
    let cases = [
        (Plan::Indexed(2), 2, 0),
        (Plan::Indexed(3), 3, 0),
        (Plan::Indexed(4), 4, 0),
        (listed(5), 5, 0),
        // More nodes than planned, in whatever order they are seen.
        (Plan::Anyone(3), 5, 0),
        // Any two sets of `n` out of `k` nodes share `2n - k`: fewer disks than that may be lost, whoever joined.
        (Plan::Anyone(3), 3, 2),
        (Plan::Anyone(4), 4, 3),
        (Plan::Anyone(3), 4, 1),
        (Plan::Anyone(4), 5, 2),
        (Plan::Anyone(4), 6, 1),
    ];
    for (plan, nodes, wipes) in cases {
        let case = Case { plan, nodes, wipes };
        assert_eq!(first_bad_history(&case, Flaw::Nothing), None, "{case:?}");
    }
}

#[test]
fn the_adversary_finds_each_flaw_in_the_rule() {
    for (flaw, plan, nodes, wipes) in [
        (Flaw::PromiseNotSynced, Plan::Indexed(3), 3, 0),
        (Flaw::QuorumTooSmall, Plan::Indexed(3), 3, 0),
        (Flaw::QuorumTooSmall, Plan::Anyone(3), 5, 0),
        (Flaw::GrantsForgotten, listed(4), 4, 0),
        // Whoever joined beyond the planned number goes on with what the earlier self founded.
        (Flaw::EarlierSelfReplaced, Plan::Anyone(3), 4, 1),
        // The earlier self may still run.
        (Flaw::EarlierSelfReplaced, Plan::Anyone(3), 3, 1),
        // One disk too many.
        (Flaw::Nothing, Plan::Anyone(3), 5, 1),
    ] {
        let case = Case { plan, nodes, wipes };
        assert!(first_bad_history(&case, flaw).is_some(), "{flaw:?} under {case:?} stayed unseen");
    }
}
