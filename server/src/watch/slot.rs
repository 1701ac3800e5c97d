//! The bounded queue between the hub and one watcher.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{End, revision::Batch};

/// Revisions that wait for one watcher at most; beyond, it is cut off.
pub const WATCHER_QUEUE_REVISIONS_MAX: usize = 1024;
/// Their size at most, in bytes of keys and values, old and new; a single revision may be larger.
pub const WATCHER_QUEUE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// One watcher's queue. Filled by the hub, or by the watcher itself while it reads the history: never by both.
///
/// Invariants: revisions ascend; `bytes` is the sum of their sizes; nothing is queued once `end` is set.
#[derive(Debug)]
pub(super) struct Slot {
    /// Unique in its hub.
    pub(super) id: u64,
    state: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug)]
struct Queue {
    batches: VecDeque<Batch>,
    bytes: u64,
    /// Since when the oldest batch has been waiting, while there is one.
    waiting_since: Instant,
    /// Revisions up to this one are the watcher's already.
    has: u64,
    end: Option<End>,
}

/// What a look into the queue finds.
#[derive(Debug)]
pub(super) enum Taken {
    Batch(Batch),
    Empty,
    Ended(End),
}

impl Slot {
    pub(super) fn new(id: u64) -> Self {
        let queue = Queue { batches: VecDeque::new(), bytes: 0, waiting_since: Instant::now(), has: 0, end: None };
        Self { id, state: Mutex::new(queue), arrived: Notify::new() }
    }

    /// The hub skips revisions up to `revision`.
    pub(super) fn set_has(&self, revision: u64) {
        self.state.lock().has = revision;
    }

    /// The revision that the watcher had when it joined.
    pub(super) fn has(&self) -> u64 {
        self.state.lock().has
    }

    /// Queues `batch`, unless the watcher has it. False: the queue is full, the watcher is cut off.
    pub(super) fn offer(&self, batch: Batch) -> bool {
        let mut queue = self.state.lock();
        if queue.end.is_some() || batch.revision() <= queue.has {
            return true;
        }
        let bytes = batch.queue_bytes();
        let full = queue.batches.len() >= WATCHER_QUEUE_REVISIONS_MAX || queue.bytes + bytes > WATCHER_QUEUE_BYTES_MAX;
        if full && !queue.batches.is_empty() {
            queue.finish(End::Overflow);
            drop(queue);
            self.arrived.notify_one();
            return false;
        }
        queue.push(batch, bytes);
        drop(queue);
        self.arrived.notify_one();
        true
    }

    /// Queues what the watcher itself read: bounded by what one read of the stream answers.
    pub(super) fn fill(&self, batch: Batch) {
        let mut queue = self.state.lock();
        if queue.end.is_none() {
            let bytes = batch.queue_bytes();
            queue.push(batch, bytes);
        }
    }

    /// Takes the oldest batch.
    pub(super) fn take(&self) -> Taken {
        let mut queue = self.state.lock();
        match queue.batches.pop_front() {
            Some(batch) => {
                queue.bytes -= batch.queue_bytes();
                queue.waiting_since = Instant::now();
                Taken::Batch(batch)
            }
            None => queue.end.clone().map_or(Taken::Empty, Taken::Ended),
        }
    }

    /// Ends the watch. What is queued goes for an overflow, because it takes memory; otherwise it is still delivered.
    pub(super) fn end(&self, end: End) {
        self.state.lock().finish(end);
        self.arrived.notify_one();
    }

    /// Since when the watcher has left its oldest batch in the queue; None when the queue is empty.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        let queue = self.state.lock();
        (!queue.batches.is_empty()).then_some(queue.waiting_since)
    }

    /// Whether there is nothing to take and no end.
    pub(super) fn is_drained(&self) -> bool {
        let queue = self.state.lock();
        queue.batches.is_empty() && queue.end.is_none()
    }

    /// Waits until something may have arrived.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

impl Queue {
    fn push(&mut self, batch: Batch, bytes: u64) {
        if self.batches.is_empty() {
            self.waiting_since = Instant::now();
        }
        self.bytes += bytes;
        self.batches.push_back(batch);
    }

    fn finish(&mut self, end: End) {
        if self.end.is_some() {
            return;
        }
        if end == End::Overflow {
            self.batches = VecDeque::new();
            self.bytes = 0;
        }
        self.end = Some(end);
    }
}
