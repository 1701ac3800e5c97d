//! The HTTP API: one line a route, one handler each in the file of its subject.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Method, Response, Uri},
    response::IntoResponse,
    routing::{delete, get, post, put},
};
use hexkv_client::api::Code;

use crate::{error::Error, node::Node};

mod cluster;
mod compact;
mod coordination;
mod election;
mod framing;
mod health;
mod held;
pub mod idempotency;
mod kv;
mod lease;
mod listing;
mod lock;
mod long_poll;
pub(crate) mod record;
mod registry;
mod request;
mod txn;
mod watch;

#[cfg(test)]
pub(crate) use watch::only;

/// All routes.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/api/kv/{*key}", get(kv::get_key).put(kv::put_key).delete(kv::delete_key))
        .route("/api/kv", get(kv::list).delete(kv::delete_range))
        .route("/api/kv/", get(kv::empty_key).put(kv::empty_key).delete(kv::empty_key))
        .route("/api/txn", post(txn::transact))
        .route("/api/locks/{name}", get(lock::status).post(lock::acquire).delete(lock::release))
        .route("/api/locks/{name}/renew", post(lock::renew))
        .route("/api/elections/{name}", get(election::observe).post(election::campaign).delete(election::resign))
        .route("/api/elections/{name}/renew", post(election::renew))
        .route("/api/registry", get(registry::list))
        .route("/api/registry/{name}", get(registry::find).put(registry::register).delete(registry::remove))
        .route("/api/watch", get(watch::watch))
        .route("/api/compact", post(compact::compact))
        .route("/api/leases", get(lease::list).post(lease::grant))
        .route("/api/leases/{id}", get(lease::show).delete(lease::revoke))
        .route("/api/leases/{id}/keepalive", post(lease::keep_alive))
        .route("/api/cluster/status", get(cluster::status))
        .route("/api/cluster/members", get(cluster::members))
        .route("/api/cluster/members/{name}", delete(cluster::remove_member))
        .route("/api/cluster/join", post(cluster::join))
        .route("/api/cluster/leave", post(cluster::leave))
        .route("/api/cluster/transfer-leader", post(cluster::transfer_leader))
        .route("/api/cluster/replication-factor", put(cluster::replication_factor))
        .route("/api/cluster/hash", get(cluster::hash))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/api/health", get(health::node_health))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(axum::middleware::from_fn(framing::unambiguous))
        .with_state(node)
}

async fn no_route(uri: Uri) -> Response<Body> {
    Error::new(Code::NotFound, format!("there is no {}; the routes are listed in the README", uri.path()))
        .into_response()
}

async fn no_method(method: Method, uri: Uri) -> Response<Body> {
    Error::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path())).into_response()
}
