//! The table of options. `--help`, the environment's names, the keys of the TOML file, `--print-config`, the README's
//! table and the checks of single values all come from here.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};
use hexkv_store::{
    command::{VALUE_BYTES_CEILING, VALUE_BYTES_DEFAULT},
    member::MEMBERS_MAX,
};

use super::{
    choices::{DiscoveryType, EngineKind, LogFormat, NodeRole},
    value::{Kind, words},
};

/// The flag that names the TOML file.
pub(super) const CONFIG_FLAG: &str = "config";
/// The environment variable that names the TOML file.
pub(super) const CONFIG_ENV: &str = "HEXKV_CONFIG";
/// The flag that prints the configuration and ends.
pub(super) const PRINT_FLAG: &str = "print-config";
/// Variables of this prefix belong to hexkv, so an unknown one is a mistake.
pub(super) const ENV_PREFIX: &str = "HEXKV_";
/// Variables with the prefix that other binaries read: the node leaves them alone.
pub(super) const ENV_OF_OTHERS: &[&str] = &[
    "HEXKV_CLUSTER_DIR",
    "HEXKV_SERVER",
    "HEXKV_ENDPOINTS",
    #[cfg(feature = "mutants")]
    hexkv_store::mutants::VARIABLE,
];
/// What continuous integration systems set to `true`.
pub(super) const CI_ENV: &str = "CI";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// What an option is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionDefault {
    /// This value.
    Value(&'static str),
    /// Computed from other options; the text says how.
    Derived(&'static str),
    /// Nothing.
    Unset,
}

/// One option of the node.
#[derive(Debug, Clone, Copy)]
pub struct OptionRow {
    /// Key in the TOML file. In capitals it is the environment variable, with `-` for `_` the flag.
    pub key: &'static str,
    /// A second environment variable, read when the first is not set.
    pub env_alias: Option<&'static str>,
    /// Its value when nobody sets it.
    pub default: OptionDefault,
    /// What it sets, in one line.
    pub help: &'static str,
    pub(super) kind: Kind,
}

impl OptionRow {
    /// Name of the environment variable.
    pub fn env(&self) -> String {
        self.key.to_ascii_uppercase()
    }

    /// Name of the flag, without the dashes in front.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Whether its value is never shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }

    /// The values it takes, in words.
    pub fn allowed(&self) -> String {
        self.kind.allowed()
    }

    /// Every environment variable that sets it, the stronger first.
    pub(super) fn env_names(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.env()).chain(self.env_alias.map(str::to_owned))
    }

    fn default_text(&self) -> &'static str {
        match self.default {
            OptionDefault::Value(text) | OptionDefault::Derived(text) => text,
            OptionDefault::Unset => "unset",
        }
    }
}

const fn row(key: &'static str, kind: Kind, default: OptionDefault, help: &'static str) -> OptionRow {
    OptionRow { key, env_alias: None, default, help, kind }
}

use OptionDefault::{Derived, Unset, Value};

