//! The snapshots of one node: which one counts, and what can go.

use std::path::{Path, PathBuf};

use super::{
    SnapshotFile,
    format::{self, Footer},
    reader::SnapshotReader,
    writer::BUILDING_EXTENSION,
};
use crate::{
    StoreError,
    fs::SharedFs,
    mutants::{self, Mutant},
};

const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".snap";
const INCOMING_PREFIX: &str = "incoming-";
const INCOMING_SUFFIX: &str = ".part";

/// Final name of the snapshot `id`.
pub(super) fn file_name(id: &str) -> String {
    format!("{PREFIX}{id}{SUFFIX}")
}

/// The middle of the file name of `path`, where it has these ends.
fn id_of<'a>(path: &'a Path, prefix: &str, suffix: &str) -> Option<&'a str> {
    path.file_name()?.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)
}

/// The directory of a node's snapshots.
///
/// Invariants:
/// - `current` was verified byte by byte, has its final name, and that name is durable;
/// - it covers at least as much of the log as any other undamaged snapshot here;
/// - a snapshot is removed only after a verified one that covers as much is durable.
#[derive(Debug)]
pub struct SnapshotDir {
    fs: SharedFs,
    dir: PathBuf,
    current: Option<(SnapshotFile, Footer)>,
    damaged: Vec<PathBuf>,
}

impl SnapshotDir {
    /// Opens `dir`, which is created where it does not exist: removes what crashes left, and reads the newest
    /// snapshot once to verify it. A damaged one is passed over for the next older one; both stay until the next
    /// [`SnapshotDir::adopt`].
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::FormatVersion`] when the newest was written by another version.
    pub fn open(fs: &SharedFs, dir: &Path) -> Result<Self, StoreError> {
        let at = |e| StoreError::io(format!("open snapshots in {}", dir.display()), e);
        fs.create_dir_all(dir).map_err(at)?;
        let mut this = Self { fs: fs.clone(), dir: dir.to_path_buf(), current: None, damaged: Vec::new() };
        let names = fs.list(dir).map_err(at)?;
        for path in names.iter().filter(|p| p.extension().is_some_and(|e| e == BUILDING_EXTENSION)) {
            fs.remove_file(path).map_err(at)?;
        }
        // Names sort by log index.
        for path in names.iter().rev() {
            let Some(id) = id_of(path, PREFIX, SUFFIX) else { continue };
            let file = SnapshotFile::open(fs, path, id)?;
            match SnapshotReader::open(&file).and_then(|reader| reader.verify().map(|()| reader)) {
                Ok(reader) => {
                    this.current = Some((file, reader.footer().clone()));
                    break;
                }
                Err(StoreError::Corrupt { path, offset, reason }) => {
                    tracing::error!(path = %path.display(), offset, reason, "a snapshot is damaged");
                    this.damaged.push(path);
                }
                Err(e) => return Err(e),
            }
        }
        // The name may have been given just before the process died, by a rename that was not synced.
        fs.sync_dir(dir).map_err(at)?;
        if this.damaged.is_empty() {
            this.prune()?;
        } else {
            this.remove_stale_parts(&names)?;
        }
        Ok(this)
    }

    /// The directory, where [`super::SnapshotWriter`] and [`super::SnapshotReceiver`] put their files.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The newest complete snapshot.
    pub fn current(&self) -> Option<(SnapshotFile, Footer)> {
        self.current.clone()
    }

    /// Snapshots that [`SnapshotDir::open`] found damaged.
    pub fn damaged(&self) -> &[PathBuf] {
        &self.damaged
    }

    /// Takes in a complete snapshot, built here or received: reads it once to verify every byte, makes its final
    /// name durable, and removes all others. When the current one covers more of the log, `file` is removed
    /// instead. Returns what is current then.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], after which `file` is removed so that its transfer begins afresh;
    /// [`StoreError::FormatVersion`]; [`StoreError::Io`].
    pub fn adopt(&mut self, file: &SnapshotFile) -> Result<(SnapshotFile, Footer), StoreError> {
        let at = |e| StoreError::io(format!("adopt snapshot {}", file.path().display()), e);
        let reader = match SnapshotReader::open(file).and_then(|reader| reader.verify().map(|()| reader)) {
            Ok(reader) => reader,
            Err(e) => {
                if matches!(e, StoreError::Corrupt { .. }) {
                    self.fs.remove_file(file.path()).map_err(at)?;
                }
                return Err(e);
            }
        };
        let footer = reader.footer().clone();
        if let Some((current, newer)) = &self.current
            && newer.meta.last_log_id > footer.meta.last_log_id
        {
            self.fs.remove_file(file.path()).map_err(at)?;
            return Ok((current.clone(), newer.clone()));
        }
        let path = self.dir.join(file_name(file.id()));
        let adopted = if path == file.path() {
            file.clone()
        } else {
            self.fs.rename(file.path(), &path).map_err(at)?;
            SnapshotFile::open(&self.fs, &path, file.id())?
        };
        if !mutants::active(Mutant::DirectoryNotSynced) {
            self.fs.sync_dir(&self.dir).map_err(at)?;
        }
        self.current = Some((adopted.clone(), footer.clone()));
        self.prune()?;
        Ok((adopted, footer))
    }

    /// Removes all snapshots but the current one, and parts of transfers that it makes useless. Does nothing while
    /// there is no current one.
    pub fn prune(&mut self) -> Result<(), StoreError> {
        let Some((current, _)) = &self.current else { return Ok(()) };
        let at = |e| StoreError::io(format!("prune snapshots in {}", self.dir.display()), e);
        let names = self.fs.list(&self.dir).map_err(at)?;
        for path in names.iter().filter(|p| id_of(p, PREFIX, SUFFIX).is_some() && *p != current.path()) {
            self.fs.remove_file(path).map_err(at)?;
        }
        self.damaged.clear();
        self.remove_stale_parts(&names)
    }

    /// A part is worth resuming while it promises more than the current snapshot.
    fn remove_stale_parts(&self, names: &[PathBuf]) -> Result<(), StoreError> {
        let Some((_, footer)) = &self.current else { return Ok(()) };
        let covered = footer.meta.last_log_id.as_ref().map(|l| l.index);
        for path in names {
            let Some(id) = id_of(path, INCOMING_PREFIX, INCOMING_SUFFIX) else { continue };
            if format::index_of_id(id) <= covered {
                let at = |e| StoreError::io(format!("remove {}", path.display()), e);
                self.fs.remove_file(path).map_err(at)?;
            }
        }
        Ok(())
    }
}
