//! Changes of keys: put, delete, delete a range.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use hexkv_client::api::{Code, DeleteAnswer, PutAnswer, Ttl};
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, Txn, TxnOp},
    lease::{self, LeaseKind},
    outcome::{OpResult, Outcome, TxnOutcome},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    super::{
        idempotency::{ChangeRequest, marked},
        lease::ttl_ms,
        openapi::{
            parameters::{IdempotencyKey, IfAbsent, IfMatch, KeyInPath},
            problems::{
                Busy, ConditionFailed, KeyMismatch, NoSuchLease, NotServing, Refused, TooLarge, TooSlow, Unknown,
            },
            schemas,
        },
        preconditions::{Representation, change_conditions, etag},
        record::item,
        request::{check_lease, check_range_is_named, duration, key, query, range, stored_content_type, value},
    },
    Answer, PATH_PREFIX, condition_failed, unexpected,
};
use crate::{bodies::Received, error::Error, node::Node, proposals::ChangeContext};

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PutQuery {
    /// Answer the replaced record, too.
    #[serde(default)]
    #[param(value_type = schemas::Flag)]
    prev: bool,
    /// Attach the key to this lease.
    #[param(value_type = Option<schemas::LeaseId>)]
    lease: Option<u64>,
    /// Grant a lease that lives so long, and attach the key to it; not with `lease`. It ends with the key, too: when the key is
    /// written again, deleted or attached to another lease, and no other key is attached to it.
    #[param(example = json!("30s"))]
    ttl: Option<Ttl>,
    /// Give up after; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    timeout: Option<Duration>,
}

impl PutQuery {
    /// The lease to attach to, 0 = none, and the operation that grants it where that is asked for.
    fn lease(&self) -> Result<(u64, Option<TxnOp>), Error> {
        check_lease(self.lease)?;
        match (self.lease, self.ttl) {
            (Some(_), Some(_)) => Err(Error::invalid("give lease or ttl, not both: ttl grants a lease of its own")),
            (lease, None) => Ok((lease.unwrap_or(0), None)),
            (None, Some(ttl)) => {
                let id = lease::random_id();
                Ok((id, Some(TxnOp::GrantLeaseFor { id, ttl_ms: ttl_ms(ttl)?, kind: LeaseKind::Key })))
            }
        }
    }
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ChangeQuery {
    /// Answer the removed record, too.
    #[serde(default)]
    #[param(value_type = schemas::Flag)]
    prev: bool,
    /// Give up after; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    timeout: Option<Duration>,
}

/// Writes a key: the body becomes its value.
///
/// Any bytes, none at all too, up to `VALUE_BYTES_MAX` (1.5 MiB); any `Content-Type` of up to 256 bytes, which is stored and
/// given back. Without `lease` and `ttl`, a lease that the key had is detached.
#[utoipa::path(put, path = "/api/kv/{*key}", operation_id = "put_key", tag = "kv",
    params(KeyInPath, PutQuery, IfMatch, IfAbsent, IdempotencyKey),
    request_body(description = "The value", content(
        (schemas::Octets = "application/octet-stream"),
        (String = "text/plain", example = json!("hello")),
    )),
    responses(
        (status = 200, description = "Written", body = PutAnswer,
            headers(("ETag" = String, description = "The revision in quotes")),
            example = json!({"revision": 18, "create_revision": 17, "version": 2})),
        Refused, NoSuchLease, TooSlow, ConditionFailed, TooLarge, KeyMismatch, Busy, NotServing, Unknown,
    ))]
pub async fn put_key(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (key, q) = (key(request.uri(), PATH_PREFIX)?, query::<PutQuery>(request.uri())?);
    let (lease, grant) = q.lease()?;
    let conditions = change_conditions(request.headers())?;
    let content_type = content_type(request.headers())?;
    let patience = q.timeout.unwrap_or(node.config.request_timeout);
    let asked = ChangeRequest::of(&request, patience)?;
    // The room is held until the change is done.
    let Received { bytes: value, room: _room } =
        value(&node.bodies, request.into_body(), node.config.value_bytes_max, patience).await?;
    let context = asked.with_body(&value);
    let put = TxnOp::Put { key: key.clone(), value, content_type, lease, prev: q.prev };
    let operations = grant.into_iter().chain([put]).collect();
    let (outcome, replayed) = change(&node, &key, conditions, operations, &context).await?;
    let granted = outcome.results.iter().find_map(OpResult::granted_lease);
    match outcome.results.into_iter().last() {
        Some(OpResult::Put { create_revision, version, prev }) => {
            let prev = prev.map(|record| item(&key, &record, true));
            // A replay's lease is the one that was granted then.
            let lease = granted.or((lease != 0).then_some(lease));
            let answer = PutAnswer { revision: outcome.revision, create_revision, version, lease, prev };
            let mut response = marked(answer, replayed);
            response.headers_mut().insert(header::ETAG, etag(outcome.revision, Representation::Raw));
            Ok(response)
        }
        other => Err(unexpected(&other)),
    }
}

