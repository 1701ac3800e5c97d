//! Reads of the applied state, and what else the rest of the node wants to know of it.

use std::{io, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Shared, SnapshotCounts,
    evaluate::View,
    live::{CHUNK_KEYS_MAX, Located},
    page::{LIST_PAGE_BYTES_MAX, PageBuilder},
};
use crate::{
    LogId, StoreError,
    change_log::{Change, ChangeRecord, Replaced},
    lease::{LEASE_KEYS_SHOWN_MAX, LEASE_PAGE_ITEMS_MAX, LeaseObserver, LeasePage, LeaseView},
    member::Member,
    raft_types::StoredMembership,
    record::{ListPage, ListRequest, Record},
};

/// A listing of the newest revision that compaction overtakes starts again so many times.
const LIST_RESTARTS_MAX: usize = 3;

/// A handle to the applied state. Cloning is cheap. Reads block only for what the engine and the change log read
/// from disk.
#[derive(Debug, Clone)]
pub struct State {
    pub(super) shared: Arc<Shared>,
}

/// The state hash with what it belongs to: equal on all nodes at equal `applied_index`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateHashView {
    /// Index of the last applied entry, 0 before the first.
    pub applied_index: u64,
    /// Revision of the last change.
    pub revision: u64,
    /// The hash after that entry.
    pub hash: u128,
    /// (index, hash) at earlier entries, oldest first: see [`super::HASH_CHECKPOINT_ENTRIES`].
    pub checkpoints: Vec<(u64, u128)>,
}

/// Sizes and positions, for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateStats {
    /// Applied entries that are not yet persisted.
    pub overlay_entries: usize,
    /// Their changes, in bytes of keys and values, old and new.
    pub overlay_bytes: u64,
    /// Index of the last entry that the engine holds.
    pub persisted_index: Option<u64>,
    /// Space that the engine takes, in bytes.
    pub engine_bytes: u64,
    /// Oldest revision in the change log; None when it is empty.
    pub history_first_revision: Option<u64>,
    /// Newest revision in the change log; None when it is empty.
    pub history_last_revision: Option<u64>,
    /// Space that the change log takes, in bytes.
    pub history_bytes: u64,
    /// Files that the change log consists of.
    pub history_segments: usize,
    /// Keys that are deleted and can still be read in the past.
    pub deleted_keys: usize,
    /// Outcomes that are kept for retries.
    pub dedupe_entries: usize,
    /// What they count for against [`crate::dedupe::DEDUPE_BYTES_MAX`], in bytes.
    pub dedupe_bytes: u64,
}

