//! From texts to a [`Config`]: derived defaults, values that contradict each other, and what deserves a warning.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    Config, RAFT_PORT_OFFSET,
    allowed_hosts::AllowedHosts,
    choices::{Choice, DiscoveryType, NodeRole},
    cookie::{Cookie, CookieSource},
    discovery::{Given, refuse_discovery_contradictions},
    error::ConfigError,
    hostname,
    layers::{Layers, Source},
    name::{NodeName, Target},
    options::{CI_ENV, OPTIONS, OptionDefault, option},
    print::{Resolved, Shown, Sources},
    value::Value,
};

/// File in the user's home that holds the cookie where none is configured.
const COOKIE_FILE_NAME: &str = ".hexkv.cookie";

pub(super) fn resolve(layers: &Layers, print_requested: bool) -> Result<(Config, Sources), ConfigError> {
    let mut resolver = Resolver { layers, resolved: BTreeMap::new() };
    let config = resolver.config()?;
    let rows = OPTIONS.iter().map(|row| {
        let resolved = resolver.resolved.remove(row.key);
        resolved.unwrap_or_else(|| panic!("option {} is in the table and nobody reads it", row.key))
    });
    Ok((config, Sources::new(rows.collect(), print_requested)))
}

/// Reads options and notes what came of each.
struct Resolver<'a> {
    layers: &'a Layers,
    resolved: BTreeMap<&'static str, Resolved>,
}

/// Index, planned size and what follows from them.
struct Place {
    name: NodeName,
    index: u32,
    index_is_set: bool,
    discovery: DiscoveryType,
    cluster_nodes: Vec<Target>,
    size: u32,
    port: u16,
    raft_port: u16,
}

