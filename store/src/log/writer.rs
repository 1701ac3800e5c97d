//! The one writer: takes all that waits, writes it with one call, syncs once, then tells everyone who waited.

use std::{io, sync::Arc, thread, time::Instant};

use openraft::{LogIdOptionExt, entry::RaftEntry, storage::IOFlushed};
use tokio::sync::{mpsc, oneshot};

use super::{
    index::IndexChange,
    provision::Provision,
    records::{Head, encode_entry, kind},
    recovery::write_checkpoint,
    segment::{Segment, SegmentReader, record_bytes},
    shared::Shared,
};
use crate::{
    StoreError, TypeConfig, codec,
    driver::Driver,
    fs::SharedFs,
    mutants::{self, Mutant},
    raft_types::{Entry, LogId, Vote},
};

/// Most operations that share one sync; the queue is limited in bytes before.
pub(super) const BATCH_OPERATIONS_MAX: usize = 16 * 1024;
/// Kept free at the end of each segment for its seal, in bytes.
pub(super) const SEAL_BYTES: u64 = record_bytes(0);

type Done = oneshot::Sender<io::Result<()>>;

/// What the writer is asked to do, in order.
pub(super) enum Operation {
    Append { entries: Vec<Entry>, bytes: usize, flushed: IOFlushed<TypeConfig> },
    Vote(Vote, Done),
    Truncate(Option<LogId>, Done),
    Purge(LogId, Done),
    Close(Done),
}

/// The one writer of a log.
///
/// Invariants:
/// - Operations are written in the order in which they came, and nobody is told about one before all up to it are durable.
/// - `head` is what the records in `active` and before it add up to, the buffered ones included.
/// - A segment is written to only after its predecessor was sealed and synced.
/// - After a failed write or sync nothing is written any more, and everyone is told of the failure.
pub(super) struct Writer {
    shared: Arc<Shared>,
    provision: Provision,
    active: Segment,
    head: Head,
    batch: Batch,
    _panic_is_a_failure: PanicIsAFailure,
}

/// What the batch being written means for the view.
#[derive(Default)]
struct Batch {
    changes: Vec<IndexChange>,
    truncations: usize,
    entry_bytes: u64,
    syncs: u64,
}

struct PanicIsAFailure(Arc<Shared>);

impl Drop for PanicIsAFailure {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(StoreError::io("write the log", io::Error::other("the log's writer panicked")));
        }
    }
}

impl Writer {
    pub fn new(shared: Arc<Shared>, mut provision: Provision, active: Segment, head: Head) -> Self {
        let released = shared.view.lock().index.release();
        provision.remove(released);
        provision.prepare(active.reader().id() + 1);
        provision.work();
        let _panic_is_a_failure = PanicIsAFailure(shared.clone());
        Self { shared, provision, active, head, batch: Batch::default(), _panic_is_a_failure }
    }

    /// Runs in a thread of its own until the log is closed or all its handles are dropped.
    pub fn run_thread(mut self, mut queue: mpsc::UnboundedReceiver<Operation>) {
        let mut operations = Vec::new();
        let mut closed = None;
        while closed.is_none() && queue.blocking_recv_many(&mut operations, BATCH_OPERATIONS_MAX) > 0 {
            self.begin();
            closed = self.run_batch(&mut operations);
            self.shared.writing_since.lock().take();
        }
        self.close(closed);
    }

    /// Runs in a task, doing the same blocking calls, until the log is closed or all its handles are dropped.
    pub async fn run_task(mut self, mut queue: mpsc::UnboundedReceiver<Operation>, driver: Driver, fs: SharedFs) {
        let mut operations = Vec::new();
        let mut closed = None;
        let mut stalled = fs.stalled();
        while closed.is_none() && queue.recv_many(&mut operations, BATCH_OPERATIONS_MAX).await > 0 {
            self.begin();
            driver.delay().await;
            // As long as the disk hangs; a disk that is gone answers by the calls that follow.
            if let Some(stalled) = &mut stalled {
                stalled.wait_for(|stalled| !stalled).await.ok();
            }
            closed = self.run_batch(&mut operations);
            self.shared.writing_since.lock().take();
        }
        self.close(closed);
    }

    /// Notes when the batch began, before anything that the disk may hold up.
    fn begin(&self) {
        *self.shared.writing_since.lock() = Some(tokio::time::Instant::now());
    }

    /// Makes `operations` durable and tells everyone. Answers who asked to close the log, if one did.
    fn run_batch(&mut self, operations: &mut Vec<Operation>) -> Option<Done> {
        let count = operations.len();
        if self.shared.failure().is_none()
            && let Err(error) = self.write_batch(operations)
        {
            self.shared.fail(error);
        }
        let failure = self.shared.failure();
        let released = if failure.is_none() { self.publish(count) } else { Vec::new() };
        let closed = self.tell(operations);
        if self.shared.failure().is_none() {
            // Only now, so that there is never more than one segment without durable records.
            self.provision.prepare(self.active.reader().id() + 1);
            self.provision.remove(released);
            self.provision.work();
        }
        closed
    }

