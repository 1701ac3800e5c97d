//! One request over a pooled connection, and whether it may have been delivered.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

use crate::hang_up::{Connector, HangUp};

/// Largest answer that is taken, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// An idle connection is closed after this, sooner than servers usually do.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// What the node asks to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// A header that holds a number, in quotes or without.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.to_str().ok()?.trim_start_matches("W/").trim_matches('"').parse().ok()
    }
}

/// Why there is no complete answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// Not a byte of the request was written.
    NotSent(String),
    /// It was written in part or in full, or may have been.
    MaybeSent(String),
}

/// Keep-alive connections to any number of nodes.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: legacy::Client<Connector, Full<Bytes>>,
    hang_up: Option<HangUp>,
}

impl Transport {
    /// No connection is made yet; each attempt to make one ends after `connect_timeout`. With `hang_up` all of them end by it.
    pub fn new(connect_timeout: Duration, hang_up: Option<HangUp>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .build(Connector::new(tcp, hang_up.clone()));
        Self { client, hang_up }
    }

    /// Sleeps for `time`; false when the caller gave up before or meanwhile.
    pub async fn sleep(&self, time: Duration) -> bool {
        let Some(hang_up) = &self.hang_up else {
            tokio::time::sleep(time).await;
            return true;
        };
        tokio::select! {
            biased;
            () = hang_up.done() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    /// Sends `request` and reads the whole answer before `deadline`.
    pub async fn send(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Result<Reply, SendError> {
        let answered = timeout_at(deadline, self.exchange(request));
        answered.await.unwrap_or_else(|_| Err(SendError::MaybeSent("no answer in time".to_owned())))
    }

    /// Sends `request`, and gives a successful answer once its head is there; any other one whole.
    pub async fn open(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Result<Response<Incoming>, Reply>, SendError> {
        let opened = async {
            let response = self.client.request(request).await.map_err(|error| SendError::MaybeSent(chain(&error)))?;
            if response.status().is_success() { Ok(Ok(response)) } else { whole(response).await.map(Err) }
        };
        timeout_at(deadline, opened).await.unwrap_or_else(|_| Err(SendError::MaybeSent("no answer in time".to_owned())))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply, SendError> {
        let response = self.client.request(request).await.map_err(|error| {
            let text = chain(&error);
            if error.is_connect() || never_started(&error) {
                SendError::NotSent(text)
            } else {
                SendError::MaybeSent(text)
            }
        })?;
        whole(response).await
    }
}

async fn whole(response: Response<Incoming>) -> Result<Reply, SendError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| SendError::MaybeSent(format!("answer cut off: {error}")))?.to_bytes();
    Ok(Reply { status: head.status, headers: head.headers, body })
}

/// Whether hyper gave the request back unwritten: it cancels only what it has not begun.
fn never_started(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error with all its causes.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        if !text.contains(&further) {
            text.push_str(": ");
            text.push_str(&further);
        }
        cause = error.source();
    }
    text
}
