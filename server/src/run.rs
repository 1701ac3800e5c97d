//! The life of the process: bind, open, form, serve, stop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hexkv_client::port_holder::listener_on;
use hexkv_raft_net::{
    Cookie, Network,
    transport::{AnyListener, Listener, Transport},
};
use hexkv_store::{StoreError, entropy, identity::DataDir, opening::Opening};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::{
    compaction,
    config::{Config, ConfigError},
    copies,
    core::StartError,
    disk_watch,
    environment::Environment,
    events, http_server, leases, monitor, moved_members,
    naming::{Naming, NamingError, Presence},
    node::{Addresses, Node, wire_identity},
    progress, reconciler, routes,
    service::NodeService,
    starting,
};

/// How long a stopping leader waits for another node to take over.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a stopping node waits until Raft has ended and state and log are closed. A disk that takes longer hangs.
pub const STORAGE_CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stopping node waits for its listener for other nodes and the port mapper.
const NETWORK_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// What [`stop_timeout`] adds for all that takes no time by itself: drains of connections, busy processors.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port cannot be bound.
    #[error("cannot listen on {address}: {source}{holder}; choose another {option}, or stop what uses it")]
    Bind {
        /// `host:port`.
        address: SocketAddr,
        /// The option that sets it.
        option: &'static str,
        /// Which process has it, where that can be found.
        holder: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Log, state or Raft did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The node's name could not be registered, or others not be looked for.
    #[error(transparent)]
    Discovery(#[from] NamingError),
    /// The cookie cannot be had.
    #[error(transparent)]
    Cookie(#[from] ConfigError),
    /// The node has no cluster and could not found one.
    #[error("{0}")]
    Formation(crate::error::Error),
    /// The node was to stop, and its disk did not let it.
    #[error(
        "stopped without closing the data: the disk did not answer within {:?}; nothing that was acknowledged is lost, and the next start checks more",
        STORAGE_CLOSE_TIMEOUT
    )]
    NotClosed,
    /// The node could no longer keep its promises.
    #[error("the node stopped: {0}")]
    Fatal(String),
}

/// Runs a node in `environment` until `stop`.
pub async fn run_in(environment: Environment, config: Config, stop: CancellationToken) -> Result<(), RunError> {
    match start_until(environment, config, &stop).await? {
        Some(running) => running.until(stop).await,
        None => Ok(()),
    }
}

/// A node that serves.
pub struct Running {
    /// The node.
    pub node: Arc<Node>,
    serving: Serving,
}

/// Starts a node in `environment`, unless `stop` comes first: None then. What was begun needs no end in order: it is what a
/// killed process leaves.
pub async fn start_until(
    environment: Environment,
    config: Config,
    stop: &CancellationToken,
) -> Result<Option<Running>, RunError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => {
            tracing::info!("stopping before this node serves");
            Ok(None)
        }
        started = start(environment, config) => started.map(Some),
    }
}

/// Starts a node in `environment`: it listens, and has its cluster or looks for it.
pub async fn start(environment: Environment, config: Config) -> Result<Running, RunError> {
    let mut http = bind(&environment, config.http_bind(), "PORT").await?;
    let raft = bind(&environment, config.raft_bind(), "RAFT_PORT").await?;
    let addresses = Addresses { http: config.advertised(port_of(&http)), raft: config.advertised(port_of(&raft)) };
    let (progress, raft_port) = (Opening::default(), port_of(&raft));
    let (node, cookie) = tokio::select! {
        opened = open(environment, config, addresses, raft_port, progress.clone()) => opened?,
        never = starting::answer(&mut http, &progress) => match never {},
    };
    let serving = serve_all(&node, http, raft, cookie);
    node.tasks.spawn(disk_watch::run(node.clone()));
    let mut fatal = node.fatal();
    tokio::select! {
        formed = node.form() => formed.map_err(RunError::Formation)?,
        Ok(why) = fatal.wait_for(Option::is_some) => return Err(RunError::Fatal(why.clone().unwrap_or_default())),
    }
    tracing::info!(
        node = node.name,
        http = node.addresses.http,
        raft = node.addresses.raft,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    Ok(Running { node, serving })
}

/// A node with its data open, and the cookie.
async fn open(
    environment: Environment,
    config: Config,
    addresses: Addresses,
    raft_port: u16,
    progress: Opening,
) -> Result<(Arc<Node>, Cookie), RunError> {
    let (fs, dir, name) = (environment.fs.clone(), config.data_dir.clone(), config.node_name.to_string());
    let source = config.cookie.clone();
    // Files that do not answer must not keep this task from its other work.
    let opening = environment.driver.run(move || {
        let data = DataDir::open(fs, &dir, &name)?;
        let cookie = source.load()?;
        if let Some(advice) = cookie.weakness() {
            tracing::warn!("{advice}");
        }
        let cookie = Cookie::new(cookie.as_bytes());
        let starts = data.load_starts()?;
        Ok::<_, RunError>((data, cookie, starts))
    });
    let opened = opening.await;
    let (data, cookie, starts) =
        opened.map_err(|e| StoreError::io("open the data directory", io::Error::other(e)))??;
    let identity = Arc::new(RwLock::new(data.identity().clone()));
    let (shown, process) = (identity.clone(), entropy::random());
    let local = Arc::new(move || wire_identity(&shown.read(), process));
    let network = Network::new(environment.transport.clone(), local, cookie.clone(), environment.driver);
    network.remember_starts(copies::from_stored(&starts));
    let presence = Presence { raft_port, raft: &addresses.raft, cookie: &cookie };
    let naming = Naming::start(&config, presence, &environment).await?;
    let node = Node::new(config, addresses, naming, network, environment, data, identity);
    node.tasks.spawn(copies::run(node.clone()));
    node.tasks.spawn(copies::keep_starts(node.clone(), starts));
    {
        let mut data = node.data.lock().await;
        node.open_core(&mut data, &progress).await?;
    }
    Ok((node, cookie))
}

impl Running {
    /// Serves until `stop`, or until the node can no longer keep its promises.
    pub async fn until(self, stop: CancellationToken) -> Result<(), RunError> {
        let mut fatal = self.node.fatal();
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            Ok(why) = fatal.wait_for(Option::is_some) => why.clone(),
        };
        match ended {
            None => {
                tracing::info!("stopping");
                shut_down(&self.node, self.serving).await
            }
            Some(why) => Err(RunError::Fatal(why)),
        }
    }
}

