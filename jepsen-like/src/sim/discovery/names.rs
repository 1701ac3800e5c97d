//! Name servers, which answer as they are told to: rightly, late, with too few nodes, with places where no node is, or not at all.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use hexkv_server::discovery::dns::{NameServer, NameService, NoRecords, Service};
use parking_lot::Mutex;
use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

use crate::sim::plan::{HTTP_PORT, Plan, RAFT_PORT};

/// The name that the nodes are found under.
pub const HOSTNAME: &str = "nodes.simulated";
/// A name of records that has none itself any more.
const GONE: &str = "gone.simulated";
/// Addresses of the simulated network at which no machine is.
const NOBODY: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 77, 1), Ipv4Addr::new(192, 168, 77, 2)];
/// After so long a name server that is silent is given up, in milliseconds; as the real ones are.
const SILENCE_MS: u64 = 4_000;
/// Longest time until a late answer, in milliseconds.
const LATE_MS_MAX: u64 = 3_500;

/// What a node is answered when it asks for the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Where nodes are.
    Places {
        /// These nodes.
        nodes: BTreeSet<usize>,
        /// Whether places are among them where none is: nobody at all, or somebody who is no node.
        strangers: bool,
        /// So late, in milliseconds: what is answered was so when it was asked.
        late_ms: u64,
    },
    /// That there is no such name.
    NoSuchName,
    /// That the name has no records.
    Empty,
    /// Nothing.
    Silence,
}

impl Answer {
    /// All of `nodes` nodes, at once.
    pub fn right(nodes: usize) -> Self {
        Self::only((0..nodes).collect())
    }

    /// Of all nodes `nodes` alone.
    pub fn only(nodes: BTreeSet<usize>) -> Self {
        Self::Places { nodes, strangers: false, late_ms: 0 }
    }

    /// A wrong one for a cluster of `nodes`.
    pub fn wrong(rng: &mut StdRng, nodes: usize) -> Self {
        let mut some: Vec<usize> = (0..nodes).collect();
        some.shuffle(rng);
        some.truncate(rng.random_range(0..nodes));
        let (all, some) = ((0..nodes).collect(), some.into_iter().collect());
        let late_ms = rng.random_range(1..=LATE_MS_MAX);
        match rng.random_range(0..7) {
            0 => Self::Silence,
            1 => Self::Empty,
            2 => Self::NoSuchName,
            3 => Self::only(some),
            4 => Self::Places { nodes: some, strangers: true, late_ms: 0 },
            5 => Self::Places { nodes: all, strangers: true, late_ms },
            _ => Self::Places { nodes: all, strangers: false, late_ms },
        }
    }

    /// Its kind, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Empty => "empty",
            Self::NoSuchName => "no such name",
            Self::Places { strangers: true, .. } => "strangers",
            Self::Places { late_ms: 1.., .. } => "late",
            Self::Places { .. } => "some",
        }
    }
}

/// The name servers of all nodes: each node has its own view. What a nemesis changes holds for the next question.
#[derive(Debug)]
pub struct Zone {
    services: bool,
    addresses: Vec<IpAddr>,
    views: Mutex<Vec<View>>,
}

#[derive(Debug)]
struct View {
    answer: Answer,
    /// The kinds of wrong answers that the node got.
    given: BTreeSet<&'static str>,
}

impl Zone {
    /// Name servers that are right about nodes at `addresses`, with SRV records where `services`.
    pub fn new(services: bool, addresses: Vec<IpAddr>) -> Self {
        let right = Answer::right(addresses.len());
        let views = addresses.iter().map(|_| View { answer: right.clone(), given: BTreeSet::new() }).collect();
        Self { services, addresses, views: Mutex::new(views) }
    }

    /// From now on node `asker` is given `answer`.
    pub fn set(&self, asker: usize, answer: Answer) {
        self.views.lock()[asker].answer = answer;
    }

    /// From now on every node is given the right one.
    pub fn correct(&self) {
        for view in self.views.lock().iter_mut() {
            view.answer = Answer::right(self.addresses.len());
        }
    }

