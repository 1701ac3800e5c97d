//! A network of tests: a resolver and addresses that behave as a test says, in paused time.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{io::DuplexStream, time::sleep};

use super::{Accepted, Listener, Transport};

/// What comes of an attempt to connect.
#[derive(Debug, Clone, Copy)]
pub enum Reaction {
    /// It succeeds after this time.
    Accept(Duration),
    /// It fails at once.
    Refuse,
    /// Nothing, as behind a firewall that drops.
    Drop,
}

/// Clones share everything.
#[derive(Clone, Default)]
pub struct Fake(Arc<Inner>);

/// How long a look-up takes, and what it finds.
type Answer = (Duration, Result<Vec<SocketAddr>, &'static str>);

#[derive(Default)]
struct Inner {
    answers: Mutex<VecDeque<Answer>>,
    reactions: Mutex<BTreeMap<SocketAddr, Reaction>>,
    lookups: AtomicUsize,
    attempts: Mutex<Vec<SocketAddr>>,
}

impl Fake {
    /// The next look-up takes `after`, and finds `addresses`, or fails.
    pub fn answer(&self, after: Duration, addresses: Result<&[&str], &'static str>) {
        let parsed = addresses.map(|all| all.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect());
        self.0.answers.lock().push_back((after, parsed));
    }

    pub fn react(&self, address: &str, reaction: Reaction) {
        self.0.reactions.lock().insert(address.parse().unwrap(), reaction);
    }

    /// Look-ups that were begun.
    pub fn lookups(&self) -> usize {
        self.0.lookups.load(SeqCst)
    }

    /// Addresses that were connected to since the last call, in order.
    pub fn attempts(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.attempts.lock()).iter().map(ToString::to_string).collect()
    }
}

impl Transport for Fake {
    type Stream = DuplexStream;
    type Listener = FakeListener;

    async fn resolve(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
        self.0.lookups.fetch_add(1, SeqCst);
        let next = self.0.answers.lock().pop_front();
        // A resolver without name servers.
        let Some((after, answer)) = next else { return std::future::pending().await };
        sleep(after).await;
        answer.map_err(io::Error::other)
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<DuplexStream> {
        self.0.attempts.lock().push(address);
        let reaction = self.0.reactions.lock().get(&address).copied().unwrap_or(Reaction::Drop);
        match reaction {
            Reaction::Accept(after) => sleep(after).await,
            Reaction::Refuse => return Err(io::ErrorKind::ConnectionRefused.into()),
            Reaction::Drop => std::future::pending().await,
        }
        Ok(tokio::io::duplex(64).0)
    }

    async fn bind(&self, _: &str) -> io::Result<FakeListener> {
        Ok(FakeListener)
    }
}

/// Nothing connects to it.
pub struct FakeListener;

impl Listener for FakeListener {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> io::Result<Accepted<DuplexStream>> {
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
