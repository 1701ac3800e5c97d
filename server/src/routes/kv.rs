//! `/api/kv`: raw bytes by key, listings and deletions by range.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use hexkv_client::api::{Code, DeleteAnswer, PutAnswer, Ttl};
use hexkv_store::{
    command::{Command, Compare, Txn, TxnOp},
    lease,
    outcome::{OpResult, Outcome, TxnOutcome},
    record::{ListRequest, Record},
};
use serde::Deserialize;

use super::{
    held,
    idempotency::{ChangeRequest, mark_replay},
    lease::ttl_ms,
    listing,
    long_poll::{Polled, WAIT_DEFAULT, poll},
    record::{Cursor, item},
    request::{
        announced_bytes, check_content_type, check_lease, check_range_is_named, condition, duration, key, list_limit,
        parse_etag, query, range, value,
    },
};
use crate::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
    proposals::ChangeContext,
};

const OCTET_STREAM: HeaderValue = HeaderValue::from_static("application/octet-stream");
const PATH_PREFIX: &str = "/api/kv/";

type Answer = Result<Response<Body>, Error>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetQuery {
    #[serde(default)]
    revision: u64,
    #[serde(default)]
    consistency: Consistency,
    #[serde(default)]
    min_revision: u64,
    #[serde(default, deserialize_with = "duration")]
    max_staleness: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    after: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
}

impl GetQuery {
    /// What a long poll waits for, and how long.
    fn long_poll(&self) -> Result<Option<(u64, Duration)>, Error> {
        match (self.after, self.wait) {
            (None, None) => Ok(None),
            (None, Some(_)) => {
                Err(Error::invalid("wait goes with after: the revision that the change must come after"))
            }
            (Some(_), _) if self.revision != 0 => Err(Error::invalid("give after or revision, not both")),
            (Some(after), wait) => Ok(Some((after, wait.unwrap_or(WAIT_DEFAULT)))),
        }
    }

