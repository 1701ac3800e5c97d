//! One life of a node in one cluster: its Raft, its log and its state. Joining or leaving a cluster ends one
//! core and starts another.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hexkv_raft_net::{Network, rpc::Explanation, transport::AnyTransport};
use hexkv_store::{
    LogId, NodeId, Proposal, StoreError, TypeConfig,
    log::LogStore,
    mutants::{self, Mutant},
    opening::Opening,
    outcome::Outcome,
    raft_types::Vote,
    snapshot::SnapshotFile,
    state_machine::{State, StateMachine, StateOptions},
};
use openraft::{
    RaftLogReader, RaftMetrics, ServerState, SnapshotPolicy, async_runtime::WatchReceiver, errors::ClientWriteError,
    metrics::RaftServerMetrics, type_config::alias::WatchReceiverOf,
};
use parking_lot::RwLock;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    environment::Environment,
    leases::Lessor,
    progress::LogProgress,
    proposer::Proposer,
    read_rounds::{lease_round, quorum_round},
    reads::{ReadIndex, Round},
    trace,
    transfers::Transfers,
};

/// openraft over our types.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Most snapshots that are saved from a node at a time; further ones wait. Each takes the disk of a snapshot while it is read.
pub const SAVES_MAX: usize = 2;
/// How often it is looked at whether a snapshot is due.
const SNAPSHOT_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Most entries in one append to a follower; bytes are bounded by the log reader.
const APPEND_ENTRIES_MAX: u64 = 1024;

/// What a core needs to know of its data directory.
#[derive(Debug, Clone)]
pub struct CorePlace {
    /// Files, clock and threads.
    pub environment: Environment,
    /// Data directory.
    pub data_dir: std::path::PathBuf,
    /// This node's id in this life.
    pub node_id: NodeId,
    /// Whether un-synced writes may have been lost since the last run.
    pub power_lost: bool,
}

/// A snapshot that is read by a client. Its file has no name: it goes with this.
#[derive(Debug)]
pub struct Saved {
    /// The file.
    pub file: SnapshotFile,
    /// One of [`SAVES_MAX`].
    pub room: OwnedSemaphorePermit,
}

/// Raft, log and state of one life in one cluster.
pub struct Core {
    /// This node's id in this life.
    pub id: NodeId,
    /// Consensus.
    pub raft: Raft,
    /// The write-ahead log.
    pub log: LogStore,
    proposer: Proposer,
    /// Reads of the applied state.
    pub state: State,
    /// Coalesced confirmation of linearizable reads.
    pub reads: ReadIndex,
    /// How long entries wait.
    pub progress: LogProgress,
    /// Deadlines of leases, while this node leads.
    pub lessor: Arc<Lessor>,
    /// Ends the tasks of this core.
    pub cancel: CancellationToken,
    /// The tasks of this core.
    pub tasks: TaskTracker,
    environment: Environment,
    /// When this life of the core began.
    began: Instant,
    /// Room for snapshots that are being saved.
    pub saves: Arc<Semaphore>,
    /// Those that their clients read.
    pub saving: Transfers<Saved>,
    /// What the reconciler sees, waits for and did; of worth on the leader only.
    pub explanation: RwLock<Explanation>,
    /// Why the state is known from the start to differ from the log, if so.
    pub divergence: Option<String>,
    /// Until then a lease may run that this node granted in its last run and does not remember.
    votes_from: Option<Instant>,
}

