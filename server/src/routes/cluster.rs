//! `/api/cluster`: status, members, join, leave, leadership, replication factor, state hash. Changes here name the
//! state that they want, and their outcomes are not kept: an `Idempotency-Key` is refused.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::Response,
    response::IntoResponse,
};
use hexkv_client::api::{
    ClusterStatus, Code, ExplainAnswer, HashAnswer, JoinRequest, MembersAnswer, NodeCheck, ReplicationFactorRequest,
    TransferLeaderRequest,
};

use super::{
    idempotency::without_key,
    openapi::{
        parameters::MemberInPath,
        problems::{Busy, CannotJoin, LastOne, NotServing, NotThere, Refused, TooLarge, TooSlow, Unknown},
    },
    request::{BODY_BYTES_MAX, NoQuery, TimeoutQuery, json_within, key, query},
};
use crate::{error::Error, node::Node, service::state_hash};

type Answer = Result<Response<Body>, Error>;

/// Shows the cluster as this node and its leader see it.
///
/// A member is `up` while the leader heard from it within twice `HEARTBEAT_TIMEOUT`, `unknown` when the leader cannot be asked.
#[utoipa::path(get, path = "/api/cluster/status", operation_id = "cluster_status", tag = "cluster",
    responses((status = 200, description = "The cluster", body = ClusterStatus), Refused))]
pub async fn status(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    Ok(Json(node.status().await).into_response())
}

/// Explains the membership.
///
/// What the leader sees and waits for, in sentences, and the last steps that it took.
#[utoipa::path(get, path = "/api/cluster/explain", operation_id = "explain_cluster", tag = "cluster",
    responses((status = 200, description = "Why the membership is as it is", body = ExplainAnswer), Refused, NotServing))]
pub async fn explain(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    Ok(Json(node.explain().await?).into_response())
}

/// Lists the members.
#[utoipa::path(get, path = "/api/cluster/members", operation_id = "list_members", tag = "cluster",
    responses((status = 200, description = "All members, by name", body = MembersAnswer), Refused))]
pub async fn members(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    Ok(Json(MembersAnswer { members: node.status().await.members }).into_response())
}

/// Removes a member that is gone for good.
///
/// Waits up to 60 s until it is out. After 504 it goes on.
#[utoipa::path(delete, path = "/api/cluster/members/{name}", operation_id = "remove_member", tag = "cluster",
    params(MemberInPath, TimeoutQuery),
    responses(
        (status = 200, description = "It is out", body = ClusterStatus),
        Refused, NotThere, LastOne, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn remove_member(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = limit(&request)?;
    let name = key(request.uri(), "/api/cluster/members/")?;
    within(limit, node.remove_member(&String::from_utf8_lossy(&name))).await?;
    Ok(Json(node.status().await).into_response())
}

/// Lets the node that is asked join a cluster.
///
/// 200 when it has its role: up to 10 s for being taken in and 60 s for catching up. Goes on when the caller goes away. A node
/// with user data of its own is refused unless told to discard it.
#[utoipa::path(post, path = "/api/cluster/join", operation_id = "join", tag = "cluster",
    params(TimeoutQuery),
    request_body(content = JoinRequest, example = json!({"node": "hex_hub1@127.0.0.1:9100", "discard_local_data": false})),
    responses(
        (status = 200, description = "It is a member", body = ClusterStatus),
        Refused, TooSlow, CannotJoin, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn join(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = limit(&request)?;
    let wanted: JoinRequest =
        json_within(&node.bodies, request, BODY_BYTES_MAX, limit.unwrap_or(node.config.request_timeout)).await?;
    let joining = node.clone();
    within(
        limit,
        finished(node.tasks.spawn(async move { joining.join(&wanted.node, wanted.discard_local_data).await })),
    )
    .await?;
    Ok(Json(node.status().await).into_response())
}

/// Lets the node that is asked leave its cluster.
///
/// Another voter takes over leadership, a standby its place; then it is a new cluster of one, without data.
#[utoipa::path(post, path = "/api/cluster/leave", operation_id = "leave", tag = "cluster",
    params(TimeoutQuery),
    responses(
        (status = 200, description = "Its new cluster of one", body = ClusterStatus),
        Refused, LastOne, Busy, NotServing, Unknown,
    ))]
pub async fn leave(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = limit(&request)?;
    let leaving = node.clone();
    within(limit, finished(node.tasks.spawn(async move { leaving.leave().await }))).await?;
    Ok(Json(node.status().await).into_response())
}

/// Hands leadership over.
#[utoipa::path(post, path = "/api/cluster/transfer-leader", operation_id = "transfer_leader", tag = "cluster",
    params(TimeoutQuery),
    request_body(content = TransferLeaderRequest, example = json!({"to": "hex_hub1@127.0.0.1"})),
    responses(
        (status = 200, description = "It leads", body = ClusterStatus),
        Refused, NotThere, TooSlow, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn transfer_leader(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = limit(&request)?;
    let wanted: TransferLeaderRequest =
        json_within(&node.bodies, request, BODY_BYTES_MAX, limit.unwrap_or(node.config.request_timeout)).await?;
    within(limit, node.transfer_leader(&wanted.to)).await?;
    Ok(Json(node.status().await).into_response())
}

/// Sets how many members vote and hold the data.
///
/// 200 when the number is committed; the voters follow one step at a time.
#[utoipa::path(put, path = "/api/cluster/replication-factor", operation_id = "set_replication_factor", tag = "cluster",
    params(TimeoutQuery),
    request_body(content = ReplicationFactorRequest, example = json!({"value": 3})),
    responses(
        (status = 200, description = "Committed", body = ClusterStatus),
        Refused, TooSlow, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn replication_factor(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let limit = limit(&request)?;
    let wanted: ReplicationFactorRequest =
        json_within(&node.bodies, request, BODY_BYTES_MAX, limit.unwrap_or(node.config.request_timeout)).await?;
    within(limit, node.set_replication_factor(wanted.value)).await?;
    Ok(Json(node.status().await).into_response())
}

/// Hashes this node's own state: equal on all nodes at an equal index.
#[utoipa::path(get, path = "/api/cluster/hash", operation_id = "state_hash", tag = "cluster",
    responses((status = 200, description = "The hash", body = HashAnswer), Refused, NotServing))]
pub async fn hash(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let hash = state_hash(&*node.serving_core()?);
    let answer =
        HashAnswer { applied_index: hash.applied_index, revision: hash.revision, hash: format!("{:032x}", hash.hash) };
    Ok(Json(answer).into_response())
}

/// Checks this node, and its way to each other member.
///
/// Its clock, data directory, cookie file and limits; names, raft ports and cookies of the others, each tried for up to 5 s. Neither
/// side sends the cookie. `client doctor` asks every node.
#[utoipa::path(get, path = "/api/cluster/check", operation_id = "check_node", tag = "cluster",
    responses((status = 200, description = "What was found", body = NodeCheck), Refused, Busy))]
pub async fn check(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let turn = tokio::time::timeout(node.config.request_timeout, node.checks.acquire()).await;
    let Ok(Ok(_turn)) = turn else { return Err(Error::checks_overloaded()) };
    Ok(Json(node.check().await).into_response())
}

/// How long whoever asks for a change of the cluster waits at most.
fn limit(request: &Request) -> Result<Option<Duration>, Error> {
    without_key(request)?;
    Ok(query::<TimeoutQuery>(request.uri())?.timeout)
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
