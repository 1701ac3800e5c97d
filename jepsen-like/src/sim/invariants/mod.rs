//! What must always hold, checked after every step against what was seen before: pure functions over
//! [`Observation`]s, which know no node.
//!
//! openraft's leader ids are (term, node): a term can have several leaders, one after the other, and it is the pair that
//! never repeats. So where Raft says "term", here stands the pair, [`Ballot`].
//!
//! | invariant | where | source |
//! |---|---|---|
//! | `election-safety`: a ballot has one leader, the node it names | `votes` | Raft, figure 3 |
//! | `vote-monotonic`: a durable vote never goes back, also not over a crash | `votes` | Raft 5.2 |
//! | `term-monotonic`: a running node's term never falls | `votes` | Raft 5.1 |
//! | `leader-append-only`: a leader neither removes nor replaces entries | `logs` | Raft, figure 3 |
//! | `log-matching`: an entry id stands for one content, and one predecessor | `logs` | Raft, figure 3 |
//! | `log-contiguous`: a log has no gaps | `logs` | openraft's storage rules |
//! | `leader-completeness`: a leader has every entry committed under earlier ballots | `logs` | Raft, figure 3 |
//! | `committed-final`: what was committed at an index stays | `logs` | Raft 5.4 |
//! | `durable-survives`: what was durable before a crash is there after it | `logs` | DESIGN, truth on disk |
//! | `state-machine-safety`: all nodes apply the same entry at an index | `states` | Raft, figure 3 |
//! | `commit-monotonic`, `applied-monotonic`: neither falls in one life | `states` | Raft 5.3 |
//! | `progress-order`: purged <= snapshot <= state, snapshot and applied <= committed <= last | `states` | openraft's data model |
//! | `persisted-durable`: the state on disk is never ahead of the durable log | `states` | DESIGN, truth on disk |
//! | `state-hash`: equal states at equal applied index | `states` | DESIGN, state hash |

mod logs;
mod states;
#[cfg(test)]
mod tests;
mod votes;

use std::{collections::BTreeMap, fmt};

use hexkv_store::{LogId, NodeId};

/// The logical term of openraft: who leads, since when.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// Term.
    pub term: u64,
    /// Candidate or leader.
    pub node: NodeId,
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.term, self.node)
    }
}

/// A vote: a ballot, and whether a quorum granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenVote {
    /// For whom.
    pub ballot: Ballot,
    /// A quorum granted it.
    pub committed: bool,
}

/// Identity of a log entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Place in the log.
    pub index: u64,
    /// Who proposed it.
    pub ballot: Ballot,
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.ballot, self.index)
    }
}

impl From<LogId> for Position {
    fn from(id: LogId) -> Self {
        Self { index: id.index, ballot: Ballot { term: id.leader_id.term, node: id.leader_id.node_id } }
    }
}

/// An entry that was read from a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenEntry {
    /// Its identity.
    pub at: Position,
    /// Hash of what it says.
    pub content: u64,
}

/// One node after one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The node's id.
    pub node: NodeId,
    /// Changes with every start of the node.
    pub life: u64,
    /// Its durable vote.
    pub vote: Option<SeenVote>,
    /// Its term.
    pub term: u64,
    /// The ballot under which it leads.
    pub leads: Option<Ballot>,
    /// First index of its log that can be read.
    pub first: u64,
    /// The last entry of its log.
    pub last: Option<Position>,
    /// Index of the last entry as Raft has it: ahead of the log while a snapshot is being installed.
    pub raft_last: Option<u64>,
    /// Entries with lower indices are durable.
    pub durable: u64,
    /// The log's entries from here on were read again.
    pub entries_from: u64,
    /// All entries from `entries_from` on.
    pub entries: Vec<SeenEntry>,
    /// Last entry known to be committed.
    pub committed: Option<Position>,
    /// Last entry that Raft says is applied.
    pub applied: Option<Position>,
    /// Last entry in the snapshot.
    pub snapshot: Option<Position>,
    /// Index of the last entry in the snapshot that the node has on disk: Raft may not have been told of it yet.
    pub snapshot_index: Option<u64>,
    /// Last entry that was purged.
    pub purged: Option<Position>,
    /// Last entry that the state says is applied.
    pub state_applied: Option<Position>,
    /// Index of the last entry that the state on disk contains.
    pub persisted_index: Option<u64>,
    /// Hash of the state after that entry.
    pub state_hash: u128,
}

