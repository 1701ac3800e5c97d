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
        return Some(
            "CLUSTER_DISCOVERY_TYPE is static, so CLUSTER_NODES must list the nodes: name@host:port,...".to_owned(),
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(key, value)| (key.into(), value.into()));
        Config::load(["server"], environment).map(|(config, _)| config)
    }

    #[test]
    fn a_static_list_says_how_many_nodes_there_are() {
        let listed = |name: &str, nodes: &str| {
            load(&[("CLUSTER_DISCOVERY_TYPE", "static"), ("CLUSTER_NODES", nodes), ("NODE_NAME", name)])
        };
        assert_eq!(listed("a@h", "a@h:1,b@h:2,c@h:3").unwrap().cluster_size, 3);
        assert_eq!(listed("a@h", "b@h:2,c@h:3").unwrap().cluster_size, 3, "who leaves itself out is one of them");
        assert_eq!(listed("a@h", "a@h:1").unwrap().cluster_size, 1);
        let many: Vec<String> = (0..11).map(|i| format!("n{i}@h:1")).collect();
        let error = listed("n0@h", &many.join(",")).unwrap_err().to_string();
        assert!(error.contains("CLUSTER_NODES") && error.contains("1..=10 (MAX_CLUSTER_SIZE)"), "{error}");
    }

    #[test]
    fn a_discovery_that_finds_nobody_is_refused() {
        let dns = ("CLUSTER_DISCOVERY_TYPE", "dns");
        let cases: [(&[(&str, &str)], &str); 5] = [
            (
                &[("CLUSTER_DISCOVERY_TYPE", "static"), ("CLUSTER_NODES", "a@b:1,c@d:1"), ("CLUSTER_SIZE", "5")],
                "CLUSTER_NODES lists 2 nodes and CLUSTER_SIZE is 5",
            ),
            (&[dns], "CLUSTER_SIZE must say"),
            (&[dns, ("CLUSTER_SIZE", "3")], "every node would be called hex_hub1@127.0.0.1"),
            (&[dns, ("CLUSTER_SIZE", "3"), ("HOST", "a")], "CLUSTER_DNS_HOSTNAME must name"),
            (&[("CLUSTER_DISCOVERY_TYPE", "gossip")], "CLUSTER_SIZE must say"),
        ];
        for (environment, says) in cases {
            let error = load(environment).unwrap_err().to_string();
            assert!(error.contains(says), "{environment:?}: {error}");
        }
        load(&[dns, ("CLUSTER_SIZE", "3"), ("HOST", "a"), ("CLUSTER_DNS_HOSTNAME", "b.c")]).unwrap();
    }
}
