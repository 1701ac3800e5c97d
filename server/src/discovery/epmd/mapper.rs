//! The port mapper that a node serves where nobody else does.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use erl_dist::epmd::NodeEntry;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::protocol::{self, REQUEST_BYTES_MAX, Request};
use crate::config::FileLimit;

/// Names that are registered at a time.
const NAMES_MAX: usize = 1024;
/// Time for a client to send its request, and to take the answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted: the process is out of files, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A serving mapper. Invariants:
/// - it listens on the loopback address, so that there is one a host: whoever binds that port is it;
/// - a name is registered at most once, and no longer than the connection that registered it is open;
/// - only processes of this host register;
/// - dropping it closes the port and all connections.
pub(super) struct Mapper {
    listeners: JoinSet<()>,
}

impl Mapper {
    /// Listens on the loopback address, and on `bind` where that is another. `own` is registered as long as it serves.
    pub(super) async fn bind(bind: IpAddr, port: u16, own: NodeEntry) -> io::Result<Self> {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        // The unspecified address includes the loopback address.
        let mut addresses = vec![if bind.is_unspecified() { bind } else { loopback }];
        if !bind.is_unspecified() && bind != loopback {
            addresses.push(bind);
        }
        let mut bound = Vec::new();
        for address in addresses {
            bound.push(TcpListener::bind((address, port)).await?);
        }
        let directory = Arc::new(Directory { port, names: Mutex::default(), creation: Mutex::new(rand::random()) });
        directory.names.lock().insert(own.name.clone(), own);
        let limit = Arc::new(Semaphore::new(FileLimit::current().mapper_connections()));
        let listeners = bound.into_iter().map(|listener| accept(listener, directory.clone(), limit.clone())).collect();
        Ok(Self { listeners })
    }

    /// Closes the port; connections are closed an instant later.
    pub(super) async fn stop(mut self) {
        self.listeners.shutdown().await;
    }
}

/// Who is registered.
struct Directory {
    /// The mapper's own port.
    port: u16,
    names: Mutex<BTreeMap<String, NodeEntry>>,
    /// Number of the last registration.
    creation: Mutex<u32>,
}

/// A registered name: unregistered when dropped.
struct Registration<'a> {
    directory: &'a Directory,
    name: String,
    creation: u32,
}

impl Directory {
    /// Registers `entry`; None where the name is taken or there is no room.
    fn register(&self, entry: NodeEntry) -> Option<Registration<'_>> {
        let mut names = self.names.lock();
        if names.len() >= NAMES_MAX || names.contains_key(&entry.name) {
            return None;
        }
        let name = entry.name.clone();
        names.insert(name.clone(), entry);
        let mut creation = self.creation.lock();
        // 0 means "none" to Erlang nodes.
        *creation = creation.wrapping_add(1).max(1);
        Some(Registration { directory: self, name, creation: *creation })
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let removed = self.directory.names.lock().remove(&self.name);
        assert!(removed.is_some(), "{} was registered until now", self.name);
    }
}

/// Serves `listener`, each connection in a task of its own; all end with this one.
async fn accept(listener: TcpListener, directory: Arc<Directory>, limit: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "port mapper cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            tracing::warn!("port mapper has too many connections and closes a new one");
            continue;
        };
        let directory = directory.clone();
        connections.spawn(async move {
            if let Err(error) = serve(stream, &directory).await {
                tracing::debug!(%error, "port mapper closes a connection");
            }
            drop(permit);
        });
    }
}

/// One request, its answer, and for a registration the wait for its end.
async fn serve(mut stream: TcpStream, directory: &Directory) -> io::Result<()> {
    let request = timeout(EXCHANGE_TIMEOUT, read_request(&mut stream)).await??;
    let (answer, registration) = match request {
        Request::Register(entry) => {
            let version = entry.highest_version;
            // Names belong to processes of this host: another host's could lead its traffic anywhere.
            let is_local = stream.peer_addr()?.ip() == stream.local_addr()?.ip();
            let registration = if is_local { directory.register(entry) } else { None };
            (protocol::registered(version, registration.as_ref().map(|granted| granted.creation)), registration)
        }
        Request::Port(name) => (protocol::port(directory.names.lock().get(&name)), None),
        Request::Names => (protocol::names(directory.port, directory.names.lock().values()), None),
        Request::Kill => (protocol::kill_refused(), None),
    };
    timeout(EXCHANGE_TIMEOUT, stream.write_all(&answer)).await??;
    if registration.is_some() {
        // A registered node has nothing more to say: whatever arrives, also the end of the stream, ends the registration.
        stream.read_u8().await?;
    }
    Ok(())
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Request> {
    let length = usize::from(stream.read_u16().await?);
    if length > REQUEST_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a request of {length} bytes")));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Request::decode(&frame).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a request that is served"))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    fn directory() -> Directory {
        Directory { port: 1, names: Mutex::default(), creation: Mutex::new(u32::MAX) }
    }

    fn entry(number: usize) -> NodeEntry {
        NodeEntry::new_hidden(&format!("n{number}"), 9100)
    }

    #[test]
    fn a_name_is_registered_once_and_no_longer_than_its_registration() {
        let directory = directory();
        let first = directory.register(entry(1)).unwrap();
        assert_eq!(first.creation, 1, "0 is skipped when the count wraps");
        assert!(directory.register(entry(1)).is_none());
        drop(first);
        assert_eq!(directory.register(entry(1)).unwrap().creation, 2);
    }

    #[test]
    fn names_are_bounded() {
        let directory = directory();
        let mut registered: Vec<_> = (0..NAMES_MAX).map(|number| directory.register(entry(number)).unwrap()).collect();
        assert!(directory.register(entry(NAMES_MAX)).is_none());
        registered.pop();
        assert!(directory.register(entry(NAMES_MAX)).is_some());
    }

    /// Starts a mapper for two connections at a time.
    async fn small_mapper(connections: &mut JoinSet<()>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        connections.spawn(accept(listener, Arc::new(directory()), Arc::new(Semaphore::new(2))));
        address
    }

    async fn ask(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        let exchange = async {
            // The mapper may have closed the connection before: then there is no answer.
            if stream.write_all(request).await.is_ok() && stream.read_to_end(&mut answer).await.is_err() {
                answer.clear();
            }
        };
        timeout(Duration::from_secs(10), exchange).await.expect("the mapper answers or closes");
        answer
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        const NAMES: &[u8] = &[0, 1, 110];
        let mut mapper = JoinSet::new();
        let address = small_mapper(&mut mapper).await;
        let idle = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut third, NAMES).await, b"", "one too many");
        assert_eq!(ask(&mut second, NAMES).await, [0, 0, 0, 1]);
        drop(idle);
        let served = async {
            while ask(&mut TcpStream::connect(address).await.unwrap(), NAMES).await.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), served).await.expect("room again");
    }

    #[tokio::test]
    async fn only_processes_of_this_host_register() {
        const REGISTER: &[u8] = &[0, 14, 120, 1, 1, 72, 0, 0, 6, 0, 6, 0, 1, b'x', 0, 0];
        let mut mapper = JoinSet::new();
        let address = small_mapper(&mut mapper).await;
        let elsewhere = TcpSocket::new_v4().unwrap();
        elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = elsewhere.connect(address).await.unwrap();
        assert_eq!(ask(&mut stream, REGISTER).await, [118, 1, 0, 0, 0, 99]);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REGISTER).await.unwrap();
        let mut answer = [9; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [118, 0, 0, 0, 0, 1]);
    }
}
