//! The state machine: apply, reads, the writer behind apply, snapshots.
//!
//! | part | what |
//! |---|---|
//! | `evaluate`, `txn_reads`, `checks`, `directory` | what a command does: pure functions |
//! | `leases` | the leases, what is attached to them, and what transactions do to them |
//! | `live`, `overlay`, `merge`, `record_cache` | the applied state: what is not yet persisted over the engine |
//! | `stepped_view` | the applied state as a command sees it |
//! | `raft`, `applier`, `apply` | openraft's entries come in, and are applied by a thread of their own |
//! | `persist` | the writer behind apply: overlay to change log and engine, in batches |
//! | `state`, `past_reader`, `page` | [`State`]: reads, of the newest revision and of past ones |
//! | `feed` | the stream of changes, for watches |
//! | `build`, `install` | snapshots out and in |
//! | `room` | waiting for a disk that is full |
//! | `save` | snapshots for backups, beside those that the log relies on |
//! | `found` | the state as the beginning of another cluster |
//! | `generation`, `recovery`, `load` | copies of the state on disk, and what is found of them at start |
//! | `dedupe` | the outcomes that are kept for changes sent again |
//! | `meta`, `hash`, `keys` | what the engine holds beside the keys, and how it is checked |
//!
//! Truth is the log and the last snapshot. Engine and change log are never synced while the node runs: what a
//! killed process loses is applied again from the log, what a power cut leaves is rebuilt.

mod applier;
mod apply;
mod build;
mod checks;
mod dedupe;
mod directory;
mod evaluate;
mod feed;
mod found;
mod generation;
mod hash;
mod install;
mod keys;
mod leases;
mod live;
mod load;
mod merge;
mod meta;
mod overlay;
mod page;
mod past_reader;
mod persist;
mod raft;
mod record_cache;
mod recovery;
mod room;
mod save;
mod snapshot_counts;
mod state;
mod stepped_view;
#[cfg(test)]
mod tests;
mod txn_reads;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

pub use build::SnapshotBuilder;
pub use directory::REPLICATION_FACTOR_DEFAULT;
pub use feed::{Changes, FEED_BYTES_MAX, FEED_RECORDS_MAX, RECENT_BYTES_MAX, RECENT_RECORDS_MAX};
pub use found::Founder;
pub use hash::{HASH_CHECKPOINT_ENTRIES, HASH_CHECKPOINT_MS, HASH_CHECKPOINTS_MAX};
pub use overlay::{OVERLAY_BYTES_MAX, OVERLAY_ENTRIES_MAX};
pub use page::{LIST_PAGE_BYTES_MAX, LIST_PAGE_ITEMS_MAX};
pub use persist::{BATCH_BYTES_MAX, BATCH_KEYS_MAX, BATCH_LINGER};
pub use record_cache::RECORD_CACHE_BYTES_MAX;
pub use recovery::VERIFY_ALWAYS_BYTES_MAX;
pub use snapshot_counts::SnapshotCounts;
pub use state::{State, StateHashView, StateStats};
pub use txn_reads::{TXN_ANSWER_BYTES_MAX, read_too_much, removed_too_much};

use self::{applier::Applier, directory::Directory, generation::StateDirs, live::Live, meta::Meta};
use crate::{
    StoreError,
    change_log::HistoryLimits,
    driver::Driver,
    fs::SharedFs,
    lease::LeaseObserver,
    opening::Opening,
    raft_types::StoredMembership,
    snapshot::{Footer, SnapshotDir, SnapshotFile},
};

const SNAPSHOTS: &str = "snapshots";
/// Where snapshots for backups lie while they are read.
const SAVES: &str = "saves";
/// Default bound of the pages that sled keeps in memory, in bytes.
pub const ENGINE_CACHE_BYTES_DEFAULT: u64 = 1024 * 1024 * 1024;

/// Where the current records lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// On disk.
    Sled {
        /// Bound of the pages kept in memory, in bytes.
        cache_bytes: u64,
    },
    /// In memory: rebuilt from the last snapshot and the log at each start.
    Memory,
    /// On disk, compared with the one in memory at every call.
    #[cfg(test)]
    Mirror {
        /// As in `Sled`.
        cache_bytes: u64,
    },
}

