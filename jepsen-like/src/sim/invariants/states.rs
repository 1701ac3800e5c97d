//! Invariants of what is committed, applied, and in snapshots.

use std::collections::BTreeMap;

use super::{Check, Known, Observation, Position, ensure};

/// A snapshot is compared with what the state has applied: Raft counts a batch of entries as applied when all of it is,
/// and a snapshot may cover the beginning of a batch.
pub(super) fn progress_order(now: &Observation) -> Check {
    let (purged, snapshot) = (("purged", now.purged), ("snapshot", now.snapshot));
    let (applied, committed) = (("applied", now.applied), ("committed", now.committed));
    let state = ("in its state", now.state_applied);
    let pairs = [(purged, snapshot), (snapshot, state), (snapshot, committed), (applied, state), (applied, committed)];
    ensure(now.committed.map(|p| p.index) <= now.raft_last, "progress-order", || {
        format!("node {:x} has committed {:?} beyond its last entry {:?}", now.node, now.committed, now.raft_last)
    })?;
    for ((low_name, low), (high_name, high)) in pairs {
        ensure(low.map(|p| p.index) <= high.map(|p| p.index), "progress-order", || {
            format!("node {:x} has {low_name} {low:?} beyond {high_name} {high:?}", now.node)
        })?;
    }
    Ok(())
}

pub(super) fn monotonic(before: Option<&Known>, now: &Observation) -> Check {
    let Some(seen) = before.map(|k| &k.last_seen).filter(|seen| seen.life == now.life) else { return Ok(()) };
    let checks = [
        ("commit-monotonic", seen.committed, now.committed),
        ("applied-monotonic", seen.applied, now.applied),
        ("applied-monotonic", seen.state_applied, now.state_applied),
    ];
    for (invariant, earlier, later) in checks {
        ensure(later.map(|p| p.index) >= earlier.map(|p| p.index), invariant, || {
            format!("node {:x} went from {earlier:?} back to {later:?}", now.node)
        })?;
    }
    Ok(())
}

/// Every node's applied entries are the committed ones: so all nodes apply the same.
pub(super) fn applied_is_committed(committed: &BTreeMap<u64, Position>, now: &Observation) -> Check {
    for applied in [now.applied, now.snapshot].into_iter().flatten() {
        let known = committed.get(&applied.index);
        ensure(known.is_none_or(|at| *at == applied), "state-machine-safety", || {
            format!("node {:x} applied {applied:?}, where {known:?} is committed", now.node)
        })?;
    }
    Ok(())
}

pub(super) fn persisted_is_durable(now: &Observation) -> Check {
    let Some(persisted) = now.persisted_index else { return Ok(()) };
    // A snapshot that was installed is durable by itself.
    let in_snapshot = now.snapshot_index.is_some_and(|index| index >= persisted);
    ensure(persisted < now.durable || in_snapshot, "persisted-durable", || {
        format!("node {:x} persisted entry {persisted}, and its log is durable only below {}", now.node, now.durable)
    })
}

pub(super) fn hash(states: &mut BTreeMap<u64, u128>, now: &Observation) -> Check {
    let Some(applied) = now.state_applied else { return Ok(()) };
    let known = *states.entry(applied.index).or_insert(now.state_hash);
    ensure(known == now.state_hash, "state-hash", || {
        format!("after {applied:?} the state of node {:x} is {:032x}, elsewhere {known:032x}", now.node, now.state_hash)
    })
}
