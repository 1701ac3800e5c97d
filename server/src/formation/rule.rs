//! Who may found the cluster: the rule alone, without a network or a disk. The acceptors' half of it is
//! [`hexkv_store::founding`]; `docs/decisions.md` has the argument.

use std::collections::{BTreeMap, BTreeSet};

use hexkv_raft_net::rpc::Plan;
use hexkv_store::founding::{Founder, Grant};

use crate::config::{Config, DiscoveryType};

/// A node that said that it has no cluster, and promised or agreed to something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voice {
    /// Its full name.
    pub name: String,
    /// Its index, where it has one.
    pub index: Option<u32>,
    /// What it granted before.
    pub granted: Option<Grant>,
}

/// What a node that asked all others may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Ask them to agree to itself.
    Propose,
    /// Wait for this one, which may have founded the cluster already.
    WaitFor(Founder),
    /// Too few answered.
    TooFew,
}

/// The plan that `config` describes.
pub fn plan_of(config: &Config) -> Plan {
    match config.discovery {
        DiscoveryType::Static => {
            let listed: BTreeSet<String> = config.cluster_nodes.iter().map(|target| target.node.to_string()).collect();
            let mut names = listed.clone();
            names.insert(config.node_name.to_string());
            // A node beyond the list of the planned ones joins them, and founds nothing.
            let planned = if names.len() == config.cluster_size as usize { names } else { listed };
            Plan::Listed(planned.into_iter().collect())
        }
        DiscoveryType::Dns | DiscoveryType::Gossip if !config.index_is_set => Plan::Anyone(config.cluster_size),
        DiscoveryType::Epmd | DiscoveryType::Dns | DiscoveryType::Gossip => Plan::Indexed(config.cluster_size),
    }
}

/// Whether node `name` has a vote under `plan`.
pub fn takes_part(plan: &Plan, name: &str) -> bool {
    match plan {
        Plan::Listed(names) => names.iter().any(|listed| listed == name),
        Plan::Indexed(_) | Plan::Anyone(_) => true,
    }
}

/// How many votes there are.
pub fn votes_planned(plan: &Plan) -> usize {
    match plan {
        Plan::Listed(names) => names.len(),
        Plan::Indexed(size) | Plan::Anyone(size) => *size as usize,
    }
}

/// How many votes decide. Any two such sets share a node: majorities of a fixed set do; where the set is not known
/// beforehand all the planned ones are needed, which share one as long as fewer than twice as many nodes exist.
pub fn quorum(plan: &Plan) -> usize {
    match plan {
        Plan::Listed(_) | Plan::Indexed(_) => votes_planned(plan) / 2 + 1,
        Plan::Anyone(size) => *size as usize,
    }
}

/// How many votes `voices` are.
///
/// # Errors
/// Two nodes have one index: what is to be corrected.
pub fn votes(plan: &Plan, voices: &[Voice]) -> Result<usize, String> {
    let names: BTreeSet<&str> = voices.iter().map(|voice| voice.name.as_str()).collect();
    match plan {
        Plan::Listed(_) => Ok(names.into_iter().filter(|name| takes_part(plan, name)).count()),
        Plan::Anyone(_) => Ok(names.len()),
        Plan::Indexed(size) => {
            let mut by_index: BTreeMap<u32, &str> = BTreeMap::new();
            for voice in voices {
                let Some(index) = voice.index.filter(|index| (1..=*size).contains(index)) else { continue };
                let other = by_index.insert(index, &voice.name).filter(|other| *other != voice.name);
                if let Some(other) = other {
                    return Err(format!(
                        "{other} and {} both have NODE_INDEX {index}: give each node another one, 1..={size}",
                        voice.name
                    ));
                }
            }
            Ok(by_index.len())
        }
    }
}

/// What `me` may do after `voices`, its own among them, promised to refuse lower attempts.
///
/// A founder that was granted before binds everybody: it may have founded already. `me` takes the place of an earlier self,
/// whose disk is lost, only where a majority of known nodes decides, all of these say that they have no cluster, and
/// `all_heard`: no other node that is known of was silent. Where anyone has a vote, nodes beyond the planned number may have
/// joined what the earlier self founded, and nobody can tell that there are none.
///
/// # Errors
/// As [`votes`].
pub fn choose(me: &Founder, plan: &Plan, voices: &[Voice], all_heard: bool) -> Result<Choice, String> {
    let votes = votes(plan, voices)?;
    if votes < quorum(plan) {
        return Ok(Choice::TooFew);
    }
    let newest = voices.iter().filter_map(|voice| voice.granted.as_ref()).max_by_key(|(ballot, _)| *ballot);
    Ok(match newest {
        None => Choice::Propose,
        Some((_, founder)) if founder.node_id == me.node_id => Choice::Propose,
        Some((_, founder)) if founder.name == me.name && all_heard && nobody_joined(plan, votes) => Choice::Propose,
        Some((_, founder)) => Choice::WaitFor(founder.clone()),
    })
}

