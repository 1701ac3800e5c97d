//! Health, for people and for orchestrators.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{Response, StatusCode},
    response::IntoResponse,
};
use hexkv_client::api::HealthAnswer;

use crate::{error::Error, node::Node};

/// `GET /health`: always 200; `ok` or `degraded`.
pub async fn health(State(node): State<Arc<Node>>) -> Json<HealthAnswer> {
    Json(node.health().await)
}

/// `GET /health/live`: the process runs.
pub async fn live() -> Json<HealthAnswer> {
    Json(HealthAnswer { status: "ok".into(), reason: None })
}

/// `GET /health/ready`: 200 when linearizable requests are served, else 503 with the reason.
pub async fn ready(State(node): State<Arc<Node>>) -> Result<Json<HealthAnswer>, Error> {
    node.ready().await.map(|()| Json(HealthAnswer { status: "ok".into(), reason: None }))
}

/// `GET /api/health`: 200 when all is well, else 503; the same document.
pub async fn node_health(State(node): State<Arc<Node>>) -> Response<Body> {
    let health = node.node_health().await;
    let status = if health.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}
