//! What a node offers to others.

use std::{net::SocketAddr, path::PathBuf};

use futures_util::future::BoxFuture;
use hexkv_store::{TypeConfig, driver::Driver, fs::SharedFs, snapshot::SnapshotFile};
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
