//! Data directories that are made by a restore or a recovery, and those that are only read.

use std::{io, path::Path, path::PathBuf};

use super::{FileLock, IDENTITY, Identity, LOCK, PEERS, Stored, close_to_others, create_durably, lock, lock_as, names};
use crate::{
    StoreError,
    fs::{SharedFs, remove_tree},
    member::Member,
};

/// There as long as the directory is not complete.
const MAKING: &str = "making";
/// What the making needs and nobody keeps.
const WORK: &str = "making-work";
/// What a directory that is being made may hold, besides its lock.
const PARTS: [&str; 7] = [MAKING, WORK, "snapshots", "wal", "peers", "peers.new", "identity.new"];

/// A data directory that is being made. No node starts on it before [`NewDataDir::finish`]; what a killed process leaves
/// of it is removed by the next attempt.
///
/// Invariant: `making` is there, durably, before anything else but the lock, and as long as there is no identity.
#[derive(Debug)]
pub struct NewDataDir {
    fs: SharedFs,
    path: PathBuf,
    _lock: Box<dyn FileLock>,
}

impl NewDataDir {
    /// Begins to make `path`, which must not exist, be empty, or hold what an earlier attempt left.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`], [`StoreError::Locked`], [`StoreError::Io`].
    pub fn begin(fs: SharedFs, path: &Path) -> Result<Self, StoreError> {
        if fs.exists(path) {
            refuse_used(&fs, path)?;
        }
        let at = |e| StoreError::io(format!("make data directory {}; check DATA_DIR", path.display()), e);
        create_durably(&fs, path).map_err(at)?;
        let lock = lock(&fs, path)?;
        // Another process may have been faster.
        refuse_used(&fs, path)?;
        close_to_others(&fs, path);
        let this = Self { fs, path: path.to_path_buf(), _lock: lock };
        this.remove_parts().map_err(at)?;
        this.fs.create_new(&path.join(MAKING)).map_err(at)?;
        this.fs.sync_dir(path).map_err(at)?;
        Ok(this)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Room for what is not kept, created where it is missing.
    pub fn work(&self) -> Result<PathBuf, StoreError> {
        let work = self.path.join(WORK);
        self.fs.create_dir_all(&work).map_err(|e| StoreError::io(format!("create {}", work.display()), e))?;
        Ok(work)
    }

    /// Makes it the data directory of `identity`, which knows `peers`, in one step.
    pub fn finish(self, identity: &Identity, peers: &[Member]) -> Result<(), StoreError> {
        let at = |e| StoreError::io(format!("finish data directory {}", self.path.display()), e);
        remove_tree(&*self.fs, &self.path.join(WORK)).map_err(at)?;
        PEERS.write(&self.fs, &self.path, &peers)?;
        self.fs.sync_dir(&self.path).map_err(at)?;
        IDENTITY.write(&self.fs, &self.path, &Stored { identity: identity.clone(), change: None })?;
        self.fs.remove_file(&self.path.join(MAKING)).map_err(at)?;
        self.fs.sync_dir(&self.path).map_err(at)
    }

    /// Removes all that was made; an empty directory stays.
    pub fn abandon(self) -> Result<(), StoreError> {
        let at = |e| StoreError::io(format!("empty {}", self.path.display()), e);
        self.remove_parts().map_err(at)?;
        self.fs.remove_file(&self.path.join(LOCK)).map_err(at)?;
        self.fs.sync_dir(&self.path).map_err(at)
    }

    /// The marker goes when all else is gone for good.
    fn remove_parts(&self) -> io::Result<()> {
        for part in PARTS.iter().filter(|part| **part != MAKING) {
            remove_tree(&*self.fs, &self.path.join(part))?;
        }
        self.fs.sync_dir(&self.path)?;
        remove_tree(&*self.fs, &self.path.join(MAKING))?;
        self.fs.sync_dir(&self.path)
    }
}

fn refuse_used(fs: &SharedFs, path: &Path) -> Result<(), StoreError> {
    let refused = |holds: String| Err(StoreError::NotEmpty { path: path.to_path_buf(), holds });
    let names = names(fs, path)?;
    if names.iter().any(|n| n == IDENTITY.name) {
        return refused("it is the data directory of a node".into());
    }
    let begun = names.iter().any(|n| n == MAKING);
    let ours = |name: &&String| *name == LOCK || (begun && PARTS.contains(&name.as_str()));
    match names.iter().find(|name| !ours(name)) {
        None => Ok(()),
        Some(other) => refused(format!("it holds {other}")),
    }
}

/// Refuses a directory whose making was broken off.
pub(super) fn refuse_unfinished(fs: &SharedFs, path: &Path) -> Result<(), StoreError> {
    if !fs.exists(&path.join(MAKING)) {
        return Ok(());
    }
    let reason = "a restore or recovery into it was broken off; run that again, or empty it".to_string();
    Err(StoreError::Foreign { path: path.to_path_buf(), reason })
}

/// Removes the marker of a directory that is complete.
pub(super) fn finish_off(fs: &SharedFs, path: &Path, complete: bool) -> Result<(), StoreError> {
    let marker = path.join(MAKING);
    if !complete || !fs.exists(&marker) {
        return Ok(());
    }
    fs.remove_file(&marker).map_err(|e| StoreError::io(format!("remove {}", marker.display()), e))
}

/// The data directory of a node that does not run, and cannot be started while this is held. Only read.
#[derive(Debug)]
pub struct Resting {
    /// Whom it belongs to.
    pub identity: Identity,
    /// A change of clusters was under way when its node stopped.
    pub unsettled: bool,
    _lock: Box<dyn FileLock>,
}

impl Resting {
    /// Locks the data directory at `path`, and reads whom it belongs to.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when its node runs; [`StoreError::Foreign`] for what is no data directory;
    /// [`StoreError::FormatVersion`], [`StoreError::Corrupt`], [`StoreError::Decode`] of its identity; [`StoreError::Io`].
    pub fn open(fs: &SharedFs, path: &Path) -> Result<Self, StoreError> {
        let foreign = |reason: &str| Err(StoreError::Foreign { path: path.to_path_buf(), reason: reason.to_string() });
        if !fs.exists(path) {
            return foreign("there is no such directory");
        }
        if !fs.exists(&path.join(IDENTITY.name)) || !fs.exists(&path.join(LOCK)) {
            return foreign("it holds no identity");
        }
        let lock = lock_as(fs, path, None)?;
        let Some(Stored { identity, change }) = IDENTITY.read(fs, path)? else {
            return foreign("it holds no identity");
        };
        let unsettled = change.is_some() || identity.pending_join.is_some();
        Ok(Self { identity, unsettled, _lock: lock })
    }
}
