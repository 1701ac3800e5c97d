//! Checks of Raft's messages before openraft has them: openraft takes the content of a message for granted, and an assertion in it or an
//! error of the storage below it stops the node.
//!
//! | what is checked | why |
//! |---|---|
//! | the sender is a member | any node that knows the cookie can connect, and terms are adopted from every message |
//! | the node in the vote is the sender | no member speaks for another one |
//! | the term is plausible | terms that are used up leave the cluster without a leader for ever |
//! | log ids ascend, without a gap, up to the vote's term | openraft asserts it, or corrupts its log |
//! | what is committed is in the log, or beyond it | openraft would read entries that do not exist |
//! | memberships have voters with addresses | a quorum of nothing is always reached |

use hexkv_store::{
    NodeId, TypeConfig,
    member::MEMBERS_MAX,
    raft_types::{Entry, LogId, SnapshotMeta, Vote},
};
use openraft::{
    EntryPayload, RaftMetrics,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest},
};

use crate::{dialer::is_address, error::Refusal};

/// Most terms that one message may be ahead of what its receiver has seen. A member that was away meets the cluster again within it
/// after more than 190 days of one election a second. A member that sends terms of a broken disk needs 2^40 messages to use all
/// terms up: more than three years at 10,000 messages a second.
pub const TERM_LEAP_MAX: u64 = 1 << 24;
/// Most entries of one AppendEntries: four times what a leader sends.
pub const APPEND_ENTRIES_RECEIVED_MAX: usize = 4096;
/// Most voter sets of a membership: the old and the new one of a change.
const VOTER_SETS_MAX: usize = 2;
/// Most nodes of a membership: members, and those that each of them may replace.
const MEMBERSHIP_NODES_MAX: usize = 2 * MEMBERS_MAX;
/// Largest index of an entry: far beyond all logs, and far from where an addition overflows.
const LOG_INDEX_MAX: u64 = 1 << 62;

type Checked = Result<(), Refusal>;

/// What this node's Raft holds, as far as messages are checked against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    /// The newest vote.
    pub(crate) vote: Vote,
    /// The last entry of the log.
    pub(crate) last: Option<LogId>,
    /// The last entry that is known to be committed.
    pub(crate) committed: Option<LogId>,
    /// Highest term that members reported, for a node that has seen none itself.
    pub(crate) reported_term: u64,
}

impl Local {
    pub(crate) fn of(metrics: &RaftMetrics<TypeConfig>, last: Option<LogId>, reported_term: u64) -> Self {
        Self { vote: metrics.vote, last, committed: metrics.local_committed.max(metrics.last_applied), reported_term }
    }

    /// The term that those of messages are compared with. What others report counts only where this node has seen no term at all: one
    /// member must not lift the limit of the others.
    fn term(&self) -> u64 {
        match self.vote.leader_id.term {
            0 => self.reported_term,
            seen => seen,
        }
    }
}

fn implausible(why: impl Into<String>) -> Refusal {
    Refusal::Implausible(why.into())
}

fn require(holds: bool, why: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(implausible(why())) }
}

/// Whether `term` may follow `seen`.
pub(crate) fn check_term(seen: u64, term: u64) -> Checked {
    match term.saturating_sub(seen) > TERM_LEAP_MAX {
        true => Err(Refusal::TermLeap { ours: seen, theirs: term }),
        false => Ok(()),
    }
}

fn check_vote(vote: &Vote, committed: bool, from: NodeId, local: &Local) -> Checked {
    let named = vote.leader_id.node_id;
    require(named == from, || format!("node {from:016x} speaks for node {named:016x}"))?;
    require(vote.committed == committed, || match committed {
        true => "its sender does not lead".into(),
        false => "its sender leads already".into(),
    })?;
    check_term(local.term(), vote.leader_id.term)
}

/// Checks a request for a vote or a pre-vote of node `from`.
pub(crate) fn check_vote_request(request: &VoteRequest<TypeConfig>, from: NodeId, local: &Local) -> Checked {
    check_vote(&request.vote, false, from, local)?;
    request.last_log_id.as_ref().map_or(Ok(()), |id| check_id(id, &request.vote))
}

