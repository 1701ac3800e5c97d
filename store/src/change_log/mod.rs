//! History: one record a revision with what it changed and what was there before, appended in order.
//!
//! It serves watches that resume, reads in the past, and snapshots. The state database is written after it, in
//! the same order, so after a killed process it holds at least what the state does, and
//! [`ChangeLog::truncate_after`] cuts it back to that. Nothing here is ever synced: what a power cut leaves is not
//! to be trusted, and all of it can be made again from the last snapshot and the log.
//!
//! Files are [`segments`](crate::log::segment) called `changes-REVISION.log` after their first revision. A revision
//! lies whole in one segment. Where each lies is kept in memory, four bytes a revision.

mod index;
mod reader;
mod record;
mod retention;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use index::CHANGE_LOG_FORMAT_VERSION;
use index::{Index, KIND_PART, Scan, Scanned, SegmentView};
use parking_lot::RwLock;
pub use reader::{ChangeIter, ChangeReader};
pub use record::{Change, ChangeRecord, Replaced};
pub(crate) use record::{PART_BYTES_MAX, PartAssembler};
pub use retention::{HISTORY_AGE_MS_MIN, HISTORY_BYTES_MAX, HISTORY_REVISIONS_MIN, HistoryLimits};

use crate::{
    StoreError,
    fs::SharedFs,
    log::segment::{HEADER_BYTES, Mode, Segment, TEMPORARY_EXTENSION},
};

/// Default length of a segment, in bytes.
pub const SEGMENT_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
/// An append that has buffered more than this writes it out, so that memory is bounded; in bytes.
const WRITE_BYTES: u64 = 4 * 1024 * 1024;

const PREFIX: &str = "changes-";
const SUFFIX: &str = ".log";

/// How a change log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeLogOptions {
    /// Length of a segment, in bytes; a revision that is larger gets a longer one for itself.
    pub segment_bytes: u64,
}

impl Default for ChangeLogOptions {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES_DEFAULT }
    }
}

/// The change log: the one writer.
///
/// Invariants:
/// - revisions are consecutive, from the first one of the first segment on;
/// - readers see a revision once all of it is written, and what they see is never written again;
/// - `active` is the segment of the index's last view;
/// - after a failed write nothing is appended any more.
///
/// All calls block.
#[derive(Debug)]
pub struct ChangeLog {
    fs: SharedFs,
    dir: PathBuf,
    options: ChangeLogOptions,
    reader: ChangeReader,
    active: Segment,
    failed: bool,
}

