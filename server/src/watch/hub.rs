//! The live stream of one node: one dispatcher, whatever the number of watchers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hexkv_store::{
    change_log::ChangeRecord,
    mutants::{self, Mutant},
    record::KeyRange,
    state_machine::Changes,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    End,
    index::{Index, Selector},
    revision::{Batch, Held, Matched, Revision},
    slot::Slot,
    source::{Source, SourceError},
    watcher::Watcher,
};

/// Watches of one node at most.
pub const WATCHERS_MAX: usize = 65_536;
/// Revisions that wait for watchers take so much at most, in bytes, each counted once with its record and its encoded
/// events. Beyond, those watches are cut off that have not taken anything for the longest.
pub const STREAM_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Watches that read the history at the same time; further ones wait.
pub const CATCH_UP_READS_MAX: usize = 8;
/// The dispatcher looks up at least so often.
const DISPATCH_PATIENCE: Duration = Duration::from_secs(1);

/// The live stream of one node and everyone who watches it.
///
/// Invariants:
/// - every live watcher has been offered each revision up to `dispatched` that concerns it, once, in order, and none
///   beyond;
/// - a watcher joins with all revisions up to `dispatched` or more in its hands, so nothing lies between;
/// - `slots` holds every watcher that was not dropped; the index holds the live ones that have not ended.
pub struct Hub {
    /// None once closed: watchers that linger must not keep the state open.
    source: Mutex<Option<Arc<dyn Source>>>,
    registry: Mutex<Registry>,
    /// `registry.dispatched`, for reading without the lock: written after the revision was offered.
    dispatched: AtomicU64,
    held: Arc<Held>,
    stream_bytes_max: u64,
    joined: Notify,
    pub(super) readers: Semaphore,
}

#[derive(Default)]
struct Registry {
    index: Index,
    slots: BTreeMap<u64, (Selector, Arc<Slot>)>,
    next_id: u64,
    dispatched: u64,
    closed: Option<String>,
}

/// Why there is no watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotWatched {
    TooMany,
    Closed(String),
}

/// Whether a watcher is live now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    Live,
    /// The stream is ahead: there is more history to read.
    Behind,
    /// The watch has ended.
    Ended,
}

impl Hub {
    pub(super) fn new(source: Arc<dyn Source>) -> Arc<Self> {
        Self::with_limit(source, STREAM_BYTES_MAX)
    }