/// Whether `votes`, all of nodes without a cluster, leave nobody who could have joined one that was founded.
fn nobody_joined(plan: &Plan, votes: usize) -> bool {
    match plan {
        Plan::Listed(_) | Plan::Indexed(_) => votes == votes_planned(plan),
        Plan::Anyone(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use hexkv_store::founding::Ballot;

    use super::*;

    fn voice(name: &str, index: u32, granted: Option<(u64, u64, &str)>) -> Voice {
        let grant = |(round, node_id, name): (u64, u64, &str)| {
            (Ballot { round, node_id }, Founder { node_id, name: name.into() })
        };
        Voice { name: name.into(), index: Some(index), granted: granted.map(grant) }
    }

    fn me() -> Founder {
        Founder { node_id: 1, name: "a".into() }
    }

    #[test]
    fn two_quorums_share_a_node() {
        for size in 1..=64_u32 {
            let listed = Plan::Listed((0..size).map(|i| i.to_string()).collect());
            for plan in [listed, Plan::Indexed(size)] {
                assert!(2 * quorum(&plan) > size as usize, "{plan:?}");
            }
            // Of any 2 * size - 1 nodes.
            assert!(2 * quorum(&Plan::Anyone(size)) > 2 * size as usize - 1);
        }
    }

    #[test]
    fn only_votes_of_the_plan_count_and_each_once() {
        let (a, b, stranger) = (voice("a", 1, None), voice("b", 2, None), voice("x", 9, None));
        let all = [a.clone(), a.clone(), b.clone(), stranger];
        assert_eq!(votes(&Plan::Listed(vec!["a".into(), "b".into(), "c".into()]), &all), Ok(2));
        assert_eq!(votes(&Plan::Indexed(3), &all), Ok(2));
        assert_eq!(votes(&Plan::Anyone(3), &all), Ok(3));
        let twice = votes(&Plan::Indexed(3), &[a, voice("c", 1, None)]).unwrap_err();
        assert!(twice.contains("a and c both have NODE_INDEX 1"), "{twice}");
    }

    #[test]
    fn who_was_granted_last_binds_unless_it_is_an_earlier_self_and_all_are_heard() {
        let plan = Plan::Indexed(3);
        let free = [voice("a", 1, None), voice("b", 2, None)];
        assert_eq!(choose(&me(), &plan, &free[..1], true), Ok(Choice::TooFew));
        assert_eq!(choose(&me(), &plan, &free, true), Ok(Choice::Propose));
        let mine = [voice("a", 1, Some((5, 1, "a"))), voice("b", 2, Some((4, 2, "b")))];
        assert_eq!(choose(&me(), &plan, &mine, true), Ok(Choice::Propose), "the higher ballot counts");
        let theirs = [voice("a", 1, Some((3, 1, "a"))), voice("b", 2, Some((4, 2, "b")))];
        let b = Founder { node_id: 2, name: "b".into() };
        assert_eq!(choose(&me(), &plan, &theirs, true), Ok(Choice::WaitFor(b)));
        let earlier = [voice("a", 1, None), voice("b", 2, Some((4, 77, "a")))];
        let gone = Founder { node_id: 77, name: "a".into() };
        assert_eq!(choose(&me(), &plan, &earlier, true), Ok(Choice::WaitFor(gone.clone())), "c may have joined it");
        let all = [earlier[0].clone(), earlier[1].clone(), voice("c", 3, None)];
        assert_eq!(choose(&me(), &plan, &all, true), Ok(Choice::Propose));
        let silent = choose(&me(), &plan, &all, false);
        assert_eq!(silent, Ok(Choice::WaitFor(gone.clone())), "whoever is silent may have joined it");
        let anyone = choose(&me(), &Plan::Anyone(3), &all, true);
        assert_eq!(anyone, Ok(Choice::WaitFor(gone)), "nodes beyond the planned number may have joined it");
    }
}
