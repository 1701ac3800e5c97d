//! Keeping a name registered: with the mapper that is there, or by serving it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use erl_dist::epmd::{EpmdClient, EpmdError as ProtocolError, NodeEntry};
use tokio::{
    io::AsyncReadExt as _,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    lookup::{MapperStream, connect},
    mapper::Mapper,
};

/// Time for one attempt to register.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a start tries: an earlier self that was killed may still be registered for an instant.
const START_TIME: Duration = Duration::from_secs(2);
/// Shortest pause between two attempts, before jitter.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause between two attempts, before jitter.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Which port mapper to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpmdSettings {
    /// Its port, 0 = none.
    pub port: u16,
    /// The address to serve it at, beside the loopback address, where nobody does.
    pub bind: IpAddr,
}

/// What a node is to the port mapper of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpmdRole {
    /// Nothing: it is switched off.
    Off,
    /// This node serves it.
    Serving,
    /// This node is registered with it.
    Registered,
    /// The mapper that is there does not answer, or this node was registered with one that is gone: it tries again.
    Searching,
}

/// Why a node's name is not registered.
#[derive(Debug, thiserror::Error)]
pub enum EpmdError {
    /// Another process of this host has the name.
    #[error(
        "the name {name} is taken on this host: port mapper on port {port} has it; stop the other node, or set NODE_NAME"
    )]
    NameTaken {
        /// The name before the `@`.
        name: String,
        /// The mapper's port.
        port: u16,
    },
    /// Nobody serves the mapper, and this node cannot either.
    #[error("cannot serve the port mapper at {bind} port {port}: {source}; set EPMD_PORT to another port, or to 0")]
    Bind {
        /// Where.
        bind: IpAddr,
        /// The mapper's port.
        port: u16,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something listens there and does not behave as a mapper does.
    #[error(
        "what listens on port {port} does not answer as a port mapper: {reason}; set EPMD_PORT to another port, or to 0"
    )]
    NotAMapper {
        /// The mapper's port.
        port: u16,
        /// What it did.
        reason: String,
    },
    /// Something listens there, and does not answer. It may be another node that was stopped by a signal.
    #[error(
        "the port mapper on port {port} does not answer: end the process that listens there, or set EPMD_PORT to another port, or to 0"
    )]
    Silent {
        /// The mapper's port.
        port: u16,
    },
}

