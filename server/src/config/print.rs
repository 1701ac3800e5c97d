//! What `--print-config` prints.

use std::fmt::{self, Write as _};

use hexkv_raft_net::{CONNECT_TIMEOUT, RESOLVE_TIMEOUT, transport};
use hexkv_store::{command, dedupe, lease, member::MEMBERS_MAX};

use crate::{bodies, core, events, http_server, node, transfers, watch};

use super::{
    layers::Source,
    name::NAME_BYTES_MAX,
    options::{OPTIONS, OptionRow},
};

/// Limits that no option changes: name, value, unit.
pub const FIXED_LIMITS: &[(&str, u64, &str)] = &[
    ("key_bytes_min", command::KEY_BYTES_MIN as u64, "bytes"),
    ("key_bytes_max", command::KEY_BYTES_MAX as u64, "bytes"),
    ("value_bytes_ceiling", command::VALUE_BYTES_CEILING as u64, "bytes, the most that value_bytes_max can be"),
    ("txn_operations_max", command::TXN_OPERATIONS_MAX as u64, "operations of one branch"),
    ("txn_bytes_max", command::TXN_BYTES_MAX as u64, "bytes of keys and values"),
    ("range_delete_keys_max", command::RANGE_DELETE_KEYS_MAX, "keys"),
    ("replaced_bytes_max", command::REPLACED_BYTES_MAX, "bytes of replaced values in one transaction"),
    ("members_max", MEMBERS_MAX as u64, "members of a cluster"),
    ("name_bytes_max", NAME_BYTES_MAX as u64, "bytes of a node's name before the @"),
    ("idempotency_key_bytes_max", dedupe::IDEMPOTENCY_KEY_BYTES_MAX as u64, "bytes"),
    ("dedupe_retention_ms", dedupe::DEDUPE_RETENTION_MS, "ms that the outcome of a change with a key is kept"),
    ("dedupe_entries_max", dedupe::DEDUPE_ENTRIES_MAX as u64, "kept outcomes, beyond which the oldest goes"),
    ("dedupe_bytes_max", dedupe::DEDUPE_BYTES_MAX, "bytes of kept outcomes, beyond which the oldest large ones go"),
    (
        "dedupe_small_outcome_bytes",
        dedupe::DEDUPE_SMALL_OUTCOME_BYTES as u64,
        "bytes of an outcome, up to which it stays as long as its key",
    ),
    ("dedupe_outcome_bytes_max", dedupe::DEDUPE_OUTCOME_BYTES_MAX as u64, "bytes of one kept outcome"),
    ("head_bytes_max", http_server::HEAD_BYTES_MAX as u64, "bytes of a request's head"),
    (
        "header_read_timeout_ms",
        http_server::HEADER_READ_TIMEOUT.as_millis() as u64,
        "ms for a request's head, and between two on a connection",
    ),
    (
        "answer_taken_timeout_ms",
        http_server::ANSWER_TAKEN_TIMEOUT.as_millis() as u64,
        "ms in which a client takes none of its answer",
    ),
    ("leases_max", lease::LEASES_MAX as u64, "leases of a cluster, beyond which 429"),
    ("leases_kept_per_kind", lease::LEASES_KEPT_PER_KIND as u64, "of these for each kind of lease"),
    ("saves_max", core::SAVES_MAX as u64, "snapshots saved at a time, beyond which they wait"),
    (
        "transfer_bytes_per_second_min",
        transfers::TRANSFER_BYTES_PER_SECOND_MIN,
        "bytes in a second; who takes less of a snapshot or a large answer gives way to others",
    ),
    (
        "bodies_bytes_max",
        bodies::BODIES_BYTES_MAX as u64,
        "bytes of bodies being received with their buffers, beyond which the slowest are answered 429",
    ),
    (
        "body_bytes_per_second_min",
        bodies::BODY_BYTES_PER_SECOND_MIN,
        "bytes a second that a body brings at least, else 408",
    ),
    ("body_rate_window_ms", bodies::BODY_RATE_WINDOW.as_millis() as u64, "ms over which that is measured"),
    (
        "half_closed_max_ms",
        http_server::HALF_CLOSED_MAX.as_millis() as u64,
        "ms for the answer to a client that closed its sending side; none for requests that wait",
    ),
    (
        "keepalive_idle_ms",
        transport::KEEPALIVE_IDLE.as_millis() as u64,
        "ms without a byte after which an accepted connection is probed",
    ),
    (
        "unacknowledged_max_ms",
        transport::UNACKNOWLEDGED_MAX.as_millis() as u64,
        "ms without an answer to probes or to what was sent, after which a connection ends",
    ),
    ("connect_timeout_ms", CONNECT_TIMEOUT.as_millis() as u64, "ms to connect to one address of another node"),
    (
        "resolve_timeout_ms",
        RESOLVE_TIMEOUT.as_millis() as u64,
        "ms to wait for the first answer about another node's name",
    ),
    ("send_buffer_bytes", transport::SEND_BUFFER_BYTES as u64, "bytes of a connection's send buffer in the kernel"),
    ("answers_bytes_max", node::ANSWERS_BYTES_MAX as u64, "bytes of large answers being sent, beyond which 429"),
    ("checks_max", node::CHECKS_MAX as u64, "checks (`client doctor`) at a time"),
    ("scans_max", node::SCANS_MAX as u64, "listings being read at a time, of counts, the past and long pages"),
    ("short_scans_max", node::SHORT_SCANS_MAX as u64, "listings being read at a time, of up to 1,000 items now"),
    (
        "event_readers_max",
        events::EVENT_READERS_MAX as u64,
        "readers of /api/cluster/events, beyond which the oldest goes",
    ),
    ("txn_read_keys_max", command::TXN_READ_KEYS_MAX, "keys that a transaction reads, counts or removes"),
    ("txn_read_bytes_max", command::TXN_READ_BYTES_MAX, "bytes of their records"),
    ("reading_keys_max", node::READING_KEYS_MAX, "keys that all transactions in flight read, beyond which they wait"),
    ("events_queued_max", events::EVENTS_QUEUED_MAX as u64, "events that wait for one reader"),
    ("watchers_max", watch::WATCHERS_MAX as u64, "watches and long polls, beyond which 429"),
    ("watcher_queue_revisions_max", watch::WATCHER_QUEUE_REVISIONS_MAX as u64, "revisions that wait for one watch"),
    ("watcher_queue_bytes_max", watch::WATCHER_QUEUE_BYTES_MAX, "bytes that wait for one watch"),
    ("stream_bytes_max", watch::STREAM_BYTES_MAX, "bytes that wait for all watches, each revision counted once"),
];

