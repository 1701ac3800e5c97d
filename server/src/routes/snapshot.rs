//! `/api/snapshot`: the whole store as a file, while it serves.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Response, header},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use hexkv_client::{
    api::Code,
    backup::{Header, Sealer},
};
use hexkv_store::snapshot::{CHUNK_BYTES_MAX, SNAPSHOT_FORMAT_VERSION, SnapshotReader};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};

use super::{
    openapi::problems::{Busy, NotServing, Refused},
    request::{TimeoutQuery, query},
};
use crate::{
    core::{Core, SAVES_MAX, Saved},
    error::Error,
    kv::confirm,
    node::{Node, Position},
    reads::Basis,
    transfers::Transfer,
};

/// Longest wait for room, unless a request says: clients that do not read their snapshots are cut off in this time.
const ROOM_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// How often a save that waits for room checks whether another one is read too slowly.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Saves the store.
///
/// Everything that was acknowledged before, at one revision, in the form that `client snapshot verify` and `server restore`
/// read; its last 32 bytes are the SHA-256 of those before. Nobody waits while it is made; the answer begins when it is
/// complete on the node's disk, and `timeout` bounds only how long the node may take to find room (30 s where it is not given), since
/// it saves two at a time, and to learn what is committed. A client that takes nothing for 3 s, or less than 256 KiB in a second, is
/// cut off when another one waits. A standby holds no data and answers 503 with the addresses of those that do.
#[utoipa::path(get, path = "/api/snapshot", operation_id = "save_snapshot", tag = "cluster",
    params(TimeoutQuery),
    responses(
        (status = 200, description = "The file", content_type = "application/octet-stream", headers(
            ("X-Hexkv-Revision" = u64, description = "Revision of the state in it"),
            ("X-Hexkv-Applied-Index" = u64, description = "Index of the last log entry in it"),
            ("X-Hexkv-Cluster-Id" = String, description = "The cluster, in hexadecimal"),
            ("X-Hexkv-State-Hash" = String, description = "State hash, as `GET /api/cluster/hash` tells it"),
            ("Content-Disposition" = String, description = "A name for the file"),
        )),
        Refused, Busy, NotServing,
    ))]
pub async fn save(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    let (began, asked) = (Instant::now(), query::<TimeoutQuery>(request.uri())?.timeout);
    let until = |default: Duration| asked.map_or_else(|| Instant::now() + default, |timeout| began + timeout);
    let core = holding(&node)?;
    let room = room(&core, until(ROOM_TIMEOUT_DEFAULT)).await?;
    confirm(&core, Basis::Quorum, until(node.config.request_timeout)).await?;
    let state = core.state.clone();
    // In a task: a client that goes away must not leave half of one behind.
    let saved = tokio::spawn(async move { state.save().await.map(|reader| (reader, room)) });
    let (reader, room) = match saved.await {
        Ok(saved) => saved?,
        Err(e) => return Err(Error::new(Code::Internal, format!("the snapshot was not made: {e}"))),
    };
    let about = describe(&node, &reader);
    tracing::info!(revision = about.revision, bytes = about.snapshot_bytes, "a snapshot is saved");
    let transfer = core.saving.begin(Saved { file: reader.file().clone(), room });
    Ok(answer(&about, transfer))
}

/// Room for another save, in the order of those that ask. One that its client reads too slowly is cut off for it.
async fn room(core: &Core, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
    let mut turn = std::pin::pin!(core.saves.clone().acquire_owned());
    loop {
        let wait = ROOM_CHECK_INTERVAL.min(deadline.saturating_duration_since(Instant::now()));
        match timeout(wait, &mut turn).await {
            Ok(room) => return Ok(room.expect("the core never closes its semaphore")),
            Err(_) if core.saving.cut_off_slowest() => {
                tracing::info!("a snapshot is read too slowly, and another one waits: it is cut off");
            }
            Err(_) if Instant::now() < deadline => {}
            Err(_) => {
                let why = format!("this node saves {SAVES_MAX} snapshots already; retry later, or ask another node");
                return Err(Error::new(Code::Overloaded, why));
            }
        }
    }
}

