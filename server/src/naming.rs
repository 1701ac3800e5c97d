//! Names of nodes: this node's own registration, and the addresses of others.

use std::time::Duration;

use crate::{
    config::{Config, Target},
    discovery::{
        Directory, DiscoveryError,
        epmd::{Epmd, EpmdError, EpmdRole, EpmdSettings},
        resolve_target,
    },
};

/// One look-up.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How this node is found, and finds others.
#[derive(Debug)]
pub struct Naming {
    directory: Directory,
    registration: tokio::sync::Mutex<Option<Epmd>>,
    role: tokio::sync::watch::Receiver<EpmdRole>,
}

impl Naming {
    /// Registers this node's name with the port mapper of its host.
    pub async fn start(config: &Config, raft_port: u16) -> Result<Self, EpmdError> {
        let settings = EpmdSettings { port: config.epmd_port, bind: config.bind };
        let epmd = Epmd::start(settings, config.node_name.short(), raft_port).await?;
        Ok(Self { directory: config.into(), role: epmd.role(), registration: tokio::sync::Mutex::new(Some(epmd)) })
    }

    /// `host:port` of the raft port of `target`.
    pub async fn resolve(&self, target: &Target) -> Result<String, DiscoveryError> {
        resolve_target(target, &self.directory, RESOLVE_TIMEOUT).await
    }

    /// The registration in a word or two.
    pub fn describe(&self) -> &'static str {
        match *self.role.borrow() {
            EpmdRole::Off => "off",
            EpmdRole::Serving | EpmdRole::Registered => "ok",
            EpmdRole::Searching => "looking for a port mapper",
        }
    }

    /// Takes the name back.
    pub async fn stop(&self) {
        if let Some(epmd) = self.registration.lock().await.take() {
            epmd.stop().await;
        }
    }
}
