//! What the HTTP port answers while the node opens its data: that the process lives, and how far it is.
//!
//! A large log takes minutes to read, a large state to make again. Connections that merely hang meanwhile look like a dead
//! node to all that watch it.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, Response, StatusCode},
    response::IntoResponse,
};
use hexkv_client::api::{Code, HealthAnswer};
use hexkv_raft_net::transport::{Accepted, AnyListener, Listener};
use hexkv_store::opening::Opening;
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::error::Error;

/// Most connections that are answered at a time while the node starts; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// Longest time of one connection, from its first byte to the last of its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a body that are taken before the answer, so that the client reads it.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// After the listener failed to accept, it waits this long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often the log shows how far a start is.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Answers on `listener` for as long as it is polled: one request a connection.
pub async fn answer(listener: &mut AnyListener, progress: &Opening) -> Infallible {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok(Accepted { stream, .. }) => {
                let progress = progress.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| respond(request, progress.clone()));
                    let mut builder = hyper::server::conn::http1::Builder::new();
                    builder.timer(TokioTimer::new()).header_read_timeout(CONNECTION_TIMEOUT).keep_alive(false);
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
                        Err(_) => tracing::debug!("a connection took too long while the node starts"),
                    }
                    drop(permit);
                });
            }
            Err(e) => accept_failed(&e).await,
        }
    }
}

async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

/// Logs how far `progress` is, at bounded intervals, for as long as it is polled.
pub async fn log(progress: &Opening) -> Infallible {
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + LOG_INTERVAL, LOG_INTERVAL);
    loop {
        tick.tick().await;
        if let Some(step) = progress.step() {
            tracing::info!("opening the data: {step}");
        }
    }
}

/// How far a node is that opens its data.
pub fn described(progress: &Opening) -> String {
    match progress.step() {
        Some(step) => format!("this node opens its data ({step})"),
        None => "this node opens its data".into(),
    }
}

async fn respond(request: Request<Incoming>, progress: Opening) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    if let Err(error) = Limited::new(body, BODY_BYTES_MAX).collect().await {
        tracing::debug!(%error, "a body was not taken while the node starts");
    }
    Ok(answer_to(head.uri.path(), &progress))
}

fn answer_to(path: &str, progress: &Opening) -> Response<Body> {
    let health = |status: &str, reason| {
        (StatusCode::OK, axum::Json(HealthAnswer { status: status.into(), reason })).into_response()
    };
    match path {
        "/health/live" => health("ok", None),
        "/health" => health("degraded", Some(described(progress))),
        _ => Error::new(
            Code::Unavailable,
            format!("{}; nothing was changed. Retry later, or ask another node", described(progress)),
        )
        .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_liveness_is_granted_and_progress_is_named() {
        let progress = Opening::default();
        progress.begin("reading the log", "files", Some(12));
        progress.advance(3);
        assert_eq!(answer_to("/health/live", &progress).status(), StatusCode::OK);
        assert_eq!(answer_to("/health", &progress).status(), StatusCode::OK);
        for path in ["/health/ready", "/api/kv/k", "/metrics", "/"] {
            let answer = answer_to(path, &progress);
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&body);
            assert!(text.contains("reading the log: 3 of 12 files") && text.contains("\"unavailable\""), "{text}");
        }
    }
}
