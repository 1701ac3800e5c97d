//! Asking a port mapper: ours, or Erlang's own.

use std::{io, time::Duration};

use erl_dist::epmd::{EpmdClient, EpmdError as ProtocolError};
use hexkv_raft_net::{Dialer, transport::TcpTransport};
use tokio::{
    io::{AsyncReadExt as _, Join, Take},
    net::{
        TcpStream, ToSocketAddrs,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep, timeout_at},
};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

use crate::config::{Host, NodeName};

/// Largest answer that is read, in bytes: a thousand of the longest names and more.
const ANSWER_BYTES_MAX: u64 = 512 * 1024;
/// When the node that served the mapper is gone, another serves it within this time and the others register again: until
/// then a name that is not found may still be there.
const TAKEOVER_TIME: Duration = Duration::from_secs(1);
/// Pause between two questions while a take-over may be under way.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest reason in an error, in characters.
const REASON_CHARS_MAX: usize = 200;

/// A connection to a mapper whose answer is bounded.
pub(super) type MapperStream = Compat<Join<Take<OwnedReadHalf>, OwnedWriteHalf>>;

/// Why the port of a node is not known. Each says what was tried.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// `EPMD_PORT` is 0.
    #[error("the port mapper is switched off (EPMD_PORT=0); give the raft port: {node}:PORT")]
    Off {
        /// Whose port was asked for.
        node: NodeName,
    },
    /// Nobody answers as a port mapper does.
    #[error("asked the port mapper at {mapper}: {reason}")]
    Unreachable {
        /// Its `host:port`.
        mapper: String,
        /// What happened.
        reason: String,
    },
    /// The mapper does not know the name.
    #[error("asked the port mapper at {mapper}: no node named {name} is registered (known: {})", or_none(.known))]
    NotRegistered {
        /// Its `host:port`.
        mapper: String,
        /// The name before the `@`.
        name: String,
        /// The names that are registered.
        known: Vec<String>,
    },
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The port that `node` registered with the mapper of its host, which listens on `mapper_port` (0 = switched off). Asks
/// again for a short time where the mapper may be moving from one node to another; `limit` bounds all of it. `dialer`
/// remembers addresses of hosts.
///
/// # Errors
/// See [`ResolveError`].
pub async fn resolve(
    node: &NodeName,
    mapper_port: u16,
    limit: Duration,
    dialer: &Dialer<TcpTransport>,
) -> Result<u16, ResolveError> {
    if mapper_port == 0 {
        return Err(ResolveError::Off { node: node.clone() });
    }
    let started = Instant::now();
    let deadline = started + limit;
    loop {
        let error = match ask_port(node, mapper_port, deadline, dialer).await {
            Ok(port) => return Ok(port),
            Err(error) => error,
        };
        let next = Instant::now() + RETRY_PAUSE;
        if next >= deadline || next >= started + TAKEOVER_TIME {
            return Err(error);
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Names and ports that are registered with the mapper at `host`.
///
/// # Errors
/// [`ResolveError::Unreachable`].
pub async fn names(
    host: &Host,
    mapper_port: u16,
    limit: Duration,
    dialer: &Dialer<TcpTransport>,
) -> Result<Vec<(String, u16)>, ResolveError> {
    ask_names(host, mapper_port, Instant::now() + limit, dialer).await
}

async fn ask_port(
    node: &NodeName,
    mapper_port: u16,
    deadline: Instant,
    dialer: &Dialer<TcpTransport>,
) -> Result<u16, ResolveError> {
    let mapper = format!("{}:{mapper_port}", node.host());
    let exchange = async { EpmdClient::new(dial(dialer, &mapper).await?).get_node(node.short()).await };
    match within(deadline, &mapper, dialer, exchange).await? {
        Some(entry) => Ok(entry.port),
        None => {
            let known = ask_names(node.host(), mapper_port, deadline, dialer).await?;
            let known = known.into_iter().map(|(name, _)| name).collect();
            Err(ResolveError::NotRegistered { mapper, name: node.short().to_owned(), known })
        }
    }
}

async fn ask_names(
    host: &Host,
    mapper_port: u16,
    deadline: Instant,
    dialer: &Dialer<TcpTransport>,
) -> Result<Vec<(String, u16)>, ResolveError> {
    let mapper = format!("{host}:{mapper_port}");
    let exchange = async { EpmdClient::new(dial(dialer, &mapper).await?).get_names().await };
    within(deadline, &mapper, dialer, exchange).await
}

async fn within<T>(
    deadline: Instant,
    mapper: &str,
    dialer: &Dialer<TcpTransport>,
    exchange: impl Future<Output = Result<T, ProtocolError>>,
) -> Result<T, ResolveError> {
    let reason = match timeout_at(deadline, exchange).await {
        Ok(Ok(answer)) => return Ok(answer),
        // What is no mapper may say anything, at any length.
        Ok(Err(error)) => error.to_string().chars().take(REASON_CHARS_MAX).collect(),
        Err(_) => {
            let resolver = dialer.describe(mapper).map(|text| format!(" ({text})")).unwrap_or_default();
            format!("no answer in time{resolver}")
        }
    };
    Err(ResolveError::Unreachable { mapper: mapper.to_owned(), reason })
}

/// Connects to the mapper at `host:port`.
async fn dial(dialer: &Dialer<TcpTransport>, mapper: &str) -> io::Result<MapperStream> {
    let dialed = dialer.dial(mapper).await?;
    dialer.confirm(&dialed.route);
    bounded(dialed.stream)
}

/// Connects to a mapper of this host.
pub(super) async fn connect(mapper: impl ToSocketAddrs) -> io::Result<MapperStream> {
    bounded(TcpStream::connect(mapper).await?)
}

fn bounded(stream: TcpStream) -> io::Result<MapperStream> {
    // A port of the ephemeral range that nobody listens on can be connected to itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // The client writes field by field.
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    Ok(tokio::io::join(reader.take(ANSWER_BYTES_MAX), writer).compat())
}
