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
/// Of these, this many are kept for each [`LeaseKind`]: whatever one kind takes, there is room for the first leases of each
/// other one. Puts with a time to live do not stop locks, locks do not stop names.
pub const LEASES_KEPT_PER_KIND: usize = 50_000;
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

/// What a lease was granted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum LeaseKind {
    /// For itself: it ends when it is revoked, or its time is over.
    #[default]
    Explicit,
    /// For the put of a key with a time to live: it ends with the last key that is attached to it, too.
    Key,
    /// For a place in the line of a lock.
    Lock,
    /// For a place in the line of an election.
    Election,
    /// For a registered name.
    Name,
}

impl LeaseKind {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [Self::Explicit, Self::Key, Self::Lock, Self::Election, Self::Name];

    /// Whether a lease of this kind ends when no key is attached to it any more.
    pub fn ends_with_its_keys(self) -> bool {
        self == Self::Key
    }
}

/// A lease, without the keys that are attached to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PackedLease", into = "PackedLease")]
pub struct Lease {
    /// Its time to live, in milliseconds.
    pub ttl_ms: u64,
    /// When it was granted by the log's time, in milliseconds since the Unix epoch. For people to read: no lease ends by
    /// it.
    pub granted_ms: u64,
    /// What it was granted for.
    pub kind: LeaseKind,
}

/// Bits of [`PackedLease::granted_ms`] that are the time: enough for 73 million years.
const GRANTED_BITS: u32 = 61;

/// A lease as it is encoded. The kind stands above the time, so that an explicit lease has the bytes, and adds to the state
/// hash what it did, before there were kinds.
#[derive(Serialize, Deserialize)]
struct PackedLease {
    ttl_ms: u64,
    granted_ms: u64,
}

impl From<Lease> for PackedLease {
    fn from(Lease { ttl_ms, granted_ms, kind }: Lease) -> Self {
        let granted_ms = granted_ms & ((1 << GRANTED_BITS) - 1) | (kind as u64) << GRANTED_BITS;
        Self { ttl_ms, granted_ms }
    }
}

impl TryFrom<PackedLease> for Lease {
    type Error = String;

    fn try_from(PackedLease { ttl_ms, granted_ms }: PackedLease) -> Result<Self, String> {
        let kind = granted_ms >> GRANTED_BITS;
        let known = LeaseKind::ALL.get(kind as usize).ok_or_else(|| format!("{kind} is not a valid kind of lease"))?;
        Ok(Self { ttl_ms, granted_ms: granted_ms & ((1 << GRANTED_BITS) - 1), kind: *known })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn an_explicit_lease_has_the_bytes_of_earlier_releases() {
        for kind in LeaseKind::ALL {
            let lease = Lease { ttl_ms: 30_000, granted_ms: 1_700_000_000_000, kind };
            let encoded = codec::encode(&lease);
            assert_eq!(codec::decode::<Lease>("lease", &encoded, 64).unwrap(), lease);
            let plain = encoded == codec::encode(&(30_000_u64, 1_700_000_000_000_u64));
            assert_eq!(plain, kind == LeaseKind::Explicit);
        }
        let later = codec::encode(&(1_u64, 7_u64 << GRANTED_BITS));
        assert!(codec::decode::<Lease>("lease", &later, 64).is_err(), "a kind that this version does not know");
    }
}
