//! HTTP listener: connections with limits, and a stop that lets requests finish.
//!
//! | part | subject |
//! |---|---|
//! | `exchange` | the request in progress on a connection: the bounds of its head and body |
//! | `client_stream` | the bytes of a connection, and how it is closed |
//! | `write_deadline` | the end of clients that do not read |
//! | `connection` | what handlers and connections report to each other |

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    http::{HeaderValue, Request, Response, StatusCode, Version, header},
};
use hexkv_client::api::Code;
use hexkv_raft_net::transport::{Accepted, Listener};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;

mod client_stream;
mod connection;
mod exchange;
mod write_deadline;

use client_stream::ClientStream;
pub use client_stream::LINGER_MAX;
pub use connection::{Connection, HALF_CLOSED_MAX};
use exchange::Exchange;
use write_deadline::WriteDeadline;

use crate::error::Error;

/// A client that needs longer to send its request head is cut off; also one that sends nothing on a kept connection.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request head and read buffer, in bytes: a key of 4 KiB is 12 KiB percent-encoded.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// A client that takes nothing of its answer for so long is cut off.
pub const ANSWER_TAKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections beyond the limit that are answered at a time; further ones are closed without an answer.
const REFUSALS_MAX: usize = 64;
/// Longest wait for the request line of one.
const REFUSED_LINE_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes of such a request that are looked at.
const REFUSED_LINE_BYTES_MAX: usize = 1024;
/// Longest time for the answer to one.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// What supervisors ask, and end a process by: it is answered beyond the limit of connections, too.
const LIVENESS: &str = "/health/live";
/// After the listener failed to accept (out of file descriptors), it waits so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Time between two log lines about such failures.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Once the server stops, it takes the connections that wait to be accepted, until none came for so long: those that wait when
/// the listener closes are reset, with what their clients sent.
const ACCEPT_DRAIN: Duration = Duration::from_millis(5);

/// Once the listener is closed, each answer says that it is the last on its connection (not before: the client would come back
/// at once), and clients that keep one without asking anything have so long for one more request: closed at once, a connection
/// may take a request with it that its client had just sent, and would leave it without an answer.
const IDLE_DRAIN: Duration = Duration::from_millis(500);

/// Serves `router` until `stopping`, as many connections at a time as there is `room`; further ones are refused. Then no new
/// connections, one more request for each that there is, within half a second, and at most `drain` for the requests in
/// progress.
pub async fn serve(
    mut listener: impl Listener,
    router: Router,
    room: Arc<Semaphore>,
    stopping: CancellationToken,
    drain: Duration,
) {
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let graceful = GracefulShutdown::new();
    let (open, deaf) = (TaskTracker::new(), CancellationToken::new());
    let overdue = async {
        stopping.cancelled().await;
        tokio::time::sleep(IDLE_DRAIN).await;
    };
    tokio::pin!(overdue);
    let mut builder = connection_builder();
    let mut failures = AcceptFailures::default();
    loop {
        let accepted = tokio::select! {
            accepted = next_connection(&mut listener, &stopping) => accepted,
            () = &mut overdue => None,
        };
        let Accepted { stream, close, from: _ } = match accepted {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(e)) => {
                failures.log(&e);
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            if let Ok(permit) = refusals.clone().try_acquire_owned() {
                tokio::spawn(refuse(stream, router.clone(), permit));
            }
            continue;
        };
        let exchange = Exchange::default();
        let stream = ClientStream::new(WriteDeadline::new(stream, ANSWER_TAKEN_TIMEOUT), exchange.clone());
        // Where the close of a connection can be seen, it is decided here what a half-closed one is still served.
        builder.half_close(close.is_some());
        let control = Connection::new(close, exchange);
        let (router, shared, last) = (router.clone(), control.clone(), deaf.clone());
        let service = service_fn(move |request| answer(&router, &shared, last.clone(), request));
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        let stopping = stopping.clone();
        open.spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(e) = ended {
                        tracing::debug!(error = %e, "a connection ended early");
                    }
                }
                () = control.gone() => tracing::debug!("a client closed its connection; its request is given up"),
                () = control.overdue(&stopping) => tracing::debug!("a stream's client does not read; it is cut off"),
            }
            drop(permit);
        });
    }
    drop(listener);
    deaf.cancel();
    open.close();
    if tokio::time::timeout(IDLE_DRAIN, open.wait()).await.is_err() {
        tracing::debug!(connections = open.len(), "not all clients were told that this node stops");
    }
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(?drain, "some requests did not finish in time");
    }
}