/// Every option, in the order in which they are shown.
#[rustfmt::skip] // One row a line: it is read as a table.
pub const OPTIONS: &[OptionRow] = &[
    row("node_name", Kind::NodeName, Derived("hex_hub<NODE_INDEX>@HOST"), "Name of this node, unique in the cluster and on its host; without @host, HOST is added"),
    row("host", Kind::Host, Value("127.0.0.1"), "Host part of a name given without one"),
    row("node_index", Kind::UpTo("CLUSTER_SIZE"), Derived("that of NODE_ROLE, else 1"), "Which of CLUSTER_SIZE nodes this is: sets the defaults of name and ports"),
    row("node_role", Kind::Word(words::<NodeRole>), Unset, "Shorthand for NODE_INDEX: primary is 1, secondary is 2"),
    row("cluster_size", Kind::UpTo("MAX_CLUSTER_SIZE"), Derived("1; with static discovery the nodes in CLUSTER_NODES and this one"), "Nodes that the cluster is planned with; must be set for dns and gossip"),
    row("ci_cluster_size", Kind::UpTo("MAX_CLUSTER_SIZE"), Unset, "Takes the place of CLUSTER_SIZE where CI=true, unless a flag sets that"),
    row("max_cluster_size", Kind::Integer(1, MEMBERS_MAX as u64), Value("10"), "Largest CLUSTER_SIZE that is accepted"),
    row("replication_factor", Kind::Integer(1, 7), Value("3"), "Nodes that hold the data and vote; odd numbers make sense"),
    row("replace_after", Kind::Duration(0, 30 * DAY_MS), Value("5min"), "Silence after which a standby takes the seat of a voter; 0s = never"),
    row("bind", Kind::Ip, Value("127.0.0.1"), "Address to listen on: HTTP, raft port, port mapper"),
    row("advertise", Kind::Host, Derived("host of NODE_NAME"), "Host that other nodes and clients are told to reach this node at"),
    row("allowed_hosts", Kind::AllowedHosts, Unset, "Names that clients may use for this node in URLs, by commas, besides addresses, names without a dot and the members' hosts; *.example.com = all below it, * = all"),
    row("port", Kind::Integer(0, 65535), Derived("BASE_HTTP_PORT + (NODE_INDEX - 1) * PORT_SPACING"), "HTTP port, 0 = any free one"),
    row("raft_port", Kind::Integer(0, 65535), Derived("PORT + 5100; 0 when PORT is 0"), "Port for other nodes, 0 = any free one"),
    row("base_http_port", Kind::Integer(1, 65535), Value("4000"), "HTTP port of the node with index 1"),
    row("port_spacing", Kind::Integer(1, 1000), Value("10"), "Distance between the ports of neighbouring indexes"),
    row("data_dir", Kind::Path, Derived("./data/<name before the @>"), "Directory of this node's data; one process at a time"),
    row("cookie", Kind::Secret, Derived("what COOKIE_FILE holds"), "Secret that the nodes of a cluster share; on the command line other users can see it"),
    row("cookie_file", Kind::Path, Derived("$HOME/.hexkv.cookie"), "File with the cookie; created with a random one where it does not exist"),
    row("cluster_discovery_type", Kind::Word(words::<DiscoveryType>), Value("epmd"), "How nodes find each other"),
    row("cluster_nodes", Kind::Targets, Unset, "Nodes with known addresses, by commas: name@host[:raft port]"),
    row("cluster_dns_hostname", Kind::Host, Unset, "dns: name whose SRV records, else A and AAAA records with the node's own RAFT_PORT, are the nodes"),
    row("cluster_dns_server", Kind::Socket, Derived("those of /etc/resolv.conf"), "dns: name server to ask"),
    row("cluster_dns_interval", Kind::Duration(50, DAY_MS), Value("5s"), "dns: time between two looks at the records"),
    row("cluster_gossip_address", Kind::Multicast, Value("239.255.255.250:45892"), "gossip: multicast group and port"),
    row("cluster_gossip_interface", Kind::Ipv4, Derived("BIND; chosen by the system where that is 0.0.0.0 or IPv6"), "gossip: address of the network interface to use"),
    row("epmd_port", Kind::Integer(0, 65535), Value("4369"), "Erlang port mapper to register with, or to serve where nobody does; 0 = none"),
    row("heartbeat_interval", Kind::Millis(10, 60_000), Value("100"), "Time between the leader's heartbeats, in ms"),
    row("heartbeat_timeout", Kind::Millis(20, 600_000), Value("1000"), "A node counts as down after twice this silence, in ms; longer than HEARTBEAT_INTERVAL"),
    row("election_timeout_min", Kind::Millis(20, 300_000), Value("200"), "Shortest wait for an election after ELECTION_TIMEOUT_MAX of silence, in ms; longer than HEARTBEAT_INTERVAL"),
    row("election_timeout_max", Kind::Millis(20, 600_000), Value("400"), "The leader's lease, and the longest wait for an election after it, in ms; longer than ELECTION_TIMEOUT_MIN"),
    row("value_bytes_max", Kind::Bytes(1, VALUE_BYTES_CEILING as u64), Value(VALUE_BYTES_DEFAULT_TEXT), "Largest value of a key"),
    row("engine", Kind::Word(words::<EngineKind>), Value("sled"), "Where the current state lives; the log is on disk with either"),
    row("sled_cache_bytes", Kind::Bytes(MIB, 1024 * GIB), Value("1GiB"), "Most memory that sled's cache may fill"),
    row("wal_segment_bytes", Kind::Bytes(10 * MIB, GIB), Value("16MiB"), "Size of a write-ahead log file; the largest transaction must fit"),
    row("snapshot_log_bytes_min", Kind::Bytes(KIB, 1024 * GIB), Value("64MiB"), "Least growth of the log between two snapshots"),
    row("log_entries_kept", Kind::Integer(0, 100_000_000), Value("10000"), "Applied entries that stay in the log behind a snapshot, for nodes that were away for a moment"),
    row("history_revisions", Kind::Integer(1, 1_000_000_000), Value("100000"), "Revisions that stay readable at least, within HISTORY_BYTES"),
    row("history_age", Kind::Duration(0, 30 * DAY_MS), Value("1h"), "Time that revisions stay readable at least, within HISTORY_BYTES"),
    row("history_bytes", Kind::Bytes(MIB, 1024 * GIB), Value("256MiB"), "Most disk that past revisions take"),
    row("proposals_max", Kind::Integer(1, 1_000_000), Value("8192"), "Changes in flight, beyond which requests are answered 429"),
    row("proposals_bytes_max", Kind::Bytes(MIB, 64 * GIB), Value("64MiB"), "Bytes of changes in flight, beyond which requests are answered 429"),
    row("request_timeout", Kind::Duration(1, DAY_MS), Value("5s"), "Longest time for a request that names none"),
    row("connections_max", Kind::Integer(1, 1_000_000), Value("65536"), "Open HTTP connections"),
    row("shutdown_timeout", Kind::Duration(0, DAY_MS), Value("10s"), "Longest wait for open requests at a stop"),
    row("log_format", Kind::Word(words::<LogFormat>), Value("human"), "How log lines are written to stderr"),
    OptionRow { env_alias: Some("RUST_LOG"), ..row("log", Kind::Filter, Value("info"), "Log filter: a level, or target=level pairs by commas; openraft stays at error and sled at warn unless named") },
];