/// The tasks that serve, each with its own end.
struct Serving {
    http: tokio::task::JoinHandle<()>,
    http_stop: CancellationToken,
    raft: tokio::task::JoinHandle<()>,
    raft_stop: CancellationToken,
}

fn serve_all(node: &Arc<Node>, http: AnyListener, raft: AnyListener, cookie: Cookie) -> Serving {
    let (http_stop, raft_stop) = (CancellationToken::new(), CancellationToken::new());
    let http = tokio::spawn(http_server::serve(
        http,
        routes::router(node.clone()),
        node.connections.clone(),
        http_stop.clone(),
        node.config.shutdown_timeout,
    ));
    let service = Arc::new(NodeService(node.clone()));
    let raft = tokio::spawn(hexkv_raft_net::serve(raft, service, cookie, raft_stop.clone()));
    Serving { http, http_stop, raft, raft_stop }
}

/// Leadership first, then the clients, then Raft, then the disk. Each of them has its time: see [`stop_timeout`].
async fn shut_down(node: &Arc<Node>, serving: Serving) -> Result<(), RunError> {
    node.stopping.cancel();
    node.hand_over_leadership(HAND_OVER_TIMEOUT).await;
    serving.http_stop.cancel();
    joined("HTTP", serving.http).await;
    node.tasks.close();
    if tokio::time::timeout(node.config.shutdown_timeout, node.tasks.wait()).await.is_err() {
        tracing::warn!("a change of clusters is broken off; it is finished at the next start");
    }
    let closed = tokio::time::timeout(STORAGE_CLOSE_TIMEOUT, async {
        let data = node.data.lock().await;
        let clean = node.close_core().await;
        (data, clean)
    });
    let closed = closed.await;
    serving.raft_stop.cancel();
    let network_closed = async {
        joined("raft port", serving.raft).await;
        node.naming.stop().await;
    };
    if tokio::time::timeout(NETWORK_CLOSE_TIMEOUT, network_closed).await.is_err() {
        tracing::warn!("the connections to other nodes are broken off");
    }
    let Ok((mut data, clean)) = closed else { return Err(RunError::NotClosed) };
    if clean && let Err(e) = data.mark_clean_stop() {
        tracing::warn!(error = %e, "the clean stop was not noted; the next start may rebuild the state");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Longest time that a node with `config` takes to stop in order, whatever does not answer: leadership, requests, background
/// work, storage and network one after the other.
pub fn stop_timeout(config: &Config) -> Duration {
    HAND_OVER_TIMEOUT + 2 * config.shutdown_timeout + STORAGE_CLOSE_TIMEOUT + NETWORK_CLOSE_TIMEOUT + STOP_SLACK
}

async fn joined(what: &str, task: tokio::task::JoinHandle<()>) {
    if let Err(e) = task.await {
        tracing::error!(error = %e, "the {what} listener ended badly");
    }
}

async fn bind(environment: &Environment, address: SocketAddr, option: &'static str) -> Result<AnyListener, RunError> {
    environment.transport.bind(&address.to_string()).await.map_err(|source| RunError::Bind {
        holder: listener_on(address.port()).map(|who| format!(", {who} has it")).unwrap_or_default(),
        address,
        option,
        source,
    })
}

fn port_of(listener: &AnyListener) -> u16 {
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Starts what watches over each core: called by the node whenever it opened one.
pub(crate) fn watch_over(node: &Arc<Node>, core: &Arc<crate::core::Core>) {
    core.tasks.spawn(monitor::run(node.clone(), core.clone()));
    core.tasks.spawn(progress::run(node.clone(), core.clone()));
    core.tasks.spawn(moved_members::run(node.clone(), core.clone()));
    core.tasks.spawn(events::watch::run(node.clone(), core.clone()));
    core.tasks.spawn(reconciler::run(node.clone(), core.clone()));
    core.tasks.spawn(compaction::run(node.clone(), core.clone()));
    core.tasks.spawn(leases::run(node.clone(), core.clone()));
}