/// The answer to one request of a connection. Where nothing may follow it, it says so.
fn answer(
    router: &Router,
    connection: &Connection,
    last: CancellationToken,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
    let working = connection.works();
    let exchange = connection.exchange().clone();
    let mut request = request.map(|body| exchange.begin(body));
    let waits_for_continue = request.headers().contains_key(header::EXPECT);
    // Without chunks only the close shows where an answer ends whose length is not known (RFC 9112 section 6.3).
    let needs_length = request.version() < Version::HTTP_11;
    request.extensions_mut().insert(connection.clone());
    let answer = router.clone().call(request);
    async move {
        let mut answer = answer.await?;
        drop(working);
        let is_endless = needs_length && answer.body().size_hint().exact().is_none();
        if !exchange.finish(waits_for_continue).await || is_endless || last.is_cancelled() {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if answer.status() == StatusCode::NOT_MODIFIED {
            // axum gives a HEAD the length of the empty body, where it would be that of the value (RFC 9110 section 8.6).
            answer.headers_mut().remove(header::CONTENT_LENGTH);
        }
        Ok(answer)
    }
}

fn connection_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // Without hyper's `pipeline_flush`: it lifts the bound of what is buffered for a client that does not read, holds an
    // answer back while more input waits, and loses it when the connection ends there, as after a refused request.
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    builder
}

/// Failures to accept, of which not each is worth a line: they come in rows.
#[derive(Default)]
struct AcceptFailures {
    logged: Option<Instant>,
    unlogged: u64,
}

impl AcceptFailures {
    fn log(&mut self, error: &io::Error) {
        if self.logged.is_some_and(|logged| logged.elapsed() < ACCEPT_LOG_INTERVAL) {
            self.unlogged += 1;
            return;
        }
        tracing::warn!(%error, since_last_logged = self.unlogged, "cannot accept a connection");
        (self.logged, self.unlogged) = (Some(Instant::now()), 0);
    }
}

/// The next connection; None when the server stops and none waits to be accepted.
async fn next_connection<L: Listener>(
    listener: &mut L,
    stopping: &CancellationToken,
) -> Option<io::Result<Accepted<L::Stream>>> {
    tokio::select! {
        accepted = listener.accept() => Some(accepted),
        () = stopping.cancelled() => tokio::time::timeout(ACCEPT_DRAIN, listener.accept()).await.ok(),
    }
}

/// Answers the only request of a connection beyond the limit, and closes it: that this node lives, or that there is no room.
async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, permit: OwnedSemaphorePermit) {
    let line = tokio::time::timeout(REFUSED_LINE_TIMEOUT, request_line(&mut stream)).await.unwrap_or_default();
    let answered = async {
        let answer = if line.starts_with(&format!("GET {LIVENESS} ")) { liveness(router).await } else { no_room() };
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closed with unread bytes, the connection would be reset, and the answer lost (RFC 9112 section 9.6).
        let mut rest = [0; REFUSED_LINE_BYTES_MAX];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    if !matches!(tokio::time::timeout(REFUSAL_TIMEOUT, answered).await, Ok(Ok(()))) {
        tracing::debug!("a connection beyond the limit was closed before it was answered");
    }
    drop(permit);
}

/// What arrives up to the end of the first line.
async fn request_line(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let (mut bytes, mut filled) = ([0; REFUSED_LINE_BYTES_MAX], 0);
    while filled < bytes.len() && !bytes[..filled].contains(&b'\n') {
        match stream.read(&mut bytes[filled..]).await {
            Ok(read @ 1..) => filled += read,
            Ok(0) | Err(_) => break,
        }
    }
    String::from_utf8_lossy(&bytes[..filled]).into_owned()
}

async fn liveness(mut router: Router) -> String {
    let request = Request::get(LIVENESS).header(header::HOST, "localhost");
    let request = request.body(Body::empty()).expect("a valid request");
    let Ok(answer) = router.call(request).await;
    let status = answer.status();
    let body = axum::body::to_bytes(answer.into_body(), HEAD_BYTES_MAX).await.unwrap_or_default();
    closing(status, "application/json", "", &String::from_utf8_lossy(&body))
}

fn no_room() -> String {
    let detail = "this node has as many connections as it takes; nothing was changed. Retry, or ask another node";
    let problem = Error::new(Code::Overloaded, detail).problem();
    let body = serde_json::to_string(&problem).expect("a problem document is plain data");
    closing(StatusCode::TOO_MANY_REQUESTS, "application/problem+json", "Retry-After: 1\r\n", &body)
}

/// The last answer on a connection.
fn closing(status: StatusCode, content_type: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}
