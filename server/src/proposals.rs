//! The way of a change: admission, then this node's Raft, or one hop to the leader.

use std::time::Duration;

use hexkv_client::api::Code;
use hexkv_raft_net::{
    NetError,
    rpc::{PeerError, PeerRequest, PeerResponse},
};
use hexkv_store::{
    NodeId, Proposal,
    command::Command,
    dedupe::Idempotency,
    outcome::{Outcome, Refusal},
};
use tokio::time::Instant;

use crate::{
    core::WriteError,
    disk_watch::refused,
    error::Error,
    node::{Node, Position},
    reading::Reading,
    trace::{self, traced},
};

/// How long to wait before the leader is looked up again, when nobody leads or the one we asked does not.
const LEADER_RETRY: Duration = Duration::from_millis(20);

/// An attempt at a change with an idempotency key ends after this, so that another leader is asked in time.
const ONCE_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// How many entries the leader may have applied beyond what this node has, when it is judged whether an outcome is still kept.
const RETRY_MARGIN_ENTRIES: u64 = 65_536;
/// A node without the data cannot judge it: it repeats attempts for this long, in which fewer keys come than are kept.
const RETRY_UNJUDGED_MAX: Duration = Duration::from_secs(30);

/// What a request for a change says besides the command.
#[derive(Debug, Clone)]
pub struct ChangeContext {
    /// Its client may send it again, and it is done once.
    pub idempotency: Option<Idempotency>,
    /// Give up after.
    pub timeout: Duration,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// What it did.
    pub outcome: Outcome,
    /// An attempt before this one did it.
    pub replayed: bool,
}

/// One attempt's end, when it is not the last.
enum Attempt {
    /// Certainly nothing happened; a leader may be known now.
    NotDone(Option<NodeId>),
    /// Final.
    Done(Result<Outcome, Error>),
}

impl Node {
    /// As [`Node::propose_change`], for changes that nobody sends again.
    pub async fn propose(&self, command: &Command, timeout: Duration) -> Result<Outcome, Error> {
        let context = ChangeContext { idempotency: None, timeout };
        self.propose_change(command, &context).await.map(|changed| changed.outcome)
    }

    /// As [`Node::propose`]; a refusal is an outcome.
    pub async fn propose_any(&self, command: &Command, timeout: Duration) -> Result<Outcome, Error> {
        let context = ChangeContext { idempotency: None, timeout };
        self.propose_change_any(command, &context).await.map(|changed| changed.outcome)
    }

    /// As [`Node::propose_change_any`]; a refusal is an error.
    pub async fn propose_change(&self, command: &Command, context: &ChangeContext) -> Result<Changed, Error> {
        let changed = self.propose_change_any(command, context).await?;
        match changed.outcome {
            Outcome::Refused(refusal) => Err(Error { replayed: changed.replayed, ..refusal.into() }),
            outcome => Ok(Changed { outcome, ..changed }),
        }
    }

