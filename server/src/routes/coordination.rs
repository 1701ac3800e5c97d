//! What the routes of locks, elections and the registry have in common: names, times, limits, and what a token does.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    http::{Response, Uri},
};
use hexkv_client::api::{Code, ReleaseAnswer, RenewRequest, Ttl};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use super::{
    idempotency::{ChangeRequest, marked},
    lease,
    openapi::schemas,
    request::{BODY_BYTES_MAX, NoQuery, json_with_body, json_within, key, query},
};
use crate::{
    coordination::{
        STEP_TIMEOUT, check_name,
        queue::{Entry, Place, Queue, lease_of},
    },
    error::Error,
    http_server::Connection,
    node::Node,
};

/// Time to live when none is given, in milliseconds.
const TTL_MS_DEFAULT: u64 = 30_000;
/// Longest wait for a lock or for leadership.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest owner, candidate or address, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The token of whoever gives a place up.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TokenQuery {
    /// As it was given.
    #[param(value_type = schemas::Token)]
    token: String,
}

/// `POST {prefix}{name}`: takes a place in the line and waits until it is the first one; also whether an earlier attempt did.
/// `read` makes of the body what the place says, and how long to wait. A place that its client does not wait for any more is given
/// back, unless the client can send the same request again and find it.
pub async fn acquire<T: DeserializeOwned>(
    node: &Arc<Node>,
    request: Request,
    prefix: &str,
    line: fn(&str) -> Queue,
    read: fn(T) -> Result<(Entry, Duration), Error>,
) -> Result<(Place, bool), Error> {
    query::<NoQuery>(request.uri())?;
    let line = line(&name(request.uri(), prefix, "")?);
    let asked = ChangeRequest::of(&request, STEP_TIMEOUT)?;
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let (wanted, body) =
        json_with_body::<T>(&node.bodies, request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    let (entry, wait) = read(wanted)?;
    let context = asked.with_body(&body);
    drop(body);
    if !wait.is_zero() {
        connection.waits();
    }
    let (place, replayed) = line.acquire(node, entry, wait, &context).await?;
    // The close may be known to the kernel before it ended this handler.
    if context.idempotency.is_none() && connection.client_is_gone() {
        line.give_back(node, &place);
        return Err(Error::new(Code::Unavailable, "the client closed its connection; nothing is held"));
    }
    Ok((place, replayed))
}

/// `POST {prefix}{name}/renew`: whoever has the token of the first place in the line has it for its full time again.
pub async fn renew(node: &Node, request: Request, prefix: &str, line: fn(&str) -> Queue) -> Result<Place, Error> {
    query::<NoQuery>(request.uri())?;
    let line = line(&name(request.uri(), prefix, "/renew")?);
    let wanted: RenewRequest = json_within(&node.bodies, request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    line.renew(node, lease_of(&wanted.token)?).await
}

/// `DELETE {prefix}{name}?token=`: the next one in the line has it.
pub async fn release(
    node: &Node,
    request: Request,
    prefix: &str,
    line: fn(&str) -> Queue,
) -> Result<Response<Body>, Error> {
    let q = query::<TokenQuery>(request.uri())?;
    let line = line(&name(request.uri(), prefix, "")?);
    let context = ChangeRequest::of(&request, STEP_TIMEOUT)?.with_body(&[]);
    let replayed = line.release(node, lease_of(&q.token)?, &context).await?;
    Ok(marked(ReleaseAnswer { released: true }, replayed))
}

/// The name behind `prefix` in the path, before `suffix`.
pub fn name(uri: &Uri, prefix: &str, suffix: &str) -> Result<String, Error> {
    let mut name = key(uri, prefix)?.to_vec();
    name.truncate(name.len() - if name.ends_with(suffix.as_bytes()) { suffix.len() } else { 0 });
    let name = String::from_utf8(name).map_err(|_| Error::invalid("the name is not UTF-8"))?;
    check_name(&name)?;
    Ok(name)
}

/// A time to live, in milliseconds.
pub fn ttl_ms(ttl: Option<Ttl>) -> Result<u64, Error> {
    ttl.map_or(Ok(TTL_MS_DEFAULT), lease::ttl_ms)
}

/// How long to wait.
pub fn wait(text: Option<&str>) -> Result<Duration, Error> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let wait = humantime::parse_duration(text)
        .map_err(|_| Error::invalid(format!("wait {text:?} is no time; write it like 500ms or 10s")))?;
    if wait > WAIT_MAX {
        return Err(Error::invalid(format!("wait is at most {} h; wait again after that", WAIT_MAX.as_secs() / 3600)));
    }
    Ok(wait)
}

/// Refuses a text that is too long, or empty where it may not be.
pub fn check_text(what: &str, text: &str, may_be_empty: bool) -> Result<(), Error> {
    if text.is_empty() && !may_be_empty {
        return Err(Error::invalid(format!("{what} is empty")));
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid(format!("{what} has {} bytes, at most {TEXT_BYTES_MAX} are allowed", text.len())));
    }
    Ok(())
}
