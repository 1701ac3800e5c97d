//! What is wrong between the nodes.

use std::collections::BTreeMap;

use hexkv_client::api::{ClusterStatus, MemberState, Role};

use super::finding::Finding;
use super::gather::Seen;

/// Clocks that differ by more are worth a look, in milliseconds.
const CLOCK_WARNING_MS: i64 = 500;
/// Clocks that differ by more make times to live and log lines misleading, in milliseconds.
const CLOCK_ERROR_MS: i64 = 10_000;
/// A member that lacks entries and has taken none for this long is stuck, in milliseconds: heartbeats pass, entries do not.
const STALLED_MS_MAX: u64 = 5_000;
/// A member that lacks more entries is far behind.
const LAG_ENTRIES_MAX: u64 = 10_000;

/// What is wrong.
pub fn findings(seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(status) = &seen.status {
        found.extend(of_status(status));
        found.extend(of_replication_factor(status));
    }
    found.extend(of_clocks(seen));
    found.extend(of_versions(seen));
    found.extend(of_states(seen));
    found.extend(of_copies(seen));
    found.extend(of_lost_entries(seen));
    found
}

fn of_status(status: &ClusterStatus) -> Vec<Finding> {
    let mut found = Vec::new();
    match &status.leader {
        None => found.push(Finding::error(
            "quorum",
            "no leader is known",
            "start nodes until a majority of the voters is up and connected",
        )),
        Some(_) if !status.quorum => {
            found.push(Finding::error("quorum", "a majority of the voters is not up", "start the voters that are down"))
        }
        Some(_) => {}
    }
    if let Some(why) = &status.stalled {
        found.push(Finding::error("progress", why.clone(), "client status --explain; client transfer-leader NAME"));
    }
    for member in &status.members {
        let stuck = member.stalled_ms.filter(|ms| *ms > STALLED_MS_MAX && member.state == MemberState::Up);
        if let Some(ms) = stuck {
            found.push(
                Finding::error(
                    "progress",
                    format!("it answers, but has taken no entry of the log for {:.1} s", ms as f64 / 1000.0),
                    "check its disk, and that packets of full size pass from the leader to it (MTU)",
                )
                .of(&member.name),
            );
        }
        if member.state == MemberState::Down {
            let next = "start it; if it is gone for good: `client remove NAME`";
            found.push(Finding::error("members", "the leader does not hear it", next).of(&member.name));
        }
        if let Some(lag) = member.lag_entries.filter(|lag| *lag > LAG_ENTRIES_MAX && member.role != Role::Standby) {
            found.push(
                Finding::warning(
                    "lag",
                    format!("it lacks {lag} entries of the log"),
                    "see its disk and network; a node that stays behind adds nothing to safety",
                )
                .of(&member.name),
            );
        }
    }
    found
}

fn of_replication_factor(status: &ClusterStatus) -> Vec<Finding> {
    let (factor, members) = (status.replication_factor as usize, status.members.len());
    let mut found = Vec::new();
    if factor > 1 && factor.is_multiple_of(2) {
        found.push(Finding::warning(
            "replication_factor",
            format!(
                "the replication factor {factor} is even: {factor} voters survive no more losses than {}",
                factor - 1
            ),
            format!("client replication-factor {}", factor + 1),
        ));
    }
    if factor > members && members > 0 {
        found.push(Finding::warning(
            "replication_factor",
            format!("the replication factor is {factor}, the cluster has {members} members"),
            format!(
                "let {} more nodes join, or: client replication-factor {}",
                factor - members,
                if members.is_multiple_of(2) { members - 1 } else { members }
            ),
        ));
    }
    found
}