/// Why a core did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Log or state could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The Raft settings contradict each other.
    #[error("Raft settings: {0}; see HEARTBEAT_INTERVAL, ELECTION_TIMEOUT_MIN and ELECTION_TIMEOUT_MAX")]
    Settings(#[from] openraft::ConfigError),
    /// Raft could not start from what log and state hold.
    #[error("Raft did not start: {0}")]
    Raft(#[from] openraft::errors::Fatal<TypeConfig>),
}

/// Why a proposal did not succeed on this node.
#[derive(Debug, Clone)]
pub enum WriteError {
    /// This node does not lead; nothing was done.
    NotLeader(Option<NodeId>),
    /// The change may or may not happen.
    Unknown(String),
}

impl Core {
    /// Opens log and state and starts Raft. `progress` shows how far it is.
    pub async fn start(
        config: &Config,
        place: &CorePlace,
        network: &Network<AnyTransport>,
        progress: &Opening,
    ) -> Result<Arc<Self>, StartError> {
        let (log, machine) = open_data(config, place, progress).await?;
        let state = machine.state();
        log.note_applied(state.applied());
        let divergence = entry_differs(&log, state.applied()).await?;
        let lessor = Arc::new(Lessor::default());
        state.observe_leases(lessor.clone());
        let votes_from = votes_from(config.election_timeout_max, place.node_id, log.vote());
        let raft_config = openraft::Config { enable_elect: votes_from.is_none(), ..raft_config(config)? };
        let committed = log.ends().1.map_or(0, |id| id.index);
        progress.begin("applying the log", "entries", committed.checked_sub(state.applied().map_or(0, |id| id.index)));
        let raft = tokio::select! {
            raft = Raft::new(place.node_id, Arc::new(raft_config), network.factory(), log.clone(), machine) => raft?,
            never = show_applied(&state, progress) => match never {},
        };
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some(from) = votes_from {
            tasks.spawn(stand_from(from, raft.clone(), cancel.clone()));
        }
        let (quorum, lease) = rounds(&raft, network, config.election_timeout_max);
        let reads = ReadIndex::start(quorum, lease, &cancel, &tasks);
        let proposer = Proposer::start(raft.clone(), &cancel, &tasks);
        let environment = place.environment.clone();
        let core = Arc::new(Self {
            id: place.node_id,
            raft,
            log,
            proposer,
            state,
            reads,
            progress: LogProgress::default(),
            lessor,
            cancel,
            tasks,
            environment,
            began: Instant::now(),
            saves: Arc::new(Semaphore::new(SAVES_MAX)),
            saving: Transfers::default(),
            explanation: RwLock::default(),
            divergence,
            votes_from,
        });
        core.tasks.spawn(snapshot_when_due(
            core.raft.clone(),
            core.log.clone(),
            core.state.clone(),
            config.snapshot_log_bytes_min,
            core.cancel.clone(),
        ));
        Ok(core)
    }

    /// Whether this node may vote by now for a candidate that no leader hands over to.
    pub fn answers_votes(&self) -> bool {
        self.votes_from.is_none_or(|from| Instant::now() >= from)
    }

    /// The leader that this node's Raft knows; None while it waits for its disk, since it knows of no later one then.
    pub fn leader(&self) -> Option<NodeId> {
        if self.progress.blocked() {
            return None;
        }
        known_leader(&self.raft.server_metrics().borrow_watched())
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.id)
    }

    /// The term in which this node leads, if it does.
    pub fn office(&self) -> Option<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state == ServerState::Leader && metrics.vote.leader_id.node_id == self.id;
        let leads = leads && !self.progress.blocked();
        leads.then_some(metrics.vote.leader_id.term)
    }

    /// For how long this life of the core has run.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Wall clock of this node, in milliseconds since the Unix epoch.
    pub fn unix_time_ms(&self) -> u64 {
        self.environment.unix_time_ms()
    }

    /// Proposes on this node, which must lead. Stamps the leader's time.
    pub async fn write(&self, mut proposal: Proposal, timeout: Duration) -> Result<Outcome, WriteError> {
        proposal.time_ms = self.unix_time_ms();
        proposal.uptime_ms = self.began.elapsed().as_millis() as u64;
        match tokio::time::timeout(timeout, self.proposer.propose(proposal)).await {
            Ok(Some(Ok(answer))) => {
                trace::applied_here(&answer.log_id, &answer.data);
                Ok(answer.data)
            }
            Ok(Some(Err(ClientWriteError::ForwardToLeader(f)))) => Err(WriteError::NotLeader(f.leader_id)),
            Ok(Some(Err(e @ ClientWriteError::LogEntryDiscarded(_)))) => Err(WriteError::Unknown(e.to_string())),
            Ok(Some(Err(
                e @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
            ))) => unreachable!("a plain proposal is no membership change: {e}"),
            Ok(None) => Err(WriteError::Unknown("this node stops".to_string())),
            Err(_) => Err(WriteError::Unknown(format!("not committed within {timeout:?}"))),
        }
    }

    /// Completes when Raft, the log or the state can go on no longer, with the reason; None when this core was to end.
    pub fn failed(&self) -> impl Future<Output = Option<String>> + Send + use<> {
        let (mut log, mut state) = (self.log.fatal(), self.state.fatal());
        let (cancel, mut raft) = (self.cancel.clone(), self.raft.metrics());
        async move {
            let why = tokio::select! {
                biased;
                () = cancel.cancelled() => return None,
                why = raft_ended(&mut raft) => Some(why),
                Ok(why) = log.wait_for(Option::is_some) => why.clone(),
                Ok(why) = state.wait_for(Option::is_some) => why.clone(),
            };
            // It may have been asked to end between the first branch above and this one: then it did so on purpose.
            why.filter(|_| !cancel.is_cancelled())
        }
    }

    /// Ends Raft, then persists the state, then the log: in this order nothing is appended behind a closed log.
    /// Answers whether all of it is on disk and in order.
    pub async fn stop(&self) -> bool {
        let mut clean = true;
        self.cancel.cancel();
        if let Err(e) = self.raft.shutdown().await {
            tracing::error!(error = %e, "Raft did not end cleanly");
        }
        self.tasks.close();
        self.tasks.wait().await;
        if let Err(e) = self.state.close().await {
            clean = false;
            tracing::error!(error = %e, "the state was not persisted; it is rebuilt at the next start");
        }
        if let Err(e) = self.log.close().await {
            clean = false;
            tracing::error!(error = %e, "the log did not close cleanly; acknowledged entries are on disk all the same");
        }
        clean
    }
}

