//! A line of places: first come, first served. The first one holds the lock, or leads.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, Txn, TxnOp},
    lease::random_id,
    outcome::OpResult,
    record::KeyRange,
};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{
    STEP_TIMEOUT,
    claim::Claim,
    line::{Line, Written},
    space::{Space, only},
    transact,
};
use crate::{
    error::Error,
    node::Node,
    proposals::ChangeContext,
    watch::{End, Watcher},
};

pub use super::line::{Entry, Place, View};

/// Most places in one line, the holder's included; further ones are refused.
pub const PLACES_MAX: u32 = 1_000;
/// Between two looks at a line whose watch ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often in its time to live the lease of a waiting place is kept alive.
const KEEP_ALIVES_PER_TTL: u32 = 3;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    space: Space,
    name: String,
}

/// How waiting ended.
enum Waited {
    /// The place is the first.
    First,
    /// It was given up, or left to another attempt of the same request.
    Left(Error),
}

impl Queue {
    /// The line for the lock `name`.
    pub fn lock(name: &str) -> Self {
        Self { space: Space::Lock, name: name.to_owned() }
    }

    /// The line for the election `name`.
    pub fn election(name: &str) -> Self {
        Self { space: Space::Election, name: name.to_owned() }
    }

    /// The record of the place of `lease`.
    pub(super) fn place(&self, lease: u64) -> Bytes {
        self.space.place(&self.name, lease)
    }

    /// The records of all its places.
    pub(super) fn places(&self) -> KeyRange {
        self.space.places(&self.name)
    }

    /// Takes a place, and waits until it is the first, at most `wait`. Answers it, and whether an earlier attempt had taken it.
    ///
    /// Whoever drops the future gives the place up, unless it has an idempotency key: then the same request, sent again,
    /// finds the place where it stands, as long as its lease lasts. Of several attempts the last one gives it up.
    ///
    /// # Errors
    /// [`Code::LockHeld`] when others are still before it at the end, or the place that this key took is over;
    /// [`Code::Overloaded`] when the line is full.
    pub async fn acquire(
        &self,
        node: &Arc<Node>,
        entry: Entry,
        wait: Duration,
        context: &ChangeContext,
    ) -> Result<(Place, bool), Error> {
        let deadline = Instant::now() + wait;
        let request = request_of(context);
        let line = self.order(node, 0).await?;
        if request.is_none() && wait.is_zero() && !line.spots.is_empty() {
            return Err(self.held(node, &line).await);
        }
        if line.spots.len() >= PLACES_MAX as usize {
            let stands = match &request {
                Some(request) => self.stands(node, request).await?,
                None => false,
            };
            if !stands {
                return Err(full());
            }
        }
        let mut claim = Claim::new(node, random_id(), Duration::from_millis(entry.ttl_ms));
        let once = request.is_some();
        if once {
            claim.keep();
        }
        let (place, replayed) = self.enter(node, Written { entry, request }, &mut claim, context).await?;
        let waited = tokio::select! {
            waited = self.wait_in_line(node, &place, context, replayed, deadline) => waited,
            never = keep_alive_while_waiting(node, &place, replayed) => match never {},
        };
        match waited {
            Ok(Waited::First) => {
                claim.keep();
                Ok((place, replayed))
            }
            Ok(Waited::Left(error)) => {
                claim.keep();
                Err(Error { replayed, ..error })
            }
            Err(error) => {
                // The same request, sent again, may go on waiting.
                if !once {
                    claim.give_up().await;
                }
                Err(error)
            }
        }
    }

    async fn enter(
        &self,
        node: &Node,
        written: Written,
        claim: &mut Claim,
        context: &ChangeContext,
    ) -> Result<(Place, bool), Error> {
        let lease = claim.lease;
        let grant = TxnOp::GrantLeaseFor { id: lease, ttl_ms: written.entry.ttl_ms, kind: self.space.lease_kind() };
        let command = Command::Txn(Txn { success: vec![grant, self.put(lease, &written)], ..Txn::default() });
        match transact(node, &command, context).await {
            Ok((outcome, replayed)) => {
                // A replay's lease is the one that was granted then.
                let lease = outcome.results.first().and_then(OpResult::granted_lease).unwrap_or(lease);
                Ok((Place { lease, fencing_token: outcome.revision, entry: written.entry }, replayed))
            }
            Err(error) => {
                if error.code != Code::OutcomeUnknown {
                    claim.keep();
                }
                Err(error)
            }
        }
    }

    fn put(&self, lease: u64, written: &Written) -> TxnOp {
        TxnOp::Put { key: self.place(lease), value: encoded(written), content_type: None, lease, prev: false }
    }

