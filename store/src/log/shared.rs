//! What callers of the log and its writer share: the log as callers see it, and how far it is durable.

use std::{
    collections::VecDeque,
    fmt, io,
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use openraft::{LogIdOptionExt, entry::RaftEntry};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use super::{
    index::{Index, Run},
    records::{Head, entry_bytes},
    timings::LogTimings,
};
use crate::{
    StoreError,
    raft_types::{Entry, LogId},
};

/// Most bytes of entries that wait for the writer; appends wait beyond.
pub(super) const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Shared {
    pub view: Mutex<View>,
    /// Entries with lower indices are durable.
    pub durable: watch::Sender<u64>,
    /// Room in the queue, in bytes.
    pub room: Semaphore,
    pub fatal: watch::Sender<Option<String>>,
    /// The disk has no room for the next segment.
    pub starved: AtomicBool,
    /// The log is about to be closed: nothing waits for room any more.
    pub closing: AtomicBool,
    failure: OnceLock<(io::ErrorKind, String)>,
    pub timings: LogTimings,
    /// When the writer began with the batch that it is at.
    pub writing_since: Mutex<Option<Instant>>,
    /// Set when entries were cut that were known to be committed.
    pub cut: watch::Sender<Option<Cut>>,
    cache_bytes_max: usize,
}

/// Entries that were cut from the end of the log although they were known to be committed: the nodes that committed them lost them,
/// and what this node has applied differs from what the cluster goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Index of the first entry that is gone.
    pub from: u64,
    /// Index of the last entry that was known to be committed.
    pub committed: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, committed } = self;
        write!(
            f,
            "the leader's log differs from log index {from} on, and entries up to {committed} were committed here: a node that acknowledged them lost them"
        )
    }
}

/// The log as callers see it, which is ahead of the disk by what waits for the writer.
///
/// Invariants:
/// - `cache` holds the last entries without a gap, from `cache_first` up to `head.last`.
/// - All entries that are not yet durable are in `cache`; all others are in `index`, up to `cache_first` without a gap.
/// - While a truncation waits for the writer, `index` may hold entries that callers no longer see. They have higher
///   indices than any entry that has left the cache.
#[derive(Debug)]
pub(super) struct View {
    /// The vote is the durable one; the rest includes what waits for the writer.
    pub head: Head,
    pub index: Index,
    pub counters: Counters,
    /// What the state has applied when the log was opened.
    pub applied: Option<LogId>,
    cache: VecDeque<Entry>,
    cache_first: u64,
    cache_bytes: usize,
    truncations_pending: usize,
}

/// What the writer did since the log was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub appended_bytes: u64,
    pub syncs: u64,
    pub batches: u64,
    pub batch_operations_max: u64,
}

/// Entries to read, in order: first from disk, then from memory.
#[derive(Debug)]
pub(super) struct Plan {
    pub runs: Vec<Run>,
    pub cached: Vec<Entry>,
}

impl Shared {
    pub fn new(head: Head, index: Index, cache_bytes_max: usize) -> Self {
        let next = head.last.next_index();
        let view = View {
            head,
            index,
            counters: Counters::default(),
            applied: None,
            cache: VecDeque::new(),
            cache_first: next,
            cache_bytes: 0,
            truncations_pending: 0,
        };
        Self {
            view: Mutex::new(view),
            durable: watch::Sender::new(next),
            room: Semaphore::new(QUEUE_BYTES_MAX),
            fatal: watch::Sender::new(None),
            starved: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            failure: OnceLock::new(),
            timings: LogTimings::default(),
            writing_since: Mutex::new(None),
            cut: watch::Sender::new(None),
            cache_bytes_max,
        }
    }

    /// Makes the log fail for good; the first failure counts.
    pub fn fail(&self, error: StoreError) {
        let error = io::Error::from(error);
        let message = error.to_string();
        if self.failure.set((error.kind(), message.clone())).is_ok() {
            tracing::error!(error = %message, "the write-ahead log failed, this node must stop");
            self.room.close();
            self.fatal.send_replace(Some(message));
        }
    }

    /// The error that made the log fail.
    pub fn failure(&self) -> Option<io::Error> {
        self.failure.get().map(|(kind, message)| io::Error::new(*kind, message.clone()))
    }

    /// Whether the log is about to be closed.
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn check(&self) -> io::Result<()> {
        self.failure().map_or(Ok(()), Err)
    }

    /// Notes under the view's lock that the writer made everything durable up to `next`, and trims the cache.
    pub fn made_durable(&self, view: &mut View, next: u64) {
        // Entries of the writer's last batch may be truncated already, and others may have taken their indices.
        if view.truncations_pending > 0 {
            return;
        }
        self.durable.send_if_modified(|durable| std::mem::replace(durable, next) != next);
        while view.cache_bytes > self.cache_bytes_max && view.cache_first < next {
            view.drop_first_cached();
        }
    }
}

impl View {
    /// Index of the first entry, or of the next one when there is none.
    pub fn first(&self) -> u64 {
        match self.head.purged {
            Some(purged) => purged.index + 1,
            None => self.index.first().unwrap_or(self.cache_first).min(self.cache_first),
        }
    }

    pub fn append(&mut self, entries: &[Entry], bytes: usize) {
        let Some((first, last)) = entries.first().zip(entries.last()) else { return };
        if let Some(expected) = self.head.expected_index() {
            assert_eq!(first.index(), expected, "appended entries must follow the last one, {:?}", self.head.last);
        } else {
            self.cache_first = first.index();
        }
        assert_eq!(last.index() - first.index() + 1, entries.len() as u64, "appended entries must be consecutive");
        self.head.last = Some(last.log_id);
        self.cache.extend(entries.iter().cloned());
        self.cache_bytes += bytes;
    }

