//! `/api/elections`: one leader at a time, and everyone can see which.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::Response,
    response::{
        IntoResponse,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::stream;
use hexkv_client::api::{CampaignAnswer, CampaignRequest, ElectionStatus, Leader, ReleaseAnswer, RenewRequest};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    coordination::{self, TokenQuery, check_text, name, ttl_ms, wait},
    idempotency::marked,
    openapi::{
        parameters::{IdempotencyKey, NameInPath},
        problems::{Busy, KeyMismatch, NotHolding, NotServing, Refused, Taken, TooLarge, TooSlow, Unknown},
        schemas,
    },
    request::query,
};
use crate::{
    coordination::queue::{Entry, Place, Queue, View, token},
    error::Error,
    http_server::Connection,
    node::Node,
    watch::Watcher,
};

const PREFIX: &str = "/api/elections/";
/// Between two comments on an observer's stream, so that a connection that broke is noticed.
const COMMENT_INTERVAL: Duration = Duration::from_secs(10);

type Answer = Result<Response<Body>, Error>;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ObserveQuery {
    /// `?watch`, `?watch=` or `?watch=true`: follow who leads from now on.
    #[param(value_type = Option<schemas::Follow>)]
    watch: Option<String>,
}

/// Stands for election, and waits for leadership.
///
/// 409 when the candidate does not lead within `wait` (not at all unless given, at most 24 h), 429 when 1,000 stand in line.
#[utoipa::path(post, path = "/api/elections/{name}", operation_id = "campaign", tag = "elections",
    params(NameInPath, IdempotencyKey),
    request_body(content = CampaignRequest,
        example = json!({"candidate": "host-1", "value": "10.0.0.1:9000", "ttl": "30s", "wait": "10s"})),
    responses(
        (status = 200, description = "It leads", body = CampaignAnswer,
            example = json!({"token": "5912837465018273", "candidate": "host-1", "fencing_token": 42, "ttl_ms": 30000})),
        Refused, TooSlow, KeyMismatch, Taken, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn campaign(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let (place, replayed) =
        coordination::acquire(&node, request, PREFIX, Queue::election, |wanted: CampaignRequest| {
            check_text("candidate", &wanted.candidate, false)?;
            check_text("value", wanted.value.as_deref().unwrap_or_default(), true)?;
            let entry = Entry { owner: wanted.candidate, value: wanted.value, ttl_ms: ttl_ms(wanted.ttl)? };
            Ok((entry, wait(wanted.wait.as_deref())?))
        })
        .await?;
    Ok(marked(answer(place), replayed))
}

/// Renews leadership: the leader leads for its full time again.
#[utoipa::path(post, path = "/api/elections/{name}/renew", operation_id = "renew_leadership", tag = "elections",
    params(NameInPath),
    request_body(content = RenewRequest, example = json!({"token": "5912837465018273"})),
    responses(
        (status = 200, description = "It leads", body = CampaignAnswer,
            example = json!({"token": "5912837465018273", "candidate": "host-1", "fencing_token": 42, "ttl_ms": 30000})),
        Refused, TooSlow, NotHolding, TooLarge, Busy, NotServing,
    ))]
pub async fn renew(State(node): State<Arc<Node>>, request: Request) -> Answer {
    Ok(Json(answer(coordination::renew(&node, request, PREFIX, Queue::election).await?)).into_response())
}

/// Resigns: the next candidate leads.
#[utoipa::path(delete, path = "/api/elections/{name}", operation_id = "resign", tag = "elections",
    params(NameInPath, TokenQuery, IdempotencyKey),
    responses(
        (status = 200, description = "Given up", body = ReleaseAnswer, example = json!({"released": true})),
        Refused, KeyMismatch, NotHolding, TooLarge, Busy, NotServing, Unknown,
    ))]
pub async fn resign(State(node): State<Arc<Node>>, request: Request) -> Answer {
    coordination::release(&node, request, PREFIX, Queue::election).await
}

/// Shows who leads, or follows it.
///
/// With `?watch` as server-sent events `leader`: one at once, then one for each new leader, or none. That stream ends when the
/// node stops.
#[utoipa::path(get, path = "/api/elections/{name}", operation_id = "observe_election", tag = "elections",
    params(NameInPath, ObserveQuery),
    responses(
        (status = 200, description = "Who leads", content(
            (ElectionStatus = "application/json", example = json!({"leader": {"candidate": "host-1", "fencing_token": 42}, "candidates": [], "revision": 42})),
            (String = "text/event-stream"),
        )),
        Refused, TooLarge, Busy, NotServing,
    ))]
pub async fn observe(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<ObserveQuery>(request.uri())?;
    let queue = Queue::election(&name(request.uri(), PREFIX, "")?);
    let follow = match q.watch.as_deref() {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => return Err(Error::invalid(format!("watch is true or false, not {other:?}"))),
    };
    let line = queue.look(&node, 0).await?;
    if !follow {
        return Ok(Json(status(&line)).into_response());
    }
    let watcher = queue.watch(&node, &line).await?;
    if let Some(connection) = request.extensions().get::<Connection>() {
        connection.streams();
    }
    let observer = Observer { node, queue, watcher, told: None, line: Some(line) };
    let events = stream::unfold(observer, |mut observer| async move {
        let event = observer.next().await?;
        Some((Ok::<_, Infallible>(event), observer))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(COMMENT_INTERVAL)).into_response())
}

/// Follows one election. Ends when its watch does: the observer asks again, here or elsewhere.
struct Observer {
    node: Arc<Node>,
    queue: Queue,
    watcher: Watcher,
    /// Fencing token of the leader that was told last; None inside = nobody led.
    told: Option<Option<u64>>,
    /// What was read and not told yet.
    line: Option<View>,
}

impl Observer {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            let line = match self.line.take() {
                Some(line) => line,
                None => {
                    let mut revision = self.watcher.next().await.ok()?.revision();
                    // What changed meanwhile is seen by the same look.
                    while let Some(batch) = self.watcher.try_next() {
                        revision = batch.revision();
                    }
                    self.queue.look(&self.node, revision).await.ok()?
                }
            };
            let leader = line.places.first().map(|place| place.fencing_token);
            if self.told == Some(leader) {
                continue;
            }
            self.told = Some(leader);
            let event = sse::Event::default().event("leader").id(line.revision.to_string());
            return event.json_data(status(&line)).ok();
        }
    }
}

fn status(line: &View) -> ElectionStatus {
    ElectionStatus {
        leader: line.places.first().map(leader),
        candidates: line.places.iter().skip(1).map(|place| place.entry.owner.clone()).collect(),
        revision: line.revision,
    }
}

fn leader(place: &Place) -> Leader {
    Leader {
        candidate: place.entry.owner.clone(),
        value: place.entry.value.clone(),
        fencing_token: place.fencing_token,
    }
}

fn answer(place: Place) -> CampaignAnswer {
    CampaignAnswer { token: token(place.lease), leader: leader(&place), ttl_ms: place.entry.ttl_ms }
}