/// Whether the log holds another entry where the last applied one was: it was cut below that, and the node stopped before it was
/// rebuilt.
async fn entry_differs(log: &LogStore, applied: Option<LogId>) -> Result<Option<String>, StoreError> {
    let Some(applied) = applied else { return Ok(None) };
    let read = log.clone().try_get_log_entries(applied.index..=applied.index).await;
    let entries = read.map_err(|e| StoreError::io(format!("read entry {}", applied.index), e))?;
    let other = entries.into_iter().map(|entry| entry.log_id).find(|held| *held != applied);
    Ok(other.map(|held| format!("entry {applied} was applied, and the log holds {held} in its place")))
}

/// Opens log and state, in a thread of its own: it takes long where they are large.
async fn open_data(
    config: &Config,
    place: &CorePlace,
    progress: &Opening,
) -> Result<(LogStore, StateMachine), StartError> {
    let CorePlace { environment, data_dir, power_lost, .. } = place.clone();
    let (driver, progress) = (environment.driver, progress.clone());
    let (log_options, engine, history) = (config.log_options(driver), config.state_engine(), config.history_limits());
    let opening = driver.run(move || {
        let log = LogStore::open_watched(environment.fs.clone(), &data_dir.join("wal"), log_options, &progress)?;
        let options = StateOptions {
            engine,
            durable: log.durable(),
            history,
            power_lost,
            log_purged: log.stats().first_index.checked_sub(1),
            driver,
        };
        let machine = StateMachine::open_watched(environment.fs.clone(), &data_dir, options, &progress)?;
        Ok::<_, StoreError>((log, machine))
    });
    match opening.await {
        Ok(opened) => Ok(opened?),
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(StoreError::io("open the data", std::io::Error::other(e)).into()),
    }
}

/// Shows how many entries of the log were applied, for as long as it is polled.
async fn show_applied(state: &State, progress: &Opening) -> Infallible {
    let mut applied = state.applied_watch();
    let mut shown = *applied.borrow_and_update();
    while applied.changed().await.is_ok() {
        let next = *applied.borrow_and_update();
        progress.advance(next.saturating_sub(shown));
        shown = next;
    }
    std::future::pending().await
}

/// Waits until openraft's core ended, and says why.
async fn raft_ended(metrics: &mut WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>) -> String {
    loop {
        if let Err(e) = &metrics.borrow_watched().running_state {
            return format!("Raft ended: {e}");
        }
        if metrics.changed().await.is_err() {
            return "Raft ended".into();
        }
    }
}

