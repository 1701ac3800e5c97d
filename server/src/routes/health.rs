//! Health, for people and for orchestrators.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{Response, StatusCode},
    response::IntoResponse,
};
use hexkv_client::api::{HealthAnswer, NodeHealth};

use super::openapi::problems::NotServing;
use crate::{error::Error, node::Node};

/// Tells in one word how the node is.
///
/// Always 200: `ok` when linearizable requests are served and every member is up, else `degraded` with the reason.
#[utoipa::path(get, path = "/health", operation_id = "health", tag = "health",
    responses((status = 200, description = "`ok` or `degraded`", body = HealthAnswer, example = json!({"status": "ok"}))))]
pub async fn health(State(node): State<Arc<Node>>) -> Json<HealthAnswer> {
    Json(node.health().await)
}

/// Tells that the process runs.
#[utoipa::path(get, path = "/health/live", operation_id = "live", tag = "health",
    responses((status = 200, description = "It runs", body = HealthAnswer, example = json!({"status": "ok"}))))]
pub async fn live() -> Json<HealthAnswer> {
    Json(HealthAnswer { status: "ok".into(), reason: None })
}

/// Tells whether linearizable requests are served: one is tried.
#[utoipa::path(get, path = "/health/ready", operation_id = "ready", tag = "health",
    responses((status = 200, description = "They are", body = HealthAnswer, example = json!({"status": "ok"})), NotServing))]
pub async fn ready(State(node): State<Arc<Node>>) -> Result<Json<HealthAnswer>, Error> {
    node.ready().await.map(|()| Json(HealthAnswer { status: "ok".into(), reason: None }))
}

/// Tells how each service of the node is.
#[utoipa::path(get, path = "/api/health", operation_id = "node_health", tag = "health",
    responses(
        (status = 200, description = "All is well", body = NodeHealth),
        (status = 503, description = "Something is not", body = NodeHealth),
    ))]
pub async fn node_health(State(node): State<Arc<Node>>) -> Response<Body> {
    let health = node.node_health().await;
    let status = if health.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}
