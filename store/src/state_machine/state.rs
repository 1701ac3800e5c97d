//! Reads of the applied state, and what else the rest of the node wants to know of it.

use std::{io, ops::ControlFlow, sync::Arc};

use tokio::sync::watch;

use super::{
    Shared, SnapshotCounts,
    live::CHUNK_KEYS_MAX,
    merge::Entry,
    page::{LIST_PAGE_BYTES_MAX, PageBuilder},
    past_reader::{PastReader, check_revision},
};
use crate::{
    LogId, NodeId, StoreError,
    engine::Span,
    lease::{LEASE_KEYS_SHOWN_MAX, LEASE_PAGE_ITEMS_MAX, LeaseObserver, LeasePage, LeaseView},
    member::Member,
    raft_types::StoredMembership,
    record::{KeyRange, ListPage, ListRequest, Record},
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

    /// Whether `key`, which does not exist, may have been deleted after revision `after`. When that is compacted it may.
    pub fn deleted_since(&self, key: &[u8], after: u64) -> bool {
        let live = self.shared.live.read();
        after < live.meta.compacted_revision || live.deleted_at(key) > after
    }

    /// The number of keys that `request` reads of the newest revision, and what they take with their records, in bytes.
    /// Not exact while the state moves. Counts no further than one beyond `keys_max`, or beyond `bytes_max`.
    ///
    /// # Errors
    /// The state is damaged: see [`State::fatal`].
    pub fn measure(&self, range: &KeyRange, keys_max: u64, bytes_max: u64) -> Result<(u64, u64), StoreError> {
        let mut span = Span::new(range, false);
        let (mut keys, mut bytes) = (0, 0);
        let mut failure = None;
        loop {
            let resume = self.shared.live.read().step(&span, &mut |key, entry| {
                match entry.size_bytes(key) {
                    Ok(_) if matches!(entry, Entry::Hidden) => {}
                    Ok(size) => (keys, bytes) = (keys + 1, bytes + size),
                    Err(error) => failure = Some(error),
                }
                if failure.is_some() || keys > keys_max || bytes > bytes_max {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
            let resume = self.shared.noted(resume.and_then(|resume| failure.take().map_or(Ok(resume), Err)))?;
            match resume {
                Some(last) => span = span.after(last),
                None => return Ok((keys, bytes)),
            }
        }
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
            for (key, located) in chunk.keys {
                if let Some(record) = past.resolve(&key, located)?
                    && let ControlFlow::Break(()) = page.push(&key, record)
                {
                    return Ok(page.finish().0);
                }
            }
            match chunk.resume {
                Some(last) => span = span.after(last),
                None => return Ok(page.finish().0),
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

    /// Whether `node` is in the member directory.
    pub fn has_member(&self, node: NodeId) -> bool {
        let live = self.shared.live.read();
        live.meta.directory.members.binary_search_by_key(&node, |member| member.node_id).is_ok()
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

    /// How many of the leases `ids`, from the first on, have together at most `keys_max` keys attached; one at least.
    pub fn leases_with_keys(&self, ids: &[u64], keys_max: u64) -> usize {
        let live = self.shared.live.read();
        let mut keys = 0;
        let fits = |id: &&u64| {
            keys += live.leases.size(**id).0;
            keys <= keys_max
        };
        ids.iter().take_while(fits).count().max(1).min(ids.len())
    }

    /// The leases with an id above `after`, in the order of their ids: at most `limit` and [`LEASE_PAGE_ITEMS_MAX`].
    pub fn leases(&self, after: u64, limit: usize) -> LeasePage {
        self.shared.live.read().leases.page(after, limit.min(LEASE_PAGE_ITEMS_MAX))
    }

    /// Number of leases.
    pub fn lease_count(&self) -> usize {
        self.shared.live.read().leases.len()
    }

    /// Where as many outcomes are kept for retries as there may be: index of the oldest one's entry. Older outcomes may have
    /// been evicted before their time.
    pub fn oldest_outcome_if_full(&self) -> Option<u64> {
        self.shared.live.read().dedupe.oldest_if_full()
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
