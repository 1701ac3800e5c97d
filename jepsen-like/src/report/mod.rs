//! The report of a run: one HTML file that needs nothing else, neither a network nor scripts, and opens from disk.

mod cycle;
mod detail;
mod faults;
mod finding;
mod frame;
mod latency;
mod operations;
mod page;
mod series;
#[cfg(test)]
mod tests;
mod text;
mod throughput;
mod timeline;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checker::Verdict;
use crate::history::Event;

/// Name of the report in the directory of its run.
pub const FILE_NAME: &str = "report.html";

/// What is known of a run besides its history: who ran, for how long, under which faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// Everything random in the run follows from it.
    pub seed: u64,
    /// The command line that repeats the run.
    pub command: String,
    /// Wall clock at the history's time 0, RFC 3339.
    pub started: String,
    /// From the first event to the end of the checks' input, in milliseconds.
    pub duration_ms: u64,
    /// The cluster.
    pub nodes: Vec<NodeInfo>,
    /// What the clients did, such as `register`.
    pub workload: String,
    /// The faults that were asked for.
    pub faults: Vec<String>,
    /// What the nodes say they are.
    pub server_version: String,
    /// Faults that had no effect that could be shown: the run proves nothing about them. Not empty = the run counts
    /// as failed.
    pub vacuous: Vec<String>,
    /// What went wrong apart from verdicts and vacuous faults, a sentence each.
    pub problems: Vec<String>,
    /// Every leader seen, in the order of time.
    pub leader_changes: Vec<LeaderChange>,
    /// From the last heal to the first acknowledged write, in milliseconds; None when nothing was broken.
    pub heal_ms: Option<u64>,
    /// Whether all verdicts are valid and there was no problem (vacuous faults aside).
    pub valid: bool,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeInfo {
    /// As in [`Event::node`].
    pub name: String,
    /// Its log, relative to the directory of the run.
    pub log: String,
}

/// A node became leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaderChange {
    /// Clock of the history, see [`Event::time_ns`].
    pub time_ns: u64,
    /// The leader's name.
    pub node: String,
    /// Its term.
    pub term: u64,
}

/// Writes [`FILE_NAME`] into `dir`, replacing an older one in one step, and says where it is.
///
/// # Errors
/// When the file cannot be written.
pub fn write(dir: &Path, run: &RunInfo, history: &[Event], verdicts: &[Verdict]) -> io::Result<PathBuf> {
    let path = dir.join(FILE_NAME);
    let unfinished = dir.join(format!("{FILE_NAME}.unfinished"));
    let mut file = File::create(&unfinished)?;
    file.write_all(page::render(run, history, verdicts).into_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    Ok(path)
}
