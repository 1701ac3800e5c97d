//! Whom a data directory belongs to: its identity, its lock, and how one life of a node ends and the next begins.
//!
//! | file | holds |
//! |---|---|
//! | `lock` | held while a process uses the directory; names its pid |
//! | `identity` | [`Identity`], and a change of lives that is under way |
//! | `run` | boot id of the machine at the last open, and whether the stop was clean |
//! | `peers` | the member list that was last known, for a start without state |
//! | `starts` | [`SeenStart`] of each other member: an older data directory of a member is recognized |
//! | `promise` | what a node without a cluster promised others that want to found one |
//! | `aside-N-REASON/` | what an earlier life left |
//! | `reserve` | room that is kept for what must go on when the disk is full |
//! | `probe` | the file of a test write, for a moment |
//! | `making` | there while a restore or a recovery fills the directory |
//!
//! Each file is written whole under a temporary name, synced, renamed, and its directory synced.

mod making;
mod small_file;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::making::{NewDataDir, Resting};
use self::small_file::SmallFile;
use crate::{
    NodeId, StoreError, entropy,
    founding::Promise,
    fs::{FileLock, LockOutcome, SharedFs},
    member::Member,
};

/// Version of everything in a data directory. Another version is refused.
pub const FORMAT_VERSION: u32 = 1;

const LOCK: &str = "lock";
const IDENTITY: SmallFile = SmallFile { name: "identity", magic: *b"hexkv-id" };
const RUN: SmallFile = SmallFile { name: "run", magic: *b"hexkvrun" };
const PROMISE: SmallFile = SmallFile { name: "promise", magic: *b"hexkvprm" };
const PEERS: SmallFile = SmallFile { name: "peers", magic: *b"hexkvmem" };
const STARTS: SmallFile = SmallFile { name: "starts", magic: *b"hexkvsta" };
/// Room that is kept for what must go on when the disk is full: a file without content.
pub const RESERVE_NAME: &str = "reserve";
/// The file of a test write.
pub const PROBE_NAME: &str = "probe";
/// Begins the names of directories that hold what an earlier life left.
const ASIDE_PREFIX: &str = "aside-";
/// File systems keep this in their root, and it is theirs: nobody else may count it, move it or remove it.
const LOST_AND_FOUND: &str = "lost+found";

/// Whom a data directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Random, never reused: a node that lost its disk, joined or left is a new one.
    pub node_id: NodeId,
    /// Number of times the directory was opened under this node id, from 1.
    pub incarnation: u64,
    /// The cluster, once there is one.
    pub cluster_id: Option<u64>,
    /// Full name of the node.
    pub name: String,
    /// A join that was begun and is not finished.
    pub pending_join: Option<JoinIntent>,
}

/// What survives a crash between asking for admission and starting the new life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinIntent {
    /// The id under which the node is admitted.
    pub node_id: NodeId,
    /// The cluster that it joins.
    pub cluster_id: u64,
    /// `host:port` of the member that was asked.
    pub target: String,
}

/// The last start of another node that this node saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenStart {
    /// The other node.
    pub node_id: NodeId,
    /// The random number of its process.
    pub process: u64,
    /// Its [`Identity::incarnation`] at that start.
    pub incarnation: u64,
}

/// The identity file: the identity, and a change of lives that a crash must not leave half done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    identity: Identity,
    change: Option<ChangeOfLives>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ChangeOfLives {
    aside: String,
    next: Identity,
    /// Whom the next life knows from its first moment on.
    peers: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    boot_id: String,
    clean: bool,
    /// Power was lost, and nobody has said yet that what was left is rebuilt.
    suspect: bool,
}

/// A data directory in use. Invariants: no other process uses it; `identity` is what the file says.
#[derive(Debug)]
pub struct DataDir {
    fs: SharedFs,
    path: PathBuf,
    identity: Identity,
    power_lost: bool,
    _lock: Box<dyn FileLock>,
}