/// A log that failed or was closed, as its node had it then: between the last look and that end, entries may have been
/// appended and truncated, and a truncation that was under way may have reached the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedLog {
    /// Entries with lower indices are durable, and no truncation that reaches them was under way.
    pub durable: u64,
    /// Entries with lower indices did not change.
    pub entries_from: u64,
    /// All entries from `entries_from` on.
    pub entries: Vec<Position>,
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Name of the invariant.
    pub invariant: &'static str,
    /// What was seen.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.message)
    }
}

type Check = Result<(), Violation>;

fn ensure(holds: bool, invariant: &'static str, message: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(Violation { invariant, message: message() }) }
}

/// What is known of one node.
#[derive(Debug, Clone)]
struct Known {
    last_seen: Observation,
    /// Its log, as far as it was read.
    log: BTreeMap<u64, Position>,
}

/// All that was seen so far.
#[derive(Debug, Default)]
pub struct Ledger {
    nodes: BTreeMap<NodeId, Known>,
    leaders: BTreeMap<Ballot, NodeId>,
    /// Content and predecessor of every entry that was ever in a log.
    entries: BTreeMap<Position, (u64, Option<Position>)>,
    committed: BTreeMap<u64, Position>,
    /// State hash by applied index.
    states: BTreeMap<u64, u128>,
}

impl Ledger {
    /// Takes in what is seen now, and answers the first invariant that it breaks.
    ///
    /// # Errors
    /// The violation.
    pub fn observe(&mut self, now: &Observation) -> Check {
        let before = self.nodes.remove(&now.node);
        let result = self.check(before.as_ref(), now);
        let mut log = match before {
            Some(known) if known.last_seen.life == now.life => known.log,
            Some(_) | None => BTreeMap::new(),
        };
        log.retain(|index, _| *index >= now.first && *index < now.entries_from);
        log.extend(now.entries.iter().map(|e| (e.at.index, e.at)));
        let last_seen = Observation { entries: Vec::new(), ..now.clone() };
        self.nodes.insert(now.node, Known { last_seen, log });
        result
    }

    /// Takes in the last of a log that has failed or was closed.
    pub fn log_ended(&mut self, node: NodeId, life: u64, log: &EndedLog) {
        let Some(known) = self.nodes.get_mut(&node).filter(|k| k.last_seen.life == life) else { return };
        known.last_seen.durable = log.durable;
        known.log.split_off(&log.entries_from);
        known.log.extend(log.entries.iter().map(|at| (at.index, *at)));
    }

    /// Forgets what `node` had: its disk was replaced by an earlier state of it. What all nodes agreed on stays.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// Up to where a node's entries cannot change any more, and need not be read again.
    pub fn settled(&self, node: NodeId, life: u64) -> u64 {
        let known = self.nodes.get(&node).filter(|k| k.last_seen.life == life);
        known.and_then(|k| k.last_seen.committed).map_or(0, |c| c.index + 1)
    }

    fn check(&mut self, before: Option<&Known>, now: &Observation) -> Check {
        votes::vote_monotonic(before, now)?;
        votes::term_monotonic(before, now)?;
        votes::election_safety(&mut self.leaders, now)?;
        logs::contiguous(now)?;
        logs::durable_survives(before, now)?;
        logs::leader_append_only(before, now)?;
        logs::matching(&mut self.entries, before, now)?;
        logs::leader_completeness(&self.committed, before, now)?;
        logs::committed_final(&mut self.committed, before, now)?;
        states::progress_order(now)?;
        states::monotonic(before, now)?;
        states::applied_is_committed(&self.committed, now)?;
        states::persisted_is_durable(now)?;
        states::hash(&mut self.states, now)
    }
}

impl Known {
    /// The entry at `index` with what was read now on top.
    fn at(&self, now: &Observation, index: u64) -> Option<Position> {
        entry_at(now, index).or_else(|| {
            let same_life = self.last_seen.life == now.life && index < now.entries_from && index >= now.first;
            same_life.then(|| self.log.get(&index).copied()).flatten()
        })
    }
}

/// The entry at `index`, if it was read now.
fn entry_at(now: &Observation, index: u64) -> Option<Position> {
    let offset = index.checked_sub(now.entries_from)?;
    now.entries.get(offset as usize).map(|e| e.at).filter(|at| at.index == index)
}
