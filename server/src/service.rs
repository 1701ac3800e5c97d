//! What this node answers to other nodes.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use hexkv_raft_net::{
    LocalIdentity, PeerIdentity, Refusal, Seat, Service,
    rpc::{MemberHealth, PeerError, PeerRequest, PeerResponse, ReadRequest, ReadResult, StateHash},
};
use hexkv_store::{
    NodeId, Proposal, StoreError, TypeConfig,
    driver::Driver,
    fs::SharedFs,
    member::Member,
    raft_types::{Entry, LogId, SnapshotMeta},
    record::{KeyRecord, ListRequest},
    snapshot::{SnapshotFile, check_received},
    state_machine::StateMachine,
};
use openraft::{async_runtime::WatchReceiver, raft::AppendEntriesRequest};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    core::{Core, Raft, WriteError},
    error::Error,
    leases::{keep_alive_here, lease_here, leases_here},
    node::{Node, SHORT_SCAN_ITEMS_MAX, wire_identity},
    peer_proposals::{admit, check_entry, check_proposal},
    progress::leader_progress,
    reads::{Basis, wait_applied},
    reconciler::answering_now,
    trace::{self, Trace, traced},
    watch::answer_changes,
};

/// Longest that a peer's request is worked on. The asking node may give up sooner, or wait for longer: it does not say.
const PEER_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The node as other nodes see it.
pub struct NodeService(pub Arc<Node>);

impl Service for NodeService {
    type StateMachine = StateMachine;

    fn local(&self) -> LocalIdentity {
        wire_identity(&self.0.identity(), self.0.process)
    }

    fn raft(&self) -> Option<Raft> {
        self.0.core().filter(|_| self.0.barred().is_none()).map(|c| c.raft.clone())
    }

    fn answers_votes(&self) -> bool {
        self.0.core().is_none_or(|core| core.answers_votes())
    }

    fn admits(&self, peer: PeerIdentity, from: SocketAddr) -> BoxFuture<'static, Result<Option<Seat>, Refusal>> {
        let network = self.0.network.clone();
        let admitted = async move {
            let seat = network.admit(&peer, &from.to_string()).await?;
            network.note_source(&peer, from);
            Ok(seat)
        };
        admitted.boxed()
    }

    fn refused(&self, refusal: &Refusal) {
        self.0.network.note_refused(refusal);
    }

    fn accepts_append(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let ids = request.prev_log_id.into_iter().chain(request.entries.iter().map(|entry| entry.log_id));
        self.0.core().is_none_or(|core| core.log.agrees_with(ids))
    }

    fn is_member(&self, peer: &PeerIdentity) -> bool {
        self.0.knows_member(peer.node_id)
    }

    fn vouched(&self, peer: &PeerIdentity) -> bool {
        self.0.member_view.is_in_raft(peer.node_id) || self.0.is_cut_off()
    }

    fn last_log_id(&self) -> Option<LogId> {
        self.0.core().and_then(|core| core.log.ends().0)
    }

    fn reported_term(&self) -> u64 {
        self.0.member_view.term()
    }

    fn stranger(&self) {
        self.0.member_view.note_stranger();
    }

    fn refused_request(&self, _: &PeerIdentity, refusal: &Refusal) {
        self.0.metrics.refused_peer_request(refusal.reason());
    }

    fn check_entries(&self, entries: &[Entry]) -> Result<(), Refusal> {
        entries.iter().try_for_each(check_entry)
    }

    fn check_snapshot(&self, meta: &SnapshotMeta, file: &SnapshotFile) -> Result<(), StoreError> {
        check_received(meta, file, self.0.identity().cluster_id)
    }

    fn snapshot_dir(&self) -> (SharedFs, PathBuf) {
        (self.0.environment.fs.clone(), self.0.config.data_dir.join("snapshots"))
    }

    fn driver(&self) -> Driver {
        self.0.environment.driver
    }

    fn peer(&self, from: PeerIdentity, request: PeerRequest) -> BoxFuture<'static, PeerResponse> {
        let node = self.0.clone();
        async move { answer(&node, &from, request).await }.boxed()
    }
}