    pub(super) fn with_limit(source: Arc<dyn Source>, stream_bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            source: Mutex::new(Some(source)),
            registry: Mutex::default(),
            dispatched: AtomicU64::new(0),
            held: Arc::default(),
            stream_bytes_max,
            joined: Notify::new(),
            readers: Semaphore::new(CATCH_UP_READS_MAX),
        })
    }

    /// A watch of `range` that has everything up to revision `after`.
    pub(super) fn watch(self: &Arc<Self>, range: &KeyRange, after: u64) -> Result<Watcher, NotWatched> {
        let selector = Selector::of(range);
        let mut registry = self.registry.lock();
        if let Some(why) = &registry.closed {
            return Err(NotWatched::Closed(why.clone()));
        }
        if registry.slots.len() >= WATCHERS_MAX {
            return Err(NotWatched::TooMany);
        }
        registry.next_id += 1;
        let slot = Arc::new(Slot::new(registry.next_id));
        registry.slots.insert(slot.id, (selector.clone(), slot.clone()));
        Ok(Watcher::new(self.clone(), slot, selector, after))
    }

    /// Lets `slot`, which has everything up to revision `after` and nothing in its queue, take part in the live stream.
    pub(super) fn join(&self, slot: &Arc<Slot>, selector: &Selector, after: u64) -> Joined {
        let mut registry = self.registry.lock();
        if registry.closed.is_some() {
            return Joined::Ended;
        }
        if registry.index.is_empty() {
            registry.dispatched = after;
            self.dispatched.store(after, Ordering::Release);
        }
        if after < registry.dispatched {
            return Joined::Behind;
        }
        slot.set_has(if mutants::active(Mutant::WatchEventLost) { after + 1 } else { after });
        registry.index.insert(selector, slot.clone());
        drop(registry);
        self.joined.notify_one();
        Joined::Live
    }

    /// Forgets a watcher.
    pub(super) fn leave(&self, slot: &Slot) {
        let mut registry = self.registry.lock();
        if let Some((selector, _)) = registry.slots.remove(&slot.id) {
            registry.index.remove(&selector, slot.id);
        }
    }

    /// All live watchers were offered everything up to this revision.
    pub(super) fn dispatched(&self) -> u64 {
        self.dispatched.load(Ordering::Acquire)
    }

    /// Where changes come from; None once closed.
    pub(super) fn source(&self) -> Option<Arc<dyn Source>> {
        self.source.lock().clone()
    }

    /// Shares a revision that a watcher read from the history.
    pub(super) fn revision(&self, record: Arc<ChangeRecord>) -> Arc<Revision> {
        Revision::new(record, &self.held)
    }

    /// How many watches there are.
    pub fn watchers(&self) -> usize {
        self.registry.lock().slots.len()
    }

    /// What waits for watchers, in bytes, each revision counted once.
    pub fn held_bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// Ends every watch; there will be no more.
    pub(super) fn close(&self, why: &str) {
        let mut registry = self.registry.lock();
        if registry.closed.is_some() {
            return;
        }
        registry.closed = Some(why.to_string());
        *self.source.lock() = None;
        registry.index = Index::default();
        for (_, slot) in registry.slots.values() {
            slot.end(End::Closed(why.to_string()));
        }
    }

    /// Follows the source until `cancel`, or until the source fails.
    pub(super) async fn dispatch(self: Arc<Self>, cancel: CancellationToken) {
        let why = tokio::select! {
            biased;
            () = cancel.cancelled() => "this node stops, or its part in the cluster changed".to_string(),
            why = self.follow() => why,
        };
        self.close(&why);
    }

    async fn follow(&self) -> String {
        loop {
            while self.registry.lock().index.is_empty() {
                self.joined.notified().await;
            }
            let Some(source) = self.source() else { return "it is closed".to_string() };
            match source.changes_after(self.dispatched(), DISPATCH_PATIENCE).await {
                Ok(Changes { records, .. }) => {
                    for record in records {
                        self.offer_all(record);
                        self.relieve();
                        // One revision may concern thousands of watchers.
                        tokio::task::yield_now().await;
                    }
                }
                Err(SourceError::Compacted { oldest, newest }) => self.pass_over(oldest, newest),
                Err(SourceError::Failed(why)) => return why,
            }
        }
    }

    /// Hands `record`, which follows what was dispatched, to everyone it concerns.
    pub(super) fn offer_all(&self, record: Arc<ChangeRecord>) {
        let mut registry = self.registry.lock();
        let Registry { index, slots, dispatched, .. } = &mut *registry;
        // The stream began anew, further back or ahead, while the record was read.
        if record.revision != *dispatched + 1 {
            return;
        }
        let number = record.revision;
        if !index.is_empty() {
            let revision = self.revision(record);
            for (selector, id) in offer(index, slots, &revision) {
                index.remove(&selector, id);
            }
        }
        *dispatched = number;
        self.dispatched.store(number, Ordering::Release);
    }

    /// Cuts off the watches that have been stalled for the longest, until what is held is within bounds.
    pub(super) fn relieve(&self) {
        if self.held.bytes() <= self.stream_bytes_max {
            return;
        }
        let mut registry = self.registry.lock();
        let mut stalled: Vec<_> =
            registry.slots.values().filter_map(|(_, slot)| Some((slot.stalled_since()?, slot.id))).collect();
        stalled.sort_unstable();
        for (_, id) in stalled {
            if self.held.bytes() <= self.stream_bytes_max {
                break;
            }
            let Some((selector, slot)) = registry.slots.get(&id).cloned() else { continue };
            slot.end(End::Overflow);
            registry.index.remove(&selector, id);
        }
    }

    /// This node went on from a snapshot that does not hold what was to be dispatched next: those who need it end.
    fn pass_over(&self, oldest: u64, newest: u64) {
        let mut registry = self.registry.lock();
        let Registry { index, slots, dispatched, .. } = &mut *registry;
        for (selector, slot) in slots.values() {
            let has = slot.has().max(*dispatched);
            if has < oldest && index.remove(selector, slot.id) {
                slot.end(End::Compacted { from: has + 1, compacted: oldest, newest });
            }
        }
        *dispatched = oldest.max(*dispatched);
        self.dispatched.store(*dispatched, Ordering::Release);
    }
}

/// Offers `revision` to everyone it concerns; gives those that were too slow.
fn offer(
    index: &Index,
    slots: &BTreeMap<u64, (Selector, Arc<Slot>)>,
    revision: &Arc<Revision>,
) -> Vec<(Selector, u64)> {
    let mut slow = Vec::new();
    let mut hand = |slot: &Arc<Slot>, matched: Matched| {
        if !slot.offer(Batch::new(revision.clone(), matched))
            && let Some((selector, _)) = slots.get(&slot.id)
        {
            slow.push((selector.clone(), slot.id));
        }
    };
    let changes = &revision.record().changes;
    if let [change] = &changes[..] {
        index.find(&change.key, |slot| hand(slot, Matched::All));
        return slow;
    }
    let mut concerned: BTreeMap<u64, (&Arc<Slot>, Vec<u32>)> = BTreeMap::new();
    for (at, change) in (0_u32..).zip(changes) {
        index.find(&change.key, |slot| concerned.entry(slot.id).or_insert((slot, Vec::new())).1.push(at));
    }
    for (slot, at) in concerned.into_values() {
        hand(slot, Matched::of(&at, changes.len()));
    }
    slow
}