fn of_clocks(seen: &Seen) -> Option<Finding> {
    let clocks = || seen.nodes.iter().filter_map(|node| Some((&node.name, node.clock_ahead_ms?)));
    let (ahead, (least, _)) = clocks().max_by_key(|(_, (least, _))| *least)?;
    let (behind, (_, most)) = clocks().min_by_key(|(_, (_, most))| *most)?;
    // As much as is certain, whatever the way of the answers took.
    let apart = least.saturating_sub(most);
    let what = format!("the clock of {ahead} is {:.1} s ahead of that of {behind}, at least", apart as f64 / 1000.0);
    let next = "run a time service (chrony, systemd-timesyncd) on all nodes; a lease never ends early for it, but lease reads and log lines trust clocks";
    if apart > CLOCK_ERROR_MS {
        return Some(Finding::error("clock", what, next));
    }
    (apart > CLOCK_WARNING_MS).then(|| Finding::warning("clock", what, next))
}

fn of_versions(seen: &Seen) -> Option<Finding> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for check in seen.nodes.iter().filter_map(|node| node.check.as_ref().ok()) {
        versions.entry(&check.version).or_default().push(&check.node);
    }
    let told: Vec<String> =
        versions.iter().map(|(version, nodes)| format!("{version} on {}", nodes.join(", "))).collect();
    (versions.len() > 1).then(|| {
        Finding::warning(
            "versions",
            format!("versions differ: {}", told.join("; ")),
            "finish the upgrade: restart the older ones with the newer binary, one at a time",
        )
    })
}

/// One finding for each copy, however many nodes refuse it.
fn of_copies(seen: &Seen) -> Vec<Finding> {
    let checks = seen.nodes.iter().filter_map(|node| node.check.as_ref().ok());
    let mut copies: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for copy in checks.flat_map(|check| &check.copies) {
        copies.entry(copy.name.as_str()).or_insert((copy.first.as_str(), copy.second.as_str()));
    }
    let finding = |(name, (first, second)): (&str, (&str, &str))| {
        Finding::error(
            "copy",
            format!("a second process claims to be it: it runs at {first}, and the one at {second} uses a copy of its data directory"),
            "stop the copy, and start it with an empty DATA_DIR and a name of its own: it joins as a new node",
        )
        .of(name)
    };
    copies.into_iter().map(finding).collect()
}

fn of_lost_entries(seen: &Seen) -> Vec<Finding> {
    let checks = seen.nodes.iter().filter_map(|node| node.check.as_ref().ok());
    let finding = |lost: &hexkv_client::api::LostEntriesCheck| {
        Finding::error(
            "lost_entries",
            format!(
                "it acknowledged entries of the log up to {}, and does not hold entry {}: its disk was rolled back, or loses what it reports as written",
                lost.acknowledged, lost.missing
            ),
            "it comes back as a new member by itself; if it does not: stop it, move its data directory aside, start it. See its disk first",
        )
        .of(&lost.name)
    };
    checks.flat_map(|check| &check.lost_entries).map(finding).collect()
}

fn of_states(seen: &Seen) -> Vec<Finding> {
    const NEXT: &str = "the node that the majority disagrees with rebuilds itself; if it does not: stop it, move its data directory aside, start it";
    let mut found = Vec::new();
    for node in &seen.nodes {
        if let Some(why) = node.check.as_ref().ok().and_then(|check| check.divergent.as_ref()) {
            found.push(
                Finding::error("state", format!("its state differs from the majority's: {why}"), NEXT).of(&node.name),
            );
        }
    }
    let mut by_index: BTreeMap<u64, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for (node, hash) in seen.nodes.iter().filter_map(|node| Some((node, node.hash.as_ref()?))) {
        by_index.entry(hash.applied_index).or_default().entry(&hash.hash).or_default().push(&node.name);
    }
    for (index, hashes) in by_index.iter().filter(|(_, hashes)| hashes.len() > 1) {
        let groups: Vec<String> = hashes.values().map(|names| names.join(", ")).collect();
        found.push(Finding::error(
            "state",
            format!("states differ at log index {index}: {}", groups.join(" / ")),
            NEXT,
        ));
    }
    found
}
