//! Options of discovery that are allowed each, and not together.

use super::{Config, DiscoveryType, error::ConfigError};

/// Which options were set, by anybody.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given {
    /// `CLUSTER_SIZE`.
    pub(super) size: bool,
    /// What a node's name is made of.
    pub(super) name: bool,
}

/// Refuses a discovery that cannot find anybody, or with which nodes would found more than one cluster.
pub(super) fn refuse_discovery_contradictions(config: &Config, given: Given) -> Result<(), ConfigError> {
    let word = config.discovery.word();
    let problem = match config.discovery {
        DiscoveryType::Epmd => None,
        DiscoveryType::Static => listed_wrongly(config),
        DiscoveryType::Dns | DiscoveryType::Gossip if !given.size => Some(format!(
            "CLUSTER_DISCOVERY_TYPE is {word}, so CLUSTER_SIZE must say how many nodes found the cluster together; the same on all nodes"
        )),
        DiscoveryType::Dns | DiscoveryType::Gossip if config.cluster_size > 1 && !given.name => Some(format!(
            "CLUSTER_DISCOVERY_TYPE is {word}, and every node would be called {}: set NODE_NAME, NODE_INDEX or HOST to something else on each node",
            config.node_name
        )),
        DiscoveryType::Dns if config.dns_hostname.is_none() => Some(
            "CLUSTER_DISCOVERY_TYPE is dns, so CLUSTER_DNS_HOSTNAME must name the records to look at, such as hexkv.default.svc.cluster.local"
                .to_owned(),
        ),
        DiscoveryType::Dns | DiscoveryType::Gossip => None,
    };
    problem.map_or(Ok(()), |text| Err(ConfigError::Conflict(text)))
}

/// A static list that is empty, or whose length is not the planned one: nodes with different lists must not found a cluster.
fn listed_wrongly(config: &Config) -> Option<String> {
    let listed = config.cluster_nodes.len();
    if listed == 0 {
        return Some("CLUSTER_DISCOVERY_TYPE is static, so CLUSTER_NODES must list the nodes: name@host:port,...".to_owned());
    }
    let size = config.cluster_size as usize;
    let others = config.cluster_nodes.iter().filter(|target| target.node != config.node_name).count();
    let fits = size == 1 || size == listed || size == others + 1;
    (!fits).then(|| {
        format!(
            "CLUSTER_NODES lists {listed} nodes and CLUSTER_SIZE is {size}: list all of them, the same on each node, and leave CLUSTER_SIZE unset"
        )
    })
}
