//! Where on disk each written entry is.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::segment::SegmentReader;

/// Where on disk each written entry is: four bytes an entry.
///
/// Invariants:
/// - Segments are in the order of their ids; the last is the one being written.
/// - The entries of one segment have consecutive indices, and so have those of all segments together, except that old
///   segments without entries that still count lie in between.
#[derive(Debug, Default)]
pub(super) struct Index {
    segments: VecDeque<SegmentEntries>,
}

#[derive(Debug)]
struct SegmentEntries {
    reader: Arc<SegmentReader>,
    /// Index of the first entry; meaningless without entries.
    first: u64,
    offsets: Vec<u32>,
    /// Where the record of the last entry ends, or a later record.
    end: u32,
}

/// A step of the index, in the order of the records on disk.
#[derive(Debug)]
pub(super) enum IndexChange {
    /// The next segment begins.
    Segment(Arc<SegmentReader>),
    /// An entry was written to the last segment.
    Entry { index: u64, offset: u32, end: u32 },
    /// Entries with `next` and higher indices are gone.
    Truncate { next: u64 },
    /// Entries with lower indices than `next` are not needed any more.
    Purge { next: u64 },
}

/// Written entries of one segment: what to read, and which of the records there count.
#[derive(Debug)]
pub(super) struct Run {
    pub reader: Arc<SegmentReader>,
    pub offsets: Vec<u32>,
    pub end: u32,
}

impl SegmentEntries {
    fn next(&self) -> u64 {
        self.first + self.offsets.len() as u64
    }

    fn offset_after(&self, at: usize) -> u32 {
        self.offsets.get(at + 1).copied().unwrap_or(self.end)
    }
}

impl Index {
    /// Follows what was written, in order.
    pub fn apply(&mut self, change: IndexChange) {
        match change {
            IndexChange::Segment(reader) => self.add_segment(reader),
            IndexChange::Entry { index, offset, end } => self.add_entry(index, offset, end),
            IndexChange::Truncate { next } => self.truncate(next),
            IndexChange::Purge { next } => self.purge(next),
        }
    }

    fn add_segment(&mut self, reader: Arc<SegmentReader>) {
        self.segments.push_back(SegmentEntries { reader, first: 0, offsets: Vec::new(), end: 0 });
    }

    fn add_entry(&mut self, index: u64, offset: u32, end: u32) {
        let segment = self.segments.back_mut().expect("a segment is added before its entries");
        if segment.offsets.is_empty() {
            segment.first = index;
        }
        assert_eq!(index, segment.next(), "entries of a segment are consecutive");
        segment.offsets.push(offset);
        segment.end = end;
    }

    fn truncate(&mut self, next: u64) {
        for segment in self.segments.iter_mut().rev() {
            let keep = next.saturating_sub(segment.first).min(segment.offsets.len() as u64) as usize;
            if let Some(first_gone) = segment.offsets.get(keep) {
                segment.end = *first_gone;
                segment.offsets.truncate(keep);
            }
        }
    }

    fn purge(&mut self, next: u64) {
        // A purge can go beyond the last entry, so that the indices to come do not follow the ones here.
        for segment in self.segments.iter_mut().filter(|segment| segment.next() <= next) {
            segment.offsets.clear();
        }
    }

    /// Takes out the oldest segments that hold no entry; never the last segment.
    pub fn release(&mut self) -> Vec<Arc<SegmentReader>> {
        let mut released = Vec::new();
        while self.segments.len() > 1 && self.segments.front().is_some_and(|oldest| oldest.offsets.is_empty()) {
            released.extend(self.segments.pop_front().map(|segment| segment.reader));
        }
        released
    }

    /// Index of the first written entry.
    pub fn first(&self) -> Option<u64> {
        self.segments.iter().find(|segment| !segment.offsets.is_empty()).map(|segment| segment.first)
    }

    /// Plans the read of the entries of `range`, all of them written: at most `limit_bytes` of records, but at least
    /// one entry. Answers the runs, how many entries they have, and the bytes that are left of the limit.
    pub fn plan(&self, range: Range<u64>, limit_bytes: u64) -> (Vec<Run>, u64, u64) {
        let mut runs = Vec::new();
        let mut next = range.start;
        let mut left_bytes = limit_bytes;
        for segment in self.segments.iter().filter(|s| !s.offsets.is_empty() && s.next() > range.start) {
            if next >= range.end {
                break;
            }
            assert!(segment.first <= next, "entry {next} is missing before {}", segment.first);
            let from = (next - segment.first) as usize;
            let until = (range.end.min(segment.next()) - segment.first) as usize;
            let mut to = from;
            while to < until {
                let bytes = u64::from(segment.offset_after(to) - segment.offsets[to]);
                if bytes > left_bytes && next > range.start {
                    break;
                }
                left_bytes = left_bytes.saturating_sub(bytes);
                to += 1;
                next += 1;
            }
            if to > from {
                let (offsets, end) = (segment.offsets[from..to].to_vec(), segment.offset_after(to - 1));
                runs.push(Run { reader: segment.reader.clone(), offsets, end });
            }
            if to < until {
                left_bytes = 0;
                break;
            }
        }
        (runs, next - range.start, left_bytes)
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Bytes on disk between the first and the last entry from `first_kept` on, segment by segment.
    pub fn kept_bytes(&self, first_kept: u64) -> u64 {
        self.segments
            .iter()
            .filter_map(|segment| {
                let at = first_kept.saturating_sub(segment.first) as usize;
                segment.offsets.get(at).map(|offset| u64::from(segment.end - offset))
            })
            .sum()
    }
}
