//! The state as of the last applied entry: the engine with the overlay over it.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use bytes::Bytes;

use super::{
    dedupe::{DedupeChange, DedupeTable},
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
pub(super) const CHUNK_BYTES_MAX: u64 = 1024 * 1024;
/// Deleted keys that are looked at in one go, to forget those that are compacted.
const SWEEP_KEYS_MAX: usize = 4096;
/// Keys that one look passes over at most, the deleted ones included, which cost less than those that exist.
const CHUNK_STEPS_MAX: usize = 4 * CHUNK_KEYS_MAX;

/// The applied state.
///
/// Invariants:
/// - the engine holds the state of some earlier entry, or a batch beyond it that is being written; the overlay
///   covers every key that differs;
/// - `cache` holds what the engine says of its keys, unless the overlay says otherwise;
/// - `deleted` holds the keys that do not exist and were deleted after the compacted revision, with the revision that did
///   it; and, while `sweep_from` is set, some that were deleted before;
/// - `recent` ends with the record of `meta.revision`, or is empty;
/// - `leases` holds all leases, each with the keys whose records name it;
/// - `meta.hash` is the sum of the hashes of all current records, of the rows about leases, and of the kept outcomes.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) generation: Arc<Generation>,
    pub(super) overlay: Overlay,
    cache: RecordCache,
    pub(super) deleted: BTreeMap<Bytes, u64>,
    /// Keys from here on may have been deleted at or before the compacted revision.
    sweep_from: Option<Bytes>,
    pub(super) recent: Recent,
    /// Shared with a command that is being evaluated, and with nothing else.
    pub(super) dedupe: Arc<DedupeTable>,
    /// As `dedupe`.
    pub(super) leases: Arc<Leases>,
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
    /// The last key that was passed, when more may follow.
    pub(super) resume: Option<Bytes>,
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
        let (leases, dedupe) = (Arc::new(leases), Arc::new(dedupe));
        Self { generation, overlay, cache, deleted, sweep_from: None, recent, leases, dedupe, meta }
    }

    /// Makes an entry's effects visible.
    pub(super) fn publish(
        &mut self,
        meta: Meta,
        record: Option<Arc<ChangeRecord>>,
        leases: Vec<LeaseChange>,
        dedupe: DedupeChange,
    ) {
        unshared(&mut self.leases).publish(&leases, record.iter().flat_map(|record| &record.changes));
        for change in record.iter().flat_map(|record| &record.changes) {
            note_deletion(&mut self.deleted, change, meta.revision);
        }
        if meta.compacted_revision > self.meta.compacted_revision {
            self.sweep_from = Some(Bytes::new());
        }
        if let Some(record) = &record {
            self.recent.push(record.clone());
        }
        unshared(&mut self.dedupe).publish(&dedupe);
        self.meta = meta.clone();
        self.overlay.push(Pending::new(meta, record, leases, dedupe));
    }

    /// The engine has the `count` oldest entries of the overlay.
    pub(super) fn note_persisted(&mut self, count: usize) {
        self.overlay.discard_oldest(count, |key, record| self.cache.put(key, record));
    }

    /// The current record of `key` as far as it is known without the engine.
    pub(super) fn known(&self, key: &[u8]) -> Option<Option<Record>> {
        self.overlay.get(key).or_else(|| self.cache.get(key)).map(|record| record.cloned())
    }

    /// The current record of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        match self.known(key) {
            Some(record) => Ok(record),
            None => self.generation.get(key),
        }
    }

    /// Visits the current records of `span`, and the keys that the overlay hides.
    pub(super) fn scan(&self, span: &Span, visit: &mut EntryVisit<'_>) -> Result<(), StoreError> {
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

    /// As [`Live::scan`], as much as one look takes: at most [`CHUNK_KEYS_MAX`] keys and about [`CHUNK_BYTES_MAX`].
    /// Answers the last key, when more may follow and `visit` did not break.
    pub(super) fn step(&self, span: &Span, visit: &mut EntryVisit<'_>) -> Result<Option<Bytes>, StoreError> {
        let (mut steps, mut bytes) = (0, 0);
        let mut resume = None;
        self.scan(span, &mut |key, entry| {
            steps += 1;
            bytes += match entry {
                Entry::Record(record) => record.value.len(),
                Entry::Encoded(encoded) => encoded.len(),
                Entry::Hidden | Entry::Deleted(_) => 0,
            };
            let visited = visit(key, entry);
            if visited.is_continue() && (steps >= CHUNK_KEYS_MAX || bytes as u64 >= CHUNK_BYTES_MAX) {
                resume = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            visited
        })?;
        Ok(resume)
    }

    /// The revision that deleted `key`, 0 where none is remembered: it exists, never did, or that is compacted.
    pub(super) fn deleted_at(&self, key: &[u8]) -> u64 {
        let revision = self.deleted.get(key).copied().unwrap_or(0);
        if revision > self.meta.compacted_revision { revision } else { 0 }
    }

    /// Forgets some of the keys that were deleted at or before the compacted revision. Answers whether there may be more.
    pub(super) fn sweep_deleted(&mut self) -> bool {
        let Some(from) = self.sweep_from.take() else { return false };
        let compacted = self.meta.compacted_revision;
        let mut following = self.deleted.range(from..);
        let looked_at = following.by_ref().take(SWEEP_KEYS_MAX);
        let forgotten = looked_at.filter(|(_, revision)| **revision <= compacted).map(|(key, _)| key.clone());
        let forgotten: Vec<Bytes> = forgotten.collect();
        self.sweep_from = following.next().map(|(key, _)| key.clone());
        for key in forgotten {
            self.deleted.remove(&key);
        }
        self.sweep_from.is_some()
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
    /// `values`. Ends early, with none at all even, where many keys were deleted.
    pub(super) fn chunk(&self, span: &Span, at: u64, keys_max: usize, values: bool) -> Result<Chunk, StoreError> {
        let mut chunk = Chunk { keys: Vec::new(), resume: None };
        if span.is_empty() {
            return Ok(chunk);
        }
        let (mut steps, mut bytes) = (0, 0);
        let mut failure = None;
        let deleted = self.deleted.range::<[u8], _>(span.bounds());
        // One that was deleted before does not exist in the other layer either. It is not filtered out, so that it counts.
        let deleted = deleted.map(|(key, revision)| (key, (*revision > at).then_some(Entry::Deleted(*revision))));
        let deleted: Box<dyn Iterator<Item = _>> =
            if span.descending { Box::new(deleted.rev()) } else { Box::new(deleted) };
        merge(deleted, span.descending, |visit| self.scan(span, visit), &mut |key, entry| {
            steps += 1;
            let located = match entry {
                Entry::Hidden => None,
                Entry::Deleted(revision) => Some(Located::ChangedBy(revision)),
                Entry::Record(record) => Some(locate_record(record.clone(), at)),
                Entry::Encoded(encoded) => match decode_record(encoded) {
                    Ok(record) => Some(locate_record(record, at)),
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                },
            };
            if let Some(mut located) = located {
                if let Located::Found(record) = &mut located {
                    if !values {
                        record.value = Bytes::new();
                    }
                    bytes += size_bytes(key, record);
                }
                chunk.keys.push((Bytes::copy_from_slice(key), located));
            }
            if chunk.keys.len() >= keys_max || bytes >= CHUNK_BYTES_MAX || steps >= CHUNK_STEPS_MAX {
                chunk.resume = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
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

/// What apply changes in place: a command under evaluation shared it, and is over.
fn unshared<T>(shared: &mut Arc<T>) -> &mut T {
    Arc::get_mut(shared).expect("no command is being evaluated while another one is published")
}
