//! The side of the network that answers: accepts connections and lets those in that prove who they are.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    connection::{Connection, Parties},
    connector::HANDSHAKE_TIMEOUT,
    cookie::Cookie,
    error::Refusal,
    frame_stream::FrameStream,
    handshake::{self, HandshakeError},
    identity::PeerIdentity,
    process::Seat,
    refusal_log::{RefusalLog, RefusedBy},
    service::Service,
    snapshot_transfer::Incoming,
    transport::{Accepted, Listener},
};

/// Most connections that have not proved anything yet. One more ends the oldest: an honest node needs milliseconds
/// for its handshake, so whoever dawdles loses.
pub const HANDSHAKES_MAX: usize = 64;
/// Most connections of nodes that know the cookie; further ones are refused.
pub const CONNECTIONS_MAX: usize = 1024;
/// Pause after a failed accept, most of which mean that the process has no descriptors left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What all connections of a listener share.
struct Shared<S: Service> {
    service: Arc<S>,
    cookie: Cookie,
    refusals: Arc<RefusalLog>,
    incoming: Arc<Incoming>,
    handshakes: Mutex<Handshakes>,
    connections: AtomicUsize,
    shutdown: CancellationToken,
}

/// Handshakes under way, oldest first. Invariant: at most [`HANDSHAKES_MAX`].
#[derive(Default)]
struct Handshakes {
    next: u64,
    under_way: VecDeque<(u64, CancellationToken)>,
}

impl Handshakes {
    /// Registers one more, and ends the oldest where there are too many.
    fn begin(&mut self) -> (u64, CancellationToken) {
        if self.under_way.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = self.under_way.pop_front()
        {
            oldest.cancel();
        }
        let (id, token) = (self.next, CancellationToken::new());
        self.next += 1;
        self.under_way.push_back((id, token.clone()));
        (id, token)
    }

    fn end(&mut self, id: u64) {
        self.under_way.retain(|(other, _)| *other != id);
    }
}

/// Serves `service` to the nodes that connect to `listener` and know `cookie`, until `shutdown` is cancelled.
/// Requests under way then get a moment to finish.
pub async fn serve<L: Listener, S: Service>(
    mut listener: L,
    service: Arc<S>,
    cookie: Cookie,
    shutdown: CancellationToken,
) {
    let shared = Arc::new(Shared {
        service,
        cookie,
        refusals: Arc::default(),
        incoming: Arc::default(),
        handshakes: Mutex::default(),
        connections: AtomicUsize::new(0),
        shutdown,
    });
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => report(ended),
            accepted = listener.accept() => match accepted {
                Ok(Accepted { stream, from, close: _ }) => {
                    // Registered here, so that the limit holds however late the task runs.
                    let (id, superseded) = shared.handshakes.lock().begin();
                    tasks.spawn(shared.clone().connection(FrameStream::new(stream), from, id, superseded));
                }
                Err(e) => back_off(&e, &shared.shutdown).await,
            },
        }
    }
    drop(listener);
    while let Some(ended) = tasks.join_next().await {
        report(ended);
    }
}

async fn back_off(error: &io::Error, shutdown: &CancellationToken) {
    tracing::warn!(%error, "cannot accept a connection");
    shutdown.run_until_cancelled(tokio::time::sleep(ACCEPT_RETRY_DELAY)).await;
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the task of a connection broke");
    }
}

