//! `/api/cluster`: status, members, join, leave, leadership, replication factor, state hash. Changes here name the
//! state that they want, so doing one twice is doing it once: an `Idempotency-Key` is accepted and has no effect.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::Response,
    response::IntoResponse,
};
use hexkv_client::api::{
    Code, HashAnswer, JoinRequest, MembersAnswer, ReplicationFactorRequest, TransferLeaderRequest,
};
use serde::Deserialize;

use super::request::{BODY_BYTES_MAX, duration, json_within, key, query};
use crate::{error::Error, node::Node, service::state_hash};

type Answer = Result<Response<Body>, Error>;

/// Most routes here take no query parameters, and refuse any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

/// Changes take the longest time that their caller waits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeQuery {
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
}

/// `GET /api/cluster/status`.
pub async fn status(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    Ok(Json(node.status().await).into_response())
}

/// `GET /api/cluster/members`.
pub async fn members(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    Ok(Json(MembersAnswer { members: node.status().await.members }).into_response())
}

/// `DELETE /api/cluster/members/{name}`: answers the new status.
pub async fn remove_member(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = query::<ChangeQuery>(request.uri())?.timeout;
    let name = key(request.uri(), "/api/cluster/members/")?;
    within(limit, node.remove_member(&String::from_utf8_lossy(&name))).await?;
    Ok(Json(node.status().await).into_response())
}

/// `POST /api/cluster/join`: this node joins; answers the new status. Goes on when the caller goes away.
pub async fn join(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = query::<ChangeQuery>(request.uri())?.timeout;
    let wanted: JoinRequest =
        json_within(request, BODY_BYTES_MAX, limit.unwrap_or(node.config.request_timeout)).await?;
    let joining = node.clone();
    within(
        limit,
        finished(node.tasks.spawn(async move { joining.join(&wanted.node, wanted.discard_local_data).await })),
    )
    .await?;
    Ok(Json(node.status().await).into_response())
}

/// `POST /api/cluster/leave`: this node leaves; answers its status as a cluster of one.
pub async fn leave(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = query::<ChangeQuery>(request.uri())?.timeout;
    let leaving = node.clone();
    within(limit, finished(node.tasks.spawn(async move { leaving.leave().await }))).await?;
    Ok(Json(node.status().await).into_response())
}

/// `POST /api/cluster/transfer-leader`: answers the new status.
pub async fn transfer_leader(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = query::<ChangeQuery>(request.uri())?.timeout;
    let wanted: TransferLeaderRequest =
        json_within(request, BODY_BYTES_MAX, limit.unwrap_or(node.config.request_timeout)).await?;
    within(limit, node.transfer_leader(&wanted.to)).await?;
    Ok(Json(node.status().await).into_response())
}

/// `PUT /api/cluster/replication-factor`: answers the new status; the reconciler goes on from there.
pub async fn replication_factor(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = query::<ChangeQuery>(request.uri())?.timeout;
    let wanted: ReplicationFactorRequest =
        json_within(request, BODY_BYTES_MAX, limit.unwrap_or(node.config.request_timeout)).await?;
    within(limit, node.set_replication_factor(wanted.value)).await?;
    Ok(Json(node.status().await).into_response())
}

/// `GET /api/cluster/hash`: of this node's own state.
pub async fn hash(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let hash = state_hash(&*node.serving_core()?);
    let answer =
        HashAnswer { applied_index: hash.applied_index, revision: hash.revision, hash: format!("{:032x}", hash.hash) };
    Ok(Json(answer).into_response())
}

/// Answers after `limit` at the latest; what was begun goes on.
async fn within(limit: Option<Duration>, change: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let Some(limit) = limit else { return change.await };
    match tokio::time::timeout(limit, change).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            Code::OutcomeUnknown,
            "not done in time; it may still be. `client status` shows how far it is",
        )),
    }
}

/// A change of clusters runs in a task of its own: half of one is worse than none.
async fn finished(task: tokio::task::JoinHandle<Result<(), Error>>) -> Result<(), Error> {
    match task.await {
        Ok(result) => result,
        Err(e) => Err(Error::new(Code::Internal, format!("the change of clusters broke off: {e}"))),
    }
}
