//! A node: what lasts while cores come and go. It knows its data directory, its addresses, its cluster as it
//! sees it or as others told it, and which core serves now.

mod member_view;
mod peers;
mod standing;

use std::{collections::BTreeMap, sync::Arc};

use hexkv_raft_net::{LocalIdentity, Network, PeerIdentity, rpc::ClusterInfo, transport::AnyTransport};
use hexkv_store::{
    NodeAddress, NodeId,
    command::TXN_READ_KEYS_MAX,
    identity::{DataDir, Identity},
    member::Member,
    opening::Opening,
};
use openraft::async_runtime::WatchReceiver;
use parking_lot::RwLock;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{member_view::MemberView, standing::Barred};
use crate::{
    admission::Admission,
    bodies::{BODIES_BYTES_MAX, Bodies},
    config::Config,
    copies,
    core::{Core, CorePlace, StartError, known_leader},
    disk::Disk,
    environment::Environment,
    error::Error,
    events::Events,
    join_log::JoinLog,
    metrics::Metrics,
    naming::Naming,
    rebuild, starting,
    transfers::{Pieces, Transfers},
    watch::Watches,
};

/// Keys that all transactions in flight on this node make apply read at most, so that they hold others up for a moment only;
/// further ones wait. As many as one transaction may read. Those that read few do not count.
pub const READING_KEYS_MAX: u64 = TXN_READ_KEYS_MAX;
/// Most listings that are read at a time, of those that may read many keys; further ones wait.
pub const SCANS_MAX: usize = 8;
/// Most checks of the way to other nodes at a time; further ones wait.
pub const CHECKS_MAX: usize = 4;
/// Most listings that are read at a time, of those that read one page of the newest revision. They do not wait for the others:
/// lines of locks and elections are read like this.
pub const SHORT_SCANS_MAX: usize = 8;
/// Most items that such a listing asks for.
pub const SHORT_SCAN_ITEMS_MAX: u32 = 1_000;
/// Most bytes of large answers in memory that are being sent; further ones are refused.
pub const ANSWERS_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What this node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// A Raft voter or learner: it holds the data.
    Holder,
    /// A member outside the Raft membership: it forwards.
    Standby,
    /// No member of any cluster (yet, or any more).
    Outside,
}

/// Where others reach this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// `host:port` for clients.
    pub http: String,
    /// `host:port` for nodes.
    pub raft: String,
}

/// A node. Invariant: at most one core exists at a time, and it belongs to the identity in the data directory.
pub struct Node {
    /// Its configuration.
    pub config: Config,
    /// Full name.
    pub name: String,
    /// Where others reach it.
    pub addresses: Addresses,
    /// Name resolution.
    pub naming: Naming,
    /// The wire to other nodes.
    pub network: Network<AnyTransport>,
    /// Changes in flight.
    pub admission: Admission,
    /// Room for connections of clients.
    pub connections: Arc<Semaphore>,
    /// Checks of the way to other nodes, each of which opens connections.
    pub checks: Semaphore,
    /// Bodies that are being received.
    pub bodies: Arc<Bodies>,
    /// Room for large answers that are being sent.
    pub answers: Admission,
    /// Those answers.
    pub sending: Transfers<Box<dyn Pieces>>,
    /// Listings that are being read, and may read many keys.
    pub scans: Arc<Semaphore>,
    /// Listings that are being read, and read one short page.
    pub short_scans: Arc<Semaphore>,
    /// What transactions in flight make apply read.
    pub reading: Arc<Semaphore>,
    /// Nodes that ask to join.
    pub joins: JoinLog,
    /// Who takes part in the cluster's Raft, as other members told this node.
    pub member_view: MemberView,
    /// Who follows the changes.
    pub watches: Watches,
    /// Who follows what happens to the cluster.
    pub events: Events,
    /// What is counted for whoever measures.
    pub metrics: Metrics,
    /// Room on the disk.
    pub disk: Disk,
    /// Serializes join, leave and stop.
    pub lifecycle: tokio::sync::Mutex<()>,
    /// Ends everything that is not a core's.
    pub stopping: CancellationToken,
    /// Tasks that are not a core's.
    pub tasks: TaskTracker,
    /// Files, sockets, clock and threads.
    pub environment: Environment,
    /// Random number of this process.
    pub process: u64,
    pub(crate) data: Arc<tokio::sync::Mutex<DataDir>>,
    identity: Arc<RwLock<Identity>>,
    core: RwLock<Option<Arc<Core>>>,
    outside: RwLock<Option<ClusterInfo>>,
    position: RwLock<Position>,
    divergent: RwLock<Option<String>>,
    barred: RwLock<Option<Barred>>,
    /// When a leader last answered this node as a member, or a majority confirmed that it leads.
    accepted: RwLock<Option<Instant>>,
    waiting: RwLock<Option<String>>,
    peers: RwLock<Vec<Member>>,
    /// When each node sent its last request.
    requests: RwLock<BTreeMap<NodeId, Instant>>,
    fatal: watch::Sender<Option<String>>,
}