impl ChangeLog {
    /// Opens the change log in `dir`, which is created where it does not exist; a new one begins with revision 1.
    /// What a killed process left unfinished at the end is cut off.
    ///
    /// Damage in the last write is taken for unfinished as well. So when the log ends before the revision of the
    /// state, or begins after the one that follows the compacted revision, it is to be rebuilt as after
    /// [`StoreError::Corrupt`].
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]: the log is to be thrown away and rebuilt. [`StoreError::FormatVersion`],
    /// [`StoreError::Io`].
    pub fn open(fs: SharedFs, dir: &Path, options: ChangeLogOptions) -> Result<Self, StoreError> {
        let at = |e| StoreError::io(format!("open change log {}", dir.display()), e);
        fs.create_dir_all(dir).map_err(at)?;
        let mut paths = Vec::new();
        for path in fs.list(dir).map_err(at)? {
            if path.extension().is_some_and(|e| e == TEMPORARY_EXTENSION) {
                fs.remove_file(&path).map_err(at)?;
            } else if let Some(first_revision) = first_revision_of(&path) {
                paths.push((first_revision, path));
            }
        }
        paths.sort();
        let Some((newest, older)) = paths.split_last() else {
            return Self::create(fs, dir, options, 1);
        };
        let mut views = std::collections::VecDeque::with_capacity(paths.len());
        for (first_revision, path) in older {
            views.push_back(open_sealed(&fs, path, *first_revision)?);
        }
        let (active, view) = open_active(&fs, &newest.1, newest.0)?;
        views.push_back(view);
        for (view, next) in views.iter().zip(views.iter().skip(1)) {
            if view.next_revision() != next.first_revision {
                return Err(StoreError::Corrupt {
                    path: view.reader.path().to_path_buf(),
                    offset: view.bytes(),
                    reason: format!("revisions from {} to {} are missing", view.next_revision(), next.first_revision),
                });
            }
        }
        let reader = ChangeReader { index: Arc::new(RwLock::new(Index { views })) };
        Ok(Self { fs, dir: dir.to_path_buf(), options, reader, active, failed: false })
    }

    fn create(fs: SharedFs, dir: &Path, options: ChangeLogOptions, first_revision: u64) -> Result<Self, StoreError> {
        let active = create_segment(&fs, dir, first_revision, options.segment_bytes)?;
        let views = [SegmentView::new(&active)].into();
        let reader = ChangeReader { index: Arc::new(RwLock::new(Index { views })) };
        Ok(Self { fs, dir: dir.to_path_buf(), options, reader, active, failed: false })
    }

    /// The read side.
    pub fn reader(&self) -> &ChangeReader {
        &self.reader
    }

    /// Appends `records`, with one write where they fit one segment. Readers see all of a segment's at once.
    ///
    /// # Errors
    /// [`StoreError::Io`], after which the log must be opened again before anything else is appended.
    ///
    /// # Panics
    /// When the revisions do not follow the last one.
    pub fn append(&mut self, records: &[Arc<ChangeRecord>]) -> Result<(), StoreError> {
        if self.failed {
            let cause = std::io::Error::other("an earlier write failed");
            return Err(StoreError::io(format!("append to change log {}", self.dir.display()), cause));
        }
        // Stays so when a write fails or panics on the way: the segment's content is then unknown.
        self.failed = true;
        let mut batch = Batch::default();
        for (expected, record) in (self.reader.next_revision()..).zip(records) {
            assert_eq!(record.revision, expected, "revisions are appended in order");
            let bytes_max = record.stored_bytes_max();
            if self.active.remaining() < bytes_max {
                self.write_and_publish(&mut batch)?;
                self.roll(record.revision, bytes_max)?;
            }
            batch.begin(self.active.end(), record.time_ms);
            for part in record.parts() {
                self.active
                    .append_with(KIND_PART, 0, |out| record.encode_part(part, out))
                    .expect("the estimate of a record's size is never too low");
                if self.active.end() - batch.written >= WRITE_BYTES {
                    self.active.write()?;
                    batch.written = self.active.end();
                }
            }
        }
        self.write_and_publish(&mut batch)?;
        self.failed = false;
        Ok(())
    }

    /// Removes all revisions after `revision`: a state that is older than its change log computes them again. Only
    /// while nobody reads: the place of what is removed is written again.
    ///
    /// # Errors
    /// As [`ChangeLog::open`]; the log must then be opened again.
    pub fn truncate_after(&mut self, revision: u64) -> Result<(), StoreError> {
        if revision.saturating_add(1) >= self.reader.next_revision() {
            return Ok(());
        }
        if revision < self.reader.first_revision() {
            return self.clear(revision + 1);
        }
        self.failed = true;
        while self.reader.index.read().last().first_revision > revision {
            self.remove_newest()?;
        }
        let view = self.reader.index.read().last().clone();
        let keep = (revision + 1 - view.first_revision) as usize;
        let end = view.filled.read().offsets.get(keep).copied();
        let path = view.reader.path();
        if let Some(end) = end {
            cut(&self.fs, path, u64::from(end))?;
        }
        let (active, view) = open_active(&self.fs, path, view.first_revision)?;
        assert_eq!(view.next_revision(), revision + 1, "the segment was cut behind the revision");
        self.active = active;
        self.reader.index.write().replace_last(view);
        self.failed = false;
        Ok(())
    }

    /// Removes the segments whose revisions are all below `revision`. The newest one stays.
    ///
    /// # Errors
    /// [`StoreError::Io`]; what could not be removed stays readable, and goes with a later call.
    pub fn drop_below(&mut self, revision: u64) -> Result<(), StoreError> {
        loop {
            let oldest = {
                let index = self.reader.index.read();
                match index.views.get(1) {
                    Some(second) if second.first_revision <= revision => index.first().clone(),
                    _ => return Ok(()),
                }
            };
            // Oldest first: what a crash leaves has no holes.
            remove(&self.fs, &oldest)?;
            self.reader.index.write().views.pop_front();
        }
    }

    /// Forgets everything; the next record to append is that of `next_revision`. Iterations that began before go on
    /// over what they began with.
    ///
    /// # Errors
    /// [`StoreError::Io`], after which the log must be opened again before anything is appended.
    pub fn clear(&mut self, next_revision: u64) -> Result<(), StoreError> {
        self.failed = true;
        // Newest first: what a crash leaves ends too early, and that is noticed.
        while self.reader.index.read().views.len() > 1 {
            self.remove_newest()?;
        }
        let last = self.reader.index.read().last().clone();
        remove(&self.fs, &last)?;
        self.active = create_segment(&self.fs, &self.dir, next_revision, self.options.segment_bytes)?;
        self.reader.index.write().views = [SegmentView::new(&self.active)].into();
        self.failed = false;
        Ok(())
    }

    /// Writes what is buffered in the active segment, then lets readers see it.
    fn write_and_publish(&mut self, batch: &mut Batch) -> Result<(), StoreError> {
        self.active.write()?;
        let view = self.reader.index.read().last().clone();
        let mut filled = view.filled.write();
        filled.offsets.append(&mut batch.offsets);
        filled.end = self.active.end();
        filled.time_ms_max = filled.time_ms_max.max(batch.time_ms_max);
        *batch = Batch::default();
        Ok(())
    }

    /// Begins a segment with room for `bytes_min`. One that is still empty is replaced by it: it was too short.
    fn roll(&mut self, first_revision: u64, bytes_min: u64) -> Result<(), StoreError> {
        let capacity = self.options.segment_bytes.max(HEADER_BYTES + bytes_min);
        self.active = create_segment(&self.fs, &self.dir, first_revision, capacity)?;
        let view = SegmentView::new(&self.active);
        let mut index = self.reader.index.write();
        if index.last().first_revision == first_revision {
            index.replace_last(view);
        } else {
            index.views.push_back(view);
        }
        Ok(())
    }

    /// Removes the newest segment, of at least two.
    fn remove_newest(&mut self) -> Result<(), StoreError> {
        let newest = self.reader.index.read().last().clone();
        remove(&self.fs, &newest)?;
        self.reader.index.write().views.pop_back();
        Ok(())
    }
}

