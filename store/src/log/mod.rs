//! The write-ahead log: Raft's entries, vote, and purge and truncate records, on disk before anyone is told.
//!
//! ```text
//! LogStore --operations--> queue --> one writer --> active segment, sealed segments
//!     |                                 | publishes
//!     +-- reads --> view (recent entries, where the others are) <--+
//! ```
//!
//! | room | what lives there |
//! |---|---|
//! | [`segment`] | files of checked records; the change log is made of them too |
//! | `records` | what the records say, and the state that they add up to |
//! | `writer` | the one writer: one write and one sync for all that waits |
//! | `provision` | the next segment, prepared ahead; old ones, unlinked |
//! | `recovery` | opening: torn tail cut, damage refused |
//! | `index`, `shared` | where entries are on disk; the log as callers see it |
//! | `storage` | openraft's traits |
//!
//! # What is promised
//! - An entry is readable when `append` returns. Its callback, and a vote, truncation or purge that returned, mean: it
//!   and all operations before it are durable.
//! - After a crash the log is what some prefix of the operations made of it, and all operations reported as durable are in
//!   that prefix.
//! - A disk without room for the next segment delays what comes next ([`LogStore::starved`]); it goes on when there is room.
//! - A failed write or sync is fatal: every later call fails with the same error, nothing is tried again, and
//!   [`LogStore::fatal`] tells the node to stop.
//! - Damage is an error at open, with one exception that no checksum can tell from a torn write: damage within the very
//!   last batch of records loses that batch from the damaged record on (a warning says how many bytes). Closing
//!   writes a last batch that holds no entries, so a log that was closed detects damage to every entry.

mod index;
mod provision;
mod records;
mod recovery;
pub mod segment;
mod shared;
mod storage;
mod timings;
mod writer;

use std::{
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use openraft::{LogIdOptionExt, storage::RaftLogStorage as _};
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    provision::{Provision, SegmentDir},
    records::entry_bytes,
    segment::{CAPACITY_BYTES_MAX, HEADER_BYTES, record_bytes},
    shared::Shared,
    writer::{Operation, SEAL_BYTES, Writer, closed_error},
};
pub use self::{shared::Cut, timings::LogTimings};
use crate::{
    NodeId, StoreError,
    driver::Driver,
    fs::SharedFs,
    opening::Opening,
    raft_types::{Entry, LogId, Vote},
};

/// Most bytes of entries that one read for replication or apply takes into memory, unless a single entry is larger.
pub const READ_CHUNK_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Smallest segment, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 2 * HEADER_BYTES;

/// Kept free in each segment for its first record, in bytes.
const CHECKPOINT_BYTES_MAX: u64 = 256;

/// How a log is kept.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Size of a segment, [`SEGMENT_BYTES_MIN`]..=[`CAPACITY_BYTES_MAX`]. The largest entry must fit.
    pub segment_bytes: u64,
    /// How many bytes of recent entries stay in memory; older ones are read from the segments.
    pub cache_bytes: usize,
    /// What runs the writer.
    pub driver: Driver,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 * 1024 * 1024, cache_bytes: 8 * 1024 * 1024, driver: Driver::Thread }
    }
}

/// What a log holds, and what it did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStats {
    /// Index of the first entry, or of the next one when there is none.
    pub first_index: u64,
    /// Index of the last entry; None when there is none and never was.
    pub last_index: Option<u64>,
    /// Bytes on disk of the entries kept, those not yet written aside.
    pub entry_bytes: u64,
    /// Bytes of entries written since the log was opened.
    pub appended_bytes: u64,
    /// Segments in use.
    pub segments: usize,
    /// Bytes on disk, the segment prepared ahead included.
    pub disk_bytes: u64,
    /// Syncs done since the log was opened.
    pub syncs: u64,
    /// Batches written since the log was opened.
    pub batches: u64,
    /// Most operations that shared a batch.
    pub batch_operations_max: u64,
}

