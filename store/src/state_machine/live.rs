//! The state as of the last applied entry: the engine with the overlay over it.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use bytes::Bytes;

use super::{
    dedupe::{DedupeChange, DedupeTable},
    directory::Directory,
    evaluate::View,
    feed::Recent,
    generation::Generation,
    keys,
    leases::{LeaseChange, Leases},
    merge::{Entry, EntryVisit, decode_record, merge},
    meta::Meta,
    overlay::{Overlay, Pending},
    page::size_bytes,
    record_cache::RecordCache,
};
use crate::{
    StoreError,
    change_log::{Change, ChangeRecord},
    engine::Span,
    record::Record,
};

/// Keys that one look at the state takes at most: apply waits for no more than these.
pub(super) const CHUNK_KEYS_MAX: usize = 256;
/// Bytes of keys and values after which such a look ends.
const CHUNK_BYTES_MAX: u64 = 1024 * 1024;

/// The applied state.
///
/// Invariants:
/// - the engine holds the state of some earlier entry, or a batch beyond it that is being written; the overlay
///   covers every key that differs;
/// - `cache` holds what the engine says of its keys, unless the overlay says otherwise;
/// - `deleted` holds exactly the keys that do not exist and were deleted after the compacted revision, with the
///   revision that did it;
/// - `recent` ends with the record of `meta.revision`, or is empty;
/// - `leases` holds all leases, each with the keys whose records name it;
/// - `meta.hash` is the sum of the hashes of all current records, of the rows about leases, and of the kept outcomes.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) generation: Arc<Generation>,
    pub(super) overlay: Overlay,
    cache: RecordCache,
    pub(super) deleted: BTreeMap<Bytes, u64>,
    pub(super) recent: Recent,
    pub(super) dedupe: DedupeTable,
    pub(super) leases: Leases,
    pub(super) meta: Meta,
}

/// What is known of a key at some revision, before the change log is asked.
#[derive(Debug)]
pub(super) enum Located {
    /// Its record then.
    Found(Record),
    /// It did not exist then.
    Absent,
    /// It was changed since, last by this revision.
    ChangedBy(u64),
}

/// Some keys of a range, as of one moment.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) keys: Vec<(Bytes, Located)>,
    /// More keys may follow.
    pub(super) more: bool,
}

impl Live {
    /// A state without anything pending.
    pub(super) fn new(
        generation: Arc<Generation>,
        deleted: BTreeMap<Bytes, u64>,
        leases: Leases,
        dedupe: DedupeTable,
        meta: Meta,
    ) -> Self {
        let (overlay, cache, recent) = (Overlay::default(), RecordCache::default(), Recent::default());
        Self { generation, overlay, cache, deleted, recent, leases, dedupe, meta }
    }

    /// Makes an entry's effects visible.
    pub(super) fn publish(
        &mut self,
        meta: Meta,
        record: Option<Arc<ChangeRecord>>,
        leases: Vec<LeaseChange>,
        dedupe: DedupeChange,
    ) {
        self.leases.publish(&leases, record.iter().flat_map(|record| &record.changes));
        for change in record.iter().flat_map(|record| &record.changes) {
            note_deletion(&mut self.deleted, change, meta.revision);
        }
        if meta.compacted_revision > self.meta.compacted_revision {
            self.deleted.retain(|_, revision| *revision > meta.compacted_revision);
        }
        if let Some(record) = &record {
            self.recent.push(record.clone());
        }
        self.dedupe.publish(&dedupe);
        self.meta = meta.clone();
        self.overlay.push(Pending::new(meta, record, leases, dedupe));
    }

    /// The engine has the `count` oldest entries of the overlay.
    pub(super) fn note_persisted(&mut self, count: usize) {
        self.overlay.discard_oldest(count, |key, record| self.cache.put(key, record));
    }