/// The core of a node that holds the data, or where to go.
fn holding(node: &Node) -> Result<Arc<Core>, Error> {
    if let Some(why) = node.divergence() {
        let why = format!("this node's state differs from the others' ({why}); ask another node");
        return Err(Error::new(Code::Unavailable, why));
    }
    match node.position() {
        Position::Holder => node.serving_core(),
        Position::Outside => Err(node.why_no_leader()),
        Position::Standby => {
            let info = node.cluster();
            let holders = info.members.iter().filter(|m| info.voters.contains(&m.node_id));
            let holders: Vec<String> = holders.map(|m| format!("http://{}/api/snapshot", m.http)).collect();
            let why = format!("this node is a standby and holds no data; ask one that does: {}", holders.join(", "));
            Err(Error::new(Code::Unavailable, why))
        }
    }
}

fn describe(node: &Node, reader: &SnapshotReader) -> Header {
    let (footer, counts) = (reader.footer(), reader.counts());
    Header {
        revision: footer.revision,
        compacted_revision: footer.compacted_revision,
        applied_index: footer.meta.last_log_id.map_or(0, |id| id.index),
        cluster_id: footer.cluster_id.map(|id| format!("{id:016x}")).unwrap_or_default(),
        state_hash: format!("{:032x}", footer.state_hash),
        keys: counts.keys,
        leases: counts.leases,
        outcomes: counts.dedupe,
        snapshot_bytes: reader.file().len_bytes(),
        snapshot_format: SNAPSHOT_FORMAT_VERSION,
        made_at: humantime::format_rfc3339_millis(node.environment.clock.now()).to_string(),
        made_by: node.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

fn answer(about: &Header, transfer: Transfer<Saved>) -> Response<Body> {
    let head = about.encode();
    let length = head.len() as u64 + about.snapshot_bytes + hexkv_client::backup::SUM_BYTES as u64;
    let name = format!("attachment; filename=\"hexkv-{}-{}.backup\"", about.cluster_id, about.revision);
    let mut response = Response::new(Body::from_stream(pieces(head.into(), about.snapshot_bytes, transfer)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let mut set = |name: &'static str, value: String| {
        let value = HeaderValue::from_str(&value).expect("hexadecimal digits and plain text");
        headers.insert(HeaderName::from_static(name), value);
    };
    set("content-disposition", name);
    set("x-hexkv-revision", about.revision.to_string());
    set("x-hexkv-applied-index", about.applied_index.to_string());
    set("x-hexkv-cluster-id", about.cluster_id.clone());
    set("x-hexkv-state-hash", about.state_hash.clone());
    response
}

/// Where the answer is.
enum At {
    Head(Bytes),
    Snapshot(u64),
    End,
}

/// The file, piece by piece as the client takes it; one piece in memory.
fn pieces(
    head: Bytes,
    snapshot_bytes: u64,
    transfer: Transfer<Saved>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let begin = (At::Head(head), Sealer::default(), 0, transfer);
    stream::try_unfold(begin, move |(at, mut sealer, taken, transfer)| async move {
        let (piece, next) = match at {
            At::Head(head) => (head, At::Snapshot(0)),
            At::Snapshot(offset) if offset < snapshot_bytes => {
                let file = transfer.take(taken, |saved| saved.file.clone())?;
                let read = tokio::task::spawn_blocking(move || file.read_chunk(offset, CHUNK_BYTES_MAX)).await;
                let piece = read.map_err(std::io::Error::other)??;
                let next = At::Snapshot(offset + piece.len() as u64);
                (piece, next)
            }
            At::Snapshot(_) => {
                let sum = Bytes::copy_from_slice(&sealer.seal());
                return Ok(Some((sum, (At::End, Sealer::default(), 0, transfer))));
            }
            At::End => return Ok(None),
        };
        sealer.pass(&piece);
        let taken = piece.len();
        Ok(Some((piece, (next, sealer, taken, transfer))))
    })
}