    /// Waits until `place` is the first. A place that waited has its full time to live again then.
    ///
    /// Invariant: a place is given up in one step with the look that somebody stands before it and that no other attempt
    /// took it over. So one that another attempt was given, or waits on at, stays.
    async fn wait_in_line(
        &self,
        node: &Arc<Node>,
        place: &Place,
        context: &ChangeContext,
        replayed: bool,
        deadline: Instant,
    ) -> Result<Waited, Error> {
        let (mut seen, mut waited) = (if replayed { 0 } else { place.fencing_token }, replayed);
        let mut taken_at = (!replayed).then_some(place.fencing_token);
        loop {
            let line = self.order(node, seen).await?;
            let Some(at) = line.spots.iter().position(|spot| spot.lease == place.lease) else {
                return Err(if taken_at.is_some() { ended() } else { over() });
            };
            let Some(before) = at.checked_sub(1).map(|before| line.spots[before].lease) else {
                // Nobody comes before it any more, so it is first as long as its lease lasts.
                if waited {
                    let kept = node.keep_alive(place.lease, STEP_TIMEOUT).await;
                    kept.map_err(|error| if error.code == Code::LeaseNotFound { ended() } else { error })?;
                }
                return Ok(Waited::First);
            };
            let mine = match taken_at {
                Some(mine) => mine,
                None => self.take_over(node, place, context).await?,
            };
            let refusal = if at >= PLACES_MAX as usize {
                full()
            } else if let Some(revision) = self.wait_behind(node, before, line.revision, deadline).await? {
                (seen, waited, taken_at) = (revision.max(mine), true, Some(mine));
                continue;
            } else {
                self.held(node, &line).await
            };
            if taken_at.is_some() && line.spots[at].taken_at != mine {
                return Ok(Waited::Left(refusal));
            }
            match self.leave(node, place, mine, before).await {
                Ok(None) => return Ok(Waited::Left(refusal)),
                Ok(Some(revision)) => (seen, waited, taken_at) = (revision.max(mine), true, Some(mine)),
                Err(error) => {
                    tracing::debug!(%error, lease = place.lease, "a place was not given up; it ends with its lease");
                    return Err(refusal);
                }
            }
        }
    }

    /// Waits until `before` is gone, and gives a revision as of which to look again; `None` when `deadline` came first.
    async fn wait_behind(
        &self,
        node: &Arc<Node>,
        before: u64,
        revision: u64,
        deadline: Instant,
    ) -> Result<Option<u64>, Error> {
        let mut watcher = node.watch(only(&self.place(before)), Some(revision + 1), STEP_TIMEOUT).await?;
        match timeout_at(deadline, gone(&mut watcher)).await {
            Err(_) => Ok(None),
            Ok(Ok(revision)) => Ok(Some(revision)),
            Ok(Err(End::Closed(why))) if node.stopping.is_cancelled() => {
                Err(Error::new(Code::Unavailable, format!("{why}; nothing is held. Ask another node")))
            }
            Ok(Err(End::Closed(_) | End::Overflow | End::Compacted { .. })) => {
                tokio::time::sleep(LOOK_AGAIN).await;
                Ok(Some(revision))
            }
        }
    }

    /// Makes this attempt the one that gives `place` up, which an earlier one took. Answers the revision of that.
    async fn take_over(&self, node: &Node, place: &Place, context: &ChangeContext) -> Result<u64, Error> {
        let request = request_of(context);
        let put = self.put(place.lease, &Written { entry: place.entry.clone(), request });
        let command =
            Command::Txn(Txn { compare: vec![self.standing(place.lease)], success: vec![put], failure: vec![] });
        let (outcome, _) = transact(node, &command, &alone(STEP_TIMEOUT)).await?;
        if outcome.succeeded { Ok(outcome.revision) } else { Err(over()) }
    }

    /// Gives `place` up, unless nobody stands at `before` any more, or another attempt took it over after `mine`: then the answer
    /// is a revision as of which to look again.
    async fn leave(&self, node: &Node, place: &Place, mine: u64, before: u64) -> Result<Option<u64>, Error> {
        let unchanged =
            Compare { key: self.place(place.lease), target: CompareTarget::ModRevision(mine), op: CompareOp::Equal };
        let compare = vec![unchanged, self.standing(before)];
        let end = TxnOp::EndLease { id: place.lease };
        let command = Command::Txn(Txn { compare, success: vec![end], failure: Vec::new() });
        let timeout = STEP_TIMEOUT.min(Duration::from_millis(place.entry.ttl_ms));
        let (outcome, _) = transact(node, &command, &alone(timeout)).await?;
        Ok((!outcome.succeeded).then_some(outcome.revision))
    }

    /// That the place of `lease` is there.
    fn standing(&self, lease: u64) -> Compare {
        Compare { key: self.place(lease), target: CompareTarget::Version(0), op: CompareOp::Greater }
    }

    /// Gives the holder `lease` its full time to live again.
    ///
    /// # Errors
    /// [`Code::NotHolder`] when it is not the first.
    pub async fn renew(&self, node: &Node, lease: u64) -> Result<Place, Error> {
        let line = self.order(node, 0).await?;
        let holder = line.spots.first().filter(|holder| holder.lease == lease).ok_or_else(not_holder)?;
        let entry = self.entry_of(node, lease).await?.ok_or_else(not_holder)?;
        match node.keep_alive(lease, STEP_TIMEOUT).await {
            Ok(_) => Ok(Place { lease, fencing_token: holder.fencing_token, entry }),
            Err(error) if error.code == Code::LeaseNotFound => Err(not_holder()),
            Err(error) => Err(error),
        }
    }

