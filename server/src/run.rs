//! The life of the process: bind, open, form, serve, stop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hexkv_client::port_holder::listener_on;
use hexkv_raft_net::{
    Cookie, Network,
    transport::{AnyListener, Listener, Transport},
};
use hexkv_store::{StoreError, identity::DataDir};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::{
    compaction,
    config::{Config, ConfigError},
    core::StartError,
    environment::Environment,
    events, http_server, leases, monitor,
    naming::{Naming, NamingError, Presence},
    node::{Addresses, Node, wire_identity},
    progress, reconciler, routes,
    service::NodeService,
};

/// How long a stopping leader waits for another node to take over.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// The node could no longer keep its promises.
    #[error("the node stopped: {0}")]
    Fatal(String),
}

/// Runs a node in the real world until `stop`. Returns after everything is on disk.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), RunError> {
    run_in(Environment::real(), config, stop).await
}

/// Runs a node in `environment` until `stop`.
pub async fn run_in(environment: Environment, config: Config, stop: CancellationToken) -> Result<(), RunError> {
    start(environment, config).await?.until(stop).await
}

/// A node that serves.
pub struct Running {
    /// The node.
    pub node: Arc<Node>,
    serving: Serving,
}

/// Starts a node in `environment`: it listens, and has its cluster or looks for it.
pub async fn start(environment: Environment, config: Config) -> Result<Running, RunError> {
    let http = bind(&environment, config.http_bind(), "PORT").await?;
    let raft = bind(&environment, config.raft_bind(), "RAFT_PORT").await?;
    let addresses = Addresses { http: config.advertised(port_of(&http)), raft: config.advertised(port_of(&raft)) };
    let data = DataDir::open(environment.fs.clone(), &config.data_dir, &config.node_name.to_string())?;
    let identity = Arc::new(RwLock::new(data.identity().clone()));
    let cookie = Cookie::new(config.cookie.load()?.as_bytes());
    let shown = identity.clone();
    let local = Arc::new(move || wire_identity(&shown.read()));
    let network = Network::new(environment.transport.clone(), local, cookie.clone(), environment.driver);
    let presence = Presence { raft_port: port_of(&raft), raft: &addresses.raft, cookie: &cookie };
    let naming = Naming::start(&config, presence, &environment).await?;
    let node = Node::new(config, addresses, naming, network, environment, data, identity);
    {
        let mut data = node.data.lock().await;
        node.open_core(&mut data).await?;
    }
    let serving = serve_all(&node, http, raft, cookie);
    node.form().await.map_err(RunError::Formation)?;
    tracing::info!(
        node = node.name,
        http = node.addresses.http,
        raft = node.addresses.raft,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    Ok(Running { node, serving })
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
                shut_down(&self.node, self.serving).await;
                Ok(())
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
        node.config.connections_max,
        http_stop.clone(),
        node.config.shutdown_timeout,
    ));
    let service = Arc::new(NodeService(node.clone()));
    let raft = tokio::spawn(hexkv_raft_net::serve(raft, service, cookie, raft_stop.clone()));
    Serving { http, http_stop, raft, raft_stop }
}

/// Leadership first, then the clients, then Raft, then the disk.
async fn shut_down(node: &Arc<Node>, serving: Serving) {
    node.stopping.cancel();
    node.hand_over_leadership(HAND_OVER_TIMEOUT).await;
    serving.http_stop.cancel();
    joined("HTTP", serving.http).await;
    node.tasks.close();
    if tokio::time::timeout(node.config.shutdown_timeout, node.tasks.wait()).await.is_err() {
        tracing::warn!("a change of clusters is broken off; it is finished at the next start");
    }
    let mut data = node.data.lock().await;
    let clean = node.close_core().await;
    serving.raft_stop.cancel();
    joined("raft port", serving.raft).await;
    node.naming.stop().await;
    if clean && let Err(e) = data.mark_clean_stop() {
        tracing::warn!(error = %e, "the clean stop was not noted; the next start may rebuild the state");
    }
    tracing::info!("stopped");
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
    core.tasks.spawn(events::watch::run(node.clone(), core.clone()));
    core.tasks.spawn(reconciler::run(node.clone(), core.clone()));
    core.tasks.spawn(compaction::run(node.clone(), core.clone()));
    core.tasks.spawn(leases::run(node.clone(), core.clone()));
}
