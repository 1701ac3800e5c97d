//! Follows keys back to a revision of the past through the change log.

use std::sync::Arc;

use bytes::Bytes;

use super::{Shared, live::Located};
use crate::{
    StoreError,
    change_log::{Change, ChangeReader, ChangeRecord, Replaced},
    record::Record,
};

/// Changes of one key that are followed back before it is looked for from the other side as well.
const BACK_STEPS_ALONE: usize = 32;
/// Records that are read on that side for each further one; they are read ahead, and cost less.
const FORWARD_RECORDS_PER_STEP: usize = 8;

/// Whether revision `requested` can be read.
pub(super) fn check_revision(requested: u64, compacted: u64, newest: u64) -> Result<(), StoreError> {
    if requested < compacted {
        return Err(StoreError::Compacted { requested, oldest: compacted });
    }
    if requested > newest {
        return Err(StoreError::FutureRevision { requested, newest });
    }
    Ok(())
}

/// The record that the first change of `key` in `records` replaced; None where none of them changes it.
fn first_change(
    records: impl Iterator<Item = Result<ChangeRecord, StoreError>>,
    key: &[u8],
) -> Result<Option<Option<Record>>, StoreError> {
    for record in records {
        let mut record = match record {
            Ok(record) => record,
            // Dropped meanwhile: the way back finds that out.
            Err(StoreError::Compacted { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Ok(at) = record.changes.binary_search_by(|change| change.key[..].cmp(key)) {
            return Ok(Some(match record.changes.swap_remove(at).old {
                Replaced::Record(record) => Some(record),
                Replaced::Absent { .. } => None,
            }));
        }
    }
    Ok(None)
}

/// Follows keys back to one revision through the change log. A key that was changed very often is looked for from the
/// other side as well, where its first change after the revision is likely to be near.
pub(super) struct PastReader<'a> {
    shared: &'a Shared,
    at: u64,
    /// The last record looked into: neighbouring keys often changed together.
    recent: Option<Arc<ChangeRecord>>,
}

impl<'a> PastReader<'a> {
    pub(super) fn new(shared: &'a Shared, at: u64) -> Self {
        Self { shared, at, recent: None }
    }

    /// The record of `key` at the revision.
    pub(super) fn resolve(&mut self, key: &[u8], located: Located) -> Result<Option<Record>, StoreError> {
        let mut revision = match located {
            Located::Found(record) => return Ok(Some(record)),
            Located::Absent => return Ok(None),
            Located::ChangedBy(revision) => revision,
        };
        let (mut steps, mut forward) = (0, None);
        loop {
            let next = match self.change(revision, key)?.old {
                Replaced::Record(record) if record.mod_revision <= self.at => return Ok(Some(record)),
                Replaced::Record(record) => record.mod_revision,
                Replaced::Absent { deleted_at } if deleted_at <= self.at => return Ok(None),
                Replaced::Absent { deleted_at } => deleted_at,
            };
            assert!(next < revision, "{key:?} at {revision} replaced what is of {next}");
            revision = next;
            steps += 1;
            if steps >= BACK_STEPS_ALONE {
                let forward = forward.get_or_insert_with(|| self.history().iter_from(self.at + 1));
                if let Some(old) = first_change(forward.take(FORWARD_RECORDS_PER_STEP), key)? {
                    return Ok(old);
                }
            }
        }
    }

    fn history(&self) -> ChangeReader {
        self.shared.live.read().generation.history.clone()
    }

    fn change(&mut self, revision: u64, key: &[u8]) -> Result<Change, StoreError> {
        let record = match &self.recent {
            Some(record) if record.revision == revision => record.clone(),
            Some(_) | None => self.record(revision)?,
        };
        let at = record.changes.binary_search_by(|change| change.key[..].cmp(key));
        let change = at.map(|at| record.changes[at].clone());
        self.recent = Some(record);
        change.map_err(|_| {
            self.damaged(format!("revision {revision} should have changed {:?}", Bytes::copy_from_slice(key)))
        })
    }

    fn record(&self, revision: u64) -> Result<Arc<ChangeRecord>, StoreError> {
        let (pending, history) = {
            let live = self.shared.live.read();
            (live.overlay.record(revision), live.generation.history.clone())
        };
        if let Some(record) = pending {
            return Ok(record);
        }
        if let Some(record) = history.read(revision)? {
            return Ok(Arc::new(record));
        }
        let live = self.shared.live.read();
        check_revision(self.at, live.meta.compacted_revision, live.meta.revision)?;
        Err(self.damaged(format!("revision {revision} is missing")))
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::Corrupt { path: self.shared.dirs.path().to_path_buf(), offset: 0, reason }
    }
}
