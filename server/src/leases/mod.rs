//! Leases: granted and ended through the log, kept alive by the leader alone.
//!
//! A lease ends on the leader's monotonic clock, and never early:
//!
//! - A leader counts only from its own office on: once it has applied an entry of its own term, every lease gets its full
//!   time to live again. A lease that is granted later counts from when the leader applied it.
//! - A keepalive is not logged. It is answered after a ReadIndex round that began after it arrived: whoever leads later
//!   was elected after it arrived, so it counts the full time from then or later. It then holds until arrival + time to
//!   live on this leader, too.
//! - A leader whose leases are due asks a majority whether it still leads, by a round that begins after the deadline,
//!   before it proposes their end. The proposal carries the term of that office, and apply refuses it in an entry of any
//!   other term: what a deposed leader decided never happens. A leader that was paused notices, and first serves the
//!   keepalives that wait in its sockets.
//! - Once the end of a lease is proposed a keepalive waits for what becomes of it.
//!
//! | part | what |
//! |---|---|
//! | `deadlines` | which lease is due when |
//! | `lessor` | the deadlines of one office |

mod deadlines;
mod lessor;

use std::{sync::Arc, time::Duration};

use hexkv_client::api::Code;
use hexkv_raft_net::rpc::{LeaseStatus, PeerError, PeerRequest, PeerResponse};
use hexkv_store::{
    Proposal,
    command::{Command, Txn, TxnOp},
    lease::{self, EXPIRE_LEASES_MAX, Lease, LeasePage},
    mutants::{self, Mutant},
    outcome::{OpResult, Outcome, Refusal, TxnOutcome},
};
use tokio::time::Instant;

use self::deadlines::Extension;
pub use self::lessor::Lessor;
use crate::{
    core::{Core, WriteError},
    error::Error,
    kv::confirm,
    node::{Node, Position},
    proposals::{ChangeContext, Changed},
    reads::{Basis, wait_applied},
    service::unavailable,
};

/// How often it is looked whether this node leads, apart from changes that wake it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Whoever sleeps so much longer than it meant to was paused.
const PAUSE_SUSPECTED: Duration = Duration::from_millis(250);
/// So long a leader that was paused serves requests before it ends leases: those that came meanwhile lie in its sockets.
const AFTER_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a majority to confirm that this node leads, before it is asked again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the outcome of a proposal, before the same is proposed again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Leases end together as long as no more keys are attached to them: all of these go while apply does nothing else. One
/// lease ends in one step, whatever is attached to it.
const EXPIRE_STEP_KEYS_MAX: u64 = 10_000;
/// Between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the lessor of `core` until it ends. Ends leases while this node leads.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    if mutants::active(Mutant::LeaseEndedByFollowerClock) {
        tokio::select! {
            () = end_by_own_clock(&node, &core) => {}
            () = core.cancel.cancelled() => {}
        }
        return;
    }
    let offices = async {
        loop {
            let term = wait_office(&core).await;
            core.lessor.begin(term, &core.state).await;
            serve(&node, &core, term).await;
            core.lessor.end();
        }
    };
    tokio::select! {
        () = offices => {}
        () = core.cancel.cancelled() => {}
    }
}

/// Waits until this node leads and has applied an entry of its own term: everything that earlier leaders committed is
/// in the state then.
async fn wait_office(core: &Core) -> u64 {
    let mut applied = core.state.applied_watch();
    loop {
        let office = core.office();
        if let Some(term) = office
            && core.state.applied().is_some_and(|id| id.leader_id.term == term)
        {
            return term;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            Ok(()) = applied.changed(), if office.is_some() => {}
        }
    }
}

/// Ends leases as they become due, as long as this node leads in `term`.
async fn serve(node: &Node, core: &Core, term: u64) {
    while core.office() == Some(term) {
        let began = Instant::now();
        let latest = began + LOOK_INTERVAL;
        let wake = core.lessor.next().map_or(latest, |deadline| deadline.clamp(began, latest));
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            () = core.lessor.sooner() => {}
        }
        if wake.elapsed() > PAUSE_SUSPECTED {
            tracing::info!(
                for_ms = began.elapsed().as_millis(),
                "this node was paused; it serves requests before it ends leases"
            );
            tokio::time::sleep(AFTER_PAUSE).await;
        }
        let now = Instant::now();
        // A node whose state differs from the others' is about to step down.
        if core.lessor.next().is_some_and(|deadline| deadline <= now) && node.divergence().is_none() {
            end_due(core, term, now).await;
        }
    }
}