    /// What is known of `key` at revision `at`.
    pub(super) fn locate(&self, key: &[u8], at: u64) -> Result<Located, StoreError> {
        Ok(match self.get(key)? {
            Some(record) => locate_record(record, at),
            None => self.locate_deleted(key, at),
        })
    }

    fn locate_deleted(&self, key: &[u8], at: u64) -> Located {
        match self.deleted.get(key) {
            Some(revision) if *revision > at => Located::ChangedBy(*revision),
            Some(_) | None => Located::Absent,
        }
    }

    /// The first keys of `span` that may have existed at revision `at`; at most `keys_max`, and no values unless
    /// `values`.
    pub(super) fn chunk(&self, span: &Span, at: u64, keys_max: usize, values: bool) -> Result<Chunk, StoreError> {
        let mut chunk = Chunk { keys: Vec::new(), more: false };
        if span.is_empty() {
            return Ok(chunk);
        }
        let mut bytes = 0;
        let mut failure = None;
        let deleted = self.deleted.range::<[u8], _>(span.bounds());
        let deleted = deleted.filter(|(_, revision)| **revision > at);
        let deleted = deleted.map(|(key, revision)| (key, Some(Entry::Deleted(*revision))));
        let deleted: Box<dyn Iterator<Item = _>> =
            if span.descending { Box::new(deleted.rev()) } else { Box::new(deleted) };
        merge(deleted, span.descending, |visit| self.scan(span, visit), &mut |key, entry| {
            if chunk.keys.len() >= keys_max || bytes >= CHUNK_BYTES_MAX {
                chunk.more = true;
                return ControlFlow::Break(());
            }
            let located = match entry {
                Entry::Deleted(revision) => Located::ChangedBy(revision),
                Entry::Record(record) => locate_record(record.clone(), at),
                Entry::Encoded(encoded) => match decode_record(encoded) {
                    Ok(record) => locate_record(record, at),
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                },
            };
            let located = match located {
                Located::Found(mut record) => {
                    if !values {
                        record.value = Bytes::new();
                    }
                    bytes += size_bytes(key, &record);
                    Located::Found(record)
                }
                other => other,
            };
            chunk.keys.push((Bytes::copy_from_slice(key), located));
            ControlFlow::Continue(())
        })?;
        failure.map_or(Ok(chunk), Err)
    }
}

fn locate_record(record: Record, at: u64) -> Located {
    if record.mod_revision <= at { Located::Found(record) } else { Located::ChangedBy(record.mod_revision) }
}

/// Keeps the map of deleted keys in step with `change` of `revision`.
pub(super) fn note_deletion(deleted: &mut BTreeMap<Bytes, u64>, change: &Change, revision: u64) {
    match &change.new {
        Some(_) => deleted.remove(&change.key),
        None => deleted.insert(change.key.clone(), revision),
    };
}

impl View for Live {
    fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        match self.overlay.get(key).or_else(|| self.cache.get(key)) {
            Some(record) => Ok(record.cloned()),
            None => self.generation.engine.get(&keys::current(key))?.map(|bytes| decode_record(&bytes)).transpose(),
        }
    }

    fn scan(&self, span: &Span, visit: &mut EntryVisit<'_>) -> Result<(), StoreError> {
        if span.is_empty() {
            return Ok(());
        }
        merge(
            self.overlay.range(span),
            span.descending,
            |visit| {
                self.generation
                    .engine
                    .scan(&span.prefixed(keys::CURRENT), &mut |key, value| visit(&key[1..], Entry::Encoded(value)))
            },
            visit,
        )
    }

    fn deleted_at(&self, key: &[u8]) -> u64 {
        self.deleted.get(key).copied().unwrap_or(0)
    }

    fn revision(&self) -> u64 {
        self.meta.revision
    }

    fn compacted_revision(&self) -> u64 {
        self.meta.compacted_revision
    }

    fn directory(&self) -> &Directory {
        &self.meta.directory
    }

    fn leases(&self) -> &Leases {
        &self.leases
    }
}
