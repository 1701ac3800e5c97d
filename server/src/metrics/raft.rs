//! Consensus, and the other members as this node sees them.

use std::fmt;

use openraft::{ServerState, async_runtime::WatchReceiver};

use super::page::Page;
use crate::{
    core::Core,
    node::{Node, Position},
    service::member_health,
};

/// The states of a node in Raft, by the names of their label.
const STATES: [(ServerState, &str); 5] = [
    (ServerState::Leader, "leader"),
    (ServerState::Follower, "follower"),
    (ServerState::Candidate, "candidate"),
    (ServerState::Learner, "learner"),
    (ServerState::Shutdown, "shutdown"),
];

pub(super) fn tell(page: &mut Page<'_>, node: &Node) -> fmt::Result {
    cluster(page, node)?;
    page.counter(
        "hexkv_raft_elections_started",
        "Elections in which this node stood, at least: it is looked now and then, so one that is over at once may be missing",
        node.metrics.elections.get() as f64,
    )?;
    page.counter(
        "hexkv_raft_leader_changes",
        "Times that this node learned of another leader than the last one that it knew",
        node.metrics.leader_changes.get() as f64,
    )?;
    let Some(core) = node.core() else { return Ok(()) };
    consensus(page, &core)?;
    peers(page, node, &core)
}

fn cluster(page: &mut Page<'_>, node: &Node) -> fmt::Result {
    let info = node.cluster();
    let name_of = |id| info.members.iter().find(|m| m.node_id == id).map(|m| m.name.clone());
    let position = match node.position() {
        Position::Holder => "holder",
        Position::Standby => "standby",
        Position::Outside => "outside",
    };
    let labels = [
        ("node", node.name.clone()),
        ("cluster_id", info.cluster_id.map(|id| format!("{id:016x}")).unwrap_or_default()),
        ("position", position.to_owned()),
    ];
    page.gauges("hexkv_node_info", "This node, its cluster, and whether it holds the data; always 1", [(labels, 1.0)])?;
    page.gauges(
        "hexkv_raft_leader_info",
        "The leader that this node knows; always 1, no sample = none",
        info.leader.map(|id| ([("leader", name_of(id).unwrap_or_else(|| format!("{id:016x}")))], 1.0)),
    )?;
    page.gauge("hexkv_cluster_members", "Members of the cluster", info.members.len() as f64)?;
    page.gauge("hexkv_cluster_voters", "Members that vote", info.voters.len() as f64)?;
    page.gauge_if(
        "hexkv_cluster_quorum",
        "1 = this node knows a leader and hears a majority of the voters; no sample = it does not hold the data",
        node.hears_quorum().map(|hears| f64::from(u8::from(hears))),
    )?;
    page.gauge("hexkv_cluster_replication_factor", "How many members are to vote", f64::from(info.replication_factor))?;
    page.gauge(
        "hexkv_state_divergent",
        "1 = this node's state differs from the majority's: it serves no reads until it is rebuilt",
        f64::from(u8::from(node.divergence().is_some())),
    )?;
    page.gauge(
        "hexkv_copied_nodes",
        "Members of which a second process, on a copy of the data directory, was refused here in the last minute",
        node.network.copies().len() as f64,
    )?;
    page.gauge(
        "hexkv_members_with_lost_entries",
        "Members that lost log entries which they acknowledged to this node as the leader, by the signs of the last minute",
        node.network.lost_entries().len() as f64,
    )
}

fn consensus(page: &mut Page<'_>, core: &Core) -> fmt::Result {
    let metrics = core.raft.metrics().borrow_watched().clone();
    page.gauge("hexkv_raft_term", "Current term", metrics.current_term as f64)?;
    page.gauge("hexkv_raft_is_leader", "1 = this node leads", f64::from(u8::from(core.is_leader())))?;
    let state = |(state, name): &(ServerState, &str)| {
        ([("state", (*name).to_owned())], f64::from(u8::from(metrics.state == *state)))
    };
    page.gauges("hexkv_raft_state", "1 for the state that this node is in", STATES.iter().map(state))?;
    let committed = metrics.local_committed.map_or(0, |id| id.index);
    page.gauge("hexkv_raft_commit_index", "Log index up to which entries are known to be committed", committed as f64)?;
    let first = core.log.stats().first_index;
    page.gauge(
        "hexkv_raft_first_log_index",
        "Lowest log index that is kept: who lacks more gets a snapshot",
        first as f64,
    )?;
    let applied = core.state.applied().map_or(0, |id| id.index);
    page.gauge("hexkv_raft_applied_index", "Log index up to which entries are applied", applied as f64)?;
    page.gauge("hexkv_raft_last_log_index", "Last index of the log", metrics.last_log_index.unwrap_or(0) as f64)?;
    page.gauge(
        "hexkv_raft_durable_index",
        "Log index up to which entries are on disk",
        core.log.durable().borrow().saturating_sub(1) as f64,
    )?;
    let waits = core.waits();
    let seconds = |wait: Option<std::time::Duration>| wait.unwrap_or_default().as_secs_f64();
    page.gauge(
        "hexkv_raft_commit_wait_seconds",
        "On the leader: how long its oldest uncommitted entry has waited without any commit; 0 = none waits",
        seconds(waits.commit),
    )?;
    page.gauge(
        "hexkv_raft_apply_wait_seconds",
        "How long the oldest committed entry has waited without any being applied; 0 = none waits",
        seconds(waits.apply),
    )?;
    page.gauge(
        "hexkv_wal_write_wait_seconds",
        "How long the log has been at the write and sync that are in flight; 0 = none is",
        seconds(waits.write),
    )
}

fn peers(page: &mut Page<'_>, node: &Node, core: &Core) -> fmt::Result {
    let members = node.cluster().members;
    let others = || members.iter().filter(|m| m.node_id != core.id);
    page.gauges(
        "hexkv_peer_up",
        "1 = this node heard from the member within twice HEARTBEAT_TIMEOUT",
        others().map(|m| ([("peer", m.name.clone())], f64::from(u8::from(node.hears(m.node_id))))),
    )?;
    page.gauges(
        "hexkv_peer_last_contact_seconds",
        "Time since this node heard from the member; no sample = never",
        others().filter_map(|m| {
            Some(([("peer", m.name.clone())], node.network.last_contact(m.node_id)?.elapsed().as_secs_f64()))
        }),
    )?;
    let health = if core.is_leader() { member_health(node, core) } else { Vec::new() };
    let newest = health.iter().filter_map(|h| h.matched_index).max().unwrap_or(0);
    page.gauges(
        "hexkv_raft_peer_lag_entries",
        "Entries that a member lacks on its disk; told by the leader, of members that hold the data",
        others().filter_map(|m| {
            let matched = health.iter().find(|h| h.node_id == m.node_id)?.matched_index?;
            Some(([("peer", m.name.clone())], newest.saturating_sub(matched) as f64))
        }),
    )?;
    let stalled = core.progress.peers();
    page.gauges(
        "hexkv_raft_peer_stalled_seconds",
        "How long a member that lacks entries has taken none; of members that hold the data, on the leader",
        others().filter(|m| health.iter().any(|h| h.node_id == m.node_id)).map(|m| {
            let seconds = stalled.get(&m.node_id).copied().unwrap_or_default().as_secs_f64();
            ([("peer", m.name.clone())], seconds)
        }),
    )
}
