//! Where each revision lies: kept in memory, shared by the writer and all readers.

use std::{collections::VecDeque, path::Path, sync::Arc};

use bytes::{Buf, BufMut};
use parking_lot::RwLock;

use super::{
    record::{ChangeRecord, PartAssembler, PartHead, PartOrder},
    retention::SegmentSpan,
};
use crate::{
    StoreError,
    log::segment::{Segment, SegmentReader, Tail},
};

/// Version of the change log's format that this binary writes and reads: of the parts, not of the segments.
pub const CHANGE_LOG_FORMAT_VERSION: u32 = 1;
/// Kind of the segment records that hold a part of a change record; there is no other.
pub(super) const KIND_PART: u8 = 1;

const MAGIC: &[u8; 8] = b"changes\0";

/// Payload of each segment's header.
pub(super) fn header_payload() -> Vec<u8> {
    let mut payload = Vec::with_capacity(MAGIC.len() + 4);
    payload.put_slice(MAGIC);
    payload.put_u32_le(CHANGE_LOG_FORMAT_VERSION);
    payload
}

/// A segment and where its revisions begin. Pinned by whoever reads it, also after it was unlinked.
///
/// Invariants: `filled.offsets` ascend, one for each revision from `first_revision` on; each of these revisions
/// lies whole between its offset and the next one (the last: `filled.end`), written and never changed.
#[derive(Debug)]
pub(super) struct SegmentView {
    pub(super) reader: Arc<SegmentReader>,
    pub(super) first_revision: u64,
    pub(super) filled: RwLock<Filled>,
}

/// What of a segment is written.
#[derive(Debug)]
pub(super) struct Filled {
    /// Of the revisions' first parts, in bytes.
    pub(super) offsets: Vec<u32>,
    /// First byte after the last revision.
    pub(super) end: u64,
    /// Latest time of its revisions, in milliseconds since the Unix epoch.
    pub(super) time_ms_max: u64,
}

impl SegmentView {
    /// The view of a segment that was just created.
    pub(super) fn new(segment: &Segment) -> Arc<Self> {
        let filled = Filled { offsets: Vec::new(), end: segment.end(), time_ms_max: 0 };
        let reader = segment.reader().clone();
        Arc::new(Self { first_revision: reader.id(), reader, filled: RwLock::new(filled) })
    }

    /// First revision that is not in this segment.
    pub(super) fn next_revision(&self) -> u64 {
        self.first_revision + self.filled.read().offsets.len() as u64
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.filled.read().end
    }

    /// None when it holds no revision.
    pub(super) fn span(&self) -> Option<SegmentSpan> {
        let filled = self.filled.read();
        let last_revision = self.first_revision + (filled.offsets.len() as u64).checked_sub(1)?;
        Some(SegmentSpan { last_revision, time_ms_max: filled.time_ms_max, bytes: filled.end })
    }

    /// Reads the records from `first` on until `bytes_min` are read or `last` is, with one read. Both revisions
    /// must be in this segment.
    pub(super) fn read(
        &self,
        first: u64,
        last: u64,
        bytes_min: u64,
        mut each: impl FnMut(ChangeRecord),
    ) -> Result<(), StoreError> {
        let (start, end, count) = {
            let filled = self.filled.read();
            let (first_at, last_at) = ((first - self.first_revision) as usize, (last - self.first_revision) as usize);
            let candidates = &filled.offsets[first_at..=last_at];
            let start = u64::from(candidates[0]);
            let count = candidates.partition_point(|o| u64::from(*o) < start + bytes_min.max(1));
            let end = filled.offsets.get(first_at + count).map_or(filled.end, |o| u64::from(*o));
            (start, end, count as u64)
        };
        let mut assembler = PartAssembler::default();
        let mut expected = first;
        self.reader.read_range(start, end, |offset, _, body| {
            let record = assembler.push(body).map_err(|e| self.corrupt(offset, e.to_string()))?;
            if let Some(record) = record {
                if record.revision != expected {
                    return Err(self.corrupt(offset, format!("revision {}, not {expected}", record.revision)));
                }
                expected += 1;
                each(record);
            }
            Ok(())
        })?;
        if expected != first + count {
            return Err(self.corrupt(end, format!("revision {expected} is not whole")));
        }
        Ok(())
    }

