//! Invariants of votes and leadership.

use std::collections::BTreeMap;

use hexkv_store::NodeId;

use super::{Ballot, Check, Known, Observation, ensure};

pub(super) fn vote_monotonic(before: Option<&Known>, now: &Observation) -> Check {
    let earlier = before.and_then(|k| k.last_seen.vote);
    ensure(now.vote >= earlier, "vote-monotonic", || {
        format!("node {:x} had voted {earlier:?}, now its vote is {:?}", now.node, now.vote)
    })
}

pub(super) fn term_monotonic(before: Option<&Known>, now: &Observation) -> Check {
    let earlier = before.map(|k| &k.last_seen).filter(|seen| seen.life == now.life).map_or(0, |seen| seen.term);
    ensure(now.term >= earlier, "term-monotonic", || {
        format!("node {:x} was in term {earlier}, now in {}", now.node, now.term)
    })
}

pub(super) fn election_safety(leaders: &mut BTreeMap<Ballot, NodeId>, now: &Observation) -> Check {
    let Some(ballot) = now.leads else { return Ok(()) };
    ensure(ballot.node == now.node, "election-safety", || {
        format!("node {:x} leads under the ballot of node {:x} in term {}", now.node, ballot.node, ballot.term)
    })?;
    let leader = *leaders.entry(ballot).or_insert(now.node);
    ensure(leader == now.node, "election-safety", || {
        format!("nodes {leader:x} and {:x} both lead under {ballot:?}", now.node)
    })
}
