//! One life of a node in one cluster: its Raft, its log and its state. Joining or leaving a cluster ends one
//! core and starts another.

use std::{sync::Arc, time::Duration};

use hexkv_raft_net::{
    Network,
    rpc::{PeerRequest, PeerResponse},
    transport::AnyTransport,
};
use hexkv_store::{
    NodeId, Proposal, StoreError, TypeConfig,
    change_log::HistoryLimits,
    log::{LogOptions, LogStore},
    mutants::{self, Mutant},
    outcome::Outcome,
    state_machine::{EngineKind, State, StateMachine, StateOptions},
};
use openraft::{
    ReadPolicy, ServerState, SnapshotPolicy,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
    metrics::RaftServerMetrics,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{self, Config},
    environment::Environment,
    error::Error,
    leases::Lessor,
    reads::ReadIndex,
};

/// openraft over our types.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// How often it is looked at whether a snapshot is due.
const SNAPSHOT_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Most entries in one append to a follower; bytes are bounded by the log reader.
const APPEND_ENTRIES_MAX: u64 = 1024;
/// A follower asks the leader for a read index at most this long, then asks anew (the leader may have changed).
const READ_INDEX_TIMEOUT: Duration = Duration::from_millis(1500);

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

/// Raft, log and state of one life in one cluster.
pub struct Core {
    /// This node's id in this life.
    pub id: NodeId,
    /// Consensus.
    pub raft: Raft,
    /// The write-ahead log.
    pub log: LogStore,
    /// Reads of the applied state.
    pub state: State,
    /// Coalesced confirmation of linearizable reads.
    pub reads: ReadIndex,
    /// Deadlines of leases, while this node leads.
    pub lessor: Arc<Lessor>,
    /// Ends the tasks of this core.
    pub cancel: CancellationToken,
    /// The tasks of this core.
    pub tasks: TaskTracker,
    environment: Environment,
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
    /// Opens log and state and starts Raft.
    pub async fn start(
        config: &Config,
        place: &CorePlace,
        network: &Network<AnyTransport>,
    ) -> Result<Arc<Self>, StartError> {
        let log = LogStore::open(
            place.environment.fs.clone(),
            &place.data_dir.join("wal"),
            LogOptions {
                segment_bytes: config.wal_segment_bytes,
                driver: place.environment.driver,
                ..LogOptions::default()
            },
        )?;
        let options = StateOptions {
            engine: match config.engine {
                config::EngineKind::Sled => EngineKind::Sled { cache_bytes: config.sled_cache_bytes },
                config::EngineKind::Memory => EngineKind::Memory,
            },
            durable: log.durable(),
            history: HistoryLimits {
                revisions_min: config.history_revisions,
                age_ms_min: config.history_age.as_millis() as u64,
                bytes_max: config.history_bytes,
            },
            power_lost: place.power_lost,
            log_purged: log.stats().first_index.checked_sub(1),
            driver: place.environment.driver,
        };
        let machine = StateMachine::open(place.environment.fs.clone(), &place.data_dir, options)?;
        let state = machine.state();
        let lessor = Arc::new(Lessor::default());
        state.observe_leases(lessor.clone());
        let raft =
            Raft::new(place.node_id, Arc::new(raft_config(config)?), network.factory(), log.clone(), machine).await?;
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (r, n) = (raft.clone(), network.clone());
        let reads = ReadIndex::start(
            Arc::new(move || {
                let (raft, network) = (r.clone(), n.clone());
                Box::pin(async move { read_index_round(&raft, &network).await })
            }),
            cancel.clone(),
            &tasks,
        );
        let environment = place.environment.clone();
        let core = Arc::new(Self { id: place.node_id, raft, log, state, reads, lessor, cancel, tasks, environment });
        core.tasks.spawn(snapshot_when_due(
            core.raft.clone(),
            core.log.clone(),
            core.state.clone(),
            config.snapshot_log_bytes_min,
            core.cancel.clone(),
        ));
        Ok(core)
    }