/// How a state machine is opened.
#[derive(Debug, Clone)]
pub struct StateOptions {
    /// Where the current records lie.
    pub engine: EngineKind,
    /// Entries with a smaller index are durable in this node's log. Only those are persisted; apply may be ahead of it.
    pub durable: watch::Receiver<u64>,
    /// How much history [`State::compaction_target`] leaves.
    pub history: HistoryLimits,
    /// The machine lost its power while the directory was in use: what was not synced is not trusted.
    pub power_lost: bool,
    /// Index of the last entry that the log has purged.
    pub log_purged: Option<u64>,
    /// What runs the writer, and everything else that blocks for long: threads of their own, or in simulation the
    /// caller's one.
    pub driver: Driver,
}

/// What apply, writer, readers and snapshot builders share.
///
/// Invariants:
/// - `live` is ahead of `persisted` by exactly the entries in its overlay;
/// - `persisted` is never ahead of the durable log: a committed entry may be applied before this node's own disk has it,
///   since a majority has it, but a state on disk that is ahead of its log could not go on after a crash;
/// - locks are taken in the order `persisted`, `live`, `Generation::changes`; `snapshots` is taken with no other held;
/// - the engine, the change log and `live.generation` change only under `persisted`.
#[derive(Debug)]
struct Shared {
    fs: SharedFs,
    dirs: StateDirs,
    driver: Driver,
    history_limits: HistoryLimits,
    live: RwLock<Live>,
    /// What the engine holds.
    persisted: Mutex<Meta>,
    snapshots: Mutex<SnapshotDir>,
    snapshots_dir: PathBuf,
    saves_dir: PathBuf,
    /// Entries with a smaller index are durable in this node's log.
    durable: watch::Receiver<u64>,
    snapshot: RwLock<Option<(SnapshotFile, Footer)>>,
    /// Cloned by whoever needs history below the compacted revision.
    history_hold: Arc<()>,
    /// History below the compacted revision is still to be dropped.
    history_due: AtomicBool,
    /// Wakes the writer.
    work: Notify,
    /// So many wait for entries to be persisted.
    in_a_hurry: AtomicUsize,
    stop: AtomicBool,
    /// What waits for room on the disk.
    waits_for_room: Mutex<Option<String>>,
    writer_ended: watch::Sender<bool>,
    applied_watch: watch::Sender<u64>,
    revision_watch: watch::Sender<u64>,
    directory_watch: watch::Sender<u64>,
    /// Directory and membership that `directory_watch` told of last.
    announced: Mutex<(Arc<Directory>, Arc<StoredMembership>)>,
    persisted_watch: watch::Sender<u64>,
    fatal: watch::Sender<Option<String>>,
    lease_observer: RwLock<Option<Arc<dyn LeaseObserver>>>,
    snapshot_counts: SnapshotCounts,
}

/// The state machine that openraft drives; [`State`] is for everyone else.
///
/// Dropped without [`State::close`] it leaves what a killed process leaves. The directory can be opened again once
/// every [`State`] is dropped as well.
#[derive(Debug)]
pub struct StateMachine {
    shared: Arc<Shared>,
    /// None once it is dropped.
    applier: Option<Applier>,
    writer: Option<thread::JoinHandle<()>>,
}

impl StateMachine {
    /// Opens the state in `data_dir/state` and the snapshots in `data_dir/snapshots`, or makes both. A state that is
    /// damaged, or older than the log begins, is rebuilt from the last snapshot; openraft applies the log after it.
    /// The name of `data_dir` itself must be durable. Blocks, and with [`Driver::Task`] must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError::Unrecoverable`] when state and snapshots are damaged or gone, and the log does not hold all
    /// entries; [`StoreError::FormatVersion`] for a snapshot of another version; [`StoreError::Io`],
    /// [`StoreError::Engine`] when a new state cannot be written.
    pub fn open(fs: SharedFs, data_dir: &Path, options: StateOptions) -> Result<Self, StoreError> {
        Self::open_watched(fs, data_dir, options, &Opening::default())
    }

