//! Tests of the state machine, below openraft.

mod crash;
mod dedupe;
mod feed;
mod flow;
pub(super) mod given;
mod leases;
mod past;
mod recovery;
mod script;
mod snapshot;
mod suite;
mod work;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{
    EntryPayload, RaftSnapshotBuilder, storage::RaftStateMachine, type_config::alias::LeaderIdOf, vote::RaftLeaderIdExt,
};
use tokio::sync::watch;

use super::{EngineKind, State, StateMachine, StateOptions};
use crate::{
    LogId, Proposal, StoreError, TypeConfig,
    change_log::HistoryLimits,
    command::{Command, Txn, TxnOp},
    dedupe::Idempotency,
    driver::Driver,
    fs::{RealFs, SharedFs},
    outcome::{OpResult, Outcome},
    raft_types::Entry,
    record::{KeyRange, ListRequest},
    snapshot::{Footer, SnapshotFile},
};

const CACHE_BYTES: u64 = 4 * 1024 * 1024;
const SLED: EngineKind = EngineKind::Sled { cache_bytes: CACHE_BYTES };
const MIRROR: EngineKind = EngineKind::Mirror { cache_bytes: CACHE_BYTES };
/// How long a test waits for what should take milliseconds.
const DEADLINE: Duration = Duration::from_secs(30);

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderIdOf::<TypeConfig>::new_committed(1, 1), index)
}

fn entry(index: u64, command: &Command) -> Entry {
    let proposal = Proposal { time_ms: 1_000 * index, uptime_ms: 1_000 * index, ..Proposal::new(command) };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(proposal) }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Command {
    put_attached(key, value, 0)
}

fn put_attached(key: &str, value: &str, lease: u64) -> Command {
    let (key, value) = (bytes(key), bytes(value));
    Command::Txn(Txn::unconditional(TxnOp::Put { key, value, content_type: None, lease, prev: false }))
}

fn grant(id: u64) -> Command {
    Command::Txn(Txn::unconditional(TxnOp::GrantLease { id, ttl_ms: 10_000 }))
}

fn end_lease(id: u64) -> Command {
    Command::Txn(Txn::unconditional(TxnOp::EndLease { id }))
}

fn delete(key: &str) -> Command {
    Command::Txn(Txn::unconditional(TxnOp::Delete { key: bytes(key), prev: false }))
}

fn list_all(revision: u64) -> ListRequest {
    ListRequest {
        range: KeyRange::default(),
        limit: u32::MAX,
        revision,
        keys_only: false,
        count_only: false,
        descending: false,
        after: None,
    }
}

/// How a test opens a state machine: everything is durable, and the log holds everything.
fn options(engine: EngineKind) -> StateOptions {
    StateOptions {
        engine,
        durable: watch::Sender::new(u64::MAX).subscribe(),
        history: HistoryLimits::default(),
        power_lost: false,
        log_purged: None,
        driver: Driver::Thread,
    }
}

/// A state machine with the log that it was given.
struct Fixture {
    machine: StateMachine,
    state: State,
    log: Vec<Entry>,
    /// By how much the leader's wall clock is ahead, in milliseconds.
    wall_ahead_ms: u64,
}

impl Fixture {
    fn open(dir: &Path, engine: EngineKind) -> Self {
        Self::open_with(Arc::new(RealFs), dir, options(engine)).unwrap()
    }

    fn open_with(fs: SharedFs, dir: &Path, options: StateOptions) -> Result<Self, StoreError> {
        let machine = StateMachine::open(fs, dir, options)?;
        Ok(Self { state: machine.state(), machine, log: Vec::new(), wall_ahead_ms: 0 })
    }

    /// Opens without a writer: the test persists.
    fn manual(dir: &Path, engine: EngineKind) -> Self {
        let mut fixture = Self::open(dir, engine);
        fixture.machine.shared.stop_writer();
        fixture.machine.writer.take().unwrap().join().unwrap();
        fixture
    }

    /// Applies `command` as the next entry.
    fn run(&mut self, command: &Command) -> Outcome {
        self.run_once(command, None)
    }

    /// Applies `command` as the next entry, with an idempotency key where one is given.
    fn run_once(&mut self, command: &Command, idempotency: Option<Idempotency>) -> Outcome {
        let index = self.state.applied().map_or(1, |last| last.index + 1);
        let mut entry = entry(index, command);
        if let EntryPayload::Normal(proposal) = &mut entry.payload {
            proposal.idempotency = idempotency;
            proposal.time_ms += self.wall_ahead_ms;
        }
        self.log.push(entry.clone());
        let outcome = self.machine.shared.apply_entry(entry).unwrap();
        self.machine.shared.announce();
        outcome
    }

    fn persist_all(&self) {
        while self.machine.shared.persist_batch().unwrap() {}
    }

    /// Applies what of `log` is not applied yet, as openraft does after a restart.
    fn catch_up(&mut self, log: &[Entry]) {
        let next = self.state.applied().map_or(0, |last| last.index + 1);
        for entry in log.iter().filter(|entry| entry.log_id.index >= next) {
            self.machine.shared.apply_entry(entry.clone()).unwrap();
        }
        self.machine.shared.announce();
        self.log = log.to_vec();
    }

    /// Everything a reader can see of the newest revision.
    fn dump(&self) -> Vec<(Bytes, crate::record::Record)> {
        let page = self.state.list(&list_all(0)).unwrap();
        page.items.into_iter().map(|item| (item.key, item.record)).collect()
    }

    async fn build(&mut self) -> (SnapshotFile, Footer) {
        self.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        self.machine.shared.snapshot.read().clone().unwrap()
    }

    fn generation(&self) -> u64 {
        self.machine.shared.live.read().generation.number
    }
}

/// Waits for `condition`, with a deadline.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what} did not come to be");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
