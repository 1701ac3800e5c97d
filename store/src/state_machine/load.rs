//! Fills a new generation from a snapshot, and reads what an existing one holds.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    dedupe::read_rows,
    generation::{Generation, StateDirs},
    hash::StateHash,
    keys,
    leases::{RowChange, attachment_changes, hash_rows},
    live::note_deletion,
    merge::decode_record,
    meta::Meta,
    page::size_bytes,
    persist::{BATCH_BYTES_MAX, BATCH_KEYS_MAX},
};
use crate::{
    StoreError,
    change_log::ChangeRecord,
    codec,
    dedupe::DedupeEntry,
    engine::{Batch, Engine, Span},
    lease::LeaseRecord,
    opening::Opening,
    record::{KeyRecord, Record},
    snapshot::{SnapshotReader, SnapshotSink},
};

/// Keys after which progress is shown.
const PROGRESS_KEYS: u64 = 1024;

/// Loads `reader` into `generation`, which must be new, and returns the state's progress. The engine's progress is
/// written last, in the batch that completes it.
///
/// # Errors
/// [`StoreError::Corrupt`] when the file is damaged, or holds another state than its hash says.
pub(super) fn load_snapshot(
    reader: &SnapshotReader,
    generation: &Generation,
    dirs: &StateDirs,
) -> Result<Meta, StoreError> {
    dirs.progress.begin("rebuilding the state from the snapshot", "keys", Some(reader.keys()));
    let mut loader = Loader {
        dirs,
        generation,
        hash: StateHash::default(),
        buffer: BTreeMap::new(),
        outcomes: Batch::default(),
        rows: BTreeMap::new(),
        bytes: 0,
        history_begun: false,
    };
    reader.load(&mut loader)?;
    let meta = Meta::of_footer(reader.footer());
    if !loader.history_begun {
        generation.changes.lock().clear(meta.revision + 1)?;
    }
    let hash = loader.hash.sum();
    if hash != meta.hash {
        return Err(StoreError::Corrupt {
            path: reader.file().path().to_path_buf(),
            offset: 0,
            reason: format!("its records have the state hash {hash:032x}, not {:032x}", meta.hash),
        });
    }
    loader.write(Some(&meta))?;
    Ok(meta)
}

/// Invariant: `hash` is that of the records and rows in the engine with those of `buffer` and `rows` over them.
struct Loader<'a> {
    dirs: &'a StateDirs,
    generation: &'a Generation,
    hash: StateHash,
    buffer: BTreeMap<Bytes, Option<Record>>,
    /// Rows of kept outcomes that the engine does not have yet.
    outcomes: Batch,
    /// Rows about leases.
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: u64,
    history_begun: bool,
}

impl Loader<'_> {
    fn set(&mut self, key: Bytes, record: Option<Record>, old: Option<Record>) -> Result<(), StoreError> {
        for row in attachment_changes(&key, old.as_ref(), record.as_ref()) {
            self.set_row(row);
        }
        if let Some(old) = old {
            self.hash.remove(&key, &old);
        }
        if let Some(record) = &record {
            self.hash.add(&key, record);
            self.bytes += size_bytes(&key, record);
        }
        self.buffer.insert(key, record);
        self.write_if_full()
    }

    fn set_row(&mut self, RowChange { row, old, new }: RowChange) {
        if let Some(old) = &old {
            self.hash.remove_row(&row, old);
        }
        if let Some(new) = &new {
            self.hash.add_row(&row, new);
        }
        self.rows.insert(row, new);
    }

    fn write_if_full(&mut self) -> Result<(), StoreError> {
        if self.buffer.len() + self.rows.len() >= BATCH_KEYS_MAX || self.bytes >= BATCH_BYTES_MAX {
            self.write(None)?;
        }
        Ok(())
    }

    fn old(&self, key: &Bytes) -> Result<Option<Record>, StoreError> {
        match self.buffer.get(key) {
            Some(record) => Ok(record.clone()),
            None => self.generation.engine.get(&keys::current(key))?.map(|bytes| decode_record(&bytes)).transpose(),
        }
    }

    fn write(&mut self, meta: Option<&Meta>) -> Result<(), StoreError> {
        let mut batch = std::mem::take(&mut self.outcomes);
        for (key, record) in std::mem::take(&mut self.buffer) {
            match record {
                Some(record) => batch.put(keys::current(&key), codec::encode(&record)),
                None => batch.delete(keys::current(&key)),
            }
        }
        for (row, value) in std::mem::take(&mut self.rows) {
            match value {
                Some(value) => batch.put(row, value),
                None => batch.delete(row),
            }
        }
        if let Some(meta) = meta {
            meta.write(&mut batch);
        }
        self.dirs.require_room(self.bytes)?;
        self.bytes = 0;
        self.generation.engine.write(&batch)
    }
}

impl SnapshotSink for Loader<'_> {
    fn key(&mut self, KeyRecord { key, record }: KeyRecord) -> Result<(), StoreError> {
        self.dirs.progress.advance(1);
        self.set(key, Some(record), None)
    }

    fn lease(&mut self, LeaseRecord { id, lease }: LeaseRecord) -> Result<(), StoreError> {
        self.set_row(RowChange { row: keys::lease(id), old: None, new: Some(codec::encode(&lease)) });
        self.write_if_full()
    }

    fn change(&mut self, record: ChangeRecord, redo: bool) -> Result<(), StoreError> {
        if redo {
            for change in &record.changes {
                let old = self.old(&change.key)?;
                self.set(change.key.clone(), change.new.clone(), old)?;
            }
        }
        let mut changes = self.generation.changes.lock();
        if !self.history_begun {
            changes.clear(record.revision)?;
            self.history_begun = true;
        }
        changes.append(&[Arc::new(record)])
    }

    fn dedupe(&mut self, entry: DedupeEntry) -> Result<(), StoreError> {
        let row = codec::encode(&entry);
        self.hash.add_row(&keys::dedupe(entry.index), &row);
        self.bytes += entry.size_bytes();
        self.outcomes.put(keys::dedupe(entry.index), row);
        if self.outcomes.len() >= BATCH_KEYS_MAX || self.bytes >= BATCH_BYTES_MAX {
            self.write(None)?;
        }
        Ok(())
    }
}

/// The keys that were deleted after the compacted revision and do not exist now, as the change log tells.
pub(super) fn read_deleted(generation: &Generation, meta: &Meta) -> Result<BTreeMap<Bytes, u64>, StoreError> {
    let mut deleted = BTreeMap::new();
    for record in generation.history.iter_from(meta.compacted_revision + 1) {
        let record = record?;
        for change in &record.changes {
            note_deletion(&mut deleted, change, record.revision);
        }
    }
    Ok(deleted)
}

/// The state hash of all records, leases and kept outcomes in `engine`.
pub(super) fn hash_engine(engine: &dyn Engine, progress: &Opening) -> Result<u128, StoreError> {
    let all = Span { lower: Bound::Unbounded, upper: Bound::Unbounded, descending: false };
    let mut hash = StateHash::default();
    let mut hashed: u64 = 0;
    engine.scan(&all.prefixed(keys::CURRENT), &mut |key, record| {
        hash.add_encoded(&key[1..], record);
        hashed += 1;
        if hashed.is_multiple_of(PROGRESS_KEYS) {
            progress.advance(PROGRESS_KEYS);
        }
        ControlFlow::Continue(())
    })?;
    for entry in read_rows(engine)? {
        hash.add_row(&keys::dedupe(entry.index), &codec::encode(&entry));
    }
    hash_rows(engine, &mut hash)?;
    Ok(hash.sum())
}
