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

use super::{
    coordination::{self, TokenQuery, check_text, name, ttl_ms, wait},
    idempotency::marked,
    openapi::{
        parameters::{IdempotencyKey, NameInPath},
        problems::{Busy, KeyMismatch, NotHolding, NotServing, Refused, Taken, TooLarge, TooSlow, Unknown},
    },
    request::{NoQuery, query},
};
use crate::{
    coordination::queue::{Entry, Place, Queue, token},
    error::Error,
    node::Node,
};

const PREFIX: &str = "/api/locks/";

type Answer = Result<Response<Body>, Error>;

/// Takes a lock, or waits for it.
///
/// First come, first served. 409 when it is not free within `wait` (not at all unless given, at most 24 h), 429 when 1,000 stand
/// in line. Waiting ends when the connection closes, or its sending side. The holder's fencing token is greater than that of every holder before.
#[utoipa::path(post, path = "/api/locks/{name}", operation_id = "acquire_lock", tag = "locks",
    params(NameInPath, IdempotencyKey),
    request_body(content = LockRequest, examples(
        ("waiting" = (value = json!({"ttl": "30s", "wait": "10s", "owner": "host-1"}))),
        ("defaults" = (value = json!({}))),
    )),
    responses(
        (status = 200, description = "It is held", body = LockAnswer,
            example = json!({"token": "5912837465018273", "fencing_token": 42, "ttl_ms": 30000})),
        Refused, TooSlow, KeyMismatch, Taken, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn acquire(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (place, replayed) = coordination::acquire(&node, request, PREFIX, Queue::lock, |wanted: LockRequest| {
        let owner = wanted.owner.unwrap_or_default();
        check_text("owner", &owner, true)?;
        let entry = Entry { owner, value: None, ttl_ms: ttl_ms(wanted.ttl)? };
        Ok((entry, wait(wanted.wait.as_deref())?))
    })
    .await?;
    Ok(marked(answer(place), replayed))
}

/// Renews a lock: its holder has it for its full time again.
#[utoipa::path(post, path = "/api/locks/{name}/renew", operation_id = "renew_lock", tag = "locks",
    params(NameInPath),
    request_body(content = RenewRequest, example = json!({"token": "5912837465018273"})),
    responses(
        (status = 200, description = "It is held", body = LockAnswer,
            example = json!({"token": "5912837465018273", "fencing_token": 42, "ttl_ms": 30000})),
        Refused, TooSlow, NotHolding, TooLarge, Busy, NotServing,
    ))]
pub async fn renew(State(node): State<Arc<Node>>, request: Request) -> Answer {
    Ok(Json(answer(coordination::renew(&node, request, PREFIX, Queue::lock).await?)).into_response())
}

/// Shows who holds a lock, and who waits for it.
#[utoipa::path(get, path = "/api/locks/{name}", operation_id = "show_lock", tag = "locks",
    params(NameInPath),
    responses(
        (status = 200, description = "The line", body = LockStatus,
            example = json!({"holder": {"owner": "host-1", "fencing_token": 42}, "waiters": [], "revision": 42})),
        Refused, TooLarge, Busy, NotServing,
    ))]
pub async fn status(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let line = Queue::lock(&name(request.uri(), PREFIX, "")?).look(&node, 0).await?;
    let mut places = line.places.into_iter();
    let holder = places.next();
    let holder = holder.map(|place| LockHolder { owner: place.entry.owner, fencing_token: place.fencing_token });
    let waiters = places.map(|place| place.entry.owner).collect();
    Ok(Json(LockStatus { holder, waiters, revision: line.revision }).into_response())
}

/// Releases a lock, or gives a place in its line up: the next one has it.
#[utoipa::path(delete, path = "/api/locks/{name}", operation_id = "release_lock", tag = "locks",
    params(NameInPath, TokenQuery, IdempotencyKey),
    responses(
        (status = 200, description = "Given up", body = ReleaseAnswer, example = json!({"released": true})),
        Refused, KeyMismatch, NotHolding, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn release(State(node): State<Arc<Node>>, request: Request) -> Answer {
    coordination::release(&node, request, PREFIX, Queue::lock).await
}

fn answer(place: Place) -> LockAnswer {
    LockAnswer { token: token(place.lease), fencing_token: place.fencing_token, ttl_ms: place.entry.ttl_ms }
}
