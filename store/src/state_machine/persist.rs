//! The writer behind apply: it moves applied entries from the overlay into change log and engine, in log order.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use tokio::sync::watch;

use super::{Shared, keys, leases::row_changes, meta::Meta, overlay::Pending};
use crate::{
    StoreError, codec,
    engine::Batch,
    mutants::{self, Mutant},
};

/// Most keys of one batch, unless one transaction has more: large batches cost memory. The writer waits for as many,
/// because the engine has a fixed cost for each batch: small ones cost twice as much a key.
pub const BATCH_KEYS_MAX: usize = 256;
/// Most bytes of one batch, of keys and values, old and new; unless one transaction has more.
pub const BATCH_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long the writer waits for a batch to fill.
pub const BATCH_LINGER: Duration = Duration::from_millis(20);

impl Shared {
    /// Persists the oldest pending entries that are durable in the log. Returns whether there were any. Blocks.
    pub(super) fn persist_batch(&self) -> Result<bool, StoreError> {
        let mut persisted = self.persisted.lock();
        let (generation, pending) = {
            let live = self.live.read();
            (live.generation.clone(), self.fitting(&live.overlay)?)
        };
        let Some(last) = pending.last() else { return Ok(false) };
        let meta = last.meta.clone();
        let records: Vec<_> = pending.iter().filter_map(|pending| pending.record.clone()).collect();
        // First: an engine that is ahead of its change log would have to be rebuilt.
        generation.changes.lock().append(&records)?;
        generation.engine.write(&engine_batch(&pending, &meta))?;
        self.live.write().note_persisted(pending.len());
        if meta.compacted_revision > persisted.compacted_revision {
            self.history_due.store(true, Ordering::Release);
        }
        *persisted = meta.clone();
        if self.history_due.load(Ordering::Acquire) && Arc::strong_count(&self.history_hold) == 1 {
            generation.changes.lock().drop_below(meta.compacted_revision + 1)?;
            self.history_due.store(false, Ordering::Release);
        }
        drop(persisted);
        self.persisted_watch.send_replace(meta.next_index());
        while self.live.write().sweep_deleted() {}
        Ok(true)
    }

    /// Entries with a smaller index may be persisted: after a crash the log has them.
    pub(super) fn persistable(&self) -> u64 {
        if mutants::active(Mutant::PersistBeforeDurable) { u64::MAX } else { *self.durable.borrow() }
    }

    /// Runs until it is told to stop, or fails. Entries that are still pending then stay so.
    pub(super) async fn write_behind(self: Arc<Self>) {
        let _ended = Ended(&self);
        let mut durable = self.durable.clone();
        while !self.stop.load(Ordering::Acquire) {
            if !self.live.read().overlay.has_below(self.persistable()) {
                tokio::select! {
                    () = self.work.notified() => {}
                    () = durable_moves(&mut durable) => {}
                }
                continue;
            }
            self.linger().await;
            if self.stop.load(Ordering::Acquire) {
                break;
            }
            match self.persist_batch() {
                Ok(_) => self.has_room(),
                Err(error @ StoreError::NoRoom { .. }) => {
                    self.wait_for_room(&error, "the state stays in memory and in the log").await;
                }
                Err(error) => {
                    self.fail(&error);
                    break;
                }
            }
            // In simulation the writer shares its thread with everything else.
            tokio::task::yield_now().await;
        }
    }

    /// Waits until a batch is full enough, or old enough, or somebody waits for it.
    async fn linger(&self) {
        let deadline = tokio::time::Instant::now() + BATCH_LINGER;
        while !self.live.read().overlay.fills_a_batch()
            && self.in_a_hurry.load(Ordering::Acquire) == 0
            && !self.stop.load(Ordering::Acquire)
        {
            if tokio::time::timeout_at(deadline, self.work.notified()).await.is_err() {
                break;
            }
        }
    }

    /// Waits until everything before log index `next_index` is persisted.
    pub(super) async fn wait_persisted(&self, next_index: u64) -> Result<(), StoreError> {
        let mut persisted = self.persisted_watch.subscribe();
        let mut ended = self.writer_ended.subscribe();
        let _hurry = Hurry::new(self);
        tokio::select! {
            biased;
            reached = persisted.wait_for(|persisted| *persisted >= next_index) => {
                reached.map(|_| ()).map_err(|_| self.closed())
            }
            _ = ended.wait_for(|ended| *ended) => Err(self.closed()),
        }
    }

    /// Waits until the overlay has room for another entry.
    pub(super) async fn wait_room(&self) -> Result<(), StoreError> {
        let mut persisted = self.persisted_watch.subscribe();
        let mut ended = self.writer_ended.subscribe();
        while self.live.read().overlay.is_full() {
            self.work.notify_one();
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => return Err(self.closed()),
                changed = persisted.changed() => changed.map_err(|_| self.closed())?,
            }
        }
        Ok(())
    }
}

/// Completes when more of the log became durable; never once the log is gone.
async fn durable_moves(durable: &mut watch::Receiver<u64>) {
    if durable.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Tells, when dropped, that the writer has ended: nobody waits for it then, whatever ended it.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(&StoreError::io("state machine", io::Error::other("the writer panicked")));
        }
        self.0.writer_ended.send_replace(true);
    }
}

/// While one is alive the writer does not wait for its batches to fill.
struct Hurry<'a>(&'a Shared);

impl<'a> Hurry<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.in_a_hurry.fetch_add(1, Ordering::AcqRel);
        shared.work.notify_one();
        Self(shared)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.in_a_hurry.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One write of each key, with what the last of `pending` made of it, the rows about leases, and the progress `meta`.
fn engine_batch(pending: &[Pending], meta: &Meta) -> Batch {
    let mut newest = BTreeMap::new();
    for change in pending.iter().filter_map(|pending| pending.record.as_ref()).flat_map(|record| &record.changes) {
        newest.insert(&change.key, &change.new);
    }
    let mut batch = Batch::default();
    for (key, record) in newest {
        match record {
            Some(record) => batch.put(keys::current(key), codec::encode(record)),
            None => batch.delete(keys::current(key)),
        }
    }
    let mut outcomes = BTreeMap::new();
    for pending in pending {
        outcomes.extend(pending.dedupe.shortened.iter().map(|(_, entry)| (entry.index, Some(entry))));
        outcomes.extend(pending.dedupe.removed.iter().map(|entry| (entry.index, None)));
        outcomes.extend(pending.dedupe.added.iter().map(|entry| (entry.index, Some(entry))));
    }
    for (index, entry) in outcomes {
        match entry {
            Some(entry) => batch.put(keys::dedupe(index), codec::encode(&**entry)),
            None => batch.delete(keys::dedupe(index)),
        }
    }
    for pending in pending {
        for row in row_changes(&pending.leases, pending.record.iter().flat_map(|record| &record.changes)) {
            match row.new {
                Some(new) => batch.put(row.row, new),
                None => batch.delete(row.row),
            }
        }
    }
    meta.write(&mut batch);
    batch
}
