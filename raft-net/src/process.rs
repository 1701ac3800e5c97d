//! Which process acts as each peer: two processes that use copies of one data directory have one node id, and only one of
//! them may act as that node.
//!
//! Each process sends a random number in its handshakes ([`crate::LocalIdentity::process`]). The number that a node accepted last
//! for a peer stays until that process no longer answers. Until then every other number is refused.
//!
//! Each start of a node counts up in its data directory, durably, before the node sends anything. So two processes with one
//! count began with the same content: the later one uses a directory that lacks what the first one wrote.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use hexkv_store::NodeId;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::{error::Refusal, identity::PeerIdentity};

/// Most peers of which a process is remembered; beyond, the one that connected longest ago is forgotten.
const PEERS_REMEMBERED_MAX: usize = 512;
/// A process that does not answer within this time is taken for ended.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
/// A refused copy is reported for this long after its last attempt.
const COPY_REPORTED: Duration = Duration::from_secs(60);

/// The process that acts as a node, as far as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeStart {
    /// The number of the process.
    pub process: u64,
    /// Its start of the node, counted in the data directory from 1.
    pub incarnation: u64,
}

/// Two processes that use copies of one data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedNode {
    /// Full name of the node that both claim to be.
    pub name: String,
    /// Where the accepted process answers.
    pub first: String,
    /// Where the refused process connected from, or listens.
    pub second: String,
    /// Attempts of the refused process.
    pub attempts: u64,
}

/// The right of one process to act as its node, as long as no other process has taken over.
#[derive(Debug, Clone)]
pub struct Seat {
    current: Arc<AtomicU64>,
    process: u64,
}

impl Seat {
    /// Another process acts as the node now.
    pub(crate) fn is_lost(&self) -> bool {
        self.current.load(Ordering::Acquire) != self.process
    }
}

/// Invariants: at most [`PEERS_REMEMBERED_MAX`] entries; a number is replaced only after its process did not answer.
pub(crate) struct Processes {
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// Changes whenever another process, or another start, is remembered.
    changes: watch::Sender<u64>,
}

struct Peer {
    /// Number of the accepted process.
    current: Arc<AtomicU64>,
    incarnation: u64,
    /// Where it answered.
    address: Option<String>,
    /// One decision at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    connected: Instant,
    copy: Option<(CopiedNode, Instant)>,
}

impl Peer {
    fn new(start: NodeStart, address: Option<String>) -> Self {
        let current = Arc::new(AtomicU64::new(start.process));
        Self {
            current,
            incarnation: start.incarnation,
            address,
            turn: Arc::default(),
            connected: Instant::now(),
            copy: None,
        }
    }