    /// As [`StateMachine::open`]; `progress` shows how far it is.
    ///
    /// # Errors
    /// Those of [`StateMachine::open`].
    pub fn open_watched(
        fs: SharedFs,
        data_dir: &Path,
        options: StateOptions,
        progress: &Opening,
    ) -> Result<Self, StoreError> {
        progress.begin("opening the state", "keys", None);
        let dirs = StateDirs::open(&fs, data_dir, options.engine)?.showing(progress);
        let snapshots = SnapshotDir::open(&fs, &data_dir.join(SNAPSHOTS))?;
        let saves_dir = data_dir.join(SAVES);
        save::clear(&fs, &saves_dir)?;
        // The names of both directories: what is durable in them is lost without.
        fs.sync_dir(data_dir).map_err(|e| StoreError::io(format!("sync {}", data_dir.display()), e))?;
        let live = recovery::recover(&dirs, &snapshots, &options)?;
        let meta = live.meta.clone();
        let shared = Arc::new(Shared {
            fs,
            dirs,
            driver: options.driver,
            history_limits: options.history,
            snapshot: RwLock::new(snapshots.current()),
            snapshots_dir: snapshots.path().to_path_buf(),
            saves_dir,
            durable: options.durable,
            snapshots: Mutex::new(snapshots),
            history_hold: Arc::new(()),
            history_due: AtomicBool::new(live.generation.history.first_revision() <= meta.compacted_revision),
            work: Notify::new(),
            in_a_hurry: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            waits_for_room: Mutex::default(),
            writer_ended: watch::Sender::new(false),
            applied_watch: watch::Sender::new(meta.next_index()),
            revision_watch: watch::Sender::new(meta.revision),
            directory_watch: watch::Sender::new(0),
            announced: Mutex::new((meta.directory.clone(), meta.membership.clone())),
            persisted_watch: watch::Sender::new(meta.next_index()),
            fatal: watch::Sender::new(None),
            lease_observer: RwLock::default(),
            snapshot_counts: SnapshotCounts::default(),
            live: RwLock::new(live),
            persisted: Mutex::new(meta),
        });
        let writer = start_writer(&shared)?;
        let applier = Some(Applier::start(&shared)?);
        Ok(Self { shared, applier, writer })
    }

    fn applier(&mut self) -> &mut Applier {
        self.applier.as_mut().expect("it is dropped with the state machine")
    }

    /// A handle for reads.
    pub fn state(&self) -> State {
        State::new(self.shared.clone())
    }
}

fn start_writer(shared: &Arc<Shared>) -> Result<Option<thread::JoinHandle<()>>, StoreError> {
    let writer = shared.clone().write_behind();
    match shared.driver {
        Driver::Task | Driver::SlowTask(_) => {
            tokio::spawn(writer);
            Ok(None)
        }
        Driver::Thread => {
            let at = |e: io::Error| StoreError::io("start the state's writer", e);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(at)?;
            let thread = thread::Builder::new().name("state-writer".to_string());
            thread.spawn(move || runtime.block_on(writer)).map(Some).map_err(at)
        }
    }
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        self.shared.stop_writer();
        self.applier = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the state's writer panicked");
        }
    }
}

impl Shared {
    fn stop_writer(&self) {
        self.stop.store(true, Ordering::Release);
        self.work.notify_one();
    }

    /// Reports `error` to everyone, once, and lets the next start rebuild a state that is damaged.
    fn fail(&self, error: &StoreError) {
        let first = self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                *fatal = Some(error.to_string());
            }
            first
        });
        if !first {
            return;
        }
        tracing::error!(%error, "the state machine stops");
        self.stop_writer();
        let damaged = match error {
            StoreError::Engine(_) | StoreError::Corrupt { .. } | StoreError::Decode { .. } => true,
            StoreError::Io { .. }
            | StoreError::NoRoom { .. }
            | StoreError::FormatVersion { .. }
            | StoreError::Locked { .. }
            | StoreError::Foreign { .. }
            | StoreError::NotEmpty { .. }
            | StoreError::Unrecoverable { .. }
            | StoreError::Compacted { .. }
            | StoreError::FutureRevision { .. } => false,
        };
        if damaged && let Err(error) = self.dirs.clear_current() {
            tracing::error!(%error, "the damaged state still counts");
        }
    }

    /// Reports an error that makes the state unusable; answers about a request pass.
    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && !matches!(error, StoreError::Compacted { .. } | StoreError::FutureRevision { .. })
        {
            self.fail(error);
        }
        result
    }

    /// The error of whoever comes after the end.
    fn closed(&self) -> StoreError {
        let reason = self.fatal.borrow().clone().unwrap_or_else(|| "it is closed".to_string());
        StoreError::io("state machine", io::Error::new(io::ErrorKind::BrokenPipe, reason))
    }

    /// Runs what blocks for long where it delays nobody.
    async fn run_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.driver {
            Driver::Task | Driver::SlowTask(_) => work(self),
            Driver::Thread => {
                let shared = self.clone();
                match tokio::task::spawn_blocking(move || work(&shared)).await {
                    Ok(result) => result,
                    Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                    Err(_) => Err(self.closed()),
                }
            }
        }
    }
}
