//! The side of the network that asks: one connection for each peer and purpose, made when it is needed.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use hexkv_store::{NodeId, driver::Driver, raft_types::Vote};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    connector::Connector,
    contact::Contact,
    cookie::Cookie,
    error::NetError,
    frame::{self, Kind},
    grant::{Grant, Grants},
    handshake::ANY_NODE,
    identity::{LocalIdentity, PeerIdentity, Purpose},
    message::decode_answer,
    raft_client::PeerFactory,
    request_queue::{Call, RequestQueue},
    rpc::{PeerRequest, PeerResponse},
    transport::Transport,
};

/// Queues kept, idle ones included; beyond, those without a connection are forgotten.
const QUEUES_KEPT_MAX: usize = 512;

/// Where nodes listen, by node id: newer than what the Raft membership says, since an address may change at a
/// restart. Clones share one book.
#[derive(Debug, Clone, Default)]
pub struct AddressBook(Arc<RwLock<BTreeMap<NodeId, String>>>);

impl AddressBook {
    /// Notes that `node` listens on `address`, `host:port`. An open connection stays.
    pub fn set(&self, node: NodeId, address: impl Into<String>) {
        self.0.write().insert(node, address.into());
    }

    /// Forgets `node`.
    pub fn remove(&self, node: NodeId) {
        self.0.write().remove(&node);
    }

    /// Where `node` listens.
    pub fn get(&self, node: NodeId) -> Option<String> {
        self.0.read().get(&node).cloned()
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
        let connector = Arc::new(Connector::new(transport, local, cookie));
        let (addresses, peers, grants) = (AddressBook::default(), Mutex::default(), Grants::default());
        Self { pool: Arc::new(Pool { connector, addresses, driver, peers, grants }) }
    }

    /// What openraft makes its clients from.
    pub fn factory(&self) -> PeerFactory<T> {
        PeerFactory::new(self.clone())
    }

    /// The addresses that win over those in the Raft membership.
    pub fn address_book(&self) -> &AddressBook {
        &self.pool.addresses
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
        let (mut stream, peer) =
            tokio::time::timeout_at(deadline, connected).await.map_err(|_| NetError::Timeout { sent: false })??;
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

    /// When something last arrived from `target` on any connection that this node made to it.
    pub fn last_contact(&self, target: NodeId) -> Option<Instant> {
        self.pool.peers.lock().contacts.get(&target)?.last()
    }

    /// The newest AppendEntries of this node that `target` accepted.
    pub fn granted(&self, target: NodeId) -> Option<Grant> {
        self.pool.grants.of(target)
    }

    /// `target` accepted an AppendEntries under `vote` that was handed over at `asked_at`.
    pub(crate) fn note_grant(&self, target: NodeId, vote: &Vote, asked_at: Instant) {
        self.pool.grants.note(target, vote, asked_at);
    }

    /// Drops all connections and fails what waits for an answer: this node's identity changed.
    pub fn reset(&self) {
        self.pool.grants.retain(|_| false);
        let queues = std::mem::take(&mut *self.pool.peers.lock()).queues;
        for queue in queues.values() {
            queue.retire();
        }
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
