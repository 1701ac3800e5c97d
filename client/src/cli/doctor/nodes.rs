//! What is wrong with one node, or with an endpoint that is none.

use std::collections::BTreeSet;

use hexkv_client::Error;
use hexkv_client::api::{NodeCheck, PeerResult};

use super::finding::Finding;
use super::gather::{EndpointSeen, NodeSeen, Seen};

/// Open files below which a busy node runs out of connections; the node warns at its start, too.
const OPEN_FILES_MIN: u64 = 4096;
/// Part of its open files beyond which a node is short of them, in percent.
const OPEN_FILES_USED_PERCENT_MAX: u64 = 90;
/// Free disk below which a node is about to stop, in bytes.
const DISK_FREE_ERROR_BYTES: u64 = 64 << 20;
/// Permission bits by which others may write to a directory.
const MODE_WRITE_OF_OTHERS: u32 = 0o022;

/// What is wrong with each.
pub fn findings(seen: &Seen, disk_free_min: u64) -> Vec<Finding> {
    let endpoints = seen.endpoints.iter().filter_map(of_endpoint);
    let nodes = seen.nodes.iter().flat_map(|node| of_node(node, disk_free_min));
    endpoints.chain(nodes).collect()
}

fn of_endpoint(seen: &EndpointSeen) -> Option<Finding> {
    let problem = seen.problem.as_ref()?;
    let finding = match (&seen.listener, problem) {
        (Some(who), Error::Unexpected(_) | Error::Rejected { .. }) => Finding::error(
            "ports",
            format!("the port is taken by {who}, which is no hexkv node: {problem}"),
            "stop it, or give the node another PORT; or name another endpoint (--endpoints)",
        ),
        (Some(who), _) => Finding::error(
            "ports",
            format!("{who} listens and does not answer as a hexkv node: {problem}"),
            "see its log; stop it if it is something else, or name another endpoint (--endpoints)",
        ),
        (None, _) => Finding::error(
            "ports",
            format!("no hexkv node answers: {problem}"),
            "start the node, or name another endpoint (--endpoints); on another machine, see BIND, ADVERTISE and firewalls",
        ),
    };
    Some(finding.of(&seen.endpoint))
}

fn of_node(node: &NodeSeen, disk_free_min: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(why) = node.not_ready.as_ref().filter(|_| node.check.is_ok()) {
        found.push(Finding::error(
            "ready",
            format!("it serves no linearizable requests: {why}"),
            "see the other findings; `client status --explain` says what is waited for",
        ));
    }
    match &node.check {
        Ok(check) => {
            found.extend(of_disk(check, disk_free_min));
            found.extend(of_limits(check));
            found.extend(of_cookie(check));
            found.extend(of_peers(check));
        }
        Err(why) => found.push(Finding::error(
            "members",
            format!("it does not answer at {}: {why}", node.http),
            "start it; if it is gone for good: `client remove NAME`",
        )),
    }
    found.into_iter().map(|finding| finding.of(&node.name)).collect()
}

fn of_disk(check: &NodeCheck, disk_free_min: u64) -> Vec<Finding> {
    let dir = &check.data_dir;
    let mut found = Vec::new();
    let free = format!("{} has {} MiB free of {} MiB", dir.path, dir.free_bytes >> 20, dir.total_bytes >> 20);
    let next = "free some, or move DATA_DIR to a larger disk: a leader whose disk is full refuses writes";
    if let Some(problem) = &dir.problem {
        let (why, todo) = problem.split_once(" To do: ").unwrap_or((problem, next));
        let why = why.trim_end_matches('.');
        found.push(match dir.refuses_writes {
            true => Finding::error("disk", why, todo),
            false => Finding::warning("disk", why, todo),
        });
    } else if dir.free_bytes < DISK_FREE_ERROR_BYTES {
        found.push(Finding::error("disk", free, next));
    } else if dir.free_bytes < disk_free_min {
        found.push(Finding::warning("disk", free, next));
    }
    if let Some(why) = &dir.not_writable {
        found.push(Finding::error(
            "data_dir",
            format!("{} cannot be written to: {why}", dir.path),
            "give it to the user that runs the node (chown), and mount it for writing",
        ));
    }
    if u32::from_str_radix(&dir.mode, 8).is_ok_and(|mode| mode & MODE_WRITE_OF_OTHERS != 0) {
        found.push(Finding::warning(
            "data_dir",
            format!("others may write to {} (mode {})", dir.path, dir.mode),
            format!("chmod 700 {}", dir.path),
        ));
    }
    found
}

