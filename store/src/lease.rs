//! Leases: a key that is attached to one goes when it ends. What a lease is, and its limits; who decides that one ends
//! is the server's affair.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    command::{RANGE_DELETE_KEYS_MAX, REPLACED_BYTES_MAX},
    entropy,
};

/// Most leases of a cluster.
pub const LEASES_MAX: usize = 1_000_000;
/// Shortest time to live, in milliseconds: shorter ones would end by an election.
pub const LEASE_TTL_MS_MIN: u64 = 1_000;
/// Longest time to live, in milliseconds: a year.
pub const LEASE_TTL_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1_000;
/// Largest lease id: a number that JSON carries exactly everywhere.
pub const LEASE_ID_MAX: u64 = (1 << 53) - 1;
/// Most keys attached to one lease: they go in one revision.
pub const LEASE_KEYS_MAX: u64 = RANGE_DELETE_KEYS_MAX;
/// Most bytes of the records attached to one lease, for the same reason.
pub const LEASE_BYTES_MAX: u64 = REPLACED_BYTES_MAX;
/// Most leases that one command ends because their time is over.
pub const EXPIRE_LEASES_MAX: usize = 1_000;
/// Most leases on a page of a listing.
pub const LEASE_PAGE_ITEMS_MAX: usize = 10_000;
/// Most keys of a lease that are shown.
pub const LEASE_KEYS_SHOWN_MAX: usize = 1_000;

/// A lease, without the keys that are attached to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its time to live, in milliseconds.
    pub ttl_ms: u64,
    /// When it was granted by the log's time, in milliseconds since the Unix epoch. For people to read: no lease ends by
    /// it.
    pub granted_ms: u64,
}

/// A lease with its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// 1..=[`LEASE_ID_MAX`], never given twice by intention: chosen at random.
    pub id: u64,
    /// The lease.
    pub lease: Lease,
}

/// A lease with what is attached to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// The lease.
    pub record: LeaseRecord,
    /// The first keys that are attached to it, in their order; at most as many as were asked for.
    pub keys: Vec<Bytes>,
    /// Number of all keys that are attached to it.
    pub key_count: u64,
}

/// Some leases, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeasePage {
    /// The leases.
    pub items: Vec<LeaseRecord>,
    /// Whether more follow.
    pub more: bool,
}

/// Is told of every lease that apply grants or ends, in log order, before the next entry is applied. Must not block.
/// A snapshot that is installed is not told of: ask for the leases afresh then.
pub trait LeaseObserver: Send + Sync + fmt::Debug {
    /// The lease was granted, or granted anew under the same id.
    fn granted(&self, record: LeaseRecord);
    /// The lease ended, and its keys with it.
    fn ended(&self, id: u64);
}

/// An id for a new lease.
pub fn random_id() -> u64 {
    entropy::random_range(1..=LEASE_ID_MAX)
}
