//! The HTTP listener: connections with limits, and a stop that lets requests finish.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hexkv_raft_net::transport::Listener;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A client that needs longer to send its request head is cut off.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request head and read buffer, in bytes: a key of 4 KiB is 12 KiB percent-encoded.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// After the listener failed to accept (out of file descriptors), it waits so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

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
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .pipeline_flush(true);
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
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(?drain, "some requests did not finish in time");
    }
}
