//! Unique names, each with an owner and an address, under a lease.

use std::sync::Arc;

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, Txn, TxnOp},
    dedupe::{Fingerprint, Idempotency},
    lease::random_id,
    outcome::{OpResult, TxnOutcome},
    record::{KeyRecord, ListRequest},
};
use serde::{Deserialize, Serialize};

use super::{STEP_TIMEOUT, queue::encoded, space::Space, transact};
use crate::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
    proposals::ChangeContext,
};

/// How often a registration is tried again when the name changed under it.
const ATTEMPTS_MAX: u32 = 8;

/// A registered name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The name.
    pub name: String,
    /// What is known of it.
    pub entry: Entry,
    /// Its lease.
    pub lease: u64,
    /// Revision of its last change.
    pub revision: u64,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who has it. Only the same owner can change or renew it.
    pub owner: String,
    /// Where it is.
    pub address: String,
    /// Time to live of its lease, in milliseconds.
    pub ttl_ms: u64,
}

/// Registers `name`, or renews it for its owner. Answers whether an earlier attempt did it.
///
/// # Errors
/// [`Code::NameTaken`] when it is another owner's.
pub async fn register(
    node: &Arc<Node>,
    name: &str,
    entry: Entry,
    context: &ChangeContext,
) -> Result<(Registration, bool), Error> {
    let key = Space::Registry.record(name);
    for attempt in 0..ATTEMPTS_MAX {
        let context = &of_attempt(context, attempt);
        let present = find(node, name).await?;
        if let Some(present) = &present {
            if present.entry.owner != entry.owner {
                let (kept, replayed) = refuse(node, &key, Some(present), context).await?;
                match kept {
                    Kept::Done(outcome) => return Ok((registered(name, &entry, &outcome), true)),
                    Kept::Raced => continue,
                    Kept::Refused(found) => return Err(Error { replayed, ..not_registered(name, found.as_ref()) }),
                }
            }
            // With a key it is written, so that the outcome is kept under the key.
            if present.entry == entry && context.idempotency.is_none() {
                match node.keep_alive(present.lease, STEP_TIMEOUT).await {
                    Ok(_) => return Ok((present.clone(), false)),
                    // It ended since it was read.
                    Err(error) if error.code == Code::LeaseNotFound => continue,
                    Err(error) => return Err(error),
                }
            }
        }
        let (outcome, replayed) = write(node, &key, &entry, present.as_ref(), context).await?;
        match Kept::of(outcome)? {
            Kept::Done(outcome) => return Ok((registered(name, &entry, &outcome), replayed)),
            Kept::Raced => {}
            Kept::Refused(found) => return Err(Error { replayed, ..not_registered(name, found.as_ref()) }),
        }
    }
    Err(Error::new(Code::Unavailable, format!("{name:?} changes all the time; nothing was changed. Try again")))
}

/// The context of the `attempt`th transaction of one request: each has an idempotency key of its own, since each is a
/// change of its own. The first one's is the request's; those of the others begin with a byte that no client's has.
fn of_attempt(context: &ChangeContext, attempt: u32) -> ChangeContext {
    let idempotency = context.idempotency.clone().map(|Idempotency { key, fingerprint }| {
        let hash = Fingerprint::default().part(Some(&key)).part(Some(&attempt.to_le_bytes())).finish();
        let key = if attempt == 0 { key } else { [&[0][..], &hash.to_le_bytes()].concat().into() };
        Idempotency { key, fingerprint }
    });
    ChangeContext { idempotency, timeout: context.timeout }
}

/// What is kept under an idempotency key of [`of_attempt`].
enum Kept {
    /// The change.
    Done(TxnOutcome),
    /// The record had changed since it was read: the next attempt's key tells more.
    Raced,
    /// It was refused, since the name was registered like this, and nothing was done: see [`refuse`].
    Refused(Option<Registration>),
}

impl Kept {
    fn of(mut outcome: TxnOutcome) -> Result<Self, Error> {
        match (outcome.succeeded, outcome.results.first_mut()) {
            (false, _) => Ok(Self::Raced),
            (true, Some(OpResult::Get(found))) => Ok(Self::Refused(found.take().map(registration).transpose()?)),
            // As earlier releases kept it.
            (true, None) => Ok(Self::Refused(None)),
            (true, Some(_)) => Ok(Self::Done(outcome)),
        }
    }
}

/// What is kept under the key of `context`, when the request is to be refused because of `present`, and whether an earlier
/// attempt did that. Where nothing is kept, that it was refused is from now on, with the registration that was the reason: by
/// a transaction that only reads it.
async fn refuse(
    node: &Node,
    key: &Bytes,
    present: Option<&Registration>,
    context: &ChangeContext,
) -> Result<(Kept, bool), Error> {
    if context.idempotency.is_none() {
        return Ok((Kept::Refused(present.cloned()), false));
    }
    let read = TxnOp::Get { key: key.clone(), keys_only: false };
    let command =
        Command::Txn(Txn { compare: vec![unchanged(key, present)], success: vec![read], failure: Vec::new() });
    let (outcome, replayed) = transact(node, &command, context).await?;
    Ok((Kept::of(outcome)?, replayed))
}

/// That the name is registered as it was read.
fn unchanged(key: &Bytes, present: Option<&Registration>) -> Compare {
    let target = CompareTarget::ModRevision(present.map_or(0, |present| present.revision));
    Compare { key: key.clone(), target, op: CompareOp::Equal }
}

