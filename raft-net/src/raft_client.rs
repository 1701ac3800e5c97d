//! What openraft sends through: one client for each peer and purpose, over the connections of [`Network`].

use std::{future::Future, time::Duration};

use futures_util::{Stream, future::BoxFuture, stream::BoxStream};
use hexkv_store::{
    NodeAddress, NodeId, TypeConfig,
    driver::Driver,
    entropy,
    raft_types::{LogId, Vote},
    snapshot::SnapshotFile,
};
use openraft::{
    RPCTypes,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
    },
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{
    append_pipeline::AppendPipeline,
    error::{NetError, Refusal},
    frame::{Frame, Kind},
    identity::Purpose,
    message::decode_answer,
    network::Network,
    raft_check::check_answered_vote,
    request_queue::Call,
    snapshot_transfer,
    transport::Transport,
};

/// Shortest and longest wait of openraft before it tries an unreachable peer again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Makes openraft's clients.
pub struct PeerFactory<T: Transport> {
    network: Network<T>,
}

impl<T: Transport> PeerFactory<T> {
    pub(crate) fn new(network: Network<T>) -> Self {
        Self { network }
    }

    fn client(&self, target: NodeId, node: &NodeAddress, purpose: Purpose) -> PeerClient<T> {
        PeerClient { network: self.network.clone(), target, member_address: node.raft.clone(), purpose }
    }
}

impl<T: Transport> RaftNetworkFactory<TypeConfig> for PeerFactory<T> {
    type Network = PeerClient<T>;

    async fn new_client(&mut self, target: NodeId, node: &NodeAddress) -> PeerClient<T> {
        self.client(target, node, Purpose::Raft)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &NodeAddress) -> PeerClient<T> {
        self.client(target, node, Purpose::Urgent)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &NodeAddress) -> PeerClient<T> {
        self.client(target, node, Purpose::Snapshot)
    }
}

/// openraft's client for one peer. Holds no connection itself: clients of one peer and purpose share one.
pub struct PeerClient<T: Transport> {
    network: Network<T>,
    target: NodeId,
    /// Where the Raft membership says that the peer listens.
    member_address: String,
    purpose: Purpose,
}

impl<T: Transport> PeerClient<T> {
    /// Queues a request to the peer at the newest address known.
    pub(crate) fn submit<B: Serialize>(&self, kind: Kind, body: &B) -> Result<Call, NetError> {
        self.submit_for(self.purpose, kind, body)
    }

    fn submit_for<B: Serialize>(&self, purpose: Purpose, kind: Kind, body: &B) -> Result<Call, NetError> {
        let known = self.network.address_book().get(self.target);
        let address = known.as_deref().unwrap_or(&self.member_address);
        self.network.submit(self.target, address, purpose, kind, body)
    }

    /// The peer accepted an AppendEntries under `vote` that was handed over at `asked_at`.
    pub(crate) fn note_grant(&self, vote: &Vote, asked_at: Instant) {
        self.network.note_grant(self.target, vote, asked_at);
    }

    /// The peer holds entries up to `matched`, and acknowledged that under `vote`.
    pub(crate) fn note_acknowledged(&self, vote: &Vote, matched: Option<LogId>) {
        self.network.acknowledged().note(self.target, vote, matched);
    }

    /// Index of the entry that `request` follows, where the peer acknowledged that one under the same vote. openraft sends
    /// heartbeats behind what the peer acknowledged.
    pub(crate) fn acknowledged_before(&self, request: &AppendEntriesRequest<TypeConfig>) -> Option<u64> {
        let previous = request.prev_log_id?.index;
        let heartbeat = self.purpose == Purpose::Urgent;
        let covered = heartbeat || self.network.acknowledged().covers(self.target, &request.vote, previous);
        covered.then_some(previous)
    }

    /// The peer lost the entry at `missing`, which it acknowledged under `vote`. The error for openraft, which backs off.
    pub(crate) fn lost_entries(&self, vote: &Vote, missing: u64) -> NetError {
        self.network.acknowledged().note_lost(self.target, vote, missing);
        NetError::Failed(format!("it lost log entry {missing}, which it acknowledged"))
    }

