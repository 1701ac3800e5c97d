//! Checks of every request, before its route: what the request line and the headers must be, and who may send it.
//!
//! What is not evaluated is refused: a header that states a condition, a range or an encoding of the body would otherwise be ignored, and
//! another change done than the one that was asked for. docs/api.md has the table.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Version, header, uri::Scheme},
    middleware::Next,
    response::IntoResponse,
};
use hexkv_client::api::Code;

use super::{host, kv::KEY_ROUTE};
use crate::{error::Error, http_server::Connection, node::Node};

/// Headers of a request that state a condition.
const CONDITIONS: [HeaderName; 2] = [header::IF_MATCH, header::IF_NONE_MATCH];
/// Content types that a browser sends across sites without asking the server first (Fetch Standard, CORS-safelisted).
const FORM_TYPES: [&str; 3] = ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const ROUTES_WITHOUT_HOST_CHECK: [&str; 3] = ["/health", "/health/live", "/health/ready"];

/// Refuses what is wrong with a request whatever its route, and adds the headers that every answer has.
pub async fn checked(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response<Body> {
    let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let mut response = match check(&node, &request) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    let headers = response.headers_mut();
    if is_chunked {
        // hyper drops a Content-Length beside Transfer-Encoding before it can be seen here, so what follows such a request may be a
        // part of it to a proxy (RFC 9112 section 6.3).
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn check(node: &Node, request: &Request) -> Result<(), Error> {
    let headers = request.headers();
    if request.extensions().get::<Connection>().is_some_and(Connection::target_has_fragment) {
        return Err(Error::invalid(
            "the request target contains #, which begins a fragment and is never sent; write %23 where it is a part of the key",
        ));
    }
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let host = requested_host(request)?;
    if let Some(host) = host.as_deref()
        && !ROUTES_WITHOUT_HOST_CHECK.contains(&route)
        && !host::is_allowed(node, host)
    {
        let why = format!(
            "this node is not known as {host:?}: a page of another site could have made up the name. Use an address or a name of the node, or start it with ALLOWED_HOSTS={host}"
        );
        return Err(Error::new(Code::MisdirectedRequest, why));
    }
    same_site(headers, host_text(request))?;
    body_headers(request)?;
    conditions(request.method(), headers, route)
}

/// The host that the client asked for, without the port: of the target where that is a whole URL, else of `Host`. None: HTTP/1.0 without it.
fn requested_host(request: &Request) -> Result<Option<String>, Error> {
    let mut given = request.headers().get_all(header::HOST).iter();
    let (first, second) = (given.next(), given.next());
    if second.is_some() {
        return Err(Error::invalid("give Host once (RFC 9112 section 3.2)"));
    }
    let parsed = match first {
        None if request.version() < Version::HTTP_11 => None,
        None => return Err(Error::invalid("the Host header is missing (RFC 9112 section 3.2)")),
        Some(text) => Some(host::parse(text.as_bytes()).ok_or_else(|| {
            Error::invalid("the Host header is not a host with an optional port, such as 127.0.0.1:4000")
        })?),
    };
    if let Some(scheme) = request.uri().scheme()
        && *scheme != Scheme::HTTP
    {
        let why =
            format!("the request target is a {scheme} URL, and this connection is plain HTTP (RFC 9110 section 7.4)");
        return Err(Error::new(Code::MisdirectedRequest, why));
    }
    match request.uri().authority() {
        Some(authority) => host::parse(authority.as_str().as_bytes())
            .map(Some)
            .ok_or_else(|| Error::invalid("the host in the request target is not a host with an optional port")),
        None => Ok(parsed),
    }
}

/// The authority as it was sent, to compare an origin with.
fn host_text(request: &Request) -> Option<&str> {
    let of_target = request.uri().authority().map(|authority| authority.as_str());
    of_target.or_else(|| request.headers().get(header::HOST).and_then(|host| host.to_str().ok()))
}

/// Refuses what a browser sends for a page of another site. Clients that are no browsers send neither header.
///
/// `Sec-Fetch-Site` decides where it is sent (to localhost and over TLS): no page can forge it. Else `Origin` does, which browsers send
/// with every request but plain reads; those show their answers to no other site.
fn same_site(headers: &HeaderMap, host: Option<&str>) -> Result<(), Error> {
    let refused = || {
        Error::new(
            Code::CrossSite,
            "a page of another site sent this request (Origin, Sec-Fetch-Site); nothing was changed. Browsers may use the API only from pages that this node serves, and from the address bar",
        )
    };
    let is_own = if headers.contains_key(SEC_FETCH_SITE) {
        headers
            .get_all(SEC_FETCH_SITE)
            .iter()
            .all(|site| [b"same-origin".as_slice(), b"none"].contains(&site.as_bytes()))
    } else {
        let own = |origin: &HeaderValue| Some(host::is_origin_of(origin.to_str().ok()?, host?));
        headers.get_all(header::ORIGIN).iter().all(|origin| own(origin) == Some(true))
    };
    if is_own { Ok(()) } else { Err(refused()) }
}

/// Refuses bodies that are not what they seem: a part, encoded, or a form's.
fn body_headers(request: &Request) -> Result<(), Error> {
    let headers = request.headers();
    if headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        let why = "the only Transfer-Encoding is chunked; nothing was changed. Send the body as it is";
        return Err(Error::new(Code::NotImplemented, why));
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Error::invalid(
            "Content-Range: a value is written whole, never in part (RFC 9110 section 14.5); nothing was changed. Send all of it, without the header",
        ));
    }
    let encoded = |coding: &HeaderValue| !coding.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(encoded) {
        return Err(Error::new(
            Code::UnsupportedMediaType,
            "bodies have no Content-Encoding here; nothing was changed. Send the body decoded, or store the encoded bytes without the header under a Content-Type of their own",
        ));
    }
    if request.method() == Method::POST {
        let form =
            headers.get_all(header::CONTENT_TYPE).iter().any(|kind| FORM_TYPES.iter().any(|form| is_type(kind, form)));
        if form {
            return Err(Error::new(
                Code::UnsupportedMediaType,
                "a POST takes Content-Type: application/json, or no body and no Content-Type; nothing was changed. A form's type and text/plain are refused because a page of any site may send them",
            ));
        }
    }
    Ok(())
}

/// Whether the header value `kind` is the media type `wanted`, whatever its parameters.
pub fn is_type(kind: &HeaderValue, wanted: &str) -> bool {
    kind.to_str()
        .is_ok_and(|text| text.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted)))
}

/// Refuses conditions where they are not evaluated.
fn conditions(method: &Method, headers: &HeaderMap, route: &str) -> Result<(), Error> {
    if route != KEY_ROUTE
        && let Some(name) = CONDITIONS.iter().find(|name| headers.contains_key(*name))
    {
        return Err(Error::invalid(format!(
            "{name} is evaluated for single keys only (/api/kv/{{key}}); nothing was changed. A transaction compares keys by \"compare\""
        )));
    }
    if !method.is_safe() && headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        return Err(Error::invalid(
            "if-unmodified-since is not evaluated: keys have revisions, not dates; nothing was changed. Use If-Match with the key's ETag",
        ));
    }
    Ok(())
}
