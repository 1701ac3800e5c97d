//! How a name becomes an address: `name@host` to `host:port` of the node's raft port.
//!
//! A port that was typed wins, then an entry of `CLUSTER_NODES`, then the port mapper of the node's host. That order holds
//! with every `CLUSTER_DISCOVERY_TYPE`, which says where a node looks for others when nobody names them.

pub mod dns;
pub mod epmd;
pub mod gossip;

use std::time::Duration;

use hexkv_raft_net::{Dialer, transport::TcpTransport};

use crate::config::{Config, Target};
use epmd::ResolveError;

/// Where names are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Nodes with known addresses.
    pub nodes: Vec<Target>,
    /// Port of the port mappers, 0 = none.
    pub epmd_port: u16,
}

impl From<&Config> for Directory {
    fn from(config: &Config) -> Self {
        Self { nodes: config.cluster_nodes.clone(), epmd_port: config.epmd_port }
    }
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
#[error("cannot find {target}: {}{source}", listed_without_port(.listed))]
pub struct DiscoveryError {
    /// The name as it was typed.
    pub target: Target,
    /// `CLUSTER_NODES`, where the name had no port either.
    pub listed: Vec<Target>,
    /// What was tried last.
    #[source]
    pub source: ResolveError,
}

fn listed_without_port(listed: &[Target]) -> String {
    if listed.is_empty() {
        return String::new();
    }
    let names = listed.iter().map(Target::to_string).collect::<Vec<_>>().join(", ");
    format!("CLUSTER_NODES has no port for it ({names}); ")
}

impl Directory {
    /// `host:port` of the raft port of `target`, where its port is known without a port mapper.
    pub fn known(&self, target: &Target) -> Option<String> {
        let listed = self.nodes.iter().find(|listed| listed.node == target.node);
        let port = target.port.or_else(|| listed.and_then(|listed| listed.port))?;
        Some(format!("{}:{port}", target.node.host()))
    }

    /// `host:port` of the raft port of `target`, within `limit`.
    ///
    /// # Errors
    /// [`DiscoveryError`], which says what was tried.
    pub async fn resolve(
        &self,
        target: &Target,
        limit: Duration,
        dialer: &Dialer<TcpTransport>,
    ) -> Result<String, DiscoveryError> {
        if let Some(address) = self.known(target) {
            return Ok(address);
        }
        match epmd::resolve(&target.node, self.epmd_port, limit, dialer).await {
            Ok(port) => Ok(format!("{}:{port}", target.node.host())),
            Err(source) => Err(DiscoveryError { target: target.clone(), listed: self.nodes.clone(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn directory(nodes: &[&str], epmd_port: u16) -> Directory {
        Directory { nodes: nodes.iter().map(|node| node.parse().unwrap()).collect(), epmd_port }
    }

    #[tokio::test]
    async fn a_typed_port_wins_over_the_list_and_the_list_over_the_mapper() {
        let directory = directory(&["a@h:1", "b@[::1]:2", "c@h"], 0);
        for (target, address) in [("a@h:9", "h:9"), ("a@h", "h:1"), ("b@[::1]", "[::1]:2"), ("d@h:3", "h:3")] {
            let dialer = Dialer::new(TcpTransport);
            let found = directory.resolve(&target.parse().unwrap(), LIMIT, &dialer).await.unwrap();
            assert_eq!(found, address, "{target}");
        }
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_an_error_that_says_what_was_tried() {
        let dialer = Dialer::new(TcpTransport);
        let listed = directory(&["a@h:1", "c@h"], 0);
        let error = listed.resolve(&"c@h".parse().unwrap(), LIMIT, &dialer).await.unwrap_err();
        let text = error.to_string();
        for part in ["cannot find c@h", "CLUSTER_NODES has no port for it (a@h:1, c@h)", "EPMD_PORT=0", "c@h:PORT"] {
            assert!(text.contains(part), "{text}");
        }
        let error = directory(&[], 0).resolve(&"c@h".parse().unwrap(), LIMIT, &dialer).await.unwrap_err();
        assert!(!error.to_string().contains("CLUSTER_NODES"), "{error}");
    }
}