    /// Gives the place of `lease` up, held or waiting. Answers whether an earlier attempt did it.
    ///
    /// # Errors
    /// [`Code::NotHolder`] when it has none.
    pub async fn release(&self, node: &Node, lease: u64, context: &ChangeContext) -> Result<bool, Error> {
        let end = TxnOp::EndLease { id: lease };
        let command =
            Command::Txn(Txn { compare: vec![self.standing(lease)], success: vec![end], failure: Vec::new() });
        let (outcome, replayed) = transact(node, &command, context).await?;
        if outcome.succeeded { Ok(replayed) } else { Err(Error { replayed, ..not_holder() }) }
    }

    /// Gives `place` back, which was taken for a client that is gone: the next one has it.
    pub fn give_back(&self, node: &Arc<Node>, place: &Place) {
        drop(Claim::new(node, place.lease, Duration::from_millis(place.entry.ttl_ms)));
    }

    /// Watches the line from the revision after `view`.
    ///
    /// # Errors
    /// Those of [`Node::watch`].
    pub async fn watch(&self, node: &Arc<Node>, view: &View) -> Result<Watcher, Error> {
        node.watch(self.places(), Some(view.revision + 1), STEP_TIMEOUT).await
    }

    async fn held(&self, node: &Node, line: &Line) -> Error {
        let entry = match line.spots.first() {
            Some(holder) => self.entry_of(node, holder.lease).await,
            None => Ok(None),
        };
        let holder = match entry {
            Ok(Some(entry)) => format!("{:?}", entry.owner),
            // It is over by now, or cannot be asked: who had it is all that is missing.
            Ok(None) | Err(_) => "another one".to_owned(),
        };
        let what = match self.space {
            Space::Lock => "the lock is held",
            Space::Election | Space::Registry => "the election is won",
        };
        Error::new(
            Code::LockHeld,
            format!("{what} by {holder}; nothing is held. Wait longer (\"wait\"), or try again later"),
        )
    }
}

fn not_holder() -> Error {
    Error::new(
        Code::NotHolder,
        "the token does not hold it: it was given up, its lease ended, or it is another holder's; nothing was changed",
    )
}

fn full() -> Error {
    Error::new(Code::Overloaded, format!("{PLACES_MAX} stand in line already; nothing is held. Retry later"))
}

fn ended() -> Error {
    Error::new(Code::Unavailable, "the lease ended while it waited; nothing is held. Try again")
}

fn over() -> Error {
    let why = "the place that this Idempotency-Key took is over: it was given up, or its lease ended; nothing is held. Take a new key";
    Error { replayed: true, ..Error::new(Code::LockHeld, why) }
}

/// What the places of a request with an idempotency key are known by.
fn request_of(context: &ChangeContext) -> Option<String> {
    context.idempotency.as_ref().map(|once| format!("{:032x}", once.fingerprint))
}

/// Of a change that nobody sends again.
fn alone(timeout: Duration) -> ChangeContext {
    ChangeContext { idempotency: None, timeout }
}

/// Keeps the lease of a waiting place alive, from now on when it was granted to an earlier attempt.
async fn keep_alive_while_waiting(node: &Node, place: &Place, at_once: bool) -> Infallible {
    let interval = Duration::from_millis(place.entry.ttl_ms) / KEEP_ALIVES_PER_TTL;
    let mut pause = if at_once { Duration::ZERO } else { interval };
    loop {
        tokio::time::sleep(pause).await;
        pause = interval;
        // One that fails is followed by others before the lease ends; one that ended is seen in the line.
        if let Err(error) = node.keep_alive(place.lease, STEP_TIMEOUT.min(interval)).await {
            tracing::debug!(%error, "a waiting place was not kept alive");
        }
    }
}

/// Waits until the watched record is gone, and gives the revision of that.
async fn gone(watcher: &mut Watcher) -> Result<u64, End> {
    loop {
        let batch = watcher.next().await?;
        if batch.changes().any(|change| change.new.is_none()) {
            return Ok(batch.revision());
        }
    }
}

/// The token that names the place of `lease`.
pub fn token(lease: u64) -> String {
    lease.to_string()
}

/// The lease in a token.
///
/// # Errors
/// 400 for what is no token.
pub fn lease_of(token: &str) -> Result<u64, Error> {
    let digits = !token.is_empty() && token.bytes().all(|b| b.is_ascii_digit());
    let lease = if digits { token.parse().ok().filter(|lease| *lease > 0) } else { None };
    lease.ok_or_else(|| Error::invalid("the token is not one that this API gave; take it from \"token\" as it is"))
}

/// The bytes of a record, for whoever writes one.
pub(super) fn encoded(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("records are plain data").into()
}
