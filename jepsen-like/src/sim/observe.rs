//! Looks into a node from outside, without waiting: what [`super::invariants`] judges.

use futures_util::FutureExt;
use hexkv_server::core::Core;
use hexkv_store::{codec, log::LogStore, raft_types::Vote};
use openraft::{RaftLogReader, ServerState, async_runtime::WatchReceiver, storage::RaftLogStorage};
use xxhash_rust::xxh3::xxh3_64;

use super::invariants::{Ballot, EndedLog, Observation, Position, SeenEntry, SeenVote};

fn seen_vote(vote: Vote) -> SeenVote {
    let ballot = Ballot { term: vote.leader_id.term, node: vote.leader_id.node_id };
    SeenVote { ballot, committed: vote.committed }
}

/// What `core` shows in its `life`th life, without its entries. None while its log cannot be asked any more: it
/// failed, or is closed.
pub fn look(core: &Core, life: u64) -> Option<Observation> {
    let mut log = core.log.clone();
    let vote = log.read_vote().now_or_never()?.ok()?;
    let log_state = log.get_log_state().now_or_never()?.ok()?;
    let (state_applied, hash) = (core.state.applied(), core.state.hash().hash);
    let metrics = core.raft.metrics();
    let metrics = metrics.borrow_watched();
    // A node that granted a later vote leads no more, though its metrics say so until that is flushed.
    let granted_later = vote.is_some_and(|vote| seen_vote(vote).ballot > seen_vote(metrics.vote).ballot);
    let leads = metrics.state == ServerState::Leader && metrics.vote.committed && !granted_later;
    let first = log.stats().first_index;
    let (snapshot_index, persisted_index) = (core.state.snapshot_index(), core.state.persisted_index());
    Some(Observation {
        node: core.id,
        life,
        vote: vote.map(seen_vote),
        term: metrics.current_term,
        leads: leads.then(|| seen_vote(metrics.vote).ballot),
        first,
        last: log_state.last_log_id.map(Position::from),
        durable: *core.log.durable().borrow(),
        entries_from: first,
        entries: Vec::new(),
        raft_last: metrics.last_log_index,
        committed: metrics.local_committed.map(Position::from),
        applied: metrics.last_applied.map(Position::from),
        snapshot: metrics.snapshot.map(Position::from),
        purged: metrics.purged.map(Position::from),
        snapshot_index,
        state_applied: state_applied.map(Position::from),
        persisted_index,
        state_hash: hash,
    })
}

/// What is left to see of a log when [`look`] sees nothing, because it failed or its core ends.
pub fn look_at_ended_log(log: &LogStore) -> EndedLog {
    let (entries_from, ids) = log.recent();
    let entries = ids.into_iter().map(Position::from).collect();
    EndedLog { durable: *log.durable().borrow(), entries_from, entries }
}

/// Reads the entries of `core`'s log from `from` on into `seen`. False when they cannot be read.
pub fn read_entries(core: &Core, from: u64, seen: &mut Observation) -> bool {
    seen.entries_from = from.max(seen.first);
    let mut log = core.log.clone();
    let range = seen.entries_from..u64::MAX;
    let Some(Ok(entries)) = log.try_get_log_entries(range).now_or_never() else { return false };
    seen.entries = entries
        .iter()
        .map(|entry| SeenEntry { at: entry.log_id.into(), content: xxh3_64(&codec::encode(entry)) })
        .collect();
    true
}
