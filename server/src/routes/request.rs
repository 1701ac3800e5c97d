//! What handlers take out of a request: keys, queries, conditions, bodies. Everything that is refused is refused
//! with what is allowed.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    body::Body,
    body::HttpBody as _,
    extract::{Json, Query, Request, rejection::JsonRejection},
    http::{Uri, header},
};
use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_store::{
    command::{KEY_BYTES_MAX, KEY_BYTES_MIN},
    record::KeyRange,
};
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use tokio::time::sleep_until;
use utoipa::IntoParams;

use super::{checks::is_type, kv::OCTET_STREAM, openapi::schemas};
use crate::{
    bodies::{BODY_BYTES_PER_SECOND_MIN, BODY_RATE_WINDOW, Bodies, NoRoom, Received},
    coordination::RESERVED,
    error::Error,
    node::Node,
};

/// Largest body of requests that carry no user data, in bytes.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// Items on a page when no limit is given.
pub const LIST_LIMIT_DEFAULT: u32 = 1000;
/// Most items on a page.
pub const LIST_LIMIT_MAX: u32 = 10_000;
/// Longest stored content type, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// Longest `timeout=`.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

const NO_JSON: &str = "the body must be JSON with the header Content-Type: application/json";

/// Routes that take no query parameters refuse any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

/// Routes whose only query parameter is how long their caller waits.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TimeoutQuery {
    /// Give up after; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    pub timeout: Option<Duration>,
}

impl TimeoutQuery {
    /// How long to wait.
    pub fn patience(&self, node: &Node) -> Duration {
        self.timeout.unwrap_or(node.config.request_timeout)
    }
}

/// The query, refused when it names anything unknown.
pub fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    if let Some(raw) = uri.query() {
        let ok = well_formed(raw) && percent_decode_str(raw).decode_utf8().is_ok();
        if !ok {
            return Err(Error::invalid("the query is not well-formed percent-encoded UTF-8"));
        }
    }
    Query::<T>::try_from_uri(uri)
        .map(|Query(q)| q)
        .map_err(|e| Error::invalid(format!("the query is refused: {}", e.body_text())))
}

/// The key behind `prefix` in the path.
pub fn key(uri: &Uri, prefix: &str) -> Result<Bytes, Error> {
    let raw = uri.path().strip_prefix(prefix).ok_or_else(|| Error::invalid("no key in the path"))?;
    if !well_formed(raw) {
        return Err(Error::invalid(
            "the key is not well-formed percent-encoding: each % is followed by two hexadecimal digits",
        ));
    }
    let key = percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| Error::invalid("the key is not UTF-8; keys are UTF-8 over this API, percent-encoded"))?;
    check_key(key.as_bytes())?;
    Ok(Bytes::copy_from_slice(key.as_bytes()))
}

/// Refuses keys outside the limits.
pub fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.len() < KEY_BYTES_MIN {
        return Err(Error::invalid("the key is empty; a key has at least one byte"));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::new(
            Code::KeyTooLarge,
            format!("the key has {} bytes, at most {KEY_BYTES_MAX} are allowed", key.len()),
        ));
    }
    Ok(())
}

/// Refuses a lease that stands for none.
pub fn check_lease(lease: Option<u64>) -> Result<(), Error> {
    if lease == Some(0) {
        return Err(Error::invalid("there is no lease 0; leave lease out to attach the key to none"));
    }
    Ok(())
}

/// How many items a page may have.
pub fn list_limit(limit: Option<u32>) -> Result<u32, Error> {
    match limit.unwrap_or(LIST_LIMIT_DEFAULT) {
        limit @ 1..=LIST_LIMIT_MAX => Ok(limit),
        limit => Err(Error::invalid(format!("limit is 1..={LIST_LIMIT_MAX}, not {limit}"))),
    }
}

/// The content type to store: None for the type that values have without one. Whatever way a value is put, the same types are taken.
pub fn stored_content_type(text: &str) -> Result<Option<String>, Error> {
    let text = text.trim_matches([' ', '\t']);
    if text.len() > CONTENT_TYPE_BYTES_MAX {
        return Err(Error::invalid(format!("the content type has more than {CONTENT_TYPE_BYTES_MAX} bytes")));
    }
    if !text.bytes().all(|byte| byte == b'\t' || byte == b' ' || byte.is_ascii_graphic()) {
        return Err(Error::invalid("the content type has characters other than visible ASCII and spaces"));
    }
    Ok(Some(text).filter(|text| !text.is_empty() && !text.eq_ignore_ascii_case(OCTET_STREAM)).map(str::to_owned))
}

