//! What a node finds at start: its state, or the means to make it again.
//!
//! sled is trusted after a killed process, and not after a power cut. Whatever does not fit together is not
//! repaired but made again from the last snapshot, and by openraft from the log after it.

use std::collections::BTreeMap;

use super::{
    EngineKind, StateOptions,
    dedupe::DedupeTable,
    generation::{Generation, StateDirs},
    leases::Leases,
    live::Live,
    load::{hash_engine, load_snapshot, read_deleted},
    meta::Meta,
};
use crate::{
    StoreError,
    engine::Batch,
    snapshot::{SnapshotDir, SnapshotReader},
};

/// A state on disk of at most this size, in bytes, is read in full at every start, to compare it with its hash: well
/// under a second. A larger one only after a stop out of order, at about 3 s for 1 GB; what is damaged in one that was
/// stopped in order is found by the engine's own checksums when it is read, and rebuilt at the next start.
pub const VERIFY_ALWAYS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Opens the state, or rebuilds it.
pub(super) fn recover(dirs: &StateDirs, snapshots: &SnapshotDir, options: &StateOptions) -> Result<Live, StoreError> {
    let clean = dirs.take_clean()?;
    let current = dirs.current()?;
    if let Some(number) = current.filter(|_| options.engine != EngineKind::Memory) {
        match reopen(dirs, number, clean == Some(number), options) {
            Ok(live) => {
                dirs.remove_others(Some(number))?;
                return Ok(live);
            }
            // A later version's: it is not this one's to throw away.
            Err(StoreError::FormatVersion { path, found, supported }) if found > supported => {
                let path = if path.as_os_str().is_empty() { dirs.path().join(number.to_string()) } else { path };
                return Err(StoreError::FormatVersion { path, found, supported });
            }
            Err(error) => tracing::warn!(generation = number, %error, "the state is rebuilt"),
        }
    }
    rebuild(dirs, snapshots, options)
}

/// Opens generation `number`, and checks all that can be checked in time.
fn reopen(dirs: &StateDirs, number: u64, clean: bool, options: &StateOptions) -> Result<Live, StoreError> {
    let unusable =
        |reason: String| StoreError::Corrupt { path: dirs.path().join(number.to_string()), offset: 0, reason };
    if options.power_lost {
        return Err(unusable("the power was lost while it was in use".to_string()));
    }
    let generation = Generation::open(dirs, number)?;
    let meta = Meta::read(&*generation.engine)?.ok_or_else(|| unusable("it is incomplete".to_string()))?;
    if let Some(purged) = options.log_purged
        && meta.next_index() <= purged
    {
        let applied = meta.applied;
        return Err(unusable(format!("its last entry is {applied:?}, and the log begins after {purged}")));
    }
    generation.changes.lock().truncate_after(meta.revision)?;
    let (first, next) = (generation.history.first_revision(), generation.history.next_revision());
    if next != meta.revision + 1 || first > meta.compacted_revision + 1 {
        return Err(unusable(format!(
            "its change log holds the revisions {first}..{next}, it needs {}..={}",
            meta.compacted_revision + 1,
            meta.revision
        )));
    }
    if !clean || generation.engine.size_bytes()? <= VERIFY_ALWAYS_BYTES_MAX {
        dirs.progress.begin("checking the state", "keys", None);
        let hash = hash_engine(&*generation.engine, &dirs.progress)?;
        if hash != meta.hash {
            return Err(unusable(format!("its records have the state hash {hash:032x}, not {:032x}", meta.hash)));
        }
    }
    let deleted = read_deleted(&generation, &meta)?;
    let leases = Leases::read(&*generation.engine)?;
    let dedupe = DedupeTable::read(&*generation.engine)?;
    Ok(Live::new(generation, deleted, leases, dedupe, meta))
}

/// Makes a new generation: the last snapshot's state, or an empty one where the log still holds everything.
fn rebuild(dirs: &StateDirs, snapshots: &SnapshotDir, options: &StateOptions) -> Result<Live, StoreError> {
    let snapshot = snapshots.current();
    let covered = snapshot.as_ref().and_then(|(_, footer)| footer.meta.last_log_id).map(|log_id| log_id.index);
    if let Some(purged) = options.log_purged
        && covered.is_none_or(|covered| covered < purged)
    {
        let damaged = snapshots.damaged();
        return Err(StoreError::Unrecoverable {
            path: dirs.path().to_path_buf(),
            reason: format!(
                "the log begins after entry {purged}, the last snapshot ends at {covered:?}, damaged snapshots: {damaged:?}"
            ),
        });
    }
    let live = match &snapshot {
        Some((file, _)) => load_generation(dirs, &SnapshotReader::open(file)?)?,
        None => empty_generation(dirs)?,
    };
    let number = live.generation.number;
    dirs.set_current(number)?;
    dirs.remove_others(Some(number))?;
    Ok(live)
}

/// A complete new generation with the state of a snapshot, handed to the operating system.
pub(super) fn load_generation(dirs: &StateDirs, reader: &SnapshotReader) -> Result<Live, StoreError> {
    let generation = Generation::open(dirs, dirs.next_number()?)?;
    let load = || {
        let meta = load_snapshot(reader, &generation, dirs)?;
        generation.engine.flush()?;
        let deleted = read_deleted(&generation, &meta)?;
        let leases = Leases::read(&*generation.engine)?;
        let dedupe = DedupeTable::read(&*generation.engine)?;
        Ok(Live::new(generation.clone(), deleted, leases, dedupe, meta))
    };
    load().inspect_err(|_| generation.retire())
}

fn empty_generation(dirs: &StateDirs) -> Result<Live, StoreError> {
    let generation = Generation::open(dirs, dirs.next_number()?)?;
    let meta = Meta::default();
    let mut batch = Batch::default();
    meta.write(&mut batch);
    generation.engine.write(&batch)?;
    generation.engine.flush()?;
    Ok(Live::new(generation, BTreeMap::new(), Leases::default(), DedupeTable::default(), meta))
}