    /// Some nodes, at least one, are given wrong answers from now on; answers which.
    pub fn err(&self, rng: &mut StdRng) -> Vec<(usize, Answer)> {
        let nodes = self.addresses.len();
        let mut askers: Vec<usize> = (0..nodes).collect();
        askers.shuffle(rng);
        askers.truncate(rng.random_range(1..=nodes));
        let drawn: Vec<(usize, Answer)> = askers.into_iter().map(|asker| (asker, Answer::wrong(rng, nodes))).collect();
        for (asker, answer) in &drawn {
            self.set(*asker, answer.clone());
        }
        drawn
    }

    /// The kinds of wrong answers that were given so far.
    pub fn given(&self) -> BTreeSet<&'static str> {
        self.views.lock().iter().flat_map(|view| view.given.iter().copied()).collect()
    }

    /// As node `asker` sees them.
    pub fn seen_by(self: &Arc<Self>, asker: usize) -> SimulatedNames {
        SimulatedNames { zone: self.clone(), asker }
    }

    fn ask(&self, asker: usize) -> Answer {
        let view = &mut self.views.lock()[asker];
        if view.answer != Answer::right(self.addresses.len()) {
            view.given.insert(view.answer.word());
        }
        view.answer.clone()
    }
}

/// The name servers as one node sees them.
#[derive(Debug, Clone)]
pub struct SimulatedNames {
    zone: Arc<Zone>,
    asker: usize,
}

impl NameService for SimulatedNames {
    fn open(&self, _: Option<SocketAddr>) -> Result<Box<dyn NameServer>, String> {
        Ok(Box::new(self.clone()))
    }
}

impl SimulatedNames {
    /// The nodes to answer with, and whether strangers are among them.
    async fn places(&self) -> Result<(BTreeSet<usize>, bool), NoRecords> {
        match self.zone.ask(self.asker) {
            Answer::NoSuchName => Err(NoRecords::NoSuchName),
            Answer::Empty => Err(NoRecords::NoneOfThisKind),
            Answer::Silence => {
                tokio::time::sleep(Duration::from_millis(SILENCE_MS)).await;
                Err(NoRecords::NoAnswer("it is silent".into()))
            }
            Answer::Places { nodes, strangers, late_ms } => {
                tokio::time::sleep(Duration::from_millis(late_ms)).await;
                if nodes.is_empty() && !strangers { Err(NoRecords::NoneOfThisKind) } else { Ok((nodes, strangers)) }
            }
        }
    }
}

impl NameServer for SimulatedNames {
    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Service>, NoRecords>> {
        async move {
            if name != HOSTNAME || !self.zone.services {
                return Err(NoRecords::NoneOfThisKind);
            }
            let (nodes, strangers) = self.places().await?;
            let mut found: Vec<Service> =
                nodes.into_iter().map(|node| Service { host: Plan::host(node), port: RAFT_PORT }).collect();
            if strangers {
                found.push(Service { host: GONE.into(), port: RAFT_PORT });
                found.extend(NOBODY.map(|nobody| Service { host: nobody.to_string(), port: RAFT_PORT }));
                // Somebody is there, who speaks another language.
                found.push(Service { host: Plan::host(0), port: HTTP_PORT });
            }
            Ok(found)
        }
        .boxed()
    }

    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, NoRecords>> {
        async move {
            if name != HOSTNAME {
                let node = (0..self.zone.addresses.len()).find(|node| Plan::host(*node) == name);
                let address = node.map(|node| self.zone.addresses[node]).or_else(|| name.parse().ok());
                return address.map(|address| vec![address]).ok_or(NoRecords::NoSuchName);
            }
            if self.zone.services {
                // It has only services, which were asked for before.
                return match self.zone.ask(self.asker) {
                    Answer::NoSuchName => Err(NoRecords::NoSuchName),
                    _ => Err(NoRecords::NoneOfThisKind),
                };
            }
            let (nodes, strangers) = self.places().await?;
            let mut found: Vec<IpAddr> = nodes.into_iter().map(|node| self.zone.addresses[node]).collect();
            if strangers {
                found.extend(NOBODY.map(IpAddr::V4));
            }
            Ok(found)
        }
        .boxed()
    }
}