/// Column at which the comments stand.
const COMMENT_COLUMN: usize = 48;

/// An option's value as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// There is none.
    Unset,
    /// A secret.
    Hidden,
    /// As TOML.
    Toml(String),
}

/// An option with what came of it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The option.
    pub row: &'static OptionRow,
    /// Its effective value.
    pub value: Shown,
    /// Where that comes from.
    pub source: Source,
}

/// Every option with its value and where that comes from. Displayed, it is a TOML file that asks for the same
/// configuration, with secrets left out.
#[derive(Debug, Clone)]
pub struct Sources {
    rows: Vec<Resolved>,
    print_requested: bool,
}

impl Sources {
    pub(super) fn new(rows: Vec<Resolved>, print_requested: bool) -> Self {
        assert_eq!(rows.len(), OPTIONS.len(), "one entry for each option");
        Self { rows, print_requested }
    }

    /// Whether `--print-config` was given: print this, and end with success.
    pub fn print_requested(&self) -> bool {
        self.print_requested
    }

    /// All options, in the order of [`OPTIONS`].
    pub fn rows(&self) -> &[Resolved] {
        &self.rows
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# hexkv {}: value, where it comes from, environment variable", env!("CARGO_PKG_VERSION"))?;
        for resolved in &self.rows {
            let mut line = String::new();
            match &resolved.value {
                Shown::Toml(text) => write!(line, "{} = {text}", resolved.row.key)?,
                Shown::Hidden => write!(line, "# {} = (hidden)", resolved.row.key)?,
                Shown::Unset => write!(line, "# {} = (not set)", resolved.row.key)?,
            }
            let source = match &resolved.source {
                Source::Default => "default".to_owned(),
                Source::File(path) => format!("file {}", path.display()),
                Source::Environment(name) => format!("env {name}"),
                Source::Flag => format!("flag --{}", resolved.row.flag()),
            };
            writeln!(f, "{line:<COMMENT_COLUMN$} # {source}; {}", resolved.row.env())?;
        }
        writeln!(f, "\n# Limits that no option changes")?;
        for (name, value, unit) in FIXED_LIMITS {
            writeln!(f, "{:<COMMENT_COLUMN$} # {unit}", format!("# {name} = {value}"))?;
        }
        Ok(())
    }
}