impl Node {
    /// A node without a core; [`Node::open_core`] gives it one.
    pub fn new(
        config: Config,
        addresses: Addresses,
        naming: Naming,
        network: Network<AnyTransport>,
        environment: Environment,
        data: DataDir,
        identity: Arc<RwLock<Identity>>,
    ) -> Arc<Self> {
        let admission = Admission::new(config.proposals_max, config.proposals_bytes_max as usize);
        let bodies = Bodies::new(BODIES_BYTES_MAX);
        let answers = Admission::new(config.connections_max, ANSWERS_BYTES_MAX);
        Arc::new(Self {
            name: config.node_name.to_string(),
            addresses,
            naming,
            process: network.process(),
            network,
            admission,
            connections: Arc::new(Semaphore::new(config.connections_max)),
            checks: Semaphore::new(CHECKS_MAX),
            bodies,
            answers,
            sending: Transfers::default(),
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            short_scans: Arc::new(Semaphore::new(SHORT_SCANS_MAX)),
            reading: Arc::new(Semaphore::new(READING_KEYS_MAX as usize)),
            joins: JoinLog::default(),
            member_view: MemberView::default(),
            watches: Watches::default(),
            events: Events::default(),
            metrics: Metrics::default(),
            disk: Disk::default(),
            lifecycle: tokio::sync::Mutex::new(()),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            environment,
            data: Arc::new(tokio::sync::Mutex::new(data)),
            identity,
            core: RwLock::new(None),
            outside: RwLock::new(None),
            position: RwLock::new(Position::Outside),
            divergent: RwLock::new(None),
            barred: RwLock::new(None),
            accepted: RwLock::new(None),
            waiting: RwLock::new(None),
            peers: RwLock::new(Vec::new()),
            requests: RwLock::default(),
            fatal: watch::channel(None).0,
            config,
        })
    }

    /// The identity in the data directory.
    pub fn identity(&self) -> Identity {
        self.identity.read().clone()
    }

    /// The core that serves now; None while the node changes clusters.
    pub fn core(&self) -> Option<Arc<Core>> {
        self.core.read().clone()
    }

    /// The core, or the refusal that says that there is none now.
    pub fn serving_core(&self) -> Result<Arc<Core>, Error> {
        self.core().ok_or_else(|| {
            Error::new(
                hexkv_client::api::Code::NotInCluster,
                "this node is changing clusters; nothing was changed. Retry in a moment",
            )
        })
    }

    /// The core, where its state is the cluster's, though maybe not the newest.
    pub fn own_state(&self) -> Option<Arc<Core>> {
        (self.position() == Position::Holder && self.divergence().is_none()).then(|| self.core()).flatten()
    }

    /// What this node is in its cluster.
    pub fn position(&self) -> Position {
        *self.position.read()
    }

