//! What is in flight, and who waits.

use std::{fmt, sync::Arc};

use super::page::Page;
use crate::{node::Node, reads::Basis};

pub(super) fn tell(page: &mut Page<'_>, node: &Arc<Node>) -> fmt::Result {
    let (count, bytes) = node.admission.in_flight();
    page.gauge("hexkv_proposals_in_flight", "Changes in flight on this node", count as f64)?;
    page.gauge("hexkv_proposals_in_flight_bytes", "Their size, rounded up to KiB each", bytes as f64)?;
    let (connections_max, room) = (node.config.connections_max, node.connections.available_permits());
    page.gauge("hexkv_http_connections", "Open HTTP connections", (connections_max - room) as f64)?;
    page.gauge(
        "hexkv_http_connections_max",
        "HTTP connections that are taken: CONNECTIONS_MAX, or fewer where the limit of open files is low",
        connections_max as f64,
    )?;
    page.gauge("hexkv_request_bodies", "Bodies that are being received or worked on", node.bodies.count() as f64)?;
    page.gauge("hexkv_request_bodies_bytes", "Room taken by them, buffers included", node.bodies.taken() as f64)?;
    let (_, bytes) = node.answers.in_flight();
    page.gauge("hexkv_listings_bytes", "Room taken by listings that are being sent", bytes as f64)?;
    let (watchers, held) = node.watches.stats();
    page.gauge("hexkv_watchers", "Watches on this node", watchers as f64)?;
    page.gauge("hexkv_watch_held_bytes", "What waits for watches that are behind", held as f64)?;
    page.gauge("hexkv_event_readers", "Readers of /api/cluster/events", node.events.readers() as f64)?;
    page.counters(
        "hexkv_peer_requests_refused",
        "Requests and Raft messages of other nodes that were refused: not_a_member, term_leap, implausible",
        node.metrics.peer_requests_refused(),
    )?;
    let Some(core) = node.core() else { return Ok(()) };
    page.gauge("hexkv_leases", "Leases in this node's state", core.state.lease_count() as f64)?;
    let rounds =
        [(Basis::Quorum, "quorum"), (Basis::Lease, "lease")].map(|(basis, name)| (name, core.reads.counts(basis)));
    page.counters(
        "hexkv_read_rounds",
        "Rounds that confirmed linearizable reads (quorum) or reads under the lease (lease); reads share them",
        rounds.map(|(name, counts)| ([("basis", name.to_owned())], counts.0 as f64)),
    )?;
    page.counters(
        "hexkv_reads_confirmed",
        "Reads that those rounds answered, the node's own checks included",
        rounds.map(|(name, counts)| ([("basis", name.to_owned())], counts.1 as f64)),
    )
}
