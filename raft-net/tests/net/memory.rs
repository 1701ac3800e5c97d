//! Raft storage in memory, as small as openraft allows: what is tested here is the wire between nodes.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::RangeBounds,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hexkv_store::{
    TypeConfig, codec,
    fs::{RealFs, SharedFs},
    outcome::Outcome,
    raft_types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote},
    snapshot::SnapshotFile,
};
use openraft::{
    EntryPayload, LogState, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    entry::RaftEntry,
    storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine},
    type_config::alias::SnapshotOf,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The log.
#[derive(Clone, Default)]
pub struct MemoryLog(Arc<Mutex<LogContent>>);

#[derive(Default)]
struct LogContent {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
}

impl MemoryLog {
    /// The last entry.
    pub fn last(&self) -> Option<LogId> {
        self.0.lock().entries.values().next_back().map(|entry| entry.log_id())
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.0.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    /// At most about 2 MiB, as the real log does.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut bytes = 0;
        let content = self.0.lock();
        let entries = content.entries.range(start..end).map(|(_, entry)| entry.clone());
        Ok(entries
            .take_while(|entry| {
                let first = bytes == 0;
                if let EntryPayload::Normal(proposal) = &entry.payload {
                    bytes += proposal.size_bytes();
                }
                first || bytes < 2 * 1024 * 1024
            })
            .collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let content = self.0.lock();
        let last = content.entries.values().next_back().map(|entry| entry.log_id());
        Ok(LogState { last_purged_log_id: content.purged, last_log_id: last.or(content.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.0.lock().entries.extend(entries.into_iter().map(|entry| (entry.log_id().index, entry)));
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.0.lock().entries.retain(|index, _| last.is_some_and(|last| *index <= last.index));
        Ok(())
    }

    async fn purge(&mut self, up_to: LogId) -> io::Result<()> {
        let mut content = self.0.lock();
        content.entries.retain(|index, _| *index > up_to.index);
        content.purged = Some(up_to);
        Ok(())
    }
}

/// What was proposed, in order.
#[derive(Clone)]
pub struct MemoryState {
    dir: PathBuf,
    state: Arc<Mutex<State>>,
    current: Arc<Mutex<Option<(SnapshotMeta, SnapshotFile)>>>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    proposals: Vec<Bytes>,
}

/// Makes snapshot files differ in name.
static SNAPSHOTS: AtomicU64 = AtomicU64::new(1);

impl MemoryState {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, state: Arc::default(), current: Arc::default() }
    }

    /// What was proposed, in order.
    pub fn proposals(&self) -> Vec<Bytes> {
        self.state.lock().proposals.clone()
    }
}

impl RaftSnapshotBuilder<TypeConfig> for MemoryState {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let state = self.state.lock().clone();
        let id = format!("test-{}", SNAPSHOTS.fetch_add(1, Ordering::Relaxed));
        let path = self.dir.join(&id);
        // Proposals may exceed what one encoded value holds: each is one.
        let mut bytes = Vec::new();
        for part in std::iter::once(codec::encode(&(state.applied, &state.membership)))
            .chain(state.proposals.iter().map(|proposal| proposal.to_vec()))
        {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&part);
        }
        std::fs::write(&path, bytes)?;
        let fs: SharedFs = Arc::new(RealFs);
        let snapshot = SnapshotFile::open(&fs, &path, id)?;
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership };
        *self.current.lock() = Some((meta.clone(), snapshot.clone()));
        Ok(Snapshot { meta, snapshot })
    }
}

impl RaftStateMachine<TypeConfig> for MemoryState {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            {
                let mut state = self.state.lock();
                state.applied = Some(entry.log_id());
                match &entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Normal(proposal) => state.proposals.push(proposal.body.clone()),
                    EntryPayload::Membership(membership) => {
                        state.membership = StoredMembership::new(Some(entry.log_id()), membership.clone());
                    }
                }
            }
            if let Some(responder) = responder {
                responder.send(Outcome::Done);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let bytes = snapshot.read_chunk(0, usize::MAX)?;
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        while let Some((length, tail)) = rest.split_first_chunk::<8>() {
            let (part, tail) = tail.split_at(u64::from_le_bytes(*length) as usize);
            parts.push(Bytes::copy_from_slice(part));
            rest = tail;
        }
        let proposals = parts.split_off(1);
        let (applied, membership) = codec::decode("snapshot", &parts[0], codec::VALUE_BYTES_MAX)?;
        assert_eq!(applied, meta.last_log_id, "the file is the one that was announced");
        *self.state.lock() = State { applied, membership, proposals };
        *self.current.lock() = Some((meta.clone(), snapshot));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        Ok(self.current.lock().clone().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}
