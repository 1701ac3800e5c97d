//! The side of the network that asks: one connection for each peer and purpose, made when it is needed.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use hexkv_store::{NodeId, driver::Driver, raft_types::Vote};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use crate::{
    acknowledged::{Acknowledged, LostEntries},
    connector::Connector,
    contact::Contact,
    cookie::Cookie,
    dialer::Dialer,
    error::{NetError, Refusal},
    frame::{self, Kind},
    grant::{Grant, Grants},
    handshake::ANY_NODE,
    identity::{LocalIdentity, PeerIdentity, Purpose},
    message::decode_answer,
    process::{CopiedNode, NodeStart, Seat},
    raft_client::PeerFactory,
    request_queue::{Call, RequestQueue},
    rpc::{PeerRequest, PeerResponse},
    transport::Transport,
};

/// Queues kept, idle ones included; beyond, those without a connection are forgotten.
const QUEUES_KEPT_MAX: usize = 512;

/// Where nodes listen, by node id: newer than what the Raft membership says, since an address may change at a
/// restart. Clones share one book.
///
/// An address at which a node was found wins over the one that the member list has, until the list has another one.
#[derive(Debug, Clone, Default)]
pub struct AddressBook(Arc<RwLock<BTreeMap<NodeId, Listing>>>);

#[derive(Debug, Default)]
struct Listing {
    listed: String,
    found: Option<String>,
}

impl AddressBook {
    /// Notes that the member list has `address`, `host:port`, for `node`. An open connection stays.
    pub fn set(&self, node: NodeId, address: impl Into<String>) {
        let address = address.into();
        let mut book = self.0.write();
        let listing = book.entry(node).or_default();
        if listing.listed != address {
            *listing = Listing { listed: address, found: None };
        }
    }

    /// Notes that `node` answered at `address`, `host:port`, and proved who it is. Answers whether that is news.
    pub fn found(&self, node: NodeId, address: &str) -> bool {
        let mut book = self.0.write();
        let listing = book.entry(node).or_default();
        let found = Some(address.to_owned()).filter(|found| *found != listing.listed);
        let news = listing.found != found;
        listing.found = found;
        news
    }

    /// Forgets `node`.
    pub fn remove(&self, node: NodeId) {
        self.0.write().remove(&node);
    }

    /// Where `node` listens.
    pub fn get(&self, node: NodeId) -> Option<String> {
        let book = self.0.read();
        let Listing { listed, found } = book.get(&node)?;
        Some(found.as_ref().unwrap_or(listed).clone())
    }
}

/// Asks other nodes. Clones share the connections. Needs a Tokio runtime around every call.
pub struct Network<T: Transport> {
    pool: Arc<Pool<T>>,
}

impl<T: Transport> Clone for Network<T> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone() }
    }
}

impl<T: Transport> fmt::Debug for Network<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("local", &self.pool.connector.local()).finish_non_exhaustive()
    }
}

/// Invariants: at most one queue for a peer and purpose; dropping the pool ends every connection.
struct Pool<T> {
    connector: Arc<Connector<T>>,
    addresses: AddressBook,
    driver: Driver,
    peers: Mutex<Peers>,
    grants: Grants,
    acknowledged: Acknowledged,
}

#[derive(Default)]
struct Peers {
    queues: BTreeMap<(NodeId, Purpose), Arc<RequestQueue>>,
    contacts: BTreeMap<NodeId, Arc<Contact>>,
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        for queue in self.peers.get_mut().queues.values() {
            queue.retire();
        }
    }
}

impl<T: Transport> Network<T> {
    /// A network without connections. `local` says who this node is at the time of each handshake; `driver` reads
    /// snapshots that are sent.
    pub fn new(
        transport: T,
        local: Arc<dyn Fn() -> LocalIdentity + Send + Sync>,
        cookie: Cookie,
        driver: Driver,
    ) -> Self {
        let (addresses, peers, grants) = (AddressBook::default(), Mutex::default(), Grants::default());
        let book = addresses.clone();
        let connector = Arc::new(Connector::new(transport, local, cookie, Arc::new(move |node| book.get(node))));
        Self {
            pool: Arc::new(Pool { connector, addresses, driver, peers, grants, acknowledged: Acknowledged::default() }),
        }
    }

    /// What openraft makes its clients from.
    pub fn factory(&self) -> PeerFactory<T> {
        PeerFactory::new(self.clone())
    }

    /// The addresses that win over those in the Raft membership.
    pub fn address_book(&self) -> &AddressBook {
        &self.pool.addresses
    }

    /// What makes connections to names, for protocols of other kinds too.
    pub fn dialer(&self) -> &Dialer<T> {
        self.pool.connector.dialer()
    }