impl DataDir {
    /// Locks and opens the data directory of node `name`, creating it where there is none, and finishes a change of lives
    /// that a crash interrupted.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Foreign`] (other files, or another node's name), [`StoreError::FormatVersion`],
    /// [`StoreError::Corrupt`] (damaged identity), [`StoreError::Io`].
    pub fn open(fs: SharedFs, path: &Path, name: &str) -> Result<Self, StoreError> {
        let at =
            |e| StoreError::io(format!("use data directory {}; check DATA_DIR and its permissions", path.display()), e);
        create_durably(&fs, path).map_err(at)?;
        let known = fs.exists(&path.join(IDENTITY.name));
        if !known {
            refuse_foreign(&fs, path)?;
        }
        let lock = lock(&fs, path)?;
        close_to_others(&fs, path);
        // Whoever made the directory was done, and killed before it had tidied up.
        making::finish_off(&fs, path, known)?;
        let fresh = || Identity {
            node_id: fresh_node_id(),
            incarnation: 0,
            cluster_id: None,
            name: name.into(),
            pending_join: None,
        };
        let stored: Stored = match IDENTITY.read(&fs, path)? {
            Some(stored) => stored,
            None => Stored { identity: fresh(), change: None },
        };
        if stored.identity.name != name {
            let reason = format!("it belongs to node {}, and NODE_NAME is {name}", stored.identity.name);
            return Err(StoreError::Foreign { path: path.to_path_buf(), reason });
        }
        // Before anything is written: what cannot be read is refused as it is.
        let _: Option<Vec<Member>> = PEERS.read(&fs, path)?;
        let power_lost = power_was_lost(RUN.read(&fs, path)?, &boot_id(&fs));
        let mut this = Self { fs, path: path.to_path_buf(), identity: stored.identity, power_lost, _lock: lock };
        if let Some(change) = stored.change {
            tracing::info!(aside = change.aside, "finishing a change of clusters that was interrupted");
            this.finish_change(change)?;
        }
        this.identity.incarnation += 1;
        this.store(None)?;
        RUN.write(&this.fs, &this.path, &Run { boot_id: boot_id(&this.fs), clean: false, suspect: power_lost })?;
        Ok(this)
    }

    /// Whom it belongs to.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether writes that were not synced may be lost: the machine booted since an open, and that run did not end
    /// cleanly. True until [`DataDir::trust_state`], also across opens in between.
    pub fn power_was_lost(&self) -> bool {
        self.power_lost
    }

    /// Notes that the state was rebuilt, or needed not be: what is on disk now was written since the machine booted.
    pub fn trust_state(&mut self) -> Result<(), StoreError> {
        self.power_lost = false;
        RUN.write(&self.fs, &self.path, &Run { boot_id: boot_id(&self.fs), clean: false, suspect: false })
    }

    /// Notes that everything is on disk and in order.
    pub fn mark_clean_stop(&mut self) -> Result<(), StoreError> {
        RUN.write(&self.fs, &self.path, &Run { boot_id: boot_id(&self.fs), clean: true, suspect: self.power_lost })
    }

    /// Notes the cluster that this node founded.
    pub fn set_cluster_id(&mut self, cluster_id: u64) -> Result<(), StoreError> {
        self.change_identity(|identity| identity.cluster_id = Some(cluster_id))
    }

    /// Takes this start back: others refused it because another process acts as this node. So this directory, which lacks what that
    /// process writes, never has a later count of starts than that one's.
    pub fn take_start_back(&mut self) -> Result<(), StoreError> {
        self.change_identity(|identity| identity.incarnation = identity.incarnation.saturating_sub(1))
    }

    /// Notes a join that begins, or (None) that it came to nothing.
    pub fn set_pending_join(&mut self, intent: Option<JoinIntent>) -> Result<(), StoreError> {
        self.change_identity(|identity| identity.pending_join = intent)
    }