    /// The leader, as Raft here or others there know it.
    pub fn leader_id(&self) -> Option<NodeId> {
        match self.position() {
            Position::Holder => self.core().and_then(|c| c.leader()),
            Position::Standby => self.outside.read().as_ref().and_then(|o| o.leader),
            Position::Outside => None,
        }
    }

    /// What kind of 503 it is when no leader was reached.
    pub fn why_no_leader(&self) -> Error {
        match self.position() {
            Position::Outside => Error::new(
                hexkv_client::api::Code::NotInCluster,
                match self.waiting() {
                    Some(waits) => format!("this node has no cluster yet, and nothing was changed; it {waits}"),
                    None => "this node belongs to no cluster now; nothing was changed. `client join NAME@HOST` lets it join one".into(),
                },
            ),
            Position::Holder | Position::Standby => Error::no_leader(),
        }
    }

    /// What this node waits for before it has a cluster, if it does.
    pub fn waiting(&self) -> Option<String> {
        self.waiting.read().clone()
    }

    /// Notes what this node waits for.
    pub fn set_waiting(&self, what: Option<String>) {
        *self.waiting.write() = what;
    }

    /// This node as a member, under node id `id`.
    pub fn as_member(&self, id: NodeId) -> Member {
        Member {
            name: self.name.clone(),
            node_id: id,
            http: self.addresses.http.clone(),
            raft: self.addresses.raft.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            leaving: false,
        }
    }

    /// This node as others see it on a connection.
    pub fn as_peer(&self) -> PeerIdentity {
        let LocalIdentity { cluster_id, node_id, incarnation, name, process } =
            wire_identity(&self.identity(), self.process);
        PeerIdentity { cluster_id, node_id, incarnation, name, process: Some(process), guest: false }
    }

    /// This node in a Raft membership.
    pub fn as_raft_node(&self) -> NodeAddress {
        NodeAddress { name: self.name.clone(), raft: self.addresses.raft.clone() }
    }

    /// What this node tells others of its cluster: its own state when it holds the data, else what it was told.
    pub fn cluster(&self) -> ClusterInfo {
        let identity = self.identity();
        let told = match self.position() {
            Position::Holder => None,
            Position::Standby | Position::Outside => self.outside.read().clone(),
        };
        let mut info = match (told, self.core()) {
            (Some(told), _) => told,
            (None, Some(core)) => local_info(&core),
            (None, None) => ClusterInfo::default(),
        };
        info.node_id = identity.node_id;
        info.name = self.name.clone();
        info.cluster_id = identity.cluster_id;
        info
    }

    /// Takes in what other members told, and derives this node's position. `told` = None: nobody was asked,
    /// because this node is in touch with its leader.
    pub fn observe(&self, told: Option<ClusterInfo>) {
        let Some(core) = self.core() else { return };
        let local = local_info(&core);
        let in_raft = local.voters.contains(&core.id) || local.learners.contains(&core.id);
        let position = match &told {
            None if core.is_leader() => Position::Holder,
            // What was told stands until this node has applied more than that: a node that was taken out of the
            // Raft membership never learns it from its own log.
            None if core.progress.blocked() => self.position(),
            None if in_raft && !self.was_told_beyond(local.applied_index) => Position::Holder,
            None => self.position(),
            // Its Raft waits for its disk and answers nothing: until then the leader serves for it, as for a standby.
            Some(t)
                if core.progress.blocked()
                    && t.leader.is_some_and(|id| id != core.id)
                    && t.members.iter().any(|m| m.node_id == core.id) =>
            {
                Position::Standby
            }
            Some(t) if t.voters.contains(&core.id) || t.learners.contains(&core.id) => Position::Holder,
            Some(t) if t.members.iter().any(|m| m.node_id == core.id) => Position::Standby,
            Some(_) => Position::Outside,
        };
        if told.is_some() {
            *self.outside.write() = told;
        }
        {
            // The newer of the two lists: a node that the leader does not reach has an old one.
            let outside = self.outside.read();
            let newer = outside.as_ref().filter(|seen| seen.applied_index >= local.applied_index);
            let members = newer.map_or(&local.members, |seen| &seen.members);
            for member in members.iter().filter(|m| m.node_id != core.id) {
                self.network.address_book().set(member.node_id, member.raft.clone());
            }
        }
        let before = std::mem::replace(&mut *self.position.write(), position);
        if before != position {
            tracing::info!(from = ?before, to = ?position, "position in the cluster changed");
            self.watches.end();
        }
    }

