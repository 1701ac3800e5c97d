//! `/api/kv`: raw bytes by key, listings and deletions by range.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use hexkv_client::api::{Code, Item, ListAnswer};
use hexkv_store::{
    outcome::OpResult,
    record::{ListRequest, Record},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    held, listing,
    long_poll::{Polled, WAIT_DEFAULT, poll},
    openapi::{
        parameters::{IfChanged, IfUnchanged, KeyInPath},
        problems::{Busy, ConditionFailed, Forgotten, NoSuchKey, NotServing, Refused, TooLarge},
        schemas,
    },
    preconditions::{ReadConditions, ReadOutcome, Representation, etag},
    record::{Cursor, item},
    request::{duration, key, list_limit, query, range},
};
use crate::{
    error::Error,
    http_server::Connection,
    kv::{Consistency, ReadOptions},
    node::Node,
};

pub mod change;
mod negotiation;

/// The route of one key.
pub const KEY_ROUTE: &str = "/api/kv/{*key}";
/// The type of values that were put without one.
pub const OCTET_STREAM: &str = "application/octet-stream";
const PATH_PREFIX: &str = "/api/kv/";

type Answer = Result<Response<Body>, Error>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct GetQuery {
    /// As it was at this revision; 0: the newest.
    #[serde(default)]
    #[param(value_type = schemas::Revision)]
    revision: u64,
    /// Which state the answer may show.
    #[serde(default)]
    #[param(value_type = schemas::ReadConsistency)]
    consistency: Consistency,
    /// Wait until the node has this revision.
    #[serde(default)]
    #[param(value_type = schemas::Revision)]
    min_revision: u64,
    /// With `consistency=stale` only: 503 rather than an older state.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    max_staleness: Option<Duration>,
    /// Give up after; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    timeout: Option<Duration>,
    /// Long poll: answer when the key changes beyond this revision; not with `revision`.
    #[param(value_type = Option<schemas::Revision>)]
    after: Option<u64>,
    /// How long to wait for that, 30 s when left out; then 304. Only with `after`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
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
            return Err(Error::invalid("max_staleness goes with consistency=stale; other reads are never stale"));
        }
        Ok(ReadOptions {
            consistency: self.consistency,
            min_revision: self.min_revision,
            max_staleness: self.max_staleness,
            timeout: self.timeout.unwrap_or(node.config.request_timeout),
        })
    }
}

/// Reads a key.
///
/// The raw value, with the `Content-Type` that it was stored with; with `Accept: application/json` the record as JSON, under another ETag. With
/// `after` it waits for a change, and answers 304 when none comes.
#[utoipa::path(get, path = "/api/kv/{*key}", operation_id = "get_key", tag = "kv",
    params(KeyInPath, GetQuery, IfUnchanged, IfChanged),
    responses(
        (status = 200, description = "The value", content(
            (schemas::Octets = "*/*"),
            (Item = "application/json", example = json!({"key": "greeting", "value": "aGVsbG8=", "create_revision": 17,
                "mod_revision": 18, "version": 2, "content_type": "text/plain"})),
        ), headers(
            ("ETag" = String, description = "Its last change: the revision in quotes, with `-json` behind it for the record as JSON"),
            ("X-Hexkv-Revision" = u64, description = "Revision of the store at the read; with 404 and 304, too"),
            ("X-Hexkv-Create-Revision" = u64, description = "Revision that created the key"),
            ("X-Hexkv-Version" = u64, description = "Changes of the key since its creation"),
            ("X-Hexkv-Lease" = u64, description = "Only when the key is attached to one: its lease"),
            ("X-Hexkv-Staleness" = u64, description = "Only with `consistency=stale`: how old it may be, in ms"),
        )),
        (status = 304, description = "It is as the client knows it, or did not change while it waited", headers(
            ("X-Hexkv-Revision" = u64, description = "Revision of the store at the read"),
        )),
        Refused, NoSuchKey, ConditionFailed, Forgotten, TooLarge, Busy, NotServing,
    ))]