impl State {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The record of `key` at `revision`, 0 = the newest; and the revision of the store at the read.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::FutureRevision`]; otherwise the state is damaged: see
    /// [`State::fatal`].
    pub fn get(&self, key: &[u8], revision: u64) -> Result<(Option<Record>, u64), StoreError> {
        let (located, at, newest) = {
            let live = self.shared.live.read();
            let newest = live.meta.revision;
            if revision == 0 {
                return Ok((self.shared.noted(live.get(key))?, newest));
            }
            check_revision(revision, live.meta.compacted_revision, newest)?;
            (self.shared.noted(live.locate(key, revision))?, revision, newest)
        };
        let record = self.shared.noted(PastReader::new(&self.shared, at).resolve(key, located))?;
        Ok((record, newest))
    }

    /// A page of records as of one revision. With `count_only` all keys are counted, whatever the limit.
    ///
    /// # Errors
    /// As [`State::get`].
    pub fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let mut restarts = 0;
        loop {
            match self.list_once(request) {
                Err(StoreError::Compacted { .. }) if request.revision == 0 && restarts < LIST_RESTARTS_MAX => {
                    restarts += 1;
                }
                result => return self.shared.noted(result),
            }
        }
    }

    fn list_once(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let at = match request.revision {
            0 => self.revision(),
            revision => revision,
        };
        let mut page = PageBuilder::new(request, at, LIST_PAGE_BYTES_MAX);
        let mut past = PastReader::new(&self.shared, at);
        let mut span = request.span();
        let values = !request.keys_only && !request.count_only;
        // One more than the page takes shows whether more follow.
        let wanted = if request.count_only { CHUNK_KEYS_MAX } else { request.limit.saturating_add(1) as usize };
        loop {
            let chunk = {
                let live = self.shared.live.read();
                check_revision(at, live.meta.compacted_revision, live.meta.revision)?;
                live.chunk(&span, at, wanted.min(CHUNK_KEYS_MAX), values)?
            };
            let last = chunk.keys.last().map(|(key, _)| key.clone());
            for (key, located) in chunk.keys {
                if let Some(record) = past.resolve(&key, located)?
                    && let ControlFlow::Break(()) = page.push(&key, record)
                {
                    return Ok(page.finish().0);
                }
            }
            match last {
                Some(last) if chunk.more => span = span.after(last),
                Some(_) | None => return Ok(page.finish().0),
            }
        }
    }

    /// Last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        self.shared.live.read().meta.applied
    }

    /// Revision of the last change, 0 before the first.
    pub fn revision(&self) -> u64 {
        self.shared.live.read().meta.revision
    }

    /// The oldest revision that can be read, once it is above 0; all can be before.
    pub fn compacted_revision(&self) -> u64 {
        self.shared.live.read().meta.compacted_revision
    }

    /// The revision that a compaction could name now, under the limits given at open; None = no history can go.
    /// `now_ms` is milliseconds since the Unix epoch.
    pub fn compaction_target(&self, now_ms: u64) -> Option<u64> {
        let (history, compacted) = {
            let live = self.shared.live.read();
            (live.generation.history.clone(), live.meta.compacted_revision)
        };
        history.compaction_target(&self.shared.history_limits, now_ms).filter(|target| *target > compacted)
    }

    /// The state hash.
    pub fn hash(&self) -> StateHashView {
        let live = self.shared.live.read();
        StateHashView {
            applied_index: live.meta.applied.map_or(0, |log_id| log_id.index),
            revision: live.meta.revision,
            hash: live.meta.hash,
            checkpoints: live.meta.checkpoints.iter().copied().collect(),
        }
    }

    /// The member directory, by node id.
    pub fn members(&self) -> Vec<Member> {
        self.shared.live.read().meta.directory.members.clone()
    }

    /// How many voters the cluster aims at.
    pub fn replication_factor(&self) -> u32 {
        self.shared.live.read().meta.directory.replication_factor
    }

    /// The cluster's id, once it has one.
    pub fn cluster_id(&self) -> Option<u64> {
        self.shared.live.read().meta.directory.cluster_id
    }

    /// Lease `id`, with its first keys: at most `keys_max` and [`LEASE_KEYS_SHOWN_MAX`].
    pub fn lease(&self, id: u64, keys_max: usize) -> Option<LeaseView> {
        self.shared.live.read().leases.view(id, keys_max.min(LEASE_KEYS_SHOWN_MAX))
    }

    /// The leases with an id above `after`, in the order of their ids: at most `limit` and [`LEASE_PAGE_ITEMS_MAX`].
    pub fn leases(&self, after: u64, limit: usize) -> LeasePage {
        self.shared.live.read().leases.page(after, limit.min(LEASE_PAGE_ITEMS_MAX))
    }

    /// Number of leases.
    pub fn lease_count(&self) -> usize {
        self.shared.live.read().leases.len()
    }

    /// From the next entry on `observer` is told of leases, instead of the one before.
    pub fn observe_leases(&self, observer: Arc<dyn LeaseObserver>) {
        *self.shared.lease_observer.write() = Some(observer);
    }

    /// The Raft membership as of the last applied entry.
    pub fn membership(&self) -> StoredMembership {
        (*self.shared.live.read().meta.membership).clone()
    }

    /// All entries with an index below its value are applied and visible here.
    pub fn applied_watch(&self) -> watch::Receiver<u64> {
        self.shared.applied_watch.subscribe()
    }

    /// Changes whenever members, replication factor, cluster id or membership do.
    pub fn directory_watch(&self) -> watch::Receiver<u64> {
        self.shared.directory_watch.subscribe()
    }

    /// Whether user data was ever written.
    pub fn has_user_data(&self) -> bool {
        self.revision() > 0
    }

    /// Length of the current snapshot, in bytes; 0 when there is none.
    pub fn snapshot_bytes(&self) -> u64 {
        self.shared.snapshot.read().as_ref().map_or(0, |(file, _)| file.len_bytes())
    }

    /// Index of the last entry in the current snapshot.
    pub fn snapshot_index(&self) -> Option<u64> {
        let snapshot = self.shared.snapshot.read();
        snapshot.as_ref().and_then(|(_, footer)| footer.meta.last_log_id).map(|log_id| log_id.index)
    }

    /// What happened to snapshots since the state was opened.
    pub fn snapshot_counts(&self) -> SnapshotCounts {
        self.shared.snapshot_counts.clone()
    }

    /// Sizes and positions.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when the size on disk cannot be read.
    pub fn stats(&self) -> Result<StateStats, StoreError> {
        let persisted_index = self.persisted_index();
        let (generation, overlay_entries, overlay_bytes, deleted_keys, dedupe_entries, dedupe_bytes) = {
            let live = self.shared.live.read();
            let (overlay, dedupe) = (&live.overlay, &live.dedupe);
            let generation = live.generation.clone();
            (generation, overlay.entries(), overlay.bytes(), live.deleted.len(), dedupe.len(), dedupe.bytes())
        };
        let history = &generation.history;
        let history_last_revision = history.last_revision();
        Ok(StateStats {
            overlay_entries,
            overlay_bytes,
            persisted_index,
            engine_bytes: generation.engine.size_bytes()?,
            history_first_revision: history_last_revision.map(|_| history.first_revision()),
            history_last_revision,
            history_bytes: history.bytes(),
            history_segments: history.segments(),
            deleted_keys,
            dedupe_entries,
            dedupe_bytes,
        })
    }

    /// Index of the last entry that the state on disk contains.
    pub fn persisted_index(&self) -> Option<u64> {
        self.shared.persisted_watch.borrow().checked_sub(1)
    }

    /// Why the state machine stopped, once it has: an error of the disk or damage. The node has to be restarted,
    /// and rebuilds a damaged state then.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.shared.fatal.subscribe()
    }

    /// Persists everything that is applied, makes it durable, and notes that the stop was in order. Nothing is applied
    /// afterwards; reads still work.
    ///
    /// # Errors
    /// Those of the disk; the next start is then one after a crash.
    pub async fn close(&self) -> Result<(), StoreError> {
        let shared = &self.shared;
        shared.dirs.end();
        shared.stop_writer();
        let mut ended = shared.writer_ended.subscribe();
        ended.wait_for(|ended| *ended).await.map_err(|_| shared.closed())?;
        if let Some(reason) = shared.fatal.borrow().clone() {
            return Err(StoreError::io("close the state machine", io::Error::other(reason)));
        }
        shared
            .run_blocking(|shared| {
                while shared.persist_batch()? {}
                let generation = shared.live.read().generation.clone();
                generation.engine.sync()?;
                shared.dirs.set_clean(generation.number)
            })
            .await
    }
}

fn check_revision(requested: u64, compacted: u64, newest: u64) -> Result<(), StoreError> {
    if requested < compacted {
        return Err(StoreError::Compacted { requested, oldest: compacted });
    }
    if requested > newest {
        return Err(StoreError::FutureRevision { requested, newest });
    }
    Ok(())
}

/// Follows keys back to one revision through the change log.
struct PastReader<'a> {
    shared: &'a Shared,
    at: u64,
    /// The last record looked into: neighbouring keys often changed together.
    recent: Option<Arc<ChangeRecord>>,
}

impl<'a> PastReader<'a> {
    fn new(shared: &'a Shared, at: u64) -> Self {
        Self { shared, at, recent: None }
    }

    /// The record of `key` at the revision.
    fn resolve(&mut self, key: &[u8], located: Located) -> Result<Option<Record>, StoreError> {
        let mut revision = match located {
            Located::Found(record) => return Ok(Some(record)),
            Located::Absent => return Ok(None),
            Located::ChangedBy(revision) => revision,
        };
        loop {
            let next = match self.change(revision, key)?.old {
                Replaced::Record(record) if record.mod_revision <= self.at => return Ok(Some(record)),
                Replaced::Record(record) => record.mod_revision,
                Replaced::Absent { deleted_at } if deleted_at <= self.at => return Ok(None),
                Replaced::Absent { deleted_at } => deleted_at,
            };
            assert!(next < revision, "{key:?} at {revision} replaced what is of {next}");
            revision = next;
        }
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
