//! `Idempotency-Key`: what makes a change one that its client may send again.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Response, Uri, header},
    response::IntoResponse,
};
use bytes::Bytes;
use hexkv_store::dedupe::{Fingerprint, IDEMPOTENCY_KEY_BYTES_MAX, Idempotency};

use crate::{error::Error, proposals::ChangeContext};

/// The header of a request.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header of an answer that tells what an earlier attempt did.
pub const IDEMPOTENT_REPLAY: &str = "idempotent-replay";

/// Headers that say what a change asks, and so belong to its fingerprint.
const MEANINGFUL_HEADERS: [header::HeaderName; 3] = [header::IF_MATCH, header::IF_NONE_MATCH, header::CONTENT_TYPE];
/// The query parameter that says only how long to wait.
const TIMEOUT: &str = "timeout";

/// A changing request of which the body is still to come.
pub struct ChangeRequest {
    key: Option<Bytes>,
    fingerprint: Fingerprint,
    timeout: Duration,
}

impl ChangeRequest {
    /// Reads everything but the body of `request`. Every changing route calls it before it waits for the body.
    ///
    /// # Errors
    /// 400 for an `Idempotency-Key` that is none.
    pub fn of(request: &Request, timeout: Duration) -> Result<Self, Error> {
        let key = idempotency_key(request.headers())?;
        let mut fingerprint = Fingerprint::default()
            .part(Some(request.method().as_str().as_bytes()))
            .part(Some(request.uri().path().as_bytes()))
            .part(query_without_timeout(request.uri()).as_deref().map(str::as_bytes));
        for name in MEANINGFUL_HEADERS {
            let mut lines = request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
            fingerprint = fingerprint.part(lines.next());
            fingerprint = lines.fold(fingerprint, |fingerprint, line| fingerprint.part(Some(line)));
        }
        Ok(Self { key, fingerprint, timeout })
    }

    /// What goes with the command to [`crate::node::Node::propose_change`].
    pub fn with_body(self, body: &[u8]) -> ChangeContext {
        let Self { key, fingerprint, timeout } = self;
        let idempotency = key.map(|key| Idempotency { key, fingerprint: fingerprint.part(Some(body)).finish() });
        ChangeContext { idempotency, timeout }
    }
}

/// Refuses a change that is not done once for a key: its client would believe that it may be sent again.
///
/// # Errors
/// 400 where there is an `Idempotency-Key`.
pub fn without_key(request: &Request) -> Result<(), Error> {
    if request.headers().contains_key(IDEMPOTENCY_KEY) {
        return Err(Error::invalid(
            "changes of the cluster take no Idempotency-Key, and nothing was done: leave it out. They name the state that they want; `client status` shows whether it is so before one is sent again",
        ));
    }
    Ok(())
}

/// The answer to a change that may have been done by an earlier attempt.
pub fn marked(answer: impl serde::Serialize, replayed: bool) -> Response<Body> {
    let mut response = Json(answer).into_response();
    mark_replay(&mut response, replayed);
    response
}

/// Marks `response` where it tells what an earlier attempt did.
pub fn mark_replay(response: &mut Response<Body>, replayed: bool) {
    if replayed {
        response.headers_mut().insert(IDEMPOTENT_REPLAY, HeaderValue::from_static("true"));
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<Bytes>, Error> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (first, second) = (given.next(), given.next());
    let Some(key) = first else { return Ok(None) };
    if second.is_some() {
        return Err(Error::invalid("give Idempotency-Key once"));
    }
    let key = key.as_bytes();
    if !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
        return Err(Error::invalid(format!(
            "Idempotency-Key is 1..={IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters, without spaces; a random UUID does"
        )));
    }
    Ok(Some(Bytes::copy_from_slice(key)))
}

fn query_without_timeout(uri: &Uri) -> Option<String> {
    let is_timeout = |pair: &str| pair.split('=').next() == Some(TIMEOUT);
    let kept: Vec<&str> = uri.query()?.split('&').filter(|pair| !pair.is_empty() && !is_timeout(pair)).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = axum::http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).expect("a request")
    }

    fn context(uri: &str, headers: &[(&str, &str)], body: &[u8]) -> ChangeContext {
        let headers = [&[("idempotency-key", "k")], headers].concat();
        let asked = ChangeRequest::of(&request("PUT", uri, &headers), Duration::from_secs(1)).expect("fine");
        asked.with_body(body)
    }

    #[test]
    fn the_fingerprint_is_what_is_asked_and_not_how_long_to_wait() {
        let of = |uri: &str, headers: &[(&str, &str)], body: &[u8]| {
            context(uri, headers, body).idempotency.expect("a key was given").fingerprint
        };
        let plain = of("/api/kv/a", &[], b"v");
        assert_eq!(plain, of("/api/kv/a?timeout=3s", &[("user-agent", "x")], b"v"));
        assert_eq!(of("/api/kv/a?prev=true", &[], b"v"), of("/api/kv/a?timeout=1s&prev=true", &[], b"v"));
        let others = [
            of("/api/kv/b", &[], b"v"),
            of("/api/kv/a", &[], b"w"),
            of("/api/kv/a?prev=true", &[], b"v"),
            of("/api/kv/a", &[("if-match", "\"1\"")], b"v"),
            of("/api/kv/a", &[("if-none-match", "\"1\"")], b"v"),
            of("/api/kv/a", &[("content-type", "text/plain")], b"v"),
        ];
        let all: std::collections::BTreeSet<u128> = others.into_iter().chain([plain]).collect();
        assert_eq!(all.len(), 7, "each asks something else");
    }

    #[test]
    fn keys_are_some_visible_characters_given_once() {
        let parse = |headers: &[(&str, &str)]| {
            ChangeRequest::of(&request("PUT", "/api/kv/a", headers), Duration::from_secs(1)).map(|asked| asked.key)
        };
        assert_eq!(parse(&[]).expect("fine"), None);
        let longest = "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX);
        assert_eq!(parse(&[("Idempotency-Key", &longest)]).expect("fine").expect("a key"), longest);
        let too_long = "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX + 1);
        for bad in ["", "a b", "\u{fc}", "a\tb", &too_long] {
            assert!(parse(&[("idempotency-key", bad)]).is_err(), "{bad:?}");
        }
        assert!(parse(&[("idempotency-key", "a"), ("idempotency-key", "a")]).is_err());
    }
}
