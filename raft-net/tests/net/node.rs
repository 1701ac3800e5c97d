//! One node of a test: a real listener, a real network, and Raft in memory where the test wants it.

use std::{
    collections::BTreeSet,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use hexkv_raft_net::{
    Cookie, LocalIdentity, Network, PeerIdentity, Service,
    rpc::{ClusterInfo, PeerRequest, PeerResponse},
    serve,
    transport::{Listener, TcpTransport, Transport},
};
use hexkv_store::{
    NodeAddress, StoreError, TypeConfig,
    driver::Driver,
    entropy,
    fs::{RealFs, SharedFs},
    raft_types::{LogId, SnapshotMeta},
    snapshot::SnapshotFile,
};
use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::memory::{MemoryLog, MemoryState};

/// The cluster of the tests.
pub const CLUSTER: u64 = 0xc1;
/// Nothing in a test takes this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

type TestRaft = Raft<TypeConfig, MemoryState>;

/// Answers peers: [`PeerRequest::ClusterInfo`] at once, [`PeerRequest::ReadIndex`] when the test says so,
/// [`PeerRequest::StateHash`] never.
pub struct TestService {
    pub identity: Mutex<LocalIdentity>,
    pub raft: Mutex<Option<TestRaft>>,
    pub dir: PathBuf,
    /// Whether candidates get answers.
    pub votes: AtomicBool,
    pub asked: AtomicUsize,
    /// Nodes that no one vouches for.
    pub strangers: Mutex<BTreeSet<u64>>,
    /// Whether every snapshot that arrives counts as damaged.
    pub refuse_snapshots: AtomicBool,
    /// Snapshots that arrived.
    pub snapshots: AtomicUsize,
    pub log: MemoryLog,
    pub release: Arc<Notify>,
}

impl Service for TestService {
    type StateMachine = MemoryState;

    fn local(&self) -> LocalIdentity {
        self.identity.lock().clone()
    }

    fn raft(&self) -> Option<TestRaft> {
        self.raft.lock().clone()
    }

    fn answers_votes(&self) -> bool {
        self.votes.load(SeqCst)
    }

    fn is_member(&self, peer: &PeerIdentity) -> bool {
        !self.strangers.lock().contains(&peer.node_id)
    }

    fn vouched(&self, peer: &PeerIdentity) -> bool {
        self.is_member(peer)
    }

    fn reported_term(&self) -> u64 {
        0
    }

    fn last_log_id(&self) -> Option<LogId> {
        self.log.last()
    }

    fn check_snapshot(&self, _: &SnapshotMeta, file: &SnapshotFile) -> Result<(), StoreError> {
        let refused = self.refuse_snapshots.load(SeqCst);
        self.snapshots.fetch_add(1, SeqCst);
        let reason = || StoreError::Corrupt { path: file.path().into(), offset: 0, reason: "as the test wants".into() };
        if refused { Err(reason()) } else { Ok(()) }
    }

    fn snapshot_dir(&self) -> (SharedFs, PathBuf) {
        (Arc::new(RealFs), self.dir.join("incoming"))
    }

    fn peer(&self, from: PeerIdentity, request: PeerRequest) -> BoxFuture<'static, PeerResponse> {
        self.asked.fetch_add(1, SeqCst);
        let (me, release) = (self.local(), self.release.clone());
        Box::pin(async move {
            match request {
                PeerRequest::ReadIndex => {
                    release.notified().await;
                    PeerResponse::ReadIndex(42)
                }
                PeerRequest::StateHash => std::future::pending().await,
                // Says who asked in a field that is free here.
                _ => PeerResponse::ClusterInfo(ClusterInfo {
                    node_id: me.node_id,
                    leader: Some(from.node_id),
                    ..ClusterInfo::default()
                }),
            }
        })
    }
}

/// A running node.
pub struct TestNode {
    pub id: u64,
    pub address: String,
    pub service: Arc<TestService>,
    pub network: Network<TcpTransport>,
    pub state: MemoryState,
    cookie: Cookie,
    shutdown: CancellationToken,
    served: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl TestNode {
    /// Node `id` of the tests' cluster, without Raft.
    pub async fn start(id: u64) -> Self {
        Self::start_as(id, Some(CLUSTER), "cookie").await
    }

    /// A node without Raft.
    pub async fn start_as(id: u64, cluster_id: Option<u64>, cookie: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (name, process) = (format!("n{id}@127.0.0.1"), entropy::random());
        let identity = LocalIdentity { cluster_id, node_id: id, incarnation: 1, name, process };
        let service = Arc::new(TestService {
            identity: Mutex::new(identity),
            raft: Mutex::default(),
            dir: dir.path().to_path_buf(),
            votes: AtomicBool::new(true),
            asked: AtomicUsize::new(0),
            strangers: Mutex::default(),
            refuse_snapshots: AtomicBool::new(false),
            snapshots: AtomicUsize::new(0),
            log: MemoryLog::default(),
            release: Arc::default(),
        });
        let cookie = Cookie::new(cookie);
        let local = {
            let service = service.clone();
            Arc::new(move || service.local())
        };
        let network = Network::new(TcpTransport, local, cookie.clone(), Driver::Thread);
        let state = MemoryState::new(dir.path().to_path_buf());
        let shutdown = CancellationToken::new();
        let mut node =
            Self { id, address: String::new(), service, network, state, cookie, shutdown, served: None, _dir: dir };
        node.listen_again().await;
        node
    }

    /// Node `id` of the tests' cluster, with Raft.
    pub async fn start_raft(id: u64) -> Self {
        let node = Self::start(id).await;
        let config = Config {
            heartbeat_interval: 100,
            election_timeout_min: 500,
            election_timeout_max: 1000,
            enable_pre_vote: Some(true),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            ..Config::default()
        };
        let config = Arc::new(config.validate().unwrap());
        let raft = Raft::new(id, config, node.network.factory(), node.service.log.clone(), node.state.clone());
        *node.service.raft.lock() = Some(raft.await.unwrap());
        node
    }

    pub fn raft(&self) -> TestRaft {
        self.service.raft().expect("started with Raft")
    }

    pub fn asked(&self) -> usize {
        self.service.asked.load(SeqCst)
    }

    pub fn as_member(&self) -> (u64, NodeAddress) {
        (self.id, NodeAddress { name: format!("n{}", self.id), raft: self.address.clone() })
    }

    /// Nobody gets in any more.
    pub async fn stop_listening(&mut self) {
        self.shutdown.cancel();
        if let Some(served) = self.served.take() {
            served.await.unwrap();
        }
    }

    /// Lets nodes in again, at a new address.
    pub async fn listen_again(&mut self) {
        self.stop_listening().await;
        let listener = TcpTransport.bind("127.0.0.1:0").await.unwrap();
        self.address = listener.local_addr().unwrap().to_string();
        self.shutdown = CancellationToken::new();
        let serving = serve(listener, self.service.clone(), self.cookie.clone(), self.shutdown.clone());
        self.served = Some(tokio::spawn(serving));
    }

    /// Ends the node: Raft, connections in both directions, listener.
    pub async fn stop(&mut self) {
        let raft = self.service.raft.lock().take();
        if let Some(raft) = raft {
            raft.shutdown().await.unwrap();
        }
        self.network.reset();
        self.stop_listening().await;
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Waits until `condition` holds.
pub async fn eventually<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