/// Keys that begin with `prefix`, or from `start` on and before `end`.
pub fn range(prefix: Option<&str>, start: Option<&str>, end: Option<&str>) -> Result<KeyRange, Error> {
    let range = match (prefix, start, end) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(Error::invalid("give prefix, or start and end, not both"));
        }
        (Some(prefix), None, None) => KeyRange::prefix(prefix.as_bytes()),
        (None, start, end) => KeyRange {
            start: start.map(|s| Bytes::copy_from_slice(s.as_bytes())).unwrap_or_default(),
            end: end.map(|e| Bytes::copy_from_slice(e.as_bytes())),
        },
    };
    for bound in [Some(&range.start), range.end.as_ref()].into_iter().flatten() {
        if !bound.is_empty() {
            check_key(bound)?;
        }
    }
    // What the server keeps for itself lies behind all keys.
    let range = KeyRange { end: range.end.or(Some(Bytes::from_static(&[RESERVED]))), ..range };
    if range.end.as_ref().is_some_and(|end| *end < range.start) {
        return Err(Error::invalid("end comes before start"));
    }
    Ok(range)
}

/// Refuses to delete a range that nothing names: it would be everything.
pub fn check_range_is_named(
    prefix: Option<&String>,
    start: Option<&String>,
    end: Option<&String>,
) -> Result<(), Error> {
    if prefix.or(start).or(end).is_none() {
        return Err(Error::invalid(
            "name what to delete: prefix, or start and end (a prefix that is empty deletes everything)",
        ));
    }
    Ok(())
}

fn well_formed(encoded: &str) -> bool {
    let bytes = encoded.as_bytes();
    let hex = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_hexdigit);
    bytes.iter().enumerate().all(|(i, b)| *b != b'%' || (hex(i + 1) && hex(i + 2)))
}

/// The body as a value, at most `limit` bytes of it, within `timeout`.
pub async fn value(bodies: &Arc<Bodies>, body: Body, limit: usize, timeout: Duration) -> Result<Received, Error> {
    let too_large = || too_large("the value", limit, "store it in parts, or raise VALUE_BYTES_MAX");
    receive(bodies, body, limit, timeout, too_large).await
}

/// A JSON body of at most `limit` bytes, within `timeout`; unknown fields and wrong types are refused.
pub async fn json_within<T: DeserializeOwned>(
    bodies: &Arc<Bodies>,
    request: Request,
    limit: usize,
    timeout: Duration,
) -> Result<T, Error> {
    json_with_body(bodies, request, limit, timeout).await.map(|(value, _)| value)
}

/// As [`json_within`], with the bytes as they came.
pub async fn json_with_body<T: DeserializeOwned>(
    bodies: &Arc<Bodies>,
    request: Request,
    limit: usize,
    timeout: Duration,
) -> Result<(T, Received), Error> {
    let (head, body) = request.into_parts();
    match head.headers.get(header::CONTENT_TYPE) {
        None => return Err(Error::invalid(NO_JSON)),
        Some(kind) if !is_type(kind, "application/json") => {
            return Err(Error::new(Code::UnsupportedMediaType, NO_JSON));
        }
        Some(_) => {}
    }
    let body = receive(bodies, body, limit, timeout, || too_large("the body", limit, "make it smaller")).await?;
    // serde would take the fields of a struct from an array as well, by their order.
    if body.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        return Err(Error::invalid("the body is refused: it is a JSON array, not an object"));
    }
    match Json::<T>::from_bytes(&body.bytes) {
        Ok(Json(value)) => Ok((value, body)),
        Err(e) => Err(refused_body(&e)),
    }
}

fn too_large(what: &str, limit: usize, next: &str) -> Error {
    Error::new(Code::ValueTooLarge, format!("{what} has more than {limit} bytes; {next}"))
}

