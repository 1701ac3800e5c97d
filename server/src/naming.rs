//! Names of nodes: this node's own registration, the addresses of others, and where those are whose names are not known.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use hexkv_raft_net::{Cookie, Dialer, transport::TcpTransport};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    config::{Config, DiscoveryType, NodeName, Target},
    discovery::{
        Directory, DiscoveryError,
        dns::{Dns, DnsError, DnsSettings},
        epmd::{self, Epmd, EpmdError, EpmdRole, EpmdSettings},
        gossip::{Gossip, GossipError, GossipSettings},
    },
    environment::Environment,
};

/// One look-up.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time that the nodes whose ports are known wait for those that a port mapper has to be asked for. A look-up goes on after it.
const MAPPER_PATIENCE: Duration = Duration::from_millis(500);
/// An answer of a look-up that was not read for this long is forgotten. Longer than [`RESOLVE_TIMEOUT`].
const LOOKUP_KEPT: Duration = Duration::from_secs(6);

/// Why discovery does not start.
#[derive(Debug, thiserror::Error)]
pub enum NamingError {
    /// The port mapper.
    #[error(transparent)]
    Epmd(#[from] EpmdError),
    /// DNS.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// Multicast.
    #[error(transparent)]
    Gossip(#[from] GossipError),
}

/// Where to look for nodes, and why some are not found.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `host:port` of raft ports; this node's own may be among them.
    pub addresses: Vec<String>,
    /// What to do about those that are missing.
    pub problems: Vec<String>,
}

/// What finds nodes whose names are not known.
#[derive(Debug)]
enum Finder {
    None,
    Dns(Dns),
    Gossip(Gossip),
}

/// Look-ups of one target by its port mapper, which go on in the background.
struct Lookup {
    began: Instant,
    running: Shared<BoxFuture<'static, Result<String, Arc<str>>>>,
    /// Why the one before it failed: true until this one ends.
    failed: Option<Arc<str>>,
}

/// How this node is found, and finds others.
pub struct Naming {
    /// This node's name, as processes of its own host look it up.
    here: NodeName,
    raft_port: u16,
    directory: Directory,
    /// Knows the hosts of port mappers.
    dialer: Dialer<TcpTransport>,
    /// The last look-up of each target that was not found yet.
    lookups: Mutex<BTreeMap<String, Lookup>>,
    registration: tokio::sync::Mutex<Option<Epmd>>,
    role: tokio::sync::watch::Receiver<EpmdRole>,
    finder: Finder,
}

/// This node as others are to find it.
#[derive(Debug, Clone, Copy)]
pub struct Presence<'a> {
    /// The port that it listens on for nodes.
    pub raft_port: u16,
    /// `host:port` of it, as others reach it.
    pub raft: &'a str,
    /// What it proves to be one of them with.
    pub cookie: &'a Cookie,
}

impl fmt::Debug for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Naming").field("here", &self.here).field("finder", &self.finder).finish_non_exhaustive()
    }
}

impl Naming {
    /// Registers this node's name with the port mapper of its host, and begins to look for others by what `environment` has.
    ///
    /// # Errors
    /// See [`NamingError`].
    pub async fn start(
        config: &Config,
        presence: Presence<'_>,
        environment: &Environment,
    ) -> Result<Self, NamingError> {
        let Presence { raft_port, raft, cookie } = presence;
        let finder = match (config.discovery, config.dns_hostname.clone()) {
            (DiscoveryType::Epmd | DiscoveryType::Static, _) => Finder::None,
            (DiscoveryType::Dns, hostname) => {
                let settings = DnsSettings {
                    hostname: hostname.expect("a configuration with dns has a hostname"),
                    server: config.dns_server,
                    interval: config.dns_interval,
                    raft_port,
                };
                Finder::Dns(Dns::start(settings, &*environment.names)?)
            }
            (DiscoveryType::Gossip, _) => {
                let settings = GossipSettings { group: config.gossip_address, interface: config.gossip_interface };
                let name = config.node_name.to_string();
                Finder::Gossip(Gossip::start(settings, &name, raft, cookie.clone(), environment).await?)
            }
        };
        let settings = EpmdSettings { port: config.epmd_port, bind: config.bind };
        let epmd = Epmd::start(settings, config.node_name.short(), raft_port).await?;
        let role = epmd.role();
        let loopback = "127.0.0.1".parse().expect("an address is a host");
        let here = NodeName::new(config.node_name.short(), loopback).expect("it is the short part of a name");
        let registration = tokio::sync::Mutex::new(Some(epmd));
        let (dialer, lookups) = (Dialer::new(TcpTransport), Mutex::default());
        Ok(Self { here, raft_port, directory: config.into(), dialer, lookups, role, registration, finder })
    }

    /// `host:port` of the raft port of `target`.
    pub async fn resolve(&self, target: &Target) -> Result<String, DiscoveryError> {
        if let Some(address) = self.announced(target) {
            return Ok(address);
        }
        self.directory.resolve(target, RESOLVE_TIMEOUT, &self.dialer).await
    }