/// The write-ahead log; clones share it. It implements openraft's log storage and log reader.
///
/// Invariants:
/// - Indices of entries are consecutive; the first one follows the purge point.
/// - [`LogStore::durable`] never counts an entry that a crash could lose.
#[derive(Debug, Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedSender<Operation>,
    options: LogOptions,
}

impl LogStore {
    /// Opens the log in `dir`, creates it where there is none, and starts its writer.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for damage that no crash explains, [`StoreError::FormatVersion`], [`StoreError::Io`].
    ///
    /// # Panics
    /// When `options.segment_bytes` is out of range; outside a tokio runtime with [`Driver::Task`].
    pub fn open(fs: SharedFs, dir: &Path, options: LogOptions) -> Result<Self, StoreError> {
        Self::open_watched(fs, dir, options, &Opening::default())
    }

    /// As [`LogStore::open`], which may take long; `progress` shows how far it is.
    ///
    /// # Errors
    /// Those of [`LogStore::open`].
    pub fn open_watched(fs: SharedFs, dir: &Path, options: LogOptions, progress: &Opening) -> Result<Self, StoreError> {
        let LogOptions { segment_bytes, cache_bytes, driver } = options;
        assert!((SEGMENT_BYTES_MIN..=CAPACITY_BYTES_MAX).contains(&segment_bytes), "segments of {segment_bytes} bytes");
        let dir = SegmentDir { fs: fs.clone(), dir: dir.to_owned(), segment_bytes };
        let recovered = recovery::recover(&dir, progress)?;
        let shared = Arc::new(Shared::new(recovered.head.clone(), recovered.index, cache_bytes));
        let start = |e| StoreError::io("start the log's writer", e);
        let provision = Provision::new(dir, shared.clone(), recovered.spare, driver).map_err(start)?;
        let writer = Writer::new(shared.clone(), provision, recovered.active, recovered.head);
        let (queue, operations) = mpsc::unbounded_channel();
        match driver {
            Driver::Thread => {
                let builder = thread::Builder::new().name("wal-writer".into());
                builder.spawn(move || writer.run_thread(operations)).map_err(start)?;
            }
            Driver::Task | Driver::SlowTask(_) => {
                tokio::spawn(writer.run_task(operations, driver, fs));
            }
        }
        Ok(Self { shared, queue, options })
    }