    /// Proposes `command` and waits for its outcome, as long as `context` says. Attempts that certainly did nothing (no
    /// leader, not the leader, not reached) are repeated until then: [`Error::no_leader`] means that
    /// nothing happened, [`Error::outcome_unknown`] that it may have. With an idempotency key, attempts that may have
    /// done it are repeated too. A refusal is an outcome.
    pub async fn propose_change_any(&self, command: &Command, context: &ChangeContext) -> Result<Changed, Error> {
        let began = Instant::now();
        let deadline = began + context.timeout;
        let once = context.idempotency.is_some();
        let _room = match self.admit_reading(command, once, deadline).await? {
            Reading::Admitted(room) => room,
            Reading::Refused(refusal) => return Ok(settled(Outcome::Refused(refusal))),
        };
        let proposal = Proposal::new(command).once(context.idempotency.clone());
        let _admitted = self.admission.admit(proposal.size_bytes()).ok_or_else(Error::overloaded)?;
        let (mut hint, mut life) = (None, None);
        let applied_before = self.core().and_then(|core| core.state.applied()).map_or(0, |id| id.index);
        let mut unknown: Option<Error> = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(unknown.unwrap_or_else(|| self.why_no_leader()));
            }
            let patience = if once { left.min(ONCE_ATTEMPT_TIMEOUT) } else { left };
            match self.attempt(&proposal, hint.take(), &mut life, patience).await {
                Attempt::Done(Ok(Outcome::Refused(Refusal::IdempotencyFull))) if unknown.is_some() => {
                    tokio::time::sleep(LEADER_RETRY.min(left)).await;
                }
                Attempt::Done(Ok(outcome)) => return Ok(settled(outcome)),
                Attempt::Done(Err(error)) if once && error.code == Code::OutcomeUnknown => {
                    if !self.remembers_since(applied_before, began) {
                        return Err(error);
                    }
                    tracing::debug!(%error, "a change with an idempotency key is proposed again");
                    unknown = Some(error);
                    tokio::time::sleep(LEADER_RETRY.min(left)).await;
                }
                // What this attempt says of itself is not true of those before it.
                Attempt::Done(Err(error)) if unknown.is_some() && error.code == Code::Overloaded => {
                    tokio::time::sleep(LEADER_RETRY.min(left)).await;
                }
                Attempt::Done(Err(error)) => return Err(unknown.unwrap_or(error)),
                Attempt::NotDone(Some(leader)) if Some(leader) != self.leader_id() => hint = Some(leader),
                Attempt::NotDone(_) => tokio::time::sleep(LEADER_RETRY.min(left)).await,
            }
        }
    }

    /// Whether the outcome of a change that was proposed at `began`, when `applied_before` was applied, is certainly kept, if there
    /// is one.
    fn remembers_since(&self, applied_before: u64, began: Instant) -> bool {
        if self.position() != Position::Holder {
            return began.elapsed() < RETRY_UNJUDGED_MAX;
        }
        let oldest = self.core().and_then(|core| core.state.oldest_outcome_if_full());
        oldest.is_none_or(|oldest| applied_before >= oldest + RETRY_MARGIN_ENTRIES)
    }

    /// `life` is this node's id at the first attempt: a change that was meant for the cluster which the node has left
    /// since must not be done in its next one.
    async fn attempt(
        &self,
        proposal: &Proposal,
        hint: Option<NodeId>,
        life: &mut Option<NodeId>,
        left: Duration,
    ) -> Attempt {
        let Some(core) = self.core() else { return Attempt::NotDone(None) };
        if *life.get_or_insert(core.id) != core.id {
            return Attempt::Done(Err(Error::new(
                Code::NotInCluster,
                "this node changed clusters while the request waited; nothing was changed. Retry it if it is meant for the new one",
            )));
        }
        let Some(leader) = hint.or_else(|| self.leader_id()) else { return Attempt::NotDone(None) };
        if leader == core.id {
            // It would decide comparisons by a state that the others do not have; it is about to step down.
            if self.divergence().is_some() {
                return Attempt::NotDone(None);
            }
            if let Some(why) = self.refused_by_disk(proposal) {
                return Attempt::Done(Err(refused(why)));
            }
            return match core.write(proposal.clone(), left).await {
                Ok(outcome) => Attempt::Done(Ok(outcome)),
                Err(WriteError::NotLeader(other)) => Attempt::NotDone(other),
                Err(WriteError::Unknown(why)) => Attempt::Done(Err(Error::outcome_unknown(why))),
            };
        }
        let Some(address) = self.network.address_book().get(leader) else { return Attempt::NotDone(None) };
        match self.forward(proposal, leader, &address, left).await {
            Ok(PeerResponse::Outcome(outcome)) => Attempt::Done(Ok(outcome)),
            Ok(PeerResponse::OutcomeAt { outcome, index }) => {
                trace::note_applied(index, &outcome);
                Attempt::Done(Ok(outcome))
            }
            Ok(PeerResponse::Error(PeerError::NotLeader { leader })) => Attempt::NotDone(leader),
            Ok(PeerResponse::Error(PeerError::Unavailable(_))) => Attempt::NotDone(None),
            Ok(PeerResponse::Error(e)) => Attempt::Done(Err(e.into())),
            Ok(other) => Attempt::Done(Err(Error::outcome_unknown(format!("the leader answered {other:?}")))),
            Err(e) if e.maybe_delivered() => {
                Attempt::Done(Err(Error::outcome_unknown(format!("the leader did not answer: {e}"))))
            }
            Err(e) => {
                tracing::debug!(error = %e, "the leader was not reached");
                Attempt::NotDone(None)
            }
        }
    }

    async fn forward(
        &self,
        proposal: &Proposal,
        leader: NodeId,
        address: &str,
        left: Duration,
    ) -> Result<PeerResponse, NetError> {
        let plain = PeerRequest::Propose(proposal.clone());
        let Some(trace) = trace::current() else { return self.network.request(leader, address, plain, left).await };
        traced!(trace, leader = format_args!("{leader:016x}"), address, "forwarded to the leader");
        let deadline = Instant::now() + left;
        let followed = PeerRequest::ProposeTraced { proposal: proposal.clone(), trace: trace.parent };
        match self.network.request(leader, address, followed, left).await {
            // That says nothing of what the leader knows, and no time is left.
            answer @ Err(NetError::Timeout { .. }) => answer,
            // Maybe it is of an earlier release, and knows nothing of traces.
            Err(e) if !e.maybe_delivered() => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.network.request(leader, address, plain, left).await
            }
            answer => answer,
        }
    }
}

/// The answer of an attempt that reached apply.
fn settled(outcome: Outcome) -> Changed {
    match outcome {
        Outcome::Replayed(first) => Changed { outcome: *first, replayed: true },
        outcome => Changed { outcome, replayed: false },
    }
}
