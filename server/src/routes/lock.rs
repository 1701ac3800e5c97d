//! `/api/locks`: one holder at a time, first come first served.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::Response,
    response::IntoResponse,
};
use hexkv_client::api::{LockAnswer, LockHolder, LockRequest, LockStatus, ReleaseAnswer, RenewRequest};
use serde::Deserialize;

use super::{
    coordination::{check_text, name, ttl_ms, wait},
    request::{BODY_BYTES_MAX, json_within, query},
};
use crate::{
    coordination::queue::{Entry, Place, Queue, lease_of, token},
    error::Error,
    node::Node,
};

const PREFIX: &str = "/api/locks/";

type Answer = Result<Response<Body>, Error>;

/// Routes that take no query parameters refuse any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

/// The token of whoever gives a place up.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenQuery {
    pub(super) token: String,
}

/// `POST /api/locks/{name}`: takes the lock, or waits for it.
pub async fn acquire(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let queue = Queue::lock(&name(request.uri(), PREFIX, "")?);
    let wanted: LockRequest = json_within(request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    let owner = wanted.owner.unwrap_or_default();
    check_text("owner", &owner, true)?;
    let entry = Entry { owner, value: None, ttl_ms: ttl_ms(wanted.ttl)? };
    let place = queue.acquire(&node, entry, wait(wanted.wait.as_deref())?).await?;
    Ok(Json(answer(place)).into_response())
}

/// `POST /api/locks/{name}/renew`: the holder has it for its full time again.
pub async fn renew(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let queue = Queue::lock(&name(request.uri(), PREFIX, "/renew")?);
    let wanted: RenewRequest = json_within(request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    let place = queue.renew(&node, lease_of(&wanted.token)?).await?;
    Ok(Json(answer(place)).into_response())
}

/// `GET /api/locks/{name}`: who holds it, and who waits.
pub async fn status(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let line = Queue::lock(&name(request.uri(), PREFIX, "")?).look(&node, 0).await?;
    let mut places = line.places.into_iter();
    let holder = places.next();
    let holder = holder.map(|place| LockHolder { owner: place.entry.owner, fencing_token: place.fencing_token });
    let waiters = places.map(|place| place.entry.owner).collect();
    Ok(Json(LockStatus { holder, waiters, revision: line.revision }).into_response())
}

/// `DELETE /api/locks/{name}?token=`: the next one has it.
pub async fn release(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<TokenQuery>(request.uri())?;
    Queue::lock(&name(request.uri(), PREFIX, "")?).release(&node, lease_of(&q.token)?).await?;
    Ok(Json(ReleaseAnswer { released: true }).into_response())
}

fn answer(place: Place) -> LockAnswer {
    LockAnswer { token: token(place.lease), fencing_token: place.fencing_token, ttl_ms: place.entry.ttl_ms }
}
