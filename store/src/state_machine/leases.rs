//! The leases of the state: what is attached to which, their rows in the engine, and what a transaction does to them.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;

use super::{hash::StateHash, keys, page::size_bytes};
use crate::{
    StoreError,
    change_log::{Change, Replaced},
    codec,
    engine::{Engine, Span},
    lease::{
        LEASE_BYTES_MAX, LEASE_ID_MAX, LEASE_KEYS_MAX, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, LEASES_KEPT_PER_KIND,
        LEASES_MAX, Lease, LeaseKind, LeasePage, LeaseRecord, LeaseView,
    },
    record::Record,
};

/// Largest encoded lease, in bytes.
const LEASE_ROW_BYTES_MAX: usize = 64;

/// What a command made of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeaseChange {
    pub(super) id: u64,
    /// None = it did not exist.
    pub(super) old: Option<Lease>,
    /// None = it ended.
    pub(super) new: Option<Lease>,
}

/// A row of the engine beside the keys that a command changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RowChange {
    pub(super) row: Vec<u8>,
    pub(super) old: Option<Vec<u8>>,
    pub(super) new: Option<Vec<u8>>,
}

/// The rows that `leases` and `changes` of one command change. There is one for each lease, and one for each key that is
/// attached to one, with the size of its record: a start needs to read no other keys.
pub(super) fn row_changes<'a>(
    leases: &'a [LeaseChange],
    changes: impl IntoIterator<Item = &'a Change> + 'a,
) -> impl Iterator<Item = RowChange> + 'a {
    let leases = leases.iter().map(|change| RowChange {
        row: keys::lease(change.id),
        old: change.old.as_ref().map(codec::encode),
        new: change.new.as_ref().map(codec::encode),
    });
    let attached = changes.into_iter().flat_map(|change| {
        let old = match &change.old {
            Replaced::Record(record) => Some(record),
            Replaced::Absent { .. } => None,
        };
        attachment_changes(&change.key, old, change.new.as_ref())
    });
    leases.chain(attached)
}

/// The rows that change when the record of `key` does.
pub(super) fn attachment_changes(
    key: &Bytes,
    old: Option<&Record>,
    new: Option<&Record>,
) -> impl Iterator<Item = RowChange> + use<> {
    let row = |record: Option<&Record>| {
        record
            .filter(|record| record.lease != 0)
            .map(|record| (record.lease, size_bytes(key, record).to_le_bytes().to_vec()))
    };
    let changes = match (row(old), row(new)) {
        (None, None) => [None, None],
        (Some((was, old)), Some((is, new))) if was == is => {
            [Some(RowChange { row: keys::attached(is, key), old: Some(old), new: Some(new) }), None]
        }
        (old, new) => [
            old.map(|(was, old)| RowChange { row: keys::attached(was, key), old: Some(old), new: None }),
            new.map(|(is, new)| RowChange { row: keys::attached(is, key), old: None, new: Some(new) }),
        ],
    };
    changes.into_iter().flatten()
}

/// A lease with its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    lease: Lease,
    /// Attached keys, with the size of their records in bytes.
    keys: BTreeMap<Bytes, u64>,
    /// Sum of the sizes.
    bytes: u64,
}

/// How many leases there are of each kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts([usize; LeaseKind::ALL.len()]);

impl Counts {
    fn change(&mut self, old: Option<Lease>, new: Option<Lease>) {
        if let Some(old) = old {
            self.0[old.kind as usize] -= 1;
        }
        if let Some(new) = new {
            self.0[new.kind as usize] += 1;
        }
    }

    /// The leases, where each kind counts for what is kept for it at least.
    fn charged(&self) -> usize {
        self.0.iter().map(|count| (*count).max(LEASES_KEPT_PER_KIND)).sum()
    }

    /// Whether a command may make these of `before`. What lets no kind grow always may: in a full table leases are still
    /// renewed, replaced and ended.
    fn may_follow(&self, before: &Self) -> bool {
        let has_room = self.charged() <= LEASES_MAX;
        self.0.iter().zip(&before.0).all(|(now, before)| now <= before || *now <= LEASES_KEPT_PER_KIND || has_room)
    }
}

/// All leases as of the last applied entry.
///
/// Invariants: a key is in exactly the lease that its current record names; a lease has at most [`LEASE_KEYS_MAX`]
/// keys with records of at most [`LEASE_BYTES_MAX`] bytes, so that its end fits one revision; `counts` counts `by_id`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Leases {
    by_id: BTreeMap<u64, Held>,
    counts: Counts,
}

