//! What a cluster directory remembers between commands.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hexkv_client::local::{LocalCluster, NODE_NAME_PREFIX};
use serde::{Deserialize, Serialize};

use super::process::ProcessRecord;
use crate::cli::Failure;
use crate::cli::input::bounded;
use crate::cli::target::{DIRECTORY_MODE, FILE_MODE};

/// The file that makes a directory a cluster directory.
const MARKER: &str = "cluster.json";

/// Held by the one command that works on the directory.
const LOCK: &str = ".lock";

/// Version of the marker's content.
const FORMAT: u32 = 1;

/// Largest marker, in bytes.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// Content of the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// Nodes the cluster has.
    pub size: u32,
    /// HTTP port of node 1.
    pub base_http_port: u16,
    /// From one node's HTTP port to the next.
    pub port_spacing: u16,
    /// `EPMD_PORT` of the nodes; the server's default when absent.
    pub epmd_port: Option<u16>,
    /// The process last started for each node, by index.
    pub processes: BTreeMap<u32, ProcessRecord>,
}

impl Record {
    /// A cluster of which no node has been started yet.
    pub fn new(size: u32, layout: &LocalCluster, epmd_port: Option<u16>) -> Self {
        Self {
            format: FORMAT,
            size,
            base_http_port: layout.base_http_port(),
            port_spacing: layout.port_spacing(),
            epmd_port,
            processes: BTreeMap::new(),
        }
    }
}

/// A cluster directory, and the files in it.
#[derive(Debug, Clone)]
pub struct ClusterDir(PathBuf);

/// Proof that no other command works on the directory.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl ClusterDir {
    /// The directory at `path`, which need not exist.
    ///
    /// # Errors
    /// When the working directory is gone and `path` is relative.
    pub fn new(path: &Path) -> Result<Self, Failure> {
        std::path::absolute(path).map(Self).map_err(Failure::local(format!("{}", path.display())))
    }

    /// Where it is, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Log of a node.
    pub fn log(&self, index: u32) -> PathBuf {
        self.0.join(format!("{}.log", LocalCluster::short_name(index)))
    }

    /// Data of a node.
    pub fn data(&self, index: u32) -> PathBuf {
        self.0.join(LocalCluster::short_name(index))
    }

    fn marker(&self) -> PathBuf {
        self.0.join(MARKER)
    }

    /// Makes the directory when there is none, and locks it.
    ///
    /// # Errors
    /// When it holds something else than a cluster, or another command works on it.
    pub fn create(&self) -> Result<Lock, Failure> {
        let dir = self.0.display();
        let created = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&self.0);
        created.map_err(Failure::local(format!("cannot create {dir}")))?;
        if !self.marker().exists() {
            let mut entries = fs::read_dir(&self.0).map_err(Failure::local(format!("cannot read {dir}")))?;
            if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != LOCK)) {
                return Err(Failure::Refused(format!(
                    "{dir} is not empty and holds no cluster ({MARKER} is missing): choose another --dir"
                )));
            }
        }
        self.lock()
    }

    /// Locks the directory.
    ///
    /// # Errors
    /// When there is none, or another command works on it.
    pub fn lock(&self) -> Result<Lock, Failure> {
        let path = self.0.join(LOCK);
        let what = || format!("cannot lock {}", path.display());
        let file = File::options().create(true).truncate(false).write(true).mode(FILE_MODE).open(&path);
        let file = file.map_err(Failure::local(what()))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Failure::Refused(format!(
                "another `client cluster` command works on {}: wait for it to end",
                self.0.display()
            ))),
            Err(TryLockError::Error(error)) => Err(Failure::local(what())(error)),
        }
    }

    /// Reads the marker; `None` when there is no cluster.
    ///
    /// # Errors
    /// When the marker cannot be read or is of another version.
    pub fn read(&self) -> Result<Option<Record>, Failure> {
        let path = self.marker();
        let text = match File::open(&path).and_then(|file| bounded(file, RECORD_BYTES_MAX)) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(Failure::Refused(format!("{} is not of this client: too long", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::local(format!("cannot read {}", path.display()))(error)),
        };
        let foreign = |why: String| Failure::Refused(format!("{} is not of this client: {why}", path.display()));
        let record: Record = serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        if record.format != FORMAT {
            return Err(foreign(format!("format {}, expected {FORMAT}", record.format)));
        }
        Ok(Some(record))
    }

    /// Reads the marker of a cluster that must be there.
    ///
    /// # Errors
    /// When it is not, or see [`Self::read`].
    pub fn expect(&self) -> Result<Record, Failure> {
        self.read()?.ok_or_else(|| {
            Failure::Refused(format!(
                "there is no cluster in {}: `client cluster start` makes one, --dir names another directory",
                self.0.display()
            ))
        })
    }

    /// Replaces the marker, in one step.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, _lock: &Lock, record: &Record) -> Result<(), Failure> {
        let new = self.0.join(format!("{MARKER}.new"));
        let text = serde_json::to_vec_pretty(record).expect("a record becomes JSON");
        let opened = File::options().create(true).truncate(true).write(true).mode(FILE_MODE).open(&new);
        let written = opened.and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, self.marker())
        });
        written.map_err(Failure::local(format!("cannot write {}", self.marker().display())))
    }

    /// Removes what clusters leave: data, logs, marker, and the directory itself when nothing else is in it. Answers
    /// whether the directory is gone.
    ///
    /// # Errors
    /// When there is no marker, or something cannot be removed.
    pub fn remove(&self, lock: Lock) -> Result<bool, Failure> {
        self.expect()?;
        let entries: io::Result<Vec<fs::DirEntry>> = fs::read_dir(&self.0).and_then(Iterator::collect);
        for entry in entries.map_err(Failure::local(format!("cannot read {}", self.0.display())))? {
            if entry.file_name().to_str().is_some_and(is_of_node) {
                let path = entry.path();
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Failure::local(format!("cannot remove {}", path.display())))?;
            }
        }
        for name in [MARKER, LOCK] {
            let path = self.0.join(name);
            ignore_missing(fs::remove_file(&path))
                .map_err(Failure::local(format!("cannot remove {}", path.display())))?;
        }
        drop(lock);
        match fs::remove_dir(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => Err(Failure::local(format!("cannot remove {}", self.0.display()))(error)),
        }
    }
}

