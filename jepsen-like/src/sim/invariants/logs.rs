//! Invariants of logs.

use std::collections::BTreeMap;

use super::{Check, Known, Observation, Position, ensure};

pub(super) fn contiguous(now: &Observation) -> Check {
    for (expected, entry) in (now.entries_from..).zip(&now.entries) {
        ensure(entry.at.index == expected, "log-contiguous", || {
            format!("node {:x} has {:?} where entry {expected} should be", now.node, entry.at)
        })?;
    }
    let next = now.entries_from + now.entries.len() as u64;
    let whole = now.last.is_none_or(|last| last.index < next.max(now.first));
    ensure(whole, "log-contiguous", || {
        format!("the log of node {:x} ends at {:?}, but its entries end before {next}", now.node, now.last)
    })
}

/// A new life begins with all that was durable in the one before it.
pub(super) fn durable_survives(before: Option<&Known>, now: &Observation) -> Check {
    let Some(known) = before.filter(|k| k.last_seen.life != now.life) else { return Ok(()) };
    for (index, at) in known.log.range(now.first..known.last_seen.durable.max(now.first)) {
        let after = known.at(now, *index);
        ensure(after == Some(*at), "durable-survives", || {
            format!("node {:x} had {at:?} durably, and has {after:?} there after its restart", now.node)
        })?;
    }
    Ok(())
}

pub(super) fn leader_append_only(before: Option<&Known>, now: &Observation) -> Check {
    let same_leader =
        |k: &&Known| k.last_seen.life == now.life && now.leads.is_some() && k.last_seen.leads == now.leads;
    let Some(known) = before.filter(same_leader) else { return Ok(()) };
    for (index, at) in known.log.range(now.entries_from.max(now.first)..) {
        let after = known.at(now, *index);
        ensure(after == Some(*at), "leader-append-only", || {
            format!("node {:x} leads and had {at:?}, and has {after:?} there now", now.node)
        })?;
    }
    Ok(())
}

/// Equal ids mean equal content and equal predecessors, so that by induction logs that share an id share all before it.
pub(super) fn matching(
    entries: &mut BTreeMap<Position, (u64, Option<Position>)>,
    before: Option<&Known>,
    now: &Observation,
) -> Check {
    let mut previous = now.entries_from.checked_sub(1).and_then(|index| before.and_then(|k| k.at(now, index)));
    for entry in &now.entries {
        let known = entries.entry(entry.at).or_insert((entry.content, previous));
        ensure(known.0 == entry.content, "log-matching", || {
            format!("entry {:?} of node {:x} says something else than on another node", entry.at, now.node)
        })?;
        // Where the predecessor was purged, it cannot be compared.
        if let (Some(theirs), Some(ours)) = (known.1, previous) {
            ensure(theirs == ours, "log-matching", || {
                format!("{:?} follows {ours:?} on node {:x}, and {theirs:?} elsewhere", entry.at, now.node)
            })?;
        }
        known.1 = known.1.or(previous);
        previous = Some(entry.at);
    }
    Ok(())
}

/// Checked when a node is first seen to lead under a ballot.
pub(super) fn leader_completeness(
    committed: &BTreeMap<u64, Position>,
    before: Option<&Known>,
    now: &Observation,
) -> Check {
    let Some(ballot) = now.leads else { return Ok(()) };
    if before.is_some_and(|k| k.last_seen.life == now.life && k.last_seen.leads == now.leads) {
        return Ok(());
    }
    for (index, at) in committed.range(now.first..).filter(|(_, at)| at.ballot < ballot) {
        let here = before.map_or_else(|| super::entry_at(now, *index), |k| k.at(now, *index));
        ensure(here == Some(*at), "leader-completeness", || {
            format!("{at:?} is committed, and node {:x}, which leads under {ballot:?}, has {here:?} there", now.node)
        })?;
    }
    Ok(())
}

/// Notes what this node newly knows to be committed. Must not be other than what any node knew before. Its log speaks
/// for what is below its commit index only if it holds the entry there: while a snapshot is being installed, Raft
/// already commits what the snapshot covers, and the log still has what that replaces.
pub(super) fn committed_final(
    committed: &mut BTreeMap<u64, Position>,
    before: Option<&Known>,
    now: &Observation,
) -> Check {
    let Some(upto) = now.committed else { return Ok(()) };
    let same_life = before.filter(|k| k.last_seen.life == now.life);
    let from = same_life.and_then(|k| k.last_seen.committed).map_or(0, |c| c.index + 1).max(now.first);
    let read = (from..=upto.index)
        .filter_map(|index| before.map_or_else(|| super::entry_at(now, index), |k| k.at(now, index)));
    let at_upto = before.map_or_else(|| super::entry_at(now, upto.index), |k| k.at(now, upto.index));
    let read = read.filter(|_| at_upto == Some(upto));
    for at in read.chain([upto]) {
        let known = *committed.entry(at.index).or_insert(at);
        ensure(known == at, "committed-final", || {
            format!("node {:x} has {at:?} committed, where {known:?} was", now.node)
        })?;
    }
    Ok(())
}
