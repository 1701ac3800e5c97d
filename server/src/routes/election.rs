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

use super::{
    coordination::{check_text, name, ttl_ms, wait},
    lock::TokenQuery,
    request::{BODY_BYTES_MAX, json_within, query},
};
use crate::{
    coordination::queue::{Entry, Place, Queue, View, lease_of, token},
    error::Error,
    http_server::Connection,
    node::Node,
    watch::Watcher,
};

const PREFIX: &str = "/api/elections/";
/// Between two comments on an observer's stream, so that a connection that broke is noticed.
const COMMENT_INTERVAL: Duration = Duration::from_secs(10);

type Answer = Result<Response<Body>, Error>;

/// Routes that take no query parameters refuse any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObserveQuery {
    /// `?watch`, `?watch=` or `?watch=true`.
    watch: Option<String>,
}

/// `POST /api/elections/{name}`: stands for election, and waits for leadership.
pub async fn campaign(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let queue = Queue::election(&name(request.uri(), PREFIX, "")?);
    let wanted: CampaignRequest = json_within(request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    check_text("candidate", &wanted.candidate, false)?;
    check_text("value", wanted.value.as_deref().unwrap_or_default(), true)?;
    let entry = Entry { owner: wanted.candidate, value: wanted.value, ttl_ms: ttl_ms(wanted.ttl)? };
    let place = queue.acquire(&node, entry, wait(wanted.wait.as_deref())?).await?;
    Ok(Json(answer(place)).into_response())
}

/// `POST /api/elections/{name}/renew`: the leader leads for its full time again.
pub async fn renew(State(node): State<Arc<Node>>, request: Request) -> Answer {
    query::<NoQuery>(request.uri())?;
    let queue = Queue::election(&name(request.uri(), PREFIX, "/renew")?);
    let wanted: RenewRequest = json_within(request, BODY_BYTES_MAX, node.config.request_timeout).await?;
    let place = queue.renew(&node, lease_of(&wanted.token)?).await?;
    Ok(Json(answer(place)).into_response())
}

/// `DELETE /api/elections/{name}?token=`: resigns.
pub async fn resign(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let q = query::<TokenQuery>(request.uri())?;
    Queue::election(&name(request.uri(), PREFIX, "")?).release(&node, lease_of(&q.token)?).await?;
    Ok(Json(ReleaseAnswer { released: true }).into_response())
}

/// `GET /api/elections/{name}`: who leads; with `?watch` whoever leads from now on, as server-sent events.
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