/// A name that is registered, and stays so when the node that serves the mapper is gone: then one of the others takes its
/// place and the rest register with that one. Dropping it unregisters, some time later.
#[derive(Debug)]
pub struct Epmd {
    role: watch::Receiver<EpmdRole>,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Epmd {
    /// Registers `name` (before the `@`) with its raft port, or serves the mapper where nobody does. With port 0 in
    /// `settings` it does nothing. Where the mapper does not answer, the name is registered in the background, later: nodes
    /// that have this node's port do not need the mapper.
    ///
    /// # Errors
    /// See [`EpmdError`], after two seconds at most.
    pub async fn start(settings: EpmdSettings, name: &str, raft_port: u16) -> Result<Self, EpmdError> {
        assert_ne!(raft_port, 0, "the raft port is bound before it is registered");
        // Hidden: Erlang nodes do not try to mesh with it.
        let keeper = Keeper { settings, entry: NodeEntry::new_hidden(name, raft_port) };
        let stop = CancellationToken::new();
        if settings.port == 0 {
            let (_, role) = watch::channel(EpmdRole::Off);
            return Ok(Self { role, stop: stop.drop_guard(), task: tokio::spawn(std::future::ready(())) });
        }
        let hold = match keeper.acquire_at_start().await {
            Ok(hold) => Some(hold),
            Err(error @ EpmdError::Silent { .. }) => {
                tracing::warn!("{error}; this node starts without it, and tries to register again");
                None
            }
            Err(error) => return Err(error),
        };
        let (changes, role) = watch::channel(hold.as_ref().map_or(EpmdRole::Searching, Hold::role));
        let token = stop.clone();
        let task = tokio::spawn(async move { keeper.keep(hold, changes, token).await });
        Ok(Self { role, stop: stop.drop_guard(), task })
    }

    /// What this node is to the mapper, now and as it changes.
    pub fn role(&self) -> watch::Receiver<EpmdRole> {
        self.role.clone()
    }

    /// Unregisters, and stops serving the mapper.
    pub async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// What keeps a name registered.
enum Hold {
    /// Our own mapper, which has it.
    Serving(Mapper),
    /// The connection that it was registered on.
    Registered(MapperStream),
}

impl Hold {
    fn role(&self) -> EpmdRole {
        match self {
            Self::Serving(_) => EpmdRole::Serving,
            Self::Registered(_) => EpmdRole::Registered,
        }
    }
}

struct Keeper {
    settings: EpmdSettings,
    entry: NodeEntry,
}

impl Keeper {
    /// One attempt: register, or where nobody listens, serve.
    async fn acquire(&self) -> Result<Hold, EpmdError> {
        let EpmdSettings { port, bind } = self.settings;
        let not_a_mapper = |reason: String| EpmdError::NotAMapper { port, reason };
        let exchange = async {
            let stream = connect((Ipv4Addr::LOCALHOST, port)).await?;
            EpmdClient::new(stream).register(self.entry.clone()).await
        };
        match timeout(ATTEMPT_TIMEOUT, exchange).await {
            Ok(Ok((stream, _))) => Ok(Hold::Registered(stream)),
            Ok(Err(ProtocolError::RegisterNodeError { .. })) => {
                Err(EpmdError::NameTaken { name: self.entry.name.clone(), port })
            }
            Ok(Err(ProtocolError::Io(error))) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let served = Mapper::bind(bind, port, self.entry.clone()).await;
                served.map(Hold::Serving).map_err(|source| EpmdError::Bind { bind, port, source })
            }
            Ok(Err(error)) => Err(not_a_mapper(error.to_string())),
            Err(_) => Err(EpmdError::Silent { port }),
        }
    }

    /// Attempts until [`START_TIME`] is over, then the last error.
    async fn acquire_at_start(&self) -> Result<Hold, EpmdError> {
        let deadline = Instant::now() + START_TIME;
        let mut pause = Pause::default();
        loop {
            let error = match self.acquire().await {
                Ok(hold) => return Ok(hold),
                Err(error) => error,
            };
            // An address in use was free an instant ago: another node was faster, and will register this one.
            let passes = !matches!(&error, EpmdError::Bind { source, .. } if source.kind() != io::ErrorKind::AddrInUse);
            let pause = pause.next();
            if !passes || Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    /// Keeps the name registered until `stop`.
    async fn keep(self, mut hold: Option<Hold>, role: watch::Sender<EpmdRole>, stop: CancellationToken) {
        loop {
            match hold {
                Some(Hold::Serving(mapper)) => {
                    stop.cancelled().await;
                    return mapper.stop().await;
                }
                None => {}
                Some(Hold::Registered(stream)) => {
                    let ended = stop.run_until_cancelled(closed(stream)).await;
                    if ended.is_none() {
                        return;
                    }
                }
            }
            role.send_replace(EpmdRole::Searching);
            match stop.run_until_cancelled(self.acquire_again()).await {
                None => return,
                Some(next) => {
                    role.send_replace(next.role());
                    tracing::info!(role = ?next.role(), port = self.settings.port, "the port mapper has this node's name again");
                    hold = Some(next);
                }
            }
        }
    }

    /// Attempts until one succeeds: a running node outlives any trouble with the mapper.
    async fn acquire_again(&self) -> Hold {
        let mut pause = Pause::default();
        let mut last_error = String::new();
        loop {
            // Before the first attempt, too: all nodes of the host notice at the same instant.
            sleep(pause.next()).await;
            match self.acquire().await {
                Ok(hold) => return hold,
                Err(error) if error.to_string() != last_error => {
                    last_error = error.to_string();
                    tracing::warn!("cannot register again: {last_error}");
                }
                Err(_) => {}
            }
        }
    }
}

/// Returns when the mapper closed the connection of a registration.
async fn closed(stream: MapperStream) {
    let mut stream = stream.into_inner();
    // A mapper has nothing to say here; what it says is skipped, up to the bound of the stream.
    let mut skipped = [0; 64];
    while let Ok(1..) = stream.read(&mut skipped).await {}
}

/// Pauses that double from [`PAUSE_MIN`] to [`PAUSE_MAX`], each with jitter from 50 to 150 %.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pause {
    fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.5));
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        pause
    }
}