fn of_limits(check: &NodeCheck) -> Option<Finding> {
    let max = check.open_files_max?;
    let open = check.open_files.unwrap_or(0);
    let next =
        format!("raise the hard limit (`ulimit -Hn`, LimitNOFILE=) to {OPEN_FILES_MIN} or above and restart the node");
    if open.saturating_mul(100) > max.saturating_mul(OPEN_FILES_USED_PERCENT_MAX) {
        return Some(Finding::error(
            "open_files",
            format!("{open} of {max} files are open, connections included"),
            next,
        ));
    }
    (max < OPEN_FILES_MIN)
        .then(|| Finding::warning("open_files", format!("only {max} files may be open, connections included"), next))
}

fn of_cookie(check: &NodeCheck) -> Option<Finding> {
    if let Some(problem) = &check.cookie.problem {
        return Some(Finding::error(
            "cookie",
            format!("the cookie file is not what the node needs at its next start: {problem}"),
            "put the cluster's cookie there, readable by its owner alone (chmod 600), as it is on the other nodes",
        ));
    }
    let (what, next) = check.cookie.advice.as_ref()?.split_once("; ")?;
    Some(Finding::warning("cookie", what, next))
}

fn of_peers(check: &NodeCheck) -> Vec<Finding> {
    let mut found = Vec::new();
    for peer in &check.peers {
        let detail = peer.detail.as_deref().unwrap_or_default();
        match peer.result {
            PeerResult::Ok => {}
            PeerResult::CookieDiffers => found.push(Finding::error(
                "cookie",
                format!("{} has another cookie", peer.name),
                "give both nodes the same COOKIE (or the same file, COOKIE_FILE) and restart the one that is wrong",
            )),
            PeerResult::Refused => found.push(Finding::error(
                "raft_port",
                format!("{} at {} refuses this node: {detail}", peer.name, peer.raft),
                "see which node listens there, and `client status` at both",
            )),
            PeerResult::Unreachable => found.push(Finding::error(
                "raft_port",
                format!("{} is not reached at its raft port {}: {detail}", peer.name, peer.raft),
                "see whether it runs, and that RAFT_PORT, BIND, ADVERTISE and firewalls let this node in",
            )),
        }
        if let (Some(resolved), Some(who)) = (&peer.resolved, &peer.elsewhere) {
            found.push(Finding::warning(
                "names",
                format!("the name {} leads to {resolved}, and it is at {}: {who}", peer.name, peer.raft),
                "correct CLUSTER_NODES, or see who registered that name with the port mapper",
            ));
        }
        if let Some(why) = &peer.unresolved {
            found.push(Finding::warning(
                "names",
                format!("the name {} leads nowhere: {why}", peer.name),
                "members reach each other all the same; to join by name, start the port mapper there (EPMD_PORT) or use NAME@HOST:PORT",
            ));
        }
    }
    if !["ok", "off"].contains(&check.port_mapper.as_str()) {
        found.push(Finding::warning(
            "names",
            format!("the port mapper does not lead to this node: {}", check.port_mapper),
            "see what listens on EPMD_PORT of its host; the node registers again by itself once that is a port mapper",
        ));
    }
    let mut told = BTreeSet::new();
    found.retain(|finding| told.insert((finding.check, finding.what.clone())));
    found
}
