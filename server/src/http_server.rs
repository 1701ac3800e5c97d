//! The HTTP listener: connections with limits, and a stop that lets requests finish.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::Request};
use hexkv_raft_net::transport::Listener;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// A client that needs longer to send its request head is cut off.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request head and read buffer, in bytes: a key of 4 KiB is 12 KiB percent-encoded.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// After the listener failed to accept (out of file descriptors), it waits so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Once the server stops, streams without an end have so long to say goodbye to their clients.
const STREAM_DRAIN: Duration = Duration::from_millis(500);

/// What a handler can tell of the connection that its request came on: an extension of each request.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    streams: Arc<AtomicBool>,
}

impl Connection {
    /// The answer on this connection has no end of its own: when the server stops it is not waited for, because a client
    /// that does not read would delay the stop.
    pub fn streams(&self) {
        self.streams.store(true, Ordering::Release);
    }

    /// Completes when a connection with such an answer is to be dropped.
    async fn overdue(&self, stopping: &CancellationToken) {
        stopping.cancelled().await;
        tokio::time::sleep(STREAM_DRAIN).await;
        if !self.streams.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    }
}

/// Serves `router` until `stopping`; then no new connections, and at most `drain` for the requests in progress.
pub async fn serve(
    mut listener: impl Listener,
    router: Router,
    connections_max: usize,
    stopping: CancellationToken,
    drain: Duration,
) {
    let room = Arc::new(Semaphore::new(connections_max));
    let graceful = GracefulShutdown::new();
    let mut builder = hyper::server::conn::http1::Builder::new();
    // Not with `pipeline_flush`: it lifts the bound of what is buffered for a client that does not read its answer.
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    loop {
        let (permit, accepted) = tokio::select! {
            both = async {
                let permit = room.clone().acquire_owned().await;
                (permit, listener.accept().await)
            } => both,
            () = stopping.cancelled() => break,
        };
        let permit = permit.expect("the semaphore is never closed");
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let control = Connection::default();
        let (router, told) = (router.clone(), control.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(told.clone());
            router.clone().call(request)
        });
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        let stopping = stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(e) = ended {
                        tracing::debug!(error = %e, "a connection ended early");
                    }
                }
                () = control.overdue(&stopping) => tracing::debug!("a stream's client does not read; it is cut off"),
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(?drain, "some requests did not finish in time");
    }
}