    /// Keeps the connections that carry entries open to exactly these nodes, each with its `host:port`, also while nothing is
    /// sent: they are made now, and again when they are lost. Entries must not depend on a connection that can be made at
    /// the moment at which they have to be sent.
    pub fn keep_open(&self, nodes: &BTreeMap<NodeId, String>) {
        let kept: Vec<Arc<RequestQueue>> = {
            let peers = self.pool.peers.lock();
            let of_entries = peers.queues.values().filter(|queue| queue.purpose == Purpose::Raft);
            of_entries.filter(|queue| !nodes.contains_key(&queue.target)).cloned().collect()
        };
        for queue in kept {
            queue.keep_open(None);
        }
        for (node, address) in nodes {
            let queue = self.queue(*node, Purpose::Raft);
            if queue.keep_open(Some(address)) {
                tokio::spawn(self.pool.connector.clone().drive(queue));
            }
        }
    }

    /// Asks member `target`, which listens at `address`, over the connection that all such requests share.
    ///
    /// # Errors
    /// [`NetError::maybe_delivered`] says whether the request may have been carried out. A [`PeerResponse::Error`] is
    /// an answer, not an error.
    pub async fn request(
        &self,
        target: NodeId,
        address: &str,
        request: PeerRequest,
        timeout: Duration,
    ) -> Result<PeerResponse, NetError> {
        self.ask(target, address, Purpose::Peer, &request, timeout).await
    }