    /// The leader that this node's Raft knows.
    pub fn leader(&self) -> Option<NodeId> {
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
        leads.then_some(metrics.vote.leader_id.term)
    }

    /// Proposes on this node, which must lead. Stamps the leader's time.
    pub async fn write(&self, mut proposal: Proposal, timeout: Duration) -> Result<Outcome, WriteError> {
        proposal.time_ms = self.environment.unix_time_ms();
        match tokio::time::timeout(timeout, self.raft.client_write(proposal)).await {
            Ok(Ok(answer)) => Ok(answer.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(f)))) => {
                Err(WriteError::NotLeader(f.leader_id))
            }
            Ok(Err(RaftError::APIError(e @ ClientWriteError::LogEntryDiscarded(_)))) => {
                Err(WriteError::Unknown(e.to_string()))
            }
            Ok(Err(RaftError::APIError(
                e @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
            ))) => unreachable!("a plain proposal is no membership change: {e}"),
            Ok(Err(RaftError::Fatal(e))) => Err(WriteError::Unknown(format!("this node stops: {e}"))),
            Err(_) => Err(WriteError::Unknown(format!("not committed within {timeout:?}"))),
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

/// The leader that Raft knows.
pub(crate) fn known_leader(metrics: &RaftServerMetrics<TypeConfig>) -> Option<NodeId> {
    credible_leader(metrics.id, metrics.state, metrics.current_leader)
}

/// A node that led before it was restarted still has the vote by which it led, and would name itself.
fn credible_leader(me: NodeId, state: ServerState, named: Option<NodeId>) -> Option<NodeId> {
    named.filter(|id| *id != me || state == ServerState::Leader)
}

async fn read_index_round(raft: &Raft, network: &Network<AnyTransport>) -> Result<u64, Error> {
    let leader = known_leader(&raft.server_metrics().borrow_watched());
    if leader == Some(*raft.node_id()) {
        if mutants::active(Mutant::ReadIndexWithoutQuorum) {
            return committed_next_index(raft, true);
        }
        return match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(_) if mutants::active(Mutant::ReadIndexBeforeOwnTerm) => committed_next_index(raft, false),
            Ok(linearizer) => Ok(linearizer.read_log_id().index() + 1),
            Err(RaftError::APIError(
                LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_),
            )) => Err(Error::no_leader()),
            Err(RaftError::Fatal(e)) => {
                Err(Error::new(hexkv_client::api::Code::Unavailable, format!("this node stops: {e}")))
            }
        };
    }
    let Some(leader) = leader else { return Err(Error::no_leader()) };
    let Some(address) = network.address_book().get(leader) else { return Err(Error::no_leader()) };
    match network.request(leader, &address, PeerRequest::ReadIndex, READ_INDEX_TIMEOUT).await {
        Ok(PeerResponse::ReadIndex(index)) => Ok(index),
        Ok(PeerResponse::Error(e)) => Err(e.into()),
        Ok(other) => Err(Error::new(hexkv_client::api::Code::Internal, format!("unexpected answer {other:?}"))),
        Err(e) => {
            tracing::debug!(error = %e, "the leader did not answer a read index request");
            Err(Error::no_leader())
        }
    }
}

/// The read index that a mutant gives: this node's bare commit index, of its own term or of any.
fn committed_next_index(raft: &Raft, of_own_term: bool) -> Result<u64, Error> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let committed = metrics.local_committed.filter(|id| !of_own_term || id.leader_id.term == metrics.current_term);
    committed.map(|id| id.index + 1).ok_or_else(Error::no_leader)
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
    use super::*;

    #[test]
    fn a_node_that_led_before_its_restart_is_not_its_own_leader() {
        assert_eq!(credible_leader(1, ServerState::Learner, Some(1)), None);
        assert_eq!(credible_leader(1, ServerState::Leader, Some(1)), Some(1));
        assert_eq!(credible_leader(1, ServerState::Follower, Some(2)), Some(2));
    }
}