fn raft_config(config: &Config) -> Result<openraft::Config, openraft::ConfigError> {
    openraft::Config {
        cluster_name: "hexkv".into(),
        heartbeat_interval: config.heartbeat_interval.as_millis() as u64,
        election_timeout_min: config.election_timeout_min.as_millis() as u64,
        election_timeout_max: config.election_timeout_max.as_millis() as u64,
        enable_pre_vote: Some(true),
        // A leader that restarts may have lost un-synced state; it must win an election like anyone else.
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(2 * config.election_timeout_max.as_millis() as u64),
        max_payload_entries: APPEND_ENTRIES_MAX,
        // Snapshots are due by bytes, which only we can count.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.log_entries_kept,
        install_snapshot_timeout: 60_000,
        ..openraft::Config::default()
    }
    .validate()
}

/// When a node that starts with the stored `vote` may vote and stand; None = now. openraft forgets over a restart that it
/// follows a leader, which may be reading under a lease of this node's. Whoever has no vote, or voted for itself last,
/// follows nobody.
fn votes_from(lease: Duration, me: NodeId, vote: Option<Vote>) -> Option<Instant> {
    let followed = vote.is_some_and(|vote| vote.leader_id.node_id != me);
    let withholds = followed && !mutants::active(Mutant::VotesAnsweredRightAfterBoot);
    withholds.then(|| Instant::now() + lease)
}

/// Lets this node stand for election from `from` on.
async fn stand_from(from: Instant, raft: Raft, cancel: CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep_until(from) => raft.runtime_config().elect(true),
        () = cancel.cancelled() => {}
    }
}

/// The rounds that confirm reads: by a quorum, and by the lease that voters give for `granted`.
fn rounds(raft: &Raft, network: &Network<AnyTransport>, granted: Duration) -> (Round, Round) {
    let (r, n) = (raft.clone(), network.clone());
    let quorum: Round = Arc::new(move || {
        let (raft, network) = (r.clone(), n.clone());
        Box::pin(async move { quorum_round(&raft, &network).await })
    });
    let (r, n) = (raft.clone(), network.clone());
    let lease: Round = Arc::new(move || {
        let (raft, network) = (r.clone(), n.clone());
        Box::pin(async move { lease_round(&raft, &network, granted).await })
    });
    (quorum, lease)
}

/// The leader that Raft knows.
pub(crate) fn known_leader(metrics: &RaftServerMetrics<TypeConfig>) -> Option<NodeId> {
    credible_leader(metrics.id, metrics.state, metrics.current_leader)
}

/// A node that led before it was restarted still has the vote by which it led, and would name itself.
fn credible_leader(me: NodeId, state: ServerState, named: Option<NodeId>) -> Option<NodeId> {
    named.filter(|id| *id != me || state == ServerState::Leader)
}

/// Triggers a snapshot whenever the log has grown by more than the last snapshot's size (DESIGN: at most
/// twice the writing), and at least by `log_bytes_min`.
async fn snapshot_when_due(raft: Raft, log: LogStore, state: State, log_bytes_min: u64, cancel: CancellationToken) {
    let mut bytes_at_last = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(SNAPSHOT_CHECK_INTERVAL) => {}
            () = cancel.cancelled() => return,
        }
        let appended = log.stats().appended_bytes;
        let grown = appended.saturating_sub(bytes_at_last);
        if grown < log_bytes_min.max(state.snapshot_bytes()) {
            continue;
        }
        bytes_at_last = appended;
        tracing::info!(log_bytes = grown, "snapshot is due");
        if let Err(e) = raft.trigger().snapshot().await {
            tracing::warn!(error = %e, "a snapshot could not be started");
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::{
        type_config::alias::LeaderIdOf,
        vote::{RaftLeaderId, RaftVote},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_restarted_node_that_followed_another_votes_after_the_longest_election_timeout() {
        let lease = Duration::from_millis(400);
        let vote = |node| Some(Vote::from_leader_id(LeaderIdOf::<TypeConfig>::new(4, node), true));
        assert_eq!(votes_from(lease, 1, None), None, "fresh");
        assert_eq!(votes_from(lease, 1, vote(1)), None, "it led, or stood itself");
        assert_eq!(votes_from(lease, 1, vote(2)), Some(Instant::now() + lease));
    }

    #[test]
    fn a_node_that_led_before_its_restart_is_not_its_own_leader() {
        assert_eq!(credible_leader(1, ServerState::Learner, Some(1)), None);
        assert_eq!(credible_leader(1, ServerState::Leader, Some(1)), Some(1));
        assert_eq!(credible_leader(1, ServerState::Follower, Some(2)), Some(2));
    }
}
