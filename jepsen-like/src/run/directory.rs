//! The directory of a run: history, its exports, verdicts, `run.json`, the report, each node's log, and, when the run
//! failed, each node's data.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::RunError;
use super::record::RunRecord;
use crate::checker::Verdict;
use crate::history::Event;
use crate::history::export::{self, ExportError};

/// Where runs are unless told otherwise.
pub const RUNS: &str = "jepsen-like-runs";
/// Verdicts of all checkers.
pub const VERDICTS_FILE: &str = "verdicts.json";
/// What was run and what came of it.
pub const RUN_FILE: &str = "run.json";
/// Default directory of a run that starts now.
pub fn default_path(workload: &str, seed: u64) -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let time: String = time.chars().filter(char::is_ascii_alphanumeric).collect();
    Path::new(RUNS).join(format!("{time}-{workload}-seed{seed}"))
}

/// A run's directory.
#[derive(Debug)]
pub(super) struct RunDir(PathBuf);

impl RunDir {
    /// Makes it; one that exists must be empty.
    pub fn create(path: &Path) -> Result<Self, RunError> {
        let failed = |source| RunError::File { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        if fs::read_dir(path).map_err(failed)?.next().is_some() {
            return Err(RunError::NotEmpty(path.to_owned()));
        }
        // Nodes are told absolute paths.
        path.canonicalize().map(Self).map_err(failed)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// `path` as seen from the directory.
    pub fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.0).unwrap_or(path).display().to_string()
    }

    /// Writes everything but the history itself, which is there already.
    pub fn save(&self, record: &RunRecord, events: &[Event], verdicts: &[Verdict]) -> Result<(), RunError> {
        self.write_json(RUN_FILE, record)?;
        self.write_json(VERDICTS_FILE, &verdicts)?;
        match export::write(&self.0, events) {
            Ok(_) => Ok(()),
            Err(ExportError::Io { path, source }) => Err(RunError::File { path, source }),
            // What a broken store answers may have no form there; the verdicts, which are written, say so.
            Err(error @ ExportError::Porcupine(_)) => {
                tracing::warn!(%error, "the history is not exported");
                Ok(())
            }
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), RunError> {
        self.write(name, |file| {
            serde_json::to_writer_pretty(&mut *file, value)?;
            file.write_all(b"\n")
        })
    }

    fn write(&self, name: &str, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), RunError> {
        let path = self.file(name);
        let written = File::create(&path).and_then(|file| {
            let mut file = BufWriter::new(file);
            fill(&mut file)?;
            file.flush()
        });
        written.map_err(|source| RunError::File { path, source })
    }

    /// Deletes the nodes' data.
    pub fn delete_data(&self) -> Result<(), RunError> {
        let path = self.file("data");
        fs::remove_dir_all(&path).map_err(|source| RunError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_in_it_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run");
        let dir = RunDir::create(&path).unwrap();
        assert_eq!(dir.relative(&dir.file("n1.log")), "n1.log");
        fs::write(path.join("history.jsonl"), "").unwrap();
        assert!(matches!(RunDir::create(&path), Err(RunError::NotEmpty(_))));
    }
}