impl Resolver<'_> {
    fn config(&mut self) -> Result<Config, ConfigError> {
        let place = self.place()?;
        let heartbeat_interval = self.time("heartbeat_interval")?;
        let election_timeout_min = self.time("election_timeout_min")?;
        let bind = self.demand("bind", None, |value| if let Value::Ip(ip) = value { Ok(ip) } else { Err(value) })?;
        let mut config = Config {
            node_index: place.index,
            index_is_set: place.index_is_set,
            cluster_size: place.size,
            replication_factor: self.number("replication_factor")?,
            bind,
            advertise: self.demand("advertise", Some(place.name.host().to_string()), |value| {
                if let Value::Host(host) = value { Ok(host) } else { Err(value) }
            })?,
            allowed_hosts: match self.read("allowed_hosts", None)? {
                Some(Value::AllowedHosts(hosts)) => hosts,
                Some(other) => wrong_kind("allowed_hosts")(other),
                None => AllowedHosts::default(),
            },
            port: place.port,
            raft_port: place.raft_port,
            data_dir: self.demand("data_dir", Some(format!("./data/{}", place.name.short())), as_path)?,
            cookie: self.cookie()?,
            discovery: place.discovery,
            cluster_nodes: place.cluster_nodes,
            dns_hostname: self.read("cluster_dns_hostname", None)?.map(|value| match value {
                Value::Host(host) => host,
                other => wrong_kind("cluster_dns_hostname")(other),
            }),
            dns_server: self
                .read("cluster_dns_server", None)?
                .map(|value| as_socket(value).unwrap_or_else(wrong_kind("cluster_dns_server"))),
            dns_interval: self.time("cluster_dns_interval")?,
            gossip_address: self.demand("cluster_gossip_address", None, as_socket)?,
            gossip_interface: self.gossip_interface(bind)?,
            epmd_port: self.number("epmd_port")?,
            replace_after: Some(self.time("replace_after")?).filter(|silence| !silence.is_zero()),
            heartbeat_interval,
            heartbeat_timeout: self.time("heartbeat_timeout")?,
            election_timeout_min,
            election_timeout_max: self.time("election_timeout_max")?,
            value_bytes_max: self.number("value_bytes_max")?,
            engine: self.word("engine")?,
            sled_cache_bytes: self.number("sled_cache_bytes")?,
            wal_segment_bytes: self.number("wal_segment_bytes")?,
            snapshot_log_bytes_min: self.number("snapshot_log_bytes_min")?,
            log_entries_kept: self.number("log_entries_kept")?,
            history_revisions: self.number("history_revisions")?,
            history_age: self.time("history_age")?,
            history_bytes: self.number("history_bytes")?,
            proposals_max: self.number("proposals_max")?,
            proposals_bytes_max: self.number("proposals_bytes_max")?,
            request_timeout: self.time("request_timeout")?,
            connections_max: self.number("connections_max")?,
            shutdown_timeout: self.time("shutdown_timeout")?,
            log_format: self.word("log_format")?,
            log_filter: self.demand("log", None, as_text)?,
            warnings: Vec::new(),
            node_name: place.name,
        };
        refuse_contradictions(&config)?;
        let is_set = |key: &str| self.resolved[key].source != Source::Default;
        refuse_discovery_contradictions(
            &config,
            Given {
                size: is_set("cluster_size"),
                name: ["node_name", "node_index", "node_role", "host"].into_iter().any(is_set),
            },
        )?;
        config.warnings = self.warnings(&config);
        Ok(config)
    }

    fn place(&mut self) -> Result<Place, ConfigError> {
        let max_size: u32 = self.number("max_cluster_size")?;
        let discovery: DiscoveryType = self.word("cluster_discovery_type")?;
        let cluster_nodes = match self.read("cluster_nodes", None)? {
            Some(Value::Targets(targets)) => targets,
            None => Vec::new(),
            Some(other) => panic!("cluster_nodes reads as {other:?}"),
        };
        let mut size = self.cluster_size(max_size)?;
        let counted = discovery == DiscoveryType::Static && self.resolved["cluster_size"].source == Source::Default;
        // One more than are listed: this node may be left out of its own list.
        let index = self.node_index(if counted { cluster_nodes.len() as u32 + 1 } else { size })?;
        let host =
            self.demand("host", None, |value| if let Value::Host(host) = value { Ok(host) } else { Err(value) })?;
        let mut name = self.demand("node_name", Some(format!("hex_hub{index}")), as_text)?;
        if !name.contains('@') {
            name = format!("{name}@{host}");
            self.note("node_name", &Value::Text(name.clone()));
        }
        let set = |option: &str| self.resolved[option].source != Source::Default;
        let index_is_set = set("node_index") || set("node_role");
        if discovery == DiscoveryType::Epmd && size > 1 && set("node_name") && !index_is_set {
            // All of them would be node 1: each index has one vote when a cluster is founded.
            return Err(ConfigError::Conflict(format!(
                "CLUSTER_SIZE is {size} and NODE_NAME is set: set NODE_INDEX too, 1..={size}, another one on each node"
            )));
        }
        let name: NodeName = name.parse().unwrap_or_else(|error| panic!("{name} was checked before: {error}"));
        if counted {
            let others = cluster_nodes.iter().filter(|target| target.node != name).count() as u64;
            size = self.up_to("cluster_nodes", others + 1, max_size, "MAX_CLUSTER_SIZE")?;
            self.note("cluster_size", &Value::Number(u64::from(size)));
        }
        let base_port: u32 = self.number("base_http_port")?;
        let spacing: u32 = self.number("port_spacing")?;
        let default_port = base_port + (index - 1) * spacing;
        let port: u16 = self.number_or("port", Some(default_port.to_string()))?;
        // As u32, so that a default beyond the last port is refused with the number it would have.
        let default_raft_port = if port == 0 { 0 } else { u32::from(port) + u32::from(RAFT_PORT_OFFSET) };
        let raft_port = self.number_or("raft_port", Some(default_raft_port.to_string()))?;
        Ok(Place { name, index, index_is_set, discovery, cluster_nodes, size, port, raft_port })
    }

    fn cluster_size(&mut self, max: u32) -> Result<u32, ConfigError> {
        let size = self.number_or("cluster_size", Some("1".to_owned()))?;
        let ci_size = match self.read("ci_cluster_size", None)? {
            Some(Value::Number(number)) => Some(self.up_to("ci_cluster_size", number, max, "MAX_CLUSTER_SIZE")?),
            Some(other) => wrong_kind("ci_cluster_size")(other),
            None => None,
        };
        let ci_source = self.resolved["ci_cluster_size"].source.clone();
        let is_ci = self.layers.variable(CI_ENV).is_some_and(|value| value == "true");
        let is_stronger = ci_source.rank() >= self.resolved["cluster_size"].source.rank();
        if let Some(ci_size) = ci_size.filter(|_| is_ci && is_stronger) {
            self.note("cluster_size", &Value::Number(u64::from(ci_size)));
            self.note_source("cluster_size", ci_source);
            return Ok(ci_size);
        }
        self.up_to("cluster_size", size, max, "MAX_CLUSTER_SIZE")
    }

    fn node_index(&mut self, size: u32) -> Result<u32, ConfigError> {
        let role = self.read("node_role", None)?.map(|value| self.meaning::<NodeRole>("node_role", value));
        let from_role = role.map_or(1, NodeRole::index);
        let index: u64 = self.number_or("node_index", Some(from_role.to_string()))?;
        if role.is_some() && index != from_role {
            let (role, index) = (self.origin("node_role"), self.origin("node_index"));
            return Err(ConfigError::Conflict(format!(
                "{role} means index {from_role}, but {index} says another; set one of the two"
            )));
        }
        self.up_to("node_index", index, size, "CLUSTER_SIZE").map_err(|error| match (role, error) {
            (Some(role), ConfigError::Value { allowed, .. }) => ConfigError::Value {
                origin: self.origin("node_role"),
                value: format!("{:?}", role.word()),
                allowed: format!("index {allowed}"),
            },
            (_, error) => error,
        })
    }

    fn gossip_interface(&mut self, bind: IpAddr) -> Result<Ipv4Addr, ConfigError> {
        let from_bind = match bind {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        self.demand("cluster_gossip_interface", Some(from_bind.to_string()), |value| match value {
            Value::Ip(IpAddr::V4(address)) => Ok(address),
            other => Err(other),
        })
    }

    fn cookie(&mut self) -> Result<CookieSource, ConfigError> {
        let home = self.layers.variable("HOME").and_then(|home| home.to_str());
        let default_path = home.map(|home| format!("{}/{COOKIE_FILE_NAME}", home.trim_end_matches('/')));
        let path = self
            .read("cookie_file", default_path)?
            .map(|value| as_path(value).unwrap_or_else(wrong_kind("cookie_file")));
        if let Some(value) = self.read("cookie", None)? {
            return Ok(CookieSource::Given(Cookie::new(as_text(value).unwrap_or_else(wrong_kind("cookie")))));
        }
        let private = self.resolved["cookie_file"].source == Source::Default;
        Ok(path.map_or(CookieSource::Nowhere, |path| CookieSource::File { path, private }))
    }

    fn warnings(&self, config: &Config) -> Vec<String> {
        let mut warnings = Vec::new();
        let factor = config.replication_factor;
        if factor.is_multiple_of(2) {
            let odd = factor - 1;
            warnings.push(format!(
                "REPLICATION_FACTOR {factor} is even: it survives no more failures than {odd} does, and needs one more vote"
            ));
        }
        if self.resolved["cluster_size"].source != Source::Default && factor > config.cluster_size {
            let size = config.cluster_size;
            warnings.push(format!(
                "REPLICATION_FACTOR {factor} is larger than CLUSTER_SIZE {size}: data has {size} copies until more nodes join"
            ));
        }
        let (bind, advertise) = (config.bind, &config.advertise);
        match (bind.is_loopback(), advertise.is_loopback()) {
            (true, true) => {}
            (true, false) => warnings.push(format!(
                "others are told to reach this node at {advertise}, but it listens on {bind} only; set BIND, or ADVERTISE"
            )),
            (false, advertises_loopback) => {
                warnings.push(format!(
                    "BIND {bind} can be reached from other machines, and traffic is not encrypted: keep its ports behind a firewall or in a private network"
                ));
                if advertises_loopback {
                    warnings.push(format!(
                        "others are told to reach this node at {advertise}, which is their own machine; set ADVERTISE, or HOST"
                    ));
                }
            }
        }
        warnings
    }

    /// The value of `key`: as it was set, or its static default, or `derived`; None where it has neither.
    fn read(&mut self, key: &'static str, derived: Option<String>) -> Result<Option<Value>, ConfigError> {
        let row = option(key);
        let default = match row.default {
            OptionDefault::Value(text) => Some(text.to_owned()),
            OptionDefault::Derived(_) => derived,
            OptionDefault::Unset => None,
        };
        let set = self.layers.find(row).cloned().or(default.map(|text| (text, Source::Default)));
        let (value, source) = match set {
            None => (None, Source::Default),
            Some((text, source)) => {
                let text = if row.kind.takes_hostname() { hostname::fill_in(&text) } else { text.as_str().into() };
                match row.kind.parse(&text) {
                    Some(value) => (Some(value), source),
                    None => return Err(ConfigError::value(row, &source, &text)),
                }
            }
        };
        self.resolved.insert(key, Resolved { row, value: Shown::Unset, source });
        if let Some(value) = &value {
            self.note(key, value);
        }
        Ok(value)
    }

    /// As [`Self::read`], for options that always have a value, of the kind that `take` takes.
    fn demand<T>(
        &mut self,
        key: &'static str,
        derived: Option<String>,
        take: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Result<T, ConfigError> {
        let value = self.read(key, derived)?.unwrap_or_else(|| panic!("option {key} has no default"));
        Ok(take(value).unwrap_or_else(wrong_kind(key)))
    }

    fn number<T: TryFrom<u64>>(&mut self, key: &'static str) -> Result<T, ConfigError> {
        self.number_or(key, None)
    }

    fn number_or<T: TryFrom<u64>>(&mut self, key: &'static str, derived: Option<String>) -> Result<T, ConfigError> {
        self.demand(key, derived, |value| match value {
            Value::Number(number) => T::try_from(number).map_err(|_| value),
            other => Err(other),
        })
    }

    fn time(&mut self, key: &'static str) -> Result<Duration, ConfigError> {
        self.demand(key, None, |value| if let Value::Time(time) = value { Ok(time) } else { Err(value) })
    }

    fn word<C: Choice>(&mut self, key: &'static str) -> Result<C, ConfigError> {
        let value = self.demand(key, None, Ok)?;
        Ok(self.meaning(key, value))
    }

    fn meaning<C: Choice>(&self, key: &'static str, value: Value) -> C {
        let word = as_text(value).unwrap_or_else(wrong_kind(key));
        C::from_word(&word).unwrap_or_else(|| panic!("{key}: {word} was checked before"))
    }

    /// Refuses a `number` outside 1..=`limit`, which is the value of the option called `limit_name`.
    fn up_to(&self, key: &'static str, number: u64, limit: u32, limit_name: &str) -> Result<u32, ConfigError> {
        let within = u32::try_from(number).ok().filter(|number| (1..=limit).contains(number));
        within.ok_or_else(|| ConfigError::Value {
            origin: self.origin(key),
            value: number.to_string(),
            allowed: format!("1..={limit} ({limit_name})"),
        })
    }

    fn origin(&self, key: &'static str) -> String {
        self.resolved[key].source.origin(option(key))
    }

    fn note(&mut self, key: &'static str, value: &Value) {
        let row = option(key);
        let shown = if row.is_secret() { Shown::Hidden } else { Shown::Toml(value.to_toml(row.kind)) };
        self.resolved.get_mut(key).unwrap_or_else(|| panic!("{key} is noted before it is read")).value = shown;
    }

    fn note_source(&mut self, key: &'static str, source: Source) {
        self.resolved.get_mut(key).unwrap_or_else(|| panic!("{key} is noted before it is read")).source = source;
    }
}

fn as_text(value: Value) -> Result<String, Value> {
    if let Value::Text(text) = value { Ok(text) } else { Err(value) }
}

fn as_socket(value: Value) -> Result<SocketAddr, Value> {
    if let Value::Socket(address) = value { Ok(address) } else { Err(value) }
}

fn as_path(value: Value) -> Result<PathBuf, Value> {
    if let Value::Path(path) = value { Ok(path) } else { Err(value) }
}

/// For a value that its row in the table does not allow: the table and the resolver disagree.
fn wrong_kind<T>(key: &'static str) -> impl FnOnce(Value) -> T {
    move |value: Value| panic!("option {key} is not expected to be {value:?}")
}

/// Values that are allowed each, and not together.
fn refuse_contradictions(config: &Config) -> Result<(), ConfigError> {
    let conflict = |text: String| Err(ConfigError::Conflict(text));
    if config.port != 0 && config.port == config.raft_port {
        return conflict(format!("PORT and RAFT_PORT are both {}; they must differ", config.port));
    }
    // openraft refuses to start otherwise: a follower would campaign between two heartbeats, and all at once.
    let ordered = [
        (("HEARTBEAT_INTERVAL", config.heartbeat_interval), ("HEARTBEAT_TIMEOUT", config.heartbeat_timeout)),
        (("HEARTBEAT_INTERVAL", config.heartbeat_interval), ("ELECTION_TIMEOUT_MIN", config.election_timeout_min)),
        (("ELECTION_TIMEOUT_MIN", config.election_timeout_min), ("ELECTION_TIMEOUT_MAX", config.election_timeout_max)),
    ];
    for ((smaller, low), (larger, high)) in ordered {
        if low.as_millis() >= high.as_millis() {
            return conflict(format!(
                "{larger} is {} ms; it must be longer than {smaller}, which is {} ms",
                high.as_millis(),
                low.as_millis()
            ));
        }
    }
    if let Some(silence) = config.replace_after.filter(|silence| *silence <= config.heartbeat_timeout) {
        return conflict(format!(
            "REPLACE_AFTER is {} ms; it must be longer than HEARTBEAT_TIMEOUT, which is {} ms, or 0s to replace nobody",
            silence.as_millis(),
            config.heartbeat_timeout.as_millis()
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    match config.cluster_nodes.iter().find(|target| !seen.insert(&target.node)) {
        Some(target) => conflict(format!("CLUSTER_NODES lists {} twice", target.node)),
        None => Ok(()),
    }
}
