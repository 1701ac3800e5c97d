//! One revision on its way to its watchers.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use hexkv_store::change_log::{Change, ChangeRecord};

use super::encode;

/// Bytes of all revisions that wait for a watcher, each counted once, however many watchers it waits for.
#[derive(Debug, Default)]
pub(super) struct Held(AtomicU64);

impl Held {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// One revision, shared by everyone it concerns.
///
/// Invariant: `charged` is what this revision adds to `held`: its record, and each form that was encoded.
#[derive(Debug)]
pub struct Revision {
    record: Arc<ChangeRecord>,
    /// Of each change: the event without and with the previous record.
    events: Box<[[OnceLock<Bytes>; 2]]>,
    held: Arc<Held>,
    charged: AtomicU64,
}

impl Revision {
    pub(super) fn new(record: Arc<ChangeRecord>, held: &Arc<Held>) -> Arc<Self> {
        let events = record.changes.iter().map(|_| Default::default()).collect();
        let revision = Self { events, held: held.clone(), charged: AtomicU64::new(0), record };
        revision.charge(revision.record.size_bytes());
        Arc::new(revision)
    }

    fn charge(&self, bytes: u64) {
        self.charged.fetch_add(bytes, Ordering::AcqRel);
        self.held.0.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn record(&self) -> &ChangeRecord {
        &self.record
    }

    /// The server-sent event of change `at`, up to the end of its data line; encoded at the first call.
    fn event(&self, at: usize, prev: bool) -> Bytes {
        let event = self.events[at][usize::from(prev)].get_or_init(|| {
            let event = encode::change_event(self.record.revision, &self.record.changes[at], prev);
            self.charge(event.len() as u64);
            event
        });
        event.clone()
    }
}

impl Drop for Revision {
    fn drop(&mut self) {
        self.held.0.fetch_sub(*self.charged.get_mut(), Ordering::AcqRel);
    }
}

/// What one revision holds for one watcher: at least one change.
#[derive(Debug, Clone)]
pub struct Batch {
    revision: Arc<Revision>,
    matched: Matched,
}

/// Which of a revision's changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Matched {
    All,
    /// One of several, by its index.
    One(u32),
    /// Several, in order.
    Some(Box<[u32]>),
}

impl Matched {
    /// The changes `at` (ascending, not empty) of `total`.
    pub(super) fn of(at: &[u32], total: usize) -> Self {
        match at {
            all if all.len() == total => Self::All,
            [one] => Self::One(*one),
            some => Self::Some(some.into()),
        }
    }
}

impl Batch {
    pub(super) fn new(revision: Arc<Revision>, matched: Matched) -> Self {
        Self { revision, matched }
    }

    /// The revision.
    pub fn revision(&self) -> u64 {
        self.revision.record.revision
    }

    /// When the revision came to be: the leader's wall clock, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.revision.record.time_ms
    }

    /// The changes that concern the watcher, by key: each with its new record (None = deleted) and the one before.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.indexes().map(|at| &self.revision.record.changes[at])
    }

    fn indexes(&self) -> impl Iterator<Item = usize> {
        let (all, some): (usize, &[u32]) = match &self.matched {
            Matched::All => (self.revision.record.changes.len(), &[]),
            Matched::One(one) => (0, std::slice::from_ref(one)),
            Matched::Some(some) => (0, some),
        };
        (0..all).chain(some.iter().map(|at| *at as usize))
    }

    /// Its size for the bound of a queue, in bytes of keys and values, old and new.
    pub(super) fn queue_bytes(&self) -> u64 {
        let size = |change: &Change| {
            let old = match &change.old {
                hexkv_store::change_log::Replaced::Record(record) => record.value.len(),
                hexkv_store::change_log::Replaced::Absent { .. } => 0,
            };
            (change.key.len() + old + change.new.as_ref().map_or(0, |record| record.value.len())) as u64
        };
        self.changes().map(size).sum()
    }

    /// Its server-sent events, to be written one behind the other. Only the last one has an `id`, the revision:
    /// whoever resumes after an `id` gets the next revision, and whoever was cut off before it gets this one again,
    /// whole.
    pub fn events(&self, prev: bool, mut write: impl FnMut(Bytes)) {
        let mut indexes = self.indexes().peekable();
        while let Some(at) = indexes.next() {
            write(self.revision.event(at, prev));
            write(match indexes.peek() {
                Some(_) => Bytes::from_static(b"\n"),
                None => Bytes::from(format!("id: {}\n\n", self.revision())),
            });
        }
    }
}
