//! openraft's log storage and log reader.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    vec,
};

use futures_util::{Stream, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    errors::LeaderChanged,
    storage::{IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, RaftLogStorage},
    type_config::alias::LeaderIdOf,
};
use tokio::sync::oneshot;

use super::{
    LogStore, READ_CHUNK_BYTES_MAX,
    records::{decode_entry, entry_bytes, kind},
    shared::{Plan, QUEUE_BYTES_MAX},
    writer::{Operation, closed_error},
};
use crate::{
    StoreError, TypeConfig,
    mutants::{self, Mutant},
    raft_types::{Entry, LogId, Vote},
};

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.shared.check()?;
        let view = self.shared.view.lock();
        Ok(LogState { last_purged_log_id: view.head.purged, last_log_id: view.head.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, saved) = oneshot::channel();
        self.submit(Operation::Vote(*vote, done))?;
        self.wait(saved).await
    }

    /// Noted now, recorded with the next batch or at close.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.check()?;
        self.shared.view.lock().head.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.shared.check()?;
        Ok(self.shared.view.lock().head.committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        entries.iter().try_for_each(|entry| self.check_size(entry))?;
        let bytes: usize = entries.iter().map(entry_bytes).sum();
        self.shared.check()?;
        let room = bytes.min(QUEUE_BYTES_MAX);
        let permit = self.shared.room.acquire_many(u32::try_from(room).expect("the limit fits 32 bits")).await;
        // The writer gives it back when it has told that the entries are durable.
        permit.map_err(|_| self.shared.failure().unwrap_or_else(closed_error))?.forget();
        let mut view = self.shared.view.lock();
        view.append(&entries, bytes);
        self.submit(Operation::Append { entries, bytes: room, flushed })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let last = match last {
            Some(id) if mutants::active(Mutant::TruncateOffByOne) => Some(LogId { index: id.index + 1, ..id }),
            last => last,
        };
        let (done, truncated) = oneshot::channel();
        {
            let mut view = self.shared.view.lock();
            if let Some(cut) = view.committed_after(last) {
                // Before they go: what was applied of them must not be served any more.
                self.note_cut(cut);
            }
            self.submit(Operation::Truncate(last, done))?;
            view.truncate(last, &self.shared.durable);
        }
        self.wait(truncated).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let (done, purged) = oneshot::channel();
        {
            let mut view = self.shared.view.lock();
            if !view.head.purge(upto) {
                return self.shared.check();
            }
            view.purge_cache();
            self.submit(Operation::Purge(upto, done))?;
        }
        self.wait(purged).await
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(half_open(&range), u64::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.shared.check()?;
        Ok(self.shared.view.lock().head.vote)
    }

    /// At most [`READ_CHUNK_BYTES_MAX`], but at least one entry; nothing when `start` is purged or not there yet, so
    /// that the answer never begins with a gap.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.read(start..end, READ_CHUNK_BYTES_MAX).await?;
        let follows = entries.first().is_some_and(|first| first.index() == start);
        Ok(if follows { entries } else { Vec::new() })
    }

    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let chunks = Chunks::new(self.clone(), half_open(&range));
        stream::try_unfold(chunks, |mut chunks| async {
            let entry = chunks.next().await?;
            Ok(entry.map(|entry| (entry, chunks)))
        })
    }

    async fn leader_bounded_stream<R>(
        &mut self,
        leader: LeaderIdOf<TypeConfig>,
        range: R,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let chunks = Chunks::new(self.clone(), half_open(&range));
        stream::try_unfold(chunks, move |mut chunks| async move {
            chunks.log.check_leader(&leader)?;
            let entry = chunks.next().await?;
            // An entry read while the leader changed may be another leader's.
            chunks.log.check_leader(&leader)?;
            Ok(entry.map(|entry| (entry, chunks)))
        })
    }
}

/// The entries of a range, read chunk by chunk as they are asked for.
struct Chunks {
    log: LogStore,
    chunk: vec::IntoIter<Entry>,
    left: Range<u64>,
    begun: bool,
}

impl Chunks {
    fn new(log: LogStore, range: Range<u64>) -> Self {
        Self { log, chunk: Vec::new().into_iter(), left: range, begun: false }
    }

    async fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.chunk.len() == 0 && !self.left.is_empty() {
            self.chunk = self.log.read(self.left.clone(), READ_CHUNK_BYTES_MAX).await?.into_iter();
        }
        let Some(entry) = self.chunk.next() else { return Ok(None) };
        // The log may lack the beginning of the range, but not the middle.
        if self.begun && entry.index() != self.left.start {
            let reason = format!("entries {}..{} were purged while they were read", self.left.start, entry.index());
            return Err(io::Error::other(reason));
        }
        self.begun = true;
        self.left.start = entry.index() + 1;
        Ok(Some(entry))
    }
}

impl LogStore {
    /// What the log has of `range` at this moment: about `limit_bytes`, but at least one entry.
    async fn read(&self, range: Range<u64>, limit_bytes: u64) -> io::Result<Vec<Entry>> {
        self.shared.check()?;
        let plan = self.shared.view.lock().plan(range, limit_bytes);
        if plan.runs.is_empty() {
            return Ok(plan.cached);
        }
        let read = move || read_plan(plan);
        Ok(self.options.driver.run(read).await.map_err(io::Error::other)??)
    }

    fn check_leader(&self, leader: &LeaderIdOf<TypeConfig>) -> Result<(), LeaderBoundedStreamError<TypeConfig>> {
        let vote = self.shared.view.lock().head.vote;
        match vote {
            Some(vote) if vote.committed && vote.leader_id == *leader => Ok(()),
            other => Err(LeaderChanged::new(*leader, other).into()),
        }
    }
}

fn read_plan(plan: Plan) -> Result<Vec<Entry>, StoreError> {
    let mut entries =
        Vec::with_capacity(plan.runs.iter().map(|run| run.offsets.len()).sum::<usize>() + plan.cached.len());
    for run in plan.runs {
        let (Some(start), mut wanted) = (run.offsets.first(), run.offsets.iter().peekable()) else { continue };
        // Between entries that count lie other records, and entries that were truncated.
        run.reader.read_range(u64::from(*start), u64::from(run.end), |offset, kind, body| {
            if wanted.next_if(|at| u64::from(**at) == offset).is_some() {
                assert_eq!(kind, kind::ENTRY, "the record at byte {offset} of {}", run.reader.path().display());
                entries.push(decode_entry(body)?);
            }
            Ok(())
        })?;
    }
    entries.extend(plan.cached);
    Ok(entries)
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