    fn options(&self, node: &Node) -> Result<ReadOptions, Error> {
        if self.max_staleness.is_some() && self.consistency != Consistency::Stale {
            return Err(Error::invalid(
                "max_staleness goes with consistency=stale; linearizable reads are never stale",
            ));
        }
        Ok(ReadOptions {
            consistency: self.consistency,
            min_revision: self.min_revision,
            max_staleness: self.max_staleness,
            timeout: self.timeout.unwrap_or(node.config.request_timeout),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutQuery {
    #[serde(default)]
    prev: bool,
    lease: Option<u64>,
    ttl: Option<Ttl>,
    #[serde(default, deserialize_with = "duration")]
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
                Ok((id, Some(TxnOp::GrantLease { id, ttl_ms: ttl_ms(ttl)? })))
            }
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeQuery {
    #[serde(default)]
    prev: bool,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

/// `GET /api/kv/{key}` (and HEAD): the raw value, or the record as JSON when that is asked for. With `after` it waits
/// for a change, and answers 304 when none comes.
pub async fn get_key(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (key, q) = (key(request.uri(), PATH_PREFIX)?, query::<GetQuery>(request.uri())?);
    let options = q.options(&node)?;
    let mut unchanged = false;
    let found = match q.long_poll()? {
        None => node.read_key(key.clone(), q.revision, &options).await?,
        Some((after, wait)) => match poll(&node, &key, after, wait, &options).await? {
            Polled::Changed(found) => found,
            Polled::Unchanged(found) => {
                unchanged = true;
                found
            }
        },
    };
    let headers = request.headers();
    let mut response = match found.record {
        None if unchanged => bare(StatusCode::NOT_MODIFIED),
        None => Error::new(Code::KeyNotFound, "there is no such key").into_response(),
        Some(record) if unchanged || not_modified(headers, &record)? => {
            let mut response = bare(StatusCode::NOT_MODIFIED);
            describe(&mut response, &record);
            response
        }
        Some(record) if wants_json(headers) => {
            let json = serde_json::to_vec(&item(&key, &record, true)).expect("a record is plain data");
            let mut response = held::respond(&node, json.into())?;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            describe(&mut response, &record);
            response
        }
        Some(record) => {
            let content_type =
                record.content_type.as_deref().and_then(|t| HeaderValue::from_str(t).ok()).unwrap_or(OCTET_STREAM);
            let mut response = held::respond(&node, record.value.clone())?;
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            describe(&mut response, &record);
            response
        }
    };
    response.headers_mut().insert("x-hexkv-revision", HeaderValue::from(found.revision));
    if let Some(staleness) = found.staleness {
        response.headers_mut().insert("x-hexkv-staleness", HeaderValue::from(staleness.as_millis() as u64));
    }
    Ok(response)
}

/// `PUT /api/kv/{key}`: the body becomes the value.
pub async fn put_key(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (key, q) = (key(request.uri(), PATH_PREFIX)?, query::<PutQuery>(request.uri())?);
    let (lease, grant) = q.lease()?;
    let condition = condition(request.headers())?;
    let content_type = content_type(request.headers())?;
    let body_bytes_max = announced_bytes(request.headers()).unwrap_or(usize::MAX).min(node.config.value_bytes_max);
    let _room = node.bodies.admit(body_bytes_max).ok_or_else(Error::overloaded)?;
    let patience = q.timeout.unwrap_or(node.config.request_timeout);
    let asked = ChangeRequest::of(&request, patience)?;
    let value = value(request.into_body(), node.config.value_bytes_max, patience).await?;
    let context = asked.with_body(&value);
    let put = TxnOp::Put { key: key.clone(), value, content_type, lease, prev: q.prev };
    let operations = grant.into_iter().chain([put]).collect();
    let (outcome, replayed) = change(&node, &key, condition, operations, &context).await?;
    let granted = outcome.results.iter().find_map(OpResult::granted_lease);
    match outcome.results.into_iter().last() {
        Some(OpResult::Put { create_revision, version, prev }) => {
            let prev = prev.map(|record| item(&key, &record, true));
            // A replay's lease is the one that was granted then.
            let lease = granted.or((lease != 0).then_some(lease));
            let mut response =
                Json(PutAnswer { revision: outcome.revision, create_revision, version, lease, prev }).into_response();
            response.headers_mut().insert(header::ETAG, etag(outcome.revision));
            mark_replay(&mut response, replayed);
            Ok(response)
        }
        other => Err(unexpected(&other)),
    }
}

/// `DELETE /api/kv/{key}`.
pub async fn delete_key(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (key, q) = (key(request.uri(), PATH_PREFIX)?, query::<ChangeQuery>(request.uri())?);
    let condition = condition(request.headers())?;
    let context = change_without_body(&node, &request, q.timeout)?;
    let delete = TxnOp::Delete { key: key.clone(), prev: q.prev };
    let (outcome, replayed) = change(&node, &key, condition, vec![delete], &context).await?;
    match outcome.results.into_iter().next() {
        Some(OpResult::Delete { deleted, prev }) => {
            let prev = prev.map(|record| item(&key, &record, true));
            let mut response = Json(DeleteAnswer { revision: outcome.revision, deleted, prev }).into_response();
            mark_replay(&mut response, replayed);
            Ok(response)
        }
        other => Err(unexpected(&other)),
    }
}

/// Any method on `/api/kv/`: a key is missing.
pub async fn empty_key() -> Answer {
    Err(Error::invalid("the key is empty; a key has at least one byte (to list keys: GET /api/kv?prefix=)"))
}

/// Operations on `key`, under a condition. 412 carries the key's current ETag.
async fn change(
    node: &Node,
    key: &Bytes,
    condition: Option<(hexkv_store::command::CompareTarget, hexkv_store::command::CompareOp)>,
    success: Vec<TxnOp>,
    context: &ChangeContext,
) -> Result<(TxnOutcome, bool), Error> {
    let conditional = condition.is_some();
    let compare = condition.map(|(target, op)| Compare { key: key.clone(), target, op }).into_iter().collect();
    let failure = if conditional { vec![TxnOp::Get { key: key.clone(), keys_only: true }] } else { Vec::new() };
    let command = Command::Txn(Txn { compare, success, failure });
    let (outcome, replayed) = propose_txn(node, &command, context).await?;
    if outcome.succeeded {
        return Ok((outcome, replayed));
    }
    let mut error = Error::new(
        Code::PreconditionFailed,
        "the key is not as the condition says; nothing was changed. Its current ETag is in the answer, if it exists",
    );
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
pub(super) async fn propose_txn(
    node: &Node,
    command: &Command,
    context: &ChangeContext,
) -> Result<(TxnOutcome, bool), Error> {
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    prefix: Option<String>,
    start: Option<String>,
    end: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
    #[serde(default)]
    keys_only: bool,
    #[serde(default)]
    count_only: bool,
    order: Option<Order>,
    #[serde(default)]
    revision: u64,
    #[serde(default)]
    consistency: Consistency,
    #[serde(default)]
    min_revision: u64,
    #[serde(default, deserialize_with = "duration")]
    max_staleness: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Asc,
    Desc,
}

/// `GET /api/kv`.
pub async fn list(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<ListQuery>(request.uri())?;
    let limit = list_limit(q.limit)?;
    let range = range(q.prefix.as_deref(), q.start.as_deref(), q.end.as_deref())?;
    let descending = q.order == Some(Order::Desc);
    let mut wanted = ListRequest {
        range,
        limit,
        revision: q.revision,
        keys_only: q.keys_only,
        count_only: q.count_only,
        descending,
        after: None,
    };
    if let Some(text) = &q.cursor {
        let cursor = Cursor::parse(text)?;
        if cursor.range != wanted.range
            || cursor.descending != descending
            || (q.revision != 0 && q.revision != cursor.revision)
        {
            return Err(Error::invalid(
                "the cursor belongs to another listing; repeat the parameters of the page it came with",
            ));
        }
        wanted.revision = cursor.revision;
        wanted.after = Some(cursor.after);
    }
    let options = GetQuery {
        revision: 0,
        consistency: q.consistency,
        min_revision: q.min_revision.max(wanted.revision),
        max_staleness: q.max_staleness,
        timeout: q.timeout,
        ..GetQuery::default()
    }
    .options(&node)?;
    if wanted.revision != 0 && q.cursor.is_none() {
        // A revision that the cluster does not have yet is an error, not something to wait for.
        let options = ReadOptions { min_revision: q.min_revision, ..options };
        return page(&node, wanted, &options).await;
    }
    page(&node, wanted, &options).await
}

async fn page(node: &Node, wanted: ListRequest, options: &ReadOptions) -> Answer {
    let page = node.read_range(wanted.clone(), options).await?;
    listing::answer(node, &wanted, page)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteRangeQuery {
    prefix: Option<String>,
    start: Option<String>,
    end: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

/// `DELETE /api/kv`: a range, in one revision. The range must be named: an empty query deletes nothing.
pub async fn delete_range(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<DeleteRangeQuery>(request.uri())?;
    check_range_is_named(q.prefix.as_ref(), q.start.as_ref(), q.end.as_ref())?;
    let range = range(q.prefix.as_deref(), q.start.as_deref(), q.end.as_deref())?;
    let command = Command::Txn(Txn::unconditional(TxnOp::DeleteRange(range)));
    let context = change_without_body(&node, &request, q.timeout)?;
    let (outcome, replayed) = propose_txn(&node, &command, &context).await?;
    match outcome.results.into_iter().next() {
        Some(OpResult::Delete { deleted, .. }) => {
            let mut response = Json(DeleteAnswer { revision: outcome.revision, deleted, prev: None }).into_response();
            mark_replay(&mut response, replayed);
            Ok(response)
        }
        other => Err(unexpected(&other)),
    }
}

fn content_type(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let text = given.to_str().map_err(|_| Error::invalid("Content-Type is not ASCII"))?;
    check_content_type(text)?;
    Ok((given != OCTET_STREAM).then(|| text.to_string()))
}

fn wants_json(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|v| v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().starts_with("application/json"))))
}

fn not_modified(headers: &HeaderMap, record: &Record) -> Result<bool, Error> {
    let Some(given) = headers.get(header::IF_NONE_MATCH) else { return Ok(false) };
    let text = given.to_str().map_err(|_| Error::invalid("If-None-Match is not ASCII"))?;
    if text.trim() == "*" {
        return Ok(true);
    }
    text.split(',').map(parse_etag).try_fold(false, |any, revision| match revision {
        Some(revision) => Ok(any || revision == record.mod_revision),
        None => Err(Error::invalid("If-None-Match takes ETags such as \"42\", or *")),
    })
}

fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn describe(response: &mut Response<Body>, record: &Record) {
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag(record.mod_revision));
    headers.insert("x-hexkv-create-revision", HeaderValue::from(record.create_revision));
    headers.insert("x-hexkv-version", HeaderValue::from(record.version));
    if record.lease != 0 {
        headers.insert("x-hexkv-lease", HeaderValue::from(record.lease));
    }
}

fn etag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).expect("digits in quotes are a header value")
}

/// An outcome that apply never gives for such a command.
pub(super) fn unexpected(result: &Option<OpResult>) -> Error {
    Error::new(Code::Internal, format!("unexpected result {result:?}"))
}
