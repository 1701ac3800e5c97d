//! What is applied and not yet in the engine.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    dedupe::DedupeChange,
    leases::LeaseChange,
    merge::Entry,
    meta::Meta,
    persist::{BATCH_BYTES_MAX, BATCH_KEYS_MAX},
};
use crate::{change_log::ChangeRecord, engine::Span, record::Record};

/// Apply waits while so many entries are not yet persisted.
pub const OVERLAY_ENTRIES_MAX: usize = 16_384;
/// Apply waits while changes of this size, in bytes of keys and values, old and new, are not yet persisted.
pub const OVERLAY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One applied entry on its way to the engine.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    /// The state after the entry.
    pub(super) meta: Meta,
    /// What it changed, if it used a revision.
    pub(super) record: Option<Arc<ChangeRecord>>,
    /// What it did to the kept outcomes.
    pub(super) dedupe: DedupeChange,
    /// What it did to leases.
    pub(super) leases: Arc<[LeaseChange]>,
    bytes: u64,
}

impl Pending {
    pub(super) fn new(
        meta: Meta,
        record: Option<Arc<ChangeRecord>>,
        leases: Vec<LeaseChange>,
        dedupe: DedupeChange,
    ) -> Self {
        let bytes = record.as_ref().map_or(0, |record| record.size_bytes()) + dedupe.bytes();
        Self { meta, record, leases: leases.into(), dedupe, bytes }
    }

    /// Size of its changes, in bytes of keys and values, old and new.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of rows that it changes.
    pub(super) fn keys(&self) -> usize {
        self.record.as_ref().map_or(0, |record| record.changes.len()) + self.leases.len() + self.dedupe.rows()
    }
}

/// Applied entries in log order, and the newest record of each key that they changed.
///
/// Invariants: a key is in `newest` exactly when some pending entry changed it, with what the last of them made of
/// it; revisions of pending entries never go back and have no gaps; `bytes` is the sum over the pending entries.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    newest: BTreeMap<Bytes, Newest>,
    pending: VecDeque<Pending>,
    bytes: u64,
}

#[derive(Debug)]
struct Newest {
    /// Revision of the last change.
    revision: u64,
    /// None = deleted.
    record: Option<Record>,
}

impl Overlay {
    /// What the overlay knows of `key`: nothing, that it is deleted, or its record.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&Record>> {
        self.newest.get(key).map(|newest| newest.record.as_ref())
    }

    /// The keys of `span` in its order; None hides a key of the engine.
    pub(super) fn range<'a>(&'a self, span: &Span) -> Box<dyn Iterator<Item = (&'a Bytes, Option<Entry<'a>>)> + 'a> {
        let range = self.newest.range::<[u8], _>(span.bounds());
        let range = range.map(|(key, newest)| (key, newest.record.as_ref().map(Entry::Record)));
        if span.descending { Box::new(range.rev()) } else { Box::new(range) }
    }

    pub(super) fn push(&mut self, pending: Pending) {
        for change in pending.record.iter().flat_map(|record| &record.changes) {
            let newest = Newest { revision: pending.meta.revision, record: change.new.clone() };
            self.newest.insert(change.key.clone(), newest);
        }
        self.bytes += pending.bytes;
        self.pending.push_back(pending);
    }

    /// The oldest entries with a log index below `below`, as many as change at most `keys_max` keys and hold at most
    /// `bytes_max` bytes; one at least, where there is one.
    pub(super) fn oldest(&self, keys_max: usize, bytes_max: u64, below: u64) -> Vec<Pending> {
        let (mut keys, mut bytes) = (0, 0);
        let mut oldest = Vec::new();
        for pending in self.pending.iter().take_while(|pending| pending.meta.next_index() <= below) {
            keys += pending.keys();
            bytes += pending.bytes;
            if !oldest.is_empty() && (keys > keys_max || bytes > bytes_max) {
                break;
            }
            oldest.push(pending.clone());
        }
        oldest
    }

    /// Forgets the `count` oldest entries: the engine has them. Tells `forget` each key that is no longer here, with its
    /// record.
    pub(super) fn discard_oldest(&mut self, count: usize, mut forget: impl FnMut(Bytes, Option<Record>)) {
        for pending in self.pending.drain(..count) {
            self.bytes -= pending.bytes;
            for change in pending.record.iter().flat_map(|record| &record.changes) {
                if self.newest.get(&change.key).is_some_and(|newest| newest.revision <= pending.meta.revision)
                    && let Some((key, newest)) = self.newest.remove_entry(&change.key)
                {
                    forget(key, newest.record);
                }
            }
        }
    }

    /// The change record of `revision`, while it is pending.
    pub(super) fn record(&self, revision: u64) -> Option<Arc<ChangeRecord>> {
        let at = self.pending.partition_point(|pending| pending.meta.revision < revision);
        let pending = self.pending.get(at)?;
        pending.record.clone().filter(|record| record.revision == revision)
    }

    /// Whether an entry with a log index below `below` is pending.
    pub(super) fn has_below(&self, below: u64) -> bool {
        self.pending.front().is_some_and(|pending| pending.meta.next_index() <= below)
    }

    pub(super) fn entries(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of keys that wait for the engine.
    pub(super) fn keys(&self) -> usize {
        self.newest.len()
    }

    /// Whether there is no need to wait for more before persisting. Also by entries, because those that change one key
    /// again and again would otherwise pile up.
    pub(super) fn fills_a_batch(&self) -> bool {
        self.keys() >= BATCH_KEYS_MAX || self.entries() >= BATCH_KEYS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Whether another entry has to wait.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= OVERLAY_ENTRIES_MAX || self.bytes >= OVERLAY_BYTES_MAX
    }
}
