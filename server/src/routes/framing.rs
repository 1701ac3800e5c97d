//! Requests whose length could be read in two ways: a proxy in front might read the other one (RFC 9112, 6.3).

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, Response, header},
    middleware::Next,
};

/// Makes the answer to a chunked request the last one on its connection. hyper drops a Content-Length beside
/// Transfer-Encoding before it can be seen here, so whatever follows such a request may be a part of it to others.
pub async fn unambiguous(request: Request, next: Next) -> Response<Body> {
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let mut response = next.run(request).await;
    if chunked {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