    /// Ends this life: all that it left is moved to `aside-N-REASON` (and removed from there unless `keep`), and the
    /// directory belongs to node `node_id` of `cluster_id`, which finds `peers` there. A crash in the middle is finished
    /// at the next open.
    pub fn start_new_life(
        &mut self,
        reason: &str,
        keep: bool,
        node_id: NodeId,
        cluster_id: Option<u64>,
        peers: Vec<Member>,
    ) -> Result<(), StoreError> {
        let number = self
            .names()?
            .iter()
            .filter_map(|n| n.strip_prefix(ASIDE_PREFIX)?.split('-').next()?.parse::<u64>().ok())
            .max();
        let aside = format!("{ASIDE_PREFIX}{}-{reason}", number.map_or(1, |n| n + 1));
        let next =
            Identity { node_id, incarnation: 1, cluster_id, name: self.identity.name.clone(), pending_join: None };
        let change = ChangeOfLives { aside: aside.clone(), next, peers };
        self.store(Some(change.clone()))?;
        self.finish_change(change)?;
        if !keep {
            let dir = self.path.join(aside);
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(dir = %dir.display(), error = %e, "what an earlier life left could not be removed")
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// The member list that was last stored in this life; None in a first life that stored none.
    pub fn load_peers(&self) -> Result<Option<Vec<Member>>, StoreError> {
        PEERS.read(&self.fs, &self.path)
    }

    /// Stores the member list.
    pub fn store_peers(&self, peers: &[Member]) -> Result<(), StoreError> {
        PEERS.write(&self.fs, &self.path, &peers)
    }

    /// The starts of other nodes that were stored last; empty where there is no file.
    pub fn load_starts(&self) -> Result<Vec<SeenStart>, StoreError> {
        Ok(STARTS.read(&self.fs, &self.path)?.unwrap_or_default())
    }

    /// Stores the starts of other nodes: on disk when this returns.
    pub fn store_starts(&self, starts: &[SeenStart]) -> Result<(), StoreError> {
        STARTS.write(&self.fs, &self.path, &starts)
    }

    /// What was promised in this life; nothing where there is no file.
    pub fn load_promise(&self) -> Result<Promise, StoreError> {
        Ok(PROMISE.read(&self.fs, &self.path)?.unwrap_or_default())
    }

    /// Stores what is promised: on disk when this returns.
    pub fn store_promise(&self, promise: &Promise) -> Result<(), StoreError> {
        PROMISE.write(&self.fs, &self.path, promise)
    }

    fn finish_change(&mut self, change: ChangeOfLives) -> Result<(), StoreError> {
        let aside = self.path.join(&change.aside);
        let at = |e| StoreError::io(format!("move what is in {} to {}", self.path.display(), aside.display()), e);
        self.fs.create_dir_all(&aside).map_err(at)?;
        // What is moved into a directory is lost with it.
        self.fs.sync_dir(&self.path).map_err(at)?;
        for name in self.names()? {
            // Those of the next life, when a crash came after they were stored.
            let next_peers = name == PEERS.name && self.fs.exists(&aside.join(PEERS.name));
            let stays = [LOCK, IDENTITY.name, RUN.name, STARTS.name, RESERVE_NAME, PROBE_NAME].contains(&name.as_str())
                || name.starts_with(ASIDE_PREFIX);
            let stays = stays || next_peers;
            if !stays {
                self.fs.rename(&self.path.join(&name), &aside.join(&name)).map_err(at)?;
            }
        }
        IDENTITY.write(&self.fs, &aside, &Stored { identity: self.identity.clone(), change: None })?;
        self.fs.sync_dir(&self.path).map_err(at)?;
        // Before the identity: a member that holds no data learns of its place from nobody else. An empty list, too: a life
        // that knows nobody is to be alone, unlike the first one, which has no list.
        self.store_peers(&change.peers)?;
        let next = Stored { identity: change.next, change: None };
        IDENTITY.write(&self.fs, &self.path, &next)?;
        self.identity = next.identity;
        self.power_lost = false;
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        names(&self.fs, &self.path)
    }

    fn change_identity(&mut self, change: impl FnOnce(&mut Identity)) -> Result<(), StoreError> {
        let mut changed = self.identity.clone();
        change(&mut changed);
        IDENTITY.write(&self.fs, &self.path, &Stored { identity: changed.clone(), change: None })?;
        self.identity = changed;
        Ok(())
    }

    fn store(&self, change: Option<ChangeOfLives>) -> Result<(), StoreError> {
        IDENTITY.write(&self.fs, &self.path, &Stored { identity: self.identity.clone(), change })
    }
}

/// A random id that is not 0.
pub fn fresh_node_id() -> u64 {
    entropy::random_range(1..=u64::MAX)
}

/// Creates `path` and what is missing above it, so that a power cut does not take the directory away again.
fn create_durably(fs: &SharedFs, path: &Path) -> io::Result<()> {
    fs.create_dir_all(path)?;
    // All that are above it, also those that were there: whoever created them may have been killed before the sync.
    for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty() && *dir != Path::new("/")) {
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match fs.sync_dir(parent) {
            // A directory that cannot even be read belongs to someone else, who created what is in it.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// Takes access to a data directory from other users. One that belongs to another user, as a mounted volume may, stays as it is.
fn close_to_others(fs: &SharedFs, path: &Path) {
    let shown = path.display();
    match fs.close_to_others(path) {
        Ok(None) => {}
        Ok(Some(mode)) => {
            tracing::warn!(path = %shown, "other users had access to the data directory (mode {mode:o}); it is taken away")
        }
        Err(error) => {
            tracing::warn!(path = %shown, %error, "other users have access to the data directory, and it cannot be taken away")
        }
    }
}

/// What is in a data directory, which may be the root of a file system.
fn names(fs: &SharedFs, path: &Path) -> Result<Vec<String>, StoreError> {
    let listed = fs.list(path).map_err(|e| StoreError::io(format!("list {}", path.display()), e))?;
    let names = listed.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
    Ok(names.filter(|name| name != LOST_AND_FOUND).collect())
}

/// Locks the data directory at `path` for this process.
fn lock(fs: &SharedFs, path: &Path) -> Result<Box<dyn FileLock>, StoreError> {
    lock_as(fs, path, Some(&std::process::id().to_string()))
}

/// Locks it; without a holder nothing is written.
fn lock_as(fs: &SharedFs, path: &Path, holder: Option<&str>) -> Result<Box<dyn FileLock>, StoreError> {
    let at = |e| StoreError::io(format!("lock {}; check its permissions", path.display()), e);
    let holder = match fs.lock(&path.join(LOCK), holder).map_err(at)? {
        LockOutcome::Held(lock) => return Ok(lock),
        LockOutcome::Busy { holder } => holder,
    };
    let holder = holder.trim();
    let holder = if holder.is_empty() { String::new() } else { format!(" (pid {holder})") };
    Err(StoreError::Locked { path: path.to_path_buf(), holder })
}

/// A directory without an identity may hold what a crash before the first one left, and nothing else.
fn refuse_foreign(fs: &SharedFs, path: &Path) -> Result<(), StoreError> {
    making::refuse_unfinished(fs, path)?;
    let ours = [LOCK.to_string(), IDENTITY.temporary()];
    match names(fs, path)?.into_iter().find(|n| !ours.contains(n)) {
        None => Ok(()),
        Some(other) => {
            Err(StoreError::Foreign { path: path.to_path_buf(), reason: format!("it holds {other} and no identity") })
        }
    }
}

fn power_was_lost(last: Option<Run>, boot_id: &str) -> bool {
    last.is_some_and(|run| run.suspect || (!run.clean && run.boot_id != boot_id))
}

/// The machine's boot id; where it cannot be read, something that never equals another, so that the state is
/// rebuilt rather than trusted.
fn boot_id(fs: &SharedFs) -> String {
    fs.boot_id().unwrap_or_else(|_| format!("unknown-{:016x}", entropy::random::<u64>()))
}