    fn process(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    fn seat(&self) -> Seat {
        Seat { current: self.current.clone(), process: self.process() }
    }
}

impl Default for Processes {
    fn default() -> Self {
        Self { peers: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Processes {
    /// Whether `peer` may act as its node; None where its process has no number, which is always accepted. `from` is where
    /// it connected from, or, `dialled`, where it listens. `known` is where its node is said to listen. `probe` connects
    /// to an address and returns the number of the process of that node that answers there.
    ///
    /// # Errors
    /// [`Refusal::CopiedNode`] while another process answers; [`Refusal::RolledBack`] when the data directory of `peer` is older
    /// than what another process left there.
    pub(crate) async fn admit<F, P>(
        &self,
        peer: &PeerIdentity,
        from: &str,
        dialled: bool,
        known: Option<String>,
        probe: F,
    ) -> Result<Option<Seat>, Refusal>
    where
        F: Fn(String) -> P,
        P: Future<Output = Option<u64>>,
    {
        let Some(process) = peer.process else { return Ok(None) };
        let start = NodeStart { process, incarnation: peer.incarnation };
        let here = dialled.then(|| from.to_owned());
        let turn = match self.accepted_before(peer.node_id, start, here.as_ref()) {
            Ok(seat) => return Ok(Some(seat)),
            Err(turn) => turn,
        };
        let _turn = turn.lock().await;
        // Another connection of this process may have been decided about meanwhile.
        if let Ok(seat) = self.accepted_before(peer.node_id, start, here.as_ref()) {
            return Ok(Some(seat));
        }
        let (first, addresses) = self.where_to_probe(peer.node_id, known, here.as_ref());
        let answers = join_all(addresses.into_iter().map(|address| {
            let answer = probe(address.clone());
            async move { (address, tokio::time::timeout(PROBE_TIMEOUT, answer).await.ok().flatten()) }
        }))
        .await;
        if let Some((at, _)) = answers.iter().find(|(_, answer)| *answer == Some(first.process)) {
            self.note_copy(peer, at, from);
            return Err(Refusal::CopiedNode { first: at.clone(), second: from.to_owned() });
        }
        if start.incarnation <= first.incarnation {
            return Err(Refusal::RolledBack { had: first.incarnation, has: start.incarnation });
        }
        let own = answers.into_iter().find(|(_, answer)| *answer == Some(process)).map(|(address, _)| address);
        Ok(Some(self.replace(peer.node_id, start, here.or(own))))
    }

    /// The seat of a process that is accepted already, or of the first one of its node; else the lock for the decision.
    fn accepted_before(
        &self,
        node: NodeId,
        start: NodeStart,
        address: Option<&String>,
    ) -> Result<Seat, Arc<tokio::sync::Mutex<()>>> {
        let mut peers = self.peers.lock();
        let Some(peer) = peers.get_mut(&node) else {
            let peer = Peer::new(start, address.cloned());
            let seat = peer.seat();
            make_room(&mut peers);
            peers.insert(node, peer);
            drop(peers);
            self.changed();
            return Ok(seat);
        };
        if peer.process() != start.process {
            return Err(peer.turn.clone());
        }
        peer.connected = Instant::now();
        if address.is_some() {
            peer.address = address.cloned();
        }
        let newer = start.incarnation > peer.incarnation;
        peer.incarnation = peer.incarnation.max(start.incarnation);
        let seat = peer.seat();
        drop(peers);
        if newer {
            self.changed();
        }
        Ok(seat)
    }

    /// The accepted process, and where it may answer: not where another one was just reached.
    fn where_to_probe(
        &self,
        node: NodeId,
        known: Option<String>,
        reached: Option<&String>,
    ) -> (NodeStart, Vec<String>) {
        let peers = self.peers.lock();
        let Some(peer) = peers.get(&node) else { return (NodeStart { process: 0, incarnation: 0 }, Vec::new()) };
        let mut addresses: Vec<String> = peer.address.iter().cloned().chain(known).collect();
        addresses.sort();
        addresses.dedup();
        addresses.retain(|address| Some(address) != reached);
        (NodeStart { process: peer.process(), incarnation: peer.incarnation }, addresses)
    }

    fn replace(&self, node: NodeId, start: NodeStart, address: Option<String>) -> Seat {
        let seat = {
            let mut peers = self.peers.lock();
            let peer = peers.entry(node).or_insert_with(|| Peer::new(start, None));
            peer.current.store(start.process, Ordering::Release);
            (peer.incarnation, peer.address, peer.connected) = (start.incarnation, address, Instant::now());
            peer.seat()
        };
        self.changed();
        seat
    }

    fn note_copy(&self, peer: &PeerIdentity, first: &str, second: &str) {
        let mut peers = self.peers.lock();
        let Some(known) = peers.get_mut(&peer.node_id) else { return };
        let attempts = known.copy.as_ref().map_or(0, |(copy, _)| copy.attempts) + 1;
        let copy = CopiedNode { name: peer.name.clone(), first: first.into(), second: second.into(), attempts };
        known.copy = Some((copy, Instant::now()));
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Changes whenever [`Processes::starts`] does.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What is to be remembered over a restart of this node.
    pub(crate) fn starts(&self) -> Vec<(NodeId, NodeStart)> {
        let peers = self.peers.lock();
        peers.iter().map(|(id, p)| (*id, NodeStart { process: p.process(), incarnation: p.incarnation })).collect()
    }

    /// Takes in what was remembered.
    pub(crate) fn remember(&self, starts: impl IntoIterator<Item = (NodeId, NodeStart)>) {
        let mut peers = self.peers.lock();
        for (node, start) in starts.into_iter().take(PEERS_REMEMBERED_MAX) {
            make_room(&mut peers);
            peers.entry(node).or_insert_with(|| Peer::new(start, None));
        }
    }

    /// Copies that were refused a short time ago.
    pub(crate) fn copies(&self) -> Vec<CopiedNode> {
        let peers = self.peers.lock();
        let recent = |(copy, at): &(CopiedNode, Instant)| (at.elapsed() < COPY_REPORTED).then(|| copy.clone());
        peers.values().filter_map(|peer| peer.copy.as_ref().and_then(recent)).collect()
    }
}

fn make_room(peers: &mut BTreeMap<NodeId, Peer>) {
    if peers.len() >= PEERS_REMEMBERED_MAX
        && let Some(oldest) = peers.iter().min_by_key(|(_, peer)| peer.connected).map(|(id, _)| *id)
    {
        peers.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(process: u64, incarnation: u64) -> PeerIdentity {
        let (name, process) = ("n7@here".to_owned(), Some(process));
        PeerIdentity { cluster_id: Some(9), node_id: 7, incarnation, name, process, guest: false }
    }

    /// Which process answers at which address.
    type Answers = &'static [(&'static str, u64)];

    async fn admit(
        processes: &Processes,
        peer: &PeerIdentity,
        (from, dialled): (&str, bool),
        answers: Answers,
    ) -> Result<Option<Seat>, Refusal> {
        let probe = |address: String| async move { answers.iter().find(|(at, _)| *at == address).map(|(_, p)| *p) };
        processes.admit(peer, from, dialled, Some("book:1".into()), probe).await
    }

    #[tokio::test]
    async fn a_copy_is_refused_while_the_first_process_answers() {
        let processes = Processes::default();
        let first = admit(&processes, &peer(1, 4), ("here:9", false), &[]).await.unwrap().unwrap();
        let refused = admit(&processes, &peer(2, 5), ("there:9", false), &[("book:1", 1)]).await.unwrap_err();
        assert_eq!(refused, Refusal::CopiedNode { first: "book:1".into(), second: "there:9".into() });
        assert!(!first.is_lost());
        let copy = processes.copies().pop().unwrap();
        assert_eq!((copy.name.as_str(), copy.second.as_str(), copy.attempts), ("n7@here", "there:9", 1));
        // Once it is gone, the other one takes over, and connections of the first one are worth nothing.
        let second = admit(&processes, &peer(2, 5), ("there:9", false), &[("book:1", 2)]).await.unwrap().unwrap();
        assert!(first.is_lost() && !second.is_lost());
    }

    #[tokio::test]
    async fn the_process_that_took_over_keeps_the_seat() {
        let processes = Processes::default();
        admit(&processes, &peer(1, 4), ("a:1", true), &[]).await.unwrap();
        admit(&processes, &peer(2, 5), ("b:1", true), &[]).await.unwrap();
        let back = admit(&processes, &peer(3, 6), ("a:1", true), &[("b:1", 2)]).await.unwrap_err();
        assert_eq!(back, Refusal::CopiedNode { first: "b:1".into(), second: "a:1".into() });
    }

    #[tokio::test]
    async fn a_restart_at_the_same_address_needs_no_probe() {
        let processes = Processes::default();
        admit(&processes, &peer(1, 4), ("book:1", true), &[]).await.unwrap();
        let probe = |address: String| async move { panic!("{address} was probed") };
        let restarted = processes.admit(&peer(2, 5), "book:1", true, Some("book:1".into()), probe).await;
        assert!(restarted.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_process_that_never_answers_holds_a_restart_up_for_one_probe() {
        let processes = Processes::default();
        admit(&processes, &peer(1, 4), ("a:1", true), &[]).await.unwrap();
        let began = Instant::now();
        let silent = |_: String| std::future::pending::<Option<u64>>();
        processes.admit(&peer(2, 5), "b:1", false, None, silent).await.unwrap().unwrap();
        assert_eq!(began.elapsed(), PROBE_TIMEOUT);
    }

    #[tokio::test]
    async fn a_directory_that_went_back_is_refused() {
        let processes = Processes::default();
        processes.remember([(7, NodeStart { process: 1, incarnation: 5 })]);
        for has in [4, 5] {
            let refused = admit(&processes, &peer(2, has), ("book:1", true), &[]).await.unwrap_err();
            assert_eq!(refused, Refusal::RolledBack { had: 5, has });
        }
        assert!(admit(&processes, &peer(3, 6), ("book:1", true), &[]).await.is_ok());
        assert_eq!(processes.starts(), [(7, NodeStart { process: 3, incarnation: 6 })]);
    }

    #[tokio::test]
    async fn a_release_without_process_numbers_is_accepted() {
        let processes = Processes::default();
        let old = PeerIdentity { process: None, ..peer(0, 1) };
        assert!(admit(&processes, &old, ("a:1", false), &[]).await.unwrap().is_none());
        assert!(processes.starts().is_empty());
    }

    #[tokio::test]
    async fn memory_is_bounded_whichever_nodes_connect() {
        let processes = Processes::default();
        for node_id in 0..2 * PEERS_REMEMBERED_MAX as u64 {
            let peer = PeerIdentity { node_id, ..peer(1, 1) };
            admit(&processes, &peer, ("a:1", false), &[]).await.unwrap();
        }
        assert_eq!(processes.starts().len(), PEERS_REMEMBERED_MAX);
    }
}