    /// As [`Self::request`], over the connection for what must not wait, which votes take too. Who asks this way now and
    /// then, and little at a time, finds it open when an election begins.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub async fn request_urgent(
        &self,
        target: NodeId,
        address: &str,
        request: PeerRequest,
        timeout: Duration,
    ) -> Result<PeerResponse, NetError> {
        self.ask(target, address, Purpose::Urgent, &request, timeout).await
    }

    async fn ask(
        &self,
        target: NodeId,
        address: &str,
        purpose: Purpose,
        request: &PeerRequest,
        timeout: Duration,
    ) -> Result<PeerResponse, NetError> {
        let call = self.submit(target, address, purpose, Kind::Peer, request)?;
        decode_answer("peer response", &call.within(timeout).await?)
    }

    /// Asks whoever listens at `address`, as a guest, over a connection of its own. Also says who answered.
    ///
    /// # Errors
    /// As [`Self::request`]; requests that are not [`PeerRequest::open_to_guests`] are refused.
    pub async fn request_as_guest(
        &self,
        address: &str,
        request: PeerRequest,
        timeout: Duration,
    ) -> Result<(PeerIdentity, PeerResponse), NetError> {
        let encoded = frame::encode(1, Kind::Peer, &request).map_err(|bytes| NetError::TooLarge { bytes })?;
        let deadline = Instant::now() + timeout;
        let connected = self.pool.connector.connect(address, Purpose::Guest, ANY_NODE);
        let connected = tokio::time::timeout_at(deadline, connected).await;
        let (mut stream, peer) = connected.map_err(|_| self.not_connected(address, timeout))??;
        let exchange = async {
            stream.write(encoded).await.map_err(|_| NetError::Closed { sent: true })?;
            loop {
                let read = stream.read().await;
                if let Err(error) = &read {
                    self.pool.connector.log_senseless(address, error);
                }
                let frame =
                    read.map_err(|e| NetError::Protocol(e.to_string()))?.ok_or(NetError::Closed { sent: true })?;
                if frame.kind != Kind::Alive {
                    return decode_answer("peer response", &frame);
                }
            }
        };
        let response =
            tokio::time::timeout_at(deadline, exchange).await.map_err(|_| NetError::Timeout { sent: true })??;
        Ok((peer, response))
    }

    /// Why no connection to `address` was made within `timeout`.
    fn not_connected(&self, address: &str, timeout: Duration) -> NetError {
        let resolver = self.dialer().describe(address).map(|text| format!(" ({text})")).unwrap_or_default();
        let why = format!("not connected within {timeout:?}{resolver}");
        NetError::connect(address, io::Error::new(io::ErrorKind::TimedOut, why))
    }

    /// When something last arrived from `target` on any connection that this node made to it.
    pub fn last_contact(&self, target: NodeId) -> Option<Instant> {
        self.pool.peers.lock().contacts.get(&target)?.last()
    }

    /// Why the last attempt to connect to `target` failed, if it did.
    pub fn trouble(&self, target: NodeId) -> Option<String> {
        self.pool.peers.lock().contacts.get(&target)?.trouble()
    }

    /// The newest AppendEntries of this node that `target` accepted.
    pub fn granted(&self, target: NodeId) -> Option<Grant> {
        self.pool.grants.of(target)
    }

    /// `target` accepted an AppendEntries under `vote` that was handed over at `asked_at`.
    pub(crate) fn note_grant(&self, target: NodeId, vote: &Vote, asked_at: Instant) {
        self.pool.grants.note(target, vote, asked_at);
    }

    /// Logs that an answer of `target` is refused.
    pub(crate) fn log_refused_answer(&self, target: NodeId, refusal: &Refusal) {
        let address = self.pool.addresses.get(target).unwrap_or_else(|| format!("{target:016x}"));
        self.pool.connector.log_refused(&address, refusal);
    }

    /// What followers acknowledged to this node.
    pub(crate) fn acknowledged(&self) -> &Acknowledged {
        &self.pool.acknowledged
    }

    /// Followers that lost entries which they acknowledged to this node as the leader, by the signs of the last minute.
    pub fn lost_entries(&self) -> Vec<LostEntries> {
        self.pool.acknowledged.lost()
    }

    /// Drops all connections and fails what waits for an answer: this node's identity changed.
    pub fn reset(&self) {
        self.pool.grants.retain(|_| false);
        self.pool.acknowledged.retain(|_| false);
        let queues = std::mem::take(&mut *self.pool.peers.lock()).queues;
        for queue in queues.values() {
            queue.retire();
        }
    }

    /// Whether the process of `peer`, which connected from `from`, may act as its node: not while another one answers.
    ///
    /// # Errors
    /// [`Refusal::CopiedNode`], [`Refusal::RolledBack`].
    pub async fn admit(&self, peer: &PeerIdentity, from: &str) -> Result<Option<Seat>, Refusal> {
        self.pool.connector.admit(peer, from, false).await
    }

    /// `peer`, which was admitted, connected from `from`: it is tried there while its name cannot be resolved.
    pub fn note_source(&self, peer: &PeerIdentity, from: SocketAddr) {
        if let Some(address) = self.pool.addresses.get(peer.node_id) {
            self.dialer().note_source(&address, from);
        }
    }

    /// The last refusal of this node by a member that proved the cookie.
    pub fn refusals(&self) -> watch::Receiver<Option<Refusal>> {
        self.pool.connector.refused.subscribe()
    }

    /// Passes on a refusal of this node that came over a connection which the other side made.
    pub fn note_refused(&self, refusal: &Refusal) {
        self.pool.connector.refused.send_replace(Some(refusal.clone()));
    }

    /// Copies of members that were refused here in the last minute.
    pub fn copies(&self) -> Vec<CopiedNode> {
        self.pool.connector.processes.copies()
    }

    /// The random number of this process, as its handshakes say it.
    pub fn process(&self) -> u64 {
        self.pool.connector.local().process
    }

    /// The last start of each member that is known here.
    pub fn starts(&self) -> Vec<(NodeId, NodeStart)> {
        self.pool.connector.processes.starts()
    }

    /// Changes whenever [`Self::starts`] does.
    pub fn starts_changed(&self) -> watch::Receiver<u64> {
        self.pool.connector.processes.changes()
    }

    /// Takes in starts that an earlier process of this node knew.
    pub fn remember_starts(&self, starts: impl IntoIterator<Item = (NodeId, NodeStart)>) {
        self.pool.connector.processes.remember(starts);
    }

    /// What runs work that blocks.
    pub(crate) fn driver(&self) -> Driver {
        self.pool.driver
    }

    /// Who this node is now.
    pub(crate) fn local_id(&self) -> NodeId {
        self.pool.connector.local().node_id
    }

    /// Queues a request to `target`, and starts the task that carries it where none runs.
    pub(crate) fn submit<B: Serialize>(
        &self,
        target: NodeId,
        address: &str,
        purpose: Purpose,
        kind: Kind,
        body: &B,
    ) -> Result<Call, NetError> {
        let queue = self.queue(target, purpose);
        let id = queue.next_id();
        let frame = frame::encode(id, kind, body).map_err(|bytes| NetError::TooLarge { bytes })?;
        let (call, start_driver) = queue.submit(id, frame, address)?;
        if start_driver {
            tokio::spawn(self.pool.connector.clone().drive(queue));
        }
        Ok(call)
    }

    fn queue(&self, target: NodeId, purpose: Purpose) -> Arc<RequestQueue> {
        let mut peers = self.pool.peers.lock();
        if let Some(queue) = peers.queues.get(&(target, purpose)) {
            return queue.clone();
        }
        if peers.queues.len() >= QUEUES_KEPT_MAX {
            peers.forget_idle();
            self.pool.grants.retain(|node| peers.contacts.contains_key(&node));
            self.pool.acknowledged.retain(|node| peers.contacts.contains_key(&node));
        }
        let contact = peers.contacts.entry(target).or_default().clone();
        let queue = Arc::new(RequestQueue::new(target, purpose, contact));
        peers.queues.insert((target, purpose), queue.clone());
        queue
    }
}

impl Peers {
    /// Node ids are never reused, so nodes that left would pile up.
    fn forget_idle(&mut self) {
        self.queues.retain(|_, queue| !queue.is_idle());
        let queues = &self.queues;
        self.contacts.retain(|node, _| queues.keys().any(|(target, _)| target == node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_found_address_wins_until_the_member_list_has_another_one() {
        let book = AddressBook::default();
        book.set(2, "old:1");
        assert!(book.found(2, "new:1"));
        assert!(!book.found(2, "new:1"), "that is known");
        book.set(2, "old:1");
        assert_eq!(book.get(2).as_deref(), Some("new:1"), "the list has not changed");
        book.set(2, "newer:1");
        assert_eq!(book.get(2).as_deref(), Some("newer:1"));
        assert!(book.found(2, "new:1") && book.found(2, "newer:1"), "it is back where it is listed");
        assert_eq!(book.get(2).as_deref(), Some("newer:1"));
    }
}
