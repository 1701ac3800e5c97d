//! Building and installing a snapshot takes the same memory however much the state holds.
//!
//! What is measured is the process. So the test has its binary to itself, and runs it once more for the building: memory
//! that was freed before would hide what is taken later.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream;
use hexkv_store::{
    LogId, Proposal, TypeConfig,
    change_log::HistoryLimits,
    command::{self, Txn, TxnOp},
    driver::Driver,
    fs::{RealFs, SharedFs},
    raft_types::Entry,
    snapshot::{SnapshotFile, SnapshotReader, SnapshotReceiver},
    state_machine::{EngineKind, State, StateMachine, StateOptions},
};
use openraft::{
    EntryPayload, RaftSnapshotBuilder, storage::RaftStateMachine, type_config::alias::LeaderIdOf, vote::RaftLeaderIdExt,
};
use tokio::sync::watch;

const MIB: usize = 1024 * 1024;
/// Size of each value, in bytes.
const VALUE_BYTES: usize = 4 * 1024;
/// Keys of the state.
const KEYS: u64 = 64 * 1024;
/// Memory that building may take beyond what the state in memory takes, in bytes: a tenth of the values.
const BUILD_BYTES_MAX: usize = 24 * MIB;
/// Memory that installing may take, the state machine itself included, in bytes: less than the values
/// alone. What the engine on disk takes of it depends on how fast the disk is.
const INSTALL_BYTES_MAX: usize = 192 * MIB;
/// Pages that the engine on disk keeps in memory, in bytes.
const CACHE_BYTES: u64 = 4 * MIB as u64;
/// Entries that are applied before they have to be persisted.
const ROUND_ENTRIES: u64 = 512;
/// How long the writer may take to persist a round.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one part of a transfer.
const CHUNK_BYTES: usize = MIB;
/// Where the second process builds its snapshot.
const BUILD_IN: &str = "HEXKV_TEST_BUILD_IN";

fn open(fs: &SharedFs, dir: &Path, engine: EngineKind) -> StateMachine {
    let options = StateOptions {
        engine,
        durable: watch::Sender::new(u64::MAX).subscribe(),
        history: HistoryLimits::default(),
        power_lost: false,
        log_purged: None,
        driver: Driver::Thread,
    };
    StateMachine::open(fs.clone(), dir, options).unwrap()
}

/// Puts a value of its own under a key of its own.
fn entry(index: u64) -> Entry {
    let seed = index.to_le_bytes();
    let value: Vec<u8> = (0..VALUE_BYTES).map(|at| seed[at % 2] ^ (at >> (at % 13)) as u8).collect();
    let put = TxnOp::Put {
        key: format!("key{index:08}").into_bytes().into(),
        value: value.into(),
        content_type: None,
        lease: 0,
        prev: false,
    };
    let proposal =
        Proposal { time_ms: index, uptime_ms: index, ..Proposal::new(&command::Command::Txn(Txn::unconditional(put))) };
    let log_id = LogId::new(LeaderIdOf::<TypeConfig>::new_committed(1, 1), index);
    Entry { log_id, payload: EntryPayload::Normal(proposal) }
}

/// Applies all entries, a few at a time: what is applied and not persisted is held in memory.
async fn fill(machine: &mut StateMachine, state: &State) {
    for first in (1..=KEYS).step_by(ROUND_ENTRIES as usize) {
        let last = KEYS.min(first + ROUND_ENTRIES - 1);
        machine.apply(stream::iter((first..=last).map(|index| Ok((entry(index), None))))).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        while state.stats().unwrap().persisted_index != Some(last) {
            assert!(Instant::now() < deadline, "entry {last} is not persisted");
            tokio::task::yield_now().await;
        }
    }
}

/// Carries `file` to the directory of another node, as nodes do.
fn transfer(fs: &SharedFs, file: &SnapshotFile, dir: &Path) -> SnapshotFile {
    let mut receiver = SnapshotReceiver::open(fs, &dir.join("snapshots"), file.id(), file.len_bytes()).unwrap();
    while receiver.offset() < file.len_bytes() {
        let chunk = file.read_chunk(receiver.offset(), CHUNK_BYTES).unwrap();
        receiver.write(receiver.offset(), &chunk).unwrap();
    }
    receiver.finish().unwrap()
}

/// A line of the kernel's account of this process, in bytes.
fn told(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// What the process held at most until now must not be more than `bytes_max` above `before`.
fn assert_gained_little(before: usize, bytes_max: usize, what: &str) {
    let gained = told("VmHWM:").saturating_sub(before);
    assert!(gained <= bytes_max, "{what} took {} MiB", gained / MIB);
}

/// Builds a snapshot in `dir`. The engine is the one in memory: what the other one keeps of the pages that are read is
/// its own affair.
async fn build(fs: &SharedFs, dir: &Path) {
    let mut machine = open(fs, dir, EngineKind::Memory);
    let state = machine.state();
    fill(&mut machine, &state).await;
    // From here on the kernel notes anew how much the process held at most.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = told("VmRSS:");
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_gained_little(before, BUILD_BYTES_MAX, "building");
}

fn build_in_another_process(dir: &Path) {
    let mut again = Command::new(std::env::current_exe().unwrap());
    let built = again.arg(NAME).arg("--exact").env(BUILD_IN, dir).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stdout));
}

const NAME: &str = "a_snapshot_is_built_and_installed_in_little_memory_however_much_it_holds";

#[tokio::test]
async fn a_snapshot_is_built_and_installed_in_little_memory_however_much_it_holds() {
    let fs: SharedFs = Arc::new(RealFs);
    if let Some(dir) = std::env::var_os(BUILD_IN) {
        return build(&fs, Path::new(&dir)).await;
    }
    let before = told("VmRSS:");
    let (home, other_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build_in_another_process(home.path());
    let built: Vec<_> = fs.list(&home.path().join("snapshots")).unwrap();
    assert_eq!(built.len(), 1, "{built:?}");
    let reader = SnapshotReader::open_path(&fs, &built[0]).unwrap();
    assert!(reader.file().len_bytes() > 2 * INSTALL_BYTES_MAX as u64, "there is much to hold");
    let received = transfer(&fs, reader.file(), other_home.path());
    let mut machine = open(&fs, other_home.path(), EngineKind::Sled { cache_bytes: CACHE_BYTES });
    machine.install_snapshot(&reader.footer().meta, received).await.unwrap();
    assert_gained_little(before, INSTALL_BYTES_MAX, "installing");
    assert_eq!((machine.state().revision(), machine.state().hash().hash), (KEYS, reader.footer().state_hash));
}
