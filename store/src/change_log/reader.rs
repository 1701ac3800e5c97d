//! The read side, for any number of threads while the one writer appends.

use std::{collections::VecDeque, fmt, sync::Arc};

use parking_lot::RwLock;

use super::{
    index::{Index, SegmentView},
    record::ChangeRecord,
    retention::{HistoryLimits, SegmentSpan},
};
use crate::StoreError;

/// Bytes that an iteration reads at once; it holds at most this much and one revision more.
const READ_AHEAD_BYTES: u64 = 256 * 1024;

/// Reads the change log; cheap to clone. Locks are held to look places up and never while a file is read, so
/// neither side waits for the other's I/O.
#[derive(Clone)]
pub struct ChangeReader {
    pub(super) index: Arc<RwLock<Index>>,
}

impl fmt::Debug for ChangeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, next) = (self.first_revision(), self.next_revision());
        f.debug_struct("ChangeReader").field("first_revision", &first).field("next_revision", &next).finish()
    }
}

impl ChangeReader {
    /// The oldest revision that is held; [`ChangeReader::next_revision`] when none is.
    pub fn first_revision(&self) -> u64 {
        self.index.read().first().first_revision
    }

    /// The revision after the newest one that is held.
    pub fn next_revision(&self) -> u64 {
        self.index.read().last().next_revision()
    }

    /// The newest revision that is held; None when none is.
    pub fn last_revision(&self) -> Option<u64> {
        let index = self.index.read();
        let (first, next) = (index.first().first_revision, index.last().next_revision());
        (first < next).then(|| next - 1)
    }

    /// How many segment files there are.
    pub fn segments(&self) -> usize {
        self.index.read().views.len()
    }

    /// Length of all segment files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.index.read().views.iter().map(|v| v.bytes()).sum()
    }

    /// The record of `revision`; None when it is not held: dropped, or not yet appended.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Corrupt`] when it is not what was written.
    pub fn read(&self, revision: u64) -> Result<Option<ChangeRecord>, StoreError> {
        let view = {
            let index = self.index.read();
            if revision < index.first().first_revision || revision >= index.last().next_revision() {
                return Ok(None);
            }
            index.views[index.position(revision)].clone()
        };
        let mut found = None;
        view.read(revision, revision, 0, |record| found = Some(record))?;
        Ok(found)
    }

    /// The records from `revision` up to the one that is newest now, in order, also if they are dropped meanwhile.
    /// When `revision` is no longer held, the only element is [`StoreError::Compacted`]; nothing follows an error.
    pub fn iter_from(&self, revision: u64) -> ChangeIter {
        let index = self.index.read();
        let (first, end) = (index.first().first_revision, index.last().next_revision());
        let ready = VecDeque::new();
        if revision < first {
            let refused = Some(StoreError::Compacted { requested: revision, oldest: first });
            return ChangeIter { views: VecDeque::new(), next: end, end, ready, refused };
        }
        let views = match revision < end {
            true => index.views.range(index.position(revision)..).cloned().collect(),
            false => VecDeque::new(),
        };
        ChangeIter { views, next: revision.min(end), end, ready, refused: None }
    }

    /// The revision to compact at under `limits`, at the end of a segment: history up to it is not needed any more
    /// ([`super::ChangeLog::drop_below`] of the one after it). None = nothing can go. `now_ms` is milliseconds since
    /// the Unix epoch.
    pub fn compaction_target(&self, limits: &HistoryLimits, now_ms: u64) -> Option<u64> {
        let spans: Vec<SegmentSpan> = self.index.read().views.iter().filter_map(|v| v.span()).collect();
        limits.compaction_target(&spans, now_ms)
    }
}

/// Iterator of [`ChangeReader::iter_from`].
///
/// Invariants: `ready` ends with the revision before `next`; `views` hold the revisions from `next` up to `end`.
#[derive(Debug)]
pub struct ChangeIter {
    views: VecDeque<Arc<SegmentView>>,
    next: u64,
    end: u64,
    ready: VecDeque<ChangeRecord>,
    refused: Option<StoreError>,
}

impl ChangeIter {
    fn read_ahead(&mut self) -> Result<(), StoreError> {
        let view = loop {
            let view = self.views.front().expect("revisions before the end are in one of the views");
            if self.next < view.next_revision() {
                break view;
            }
            self.views.pop_front();
        };
        let last = (self.end - 1).min(view.next_revision() - 1);
        let ready = &mut self.ready;
        view.read(self.next, last, READ_AHEAD_BYTES, |record| ready.push_back(record))?;
        self.next += self.ready.len() as u64;
        Ok(())
    }
}

impl Iterator for ChangeIter {
    type Item = Result<ChangeRecord, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(refused) = self.refused.take() {
            return Some(Err(refused));
        }
        if self.ready.is_empty()
            && self.next < self.end
            && let Err(e) = self.read_ahead()
        {
            self.ready.clear();
            self.next = self.end;
            return Some(Err(e));
        }
        self.ready.pop_front().map(Ok)
    }
}
