//! How simulated nodes find each other: by a list, by a name server that errs, or by datagrams that get lost.

pub mod multicast;
pub mod names;

use std::{net::IpAddr, sync::Arc};

use hexkv_server::discovery::{dns::NameService, gossip::Multicast};
use rand::RngExt;

use self::{
    multicast::{Air, Weather},
    names::{HOSTNAME, Zone},
};
use super::plan::stream;

/// Of so many seeds one has nodes that do not find each other by a list: the one with this remainder. A rule instead of a chance,
/// so that seeds that are known for what they find keep the list.
const ONE_IN: u64 = 7;
const REMAINDER: u64 = 5;
/// Between two looks of a node at the records: shorter than nodes have it, as a run is short.
const LOOK_INTERVAL: &str = "500ms";

/// By what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `CLUSTER_NODES`, and indexes.
    List,
    /// A name server.
    Dns,
    /// Datagrams to a group.
    Gossip,
}

/// How the nodes of a seed find each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Discovery {
    /// By what.
    pub way: Way,
    /// Whether each node has an index. Then a majority of the planned ones founds the cluster, else all of them do.
    pub indexed: bool,
    /// Whether the name server has SRV records, or only addresses.
    pub services: bool,
    /// What becomes of datagrams.
    pub weather: Weather,
}

impl Discovery {
    /// What `seed` decides.
    pub fn of(seed: u64) -> Self {
        let mut rng = stream(seed, "discovery");
        let way = if rng.random_bool(0.5) { Way::Dns } else { Way::Gossip };
        Self::by(if seed % ONE_IN == REMAINDER { way } else { Way::List }, seed)
    }

    /// By `way`, with the rest as `seed` decides. Who is on a list has an index.
    pub fn by(way: Way, seed: u64) -> Self {
        let mut rng = stream(seed, "finding");
        let indexed = rng.random_bool(0.5) || way == Way::List;
        Self { way, indexed, services: rng.random_bool(0.5), weather: Weather::drawn(&mut rng) }
    }

    /// What is set on node `index` for finding `others`.
    pub fn settings(&self, index: usize, others: &[String]) -> Vec<(&'static str, String)> {
        let mut settings = match self.way {
            Way::List => vec![("CLUSTER_NODES", others.join(","))],
            Way::Dns => vec![
                ("CLUSTER_DISCOVERY_TYPE", "dns".to_owned()),
                ("CLUSTER_DNS_HOSTNAME", HOSTNAME.to_owned()),
                ("CLUSTER_DNS_INTERVAL", LOOK_INTERVAL.to_owned()),
            ],
            Way::Gossip => vec![("CLUSTER_DISCOVERY_TYPE", "gossip".to_owned())],
        };
        if self.indexed {
            settings.push(("NODE_INDEX", (index + 1).to_string()));
        }
        settings
    }
}

/// What the nodes of a run find each other with.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The name servers.
    pub zone: Arc<Zone>,
    /// Where datagrams go through.
    pub air: Arc<Air>,
}

/// The part of it that one node has.
#[derive(Debug, Clone)]
pub struct Sight {
    /// Its name servers.
    pub names: Arc<dyn NameService>,
    /// Its way into groups.
    pub multicast: Arc<dyn Multicast>,
}

impl Surroundings {
    /// Those of nodes at `addresses`, as `seed` and `discovery` have them.
    pub fn new(seed: u64, discovery: &Discovery, addresses: Vec<IpAddr>) -> Self {
        let air = Arc::new(Air::new(seed, discovery.weather, &addresses));
        Self { zone: Arc::new(Zone::new(discovery.services, addresses)), air }
    }

    /// The part of node `index`.
    pub fn of(&self, index: usize) -> Sight {
        Sight { names: Arc::new(self.zone.seen_by(index)), multicast: Arc::new(self.air.seen_by(index)) }
    }
}