/// Removes a key.
///
/// 200 also when there was nothing to delete; that takes no revision.
#[utoipa::path(delete, path = "/api/kv/{*key}", operation_id = "delete_key", tag = "kv",
    params(KeyInPath, ChangeQuery, IfMatch, IfAbsent, IdempotencyKey),
    responses(
        (status = 200, description = "It is not there", body = DeleteAnswer,
            example = json!({"revision": 19, "deleted": 1})),
        Refused, ConditionFailed, TooLarge, KeyMismatch, Busy, NotServing, Unknown,
    ))]
pub async fn delete_key(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (key, q) = (key(request.uri(), PATH_PREFIX)?, query::<ChangeQuery>(request.uri())?);
    let conditions = change_conditions(request.headers())?;
    let context = change_without_body(&node, &request, q.timeout)?;
    let delete = TxnOp::Delete { key: key.clone(), prev: q.prev };
    let (outcome, replayed) = change(&node, &key, conditions, vec![delete], &context).await?;
    match outcome.results.into_iter().next() {
        Some(OpResult::Delete { deleted, prev }) => {
            let prev = prev.map(|record| item(&key, &record, true));
            Ok(marked(DeleteAnswer { revision: outcome.revision, deleted, prev }, replayed))
        }
        other => Err(unexpected(&other)),
    }
}

/// Operations on `key`, under conditions that must all hold. 412 carries the key's current ETag.
async fn change(
    node: &Node,
    key: &Bytes,
    conditions: Vec<(CompareTarget, CompareOp)>,
    success: Vec<TxnOp>,
    context: &ChangeContext,
) -> Result<(TxnOutcome, bool), Error> {
    let failure =
        if conditions.is_empty() { Vec::new() } else { vec![TxnOp::Get { key: key.clone(), keys_only: true }] };
    let compare = conditions.into_iter().map(|(target, op)| Compare { key: key.clone(), target, op }).collect();
    let command = Command::Txn(Txn { compare, success, failure });
    let (outcome, replayed) = propose_txn(node, &command, context).await?;
    if outcome.succeeded {
        return Ok((outcome, replayed));
    }
    let mut error = condition_failed();
    error.replayed = replayed;
    if let Some(OpResult::Get(Some(current))) = outcome.results.first() {
        error.current_revision = Some(current.record.mod_revision);
    }
    Err(error)
}

/// The context of a change whose request has no body.
fn change_without_body(node: &Node, request: &Request, timeout: Option<Duration>) -> Result<ChangeContext, Error> {
    let timeout = timeout.unwrap_or(node.config.request_timeout);
    Ok(ChangeRequest::of(request, timeout)?.with_body(&[]))
}

/// Proposes a transaction and waits for what it did; also whether an earlier attempt did it.
pub async fn propose_txn(node: &Node, command: &Command, context: &ChangeContext) -> Result<(TxnOutcome, bool), Error> {
    let changed = node.propose_change(command, context).await?;
    match changed.outcome {
        Outcome::Txn(outcome) => Ok((outcome, changed.replayed)),
        other @ (Outcome::None
        | Outcome::Done
        | Outcome::LeasesExpired { .. }
        | Outcome::Refused(_)
        | Outcome::Replayed(_)) => Err(Error::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeleteRangeQuery {
    /// Keys that begin with it; an empty one removes everything.
    #[param(value_type = Option<schemas::Bound>)]
    prefix: Option<String>,
    /// First key; not with `prefix`.
    #[param(value_type = Option<schemas::Bound>)]
    start: Option<String>,
    /// First key beyond; not with `prefix`.
    #[param(value_type = Option<schemas::Bound>)]
    end: Option<String>,
    /// Give up after; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    timeout: Option<Duration>,
}

/// Removes a range of keys in one revision.
///
/// The range must be named: `prefix`, or `start` and `end`, of which one may be left out. At most 100,000 keys and 64 MiB:
/// delete larger ranges in parts.
#[utoipa::path(delete, path = "/api/kv", operation_id = "delete_range", tag = "kv",
    params(DeleteRangeQuery, IdempotencyKey),
    responses(
        (status = 200, description = "None of them is there", body = DeleteAnswer,
            example = json!({"revision": 20, "deleted": 3})),
        Refused, TooLarge, KeyMismatch, Busy, NotServing, Unknown,
    ))]
pub async fn delete_range(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<DeleteRangeQuery>(request.uri())?;
    check_range_is_named(q.prefix.as_ref(), q.start.as_ref(), q.end.as_ref())?;
    let range = range(q.prefix.as_deref(), q.start.as_deref(), q.end.as_deref())?;
    let command = Command::Txn(Txn::unconditional(TxnOp::DeleteRange(range)));
    let context = change_without_body(&node, &request, q.timeout)?;
    let (outcome, replayed) = propose_txn(&node, &command, &context).await?;
    match outcome.results.into_iter().next() {
        Some(OpResult::Delete { deleted, .. }) => {
            Ok(marked(DeleteAnswer { revision: outcome.revision, deleted, prev: None }, replayed))
        }
        other => Err(unexpected(&other)),
    }
}

fn content_type(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut given = headers.get_all(header::CONTENT_TYPE).iter();
    let (first, second) = (given.next(), given.next());
    if second.is_some() {
        return Err(Error::invalid("give Content-Type once"));
    }
    first.map_or(Ok(None), |text| {
        stored_content_type(text.to_str().map_err(|_| Error::invalid("Content-Type is not ASCII"))?)
    })
}
