//! `/api/compact`: history is forgotten on request.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::Response,
    response::IntoResponse,
};
use bytes::Bytes;
use hexkv_client::api::{Code, CompactAnswer, CompactRequest};
use hexkv_store::{command::Command, outcome::Outcome};
use serde::Deserialize;

use super::request::{BODY_BYTES_MAX, duration, json_within, query};
use crate::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompactQuery {
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

/// `POST /api/compact`: revisions below the one named can be read no more, on any node.
pub async fn compact(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    let q = query::<CompactQuery>(request.uri())?;
    let timeout = q.timeout.unwrap_or(node.config.request_timeout);
    let CompactRequest { revision } = json_within(request, BODY_BYTES_MAX, timeout).await?;
    if revision == 0 {
        return Err(Error::invalid("revision is the oldest one that stays readable, 1 or more"));
    }
    // Refused before it takes a place in the log. A read tells the revision; this key cannot be large.
    let options = ReadOptions { consistency: Consistency::Linearizable, min_revision: 0, max_staleness: None, timeout };
    let newest = node.read_key(Bytes::from_static(b"\0"), 0, &options).await?.revision;
    if revision > newest {
        return Err(Error::invalid(format!("revision {revision} is in the future; the newest is {newest}")));
    }
    match node.propose(&Command::Compact(revision), timeout).await? {
        Outcome::Done => Ok(Json(CompactAnswer { compacted_revision: revision }).into_response()),
        other => Err(Error::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}
