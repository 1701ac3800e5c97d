//! Names of nodes: this node's own registration, the addresses of others, and where those are whose names are not known.

use std::time::Duration;

use futures_util::future::join_all;
use hexkv_raft_net::Cookie;

use crate::{
    config::{Config, DiscoveryType, NodeName, Target},
    discovery::{
        Directory, DiscoveryError,
        dns::{Dns, DnsError, DnsSettings},
        epmd::{self, Epmd, EpmdError, EpmdRole, EpmdSettings},
        gossip::{Gossip, GossipError, GossipSettings},
        resolve_target,
    },
    environment::Environment,
};

/// One look-up.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

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

/// How this node is found, and finds others.
#[derive(Debug)]
pub struct Naming {
    /// This node's name, as processes of its own host look it up.
    here: NodeName,
    raft_port: u16,
    directory: Directory,
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
        Ok(Self { here, raft_port, directory: config.into(), role, registration, finder })
    }

    /// `host:port` of the raft port of `target`.
    pub async fn resolve(&self, target: &Target) -> Result<String, DiscoveryError> {
        if let (Finder::Gossip(gossip), None) = (&self.finder, target.port) {
            let name = target.node.to_string();
            // The one that was heard last comes first.
            if let Some((_, raft)) = gossip.heard().into_iter().find(|(heard, _)| *heard == name) {
                return Ok(raft);
            }
        }
        resolve_target(target, &self.directory, RESOLVE_TIMEOUT).await
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
        for resolved in join_all(expected.iter().map(|target| self.resolve(target))).await {
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
            EpmdRole::Searching => "looking for a port mapper",
        }
    }

    /// What the port mapper of this host answers to whoever asks it for this node: `ok`, `off`, or what is wrong.
    pub async fn check_mapper(&self) -> String {
        if *self.role.borrow() == EpmdRole::Off {
            return self.mapper().into();
        }
        match epmd::resolve(&self.here, self.directory.epmd_port, RESOLVE_TIMEOUT).await {
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
