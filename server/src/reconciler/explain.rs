//! What the reconciler sees and waits for, in sentences.

use std::{collections::BTreeSet, time::Duration};

use hexkv_store::NodeId;

use super::decide::{CAUGHT_UP_ENTRIES, Facts, ODD_WAIT_MAX, Step, desired_voters, is_majority, waits_for_odd};

/// What there is to say about the membership, the most important first. Never empty.
pub(super) fn explain(facts: &Facts) -> Vec<String> {
    let Some(voters) = facts.voter_sets.last() else { return vec!["there is no membership yet".into()] };
    let staying = facts.members.iter().filter(|m| !m.leaving).count();
    let due = facts.replication_factor.min(staying);
    let mut said = vec![format!(
        "{} of {staying} members vote: {}; {due} are due by the replication factor {}",
        voters.len(),
        names(facts, voters),
        facts.replication_factor
    )];
    if facts.voter_sets.len() > 1 {
        said.push("a change of the voters that was begun is being finished".into());
    }
    let answering = voters.intersection(&facts.reachable).count();
    if !is_majority(&facts.reachable, voters) {
        said.push(format!("only {answering} of {} voters answer: without a majority nothing is changed", voters.len()));
        return said;
    }
    let desired = desired_voters(facts, voters);
    said.extend(facts.silent.keys().filter(|id| voters.contains(id)).map(|id| of_silent_voter(facts, *id, &desired)));
    for member in facts.members.iter().filter(|m| m.leaving) {
        said.push(format!("{} leaves", member.name));
    }
    for id in desired.iter().filter(|id| !voters.contains(id) && !facts.caught_up(id)) {
        said.push(match facts.lag_entries.get(id) {
            Some(lag) => format!(
                "{} is to vote, and is given the data: it lacks {lag} entries, {CAUGHT_UP_ENTRIES} at most are near enough",
                name(facts, *id)
            ),
            None => format!("{} is to vote, and is given the data", name(facts, *id)),
        });
    }
    if waits_for_odd(facts) && facts.put_off <= ODD_WAIT_MAX {
        let left = seconds(ODD_WAIT_MAX.saturating_sub(facts.put_off));
        said.push(format!("whoever has the data waits up to {left} for the others, so that an odd number votes"));
    }
    if due % 2 == 0 {
        let fewer = due - 1;
        said.push(format!("{due} voters survive no more losses than {fewer}: an odd number of members is better"));
    }
    said
}

fn of_silent_voter(facts: &Facts, id: NodeId, desired: &BTreeSet<NodeId>) -> String {
    let silent = facts.silent.get(&id).copied().unwrap_or_default();
    let silence = format!("{} has not answered for {}", name(facts, id), seconds(silent));
    match facts.replace_after {
        None => format!("{silence}; REPLACE_AFTER=0s, so it keeps its seat"),
        Some(_) if facts.given_up(&id) && desired.contains(&id) => {
            format!("{silence}; no standby that answers could take its seat: start a node and let it join")
        }
        Some(_) if facts.given_up(&id) => format!("{silence}; a standby takes its seat"),
        Some(limit) => format!("{silence}; a standby takes its seat after {}", seconds(limit)),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn names(facts: &Facts, ids: &BTreeSet<NodeId>) -> String {
    let mut names: Vec<String> = ids.iter().map(|id| name(facts, *id)).collect();
    names.sort();
    names.join(", ")
}

fn name(facts: &Facts, id: NodeId) -> String {
    let member = facts.members.iter().find(|m| m.node_id == id);
    member.map_or_else(|| format!("a former member, {id:016x},"), |m| m.name.clone())
}

/// A step in words.
pub(super) fn told(facts: &Facts, step: &Step) -> String {
    match step {
        Step::FinishJoint(voters) => format!("finish the change of the voters to {}", names(facts, voters)),
        Step::AddLearner(id) => format!("give {} the data", name(facts, *id)),
        Step::SetVoters(voters) => format!("let {} vote", names(facts, voters)),
        Step::HandOver(id) => format!("hand leadership to {}", name(facts, *id)),
        Step::DropLearners(ids) => format!("give {} the data no longer", names(facts, ids)),
        Step::Forget(id) => format!("take {} out of the directory", name(facts, *id)),
    }
}
