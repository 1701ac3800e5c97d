//! Opening a log: reading its segments back, cutting the torn tail, refusing what no crash explains.
//!
//! What a crash can leave, and what is made of it:
//! - the last batch of the last written segment, torn: cut. Nobody was told that it is durable.
//! - an empty segment prepared ahead: kept as the spare one, or continued in when its predecessor is sealed.
//! - an unfinished segment under its temporary name: removed.
//!
//! Everything else is damage ([`StoreError::Corrupt`]): a bad record with complete ones after it, a segment that is
//! missing in the middle or at the beginning, records in a segment whose predecessor is not sealed, a checkpoint
//! that contradicts what came before it.

use openraft::LogIdOptionExt;

use super::{
    index::{Index, IndexChange},
    provision::{SEGMENT_EXTENSION, SegmentDir},
    records::{Head, Record, kind},
    segment::{Segment, TEMPORARY_EXTENSION, record_bytes},
};
use crate::{StoreError, codec, opening::Opening};

/// An opened log, ready to be written.
#[derive(Debug)]
pub(super) struct Recovered {
    pub head: Head,
    pub index: Index,
    pub active: Segment,
    pub spare: Option<Segment>,
}

/// What the records read so far add up to.
#[derive(Debug, Default)]
struct Replay {
    head: Head,
    index: Index,
    started: bool,
    /// Entries below this index may be in segments that are gone: they must turn out to be purged.
    missing_before: u64,
}

/// A segment as it was found.
struct Found {
    segment: Segment,
    sealed: bool,
    records: u64,
}

/// Opens the log in `dir`, and creates it where there is none.
pub(super) fn recover(dir: &SegmentDir, progress: &Opening) -> Result<Recovered, StoreError> {
    let mut replay = Replay::default();
    let mut written: Option<Found> = None;
    let mut empty: Option<Found> = None;
    let ids = segment_ids(dir)?;
    progress.begin("reading the log", "files", Some(ids.len() as u64));
    for id in &ids {
        if let Some(empty) = &empty {
            return Err(corrupt(&empty.segment, "the segment is empty, and yet it has a successor"));
        }
        let found = open(dir, *id, written.as_ref(), &mut replay)?;
        if found.records > 0 {
            written = Some(found)
        } else {
            empty = Some(found)
        }
        progress.advance(1);
    }
    replay.check_complete(dir, &ids)?;
    let (mut active, spare) = match (written, empty) {
        (None, None) => (dir.create(1)?, None),
        (None, Some(empty)) => (continue_in(empty)?, None),
        (Some(found), Some(next)) if found.sealed => {
            continue_in(found)?;
            (continue_in(next)?, None)
        }
        (Some(found), None) if found.sealed => {
            return Err(corrupt(&found.segment, "the segment has a seal but no successor: a segment is missing"));
        }
        (Some(found), None) => (continue_in(found)?, None),
        (Some(found), Some(spare)) => (continue_in(found)?, Some(continue_in(spare)?)),
    };
    // Names that a killed process created are not durable until now.
    dir.sync()?;
    if active.is_empty() {
        replay.index.apply(IndexChange::Segment(active.reader().clone()));
        write_checkpoint(&mut active, &replay.head);
        active.write()?;
        active.sync()?;
    }
    Ok(Recovered { head: replay.head, index: replay.index, active, spare })
}

/// Begins a new segment; it has room for that, whatever its size.
pub(super) fn write_checkpoint(segment: &mut Segment, head: &Head) {
    let at = segment.append(kind::CHECKPOINT, &codec::encode(head));
    assert!(at.is_some(), "a checkpoint fits an empty segment");
}

fn segment_ids(dir: &SegmentDir) -> Result<Vec<u64>, StoreError> {
    let context = |what: &str| format!("{what} log directory {}", dir.dir.display());
    if !dir.fs.exists(&dir.dir) {
        dir.fs.create_dir_all(&dir.dir).map_err(|e| StoreError::io(context("create"), e))?;
    }
    // Also when it exists: whoever created it may have died before this.
    if let Some(parent) = dir.dir.parent() {
        dir.fs.sync_dir(parent).map_err(|e| StoreError::io(context("sync the parent of"), e))?;
    }
    let mut ids = Vec::new();
    for path in dir.fs.list(&dir.dir).map_err(|e| StoreError::io(context("list"), e))? {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        match (extension, id) {
            (SEGMENT_EXTENSION, Some(id)) => ids.push(id),
            (TEMPORARY_EXTENSION, _) => dir.remove(&path)?,
            _ => tracing::warn!(path = %path.display(), "this file is no part of the log, it is left alone"),
        }
    }
    ids.sort_unstable();
    for pair in ids.windows(2) {
        if pair[0] + 1 != pair[1] {
            let reason = format!("the segment is missing, though {} is there", dir.path(pair[1]).display());
            return Err(StoreError::Corrupt { path: dir.path(pair[0] + 1), offset: 0, reason });
        }
    }
    Ok(ids)
}