pub async fn get_key(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (key, q) = (key(request.uri(), PATH_PREFIX)?, query::<GetQuery>(request.uri())?);
    let (options, conditions) = (q.options(&node)?, ReadConditions::of(request.headers())?);
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let mut unchanged = false;
    let found = match q.long_poll()? {
        None => node.read_key(key.clone(), q.revision, &options).await?,
        Some((after, wait)) => match poll(&node, &key, after, wait, &options, &connection).await? {
            Polled::Changed(found) => found,
            Polled::Unchanged(found) => {
                unchanged = true;
                found
            }
        },
    };
    let mut response = match found.record {
        None if unchanged => bare(StatusCode::NOT_MODIFIED),
        None => Error::new(Code::KeyNotFound, "there is no such key").into_response(),
        Some(record) => {
            let content_type = record.content_type.as_deref().unwrap_or(OCTET_STREAM);
            let representation = negotiation::representation(request.headers(), content_type);
            let tag = etag(record.mod_revision, representation);
            let outcome = if unchanged { ReadOutcome::NotModified } else { conditions.evaluate(&tag) };
            let mut response = match outcome {
                ReadOutcome::NotModified => bare(StatusCode::NOT_MODIFIED),
                ReadOutcome::Failed => condition_failed().into_response(),
                ReadOutcome::Proceed => represent(&node, &key, &record, representation)?,
            };
            describe(&mut response, &record, tag);
            response
        }
    };
    // The answer depends on it; and a cache must ask for each answer whether it is still true, so that no read goes back.
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.headers_mut().insert("x-hexkv-revision", HeaderValue::from(found.revision));
    if let Some(staleness) = found.staleness {
        response.headers_mut().insert("x-hexkv-staleness", HeaderValue::from(staleness.as_millis() as u64));
    }
    Ok(response)
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Keys that begin with it.
    #[param(value_type = Option<schemas::Bound>)]
    prefix: Option<String>,
    /// First key; not with `prefix`.
    #[param(value_type = Option<schemas::Bound>)]
    start: Option<String>,
    /// First key beyond; not with `prefix`.
    #[param(value_type = Option<schemas::Bound>)]
    end: Option<String>,
    /// Items on a page, which also ends at 16 MiB.
    #[param(value_type = Option<schemas::Limit>)]
    limit: Option<u32>,
    /// `next` of the page before; the range and the order are repeated with it.
    #[param(value_type = Option<schemas::Cursor>)]
    cursor: Option<String>,
    /// Without values.
    #[serde(default)]
    #[param(value_type = schemas::Flag)]
    keys_only: bool,
    /// No items: `count` is the number of keys in the whole range.
    #[serde(default)]
    #[param(value_type = schemas::Flag)]
    count_only: bool,
    /// Order of the keys, bytewise.
    #[param(value_type = Option<schemas::ListOrder>)]
    order: Option<Order>,
    /// As it was at this revision; 0: the newest.
    #[serde(default)]
    #[param(value_type = schemas::Revision)]
    revision: u64,
    /// Which state the answer may show.
    #[serde(default)]
    #[param(value_type = schemas::ReadConsistency)]
    consistency: Consistency,
    /// Wait until the node has this revision.
    #[serde(default)]
    #[param(value_type = schemas::Revision)]
    min_revision: u64,
    /// With `consistency=stale` only: 503 rather than an older state.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    max_staleness: Option<Duration>,
    /// Give up after; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Asc,
    Desc,
}

/// Lists keys in byte order.
///
/// Without `prefix`, `start` and `end` all of them. All pages show the revision of the first.
#[utoipa::path(get, path = "/api/kv", operation_id = "list_keys", tag = "kv",
    params(ListQuery),
    responses(
        (status = 200, description = "A page", body = ListAnswer,
            example = json!({"items": [{"key": "greeting", "value": "aGVsbG8=", "create_revision": 17, "mod_revision": 18,
                "version": 2}], "count": 1, "next": null, "revision": 18})),
        Refused, Forgotten, TooLarge, Busy, NotServing,
    ))]
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
    listing::answer(node, &wanted, page).await
}

/// The body of a key that is read.
fn represent(node: &Node, key: &Bytes, record: &Record, representation: Representation) -> Answer {
    let (body, content_type) = match representation {
        Representation::Json => {
            let json = serde_json::to_vec(&item(key, record, true)).expect("a record is plain data");
            (json.into(), Some(HeaderValue::from_static("application/json")))
        }
        Representation::Raw => {
            let stored = record.content_type.as_deref().and_then(|text| HeaderValue::from_str(text).ok());
            (record.value.clone(), stored)
        }
    };
    let mut response = held::respond(node, body)?;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static(OCTET_STREAM)));
    if representation == Representation::Raw {
        // A stored page runs no scripts with the rights of this node's origin.
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    }
    Ok(response)
}

/// 412: nothing was changed.
fn condition_failed() -> Error {
    Error::new(
        Code::PreconditionFailed,
        "the key is not as the condition says; nothing was changed. Its current ETag is in the answer, if it exists",
    )
}

fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn describe(response: &mut Response<Body>, record: &Record, tag: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    headers.insert("x-hexkv-create-revision", HeaderValue::from(record.create_revision));
    headers.insert("x-hexkv-version", HeaderValue::from(record.version));
    if record.lease != 0 {
        headers.insert("x-hexkv-lease", HeaderValue::from(record.lease));
    }
}

/// An outcome that apply never gives for such a command.
pub(super) fn unexpected(result: &Option<OpResult>) -> Error {
    Error::new(Code::Internal, format!("unexpected result {result:?}"))
}