/// Revisions that are buffered in the active segment, and not yet in its view.
#[derive(Debug, Default)]
struct Batch {
    offsets: Vec<u32>,
    time_ms_max: u64,
    /// Offset up to which the segment is written.
    written: u64,
}

impl Batch {
    fn begin(&mut self, offset: u64, time_ms: u64) {
        if self.offsets.is_empty() {
            self.written = offset;
        }
        self.offsets.push(index::offset_u32(offset));
        self.time_ms_max = self.time_ms_max.max(time_ms);
    }
}

fn first_revision_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

fn create_segment(fs: &SharedFs, dir: &Path, first_revision: u64, capacity: u64) -> Result<Segment, StoreError> {
    let path = dir.join(format!("{PREFIX}{first_revision:020}{SUFFIX}"));
    // An empty segment is replaced by one that has room for its first revision.
    if fs.exists(&path) {
        fs.remove_file(&path).map_err(|e| StoreError::io(format!("replace {}", path.display()), e))?;
    }
    Segment::create(&**fs, &path, first_revision, capacity, &index::header_payload(), Mode::Rebuildable)
}

/// Opens a segment that has a successor: all of it must be whole.
fn open_sealed(fs: &SharedFs, path: &Path, first_revision: u64) -> Result<Arc<SegmentView>, StoreError> {
    let mut scan = Scan::new(path, first_revision);
    let (segment, tail) = Segment::open(&**fs, path, |offset, kind, body| scan.record(offset, kind, body))?;
    let Scanned { view, cut_revision } = scan.finish(&segment, tail)?;
    let io = |e| StoreError::io(format!("open {}", path.display()), e);
    let file_bytes = fs.open(path, false).map_err(io)?.len().map_err(io)?;
    if cut_revision || tail.torn_bytes > 0 || file_bytes != tail.end_offset {
        let reason = "it has a successor, and is not whole".to_string();
        return Err(StoreError::Corrupt { path: path.to_path_buf(), offset: view.bytes(), reason });
    }
    Ok(view)
}

/// Opens the newest segment for appending: what is unfinished at its end is cut off.
fn open_active(fs: &SharedFs, path: &Path, first_revision: u64) -> Result<(Segment, Arc<SegmentView>), StoreError> {
    let mut scan = Scan::new(path, first_revision);
    let (mut segment, tail) = Segment::open(&**fs, path, |offset, kind, body| scan.record(offset, kind, body))?;
    let Scanned { view, cut_revision } = scan.finish(&segment, tail)?;
    if cut_revision {
        let end = view.bytes();
        cut(fs, path, end)?;
        return open_active(fs, path, first_revision);
    }
    segment.adopt()?;
    Ok((segment, view))
}

/// Shortens a segment, which must be opened again before it is appended to.
fn cut(fs: &SharedFs, path: &Path, end: u64) -> Result<(), StoreError> {
    let cut = fs.open(path, true).and_then(|file| file.set_len(end));
    cut.map_err(|e| StoreError::io(format!("cut {} at byte {end}", path.display()), e))
}

fn remove(fs: &SharedFs, view: &SegmentView) -> Result<(), StoreError> {
    let path = view.reader.path();
    fs.remove_file(path).map_err(|e| StoreError::io(format!("remove {}", path.display()), e))
}
