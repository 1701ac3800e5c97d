//! `/api/cluster/events`: what happens to the cluster, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, header},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::broadcast::error::RecvError;

use super::{
    openapi::problems::{Busy, NotServing, Refused},
    request::{NoQuery, query},
};
use crate::{error::Error, events::Reader, http_server::Connection, node::Node};

/// Between two comments that show that the stream lives, where nothing happens.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Such a comment.
const KEEPALIVE: Bytes = Bytes::from_static(b": alive\n\n");

/// Tells what happens to the cluster, as this node sees it.
///
/// Server-sent events without an end. The first is `state`: the cluster as it is, so that a client that connects again is level;
/// it comes again when the node changes clusters. Then `node_down`, `node_up`, `leader`, `membership`, `replication_factor`, and on
/// the leader `step` (of its reconciler). Before the stream ends: `overflow` (this client reads too slowly) or `closed`. Ids count
/// the events of this node's process; `Last-Event-ID` has no effect. A comment every 5 s shows that the stream lives. A node has
/// 1,024 readers; one more takes the place of the oldest, whose stream ends with `closed`: it connects again.
#[utoipa::path(get, path = "/api/cluster/events", operation_id = "cluster_events", tag = "cluster",
    responses(
        (status = 200, description = "Events", body = String, content_type = "text/event-stream",
            headers(("Cache-Control" = String, description = "`no-cache`")),
            example = json!("event: node_down\ndata: {\"time\":\"2026-01-01T12:00:00.000Z\",\"node\":\"hex_hub1@127.0.0.1\",\"member\":\"hex_hub2@127.0.0.1\"}\nid: 18\n\n")),
        Refused, Busy, NotServing,
    ))]
pub async fn events(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    query::<NoQuery>(request.uri())?;
    let reader = node.follow_events();
    if let Some(connection) = request.extensions().get::<Connection>() {
        connection.streams();
    }
    let mut response = Response::new(Body::from_stream(chunks(node, reader)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn chunks(node: Arc<Node>, reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some((node, reader)), |open| async move {
        let (node, mut reader) = open?;
        if let Some(first) = reader.first.take() {
            return Some((Ok(first), Some((node, reader))));
        }
        let last = tokio::select! {
            biased;
            told = reader.feed.recv() => match told {
                Ok(event) => return Some((Ok(event), Some((node, reader)))),
                Err(RecvError::Lagged(_)) => {
                    node.events_end("overflow", "this client reads too slowly; connect again, the state comes first")
                }
                Err(RecvError::Closed) => node.events_end("closed", "this node stops; ask another node"),
            },
            () = reader.replaced.cancelled() => {
                node.events_end("closed", "this node has the most readers that it takes, and a newer one took this place; connect again")
            }
            () = node.stopping.cancelled() => node.events_end("closed", "this node stops; ask another node"),
            () = tokio::time::sleep(KEEPALIVE_INTERVAL) => return Some((Ok(KEEPALIVE), Some((node, reader)))),
        };
        Some((Ok(last), None))
    })
}
