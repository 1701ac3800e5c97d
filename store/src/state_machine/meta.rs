//! What the state is apart from its keys, and how the engine keeps it: three checksummed rows.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    directory::Directory,
    hash::{HASH_CHECKPOINT_ENTRIES, HASH_CHECKPOINT_MS, HASH_CHECKPOINTS_MAX},
    keys,
};
use crate::{
    LogId, StoreError,
    clock::LogClock,
    codec,
    engine::{Batch, Engine},
    raft_types::{SnapshotMeta, StoredMembership},
    snapshot::Footer,
};

/// Version of the rows that this binary writes.
const META_FORMAT_VERSION: u32 = 4;
/// The oldest one that it reads: in version 3 all leases were explicit, and their rows are the same.
const META_FORMAT_VERSION_OLDEST: u32 = 3;
/// Largest row, in bytes: memberships and a directory of at most 64 members.
const ROW_BYTES_MAX: usize = 1024 * 1024;

const PROGRESS: &str = "progress";
const DIRECTORY: &str = "directory";
const CHECKPOINTS: &str = "checkpoints";

/// Everything but the keys, as of one log entry. Cloning copies no lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// Last applied entry.
    pub(super) applied: Option<LogId>,
    /// Time of the last applied command, in milliseconds since the Unix epoch; never goes back.
    pub(super) time_ms: u64,
    /// Time as apply counts it.
    pub(super) clock: LogClock,
    /// Revision of the last change.
    pub(super) revision: u64,
    /// Revision below which history is forgotten.
    pub(super) compacted_revision: u64,
    /// Sum of the hashes of all records and kept outcomes.
    pub(super) hash: u128,
    /// Raft membership.
    pub(super) membership: Arc<StoredMembership>,
    /// Members and settings.
    pub(super) directory: Arc<Directory>,
    /// (index, hash) at every [`HASH_CHECKPOINT_ENTRIES`]th entry, and at the first one in each [`HASH_CHECKPOINT_MS`].
    pub(super) checkpoints: Arc<VecDeque<(u64, u128)>>,
}

#[derive(Serialize, Deserialize)]
struct ProgressRow {
    format_version: u32,
    applied: Option<LogId>,
    time_ms: u64,
    clock: LogClock,
    revision: u64,
    compacted_revision: u64,
    hash: u128,
    /// Checksums of the other rows: rows of different batches do not fit together.
    directory_crc: u32,
    checkpoints_crc: u32,
}

#[derive(Serialize, Deserialize)]
struct DirectoryRow {
    membership: StoredMembership,
    directory: Directory,
}

impl Meta {
    /// Takes over an entry's log id, and its hash where a checkpoint is due: by the log alone, so at the same entries on every
    /// node. `time_ms_before` is the time before the entry.
    pub(super) fn advance(&mut self, log_id: LogId, time_ms_before: u64) {
        self.applied = Some(log_id);
        let span_begins = self.time_ms / HASH_CHECKPOINT_MS != time_ms_before / HASH_CHECKPOINT_MS;
        if span_begins || log_id.index.is_multiple_of(HASH_CHECKPOINT_ENTRIES) {
            let checkpoints = Arc::make_mut(&mut self.checkpoints);
            checkpoints.push_back((log_id.index, self.hash));
            if checkpoints.len() > HASH_CHECKPOINTS_MAX {
                checkpoints.pop_front();
            }
        }
    }

    /// Index after the last applied one.
    pub(super) fn next_index(&self) -> u64 {
        self.applied.map_or(0, |log_id| log_id.index + 1)
    }

    /// Puts the rows into `batch`.
    pub(super) fn write(&self, batch: &mut Batch) {
        let directory_row =
            DirectoryRow { membership: (*self.membership).clone(), directory: (*self.directory).clone() };
        let (directory, directory_crc) = seal(&directory_row);
        let (checkpoints, checkpoints_crc) = seal(&*self.checkpoints);
        let (progress, _) = seal(&ProgressRow {
            format_version: META_FORMAT_VERSION,
            applied: self.applied,
            time_ms: self.time_ms,
            clock: self.clock,
            revision: self.revision,
            compacted_revision: self.compacted_revision,
            hash: self.hash,
            directory_crc,
            checkpoints_crc,
        });
        batch.put(keys::meta(DIRECTORY), directory);
        batch.put(keys::meta(CHECKPOINTS), checkpoints);
        batch.put(keys::meta(PROGRESS), progress);
    }