fn open(dir: &SegmentDir, id: u64, previous: Option<&Found>, replay: &mut Replay) -> Result<Found, StoreError> {
    let path = dir.path(id);
    let corrupt = |offset, reason| StoreError::Corrupt { path: path.clone(), offset, reason };
    let (mut sealed, mut records) = (false, 0);
    let mut changes = Vec::new();
    let (segment, tail) = Segment::open(&*dir.fs, &path, |offset, kind, body| {
        if records == 0 {
            check_succession(previous).map_err(|reason| corrupt(offset, reason))?;
        }
        if sealed {
            return Err(corrupt(offset, "a record follows the seal".into()));
        }
        let record = Record::decode(kind, body).map_err(|e| corrupt(offset, e.to_string()))?;
        records += 1;
        sealed = record == Record::Seal;
        let end = offset + record_bytes(body.len());
        changes.extend(replay.step(records == 1, record, offset, end).map_err(|reason| corrupt(offset, reason))?);
        Ok(())
    })?;
    if segment.reader().id() != id {
        return Err(corrupt(0, format!("the header says segment {}", segment.reader().id())));
    }
    if tail.torn_bytes > 0 {
        let (offset, bytes) = (tail.end_offset, tail.torn_bytes);
        tracing::warn!(path = %path.display(), offset, bytes, "the log's last batch is torn, it is cut");
    }
    if records > 0 {
        replay.index.apply(IndexChange::Segment(segment.reader().clone()));
        changes.into_iter().for_each(|change| replay.index.apply(change));
    }
    Ok(Found { segment, sealed, records })
}

/// A segment is written only after the one before it was sealed and synced.
fn check_succession(previous: Option<&Found>) -> Result<(), String> {
    match previous {
        Some(previous) if !previous.sealed => Err(format!(
            "there are records here, but {} has no intact seal",
            previous.segment.reader().path().display()
        )),
        _ => Ok(()),
    }
}

fn continue_in(mut found: Found) -> Result<Segment, StoreError> {
    found.segment.adopt()?;
    Ok(found.segment)
}

fn corrupt(segment: &Segment, reason: &str) -> StoreError {
    StoreError::Corrupt { path: segment.reader().path().to_owned(), offset: segment.end(), reason: reason.into() }
}

impl Replay {
    /// Takes in a record, which is `first` in its segment and lies at `offset..end`.
    fn step(&mut self, first: bool, record: Record, offset: u64, end: u64) -> Result<Option<IndexChange>, String> {
        match record {
            Record::Checkpoint(_) if !first => return Err("a checkpoint stands in the middle".into()),
            Record::Checkpoint(head) => self.checkpoint(head)?,
            _ if first => return Err("the segment does not begin with a checkpoint".into()),
            Record::Entry(id) => {
                if self.head.expected_index().is_some_and(|expected| expected != id.index) {
                    return Err(format!("entry {} follows entry {:?}", id.index, self.head.last));
                }
                self.head.last = Some(id);
                let (offset, end) = (offset as u32, end as u32);
                return Ok(Some(IndexChange::Entry { index: id.index, offset, end }));
            }
            Record::Vote(vote) => self.head.vote = Some(vote),
            Record::Truncate(after) => {
                self.head.truncate(after);
                let next = self.head.last.next_index();
                self.missing_before = self.missing_before.min(next);
                return Ok(Some(IndexChange::Truncate { next }));
            }
            Record::Purge(upto) => {
                if !self.head.purge(upto) {
                    return Err(format!("entry {} is purged after {:?}", upto.index, self.head.purged));
                }
                return Ok(Some(IndexChange::Purge { next: upto.index + 1 }));
            }
            Record::Committed(committed) => self.head.committed = committed,
            Record::Seal => {}
        }
        Ok(None)
    }

    fn checkpoint(&mut self, head: Head) -> Result<(), String> {
        if !self.started {
            self.started = true;
            self.missing_before = head.last.next_index();
            self.head = head;
        } else if head != self.head {
            return Err(format!("the checkpoint says {head:?}, the records before it say {:?}", self.head));
        }
        Ok(())
    }

    fn check_complete(&self, dir: &SegmentDir, ids: &[u64]) -> Result<(), StoreError> {
        let purged_before = self.head.purged.next_index();
        let first = ids.first().copied().unwrap_or(1);
        if self.missing_before > purged_before || (!self.started && first > 1) {
            let reason = format!("the segment is missing: entries from {purged_before} on are nowhere else");
            return Err(StoreError::Corrupt { path: dir.path(first - 1), offset: 0, reason });
        }
        Ok(())
    }
}