    /// Where `target` announced itself by multicast.
    fn announced(&self, target: &Target) -> Option<String> {
        let (Finder::Gossip(gossip), None) = (&self.finder, target.port) else { return None };
        let name = target.node.to_string();
        // The one that was heard last comes first.
        gossip.heard().into_iter().find(|(heard, _)| *heard == name).map(|(_, raft)| raft)
    }

    /// As [`Self::resolve`], but a port mapper that does not answer soon is waited for in the background: a later call
    /// has its answer. The error is in words.
    async fn resolve_soon(&self, target: &Target) -> Result<String, Arc<str>> {
        if let Some(address) = self.announced(target).or_else(|| self.directory.known(target)) {
            return Ok(address);
        }
        if self.directory.epmd_port == 0 {
            return self.resolve(target).await.map_err(|e| e.to_string().into());
        }
        let key = target.to_string();
        let (began, running, failed) = {
            let mut lookups = self.lookups.lock();
            lookups.retain(|_, lookup| lookup.began.elapsed() < LOOKUP_KEPT);
            let lookup = lookups.entry(key.clone()).or_insert_with(|| self.begin_lookup(target.clone(), None));
            (lookup.began, lookup.running.clone(), lookup.failed.clone())
        };
        let patience = if failed.is_some() { Duration::ZERO } else { MAPPER_PATIENCE };
        match tokio::time::timeout_at(began + patience, running).await {
            Ok(Ok(address)) => {
                self.lookups.lock().remove(&key);
                Ok(address)
            }
            Ok(Err(why)) => {
                // A search looks again soon, and is to find an answer then.
                let next = self.begin_lookup(target.clone(), Some(why.clone()));
                self.lookups.lock().insert(key, next);
                Err(why)
            }
            Err(_) => Err(failed.unwrap_or_else(|| {
                let (host, port) = (target.node.host(), self.directory.epmd_port);
                format!("{target} is not found yet: the port mapper at {host}:{port} has not answered with its port")
                    .into()
            })),
        }
    }

    fn begin_lookup(&self, target: Target, failed: Option<Arc<str>>) -> Lookup {
        let (directory, dialer) = (self.directory.clone(), self.dialer.clone());
        let task = tokio::spawn(async move {
            directory.resolve(&target, RESOLVE_TIMEOUT, &dialer).await.map_err(|e| e.to_string().into())
        });
        let ended = task.map(|ended| ended.unwrap_or_else(|e| Err(format!("a look-up ended badly: {e}").into())));
        Lookup { began: Instant::now(), running: ended.boxed().shared(), failed }
    }

    /// Where `expected` nodes are, and those that discovery finds.
    pub async fn places(&self, expected: Vec<Target>) -> Places {
        let mut places = match &self.finder {
            Finder::None => Places::default(),
            Finder::Dns(dns) => {
                let records = dns.records();
                Places { addresses: records.addresses, problems: records.problem.into_iter().collect() }
            }
            Finder::Gossip(gossip) => Places {
                addresses: gossip.heard().into_iter().map(|(_, raft)| raft).collect(),
                problems: gossip.problem().into_iter().collect(),
            },
        };
        for resolved in join_all(expected.iter().map(|target| self.resolve_soon(target))).await {
            match resolved {
                Ok(address) => places.addresses.push(address),
                Err(e) => places.problems.push(e.to_string()),
            }
        }
        places.addresses.sort();
        places.addresses.dedup();
        places
    }

    /// The registration with the port mapper, in a few words.
    pub fn mapper(&self) -> &'static str {
        match *self.role.borrow() {
            EpmdRole::Off => "off",
            EpmdRole::Serving | EpmdRole::Registered => "ok",
            EpmdRole::Searching => "the port mapper of this host does not answer",
        }
    }

    /// What the port mapper of this host answers to whoever asks it for this node: `ok`, `off`, or what is wrong.
    pub async fn check_mapper(&self) -> String {
        if *self.role.borrow() == EpmdRole::Off {
            return self.mapper().into();
        }
        match epmd::resolve(&self.here, self.directory.epmd_port, RESOLVE_TIMEOUT, &self.dialer).await {
            Ok(port) if port == self.raft_port => "ok".into(),
            Ok(port) => format!("it says that {} is at port {port}, not {}", self.here.short(), self.raft_port),
            Err(e) => e.to_string(),
        }
    }

    /// What finds others, in a few words.
    pub fn describe(&self) -> String {
        match &self.finder {
            Finder::None => self.mapper().into(),
            Finder::Dns(dns) => dns.describe(),
            Finder::Gossip(gossip) => gossip.describe(),
        }
    }

    /// Takes the name back.
    pub async fn stop(&self) {
        if let Some(epmd) = self.registration.lock().await.take() {
            epmd.stop().await;
        }
    }
}