    fn corrupt(&self, offset: u64, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.reader.path().to_path_buf(), offset, reason: reason.into() }
    }
}

/// Collects a view while a segment is scanned.
///
/// Invariant: `whole` describes the revisions of which all parts were seen; `begun` is the offset of the one after
/// them, when only some of its parts were.
#[derive(Debug)]
pub(super) struct Scan<'p> {
    path: &'p Path,
    first_revision: u64,
    whole: Filled,
    order: PartOrder,
    begun: Option<u64>,
}

/// A scanned segment.
pub(super) struct Scanned {
    pub(super) view: Arc<SegmentView>,
    /// It ends with parts of a revision of which others are missing; they begin at the view's end.
    pub(super) cut_revision: bool,
}

impl<'p> Scan<'p> {
    pub(super) fn new(path: &'p Path, first_revision: u64) -> Self {
        let whole = Filled { offsets: Vec::new(), end: 0, time_ms_max: 0 };
        Self { path, first_revision, whole, order: PartOrder::default(), begun: None }
    }

    /// Takes the next record of the segment.
    pub(super) fn record(&mut self, offset: u64, kind: u8, body: &[u8]) -> Result<(), StoreError> {
        if kind != KIND_PART {
            return Err(self.corrupt(offset, format!("unknown record kind {kind}")));
        }
        let (head, _) = PartHead::split(body).map_err(|e| self.corrupt(offset, e.to_string()))?;
        let expected = self.first_revision + self.whole.offsets.len() as u64;
        if head.revision != expected {
            return Err(self.corrupt(offset, format!("{head:?} where revision {expected} was expected")));
        }
        let start = *self.begun.get_or_insert(offset);
        if self.order.push(head).map_err(|e| self.corrupt(offset, e.to_string()))? {
            self.whole.offsets.push(offset_u32(start));
            self.whole.time_ms_max = self.whole.time_ms_max.max(head.time_ms);
            self.begun = None;
        }
        Ok(())
    }

    /// The view, once all records of `segment` were seen, which end with `tail`.
    pub(super) fn finish(mut self, segment: &Segment, tail: Tail) -> Result<Scanned, StoreError> {
        let reader = segment.reader().clone();
        let mut payload = &reader.header_payload()[..];
        if payload.len() != MAGIC.len() + 4 || !payload.starts_with(MAGIC) {
            return Err(self.corrupt(0, "this is no segment of a change log".into()));
        }
        payload.advance(MAGIC.len());
        let found = payload.get_u32_le();
        if found != CHANGE_LOG_FORMAT_VERSION {
            let path = self.path.to_path_buf();
            return Err(StoreError::FormatVersion { path, found, supported: CHANGE_LOG_FORMAT_VERSION });
        }
        if reader.id() != self.first_revision {
            return Err(self.corrupt(0, format!("its name does not say revision {}", reader.id())));
        }
        self.whole.end = self.begun.unwrap_or(tail.end_offset);
        let cut_revision = self.begun.is_some();
        let view = SegmentView { reader, first_revision: self.first_revision, filled: RwLock::new(self.whole) };
        Ok(Scanned { view: Arc::new(view), cut_revision })
    }

    fn corrupt(&self, offset: u64, reason: String) -> StoreError {
        StoreError::Corrupt { path: self.path.to_path_buf(), offset, reason }
    }
}

/// Offsets are kept in 32 bits; segments are smaller than that.
pub(super) fn offset_u32(offset: u64) -> u32 {
    u32::try_from(offset).expect("a segment's capacity fits 32 bits")
}

/// The views of all segments.
///
/// Invariants: there is always at least one; each begins with the revision after the last of the one before; only
/// the last may be empty, and only it grows.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) views: VecDeque<Arc<SegmentView>>,
}

impl Index {
    pub(super) fn first(&self) -> &Arc<SegmentView> {
        self.views.front().expect("there is always a segment")
    }

    pub(super) fn last(&self) -> &Arc<SegmentView> {
        self.views.back().expect("there is always a segment")
    }

    pub(super) fn replace_last(&mut self, view: Arc<SegmentView>) {
        *self.views.back_mut().expect("there is always a segment") = view;
    }

    /// Position of the segment that holds `revision`, which lies between the first and the last one.
    pub(super) fn position(&self, revision: u64) -> usize {
        self.views.partition_point(|v| v.first_revision <= revision) - 1
    }
}
