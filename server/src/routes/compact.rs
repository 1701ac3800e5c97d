//! `/api/compact`: history is forgotten on request.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::Response,
};
use bytes::Bytes;
use hexkv_client::api::{Code, CompactAnswer, CompactRequest};
use hexkv_store::{command::Command, outcome::Outcome};

use super::{
    idempotency::{ChangeRequest, marked},
    openapi::{
        parameters::IdempotencyKey,
        problems::{Busy, Forgotten, KeyMismatch, NotServing, Refused, TooLarge, TooSlow, Unknown},
    },
    request::{BODY_BYTES_MAX, TimeoutQuery, json_with_body, query},
};
use crate::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
};

/// Forgets history.
///
/// Revisions below the one named can be read no more, on any node.
#[utoipa::path(post, path = "/api/compact", operation_id = "compact", tag = "watch",
    params(TimeoutQuery, IdempotencyKey),
    request_body(content = CompactRequest, example = json!({"revision": 1})),
    responses(
        (status = 200, description = "Forgotten", body = CompactAnswer, example = json!({"compacted_revision": 1})),
        Refused, TooSlow, KeyMismatch, Forgotten, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn compact(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    let timeout = query::<TimeoutQuery>(request.uri())?.patience(&node);
    let asked = ChangeRequest::of(&request, timeout)?;
    let (CompactRequest { revision }, body) = json_with_body(&node.bodies, request, BODY_BYTES_MAX, timeout).await?;
    if revision == 0 {
        return Err(Error::invalid("revision is the oldest one that stays readable, 1 or more"));
    }
    // Refused before it takes a place in the log. A read tells the revision; this key cannot be large.
    let options = ReadOptions { consistency: Consistency::Linearizable, min_revision: 0, max_staleness: None, timeout };
    let newest = node.read_key(Bytes::from_static(b"\0"), 0, &options).await?.revision;
    if revision > newest {
        return Err(Error::invalid(format!("revision {revision} is in the future; the newest is {newest}")));
    }
    let changed = node.propose_change(&Command::Compact(revision), &asked.with_body(&body)).await?;
    match changed.outcome {
        Outcome::Done => Ok(marked(CompactAnswer { compacted_revision: revision }, changed.replayed)),
        other => Err(Error::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}
