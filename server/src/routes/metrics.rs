//! `GET /metrics`, and the counting of all requests.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Response, header},
    middleware::Next,
};
use hexkv_client::api::Code;
use tokio::time::Instant;

use super::{
    openapi::problems::Refused,
    request::{NoQuery, query},
};
use crate::{
    error::Error,
    metrics,
    node::Node,
    trace::{self, TRACERESPONSE, Trace, traced},
};

/// Tells this node's metrics, for Prometheus.
///
/// Text form 0.0.4. Counters of the log and the state begin anew when the node starts or changes clusters.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "health",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain; version=0.0.4; charset=utf-8",
        example = json!("# HELP hexkv_raft_term Current term\n# TYPE hexkv_raft_term gauge\nhexkv_raft_term 3\n")), Refused))]
pub async fn metrics(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    query::<NoQuery>(request.uri())?;
    let page = metrics::render(&node)
        .map_err(|e| Error::new(Code::Internal, format!("the metrics were not written: {e}; see the node's log")))?;
    let mut response = Response::new(Body::from(page));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::page::CONTENT_TYPE));
    Ok(response)
}

/// Counts a request with its answer.
pub async fn counted(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response<Body> {
    let began = Instant::now();
    let template = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let response = match Trace::of(request.headers()) {
        None => next.run(request).await,
        Some(trace) => traced_through(trace, template.as_ref(), request, next).await,
    };
    if let Some(http) = node.metrics.http.get() {
        http.note(template.as_ref().map(MatchedPath::as_str), &method, response.status(), began.elapsed());
    }
    response
}

/// Answers a request that is followed through the logs.
async fn traced_through(trace: Trace, template: Option<&MatchedPath>, request: Request, next: Next) -> Response<Body> {
    let began = Instant::now();
    let (method, route) = (request.method().clone(), template.map_or("none", MatchedPath::as_str).replace("{*", "{"));
    let parent = format!("{:016x}", trace.parent.parent_id);
    traced!(trace, parent, %method, route, "a request arrives");
    let (mut response, applied) = trace::scope(trace, next.run(request)).await;
    let (status, took) = (response.status().as_u16(), began.elapsed());
    let (log_index, revision) = applied.unzip();
    traced!(trace, %method, route, status, log_index, revision = revision.flatten(), ?took, "answered");
    response.headers_mut().insert(TRACERESPONSE, trace.response_header());
    response
}