/// What this node answers to `request` of node `from`.
pub async fn answer(node: &Node, from: &PeerIdentity, request: PeerRequest) -> PeerResponse {
    try_answer(node, from, request).await.unwrap_or_else(PeerResponse::Error)
}

async fn try_answer(node: &Node, from: &PeerIdentity, request: PeerRequest) -> Result<PeerResponse, PeerError> {
    if let PeerRequest::ClusterInfo = request {
        return Ok(PeerResponse::ClusterInfo(node.cluster()));
    }
    if let PeerRequest::Founding(request) = request {
        return node.answer_founding(from, request).await;
    }
    if let PeerRequest::StorageTrouble = request {
        return Ok(PeerResponse::StorageTrouble(node.storage_trouble()));
    }
    // State hashes come on a connection of their own, which may be the only one that still works.
    if !from.guest && !matches!(request, PeerRequest::StateHash) {
        node.note_request_from(from.node_id);
    }
    let core = node.core().ok_or_else(|| PeerError::Unavailable("the node is changing clusters".into()))?;
    match request {
        PeerRequest::ClusterInfo | PeerRequest::Founding(_) | PeerRequest::StorageTrouble => {
            unreachable!("answered above: they need no core")
        }
        PeerRequest::Propose(proposal) => {
            check_proposal(&core, from, &proposal)?;
            propose(node, &core, proposal).await
        }
        PeerRequest::ProposeTraced { proposal, trace } => {
            check_proposal(&core, from, &proposal)?;
            let trace = Trace { parent: trace };
            traced!(trace, %from, "a change arrives from another node");
            let (answer, applied) = trace::scope(trace, propose(node, &core, proposal)).await;
            match (answer?, applied) {
                (PeerResponse::Outcome(outcome), Some((index, _))) => Ok(PeerResponse::OutcomeAt { outcome, index }),
                (answer, _) => Ok(answer),
            }
        }
        PeerRequest::ReadIndex => {
            read_index(node, &core, Basis::Quorum, PEER_REQUEST_TIMEOUT).await.map(PeerResponse::ReadIndex)
        }
        PeerRequest::LeaseIndex => {
            read_index(node, &core, Basis::Lease, PEER_REQUEST_TIMEOUT).await.map(PeerResponse::ReadIndex)
        }
        PeerRequest::Read(read) => read_for(node, &core, read, Basis::Quorum).await,
        PeerRequest::LeaseRead(read) => read_for(node, &core, read, Basis::Lease).await,
        PeerRequest::Admit(member) => admit(node, &core, from, member).await,
        PeerRequest::MemberHealth => {
            leads(node, &core)?;
            Ok(PeerResponse::MemberHealth(member_health(node, &core)))
        }
        PeerRequest::Progress => {
            leads(node, &core)?;
            Ok(PeerResponse::Progress(leader_progress(node, &core)))
        }
        PeerRequest::Explain => {
            leads(node, &core)?;
            Ok(PeerResponse::Explained(core.explanation.read().clone()))
        }
        PeerRequest::TransferLeader(to) => {
            leads(node, &core)?;
            transfer(node, &core, to).await
        }
        PeerRequest::KeepAlive(id) => {
            leads(node, &core)?;
            keep_alive_here(&core, id, PEER_REQUEST_TIMEOUT).await.map(PeerResponse::KeptAlive)
        }
        PeerRequest::Lease { id, keys_max } => {
            leads(node, &core)?;
            lease_here(&core, id, keys_max as usize, PEER_REQUEST_TIMEOUT).await.map(PeerResponse::Lease)
        }
        PeerRequest::Leases { after, limit } => {
            leads(node, &core)?;
            leases_here(&core, after, limit, PEER_REQUEST_TIMEOUT).await.map(PeerResponse::Leases)
        }
        PeerRequest::StateHash => Ok(PeerResponse::StateHash(state_hash(&core))),
        PeerRequest::Changes(request) => {
            leads(node, &core)?;
            answer_changes(&core.state, &request).await.map(PeerResponse::Changes).map_err(unavailable)
        }
    }
}