/// Whether a node made the entry with this name: its data, its log, or data it set aside beside them.
fn is_of_node(file_name: &str) -> bool {
    let Some(rest) = file_name.strip_prefix(NODE_NAME_PREFIX) else { return false };
    let after_index = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    after_index.len() < rest.len() && (after_index.is_empty() || after_index.starts_with(['.', '-']))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        settled => settled,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn record() -> Record {
        Record::new(3, &LocalCluster::new(4000, 10, 10).unwrap(), Some(4370))
    }

    #[test]
    fn a_record_is_read_back() {
        let home = tempfile::tempdir().unwrap();
        let dir = ClusterDir::new(&home.path().join("c")).unwrap();
        assert!(dir.read().unwrap().is_none());
        let lock = dir.create().unwrap();
        dir.write(&lock, &record()).unwrap();
        assert_eq!(dir.expect().unwrap(), record());
    }

    #[test]
    fn a_directory_with_other_things_is_refused() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("thesis.tex"), "x").unwrap();
        let dir = ClusterDir::new(home.path()).unwrap();
        assert!(matches!(dir.create(), Err(Failure::Refused(_))));
        let lock = dir.lock().unwrap();
        assert!(matches!(dir.remove(lock), Err(Failure::Refused(_))));
        assert!(home.path().join("thesis.tex").exists());
    }

    #[test]
    fn removal_takes_only_what_clusters_leave() {
        let home = tempfile::tempdir().unwrap();
        let dir = ClusterDir::new(&home.path().join("c")).unwrap();
        for foreign in [true, false] {
            let lock = dir.create().unwrap();
            dir.write(&lock, &record()).unwrap();
            fs::create_dir_all(dir.data(2).join("log")).unwrap();
            fs::write(dir.log(2), "x").unwrap();
            let notes = dir.path().join("notes");
            if foreign {
                fs::write(&notes, "mine").unwrap();
            }
            assert_eq!(dir.remove(lock).unwrap(), !foreign);
            assert_eq!(notes.exists(), foreign);
            assert!(!dir.data(2).exists() && !dir.log(2).exists());
            if foreign {
                fs::remove_file(&notes).unwrap();
            }
        }
        assert!(!dir.path().exists());
    }

    #[test]
    fn only_names_that_nodes_make_count_as_theirs() {
        for name in ["hex_hub1", "hex_hub12.log", "hex_hub2.aside-1", "hex_hub3-old"] {
            assert!(is_of_node(name), "{name}");
        }
        for name in ["hex_hub", "hex_hub.log", "hex_hub1x", "my_hex_hub1", "notes"] {
            assert!(!is_of_node(name), "{name}");
        }
    }

    #[test]
    fn one_command_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let dir = ClusterDir::new(home.path()).unwrap();
        let lock = dir.create().unwrap();
        assert!(matches!(dir.lock(), Err(Failure::Refused(_))));
        drop(lock);
        // A child that another test is just starting holds a copy of the lock until it runs its program.
        let deadline = Instant::now() + Duration::from_secs(10);
        while dir.lock().is_err() {
            assert!(Instant::now() < deadline, "the lock is still held");
            std::thread::yield_now();
        }
    }
}