    /// Becomes the message of the error that made the log fail; the node must stop then.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.shared.fatal.subscribe()
    }

    /// Whether the disk has no room for the next segment: once the one being written is full, appends wait until it has.
    pub fn starved(&self) -> bool {
        self.shared.starved.load(Ordering::Acquire)
    }

    /// All entries with a lower index than this are durable on this node. It falls when entries are truncated.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.shared.durable.subscribe()
    }

    /// The ids of the entries in memory, with the index from which on they are; entries before did not change lately.
    /// Also once the log has failed: what it held then, of which entries below [`LogStore::durable`] are on disk.
    pub fn recent(&self) -> (u64, Vec<LogId>) {
        self.shared.view.lock().cached()
    }

    /// Notes what the state has applied: those entries are committed. To be called before Raft uses the log.
    pub fn note_applied(&self, applied: Option<LogId>) {
        self.shared.view.lock().applied = applied;
    }

    /// Becomes Some when entries are cut that were known to be committed: see [`Cut`].
    pub fn cut(&self) -> watch::Receiver<Option<Cut>> {
        self.shared.cut.subscribe()
    }

    /// Whether a leader that has entries of these ids agrees with what is committed here. If not, that is noted: see [`Cut`].
    ///
    /// Terms never fall along a log: an entry of a later term than the last committed one cannot be in its place or before it, and one
    /// of an earlier term cannot come after it.
    pub fn agrees_with(&self, mut ids: impl Iterator<Item = LogId>) -> bool {
        let committed = {
            let view = self.shared.view.lock();
            view.head.committed.max(view.applied)
        };
        let Some(committed) = committed else { return true };
        let contradicts = |id: &LogId| match id.index <= committed.index {
            true => *id > committed,
            false => id.leader_id < committed.leader_id,
        };
        let contradicting = ids.find(contradicts);
        if let Some(id) = contradicting {
            self.note_cut(Cut { from: id.index.min(committed.index), committed: committed.index });
        }
        contradicting.is_none()
    }

    /// Notes that the leader does not have entries which were committed here.
    pub fn note_cut(&self, cut: Cut) {
        self.shared.cut.send_if_modified(|noted| {
            let news = noted.is_none();
            noted.get_or_insert(cut);
            news
        });
        tracing::debug!(%cut, "committed entries are not in the leader's log");
    }

    /// Why the state is not the cluster's, where committed entries were cut.
    pub fn cut_below_committed(&self) -> Option<String> {
        self.shared.cut.borrow().map(|cut| cut.to_string())
    }

    /// The vote that is on disk.
    pub fn vote(&self) -> Option<Vote> {
        self.shared.view.lock().head.vote
    }

    /// The last entry, and the last one that this node knew to be committed.
    pub fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        let view = self.shared.view.lock();
        (view.head.last, view.head.committed)
    }

    /// Lets an empty log go on after `last` in a new cluster: `node_id` has voted for itself in a later term than that of
    /// any entry, so that no term comes twice.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn begin_after(&mut self, last: LogId, node_id: NodeId) -> io::Result<()> {
        let mut leader_id = last.leader_id;
        (leader_id.term, leader_id.node_id) = (leader_id.term + 1, node_id);
        self.save_vote(&Vote { leader_id, committed: false }).await
    }

    /// How the writer worked since the log was opened.
    pub fn timings(&self) -> LogTimings {
        self.shared.timings.clone()
    }

    /// For how long the writer has been at its current batch, from the first write to the last sync and the preparation of
    /// files; None while it is idle. A disk that stalls without an error shows here and nowhere else.
    pub fn write_in_flight(&self) -> Option<Duration> {
        self.shared.writing_since.lock().map(|since| since.elapsed())
    }

    /// What the log holds, and what it did since it was opened.
    pub fn stats(&self) -> LogStats {
        let view = self.shared.view.lock();
        let first_index = view.first();
        let segments = view.index.segments();
        LogStats {
            first_index,
            last_index: view.head.last.index(),
            entry_bytes: view.index.kept_bytes(first_index),
            appended_bytes: view.counters.appended_bytes,
            segments,
            disk_bytes: (segments as u64 + 1) * self.options.segment_bytes,
            syncs: view.counters.syncs,
            batches: view.counters.batches,
            batch_operations_max: view.counters.batch_operations_max,
        }
    }

    /// Writes everything that waits and what is known to be committed, and ends the writer. Every call after it fails.
    ///
    /// # Errors
    /// The error that made the log fail; that it is closed already.
    pub async fn close(&self) -> io::Result<()> {
        self.shared.closing.store(true, Ordering::Release);
        let (done, closed) = oneshot::channel();
        self.submit(Operation::Close(done))?;
        self.wait(closed).await
    }

    fn submit(&self, operation: Operation) -> io::Result<()> {
        self.shared.check()?;
        self.queue.send(operation).map_err(|_| closed_error())
    }

    async fn wait(&self, done: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        match done.await {
            Ok(result) => result,
            Err(_) => Err(self.shared.failure().unwrap_or_else(closed_error)),
        }
    }

    /// Refuses an entry that no segment can hold.
    fn check_size(&self, entry: &Entry) -> io::Result<()> {
        let bytes = record_bytes(entry_bytes(entry));
        let room = self.options.segment_bytes - HEADER_BYTES - CHECKPOINT_BYTES_MAX - SEAL_BYTES;
        if bytes > room {
            let reason = format!("entry {} takes {bytes} bytes, a segment of the log has {room}", entry.log_id);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