async fn read_index(node: &Node, core: &Core, basis: Basis, timeout: Duration) -> Result<u64, PeerError> {
    leads(node, core)?;
    core.reads.confirm(basis, timeout).await.map_err(unavailable)
}

async fn read_for(node: &Node, core: &Arc<Core>, read: ReadRequest, basis: Basis) -> Result<PeerResponse, PeerError> {
    let deadline = Instant::now() + PEER_REQUEST_TIMEOUT;
    let left = || deadline.saturating_duration_since(Instant::now());
    let index = read_index(node, core, basis, left()).await?;
    wait_applied(&mut core.state.applied_watch(), index, left()).await.map_err(unavailable)?;
    read_without_blocking(node, core, read, deadline).await.map(PeerResponse::Read)
}

/// Reads this node's own state: a key at once, a range, or a key in the past, on a thread of its own, since it may take long
/// and go to disk. [`PeerError::Overloaded`] when others are being read until `deadline`.
pub async fn read_without_blocking(
    node: &Node,
    core: &Arc<Core>,
    read: ReadRequest,
    deadline: Instant,
) -> Result<ReadResult, PeerError> {
    let scans = match &read {
        ReadRequest::Get { revision: 0, .. } => return read_here(core, read),
        ReadRequest::Get { .. } => &node.short_scans,
        ReadRequest::List(request) if is_short(request) => &node.short_scans,
        ReadRequest::List(_) => &node.scans,
    };
    let room = scan_room(scans, deadline).await?;
    let core = core.clone();
    let scan = node.environment.driver.run(move || {
        let _room = room;
        read_here(&core, read)
    });
    scan.await.unwrap_or_else(|e| Err(PeerError::Unavailable(format!("the listing broke off: {e}"))))
}

/// Whether a listing reads no more than the keys of one page: a count reads all, and one of the past those that came later.
fn is_short(request: &ListRequest) -> bool {
    !request.count_only && request.revision == 0 && request.limit <= SHORT_SCAN_ITEMS_MAX
}