    /// Reads the rows; None in an engine that never had any.
    ///
    /// # Errors
    /// [`StoreError::Decode`] where they are damaged or do not belong together; [`StoreError::FormatVersion`], without the
    /// path, which only the caller knows, where a later version wrote them.
    pub(super) fn read(engine: &dyn Engine) -> Result<Option<Self>, StoreError> {
        let Some((row, _)) = checked_row(engine, PROGRESS)? else { return Ok(None) };
        let found: u32 = codec::decode_first("state progress", &row)?;
        if found > META_FORMAT_VERSION {
            return Err(StoreError::FormatVersion { path: PathBuf::new(), found, supported: META_FORMAT_VERSION });
        }
        let progress: ProgressRow = codec::decode("state progress", &row, ROW_BYTES_MAX)?;
        if progress.format_version < META_FORMAT_VERSION_OLDEST {
            return Err(damaged(format!(
                "format version {}, this binary reads {META_FORMAT_VERSION_OLDEST} to {META_FORMAT_VERSION}",
                progress.format_version
            )));
        }
        let (directory, directory_crc) =
            unseal::<DirectoryRow>(engine, DIRECTORY)?.ok_or_else(|| damaged("no directory"))?;
        let (checkpoints, checkpoints_crc) =
            unseal::<VecDeque<(u64, u128)>>(engine, CHECKPOINTS)?.ok_or_else(|| damaged("no checkpoints"))?;
        if (directory_crc, checkpoints_crc) != (progress.directory_crc, progress.checkpoints_crc) {
            return Err(damaged("the rows are of different batches"));
        }
        Ok(Some(Self {
            applied: progress.applied,
            time_ms: progress.time_ms,
            clock: progress.clock,
            revision: progress.revision,
            compacted_revision: progress.compacted_revision,
            hash: progress.hash,
            membership: Arc::new(directory.membership),
            directory: Arc::new(directory.directory),
            checkpoints: Arc::new(checkpoints),
        }))
    }

    /// The state that a snapshot holds.
    pub(super) fn of_footer(footer: &Footer) -> Self {
        Self {
            applied: footer.meta.last_log_id,
            time_ms: footer.time_ms,
            clock: footer.clock,
            revision: footer.revision,
            compacted_revision: footer.compacted_revision,
            hash: footer.state_hash,
            membership: Arc::new(footer.meta.last_membership.clone()),
            directory: Arc::new(Directory {
                members: footer.members.clone(),
                replication_factor: footer.replication_factor,
                cluster_id: footer.cluster_id,
            }),
            checkpoints: Arc::default(),
        }
    }

    /// The footer of a snapshot of this state, whose scan began at `scan_start_revision`.
    pub(super) fn footer(&self, scan_start_revision: u64) -> Footer {
        Footer {
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: (*self.membership).clone() },
            revision: self.revision,
            compacted_revision: self.compacted_revision,
            scan_start_revision,
            state_hash: self.hash,
            members: self.directory.members.clone(),
            replication_factor: self.directory.replication_factor,
            cluster_id: self.directory.cluster_id,
            time_ms: self.time_ms,
            clock: self.clock,
        }
    }
}

fn damaged(reason: impl Into<String>) -> StoreError {
    StoreError::Decode { what: "state progress", reason: reason.into() }
}

/// Encodes a row with its checksum in front; also returns the checksum.
fn seal<T: Serialize>(row: &T) -> (Vec<u8>, u32) {
    let mut sealed = vec![0; 4];
    codec::encode_into(row, &mut sealed);
    let crc = crc32fast::hash(&sealed[4..]);
    sealed[..4].copy_from_slice(&crc.to_le_bytes());
    (sealed, crc)
}

fn unseal<T: DeserializeOwned>(engine: &dyn Engine, name: &str) -> Result<Option<(T, u32)>, StoreError> {
    let Some((row, crc)) = checked_row(engine, name)? else { return Ok(None) };
    Ok(Some((codec::decode("state progress", &row, ROW_BYTES_MAX)?, crc)))
}

/// A row as it was encoded, and its checksum.
fn checked_row(engine: &dyn Engine, name: &str) -> Result<Option<(Vec<u8>, u32)>, StoreError> {
    let Some(sealed) = engine.get(&keys::meta(name))? else { return Ok(None) };
    let Some((crc, row)) = sealed.split_first_chunk::<4>() else {
        return Err(damaged(format!("row {name} has {} bytes", sealed.len())));
    };
    let crc = u32::from_le_bytes(*crc);
    if crc32fast::hash(row) != crc {
        return Err(damaged(format!("checksum of row {name}")));
    }
    Ok(Some((row.to_vec(), crc)))
}
