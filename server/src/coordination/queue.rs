//! A line of places: first come, first served. The first one holds the lock, or leads.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, Txn, TxnOp},
    lease::random_id,
    outcome::OpResult,
    record::{KeyRecord, ListPage, ListRequest},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    STEP_TIMEOUT,
    claim::Claim,
    space::{Space, only},
    transact,
};
use crate::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
    proposals::ChangeContext,
    watch::{End, Watcher},
};

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

/// What a place says of who stands there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who, in the caller's own words.
    pub owner: String,
    /// What it has to say.
    pub value: Option<String>,
    /// Time to live of its lease, in milliseconds.
    pub ttl_ms: u64,
}

/// A place in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its lease: the token by which it is renewed and given up.
    pub lease: u64,
    /// Grows from holder to holder.
    pub fencing_token: u64,
    /// Who stands there.
    pub entry: Entry,
}

/// A line as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The places in their order; the first one is the holder's.
    pub places: Vec<Place>,
    /// Revision of the store.
    pub revision: u64,
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

    /// Takes a place, and waits until it is the first, at most `wait`. Answers it, and whether an earlier attempt had taken it.
    ///
    /// Whoever drops the future gives the place up, unless it has an idempotency key: then the same request, sent again,
    /// finds the place where it stands, as long as its lease lasts.
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
        let (deadline, once) = (Instant::now() + wait, context.idempotency.is_some());
        let line = self.look(node, 0).await?;
        if !once && wait.is_zero() && !line.places.is_empty() {
            return Err(self.held(&line));
        }
        if line.places.len() >= PLACES_MAX as usize {
            return Err(Error::new(
                Code::Overloaded,
                format!("{PLACES_MAX} are waiting already; nothing was changed. Retry later"),
            ));
        }
        let mut claim = Claim::new(node, random_id(), Duration::from_millis(entry.ttl_ms));
        if once {
            claim.keep();
        }
        let (place, replayed) = self.enter(node, entry, &mut claim, context).await?;
        let seen = if replayed { self.look_for(node, &place).await? } else { place.fencing_token };
        match self.wait_in_line(node, &place, seen, replayed, deadline).await {
            Ok(()) => {
                claim.keep();
                Ok((place, replayed))
            }
            Err(error) => {
                // The same request, sent again, may go on waiting after any other end.
                if !once || error.code == Code::LockHeld {
                    claim.give_up(place.lease).await;
                }
                Err(error)
            }
        }
    }

    /// Finds the place that an earlier attempt took, and answers a revision at which it is there.
    async fn look_for(&self, node: &Node, place: &Place) -> Result<u64, Error> {
        let line = self.look(node, 0).await?;
        if line.places.iter().any(|other| other.lease == place.lease) {
            return Ok(line.revision);
        }
        let gone = "the place that this Idempotency-Key took is over: it was given up, or its lease ended; nothing is held. Take a new key";
        Err(Error { replayed: true, ..Error::new(Code::LockHeld, gone) })
    }

    async fn enter(
        &self,
        node: &Node,
        entry: Entry,
        claim: &mut Claim,
        context: &ChangeContext,
    ) -> Result<(Place, bool), Error> {
        let lease = claim.lease;
        let put = TxnOp::Put {
            key: self.space.place(&self.name, lease),
            value: encoded(&entry),
            content_type: None,
            lease,
            prev: false,
        };
        let grant = TxnOp::GrantLease { id: lease, ttl_ms: entry.ttl_ms };
        let command = Command::Txn(Txn { success: vec![grant, put], ..Txn::default() });
        match transact(node, &command, context).await {
            Ok((outcome, replayed)) => {
                // A replay's lease is the one that was granted then.
                let lease = outcome.results.first().and_then(OpResult::granted_lease).unwrap_or(lease);
                Ok((Place { lease, fencing_token: outcome.revision, entry }, replayed))
            }
            Err(error) => {
                if error.code != Code::OutcomeUnknown {
                    claim.keep();
                }
                Err(error)
            }
        }
    }

    /// Waits until `place`, which was there at revision `seen`, is the first. A place that waited has its full time to live
    /// again then.
    async fn wait_in_line(
        &self,
        node: &Arc<Node>,
        place: &Place,
        mut seen: u64,
        mut waited: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let interval = Duration::from_millis(place.entry.ttl_ms) / KEEP_ALIVES_PER_TTL;
        let mut next_keep_alive = Instant::now() + interval;
        loop {
            let line = self.look(node, seen).await?;
            let Some(at) = line.places.iter().position(|other| other.lease == place.lease) else {
                return Err(Error::new(
                    Code::Unavailable,
                    "the lease ended while it waited; nothing is held. Try again",
                ));
            };
            let Some(before) = at.checked_sub(1).map(|before| &line.places[before]) else {
                // Nobody comes before it any more, so it is first as long as its lease lasts.
                if waited {
                    node.keep_alive(place.lease, STEP_TIMEOUT).await?;
                }
                return Ok(());
            };
            let key = self.space.place(&self.name, before.lease);
            let mut watcher = node.watch(only(&key), Some(line.revision + 1), STEP_TIMEOUT).await?;
            waited = true;
            loop {
                tokio::select! {
                    gone = gone(&mut watcher) => match gone {
                        Ok(revision) => {
                            seen = revision;
                            break;
                        }
                        Err(End::Closed(why)) if node.stopping.is_cancelled() => {
                            return Err(Error::new(Code::Unavailable, format!("{why}; nothing is held. Ask another node")));
                        }
                        Err(End::Closed(_) | End::Overflow | End::Compacted { .. }) => {
                            tokio::time::sleep(LOOK_AGAIN).await;
                            break;
                        }
                    },
                    () = tokio::time::sleep_until(next_keep_alive) => {
                        next_keep_alive += interval;
                        // One that fails is followed by others before the lease ends; one that ended is seen above.
                        if let Err(error) = node.keep_alive(place.lease, interval).await {
                            tracing::debug!(%error, "a waiting place was not kept alive");
                        }
                    }
                    () = tokio::time::sleep_until(deadline) => return Err(self.held(&line)),
                }
            }
        }
    }

    /// The line, as of now (`min_revision` = 0) or as of that revision or a later one.
    ///
    /// # Errors
    /// Those of reads.
    pub async fn look(&self, node: &Node, min_revision: u64) -> Result<View, Error> {
        let request = ListRequest {
            range: self.space.places(&self.name),
            limit: PLACES_MAX + 1,
            revision: 0,
            keys_only: false,
            count_only: false,
            descending: false,
            after: None,
        };
        let consistency = if min_revision == 0 { Consistency::Linearizable } else { Consistency::Stale };
        let options = ReadOptions { consistency, min_revision, max_staleness: None, timeout: STEP_TIMEOUT };
        let ListPage { items, revision, .. } = node.read_range(request, &options).await?;
        let mut places = items.into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
        places.sort_unstable_by_key(|place| place.fencing_token);
        Ok(View { places, revision })
    }

    /// Gives the holder `lease` its full time to live again.
    ///
    /// # Errors
    /// [`Code::NotHolder`] when it is not the first.
    pub async fn renew(&self, node: &Node, lease: u64) -> Result<Place, Error> {
        let line = self.look(node, 0).await?;
        let holder = line.places.into_iter().next().filter(|holder| holder.lease == lease).ok_or_else(not_holder)?;
        match node.keep_alive(lease, STEP_TIMEOUT).await {
            Ok(_) => Ok(holder),
            Err(error) if error.code == Code::LeaseNotFound => Err(not_holder()),
            Err(error) => Err(error),
        }
    }

    /// Gives the place of `lease` up, held or waiting. Answers whether an earlier attempt did it.
    ///
    /// # Errors
    /// [`Code::NotHolder`] when it has none.
    pub async fn release(&self, node: &Node, lease: u64, context: &ChangeContext) -> Result<bool, Error> {
        let key = self.space.place(&self.name, lease);
        let standing = Compare { key, target: CompareTarget::Version(0), op: CompareOp::Greater };
        let end = TxnOp::EndLease { id: lease };
        let command = Command::Txn(Txn { compare: vec![standing], success: vec![end], failure: Vec::new() });
        let (outcome, replayed) = transact(node, &command, context).await?;
        if outcome.succeeded { Ok(replayed) } else { Err(Error { replayed, ..not_holder() }) }
    }

    /// Watches the line from the revision after `view`.
    ///
    /// # Errors
    /// Those of [`Node::watch`].
    pub async fn watch(&self, node: &Arc<Node>, view: &View) -> Result<Watcher, Error> {
        node.watch(self.space.places(&self.name), Some(view.revision + 1), STEP_TIMEOUT).await
    }

    fn held(&self, line: &View) -> Error {
        let holder = line.places.first().map_or("another one", |holder| &*holder.entry.owner);
        let what = match self.space {
            Space::Lock => "the lock is held",
            Space::Election | Space::Registry => "the election is won",
        };
        Error::new(
            Code::LockHeld,
            format!("{what} by {holder:?}; nothing is held. Wait longer (\"wait\"), or try again later"),
        )
    }
}

fn not_holder() -> Error {
    Error::new(
        Code::NotHolder,
        "the token does not hold it: it was given up, its lease ended, or it is another holder's; nothing was changed",
    )
}

fn place(item: KeyRecord) -> Result<Place, Error> {
    let KeyRecord { key, record } = item;
    let entry: Entry = serde_json::from_slice(&record.value)
        .map_err(|error| Error::new(Code::Internal, format!("the place {key:?} cannot be read: {error}")))?;
    Ok(Place { lease: record.lease, fencing_token: record.create_revision, entry })
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
