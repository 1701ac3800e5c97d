//! Unique names, each with an owner and an address, under a lease.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, Txn, TxnOp},
    lease::random_id,
    record::{KeyRecord, ListRequest},
};
use serde::{Deserialize, Serialize};

use super::{
    queue::{encoded, transact},
    space::Space,
};
use crate::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
};

/// One read or change.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
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

/// Registers `name`, or renews it for its owner.
///
/// # Errors
/// [`Code::NameTaken`] when it is another owner's.
pub async fn register(node: &Arc<Node>, name: &str, entry: Entry) -> Result<Registration, Error> {
    let key = Space::Registry.record(name);
    for _ in 0..ATTEMPTS_MAX {
        let present = find(node, name).await?;
        if let Some(present) = &present {
            if present.entry.owner != entry.owner {
                return Err(Error::new(
                    Code::NameTaken,
                    format!("{name:?} is registered by {:?}; choose another name", present.entry.owner),
                ));
            }
            if present.entry == entry {
                match node.keep_alive(present.lease, STEP_TIMEOUT).await {
                    Ok(_) => return Ok(present.clone()),
                    // It ended since it was read.
                    Err(error) if error.code == Code::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
        }
        if let Some(registration) = write(node, name, &key, &entry, present.as_ref()).await? {
            return Ok(registration);
        }
    }
    Err(Error::new(Code::Unavailable, format!("{name:?} changes all the time; nothing was changed. Try again")))
}

/// Writes the record unless it changed since `present` was read: None.
async fn write(
    node: &Node,
    name: &str,
    key: &Bytes,
    entry: &Entry,
    present: Option<&Registration>,
) -> Result<Option<Registration>, Error> {
    let lease = random_id();
    let target = CompareTarget::ModRevision(present.map_or(0, |present| present.revision));
    let unchanged = Compare { key: key.clone(), target, op: CompareOp::Equal };
    let mut success = vec![
        TxnOp::GrantLease { id: lease, ttl_ms: entry.ttl_ms },
        TxnOp::Put { key: key.clone(), value: encoded(entry), content_type: None, lease, prev: false },
    ];
    // After the put, which takes the record away from it.
    success.extend(present.map(|present| TxnOp::EndLease { id: present.lease }));
    let command = Command::Txn(Txn { compare: vec![unchanged], success, failure: Vec::new() });
    let outcome = transact(node, &command).await?;
    let registration = Registration { name: name.to_owned(), entry: entry.clone(), lease, revision: outcome.revision };
    Ok(outcome.succeeded.then_some(registration))
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

/// Takes `name` out, for `owner` only where one is given.
///
/// # Errors
/// [`Code::NotFound`] when nobody has it, [`Code::NameTaken`] when another owner has.
pub async fn remove(node: &Node, name: &str, owner: Option<&str>) -> Result<(), Error> {
    let key = Space::Registry.record(name);
    for _ in 0..ATTEMPTS_MAX {
        let Some(present) = find(node, name).await? else {
            return Err(Error::new(Code::NotFound, format!("nobody registered {name:?}")));
        };
        if owner.is_some_and(|owner| owner != present.entry.owner) {
            return Err(Error::new(
                Code::NameTaken,
                format!("{name:?} is registered by {:?}; nothing was changed", present.entry.owner),
            ));
        }
        let target = CompareTarget::ModRevision(present.revision);
        let unchanged = Compare { key: key.clone(), target, op: CompareOp::Equal };
        let end = TxnOp::EndLease { id: present.lease };
        let command = Command::Txn(Txn { compare: vec![unchanged], success: vec![end], failure: Vec::new() });
        if transact(node, &command).await?.succeeded {
            return Ok(());
        }
    }
    Err(Error::new(Code::Unavailable, format!("{name:?} changes all the time; nothing was changed. Try again")))
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
