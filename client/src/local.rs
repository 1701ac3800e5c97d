//! A cluster on this machine: names and ports follow from a node's index, so nodes and tests find each other.

use std::env;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::api::{ClusterStatus, HealthAnswer, Role};
use crate::cluster::HealthCheck;
use crate::{Client, Endpoint, Error, Options};

/// HTTP port of node 1 unless `BASE_HTTP_PORT` says otherwise.
pub const BASE_HTTP_PORT: u16 = 4000;

/// From one node's HTTP port to the next unless `PORT_SPACING` says otherwise.
pub const PORT_SPACING: u16 = 10;

/// From a node's HTTP port to its raft port.
pub const RAFT_PORT_OFFSET: u16 = 5100;

/// Largest size of a cluster on one machine unless `MAX_CLUSTER_SIZE` says otherwise.
pub const MAX_CLUSTER_SIZE: u32 = 10;

/// The host that local nodes are named after and listen on.
pub const HOST: &str = "127.0.0.1";

/// Short names of local nodes are this, followed by the index.
pub const NODE_NAME_PREFIX: &str = "hex_hub";

/// Pause between two looks at a cluster that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A node that has not answered after this does not count as there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the nodes of a local cluster are, by index (from 1).
///
/// Invariants: all ports of all nodes up to `size_max` exist and differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCluster {
    base_http_port: u16,
    port_spacing: u16,
    size_max: u32,
}

/// One node as it shows itself now.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Index, from 1.
    pub index: u32,
    /// Full name, by index.
    pub name: String,
    /// Its HTTP side.
    pub endpoint: Endpoint,
    /// Its answer to `/health/ready`.
    pub ready: Result<HealthAnswer, Error>,
    /// Its answer to `/api/cluster/status`.
    pub status: Result<ClusterStatus, Error>,
}

impl LocalCluster {
    /// A cluster whose node 1 has the HTTP port `base_http_port`, each further one `port_spacing` more.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `size_max` nodes would not all have ports of their own.
    pub fn new(base_http_port: u16, port_spacing: u16, size_max: u32) -> Result<Self, Error> {
        let cluster = Self { base_http_port, port_spacing, size_max };
        let highest = u64::from(base_http_port)
            + u64::from(port_spacing) * u64::from(size_max.saturating_sub(1))
            + u64::from(RAFT_PORT_OFFSET);
        if size_max == 0 || base_http_port == 0 || highest > u64::from(u16::MAX) {
            return Err(Error::Invalid(format!(
                "{size_max} nodes from port {base_http_port} on, {port_spacing} apart, need ports 1 to {highest}: \
                 choose another BASE_HTTP_PORT or PORT_SPACING so that all are 1..=65535"
            )));
        }
        let mut ports: Vec<u16> =
            (1..=size_max).flat_map(|index| [cluster.http_port(index), cluster.raft_port(index)]).collect();
        ports.sort_unstable();
        match ports.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::Invalid(format!(
                "with PORT_SPACING={port_spacing} two of {size_max} nodes would share port {}: choose another spacing, or a smaller \
                 MAX_CLUSTER_SIZE",
                pair[0]
            ))),
            None => Ok(cluster),
        }
    }

    /// The cluster that `BASE_HTTP_PORT`, `PORT_SPACING` and `MAX_CLUSTER_SIZE` describe.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one of them is no number, or together they make no cluster.
    pub fn from_env() -> Result<Self, Error> {
        let base = env_number("BASE_HTTP_PORT")?.unwrap_or(BASE_HTTP_PORT);
        let spacing = env_number("PORT_SPACING")?.unwrap_or(PORT_SPACING);
        Self::new(base, spacing, env_number("MAX_CLUSTER_SIZE")?.unwrap_or(MAX_CLUSTER_SIZE))
    }

    /// HTTP port of node 1.
    pub fn base_http_port(&self) -> u16 {
        self.base_http_port
    }

    /// From one node's HTTP port to the next.
    pub fn port_spacing(&self) -> u16 {
        self.port_spacing
    }

    /// Short name of a node.
    pub fn short_name(index: u32) -> String {
        format!("{NODE_NAME_PREFIX}{index}")
    }

    /// Full name of a node.
    pub fn name(index: u32) -> String {
        format!("{}@{HOST}", Self::short_name(index))
    }

    /// HTTP port of a node.
    ///
    /// # Panics
    /// When `index` is outside 1..=`size_max`.
    pub fn http_port(&self, index: u32) -> u16 {
        assert!((1..=self.size_max).contains(&index), "node {index} of at most {}", self.size_max);
        let port = u32::from(self.base_http_port) + (index - 1) * u32::from(self.port_spacing);
        u16::try_from(port).expect("checked by new")
    }

    /// Raft port of a node.
    ///
    /// # Panics
    /// When `index` is outside 1..=`size_max`.
    pub fn raft_port(&self, index: u32) -> u16 {
        self.http_port(index) + RAFT_PORT_OFFSET
    }

    /// HTTP side of a node.
    ///
    /// # Panics
    /// When `index` is outside 1..=`size_max`.
    pub fn endpoint(&self, index: u32) -> Endpoint {
        format!("{HOST}:{}", self.http_port(index)).parse().expect("a host and a port make an endpoint")
    }

    /// HTTP sides of the first `n` nodes.
    ///
    /// # Panics
    /// When `n` is larger than `size_max`.
    pub fn endpoints(&self, n: u32) -> Vec<Endpoint> {
        (1..=n).map(|index| self.endpoint(index)).collect()
    }

    /// Looks at the first `n` nodes, all at once; takes two seconds at most.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a cluster cannot have `n` nodes.
    pub async fn probe_nodes(&self, n: u32) -> Result<Vec<Probe>, Error> {
        check_size(n, self.size_max)?;
        let probes = (1..=n).map(|index| async move {
            let endpoint = self.endpoint(index);
            let options = Options { timeout: PROBE_TIMEOUT, attempts_max: 1, ..Options::default() };
            let client = Client::with_endpoints(vec![endpoint.clone()], options)?;
            let (ready, status) = tokio::join!(client.health(HealthCheck::Ready), client.status());
            Ok(Probe { index, name: Self::name(index), endpoint, ready, status })
        });
        join_all(probes).await.into_iter().collect()
    }

    /// Which of the first `n` nodes answer now, in a cluster or not.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a cluster cannot have `n` nodes.
    pub async fn discover_nodes(&self, n: u32) -> Result<Vec<Probe>, Error> {
        let mut probes = self.probe_nodes(n).await?;
        probes.retain(|probe| probe.status.is_ok());
        Ok(probes)
    }

    /// A client of the first `n` nodes, which must have formed a cluster.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when they have not, saying what is missing.
    pub async fn connect_cluster(&self, n: u32) -> Result<Client, Error> {
        formed(&self.probe_nodes(n).await?).map_err(|detail| Error::Unavailable { detail, code: None })?;
        Client::with_endpoints(self.endpoints(n), Options::default())
    }

    /// Waits until the first `n` nodes have formed a cluster, and returns a client of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when they have not within `timeout`, saying what is missing.
    pub async fn wait_for_cluster(&self, n: u32, timeout: Duration) -> Result<Client, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.connect_cluster(n).await {
                Err(Error::Unavailable { .. }) if Instant::now() + POLL_INTERVAL < deadline => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                settled => return settled,
            }
        }
    }

    /// What the cluster says about itself; any node is asked.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no node answers.
    pub async fn cluster_info(&self) -> Result<ClusterStatus, Error> {
        let options = Options { timeout: PROBE_TIMEOUT, attempts_max: self.size_max, ..Options::default() };
        Client::with_endpoints(self.endpoints(self.size_max), options)?.status().await
    }

    /// Whether the first `n` nodes are one cluster that serves.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a cluster cannot have `n` nodes.
    pub async fn cluster_formed(&self, n: u32) -> Result<bool, Error> {
        Ok(formed(&self.probe_nodes(n).await?).is_ok())
    }
}