/// [`VALUE_BYTES_DEFAULT`] as a user would write it.
const VALUE_BYTES_DEFAULT_TEXT: &str = "1.5MiB";
const _: () = assert!(VALUE_BYTES_DEFAULT == 3 * 512 * 1024, "the text of the default says the same");

/// The row of `key`. Panics where there is none: keys are written in this crate only.
pub(super) fn option(key: &str) -> &'static OptionRow {
    OPTIONS.iter().find(|row| row.key == key).unwrap_or_else(|| panic!("no option {key} in the table"))
}

/// The command line of a node: a flag for each option, `--config` and `--print-config`.
pub fn command() -> Command {
    let options = OPTIONS.iter().map(|row| {
        let facts = format!("{} [env: {}] [default: {}] [{}]", row.help, row.env(), row.default_text(), row.allowed());
        Arg::new(row.key).long(row.flag()).value_name(row.kind.placeholder()).help(facts)
    });
    Command::new("server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A hexkv node. Options: flags win over the environment, that over the TOML file, that over defaults.")
        .after_help("Without a node running:\n  server restore FILE        begins a new cluster with a backup (server restore --help)\n  server recover --from DIR  begins one with what survived of a cluster without quorum (server recover --help)")
        .arg(
            Arg::new(CONFIG_FLAG)
                .long(CONFIG_FLAG)
                .value_name("FILE")
                .help(format!("TOML file, its keys are the environment's names in small letters [env: {CONFIG_ENV}]")),
        )
        .arg(
            Arg::new(PRINT_FLAG)
                .long(PRINT_FLAG)
                .action(ArgAction::SetTrue)
                .help("Print every option with its value and where that comes from, and all limits; then end"),
        )
        .args(options)
}

/// The options as a Markdown table, for the README.
pub fn markdown_table() -> String {
    let mut table = String::from("| environment | flag | default | values | sets |\n|---|---|---|---|---|\n");
    for row in OPTIONS {
        let env = row.env_names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {env} | `--{}` | {} | {} | {} |",
            row.flag(),
            row.default_text(),
            row.allowed(),
            row.help.replace('|', "\\|")
        );
    }
    table
}

/// The known name nearest to `name`, where one is near enough to be meant.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    /// Similarity (Jaro-Winkler, 0 to 1) from which on a name is suggested.
    const SIMILARITY_MIN: f64 = 0.85;
    known
        .map(|candidate| (strsim::jaro_winkler(name, &candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_static_default_is_an_allowed_value() {
        for row in OPTIONS {
            if let Value(text) = row.default {
                assert!(row.kind.parse(text).is_some(), "{}: {text}", row.key);
            }
        }
    }

    #[test]
    fn names_are_unique_and_outside_the_reserved_prefix() {
        let names: Vec<String> = OPTIONS.iter().flat_map(OptionRow::env_names).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for name in names {
            assert!(!name.starts_with(ENV_PREFIX) && name != CI_ENV, "{name}");
        }
    }

    #[test]
    fn help_names_every_option_in_all_its_spellings() {
        let help = command().term_width(0).render_long_help().to_string();
        for row in OPTIONS {
            assert!(help.contains(&format!("--{} <", row.flag())), "{}", row.key);
            assert!(help.contains(&format!("{} [env: {}]", row.help, row.env())), "{}", row.key);
            assert!(help.contains(&row.allowed()), "{}", row.key);
        }
        assert!(help.contains("--print-config") && help.contains("--config <FILE>"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_markdown_table_has_a_line_of_five_cells_for_each_option() {
        let table = markdown_table();
        assert_eq!(table.lines().count(), OPTIONS.len() + 2);
        for (line, row) in table.lines().skip(2).zip(OPTIONS) {
            assert!(line.starts_with(&format!("| `{}`", row.env())), "{line}");
            assert_eq!(line.replace("\\|", "").matches('|').count(), 6, "{line}");
        }
    }

    #[test]
    fn a_misspelt_name_is_recognised() {
        let known = || OPTIONS.iter().map(|row| row.key.to_owned());
        assert_eq!(nearest("heartbeat_intervall", known()).as_deref(), Some("heartbeat_interval"));
        assert_eq!(nearest("replicaton_factor", known()).as_deref(), Some("replication_factor"));
        assert_eq!(nearest("zzz", known()), None);
    }
}
