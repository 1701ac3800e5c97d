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
use utoipa::IntoParams;

use super::{
    coordination::{check_text, name, ttl_ms},
    idempotency::{ChangeRequest, marked},
    openapi::{
        parameters::{IdempotencyKey, NameInPath},
        problems::{Busy, KeyMismatch, NotServing, NotThere, Owned, Refused, TooLarge, TooSlow, Unknown},
        schemas,
    },
    request::{BODY_BYTES_MAX, NoQuery, json_with_body, list_limit, query},
};
use crate::{
    coordination::{
        STEP_TIMEOUT, check_name,
        registry::{self, Entry},
    },
    error::Error,
    node::Node,
};

const PREFIX: &str = "/api/registry/";

type Answer = Result<Response<Body>, Error>;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Items on a page.
    #[param(value_type = Option<schemas::Limit>)]
    limit: Option<u32>,
    /// `next` of the page before: names after it.
    #[param(value_type = Option<schemas::Name>)]
    after: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Only when the name is this one's.
    #[param(value_type = Option<schemas::Owner>)]
    owner: Option<String>,
}

/// Registers a name, or renews it, and moves it, for the same owner.
#[utoipa::path(put, path = "/api/registry/{name}", operation_id = "register", tag = "registry",
    params(NameInPath, IdempotencyKey),
    request_body(content = RegisterRequest,
        example = json!({"owner": "host-1", "address": "10.0.0.1:5432", "ttl": "30s"})),
    responses(
        (status = 200, description = "Registered", body = Registration,
            example = json!({"name": "db-main", "owner": "host-1", "address": "10.0.0.1:5432", "ttl_ms": 30000, "revision": 42})),
        Refused, TooSlow, KeyMismatch, Owned, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn register(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let name = name(request.uri(), PREFIX, "")?;
    let asked = ChangeRequest::of(&request, STEP_TIMEOUT)?;
    let (wanted, body) =
        json_with_body::<RegisterRequest>(&node.bodies, request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    check_text("owner", &wanted.owner, false)?;
    check_text("address", &wanted.address, false)?;
    let entry = Entry { owner: wanted.owner, address: wanted.address, ttl_ms: ttl_ms(wanted.ttl)? };
    let (registration, replayed) = registry::register(&node, &name, entry, &asked.with_body(&body)).await?;
    Ok(marked(shown(registration), replayed))
}

/// Finds a name.
#[utoipa::path(get, path = "/api/registry/{name}", operation_id = "find_name", tag = "registry",
    params(NameInPath),
    responses(
        (status = 200, description = "Registered", body = Registration,
            example = json!({"name": "db-main", "owner": "host-1", "address": "10.0.0.1:5432", "ttl_ms": 30000, "revision": 42})),
        Refused, NotThere, TooLarge, Busy, NotServing,
    ))]
pub async fn find(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let name = name(request.uri(), PREFIX, "")?;
    match registry::find(&node, &name).await? {
        Some(registration) => Ok(Json(shown(registration)).into_response()),
        None => Err(Error::new(Code::NotFound, format!("nobody registered {name:?}"))),
    }
}

/// Lists names in their order.
#[utoipa::path(get, path = "/api/registry", operation_id = "list_names", tag = "registry",
    params(ListQuery),
    responses((status = 200, description = "A page", body = RegistryAnswer), Refused, Busy, NotServing))]
pub async fn list(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<ListQuery>(request.uri())?;
    if let Some(after) = q.after.as_deref().filter(|after| !after.is_empty()) {
        check_name(after)?;
    }
    let (found, more) = registry::list(&node, q.after.as_deref(), list_limit(q.limit)?).await?;
    let next = found.last().filter(|_| more).map(|last| last.name.clone());
    Ok(Json(RegistryAnswer { items: found.into_iter().map(shown).collect(), next }).into_response())
}

/// Takes a name out.
#[utoipa::path(delete, path = "/api/registry/{name}", operation_id = "unregister", tag = "registry",
    params(NameInPath, RemoveQuery, IdempotencyKey),
    responses(
        (status = 200, description = "It is not there", body = UnregisterAnswer, example = json!({"removed": true})),
        Refused, KeyMismatch, NotThere, Owned, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn remove(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<RemoveQuery>(request.uri())?;
    check_text("owner", q.owner.as_deref().unwrap_or_default(), true)?;
    let name = name(request.uri(), PREFIX, "")?;
    let context = ChangeRequest::of(&request, STEP_TIMEOUT)?.with_body(&[]);
    let replayed = registry::remove(&node, &name, q.owner.as_deref(), &context).await?;
    Ok(marked(UnregisterAnswer { removed: true }, replayed))
}

fn shown(registration: registry::Registration) -> Registration {
    let registry::Registration { name, entry, lease: _, revision } = registration;
    Registration { name, owner: entry.owner, address: entry.address, ttl_ms: entry.ttl_ms, revision }
}