    /// Which committed entries go when those after `after` are cut.
    pub fn committed_after(&self, after: Option<LogId>) -> Option<Cut> {
        let from = after.next_index();
        let committed = self.head.committed.next_index().max(self.applied.next_index());
        // What the log does not hold is not cut.
        let committed = committed.min(self.head.last.next_index());
        (from < committed).then(|| Cut { from, committed: committed - 1 })
    }

    /// The writer must be told next, and [`View::truncated`] when it is done.
    pub fn truncate(&mut self, after: Option<LogId>, durable: &watch::Sender<u64>) {
        self.head.truncate(after);
        self.truncations_pending += 1;
        let next = self.head.last.next_index();
        while self.cache_first + self.cache.len() as u64 > next
            && let Some(gone) = self.cache.pop_back()
        {
            self.cache_bytes -= entry_bytes(&gone);
        }
        self.cache_first = self.cache_first.min(next);
        durable.send_if_modified(|durable| std::mem::replace(durable, next.min(*durable)) != *durable);
    }

    /// The writer carried out `truncations`.
    pub fn truncated(&mut self, truncations: usize) {
        self.truncations_pending -= truncations;
    }

    /// Follows `head.purged`.
    pub fn purge_cache(&mut self) {
        let next = self.head.purged.next_index();
        while self.cache_first < next && !self.cache.is_empty() {
            self.drop_first_cached();
        }
        self.cache_first = self.cache_first.max(next);
    }

    fn drop_first_cached(&mut self) {
        if let Some(gone) = self.cache.pop_front() {
            self.cache_bytes -= entry_bytes(&gone);
            self.cache_first += 1;
        }
    }

    /// Index of the first entry in memory, and the ids of all that are.
    pub fn cached(&self) -> (u64, Vec<LogId>) {
        (self.cache_first, self.cache.iter().map(|entry| entry.log_id).collect())
    }

    /// Plans the read of what the log has of `range`: about `limit_bytes`, but at least one entry.
    pub fn plan(&self, range: Range<u64>, limit_bytes: u64) -> Plan {
        let (mut next, end) = (range.start.max(self.first()), range.end.min(self.head.last.next_index()));
        let mut left_bytes = limit_bytes;
        let mut plan = Plan { runs: Vec::new(), cached: Vec::new() };
        if next >= end {
            return plan;
        }
        if next < self.cache_first {
            let (runs, entries, left) = self.index.plan(next..end.min(self.cache_first), limit_bytes);
            (plan.runs, left_bytes) = (runs, left);
            next += entries;
        }
        if next >= self.cache_first {
            let (from, to) = ((next - self.cache_first) as usize, (end - self.cache_first) as usize);
            for entry in self.cache.range(from..to.max(from)) {
                let bytes = entry_bytes(entry) as u64;
                if bytes > left_bytes && !(plan.cached.is_empty() && plan.runs.is_empty()) {
                    break;
                }
                left_bytes = left_bytes.saturating_sub(bytes);
                plan.cached.push(entry.clone());
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use openraft::{EntryPayload, impls::leader_id_adv::LeaderId};

    use super::*;

    fn log_id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: 1 }, index }
    }

    fn append(shared: &Shared, term: u64, indices: Range<u64>) {
        let entries: Vec<_> = indices.map(|i| Entry::new(log_id(term, i), EntryPayload::Blank)).collect();
        let bytes = entries.iter().map(entry_bytes).sum();
        shared.view.lock().append(&entries, bytes);
    }

    #[test]
    fn a_cut_of_committed_entries_is_told_from_one_above_them() {
        let shared = Shared::new(Head::default(), Index::default(), 0);
        append(&shared, 1, 0..10);
        let mut view = shared.view.lock();
        view.head.committed = Some(log_id(1, 4));
        assert_eq!(view.committed_after(Some(log_id(1, 4))), None, "5 is the first to go, and was not committed");
        assert_eq!(view.committed_after(Some(log_id(1, 3))), Some(Cut { from: 4, committed: 4 }));
        assert_eq!(view.committed_after(None), Some(Cut { from: 0, committed: 4 }));
        // The state may know more than the log of how far entries were committed.
        view.applied = Some(log_id(1, 7));
        assert_eq!(view.committed_after(Some(log_id(1, 4))), Some(Cut { from: 5, committed: 7 }));
        view.applied = Some(log_id(1, 20));
        assert_eq!(view.committed_after(Some(log_id(1, 9))), None, "nothing is cut");
    }

    #[test]
    fn a_batch_from_before_a_truncation_makes_nothing_after_it_durable() {
        let shared = Shared::new(Head::default(), Index::default(), 0);
        append(&shared, 1, 0..10);
        shared.view.lock().truncate(Some(log_id(1, 4)), &shared.durable);
        append(&shared, 2, 5..10);
        // The writer finishes the first ten entries only now.
        shared.made_durable(&mut shared.view.lock(), 10);
        assert!(*shared.durable.borrow() <= 5);
        let plan = shared.view.lock().plan(5..10, u64::MAX);
        assert_eq!(plan.cached.len(), 5, "they are nowhere but in memory");
        let mut view = shared.view.lock();
        view.truncated(1);
        shared.made_durable(&mut view, 10);
        assert_eq!(*shared.durable.borrow(), 10);
    }
}
