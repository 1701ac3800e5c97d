//! `restart --rolling`: one node after the other, so that the cluster serves all the while.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hexkv_client::api::{ClusterStatus, MemberState, Role};
use hexkv_client::console::note;
use hexkv_client::local::{LocalCluster, Probe, formed};
use tokio::time::Instant;

use super::nodes::{Nodes, POLL_INTERVAL};
use crate::cli::Failure;

/// A voter that lacks at most this many entries counts as level: it can take part in the next commit at once.
const LAG_ENTRIES_MAX: u64 = 64;

/// With fewer voters the cluster stands still while one of them is away.
const VOTERS_MIN: usize = 3;

/// Restarts all nodes, one at a time and the leader last; each time all others run, and are level, before the next is stopped.
///
/// # Errors
/// [`Failure::Refused`] when the cluster cannot lose a node; [`Failure::Unavailable`] when it is not level within `wait`:
/// the nodes that were not restarted by then run on as they are.
pub async fn restart(nodes: &mut Nodes, server: Option<&Path>, wait: Duration) -> Result<(), Failure> {
    let mut left: BTreeSet<u32> = (1..=nodes.size()).collect();
    while !left.is_empty() {
        let status = wait_level(nodes, wait).await?;
        let voters = status.members.iter().filter(|member| member.role == Role::Voter).count();
        if voters < VOTERS_MIN {
            return Err(Failure::Refused(format!(
                "a cluster of {voters} voters stands still while one of them restarts, so there is no restart without a \
                 break: `client cluster restart` restarts all at once, `client cluster start --size {VOTERS_MIN}` adds nodes"
            )));
        }
        let index = next(&left, status.leader.as_deref());
        note(&format!("restarting {} ({} to go)", LocalCluster::name(index), left.len()));
        nodes.stop(&[index]).await?;
        nodes.start(&[index], server).await?;
        left.remove(&index);
    }
    wait_level(nodes, wait).await.map(drop)
}

/// The lowest of those that are left and do not lead: leadership moves once, and to a node that was restarted.
fn next(left: &BTreeSet<u32>, leader: Option<&str>) -> u32 {
    let leads = |index: &&u32| leader == Some(LocalCluster::name(**index).as_str());
    *left.iter().find(|index| !leads(index)).or(left.first()).expect("one is left")
}

/// Waits until all nodes serve, and all voters are up and have what the leader has; gives the leader's view.
async fn wait_level(nodes: &Nodes, wait: Duration) -> Result<ClusterStatus, Failure> {
    let deadline = Instant::now() + wait;
    loop {
        for index in 1..=nodes.size() {
            nodes.check_runs(index)?;
        }
        let probes = nodes.layout().probe_nodes(nodes.size()).await?;
        match level(&probes) {
            Ok(status) => return Ok(status),
            Err(why) if Instant::now() + POLL_INTERVAL >= deadline => {
                return Err(Failure::Unavailable(format!(
                    "the cluster is not level within {wait:?}: {why}. No further node is stopped: `client status --explain` \
                     says what it waits for, then give the command again"
                )));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// The leader's view, when any one node can be missed.
fn level(probes: &[Probe]) -> Result<ClusterStatus, String> {
    formed(probes)?;
    let mut views = probes.iter().filter_map(|probe| probe.status.as_ref().ok());
    let leads = |status: &&ClusterStatus| status.leader.as_ref() == Some(&status.node);
    let status = views.find(leads).ok_or("the leader is not one of these nodes")?;
    for member in &status.members {
        if member.state != MemberState::Up {
            return Err(format!("{} is {}", member.name, member.state));
        }
        if member.role == Role::Voter && member.lag_entries.is_none_or(|lag| lag > LAG_ENTRIES_MAX) {
            return Err(format!("{} lacks {:?} entries", member.name, member.lag_entries));
        }
    }
    Ok(status.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_the_last() {
        let left = BTreeSet::from([1, 2, 3]);
        assert_eq!(next(&left, Some("hex_hub1@127.0.0.1")), 2);
        assert_eq!(next(&left, Some("hex_hub3@127.0.0.1")), 1);
        assert_eq!(next(&left, None), 1);
        assert_eq!(next(&BTreeSet::from([3]), Some("hex_hub3@127.0.0.1")), 3, "also the leader, in the end");
    }
}