/// The whole body. It takes room as it arrives; one that stalls is given up.
async fn receive(
    bodies: &Arc<Bodies>,
    body: Body,
    limit: usize,
    timeout: Duration,
    too_large: impl Fn() -> Error,
) -> Result<Received, Error> {
    match tokio::time::timeout(timeout, collect(bodies, body, limit, too_large)).await {
        Ok(received) => received,
        Err(_) => Err(Error::body_too_slow("the body did not arrive in time")),
    }
}

async fn collect(
    bodies: &Arc<Bodies>,
    body: Body,
    limit: usize,
    too_large: impl Fn() -> Error,
) -> Result<Received, Error> {
    let mut body = pin!(body);
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    if announced.is_some_and(|bytes| bytes > limit) {
        // Before the body is read, so that a client which waits for `100 Continue` need not send it.
        return Err(too_large());
    }
    let bytes_max = announced.unwrap_or(limit);
    let mut receiver = bodies.begin().await.map_err(Error::bodies_overloaded)?;
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = receiver.outpaced() => return Err(Error::bodies_overloaded(NoRoom::Outpaced)),
            () = sleep_until(receiver.window_end()) => {
                receiver.next_window().map_err(|bytes| {
                    let window = BODY_RATE_WINDOW.as_secs();
                    Error::body_too_slow(format!(
                        "the body is too slow: {bytes} bytes in {window} s, where {BODY_BYTES_PER_SECOND_MIN} a second are the least"
                    ))
                })?;
                continue;
            }
        };
        match frame {
            None => return Ok(receiver.complete()),
            Some(Ok(frame)) => {
                // What is not data is trailers, which mean nothing here.
                let Ok(piece) = frame.into_data() else { continue };
                if receiver.len() + piece.len() > limit {
                    return Err(too_large());
                }
                receiver.append(&piece, bytes_max).await.map_err(Error::bodies_overloaded)?;
            }
            Some(Err(e)) => return Err(Error::invalid(format!("the body did not arrive whole: {e}"))),
        }
    }
}

fn refused_body(rejection: &JsonRejection) -> Error {
    Error::invalid(format!("the body is refused: {}", rejection.body_text()))
}

/// A duration such as `500ms` in a query.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = humantime::parse_duration(&text)
        .map_err(|_| serde::de::Error::custom(format!("{text:?} is no time; write it like 500ms or 10s")))?;
    if parsed.is_zero() || parsed > TIMEOUT_MAX {
        return Err(serde::de::Error::custom(format!("{text} is not within 1ms..{}s", TIMEOUT_MAX.as_secs())));
    }
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_strictly() {
        let parse = |path: &str| key(&path.parse().expect("a URI"), "/api/kv/");
        assert_eq!(parse("/api/kv/a/b%20c").expect("fine"), "a/b c");
        assert_eq!(parse("/api/kv/%C3%BC").expect("fine"), "ü");
        assert_eq!(parse("/api/kv/%2F").expect("fine"), "/");
        for bad in ["/api/kv/%zz", "/api/kv/%2", "/api/kv/%", "/api/kv/%ff", "/api/kv/"] {
            assert_eq!(parse(bad).expect_err(bad).code, Code::InvalidArgument, "{bad}");
        }
        let long = format!("/api/kv/{}", "k".repeat(KEY_BYTES_MAX + 1));
        assert_eq!(parse(&long).expect_err("too long").code, Code::KeyTooLarge);
        assert_eq!(parse(&long[..long.len() - 1]).expect("the longest").len(), KEY_BYTES_MAX);
    }

    #[test]
    fn content_types_are_stored_as_they_can_be_given_back() {
        let stored = |text: &str| stored_content_type(text).map(|kind| kind.unwrap_or_default());
        for (text, expected) in [
            ("text/plain", "text/plain"),
            (" Text/Plain; charset=UTF-8\t", "Text/Plain; charset=UTF-8"),
            ("Application/Octet-Stream", ""),
            ("", ""),
        ] {
            assert_eq!(stored(text).expect(text), expected, "{text:?}");
        }
        let (longest, too_long) = ("t".repeat(CONTENT_TYPE_BYTES_MAX), "t".repeat(CONTENT_TYPE_BYTES_MAX + 1));
        assert_eq!(stored(&longest).expect("the longest"), longest);
        for bad in ["text/plain\r\nX: y", "a\0b", "text/\u{fc}", "\u{1b}[2J", too_long.as_str()] {
            assert!(stored(bad).is_err(), "{bad:?}");
        }
    }
}
