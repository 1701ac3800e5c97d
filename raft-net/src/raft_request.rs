//! Raft's messages of one connection: checked, then given to openraft.

use std::fmt::Display;

use hexkv_store::TypeConfig;
use openraft::{
    Raft,
    async_runtime::watch::WatchReceiver,
    raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest},
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    connection::Connection,
    error::{NetError, Refusal},
    frame::{Frame, Kind},
    message::{Failure, SnapshotFinish, SnapshotOffer, decode_body},
    raft_check::{Local, check_append, check_meta, check_snapshot, check_transfer, check_vote_request},
    service::Service,
};

impl<I, S> Connection<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    /// Answers one of Raft's messages. A message that is refused leaves the connection open, and Raft as it was.
    ///
    /// # Errors
    /// The body is not a message of its kind: the connection ends.
    pub(crate) fn raft_request(
        &mut self,
        frame: &Frame,
        raft: Raft<TypeConfig, S::StateMachine>,
    ) -> Result<(), NetError> {
        if !is_in_membership(&raft, self.peer.node_id) && !self.service.vouched(&self.peer) {
            self.service.stranger();
            self.refuse(frame, &Refusal::NotAMember);
            return Ok(());
        }
        let local =
            Local::of(&raft.metrics().borrow_watched(), self.service.last_log_id(), self.service.reported_term());
        match frame.kind {
            Kind::Append => self.append(frame, &raft, &local),
            Kind::Vote | Kind::PreVote => self.vote(frame, raft, &local),
            Kind::TransferLeader => self.transfer(frame, raft, &local),
            Kind::SnapshotOffer | Kind::SnapshotChunk | Kind::SnapshotFinish => self.snapshot(frame, raft, &local),
            other => unreachable!("{other:?} was let through"),
        }
    }

    fn append(
        &mut self,
        frame: &Frame,
        raft: &Raft<TypeConfig, S::StateMachine>,
        local: &Local,
    ) -> Result<(), NetError> {
        let mut request: AppendEntriesRequest<TypeConfig> = decode_body("AppendEntries", frame)?;
        let checked = check_append(&mut request, self.peer.node_id, local);
        if let Err(refusal) = checked.and_then(|()| self.service.check_entries(&request.entries)) {
            self.refuse(frame, &refusal);
            return Ok(());
        }
        // A leader that was deposed is answered by openraft; what it has no longer counts.
        if request.vote >= local.vote && !self.service.accepts_append(&request) {
            self.fail(frame, &Failure::Unavailable("they contradict what was committed here".into()));
            return Ok(());
        }
        self.appends.feed(raft, frame.id, frame.body.len(), request);
        Ok(())
    }

    fn vote(&mut self, frame: &Frame, raft: Raft<TypeConfig, S::StateMachine>, local: &Local) -> Result<(), NetError> {
        let pre_vote = frame.kind == Kind::PreVote;
        let request: VoteRequest<TypeConfig> = decode_body(if pre_vote { "pre-vote" } else { "RequestVote" }, frame)?;
        if let Err(refusal) = check_vote_request(&request, self.peer.node_id, local) {
            self.refuse(frame, &refusal);
            return Ok(());
        }
        let handed_over = request.leadership_transfer && !pre_vote;
        if !handed_over && !self.service.answers_votes() {
            self.fail(frame, &lease_may_run());
            return Ok(());
        }
        self.answer_with(frame, async move {
            let answer = if pre_vote { raft.pre_vote(request).await } else { raft.vote(request).await };
            answer.map_err(|e| failed(&e))
        });
        Ok(())
    }

    fn transfer(
        &mut self,
        frame: &Frame,
        raft: Raft<TypeConfig, S::StateMachine>,
        local: &Local,
    ) -> Result<(), NetError> {
        let request: TransferLeaderRequest<TypeConfig> = decode_body("leadership transfer", frame)?;
        if let Err(refusal) = check_transfer(&request, self.peer.node_id, self.local.node_id, local) {
            self.refuse(frame, &refusal);
            return Ok(());
        }
        self.answer_with(frame, async move { raft.handle_transfer_leader(request).await.map_err(|e| failed(&e)) });
        Ok(())
    }

    fn snapshot(
        &mut self,
        frame: &Frame,
        raft: Raft<TypeConfig, S::StateMachine>,
        local: &Local,
    ) -> Result<(), NetError> {
        let (from, incoming) = (self.peer.node_id, self.incoming.clone());
        match frame.kind {
            Kind::SnapshotOffer => {
                let offer: SnapshotOffer = decode_body("snapshot offer", frame)?;
                if let Err(refusal) = check_snapshot(&offer.vote, offer.last_log_id, from, local) {
                    self.refuse(frame, &refusal);
                    return Ok(());
                }
                let service = self.service.clone();
                self.answer_with(frame, async move { incoming.offer(&*service, &raft, offer).await });
            }
            Kind::SnapshotChunk => {
                let chunk = decode_body("snapshot chunk", frame)?;
                self.answer_with(frame, async move { incoming.chunk(chunk, from).await });
            }
            _ => {
                let finish: SnapshotFinish = decode_body("end of a snapshot", frame)?;
                let checked = check_snapshot(&finish.vote, finish.meta.last_log_id, from, local);
                if let Err(refusal) = checked.and_then(|()| check_meta(&finish.meta)) {
                    self.refuse(frame, &refusal);
                    return Ok(());
                }
                let service = self.service.clone();
                self.answer_with(frame, async move { incoming.finish(service, raft, finish).await });
            }
        }
        Ok(())
    }
}

/// Whether `node` is a voter or learner of the newest membership in this node's log, or of the newest one that is committed: during
/// a change they differ, and both count.
fn is_in_membership<M>(raft: &Raft<TypeConfig, M>, node: hexkv_store::NodeId) -> bool
where
    M: openraft::storage::RaftStateMachine<TypeConfig>,
{
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let (newest, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
    [newest, committed].iter().any(|stored| stored.membership().get_node(&node).is_some())
}

fn failed(error: &dyn Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// The answer to a candidate while this node answers no votes.
fn lease_may_run() -> Failure {
    Failure::Unavailable("this node was restarted a moment ago and may have granted a leader a lease before".into())
}