/// Room for reading one range, in the order of asking. It is given back when the range is read: a client that takes its answer
/// slowly does not hold it.
async fn scan_room(scans: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, PeerError> {
    match timeout_at(deadline, scans.clone().acquire_owned()).await {
        Ok(room) => room.map_err(|e| PeerError::Unavailable(e.to_string())),
        Err(_) => Err(PeerError::Overloaded),
    }
}

fn read_here(core: &Core, read: ReadRequest) -> Result<ReadResult, PeerError> {
    let result = match read {
        ReadRequest::Get { key, revision } => core.state.get(&key, revision).map(|(record, revision)| {
            ReadResult::Get { found: record.map(|record| KeyRecord { key, record }), revision }
        }),
        ReadRequest::List(request) => core.state.list(&request).map(ReadResult::List),
    };
    result.map_err(|e| match e {
        StoreError::Compacted { requested, oldest } => PeerError::Compacted { requested, oldest },
        StoreError::FutureRevision { .. } => PeerError::Invalid(e.to_string()),
        other => PeerError::Unavailable(other.to_string()),
    })
}

/// State hash of this node, as others ask for it.
pub fn state_hash(core: &Core) -> StateHash {
    let h = core.state.hash();
    StateHash { applied_index: h.applied_index, revision: h.revision, hash: h.hash, checkpoints: h.checkpoints }
}

/// The leader's view of each member.
pub fn member_health(node: &Node, core: &Core) -> Vec<MemberHealth> {
    let metrics = core.raft.metrics().borrow_watched().clone();
    let replication = metrics.replication.unwrap_or_default();
    let health = |member: Member| {
        let me = member.node_id == core.id;
        MemberHealth {
            node_id: member.node_id,
            last_contact_ms: if me {
                Some(0)
            } else {
                node.network.last_contact(member.node_id).map(|t| t.elapsed().as_millis() as u64)
            },
            matched_index: if me {
                metrics.last_log_index
            } else {
                replication.get(&member.node_id).and_then(|m| m.as_ref().map(|id| id.index))
            },
        }
    };
    core.state.members().into_iter().map(health).collect()
}

pub(crate) async fn propose(node: &Node, core: &Core, proposal: Proposal) -> Result<PeerResponse, PeerError> {
    leads(node, core)?;
    let _admitted = node.admission.admit(proposal.size_bytes()).ok_or(PeerError::Overloaded)?;
    if let Some(why) = node.refused_by_disk(&proposal) {
        return Err(PeerError::Refused(why));
    }
    match core.write(proposal, PEER_REQUEST_TIMEOUT).await {
        Ok(outcome) => Ok(PeerResponse::Outcome(outcome)),
        Err(WriteError::NotLeader(leader)) => Err(PeerError::NotLeader { leader }),
        Err(WriteError::Unknown(why)) => Err(PeerError::OutcomeUnknown(why)),
    }
}

async fn transfer(node: &Node, core: &Core, to: NodeId) -> Result<PeerResponse, PeerError> {
    let voters: Vec<NodeId> = core.raft.voter_ids().collect();
    if !voters.contains(&to) {
        return Err(PeerError::Invalid("only a voter can lead".into()));
    }
    // openraft would wait for its own election for good. Whoever asks thought that another one leads.
    if to == core.id {
        return Ok(PeerResponse::TransferStarted);
    }
    // openraft serves nobody between the hand-over and the next election, so a dead target must not be tried.
    if !answering_now(node, core, &BTreeSet::from([to])).await.contains(&to) {
        return Err(PeerError::Invalid("that voter does not answer now; nothing was changed".into()));
    }
    core.raft.trigger().transfer_leader(to).await.map_err(|e| PeerError::Unavailable(e.to_string()))?;
    Ok(PeerResponse::TransferStarted)
}

/// A leader whose state differs from the others' would answer from it, and decide comparisons by it.
pub(crate) fn leads(node: &Node, core: &Core) -> Result<(), PeerError> {
    if let Some(why) = node.divergence() {
        return Err(PeerError::Unavailable(format!("this node's state differs from the others': {why}")));
    }
    let leader = core.leader();
    if leader == Some(core.id) { Ok(()) } else { Err(PeerError::NotLeader { leader }) }
}

/// What another node is told of an error here after which nothing was done.
pub(crate) fn unavailable(e: Error) -> PeerError {
    match e.code {
        hexkv_client::api::Code::Overloaded => PeerError::Overloaded,
        _ => PeerError::Unavailable(e.detail),
    }
}

#[cfg(test)]
mod tests {
    use hexkv_store::record::KeyRange;

    use super::*;

    #[test]
    fn a_listing_of_one_page_does_not_wait_for_counts_and_the_past() {
        let page = ListRequest {
            range: KeyRange::default(),
            limit: SHORT_SCAN_ITEMS_MAX,
            revision: 0,
            keys_only: true,
            count_only: false,
            descending: false,
            after: None,
        };
        assert!(is_short(&page));
        assert!(!is_short(&ListRequest { count_only: true, ..page.clone() }));
        assert!(!is_short(&ListRequest { revision: 7, ..page.clone() }));
        assert!(!is_short(&ListRequest { limit: SHORT_SCAN_ITEMS_MAX + 1, ..page }));
    }

    #[tokio::test(start_paused = true)]
    async fn room_for_a_scan_is_waited_for_in_order_and_not_beyond_the_deadline() {
        let scans = Arc::new(Semaphore::new(1));
        let began = Instant::now();
        let held = scan_room(&scans, began).await.expect("there is room");
        let refused = scan_room(&scans, began + Duration::from_secs(5)).await;
        assert!(matches!(refused, Err(PeerError::Overloaded)), "{refused:?}");
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let waiting = tokio::spawn({
            let scans = scans.clone();
            async move { scan_room(&scans, Instant::now() + Duration::from_secs(5)).await }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(scans.clone().try_acquire_owned().is_err(), "who waits comes before who asks now");
        drop(waiting.await.expect("joined").expect("there is room"));
    }
}