/// Whether all probed nodes are ready, know each other as members and agree on the leader.
///
/// # Errors
/// What is missing, in words.
pub fn formed(probes: &[Probe]) -> Result<(), String> {
    for probe in probes {
        let name = &probe.name;
        let status = probe.status.as_ref().map_err(|error| format!("{name}: {error}"))?;
        probe.ready.as_ref().map_err(|error| format!("{name} is not ready: {error}"))?;
        if let Some(missing) = probes.iter().find(|other| status.members.iter().all(|m| m.name != other.name)) {
            return Err(format!("{name} does not know {} as a member yet", missing.name));
        }
        if status.leader.is_none() {
            return Err(format!("{name} knows no leader yet"));
        }
        let wanted = status.members.len().min(status.replication_factor as usize);
        let voters = status.members.iter().filter(|member| member.role == Role::Voter).count();
        if voters != wanted {
            return Err(format!("{name} sees {voters} voters, and waits for {wanted}"));
        }
    }
    let mut statuses = probes.iter().filter_map(|probe| probe.status.as_ref().ok());
    let Some(first) = statuses.next() else { return Err("there are no nodes".to_owned()) };
    let differs = |other: &&ClusterStatus| (&other.cluster_id, &other.leader) != (&first.cluster_id, &first.leader);
    if let Some(other) = statuses.find(differs) {
        return Err(format!("{} and {} are in different clusters or follow different leaders", first.node, other.node));
    }
    Ok(())
}

/// `size`, when a cluster may have it.
///
/// # Errors
/// [`Error::Invalid`] naming the range.
pub fn check_size(size: u32, max: u32) -> Result<u32, Error> {
    if (1..=max).contains(&size) {
        return Ok(size);
    }
    Err(Error::Invalid(format!("cluster size {size} is outside 1..={max} (MAX_CLUSTER_SIZE is {max})")))
}

/// A number from the environment; `None` when the variable is unset or empty.
///
/// # Errors
/// [`Error::Invalid`] naming the variable when it is no such number.
pub fn env_number<T: std::str::FromStr>(name: &str) -> Result<Option<T>, Error> {
    match env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().map(Some).map_err(|_| Error::Invalid(format!("{name}={text:?} is not a number in range")))
        }
        Ok(_) | Err(env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(Error::Invalid(format!("{name}: {error}"))),
    }
}