    fn write_batch(&mut self, operations: &[Operation]) -> Result<(), StoreError> {
        for operation in operations {
            match operation {
                Operation::Append { entries, .. } => entries.iter().try_for_each(|entry| self.put_entry(entry))?,
                Operation::Vote(vote, _) if mutants::active(Mutant::VoteNotSaved) => self.head.vote = Some(*vote),
                Operation::Vote(vote, _) => {
                    self.put(kind::VOTE, |out| codec::encode_into(vote, out))?;
                    self.head.vote = Some(*vote);
                }
                Operation::Truncate(after, _) => {
                    if !mutants::active(Mutant::TruncateNotRecorded) {
                        self.put(kind::TRUNCATE, |out| codec::encode_into(after, out))?;
                    }
                    self.head.truncate(*after);
                    self.batch.changes.push(IndexChange::Truncate { next: self.head.last.next_index() });
                    self.batch.truncations += 1;
                }
                Operation::Purge(upto, _) => {
                    self.put(kind::PURGE, |out| codec::encode_into(upto, out))?;
                    let news = self.head.purge(*upto);
                    assert!(news, "purge up to {upto} after {:?}", self.head.purged);
                    self.batch.changes.push(IndexChange::Purge { next: upto.index + 1 });
                }
                Operation::Close(_) => break,
            }
        }
        let committed = self.shared.view.lock().head.committed;
        if let Some(committed) = self.head.committed_to_record(committed) {
            self.put_committed(Some(committed))?;
        }
        self.flush()
    }

    fn put_entry(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let offset = self.put(kind::ENTRY, |out| encode_entry(entry, out))?;
        let end = self.active.end();
        self.head.last = Some(entry.log_id);
        self.batch.entry_bytes += end - offset;
        let index = entry.index();
        self.batch.changes.push(IndexChange::Entry { index, offset: offset as u32, end: end as u32 });
        Ok(())
    }

    fn put_committed(&mut self, committed: Option<LogId>) -> Result<(), StoreError> {
        self.put(kind::COMMITTED, |out| codec::encode_into(&committed, out))?;
        self.head.committed = committed;
        Ok(())
    }

    /// Appends a record, to the next segment where this one is full; answers its offset.
    fn put(&mut self, kind: u8, encode: impl Fn(&mut Vec<u8>)) -> Result<u64, StoreError> {
        if let Some(offset) = self.active.append_with(kind, SEAL_BYTES, &encode) {
            return Ok(offset);
        }
        self.rotate()?;
        self.active.append_with(kind, SEAL_BYTES, &encode).ok_or_else(|| {
            let reason = format!(
                "a record of kind {kind} does not fit a segment that has {} bytes left",
                self.active.remaining()
            );
            StoreError::io("write the log", io::Error::new(io::ErrorKind::InvalidInput, reason))
        })
    }

    fn rotate(&mut self) -> Result<(), StoreError> {
        let id = self.active.reader().id() + 1;
        // This segment has durable records before the next one is there, and the next one is there before the seal
        // promises it.
        self.flush()?;
        let next = self.provision.take(id)?;
        let sealed = self.active.append(kind::SEAL, &[]);
        assert!(sealed.is_some(), "every record leaves room for the seal");
        self.flush()?;
        self.active = next;
        write_checkpoint(&mut self.active, &self.head);
        self.batch.changes.push(IndexChange::Segment(self.active.reader().clone()));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.active.write()? && !mutants::active(Mutant::AckBeforeSync) {
            let began = Instant::now();
            match self.active.sync() {
                Err(_) if mutants::active(Mutant::FailedSyncIsSuccess) => {}
                synced => synced?,
            }
            self.shared.timings.sync_seconds.observe(began.elapsed().as_secs_f64());
            self.batch.syncs += 1;
        }
        Ok(())
    }

    /// Shows what is durable now to all readers; answers the segments that nobody needs any more.
    fn publish(&mut self, operations: usize) -> Vec<Arc<SegmentReader>> {
        let mut view = self.shared.view.lock();
        let batch = &mut self.batch;
        for change in batch.changes.drain(..) {
            view.index.apply(change);
        }
        view.head.vote = self.head.vote;
        view.truncated(std::mem::take(&mut batch.truncations));
        self.shared.timings.batch_operations.observe(operations as f64);
        view.counters.batches += 1;
        view.counters.batch_operations_max = view.counters.batch_operations_max.max(operations as u64);
        view.counters.syncs += std::mem::take(&mut batch.syncs);
        view.counters.appended_bytes += std::mem::take(&mut batch.entry_bytes);
        self.shared.made_durable(&mut view, self.head.last.next_index());
        view.index.release()
    }

    /// Tells those who wait for `operations`, in order. Whoever does not listen any more need not be told.
    fn tell(&mut self, operations: &mut Vec<Operation>) -> Option<Done> {
        let mut closed = None;
        for operation in operations.drain(..) {
            let result = if closed.is_some() { Err(closed_error()) } else { self.shared.check() };
            match operation {
                Operation::Append { bytes, flushed, .. } => {
                    self.shared.room.add_permits(bytes);
                    flushed.io_completed(result);
                }
                Operation::Vote(_, done) | Operation::Truncate(_, done) | Operation::Purge(_, done) => {
                    done.send(result).ok();
                }
                Operation::Close(done) if closed.is_none() => closed = Some(done),
                Operation::Close(done) => {
                    done.send(result).ok();
                }
            }
        }
        closed
    }

    /// Writes what is known to be committed: a record in a batch of its own, so that damage to any batch before it can be
    /// told from a torn write. Then finishes the work on files.
    fn close(mut self, done: Option<Done>) {
        if self.shared.failure().is_none() {
            let committed = self.head.committed_to_record(self.shared.view.lock().head.committed);
            let result = self.put_committed(committed.or(self.head.committed)).and_then(|()| self.flush());
            if let Err(error) = result {
                self.shared.fail(error);
            }
        }
        self.provision.finish();
        if let Some(done) = done {
            done.send(self.shared.check()).ok();
        }
    }
}

/// What callers get once the log was closed.
pub(super) fn closed_error() -> io::Error {
    io::Error::other("the write-ahead log is closed")
}
