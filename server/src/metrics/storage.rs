//! Log, state, history and snapshots.

use std::fmt;

use super::page::Page;
use crate::{disk::Condition, node::Node};

pub(super) fn tell(page: &mut Page<'_>, node: &Node) -> fmt::Result {
    let Some(core) = node.core() else { return Ok(()) };
    let (log, timings) = (core.log.stats(), core.log.timings());
    page.histogram(
        "hexkv_wal_sync_duration_seconds",
        "Time of one sync of the write-ahead log",
        &timings.sync_seconds,
    )?;
    page.histogram(
        "hexkv_wal_batch_operations",
        "Appends and votes that shared one write and one sync",
        &timings.batch_operations,
    )?;
    page.counter(
        "hexkv_wal_written_bytes",
        "Bytes of entries written to the log since it was opened",
        log.appended_bytes as f64,
    )?;
    page.gauge("hexkv_wal_segments", "Files of the log in use", log.segments as f64)?;
    page.gauge(
        "hexkv_wal_disk_bytes",
        "Disk that the log takes, the file prepared ahead included",
        log.disk_bytes as f64,
    )?;
    page.gauge("hexkv_wal_entry_bytes", "Bytes of the entries that the log keeps", log.entry_bytes as f64)?;
    state(page, &core.state)?;
    snapshots(page, &core.state)
}

/// The disk of the data.
pub(super) fn disk(page: &mut Page<'_>, node: &Node) -> fmt::Result {
    let space = node.disk.space();
    let known = |value: fn(&hexkv_store::fs::Space) -> u64| space.as_ref().map(|space| value(space) as f64);
    page.gauge_if(
        "hexkv_disk_free_bytes",
        "What can still be written to the disk of the data",
        known(|s| s.free_bytes),
    )?;
    page.gauge_if("hexkv_disk_total_bytes", "Size of the disk of the data", known(|s| s.total_bytes))?;
    let is = |yes: bool| f64::from(u8::from(yes));
    page.gauge(
        "hexkv_disk_degraded",
        "1 when the disk runs full, is full or read-only, fails or does not answer",
        is(node.disk_problem().is_some()),
    )?;
    page.gauge(
        "hexkv_disk_refuses_writes",
        "1 when this node as the leader refuses writes, because its disk is full, read-only or fails",
        is(matches!(node.disk.condition(), Condition::Full(_) | Condition::Unwritable(_))),
    )
}

fn state(page: &mut Page<'_>, state: &hexkv_store::state_machine::State) -> fmt::Result {
    page.gauge("hexkv_revision", "Newest revision of this node's state", state.revision() as f64)?;
    page.gauge(
        "hexkv_compacted_revision",
        "Revisions up to this one, which itself is readable, may be forgotten",
        state.compacted_revision() as f64,
    )?;
    // A state that cannot be read stops the node, which says why.
    let stats = state.stats().inspect_err(|e| tracing::debug!(error = %e, "the state's size cannot be read")).ok();
    let of = |value: fn(&hexkv_store::state_machine::StateStats) -> f64| stats.as_ref().map(value);
    page.gauge_if(
        "hexkv_state_disk_bytes",
        "Disk that sled takes; memory with ENGINE=memory",
        of(|s| s.engine_bytes as f64),
    )?;
    page.gauge_if(
        "hexkv_state_unpersisted_entries",
        "Applied entries that sled does not hold yet",
        of(|s| s.overlay_entries as f64),
    )?;
    page.gauge_if("hexkv_state_unpersisted_bytes", "Their changes, in bytes", of(|s| s.overlay_bytes as f64))?;
    page.gauge_if("hexkv_change_log_bytes", "Disk that the history takes", of(|s| s.history_bytes as f64))?;
    page.gauge_if("hexkv_change_log_segments", "Files of the history", of(|s| s.history_segments as f64))?;
    page.gauge_if(
        "hexkv_idempotency_entries",
        "Outcomes that are kept for requests sent again",
        of(|s| s.dedupe_entries as f64),
    )?;
    page.gauge_if("hexkv_idempotency_bytes", "What they take, in bytes", of(|s| s.dedupe_bytes as f64))
}

fn snapshots(page: &mut Page<'_>, state: &hexkv_store::state_machine::State) -> fmt::Result {
    let counts = state.snapshot_counts();
    page.histogram("hexkv_snapshot_build_duration_seconds", "Time of building one snapshot", &counts.build_seconds)?;
    page.counter("hexkv_snapshots_built", "Snapshots built by this node", counts.built.get() as f64)?;
    page.counter("hexkv_snapshots_installed", "Snapshots taken over from another node", counts.installed.get() as f64)?;
    page.gauge(
        "hexkv_snapshot_bytes",
        "Size of the newest snapshot; 0 = there is none",
        state.snapshot_bytes() as f64,
    )?;
    page.gauge(
        "hexkv_snapshot_index",
        "Log index of the newest snapshot; 0 = there is none",
        state.snapshot_index().unwrap_or(0) as f64,
    )
}
