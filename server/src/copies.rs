//! What a node does when another member refuses its process: it uses a copy of a data directory, or an old state of its own.
//!
//! A copied node is refused for as long as the first process answers. It stops taking part in consensus at once, so that copies of
//! several nodes form no second cluster, and ends when the refusals go on for [`COPY_REFUSED_MAX`]. It goes on when they cease
//! (the first process had been about to end), and takes no notice of them while its leader accepts it: then the copy is the
//! other one, which the refusing member met first.
//!
//! A start that ends as a copy is not counted: should the first process be gone later, the directory is recognized as an old one.
//! The limit of this: a copy that was made while its node ran counts one start more than that one, as an ordinary restart does.
//! Only the leader to which the node acknowledged entries finds out what the copy lacks.

use std::{sync::Arc, time::Duration};

use hexkv_raft_net::{NodeStart, Refusal};
use hexkv_store::{identity::SeenStart, log::Cut};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    node::{Barred, Node},
    rebuild,
};

/// A process that is refused as a copy ends after this time.
pub const COPY_REFUSED_MAX: Duration = Duration::from_secs(3);
/// Without a refusal for this long, a process takes part in consensus again. Members are asked more often than that.
const REFUSALS_CEASED: Duration = Duration::from_secs(3);
/// The leader accepts a process that it answered within this time.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(2);
/// After the starts of other members could not be saved.
const SAVE_RETRY: Duration = Duration::from_secs(1);

/// Refusals of this process as a copy.
#[derive(Debug, Clone, Copy)]
struct Refused {
    since: Instant,
    last: Instant,
}

/// Watches for refusals of this node until it stops.
pub async fn run(node: Arc<Node>) {
    let mut refusals = node.network.refusals();
    let mut refused: Option<Refused> = None;
    loop {
        let ceased = refused.map(|r| r.last + REFUSALS_CEASED);
        tokio::select! {
            changed = refusals.changed() => if changed.is_err() { return },
            () = sleep_until(ceased) => {
                refused = None;
                node.bar_from_consensus(None);
                tracing::info!("no member refuses this process any more; it takes part in consensus again");
                continue;
            }
            () = node.stopping.cancelled() => return,
        }
        let refusal = refusals.borrow_and_update().clone();
        match refusal {
            Some(refusal @ Refusal::CopiedNode { .. }) => refused = note_copy(&node, refused, &refusal).await,
            // One that was meant for this node's life of before comes late: the new life is not to be barred.
            Some(refusal @ Refusal::RolledBack { has, .. }) if has == node.identity().incarnation => {
                lost_entries(&node, refusal.to_string());
            }
            Some(_) | None => {}
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn note_copy(node: &Node, refused: Option<Refused>, refusal: &Refusal) -> Option<Refused> {
    if node.was_accepted_within(ACCEPTED_WITHIN) {
        if refused.is_some() {
            node.bar_from_consensus(None);
        }
        return None;
    }
    let now = Instant::now();
    let Some(before) = refused else {
        node.bar_from_consensus(Some(Barred::Copy));
        tracing::error!(%refusal, "this process is refused as a copy of a running node; it stops unless that one ends");
        return Some(Refused { since: now, last: now });
    };
    if now - before.since >= COPY_REFUSED_MAX {
        let mut data = node.data.clone().lock_owned().await;
        let taken_back = node.environment.driver.run(move || data.take_start_back()).await;
        if let Err(e) = taken_back.map_err(|e| e.to_string()).and_then(|done| done.map_err(|e| e.to_string())) {
            tracing::warn!(error = %e, "the refused start stays counted");
        }
        node.stop_with(format!("it is a copy of a node that runs: {refusal}"));
    }
    Some(Refused { last: now, ..before })
}

/// This node acknowledged entries that its disk does not hold any more. It neither votes nor acknowledges anything, and comes
/// back as a new member.
pub fn lost_entries(node: &Arc<Node>, why: String) {
    if node.identity().cluster_id.is_none() || !node.bar_from_consensus(Some(Barred::LostEntries)) {
        return;
    }
    if node.divergence().is_none() {
        node.set_divergent(why);
        rebuild::begin(node);
    }
}

/// Has this node rebuilt when committed entries are cut from its log: its state holds what the cluster lost.
pub async fn watch_cuts(node: Arc<Node>, mut cut: watch::Receiver<Option<Cut>>, cancel: CancellationToken) {
    let found = tokio::select! {
        Ok(found) = cut.wait_for(Option::is_some) => *found,
        () = cancel.cancelled() => None,
    };
    if let Some(found) = found {
        node.set_divergent(found.to_string());
        rebuild::begin(&node);
    }
}

/// Keeps on disk which start of each member was seen last, until the node stops; `saved` is there already. A member that comes
/// back with an older data directory is recognized after a restart of this node, too.
pub async fn keep_starts(node: Arc<Node>, mut saved: Vec<SeenStart>) {
    let mut changes = node.network.starts_changed();
    changes.mark_changed();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = node.stopping.cancelled() => return,
        }
        let starts: Vec<SeenStart> = node.network.starts().into_iter().map(to_stored).collect();
        if starts == saved {
            continue;
        }
        let (data, stored) = (node.data.clone().lock_owned().await, starts.clone());
        let stored = node.environment.driver.run(move || data.store_starts(&stored)).await;
        match stored.map_err(|e| e.to_string()).and_then(|stored| stored.map_err(|e| e.to_string())) {
            Ok(()) => {
                for start in starts.iter().filter(|start| !saved.contains(start)) {
                    tracing::info!(
                        node = format_args!("{:016x}", start.node_id),
                        start = start.incarnation,
                        "a member's start is remembered"
                    );
                }
                saved = starts;
            }
            Err(e) => {
                tracing::warn!(error = %e, "the starts of other members were not saved; it is tried again");
                tokio::time::sleep(SAVE_RETRY).await;
                changes.mark_changed();
            }
        }
    }
}

fn to_stored((node_id, NodeStart { process, incarnation }): (u64, NodeStart)) -> SeenStart {
    SeenStart { node_id, process, incarnation }
}

/// What [`keep_starts`] saved, as the network takes it in.
pub fn from_stored(stored: &[SeenStart]) -> impl Iterator<Item = (u64, NodeStart)> {
    stored.iter().map(|s| (s.node_id, NodeStart { process: s.process, incarnation: s.incarnation }))
}
