//! Tests of the log as a whole, most of them on a simulated disk.

mod crash;
mod damage;
mod failure;
mod model;
mod reading;
mod script;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::{
    EntryPayload, LogIdOptionExt, RaftLogReader, RaftTypeConfig,
    entry::RaftEntry,
    impls::leader_id_adv::LeaderId,
    storage::{IOFlushed, RaftLogStorage},
    type_config::{AsyncRuntime, async_runtime::oneshot::Oneshot},
};

use super::*;
use crate::{
    TypeConfig,
    fs::FaultyFs,
    raft_types::{LogId, Proposal, Vote},
};

/// Small segments and almost no cache, so that few entries exercise rotation and reads from disk.
const SMALL: LogOptions = LogOptions { segment_bytes: SEGMENT_BYTES_MIN, cache_bytes: 300, driver: Driver::Task };

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

fn open(fs: &FaultyFs) -> Result<LogStore, StoreError> {
    LogStore::open(Arc::new(fs.clone()), &dir(), SMALL)
}

/// Runs `test` in a runtime of one thread; its tasks, a log's writer among them, end with it.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed: term.is_multiple_of(2) }
}

/// An entry whose command has `bytes` bytes that depend on its log id.
fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let body = vec![(term * 31 + index) as u8; bytes].into();
    Entry::new(
        log_id(term, index),
        EntryPayload::Normal(Proposal { time_ms: index, uptime_ms: index, idempotency: None, body }),
    )
}

fn entries(term: u64, indices: std::ops::Range<u64>, bytes: usize) -> Vec<Entry> {
    indices.map(|index| entry(term, index, bytes)).collect()
}

type Flushed =
    <<<TypeConfig as RaftTypeConfig>::AsyncRuntime as AsyncRuntime>::Oneshot as Oneshot>::Receiver<io::Result<()>>;

/// Appends, and answers what the callback will say.
async fn submit(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<Flushed> {
    let (done, flushed) =
        <<<TypeConfig as RaftTypeConfig>::AsyncRuntime as AsyncRuntime>::Oneshot as Oneshot>::channel();
    log.append(entries, IOFlushed::signal(done)).await?;
    Ok(flushed)
}

/// Appends and waits until that is durable.
async fn append(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    submit(log, entries).await?.await.unwrap()
}

async fn all(log: &mut LogStore) -> Vec<Entry> {
    log.try_get_log_entries(..).await.unwrap()
}

/// What a log holds, as its callers see it; `committed` aside, which is recorded late on purpose.
#[derive(Debug, Clone, Default, PartialEq)]
struct State {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<Entry>,
}

impl State {
    async fn of(log: &mut LogStore) -> Self {
        let log_state = log.get_log_state().await.unwrap();
        Self {
            vote: log.read_vote().await.unwrap(),
            purged: log_state.last_purged_log_id,
            last: log_state.last_log_id,
            entries: all(log).await,
        }
    }

    fn append(&mut self, entry: Entry) {
        self.last = Some(entry.log_id);
        self.entries.push(entry);
    }

    fn truncate(&mut self, after: Option<LogId>) {
        self.entries.retain(|entry| entry.index() < after.next_index());
        self.last = after;
    }

    fn purge(&mut self, upto: LogId) {
        self.entries.retain(|entry| entry.index() > upto.index);
        self.purged = Some(upto);
        if self.last.next_index() <= upto.index {
            self.last = Some(upto);
        }
    }

    fn next(&self) -> u64 {
        self.last.next_index()
    }

    /// Log id of the entry `index`, or of the one that was purged last.
    fn id_at(&self, index: u64) -> Option<LogId> {
        self.entries.iter().find(|e| e.index() == index).map(|e| e.log_id).or(self.purged.filter(|p| p.index == index))
    }
}

fn segment_paths(fs: &FaultyFs) -> Vec<PathBuf> {
    use crate::fs::Fs as _;
    fs.list(Path::new("/log")).unwrap()
}