/// Ends leases whose deadline is `now` or before, one batch of them, if a majority confirms that this node leads.
async fn end_due(core: &Core, term: u64, now: Instant) {
    if let Err(error) = core.reads.confirm(Basis::Quorum, CONFIRM_TIMEOUT).await {
        tracing::debug!(%error, "leases are due, and leadership is not confirmed");
        tokio::time::sleep(RETRY_INTERVAL).await;
        return;
    }
    // The round may have asked another leader.
    if core.office() != Some(term) {
        return;
    }
    let mut ids = core.lessor.take_due(term, now, EXPIRE_LEASES_MAX);
    if ids.is_empty() {
        return;
    }
    let rest = ids.split_off(core.state.leases_with_keys(&ids, EXPIRE_STEP_KEYS_MAX));
    if !rest.is_empty() {
        core.lessor.put_back(&rest);
    }
    let proposal = Proposal::new(&Command::ExpireLeases { ids: ids.clone(), term });
    // While an outcome is unknown the leases are ending: the proposal may still take place.
    loop {
        match core.write(proposal.clone(), PROPOSE_TIMEOUT).await {
            Ok(Outcome::LeasesExpired { revision, ended }) => {
                tracing::debug!(leases = ended.len(), revision, "leases ended");
                return core.lessor.put_back(&ids);
            }
            Ok(other) => {
                tracing::info!(?other, "leases did not end");
                return core.lessor.put_back(&ids);
            }
            Err(WriteError::NotLeader(_)) => return core.lessor.put_back(&ids),
            Err(WriteError::Unknown(why)) => tracing::warn!(why, "it is not known whether leases ended"),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
        if core.office() != Some(term) {
            return;
        }
    }
}

/// What a mutant does: whoever leads, this node ends leases by its own clock, and knows of no keepalive elsewhere.
async fn end_by_own_clock(node: &Node, core: &Core) {
    core.lessor.begin(0, &core.state).await;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let ids = core.lessor.take_due(0, Instant::now(), EXPIRE_LEASES_MAX);
        let term = node.cluster().term;
        if !ids.is_empty()
            && let Err(error) = node.propose(&Command::ExpireLeases { ids: ids.clone(), term }, PROPOSE_TIMEOUT).await
        {
            tracing::warn!(%error, "leases did not end");
        }
        core.lessor.put_back(&ids);
    }
}

/// The leader's answer to a keepalive; at most `timeout`. On another node the answer is that it does not lead.
pub async fn keep_alive_here(core: &Core, id: u64, timeout: Duration) -> Result<Lease, PeerError> {
    let arrived = Instant::now();
    let mut settled = core.lessor.settled();
    confirm(core, Basis::Quorum, arrived + timeout).await.map_err(unavailable)?;
    loop {
        // As long as this node leads in the term of its lessor's office, the round was one of its own.
        let Some(term) = core.office() else { return Err(PeerError::NotLeader { leader: core.leader() }) };
        settled.mark_unchanged();
        match core.lessor.extend(term, id, arrived) {
            Some(Extension::Extended) => {
                let view = core.state.lease(id, 0).ok_or(PeerError::NoSuchLease(id))?;
                return Ok(view.record.lease);
            }
            Some(Extension::Missing) => return Err(PeerError::NoSuchLease(id)),
            Some(Extension::Ending) | None => {}
        }
        let waited = tokio::time::timeout_at(arrived + timeout, settled.changed()).await;
        if !matches!(waited, Ok(Ok(()))) {
            return Err(PeerError::Unavailable("it was not settled in time whether the lease ends".into()));
        }
    }
}

/// The leader's answer to who asks for a lease.
pub async fn lease_here(core: &Core, id: u64, keys_max: usize, timeout: Duration) -> Result<LeaseStatus, PeerError> {
    confirm(core, Basis::Quorum, Instant::now() + timeout).await.map_err(unavailable)?;
    let Some(term) = core.office() else { return Err(PeerError::NotLeader { leader: core.leader() }) };
    let view = core.state.lease(id, keys_max).ok_or(PeerError::NoSuchLease(id))?;
    // Before the office has begun: it gives the full time.
    let remaining_ms = core.lessor.remaining(term, id).map_or(view.record.lease.ttl_ms, |left| left.as_millis() as u64);
    Ok(LeaseStatus { view, remaining_ms })
}