impl<S: Service> Shared<S> {
    /// Handshake, then requests until the connection ends.
    async fn connection<I>(
        self: Arc<Self>,
        mut stream: FrameStream<I>,
        from: SocketAddr,
        id: u64,
        superseded: CancellationToken,
    ) where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let local = self.service.local();
        let shaken = {
            let handshake = handshake::respond(&mut stream, &local, &self.cookie);
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake);
            tokio::select! {
                biased;
                () = superseded.cancelled() => None,
                () = self.shutdown.cancelled() => None,
                shaken = handshake => shaken.ok(),
            }
        };
        self.handshakes.lock().end(id);
        let address = from.ip().to_string();
        let (peer, purpose) = match shaken {
            None => return tracing::debug!(%from, "a handshake was not finished in time"),
            Some(Ok(shaken)) => shaken,
            Some(Err(HandshakeError::WeRefuse(refusal))) => {
                return self.refusals.warn(&address, RefusedBy::Us, &refusal);
            }
            Some(Err(HandshakeError::TheyRefuse(refusal))) => {
                return self.refusals.warn(&address, RefusedBy::Them, &refusal);
            }
            Some(Err(HandshakeError::Closed)) => {
                return tracing::debug!(%from, "the connection ended before the handshake");
            }
            Some(Err(error)) => {
                let refusal = Refusal::NoHandshake(error.to_string());
                return self.refusals.warn(&address, RefusedBy::Us, &refusal);
            }
        };
        let _counted = match Counted::new(&self.connections) {
            Some(counted) => counted,
            None => {
                return self.turn_away(&mut stream, &peer, &address, Refusal::TooManyConnections).await;
            }
        };
        let seat = match self.seat(&peer, from).await {
            Ok(seat) => seat,
            Err(refusal) => return self.turn_away(&mut stream, &peer, &address, refusal).await,
        };
        tracing::debug!(%peer, %from, ?purpose, "connection accepted");
        let parties = Parties { local, peer: peer.clone(), purpose, seat, address: address.clone() };
        let (incoming, refusals) = (self.incoming.clone(), self.refusals.clone());
        let connection = Connection::new(stream, self.service.clone(), parties, incoming, refusals);
        let end = connection.run(&self.shutdown).await;
        tracing::debug!(%peer, %from, ?purpose, %end, "connection ended");
        if let Some((by, refusal)) = end.refusal() {
            self.refusals.warn(&address, by, &refusal);
            if by == RefusedBy::Them {
                self.service.refused(&refusal);
            }
        }
    }

    /// Guests act as no node.
    async fn seat(&self, peer: &PeerIdentity, from: SocketAddr) -> Result<Option<Seat>, Refusal> {
        if peer.guest {
            return Ok(None);
        }
        tokio::select! {
            seat = self.service.admits(peer.clone(), from) => seat,
            () = self.shutdown.cancelled() => Ok(None),
        }
    }

    /// Refuses a peer that has proved the cookie.
    async fn turn_away<I>(&self, stream: &mut FrameStream<I>, peer: &PeerIdentity, address: &str, refusal: Refusal)
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let sent = handshake::refuse(stream, refusal.clone());
        if tokio::time::timeout(HANDSHAKE_TIMEOUT, sent).await.is_err() {
            tracing::debug!(%peer, "the refused side does not read");
        }
        self.refusals.warn(address, RefusedBy::Us, &refusal);
    }
}

/// Counts one connection as long as it lives. Invariant: the counter never exceeds [`CONNECTIONS_MAX`].
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Option<Self> {
        let one_more = |n| (n < CONNECTIONS_MAX).then_some(n + 1);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Self(counter))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_handshake_too_many_ends_the_oldest() {
        let mut handshakes = Handshakes::default();
        let tokens: Vec<_> = (0..=HANDSHAKES_MAX).map(|_| handshakes.begin()).collect();
        assert_eq!(handshakes.under_way.len(), HANDSHAKES_MAX);
        let cancelled: Vec<_> = tokens.iter().filter(|(_, token)| token.is_cancelled()).map(|(id, _)| *id).collect();
        assert_eq!(cancelled, [0]);
        handshakes.end(5);
        handshakes.begin();
        assert!(!tokens[1].1.is_cancelled(), "a finished one made room");
    }

    #[test]
    fn connections_are_counted_while_they_live() {
        let counter = AtomicUsize::new(CONNECTIONS_MAX - 1);
        let last = Counted::new(&counter);
        assert!(last.is_some());
        assert!(Counted::new(&counter).is_none());
        drop(last);
        assert!(Counted::new(&counter).is_some());
    }
}