impl Leases {
    /// The leases that `engine` holds.
    ///
    /// # Errors
    /// [`StoreError::Decode`] where a row is damaged, or belongs to no lease.
    pub(super) fn read(engine: &dyn Engine) -> Result<Self, StoreError> {
        let mut leases = Self::default();
        scan_rows(engine, keys::LEASE, |row, value| {
            let lease = codec::decode("lease", value, LEASE_ROW_BYTES_MAX)?;
            leases.counts.change(None, Some(lease));
            leases.by_id.insert(keys::lease_of(row)?.0, Held { lease, keys: BTreeMap::new(), bytes: 0 });
            Ok(())
        })?;
        scan_rows(engine, keys::ATTACHED, |row, value| {
            let (id, key) = keys::lease_of(row)?;
            let bytes = value.try_into().map(u64::from_le_bytes);
            let bytes = bytes.map_err(|_| damaged(format!("a size of {} bytes", value.len())))?;
            let held = leases.by_id.get_mut(&id).ok_or_else(|| damaged(format!("a key of no lease {id}")))?;
            held.attach(Bytes::copy_from_slice(key), bytes);
            Ok(())
        })?;
        Ok(leases)
    }

    /// Takes over what a command did.
    pub(super) fn publish<'a>(&mut self, leases: &[LeaseChange], changes: impl IntoIterator<Item = &'a Change>) {
        for change in leases {
            self.counts.change(change.old, change.new);
            if let Some(lease) = change.new {
                let held = Held { lease, keys: BTreeMap::new(), bytes: 0 };
                self.by_id.entry(change.id).and_modify(|held| held.lease = lease).or_insert(held);
            }
        }
        for change in changes {
            if let Replaced::Record(old) = &change.old
                && let Some(held) = self.by_id.get_mut(&old.lease)
            {
                held.detach(&change.key);
            }
            if let Some(new) = &change.new
                && let Some(held) = self.by_id.get_mut(&new.lease)
            {
                held.attach(change.key.clone(), size_bytes(&change.key, new));
            }
        }
        for change in leases.iter().filter(|change| change.new.is_none()) {
            self.by_id.remove(&change.id);
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<Lease> {
        self.by_id.get(&id).map(|held| held.lease)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// (number, bytes of the records) of the keys attached to lease `id`.
    pub(super) fn size(&self, id: u64) -> (u64, u64) {
        self.by_id.get(&id).map_or((0, 0), |held| (held.keys.len() as u64, held.bytes))
    }

    /// The keys attached to lease `id`, in their order.
    pub(super) fn keys(&self, id: u64) -> impl Iterator<Item = &Bytes> {
        self.by_id.get(&id).into_iter().flat_map(|held| held.keys.keys())
    }

    /// Lease `id` with its first keys, `keys_max` at most.
    pub(super) fn view(&self, id: u64, keys_max: usize) -> Option<LeaseView> {
        let held = self.by_id.get(&id)?;
        Some(LeaseView {
            record: LeaseRecord { id, lease: held.lease },
            keys: held.keys.keys().take(keys_max).cloned().collect(),
            key_count: held.keys.len() as u64,
        })
    }

    /// The leases with an id above `after`, `limit` at most.
    pub(super) fn page(&self, after: u64, limit: usize) -> LeasePage {
        let mut following = self.by_id.range((Bound::Excluded(after), Bound::Unbounded));
        let items = following.by_ref().take(limit).map(|(id, held)| LeaseRecord { id: *id, lease: held.lease });
        let items = items.collect();
        LeasePage { items, more: following.next().is_some() }
    }
}

impl Held {
    fn attach(&mut self, key: Bytes, bytes: u64) {
        self.bytes += bytes;
        if let Some(before) = self.keys.insert(key, bytes) {
            self.bytes -= before;
        }
    }

    fn detach(&mut self, key: &Bytes) {
        if let Some(bytes) = self.keys.remove(key) {
            self.bytes -= bytes;
        }
    }
}

/// Why a transaction may not do to a lease what it wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LeaseFault {
    /// There is none with this id.
    Missing(u64),
    /// There is one already.
    Taken(u64),
    /// There are as many of its kind as there may be.
    TooMany,
    /// Beyond a limit.
    Limit(String),
}

/// What a transaction under way did to the leases `base` of the state.
///
/// Invariant: `leases` and `sizes` hold what differs from the base, with what it is now.
#[derive(Debug, Default)]
pub(super) struct TouchedLeases {
    leases: BTreeMap<u64, Option<Lease>>,
    /// (number, bytes of the records) of attached keys.
    sizes: BTreeMap<u64, (u64, u64)>,
}

impl TouchedLeases {
    /// Lease `id` as the transaction sees it now.
    pub(super) fn get(&self, base: &Leases, id: u64) -> Option<Lease> {
        self.leases.get(&id).copied().unwrap_or_else(|| base.get(id))
    }

    fn size(&self, base: &Leases, id: u64) -> (u64, u64) {
        self.sizes.get(&id).copied().unwrap_or_else(|| base.size(id))
    }

    pub(super) fn grant(&mut self, base: &Leases, id: u64, lease: Lease) -> Result<(), LeaseFault> {
        if self.get(base, id).is_some() {
            return Err(LeaseFault::Taken(id));
        }
        self.leases.insert(id, Some(lease));
        Ok(())
    }

    /// Ends lease `id`, whose keys are gone already.
    pub(super) fn end(&mut self, base: &Leases, id: u64) {
        assert_eq!(self.size(base, id).0, 0, "lease {id} ends with keys attached to it");
        self.leases.insert(id, None);
    }

    /// Follows a change of the record of `key`.
    pub(super) fn follow(
        &mut self,
        base: &Leases,
        key: &Bytes,
        old: Option<&Record>,
        new: Option<&Record>,
    ) -> Result<(), LeaseFault> {
        if let Some(old) = old.filter(|old| old.lease != 0) {
            let (keys, bytes) = self.size(base, old.lease);
            self.sizes.insert(old.lease, (keys.saturating_sub(1), bytes.saturating_sub(size_bytes(key, old))));
        }
        let Some(new) = new.filter(|new| new.lease != 0) else { return Ok(()) };
        let id = new.lease;
        if self.get(base, id).is_none() {
            return Err(LeaseFault::Missing(id));
        }
        let (keys, bytes) = self.size(base, id);
        let (keys, bytes) = (keys + 1, bytes + size_bytes(key, new));
        if keys > LEASE_KEYS_MAX || bytes > LEASE_BYTES_MAX {
            return Err(LeaseFault::Limit(format!(
                "at most {LEASE_KEYS_MAX} keys with records of {LEASE_BYTES_MAX} bytes are attached to one lease; grant another one"
            )));
        }
        self.sizes.insert(id, (keys, bytes));
        Ok(())
    }

    /// Ends the leases that end with their keys and have none left, and checks that there is room for the others.
    pub(super) fn settle(&mut self, base: &Leases) -> Result<(), LeaseFault> {
        let touched = self.sizes.keys().chain(self.leases.keys());
        let over = |id: &u64| {
            let ends = self.get(base, *id).is_some_and(|lease| lease.kind.ends_with_its_keys());
            ends && self.size(base, *id).0 == 0
        };
        let over: Vec<u64> = touched.copied().filter(over).collect();
        over.into_iter().for_each(|id| self.end(base, id));
        let mut counts = base.counts;
        self.leases.iter().for_each(|(id, new)| counts.change(base.get(*id), *new));
        if counts.may_follow(&base.counts) { Ok(()) } else { Err(LeaseFault::TooMany) }
    }

    /// What differs from the base in the end.
    pub(super) fn into_changes(self, base: &Leases) -> Vec<LeaseChange> {
        let changes = self.leases.into_iter().map(|(id, new)| LeaseChange { id, old: base.get(id), new });
        changes.filter(|change| change.old != change.new).collect()
    }
}

/// What is wrong with a lease that is to be granted, apart from the state.
pub(super) fn grant_fault(id: u64, ttl_ms: u64) -> Option<String> {
    if !(1..=LEASE_ID_MAX).contains(&id) {
        return Some(format!("a lease id is 1..={LEASE_ID_MAX}, not {id}"));
    }
    (!(LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&ttl_ms))
        .then(|| format!("a time to live is {LEASE_TTL_MS_MIN}..={LEASE_TTL_MS_MAX} ms, not {ttl_ms} ms"))
}

/// Adds the rows of leases to `hash`.
pub(super) fn hash_rows(engine: &dyn Engine, hash: &mut StateHash) -> Result<(), StoreError> {
    for prefix in [keys::LEASE, keys::ATTACHED] {
        scan_rows(engine, prefix, |row, value| {
            hash.add_row(row, value);
            Ok(())
        })?;
    }
    Ok(())
}

/// All leases in `engine`, in the order of their ids.
pub(super) fn records(engine: &dyn Engine) -> Result<Vec<LeaseRecord>, StoreError> {
    let mut records = Vec::new();
    scan_rows(engine, keys::LEASE, |row, value| {
        let lease = codec::decode("lease", value, LEASE_ROW_BYTES_MAX)?;
        records.push(LeaseRecord { id: keys::lease_of(row)?.0, lease });
        Ok(())
    })?;
    Ok(records)
}

fn scan_rows(
    engine: &dyn Engine,
    prefix: u8,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let all = Span { lower: Bound::Unbounded, upper: Bound::Unbounded, descending: false };
    let mut result = Ok(());
    engine.scan(&all.prefixed(prefix), &mut |row, value| {
        result = visit(row, value);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result
}

fn damaged(reason: String) -> StoreError {
    StoreError::Decode { what: "lease", reason }
}