/// The leases with ids above `after`, as of a state that holds everything acknowledged before.
pub async fn leases_here(core: &Core, after: u64, limit: u32, timeout: Duration) -> Result<LeasePage, PeerError> {
    let began = Instant::now();
    let index = core.reads.confirm(Basis::Quorum, timeout).await.map_err(unavailable)?;
    let left = timeout.saturating_sub(began.elapsed());
    wait_applied(&mut core.state.applied_watch(), index, left).await.map_err(unavailable)?;
    Ok(core.state.leases(after, limit as usize))
}

impl Node {
    /// Grants a lease, through any node, and answers its id, and whether it was granted before. It lives for `ttl_ms`
    /// milliseconds from when the leader applied it, at least. To grant one together with what is attached to it, put a
    /// [`TxnOp::GrantLease`] with an id of [`lease::random_id`] before the puts of one transaction.
    ///
    /// # Errors
    /// As [`Node::propose_change`]; 429 when there are too many leases.
    pub async fn grant_lease(&self, ttl_ms: u64, context: &ChangeContext) -> Result<(u64, bool), Error> {
        // Random ids of 53 bits: one that is taken is refused, and will not be met.
        let grant = TxnOp::GrantLease { id: lease::random_id(), ttl_ms };
        let changed = self.propose_change(&Command::Txn(Txn::unconditional(grant)), context).await?;
        match changed.outcome {
            // A replay's lease is the one that was granted then.
            Outcome::Txn(TxnOutcome { results, .. }) => match results.first().and_then(OpResult::granted_lease) {
                Some(id) => Ok((id, changed.replayed)),
                None => Err(unexpected(&results)),
            },
            other => Err(unexpected(&other)),
        }
    }

    /// Lets lease `id` live for its full time to live from now, through any node. Nothing is written. Once answered it
    /// holds under every later leader. When it fails the lease may have been kept alive nevertheless.
    ///
    /// # Errors
    /// 404 when there is no such lease; 503 when no leader could confirm in time.
    pub async fn keep_alive(&self, id: u64, timeout: Duration) -> Result<Lease, Error> {
        match self.ask_leader(PeerRequest::KeepAlive(id), timeout).await? {
            PeerResponse::KeptAlive(lease) => Ok(lease),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends lease `id` and deletes all keys that are attached to it, in one revision, through any node. Answers the
    /// revision and the number of keys, and whether it was done before.
    ///
    /// # Errors
    /// 404 when there is no such lease; as [`Node::propose_change`].
    pub async fn revoke_lease(&self, id: u64, context: &ChangeContext) -> Result<((u64, u64), bool), Error> {
        let command = Command::Txn(Txn::unconditional(TxnOp::EndLease { id }));
        let Changed { outcome, replayed } = self.propose_change_any(&command, context).await?;
        match outcome {
            Outcome::Txn(TxnOutcome { revision, results, .. }) => match results.first() {
                Some(OpResult::LeaseEnded { deleted }) => Ok(((revision, *deleted), replayed)),
                other => Err(unexpected(&other)),
            },
            Outcome::Refused(Refusal::NoSuchLease { lease, .. }) => {
                Err(Error { replayed, ..Error::no_such_lease(lease) })
            }
            Outcome::Refused(refusal) => Err(Error { replayed, ..refusal.into() }),
            other => Err(unexpected(&other)),
        }
    }

    /// Lease `id` with its first keys, `keys_max` at most, and how long it lives, as the leader says.
    ///
    /// # Errors
    /// 404 when there is no such lease; 503 when no leader could be reached in time.
    pub async fn lease(&self, id: u64, keys_max: usize, timeout: Duration) -> Result<LeaseStatus, Error> {
        let request = PeerRequest::Lease { id, keys_max: keys_max as u32 };
        match self.ask_leader(request, timeout).await? {
            PeerResponse::Lease(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// The leases with ids above `after`, `limit` at most, in the order of their ids. Linearizable.
    ///
    /// # Errors
    /// 503 when no leader could be reached in time.
    pub async fn leases(&self, after: u64, limit: u32, timeout: Duration) -> Result<LeasePage, Error> {
        if self.position() == Position::Holder && self.divergence().is_none() {
            let core = self.serving_core()?;
            confirm(&core, Basis::Quorum, Instant::now() + timeout).await?;
            return Ok(core.state.leases(after, limit as usize));
        }
        match self.ask_leader(PeerRequest::Leases { after, limit }, timeout).await? {
            PeerResponse::Leases(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(answer: &impl std::fmt::Debug) -> Error {
    Error::new(Code::Internal, format!("unexpected answer {answer:?}"))
}
