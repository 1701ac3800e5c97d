//! `/api/compact`: history is forgotten on request.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::Response,
    response::IntoResponse,
};
use hexkv_client::api::{Code, CompactAnswer, CompactRequest};
use hexkv_store::{command::Command, outcome::Outcome};
use serde::Deserialize;

use super::request::{duration, json, query};
use crate::{error::Error, node::Node};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompactQuery {
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

/// `POST /api/compact`: revisions below the one named can be read no more, on any node.
pub async fn compact(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    let q = query::<CompactQuery>(request.uri())?;
    let CompactRequest { revision } = json(request).await?;
    if revision == 0 {
        return Err(Error::invalid("revision is the oldest one that stays readable, 1 or more"));
    }
    let timeout = q.timeout.unwrap_or(node.config.request_timeout);
    match node.propose(&Command::Compact(revision), timeout).await? {
        Outcome::Done => Ok(Json(CompactAnswer { compacted_revision: revision }).into_response()),
        other => Err(Error::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}
