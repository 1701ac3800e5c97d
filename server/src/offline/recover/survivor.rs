//! A data directory that survived, and what is in it. Log and snapshots are copied, and opened there as a node opens them: all
//! checks are done, torn tails are cut, and the original stays as it is.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use hexkv_store::{
    LogId, NodeId, StoreError,
    fs::{Fs, SharedFs, copy_file},
    identity::{Identity, Resting},
    log::LogStore,
    member::Member,
};

use super::super::{OfflineError, Opened};
use crate::{config::Config, environment::Environment};

/// What of a data directory is the truth; the rest follows from it.
const TRUTH: [&str; 2] = ["wal", "snapshots"];

/// A directory that was given, locked.
pub struct Survivor {
    pub dir: PathBuf,
    /// Or why it cannot be used.
    resting: Result<Resting, String>,
}

/// What it holds.
pub struct Examined {
    /// The state with every entry of its log applied.
    pub opened: Opened,
    /// The last entry.
    pub last: LogId,
    /// Index of the last entry that is known to be committed: the log says so, or a snapshot has it.
    pub committed: Option<u64>,
    pub revision: u64,
    pub state_hash: u128,
    pub members: Vec<Member>,
    /// Who votes; two sets while a change of the voters is under way.
    pub voter_sets: Vec<BTreeSet<NodeId>>,
}

/// The last entry, and the revision. openraft's terms may have several leaders, one after the other: among the ids of one term,
/// that of the later leader is the higher.
pub type Rank = (LogId, u64);

impl Examined {
    /// Raft's order of logs; equal logs have equal states.
    pub fn rank(&self) -> Rank {
        (self.last, self.revision)
    }

    /// Entries that are kept without being known to be committed.
    pub fn uncertain(&self) -> u64 {
        self.last.index - self.committed.unwrap_or(0).min(self.last.index)
    }
}

/// Locks all of `dirs`.
///
/// # Errors
/// When one is no data directory or its node runs, or when they are of different clusters.
pub fn open_all(fs: &SharedFs, dirs: &[PathBuf]) -> Result<Vec<Survivor>, OfflineError> {
    let mut survivors = Vec::new();
    let mut first: Option<(u64, &Path)> = None;
    for dir in dirs {
        let resting = match Resting::open(fs, dir) {
            Ok(resting) => Ok(resting),
            Err(e @ StoreError::Locked { .. }) => {
                return Err(OfflineError::Refused(format!(
                    "{} is in use: its node runs; nothing was changed. While a majority of the voters runs, there is nothing to \
                     recover; else stop every node of the cluster first ({e})",
                    dir.display()
                )));
            }
            Err(e @ (StoreError::Foreign { .. } | StoreError::Io { .. })) => {
                return Err(OfflineError::Refused(format!("--from {}: {e}; nothing was changed", dir.display())));
            }
            Err(e) => Err(e.to_string()),
        };
        let cluster = resting.as_ref().ok().and_then(|resting| resting.identity.cluster_id);
        match (first, cluster) {
            (Some((one, at)), Some(other)) if one != other => {
                return Err(OfflineError::Refused(format!(
                    "{} is of cluster {one:016x}, {} of cluster {other:016x}; nothing was changed. Give directories of one cluster",
                    at.display(),
                    dir.display()
                )));
            }
            (None, Some(id)) => first = Some((id, dir)),
            (Some(_) | None, Some(_) | None) => {}
        }
        survivors.push(Survivor { dir: dir.clone(), resting });
    }
    Ok(survivors)
}

impl Survivor {
    /// Whom it belongs to, where that can be read.
    pub fn identity(&self) -> Option<&Identity> {
        self.resting.as_ref().ok().map(|resting| &resting.identity)
    }

    /// Reads all of it, by way of a copy in `work`; or says why it cannot be used.
    pub async fn examine(&self, world: &Environment, config: &Config, work: &Path) -> Result<Examined, String> {
        let resting = self.resting.as_ref().map_err(Clone::clone)?;
        if resting.identity.cluster_id.is_none() {
            return Err("it was never of a cluster".into());
        }
        if resting.unsettled {
            return Err("its node was about to change to another cluster".into());
        }
        for part in TRUTH {
            copy(&*world.fs, &self.dir.join(part), &work.join(part)).map_err(|e| format!("{part}: {e}"))?;
        }
        let examined = examine(world, config, work).await;
        examined.map_err(|e| e.to_string().replace(&work.display().to_string(), &self.dir.display().to_string()))
    }
}

async fn examine(world: &Environment, config: &Config, work: &Path) -> Result<Examined, StoreError> {
    let log = LogStore::open(world.fs.clone(), &work.join("wal"), config.log_options(world.driver))?;
    let (_, committed) = log.ends();
    let mut opened = Opened::open(world, config, work, Some(&log))?;
    // What the state had before the log was applied came out of a snapshot.
    let committed = committed.map(|id| id.index).max(opened.state.applied().map(|id| id.index));
    opened.machine.replay(&log).await?;
    log.close().await.map_err(|e| StoreError::io("close the copy of the log", e))?;
    let state = &opened.state;
    let Some(last) = state.applied() else {
        return Err(StoreError::Unrecoverable { path: work.to_path_buf(), reason: "it holds no entry".into() });
    };
    let hash = state.hash();
    Ok(Examined {
        last,
        committed,
        revision: state.revision(),
        state_hash: hash.hash,
        members: state.members(),
        voter_sets: state.membership().membership().get_joint_config().clone(),
        opened,
    })
}

/// Copies the files in `from`.
fn copy(fs: &dyn Fs, from: &Path, to: &Path) -> io::Result<()> {
    fs.create_dir_all(to)?;
    for file in fs.list(from)?.iter().filter(|name| !fs.is_dir(name)) {
        let name = file.file_name().expect("what is listed has a name");
        copy_file((fs, file), (fs, &to.join(name)))?;
    }
    Ok(())
}