    fn was_told_beyond(&self, applied_index: u64) -> bool {
        self.outside.read().as_ref().is_some_and(|told| told.applied_index >= applied_index)
    }

    /// Opens the core that belongs to the identity in the data directory. `progress` shows how far it is, and so does the log.
    pub async fn open_core(self: &Arc<Self>, data: &mut DataDir, progress: &Opening) -> Result<Arc<Core>, StartError> {
        let identity = data.identity().clone();
        let place = CorePlace {
            environment: self.environment.clone(),
            data_dir: data.path().to_path_buf(),
            node_id: identity.node_id,
            power_lost: data.power_was_lost(),
        };
        *self.identity.write() = identity;
        self.network.reset();
        let core = tokio::select! {
            core = Core::start(&self.config, &place, &self.network, progress) => core?,
            never = starting::log(progress) => match never {},
        };
        if place.power_lost {
            data.trust_state()?;
        }
        let (fatal, failed) = (self.fatal.clone(), core.failed());
        let storage_failed = async move {
            if let Some(why) = failed.await {
                fatal.send_replace(Some(why));
            }
        };
        match &self.environment.apart {
            Some(apart) => drop(core.tasks.spawn_on(storage_failed, apart)),
            None => drop(core.tasks.spawn(storage_failed)),
        }
        *self.core.write() = Some(core.clone());
        core.tasks.spawn(copies::watch_cuts(self.clone(), core.log.cut(), core.cancel.clone()));
        *self.outside.write() = None;
        self.member_view.clear();
        *self.position.write() = Position::Outside;
        *self.divergent.write() = None;
        *self.barred.write() = None;
        if let Some(why) = core.divergence.clone() {
            self.set_divergent(why);
            rebuild::begin(self);
        }
        self.observe(None);
        crate::run::watch_over(self, &core);
        Ok(core)
    }

    /// Takes the core out of service and ends it.
    /// Answers whether all of it is on disk and in order.
    pub async fn close_core(&self) -> bool {
        let core = self.core.write().take();
        *self.position.write() = Position::Outside;
        match core {
            Some(core) => core.stop().await,
            None => false,
        }
    }

    /// Remembers a change of the identity that the data directory made durable.
    pub fn identity_changed(&self, data: &DataDir) {
        *self.identity.write() = data.identity().clone();
    }
}

/// The identity that the wire shows to others.
pub fn wire_identity(identity: &Identity, process: u64) -> LocalIdentity {
    LocalIdentity {
        cluster_id: identity.cluster_id,
        node_id: identity.node_id,
        incarnation: identity.incarnation,
        name: identity.name.clone(),
        process,
    }
}

fn local_info(core: &Core) -> ClusterInfo {
    let metrics = core.raft.server_metrics();
    let (leader, term, membership) = {
        let m = metrics.borrow_watched();
        // The vote is the durable one, and may lag. Who names itself as the leader does so with a term that it led in.
        let led = m.vote.committed && m.vote.leader_id.node_id == core.id;
        let leader = known_leader(&m).filter(|id| *id != core.id || led);
        (leader, m.vote.leader_id.term, m.membership_config.clone())
    };
    ClusterInfo {
        node_id: core.id,
        leader,
        term,
        members: core.state.members(),
        voters: membership.membership().voter_ids().collect(),
        learners: membership.membership().learner_ids().collect(),
        replication_factor: core.state.replication_factor(),
        applied_index: core.state.applied().map_or(0, |id| id.index),
        revision: core.state.revision(),
        cluster_id: core.state.cluster_id(),
        name: String::new(),
    }
}
