//! `/api/leases`: keys that go when their lease ends.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{Response, Uri},
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hexkv_client::api::{DeleteAnswer, LeaseAnswer, LeaseItem, LeaseListAnswer, LeaseRequest, LeaseStatusAnswer, Ttl};
use hexkv_raft_net::rpc::LeaseStatus;
use hexkv_store::lease::{LEASE_KEYS_SHOWN_MAX, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, LeaseRecord};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    idempotency::{ChangeRequest, marked},
    openapi::{
        parameters::{IdempotencyKey, LeaseInPath},
        problems::{Busy, KeyMismatch, NoSuchLease, NotServing, Refused, TooLarge, TooSlow, Unknown},
        schemas,
    },
    request::{BODY_BYTES_MAX, TimeoutQuery, duration, json_with_body, list_limit, query},
};
use crate::{error::Error, node::Node};

const PATH_PREFIX: &str = "/api/leases/";
const KEEPALIVE: &str = "/keepalive";

type Answer = Result<Response<Body>, Error>;

/// A time to live within its limits, in milliseconds.
pub(super) fn ttl_ms(ttl: Ttl) -> Result<u64, Error> {
    match ttl.millis() {
        millis @ LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX => Ok(millis),
        _ => Err(Error::invalid(format!(
            "a time to live is {} to {} days, not {ttl}",
            Ttl::from_millis(LEASE_TTL_MS_MIN),
            LEASE_TTL_MS_MAX / (24 * 60 * 60 * 1_000)
        ))),
    }
}

/// The lease in the path.
fn id(uri: &Uri) -> Result<u64, Error> {
    let path = uri.path().strip_prefix(PATH_PREFIX).unwrap_or_default();
    let text = path.strip_suffix(KEEPALIVE).unwrap_or(path);
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id > 0).ok_or_else(|| {
        Error::invalid(format!("{text:?} is no lease: a lease is a number from 1 on, as its grant answered it"))
    })
}

/// Grants a lease.
///
/// Keys are attached to it by `PUT /api/kv/{key}?lease=`, and go when it ends. 1 s to 365 days; 1,000,000 leases at most, of which
/// 50,000 are kept for each kind (granted like this, by a put with `ttl`, for locks, elections, names).
#[utoipa::path(post, path = "/api/leases", operation_id = "grant_lease", tag = "leases",
    params(TimeoutQuery, IdempotencyKey),
    request_body(content = LeaseRequest, examples(
        ("text" = (summary = "As a text", value = json!({"ttl": "30s"}))),
        ("seconds" = (summary = "In seconds", value = json!({"ttl": 30}))),
    )),
    responses(
        (status = 200, description = "Granted", body = LeaseAnswer,
            example = json!({"id": 6364136223846793_u64, "ttl": "30s", "ttl_ms": 30000})),
        Refused, TooSlow, TooLarge, KeyMismatch, Busy, NotServing, Unknown,
    ))]
pub async fn grant(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<TimeoutQuery>(request.uri())?;
    let patience = q.patience(&node);
    let asked = ChangeRequest::of(&request, patience)?;
    let (wanted, body) = json_with_body::<LeaseRequest>(&node.bodies, request, BODY_BYTES_MAX, patience).await?;
    let ttl_ms = ttl_ms(wanted.ttl)?;
    let (id, replayed) = node.grant_lease(ttl_ms, &asked.with_body(&body)).await?;
    Ok(marked(lease_answer(id, ttl_ms), replayed))
}

/// Keeps a lease alive.
///
/// It lives for its full time to live again, from when the request came. One that failed may have worked, and may be repeated.
#[utoipa::path(post, path = "/api/leases/{id}/keepalive", operation_id = "keep_lease_alive", tag = "leases",
    params(LeaseInPath, TimeoutQuery),
    responses(
        (status = 200, description = "It lives on", body = LeaseAnswer,
            example = json!({"id": 6364136223846793_u64, "ttl": "30s", "ttl_ms": 30000})),
        Refused, NoSuchLease, Busy, NotServing,
    ))]
pub async fn keep_alive(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (id, q) = (id(request.uri())?, query::<TimeoutQuery>(request.uri())?);
    let lease = node.keep_alive(id, q.patience(&node)).await?;
    Ok(Json(lease_answer(id, lease.ttl_ms)).into_response())
}

