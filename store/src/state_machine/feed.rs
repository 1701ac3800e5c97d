//! The stream of changes, for whoever follows it: watches, and nodes that hold no data.
//!
//! Every applied change record passes here in the order of revisions. The newest ones are kept in memory, shared by all
//! who read them; older ones are read from the change log, as far as compaction has left it.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::watch;

use super::{State, live::Live, page::size_bytes};
use crate::{
    StoreError,
    change_log::{Change, ChangeReader, ChangeRecord, Replaced},
};

/// Change records that are kept in memory at most.
pub const RECENT_RECORDS_MAX: usize = 4096;
/// Their size at most, in bytes of keys and values, old and new; one record is kept whatever its size.
pub const RECENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Records that one read of the stream answers at most.
pub const FEED_RECORDS_MAX: usize = 256;
/// A read of the stream ends with the first record that reaches this size, in bytes of keys and values.
pub const FEED_BYTES_MAX: u64 = 256 * 1024;

/// Consecutive change records.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The records that follow the revision asked for, without a gap; empty when there is none yet.
    pub records: Vec<Arc<ChangeRecord>>,
    /// Newest revision of this node when they were read.
    pub newest: u64,
}

/// The newest change records.
///
/// Invariants: revisions are consecutive; `bytes` is the sum of their sizes.
#[derive(Debug, Default)]
pub(super) struct Recent {
    records: VecDeque<Arc<ChangeRecord>>,
    bytes: u64,
}

impl Recent {
    pub(super) fn push(&mut self, record: Arc<ChangeRecord>) {
        self.bytes += record.size_bytes();
        self.records.push_back(record);
        while self.records.len() > RECENT_RECORDS_MAX || (self.bytes > RECENT_BYTES_MAX && self.records.len() > 1) {
            let oldest = self.records.pop_front().expect("there is more than one");
            self.bytes -= oldest.size_bytes();
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The records from `revision` on that one read answers; None when `revision` is not here.
    fn read(&self, revision: u64) -> Option<Vec<Arc<ChangeRecord>>> {
        let at = revision.checked_sub(self.records.front()?.revision)?;
        let from = self.records.range(usize::try_from(at).ok().filter(|at| *at < self.records.len())?..);
        Some(within_limits(from.cloned().map(Ok)).expect("records in memory are read without an error"))
    }
}

impl ChangeRecord {
    /// Its size in memory and in answers, in bytes of keys and values, old and new.
    pub fn size_bytes(&self) -> u64 {
        self.changes.iter().map(change_bytes).sum()
    }
}

fn change_bytes(change: &Change) -> u64 {
    let old = match &change.old {
        Replaced::Record(record) => size_bytes(&change.key, record),
        Replaced::Absent { .. } => 0,
    };
    old + change.new.as_ref().map_or(change.key.len() as u64, |record| size_bytes(&change.key, record))
}

fn within_limits(
    records: impl Iterator<Item = Result<Arc<ChangeRecord>, StoreError>>,
) -> Result<Vec<Arc<ChangeRecord>>, StoreError> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for record in records {
        let record = record?;
        bytes += record.size_bytes();
        taken.push(record);
        if taken.len() >= FEED_RECORDS_MAX || bytes >= FEED_BYTES_MAX {
            break;
        }
    }
    Ok(taken)
}

/// Where the records after some revision are.
enum Place {
    InMemory(Vec<Arc<ChangeRecord>>),
    OnDisk(ChangeReader),
}

impl State {
    /// Follows the newest revision: its value never goes back, and everything up to it can be read here.
    pub fn revision_watch(&self) -> watch::Receiver<u64> {
        self.shared.revision_watch.subscribe()
    }

    /// The change records after revision `after`, oldest first, as many as one read takes
    /// ([`FEED_RECORDS_MAX`], [`FEED_BYTES_MAX`]); the first one is that of `after + 1`. Empty when `after` is the
    /// newest revision of this node, or one that it does not have yet.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the record of `after + 1` may be gone; `oldest` is then the smallest `after` that
    /// can be asked for. Otherwise the state is damaged: see [`State::fatal`].
    pub async fn changes_after(&self, after: u64) -> Result<Changes, StoreError> {
        let (place, newest) = {
            let live = self.shared.live.read();
            let newest = live.meta.revision;
            check_kept(after, &live)?;
            if after >= newest {
                return Ok(Changes { records: Vec::new(), newest });
            }
            (place_of(&live, after + 1), newest)
        };
        let records = match place {
            Place::InMemory(records) => records,
            Place::OnDisk(history) => self.read_history(history, after).await?,
        };
        Ok(Changes { records: proven(records, after), newest })
    }

    async fn read_history(&self, history: ChangeReader, after: u64) -> Result<Vec<Arc<ChangeRecord>>, StoreError> {
        let read = move |shared: &super::Shared| {
            let records = history.iter_from(after + 1).map(|record| record.map(Arc::new));
            let read = within_limits(records);
            // What was dropped since the look at the state was compacted since.
            if let Err(StoreError::Compacted { .. }) = &read {
                check_kept(after, &shared.live.read())?;
            }
            shared.noted(read)
        };
        self.shared.run_blocking(read).await
    }
}

/// The record of the compacted revision itself may be gone, later ones are not.
fn check_kept(after: u64, live: &Live) -> Result<(), StoreError> {
    let oldest = live.meta.compacted_revision;
    if after < oldest { Err(StoreError::Compacted { requested: after, oldest }) } else { Ok(()) }
}

/// Where the record of `revision`, which was applied, is: it stays in the overlay until the change log holds it.
fn place_of(live: &Live, revision: u64) -> Place {
    if let Some(records) = live.recent.read(revision) {
        return Place::InMemory(records);
    }
    let first_on_disk = live.overlay.record(revision).is_none();
    if first_on_disk {
        return Place::OnDisk(live.generation.history.clone());
    }
    let pending = (revision..=live.meta.revision).map_while(|revision| live.overlay.record(revision));
    Place::InMemory(within_limits(pending.map(Ok)).expect("records in memory are read without an error"))
}

/// Revisions have no gaps: whoever follows the stream may count on it.
fn proven(records: Vec<Arc<ChangeRecord>>, after: u64) -> Vec<Arc<ChangeRecord>> {
    let expected = after + 1..;
    let consecutive = records.iter().zip(expected).all(|(record, revision)| record.revision == revision);
    assert!(consecutive && !records.is_empty(), "the records after {after} are not consecutive: {records:?}");
    records
}