/// What the transaction of [`write`] with this outcome registered.
fn registered(name: &str, entry: &Entry, outcome: &TxnOutcome) -> Registration {
    let lease = outcome.results.first().and_then(OpResult::granted_lease).unwrap_or_default();
    Registration { name: name.to_owned(), entry: entry.clone(), lease, revision: outcome.revision }
}

/// Writes the record unless it changed since `present` was read. Answers whether an earlier attempt did.
async fn write(
    node: &Node,
    key: &Bytes,
    entry: &Entry,
    present: Option<&Registration>,
    context: &ChangeContext,
) -> Result<(TxnOutcome, bool), Error> {
    let lease = random_id();
    let mut success = vec![
        TxnOp::GrantLeaseFor { id: lease, ttl_ms: entry.ttl_ms, kind: Space::Registry.lease_kind() },
        TxnOp::Put { key: key.clone(), value: encoded(entry), content_type: None, lease, prev: false },
    ];
    // After the put, which takes the record away from it.
    success.extend(present.map(|present| TxnOp::EndLease { id: present.lease }));
    let command = Command::Txn(Txn { compare: vec![unchanged(key, present)], success, failure: Vec::new() });
    transact(node, &command, context).await
}

/// The registration of `name`.
///
/// # Errors
/// Those of reads.
pub async fn find(node: &Node, name: &str) -> Result<Option<Registration>, Error> {
    let key = Space::Registry.record(name);
    let found = node.read_key(key.clone(), 0, &linearizable()).await?;
    found.record.map(|record| registration(KeyRecord { key, record })).transpose()
}

/// Registrations in the order of their names, after `after`, `limit` at most; and whether more follow.
///
/// # Errors
/// Those of reads.
pub async fn list(node: &Node, after: Option<&str>, limit: u32) -> Result<(Vec<Registration>, bool), Error> {
    let request = ListRequest {
        range: Space::Registry.all(),
        limit,
        revision: 0,
        keys_only: false,
        count_only: false,
        descending: false,
        after: after.map(|name| Space::Registry.record(name)),
    };
    let page = node.read_range(request, &linearizable()).await?;
    let registrations = page.items.into_iter().map(registration).collect::<Result<_, _>>()?;
    Ok((registrations, page.more))
}

/// Takes `name` out, for `owner` only where one is given. Answers whether an earlier attempt did it.
///
/// # Errors
/// [`Code::NotFound`] when nobody has it, [`Code::NameTaken`] when another owner has.
pub async fn remove(node: &Node, name: &str, owner: Option<&str>, context: &ChangeContext) -> Result<bool, Error> {
    let key = Space::Registry.record(name);
    for attempt in 0..ATTEMPTS_MAX {
        let context = &of_attempt(context, attempt);
        let found = find(node, name).await?;
        if let Some(refusal) = not_removed(name, owner, found.as_ref()) {
            let (kept, replayed) = refuse(node, &key, found.as_ref(), context).await?;
            match kept {
                Kept::Done(_) => return Ok(true),
                Kept::Raced => continue,
                Kept::Refused(then) => {
                    let refusal = not_removed(name, owner, then.as_ref()).unwrap_or(refusal);
                    return Err(Error { replayed, ..refusal });
                }
            }
        }
        let Some(present) = found else { continue };
        let end = TxnOp::EndLease { id: present.lease };
        let compare = vec![unchanged(&key, Some(&present))];
        let command = Command::Txn(Txn { compare, success: vec![end], failure: Vec::new() });
        let (outcome, replayed) = transact(node, &command, context).await?;
        match Kept::of(outcome)? {
            Kept::Done(_) => return Ok(replayed),
            Kept::Raced => {}
            Kept::Refused(then) => {
                let refusal = not_removed(name, owner, then.as_ref()).unwrap_or_else(|| nobody(name));
                return Err(Error { replayed, ..refusal });
            }
        }
    }
    Err(Error::new(Code::Unavailable, format!("{name:?} changes all the time; nothing was changed. Try again")))
}

/// Why `name`, which was registered like that, was not for another owner.
fn not_registered(name: &str, found: Option<&Registration>) -> Error {
    let by = found.map_or_else(|| "another owner".to_owned(), |found| format!("{:?}", found.entry.owner));
    Error::new(Code::NameTaken, format!("{name:?} is registered by {by}; choose another name"))
}

fn nobody(name: &str) -> Error {
    Error::new(Code::NotFound, format!("nobody registered {name:?}"))
}

/// Why `name` cannot be removed for `owner`.
fn not_removed(name: &str, owner: Option<&str>, present: Option<&Registration>) -> Option<Error> {
    let Some(present) = present else {
        return Some(nobody(name));
    };
    owner.is_some_and(|owner| owner != present.entry.owner).then(|| {
        let why = format!("{name:?} is registered by {:?}; nothing was changed", present.entry.owner);
        Error::new(Code::NameTaken, why)
    })
}

fn linearizable() -> ReadOptions {
    ReadOptions { consistency: Consistency::Linearizable, min_revision: 0, max_staleness: None, timeout: STEP_TIMEOUT }
}

fn registration(item: KeyRecord) -> Result<Registration, Error> {
    let KeyRecord { key, record } = item;
    let broken = |why: String| Error::new(Code::Internal, format!("the record {key:?} cannot be read: {why}"));
    let name = Space::Registry.name_of(&key).ok_or_else(|| broken("no name".to_owned()))?;
    let entry = serde_json::from_slice(&record.value).map_err(|error| broken(error.to_string()))?;
    Ok(Registration { name: name.to_owned(), entry, lease: record.lease, revision: record.mod_revision })
}