/// Ends a lease: it and all its keys go, in one revision.
#[utoipa::path(delete, path = "/api/leases/{id}", operation_id = "revoke_lease", tag = "leases",
    params(LeaseInPath, TimeoutQuery, IdempotencyKey),
    responses(
        (status = 200, description = "It ended", body = DeleteAnswer,
            example = json!({"revision": 19, "deleted": 2})),
        Refused, NoSuchLease, KeyMismatch, Busy, NotServing, Unknown,
    ))]
pub async fn revoke(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (id, q) = (id(request.uri())?, query::<TimeoutQuery>(request.uri())?);
    let context = ChangeRequest::of(&request, q.patience(&node))?.with_body(&[]);
    let ((revision, deleted), replayed) = node.revoke_lease(id, &context).await?;
    Ok(marked(DeleteAnswer { revision, deleted, prev: None }, replayed))
}

/// Shows a lease, with the first 1,000 of its keys.
#[utoipa::path(get, path = "/api/leases/{id}", operation_id = "show_lease", tag = "leases",
    params(LeaseInPath, TimeoutQuery),
    responses(
        (status = 200, description = "It lives", body = LeaseStatusAnswer,
            example = json!({"id": 6364136223846793_u64, "ttl": "30s", "ttl_ms": 30000, "remaining_ms": 29000,
                "granted_ms": 1700000000000_u64, "key_count": 1, "keys": ["worker/7"]})),
        Refused, NoSuchLease, Busy, NotServing,
    ))]
pub async fn show(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (id, q) = (id(request.uri())?, query::<TimeoutQuery>(request.uri())?);
    let LeaseStatus { view, remaining_ms } = node.lease(id, LEASE_KEYS_SHOWN_MAX, q.patience(&node)).await?;
    let lease = view.record.lease;
    let mut answer = LeaseStatusAnswer {
        id,
        ttl: Ttl::from_millis(lease.ttl_ms),
        ttl_ms: lease.ttl_ms,
        remaining_ms,
        granted_ms: lease.granted_ms,
        key_count: view.key_count,
        keys: Vec::new(),
        keys_base64: Vec::new(),
    };
    for key in &view.keys {
        match std::str::from_utf8(key) {
            Ok(text) => answer.keys.push(text.to_string()),
            Err(_) => answer.keys_base64.push(BASE64.encode(key)),
        }
    }
    Ok(Json(answer).into_response())
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Items on a page.
    #[param(value_type = Option<schemas::Limit>)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(value_type = Option<schemas::LeaseCursor>)]
    cursor: Option<String>,
    /// Give up after; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    timeout: Option<Duration>,
}

/// Lists leases by id.
///
/// Each page shows the leases that there are when it is read.
#[utoipa::path(get, path = "/api/leases", operation_id = "list_leases", tag = "leases",
    params(ListQuery),
    responses((status = 200, description = "A page", body = LeaseListAnswer), Refused, Busy, NotServing))]
pub async fn list(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<ListQuery>(request.uri())?;
    let limit = list_limit(q.limit)?;
    let after = match &q.cursor {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| Error::invalid("the cursor is not one that this API gave; take it from \"next\" as it is"))?,
    };
    let patience = q.timeout.unwrap_or(node.config.request_timeout);
    let page = node.leases(after, limit, patience).await?;
    let next = page.items.last().filter(|_| page.more).map(|last| last.id.to_string());
    let items: Vec<LeaseItem> = page.items.iter().map(lease_item).collect();
    Ok(Json(LeaseListAnswer { count: items.len() as u64, items, next }).into_response())
}

fn lease_answer(id: u64, ttl_ms: u64) -> LeaseAnswer {
    LeaseAnswer { id, ttl: Ttl::from_millis(ttl_ms), ttl_ms }
}

fn lease_item(record: &LeaseRecord) -> LeaseItem {
    let ttl_ms = record.lease.ttl_ms;
    LeaseItem { id: record.id, ttl: Ttl::from_millis(ttl_ms), ttl_ms, granted_ms: record.lease.granted_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_in_the_path_is_a_number() {
        let parse = |path: &str| id(&path.parse().expect("a URI"));
        assert_eq!(parse("/api/leases/7").expect("fine"), 7);
        assert_eq!(parse("/api/leases/7/keepalive").expect("fine"), 7);
        for bad in ["0", "-1", "+1", "x", "1x", "%31", "18446744073709551616", "0x7"] {
            assert!(parse(&format!("/api/leases/{bad}")).is_err(), "{bad}");
        }
    }
}
