//! What a node offers to others.

use std::{net::SocketAddr, path::PathBuf};

use futures_util::future::BoxFuture;
use hexkv_store::{
    StoreError, TypeConfig,
    driver::Driver,
    fs::SharedFs,
    raft_types::{Entry, LogId, SnapshotMeta},
    snapshot::SnapshotFile,
};
use openraft::{Raft, raft::AppendEntriesRequest, storage::RaftStateMachine};

use crate::{
    error::Refusal,
    identity::{LocalIdentity, PeerIdentity},
    process::Seat,
    rpc::{PeerRequest, PeerResponse},
};

/// What a node offers to others. Identity and Raft change when the node joins or leaves a cluster, so they are asked
/// for each request, and must be cheap.
pub trait Service: Send + Sync + 'static {
    /// The state machine below openraft.
    type StateMachine: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>;

    /// Who this node is now.
    fn local(&self) -> LocalIdentity;

    /// The Raft node of the identity that [`Self::local`] returns; None while it is being swapped: Raft requests are
    /// then answered as unavailable. When the identity changes, this must be None before and until after it does.
    fn raft(&self) -> Option<Raft<TypeConfig, Self::StateMachine>>;

    /// Whether a candidate gets an answer now. A node that was restarted gives none as long as a lease may run that it
    /// granted before and does not remember. Not asked for candidates to which a leader hands leadership over.
    fn answers_votes(&self) -> bool;

    /// Whether the process of member `peer`, which connected from `from`, may act as that member: see [`Seat`]. None for a peer
    /// of which that cannot be decided.
    ///
    /// # Errors
    /// Why it is refused.
    fn admits(&self, peer: PeerIdentity, from: SocketAddr) -> BoxFuture<'static, Result<Option<Seat>, Refusal>> {
        let _ = (peer, from);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Whether `peer`, which knows the cookie and the cluster's id, is a member of the cluster as far as this node knows. Only
    /// members get here with requests that are not [`PeerRequest::open_to_guests`].
    fn is_member(&self, peer: &PeerIdentity) -> bool;

    /// Whether members reported `peer` as a voter or learner. Called where `peer` is in no membership of this node's Raft:
    /// that of a node that has just joined is empty, and that of a node that was away may be old.
    fn vouched(&self, peer: &PeerIdentity) -> bool;

    /// The last entry of this node's log.
    fn last_log_id(&self) -> Option<LogId>;

    /// The highest term that members reported.
    fn reported_term(&self) -> u64;

    /// A node that is in no membership here sent one of Raft's messages: members may know it.
    fn stranger(&self) {}

    /// A request of `peer` was refused. The log has it already.
    fn refused_request(&self, peer: &PeerIdentity, refusal: &Refusal) {
        let _ = (peer, refusal);
    }

    /// Whether the state machine can read each of `entries`.
    ///
    /// # Errors
    /// Why not.
    fn check_entries(&self, entries: &[Entry]) -> Result<(), Refusal> {
        let _ = entries;
        Ok(())
    }

    /// Whether `file` is whole, covers what `meta` says, and is of this node's cluster. May block. An error in a snapshot that is
    /// being installed stops the node, so this comes before.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check_snapshot(&self, meta: &SnapshotMeta, file: &SnapshotFile) -> Result<(), StoreError>;

    /// A member that proved the cookie refuses this node.
    fn refused(&self, refusal: &Refusal) {
        let _ = refusal;
    }

    /// Whether AppendEntries may be given to Raft: not when they contradict what is committed here, which openraft takes for granted.
    fn accepts_append(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let _ = request;
        true
    }

    /// Where received snapshots go.
    fn snapshot_dir(&self) -> (SharedFs, PathBuf);

    /// What runs work that blocks: writing snapshots that are received.
    fn driver(&self) -> Driver {
        Driver::Thread
    }

    /// Answers a request. Guests get here only with requests that are [`PeerRequest::open_to_guests`]. Polled on the
    /// task of the connection, together with other requests of the same peer: must not block.
    fn peer(&self, from: PeerIdentity, request: PeerRequest) -> BoxFuture<'static, PeerResponse>;
}