    /// An answer of the peer that is refused: it is logged, and openraft backs off.
    pub(crate) fn refused_answer(&self, refusal: Refusal) -> NetError {
        self.network.log_refused_answer(self.target, &refusal);
        NetError::Protocol(refusal.to_string())
    }

    /// Checks the vote in the peer's answer to a message under vote `own`.
    pub(crate) fn checked_vote<R>(&self, own: &Vote, answered: &Vote, answer: R) -> Result<R, NetError> {
        check_answered_vote(own, answered).map(|()| answer).map_err(|refusal| self.refused_answer(refusal))
    }

    /// What runs work that blocks.
    pub(crate) fn driver(&self) -> Driver {
        self.network.driver()
    }

    /// Asks what an election waits for: never behind entries, and not on a connection that has to be made first.
    async fn ask<B: Serialize, R: DeserializeOwned>(
        &self,
        kind: Kind,
        body: &B,
        timeout: Duration,
    ) -> Result<R, NetError> {
        let frame: Frame = self.submit_for(Purpose::Urgent, kind, body)?.within(timeout).await?;
        decode_answer("answer of a Raft peer", &frame)
    }

    async fn election(
        &self,
        kind: Kind,
        request: &VoteRequest<TypeConfig>,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = option.soft_ttl();
        let answer = self.ask::<_, VoteResponse<TypeConfig>>(kind, request, timeout).await;
        let answer = answer.and_then(|answer| self.checked_vote(&request.vote, &answer.vote.clone(), answer));
        answer.map_err(|e| self.rpc_error(&e, RPCTypes::Vote, timeout))
    }

    /// `error` as openraft sorts errors: it tries again at once after Network and Timeout, backs off after
    /// Unreachable. So a request that may have been under way is the former, a peer that cannot be had the latter.
    pub(crate) fn rpc_error(&self, error: &NetError, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        match error {
            NetError::Timeout { sent: true } => {
                let (id, target) = (self.network.local_id(), self.target);
                RPCError::Timeout(Timeout { action, id, target, timeout })
            }
            NetError::Closed { .. } => RPCError::Network(NetworkError::new(error)),
            NetError::Timeout { sent: false }
            | NetError::Refused(_)
            | NetError::Connect { .. }
            | NetError::TooLarge { .. }
            | NetError::Protocol(_)
            | NetError::Overloaded
            | NetError::Unavailable(_)
            | NetError::Failed(_) => RPCError::Unreachable(Unreachable::new(error)),
        }
    }
}

impl<T: Transport> NetBackoff<TypeConfig> for PeerClient<T> {
    fn backoff(&self) -> Option<Backoff> {
        let delays = std::iter::successors(Some(BACKOFF_MIN), |delay| Some((*delay * 2).min(BACKOFF_MAX)));
        Some(Backoff::new(delays.map(|delay| delay.mul_f64(entropy::random_range(0.5..1.0)))))
    }
}

impl<T: Transport> NetVote<TypeConfig> for PeerClient<T> {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.election(Kind::Vote, &rpc, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.election(Kind::PreVote, &rpc, &option).await
    }
}

impl<T: Transport> NetTransferLeader<TypeConfig> for PeerClient<T> {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = option.soft_ttl();
        self.ask(Kind::TransferLeader, &req, timeout)
            .await
            .map_err(|e| self.rpc_error(&e, RPCTypes::TransferLeader, timeout))
    }
}

impl<T: Transport> NetStreamAppend<TypeConfig> for PeerClient<T> {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendResults<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let results: AppendResults<'s> = Box::pin(AppendPipeline::new(self, input));
        Box::pin(std::future::ready(Ok(results)))
    }
}

/// Results of appends, in order.
type AppendResults<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

impl<T: Transport> NetSnapshot<TypeConfig> for PeerClient<T> {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let covered = snapshot.meta.last_log_id;
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = snapshot_transfer::send(self, vote, snapshot) => {
                if sent.as_ref().is_ok_and(|answer| answer.vote == vote) {
                    self.note_acknowledged(&vote, covered);
                }
                sent
            }
        }
    }
}
