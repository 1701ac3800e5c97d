//! Why the cluster did not do what the suite wanted.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::Node;

/// Log lines quoted of a node that ended by itself.
const LOG_LINES_QUOTED: usize = 5;

/// Why the cluster did not do what the suite wanted. None of these says anything about consistency.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No block of loopback addresses is free.
    #[error("no free block of loopback addresses and ports was found in {tried} attempts; are other runs under way?")]
    NoAddresses {
        /// Blocks looked at.
        tried: u32,
    },
    /// A proxy cannot listen.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A file or directory of the run.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server binary does not start.
    #[error("cannot start {server}: {source}")]
    Spawn {
        /// The binary.
        server: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A process cannot be signalled or waited for.
    #[error("{node}: {source}")]
    Process {
        /// The node.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// The fault needs a node that runs.
    #[error("{node} does not run")]
    NotRunning {
        /// The node.
        node: String,
    },
    /// A node ended by itself.
    #[error("{node} ended by itself ({status}); its log {log} ends with:\n{last_lines}")]
    Died {
        /// The node.
        node: String,
        /// How.
        status: ExitStatus,
        /// Where to read on.
        log: PathBuf,
        /// The end of it.
        last_lines: String,
    },
    /// The server does not begin a new cluster with what is left of the old one.
    #[error("{node} does not recover ({status}): {said}")]
    NotRecovered {
        /// The node.
        node: String,
        /// How the command ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// Something did not come true in time.
    #[error("not within {patience:?}: {what}; last: {why}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        patience: Duration,
        /// How it was at the last look.
        why: String,
    },
    /// A node answered what the suite cannot go on with.
    #[error("{node} answered: {source}")]
    Api {
        /// The node.
        node: String,
        /// What.
        source: hexkv_client::Error,
    },
}

impl ClusterError {
    /// A condition that did not come true.
    pub fn late(what: &str, patience: Duration, why: String) -> Self {
        Self::Late { what: what.to_owned(), patience, why }
    }

    /// A file that could not be used.
    pub fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    /// A node that ended by itself.
    pub(super) fn died(node: &Node, status: ExitStatus) -> Self {
        let log = match std::fs::read(&node.log) {
            Ok(log) => String::from_utf8_lossy(&log).into_owned(),
            Err(error) => error.to_string(),
        };
        let lines: Vec<&str> = log.lines().collect();
        let last_lines = lines[lines.len().saturating_sub(LOG_LINES_QUOTED)..].join("\n");
        Self::Died { node: node.name.clone(), status, log: node.log.clone(), last_lines }
    }
}