/// Checks that the leader `from` hands over to node `me`.
pub(crate) fn check_transfer(
    request: &TransferLeaderRequest<TypeConfig>,
    from: NodeId,
    me: NodeId,
    local: &Local,
) -> Checked {
    let (vote, to) = (request.from_leader(), *request.to_node_id());
    check_vote(vote, true, from, local)?;
    require(to == me, || format!("leadership goes to node {to:016x}"))?;
    request.last_log_id().map_or(Ok(()), |id| check_id(id, vote))
}

/// Checks the offer of a snapshot up to `last_log_id`, which the leader `from` sends under `vote`.
pub(crate) fn check_snapshot(vote: &Vote, last_log_id: Option<LogId>, from: NodeId, local: &Local) -> Checked {
    check_vote(vote, true, from, local)?;
    let Some(last) = last_log_id else { return Ok(()) };
    check_id(&last, vote)?;
    check_against_committed(&last, local)?;
    let in_place = local.committed.filter(|committed| last > *committed && last.index <= committed.index);
    in_place
        .map_or(Ok(()), |committed| Err(implausible(format!("it ends at {last}, and {committed} is committed here"))))
}

/// Checks the vote that a peer answers a message under vote `own` with.
pub(crate) fn check_answered_vote(own: &Vote, answered: &Vote) -> Checked {
    check_term(own.leader_id.term, answered.leader_id.term)
}

/// Checks the answer of a peer to AppendEntries under vote `own`, which follow `prev` and end at `last`.
pub(crate) fn check_append_answer(
    answer: &StreamAppendResult<TypeConfig>,
    own: &Vote,
    prev: Option<LogId>,
    last: Option<LogId>,
) -> Checked {
    match answer {
        Ok(matched) => {
            require(*matched == last, || format!("it took entries up to {matched:?} of those up to {last:?}"))
        }
        Err(StreamAppendError::Conflict(at)) => {
            require(Some(*at) == prev, || format!("entry {at} conflicts, and {prev:?} was sent"))
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            require(vote > own, || format!("vote {vote} is not higher than {own}"))?;
            check_answered_vote(own, vote)
        }
    }
}

/// Checks what a snapshot is said to cover.
pub(crate) fn check_meta(meta: &SnapshotMeta) -> Checked {
    let set_at = *meta.last_membership.log_id();
    require(set_at <= meta.last_log_id, || format!("its membership is of {set_at:?}, after its last entry"))?;
    check_membership(meta.last_membership.membership())
}

/// Checks AppendEntries of the leader `from`. Removes the commit index where it cannot be right for this log: the next
/// message has it again.
pub(crate) fn check_append(request: &mut AppendEntriesRequest<TypeConfig>, from: NodeId, local: &Local) -> Checked {
    let AppendEntriesRequest { vote, prev_log_id, entries, leader_commit } = request;
    check_vote(vote, true, from, local)?;
    let count = entries.len();
    require(count <= APPEND_ENTRIES_RECEIVED_MAX, || {
        format!("{count} entries at once, {APPEND_ENTRIES_RECEIVED_MAX} are the most")
    })?;
    let mut last = *prev_log_id;
    for id in prev_log_id.iter() {
        check_id(id, vote)?;
        check_against_committed(id, local)?;
    }
    for entry in entries.iter() {
        let id = entry.log_id;
        let index = last.map_or(0, |last| last.index + 1);
        require(id.index == index, || format!("entry {id} comes where {index} is the next one"))?;
        require(last.is_none_or(|last| last.leader_id <= id.leader_id), || format!("the term falls at entry {id}"))?;
        check_id(&id, vote)?;
        check_against_committed(&id, local)?;
        check_payload(entry)?;
        last = Some(id);
    }
    if let Some(committed) = *leader_commit {
        check_id(&committed, vote)?;
        check_commit(&committed, *prev_log_id, entries)?;
        let beyond =
            local.last.is_some_and(|last| committed.index > last.index && committed.leader_id < last.leader_id);
        if beyond || (last.is_none() && local.last.is_none()) {
            *leader_commit = None;
        }
    }
    Ok(())
}

