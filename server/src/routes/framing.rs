//! Requests whose length could be read in two ways: a proxy in front might read the other one (RFC 9112, 6.3).

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, Response, header},
    middleware::Next,
    response::IntoResponse,
};

use crate::error::Error;

/// Refuses a request with both lengths. The answer to a chunked request is the last one on its connection, because
/// hyper drops a Content-Length that comes after Transfer-Encoding before it can be seen here.
pub async fn unambiguous(request: Request, next: Next) -> Response<Body> {
    let headers = request.headers();
    if !headers.contains_key(header::TRANSFER_ENCODING) {
        return next.run(request).await;
    }
    let mut response = if headers.contains_key(header::CONTENT_LENGTH) {
        Error::invalid("the request has Content-Length and Transfer-Encoding; send one of them").into_response()
    } else {
        next.run(request).await
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
