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

use super::{
    idempotency::{ChangeRequest, mark_replay},
    request::{BODY_BYTES_MAX, duration, json_with_body, list_limit, query},
};
use crate::{error::Error, node::Node};

const PATH_PREFIX: &str = "/api/leases/";
const KEEPALIVE: &str = "/keepalive";

type Answer = Result<Response<Body>, Error>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseQuery {
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

impl LeaseQuery {
    fn patience(&self, node: &Node) -> Duration {
        self.timeout.unwrap_or(node.config.request_timeout)
    }
}

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

/// `POST /api/leases`.
pub async fn grant(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<LeaseQuery>(request.uri())?;
    let patience = q.patience(&node);
    let asked = ChangeRequest::of(&request, patience)?;
    let (wanted, body) = json_with_body::<LeaseRequest>(request, BODY_BYTES_MAX, patience).await?;
    let ttl_ms = ttl_ms(wanted.ttl)?;
    let (id, replayed) = node.grant_lease(ttl_ms, &asked.with_body(&body)).await?;
    let mut response = Json(lease_answer(id, ttl_ms)).into_response();
    mark_replay(&mut response, replayed);
    Ok(response)
}

/// `POST /api/leases/{id}/keepalive`.
pub async fn keep_alive(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (id, q) = (id(request.uri())?, query::<LeaseQuery>(request.uri())?);
    let lease = node.keep_alive(id, q.patience(&node)).await?;
    Ok(Json(lease_answer(id, lease.ttl_ms)).into_response())
}

/// `DELETE /api/leases/{id}`: the lease and all its keys go, in one revision.
pub async fn revoke(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (id, q) = (id(request.uri())?, query::<LeaseQuery>(request.uri())?);
    let context = ChangeRequest::of(&request, q.patience(&node))?.with_body(&[]);
    let ((revision, deleted), replayed) = node.revoke_lease(id, &context).await?;
    let mut response = Json(DeleteAnswer { revision, deleted, prev: None }).into_response();
    mark_replay(&mut response, replayed);
    Ok(response)
}

/// `GET /api/leases/{id}`.
pub async fn show(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (id, q) = (id(request.uri())?, query::<LeaseQuery>(request.uri())?);
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

/// `GET /api/leases`. Pages follow the ids; each shows the leases that there are when it is read.
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