/// An id within the term of `vote`, and within what indexes are.
fn check_id(id: &LogId, vote: &Vote) -> Checked {
    require(id.leader_id <= vote.leader_id, || format!("entry {id} is of a later term than the vote {vote}"))?;
    require(id.index <= LOG_INDEX_MAX, || format!("no log has an entry {id}"))
}

/// Terms do not fall along a log: no entry after what is committed is of an earlier term.
///
/// Entries in its place are compared by [`crate::Service::accepts_append`], which notes a node that lost what it acknowledged.
fn check_against_committed(id: &LogId, local: &Local) -> Checked {
    let Some(committed) = local.committed else { return Ok(()) };
    require(id.index <= committed.index || id.leader_id >= committed.leader_id, || {
        format!("entry {id} is of an earlier term than entry {committed}, which is committed here")
    })
}

/// What is committed is in the log of the leader, of which the message shows a part.
fn check_commit(committed: &LogId, prev: Option<LogId>, entries: &[Entry]) -> Checked {
    let contradicts = |id: &LogId| match id.index.cmp(&committed.index) {
        std::cmp::Ordering::Less => id.leader_id > committed.leader_id,
        std::cmp::Ordering::Equal => id != committed,
        std::cmp::Ordering::Greater => id.leader_id < committed.leader_id,
    };
    let shown = prev.into_iter().chain(entries.iter().map(|entry| entry.log_id)).find(contradicts);
    shown.map_or(Ok(()), |id| {
        Err(implausible(format!("entry {id} contradicts {committed}, which is said to be committed")))
    })
}

fn check_payload(entry: &Entry) -> Checked {
    match &entry.payload {
        EntryPayload::Blank | EntryPayload::Normal(_) => Ok(()),
        EntryPayload::Membership(membership) => check_membership(membership),
    }
}

