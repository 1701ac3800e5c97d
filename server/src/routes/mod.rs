//! The HTTP API: one line a route, one handler each in the file of its subject.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Method, Response, Uri},
    response::IntoResponse,
};
use hexkv_client::api::Code;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{error::Error, metrics::http::HttpMetrics, node::Node};

mod checks;
mod cluster;
mod compact;
mod coordination;
mod election;
mod events;
mod health;
mod held;
mod host;
pub mod idempotency;
mod kv;
mod lease;
mod listing;
mod lock;
mod long_poll;
mod metrics;
mod openapi;
pub(crate) mod preconditions;
pub(crate) mod record;
mod registry;
mod request;
mod snapshot;
mod txn;
mod watch;

#[cfg(test)]
pub(crate) use watch::only;

/// All routes, each with its description: the document is made of the same list.
fn routes() -> OpenApiRouter<Arc<Node>> {
    OpenApiRouter::new()
        .routes(routes!(kv::get_key, kv::change::put_key, kv::change::delete_key))
        .routes(routes!(kv::list, kv::change::delete_range))
        .routes(routes!(txn::transact))
        .routes(routes!(lock::status, lock::acquire, lock::release))
        .routes(routes!(lock::renew))
        .routes(routes!(election::observe, election::campaign, election::resign))
        .routes(routes!(election::renew))
        .routes(routes!(registry::list))
        .routes(routes!(registry::find, registry::register, registry::remove))
        .routes(routes!(watch::watch))
        .routes(routes!(compact::compact))
        .routes(routes!(lease::list, lease::grant))
        .routes(routes!(lease::show, lease::revoke))
        .routes(routes!(lease::keep_alive))
        .routes(routes!(cluster::status))
        .routes(routes!(cluster::members))
        .routes(routes!(cluster::explain))
        .routes(routes!(cluster::remove_member))
        .routes(routes!(cluster::join))
        .routes(routes!(cluster::leave))
        .routes(routes!(cluster::transfer_leader))
        .routes(routes!(cluster::replication_factor))
        .routes(routes!(cluster::hash))
        .routes(routes!(snapshot::save))
        .routes(routes!(events::events))
        .routes(routes!(cluster::check))
        .routes(routes!(health::health))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::node_health))
        .routes(routes!(openapi::describe))
        .routes(routes!(metrics::metrics))
}

/// What serves `node`.
pub fn router(node: Arc<Node>) -> Router {
    let (router, described) = routes().split_for_parts();
    node.metrics.http.get_or_init(|| HttpMetrics::new(described.paths.paths.into_keys()));
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(axum::middleware::from_fn_with_state(node.clone(), checks::checked))
        .layer(axum::middleware::from_fn_with_state(node.clone(), metrics::counted))
        .with_state(node)
}

async fn no_route(uri: Uri) -> Response<Body> {
    if uri.path() == "/api/kv/" {
        let why = "the key is empty; a key has at least one byte (to list keys: GET /api/kv?prefix=)";
        return Error::invalid(why).into_response();
    }
    Error::new(Code::NotFound, format!("there is no {}; GET /api/openapi.json lists the routes", uri.path()))
        .into_response()
}

async fn no_method(method: Method, uri: Uri) -> Response<Body> {
    Error::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path())).into_response()
}
