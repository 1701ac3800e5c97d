//! `/api/registry`: unique names, each with an owner and an address, under a lease.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::Response,
    response::IntoResponse,
};
use hexkv_client::api::{Code, RegisterRequest, Registration, RegistryAnswer, UnregisterAnswer};
use serde::Deserialize;

use super::{
    coordination::{check_text, name, ttl_ms},
    request::{BODY_BYTES_MAX, json_within, list_limit, query},
};
use crate::{
    coordination::registry::{self, Entry},
    error::Error,
    node::Node,
};

const PREFIX: &str = "/api/registry/";

type Answer = Result<Response<Body>, Error>;

/// Routes that take no query parameters refuse any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<u32>,
    after: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    owner: Option<String>,
}

/// `PUT /api/registry/{name}`: registers a name, or renews it.
pub async fn register(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let name = name(request.uri(), PREFIX, "")?;
    let wanted: RegisterRequest = json_within(request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    check_text("owner", &wanted.owner, false)?;
    check_text("address", &wanted.address, false)?;
    let entry = Entry { owner: wanted.owner, address: wanted.address, ttl_ms: ttl_ms(wanted.ttl)? };
    Ok(Json(shown(registry::register(&node, &name, entry).await?)).into_response())
}

/// `GET /api/registry/{name}`.
pub async fn find(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let name = name(request.uri(), PREFIX, "")?;
    match registry::find(&node, &name).await? {
        Some(registration) => Ok(Json(shown(registration)).into_response()),
        None => Err(Error::new(Code::NotFound, format!("nobody registered {name:?}"))),
    }
}

/// `GET /api/registry`.
pub async fn list(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<ListQuery>(request.uri())?;
    let (found, more) = registry::list(&node, q.after.as_deref(), list_limit(q.limit)?).await?;
    let next = found.last().filter(|_| more).map(|last| last.name.clone());
    Ok(Json(RegistryAnswer { items: found.into_iter().map(shown).collect(), next }).into_response())
}

/// `DELETE /api/registry/{name}`.
pub async fn remove(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<RemoveQuery>(request.uri())?;
    registry::remove(&node, &name(request.uri(), PREFIX, "")?, q.owner.as_deref()).await?;
    Ok(Json(UnregisterAnswer { removed: true }).into_response())
}

fn shown(registration: registry::Registration) -> Registration {
    let registry::Registration { name, entry, lease: _, revision } = registration;
    Registration { name, owner: entry.owner, address: entry.address, ttl_ms: entry.ttl_ms, revision }
}