fn check_membership(membership: &openraft::Membership<NodeId, hexkv_store::NodeAddress>) -> Checked {
    let sets = membership.get_joint_config();
    let nodes = membership.nodes().count();
    require((1..=VOTER_SETS_MAX).contains(&sets.len()), || format!("a membership of {} voter sets", sets.len()))?;
    require(sets.iter().all(|voters| !voters.is_empty()), || "a membership without voters".into())?;
    require(nodes <= MEMBERSHIP_NODES_MAX, || format!("a membership of {nodes} nodes"))?;
    require(membership.voter_ids().all(|id| membership.get_node(&id).is_some()), || {
        "a membership with a voter that has no address".into()
    })?;
    let invalid = membership.nodes().find(|(_, node)| !is_address(&node.raft));
    invalid.map_or(Ok(()), |(id, _)| {
        Err(implausible(format!("a membership in which node {id:016x} has no valid address")))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use hexkv_store::NodeAddress;
    use openraft::{Membership, entry::RaftEntry, type_config::alias::LeaderIdOf, vote::RaftLeaderId, vote::RaftVote};

    use super::*;

    fn leader(term: u64, node: NodeId) -> LeaderIdOf<TypeConfig> {
        LeaderIdOf::<TypeConfig>::new(term, node)
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(leader(term, 1), index)
    }

    fn led(term: u64) -> Vote {
        Vote::from_leader_id(leader(term, 1), true)
    }

    fn entry(term: u64, index: u64) -> Entry {
        Entry::new_blank(id(term, index))
    }

    fn local() -> Local {
        Local { vote: led(5), last: Some(id(4, 20)), committed: Some(id(4, 10)), reported_term: 0 }
    }

    /// What a node holds that has just joined.
    fn new() -> Local {
        let vote = Vote::from_leader_id(leader(0, 0), false);
        Local { vote, last: None, committed: None, reported_term: 0 }
    }

    fn append(prev: Option<LogId>, entries: Vec<Entry>, commit: Option<LogId>) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest { vote: led(5), prev_log_id: prev, entries, leader_commit: commit }
    }

    fn refused(mut request: AppendEntriesRequest<TypeConfig>, why: &str) {
        let refusal = check_append(&mut request, 1, &local()).unwrap_err().to_string();
        assert!(refusal.contains(why), "{refusal:?} is not {why:?}");
    }

    #[test]
    fn what_a_leader_sends_passes_unchanged() {
        let requests = [
            append(None, vec![], None),
            append(Some(id(4, 20)), vec![entry(4, 21), entry(5, 22)], Some(id(4, 20))),
            append(Some(id(4, 20)), vec![entry(5, 21)], Some(id(5, 30))),
            append(Some(id(4, 9)), vec![entry(4, 10)], Some(id(3, 2))),
            append(None, vec![entry(1, 0), entry(2, 1)], Some(id(1, 0))),
            append(Some(id(5, 99)), vec![], Some(id(5, 99))),
        ];
        for request in requests {
            let mut checked = request.clone();
            check_append(&mut checked, 1, &local()).unwrap();
            assert_eq!(format!("{checked:?}"), format!("{request:?}"));
        }
    }

    #[test]
    fn appends_that_contradict_themselves_are_refused() {
        refused(append(Some(id(4, 20)), vec![entry(4, 22)], None), "where 21 is the next one");
        refused(append(Some(id(4, 20)), vec![entry(4, 21), entry(4, 21)], None), "where 22 is the next one");
        refused(append(None, vec![entry(4, 5)], None), "where 0 is the next one");
        refused(append(Some(id(5, 20)), vec![entry(4, 21)], None), "the term falls");
        refused(append(Some(id(4, 20)), vec![entry(6, 21)], None), "a later term than the vote");
        refused(append(Some(id(6, 20)), vec![], None), "a later term than the vote");
        refused(append(Some(id(5, u64::MAX)), vec![], None), "no log has an entry");
        let many = (21..22 + APPEND_ENTRIES_RECEIVED_MAX as u64).map(|index| entry(5, index)).collect();
        refused(append(Some(id(4, 20)), many, None), "4097 entries at once");
    }

    #[test]
    fn appends_that_contradict_what_is_committed_are_refused() {
        refused(append(Some(id(3, 11)), vec![], None), "which is committed here");
        refused(append(Some(id(3, 10)), vec![entry(3, 11)], None), "which is committed here");
    }

    #[test]
    fn a_commit_that_the_message_contradicts_is_refused() {
        refused(append(Some(id(4, 20)), vec![], Some(id(6, 20))), "a later term than the vote");
        refused(append(Some(id(4, 20)), vec![], Some(id(3, 20))), "contradicts");
        refused(append(Some(id(4, 20)), vec![], Some(id(3, 1_000))), "contradicts");
        refused(append(Some(id(4, 20)), vec![], Some(id(5, 3))), "contradicts");
    }

    #[test]
    fn a_commit_beyond_the_log_of_an_earlier_term_is_left_out() {
        let mut request = append(Some(id(1, 3)), vec![], Some(id(1, 1_000_000)));
        check_append(&mut request, 1, &local()).unwrap();
        assert_eq!(request.leader_commit, None, "it would be applied before entry 20 of term 4");
        let mut request = append(None, vec![], Some(id(1, 7)));
        check_append(&mut request, 1, &new()).unwrap();
        assert_eq!(request.leader_commit, None, "an empty log has nothing to commit");
    }

    #[test]
    fn nobody_speaks_for_another_node() {
        let mut request = append(None, vec![], None);
        assert!(check_append(&mut request, 2, &local()).unwrap_err().to_string().contains("speaks for"));
        request.vote = Vote { committed: false, ..led(5) };
        assert!(check_append(&mut request, 1, &local()).unwrap_err().to_string().contains("does not lead"));
        let vote = VoteRequest::new(Vote { committed: false, ..led(6) }, None);
        check_vote_request(&vote, 1, &local()).unwrap();
        assert!(check_vote_request(&vote, 2, &local()).is_err());
        assert!(check_vote_request(&VoteRequest::new(led(6), None), 1, &local()).is_err());
        let transfer = TransferLeaderRequest::new(led(5), 7, None);
        check_transfer(&transfer, 1, 7, &local()).unwrap();
        assert!(check_transfer(&transfer, 2, 7, &local()).is_err());
        assert!(check_transfer(&transfer, 1, 8, &local()).is_err());
    }

    #[test]
    fn terms_far_ahead_are_refused_in_every_message() {
        for term in [5 + TERM_LEAP_MAX, 5 + TERM_LEAP_MAX + 1, u64::MAX] {
            let plausible = term == 5 + TERM_LEAP_MAX;
            let candidate = VoteRequest::new(Vote { committed: false, ..led(term) }, None);
            assert_eq!(check_vote_request(&candidate, 1, &local()).is_ok(), plausible);
            let mut request = AppendEntriesRequest { vote: led(term), ..append(None, vec![], None) };
            assert_eq!(check_append(&mut request, 1, &local()).is_ok(), plausible);
            assert_eq!(check_snapshot(&led(term), Some(id(4, 30)), 1, &local()).is_ok(), plausible);
            assert_eq!(
                check_transfer(&TransferLeaderRequest::new(led(term), 7, None), 1, 7, &local()).is_ok(),
                plausible
            );
        }
    }

    #[test]
    fn a_new_node_takes_the_terms_that_members_told_of() {
        let old = 1 << 40;
        check_snapshot(&led(old), Some(id(old, 7)), 1, &Local { reported_term: old, ..new() }).unwrap();
        assert!(check_snapshot(&led(old), Some(id(old, 7)), 1, &new()).is_err());
        let holder = Local { reported_term: u64::MAX, ..local() };
        assert!(check_snapshot(&led(old), Some(id(old, 7)), 1, &holder).is_err(), "it has seen terms itself");
    }

    #[test]
    fn snapshots_that_contradict_their_leader_or_this_log_are_refused() {
        check_snapshot(&led(5), Some(id(5, 30)), 1, &local()).unwrap();
        for last in [id(6, 30), id(3, 11), id(5, 10), id(5, 9)] {
            assert!(check_snapshot(&led(5), Some(last), 1, &local()).is_err(), "{last}");
        }
    }

    #[test]
    fn answers_that_contradict_the_request_are_refused() {
        let check = |answer| check_append_answer(&answer, &led(5), Some(id(4, 20)), Some(id(5, 22)));
        check(Ok(Some(id(5, 22)))).unwrap();
        check(Err(StreamAppendError::Conflict(id(4, 20)))).unwrap();
        check(Err(StreamAppendError::HigherVote(led(6)))).unwrap();
        for answer in [
            Ok(None),
            Ok(Some(id(5, 23))),
            Err(StreamAppendError::Conflict(id(4, 3))),
            Err(StreamAppendError::HigherVote(led(4))),
            Err(StreamAppendError::HigherVote(led(6 + TERM_LEAP_MAX))),
        ] {
            assert!(check(answer.clone()).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn memberships_without_a_quorum_or_addresses_are_refused() {
        let node = |raft: &str| NodeAddress { name: "n@h".into(), raft: raft.into() };
        let of = |sets: &[&[NodeId]], nodes: &[(NodeId, &str)]| {
            let sets: Vec<BTreeSet<NodeId>> = sets.iter().map(|set| set.iter().copied().collect()).collect();
            let nodes: BTreeMap<_, _> = nodes.iter().map(|(id, raft)| (*id, node(raft))).collect();
            // Decoded, since no constructor makes an invalid one.
            let encoded = hexkv_store::codec::encode(&(sets, nodes));
            hexkv_store::codec::decode::<Membership<NodeId, NodeAddress>>("membership", &encoded, 4096).unwrap()
        };
        check_membership(&of(&[&[1], &[1, 2]], &[(1, "h:1"), (2, "h:2"), (3, "h:3")])).unwrap();
        for (sets, address) in [
            (<&[&[NodeId]]>::default(), "h:1"),
            (&[&[]], "h:1"),
            (&[&[1], &[1], &[1]], "h:1"),
            (&[&[1, 2]], "h:1"),
            (&[&[1]], "h:1\n"),
        ] {
            assert!(check_membership(&of(sets, &[(1, address)])).is_err(), "{sets:?} {address:?}");
        }
    }
}
