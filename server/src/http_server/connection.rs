//! What a handler and its connection know of each other: whether the request waits, and whether its client is still there.
//!
//! A client that goes away while its request waits (for a lock, for a change) must not stay in line, nor keep its socket. HTTP
//! itself does not show it: while a handler works, nothing is read. So the connection watches the socket's close, and what it does
//! then depends on what the connection does:
//!
//! | the connection | the client closed its sending side | the connection is over |
//! |---|---|---|
//! | waits for something that others do, or streams without an end | it ends | it ends |
//! | works on a request | the answer has [`HALF_CLOSED_MAX`] | it ends |
//! | sends an answer, or is idle | goes on, within the limits for that | it ends |
//!
//! A client may close its sending side and read the answer afterwards (`nc -N`), but in TCP that looks like one that is gone. Where
//! an answer comes at once, it is sent; a place in a line is not kept for it.

use std::{sync::Arc, time::Duration};

use hexkv_raft_net::transport::{CloseWatch, Closed};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::exchange::Exchange;

/// A client that closed its sending side has this long for the answer to a request that does not wait.
pub const HALF_CLOSED_MAX: Duration = Duration::from_secs(5);

/// Once the server stops, streams without an end have this long to reach their clients.
const STREAM_DRAIN: Duration = Duration::from_millis(500);

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// It reads a request, or sends an answer.
    Transfers,
    /// A handler works on a request.
    Works,
    /// A handler waits for something that others do.
    Waits,
    /// It sends an answer that has no end of its own.
    Streams,
}

/// What a handler can report and ask of the connection that its request came on: an extension of each request.
#[derive(Debug, Clone)]
pub struct Connection {
    activity: Arc<watch::Sender<Activity>>,
    close: Option<CloseWatch>,
    exchange: Exchange,
}

/// A request in the hands of its handler, until it is dropped.
pub(crate) struct Working(Connection);

impl Connection {
    /// A connection that reads its first request; its close can be seen by `close`.
    pub(crate) fn new(close: Option<CloseWatch>, exchange: Exchange) -> Self {
        Self { activity: Arc::new(watch::channel(Activity::Transfers).0), close, exchange }
    }

    /// Whether the request's target has a fragment, which hyper has dropped.
    pub fn target_has_fragment(&self) -> bool {
        self.exchange.has_fragment()
    }

    /// The request in progress.
    pub(super) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// A handler begins.
    pub(crate) fn works(&self) -> Working {
        self.activity.send_replace(Activity::Works);
        Working(self.clone())
    }

    /// From now on the handler waits for something that others do: it is pointless for a client that is gone.
    pub fn waits(&self) {
        self.activity.send_replace(Activity::Waits);
    }

    /// The answer on this connection has no end of its own: when the server stops it is not waited for, because a client
    /// that does not read would delay the stop.
    pub fn streams(&self) {
        self.activity.send_replace(Activity::Streams);
    }

    /// Whether the client of the handler that runs is gone, as far as the kernel knows at this moment.
    pub fn client_is_gone(&self) -> bool {
        match self.close.as_ref().and_then(CloseWatch::now) {
            None => false,
            Some(Closed::Whole) => true,
            Some(Closed::Sending) => *self.activity.borrow() == Activity::Waits,
        }
    }

    /// Completes when the client is gone and the connection is to be dropped, with what it works on.
    pub(crate) async fn gone(&self) {
        let Some(close) = &self.close else { return std::future::pending().await };
        close.closed().await;
        tokio::select! {
            () = close.over() => {}
            () = self.pointless_half_closed() => {}
        }
    }

    /// Completes when nothing is done any more that a client which sends no more may wait for.
    async fn pointless_half_closed(&self) {
        let mut activity = self.activity.subscribe();
        loop {
            let now = *activity.borrow_and_update();
            match now {
                Activity::Waits | Activity::Streams => return,
                Activity::Works => {
                    if tokio::time::timeout(HALF_CLOSED_MAX, activity.changed()).await.is_err() {
                        return;
                    }
                }
                Activity::Transfers => activity.changed().await.expect("this connection sends"),
            }
        }
    }

    /// Completes when a connection with an endless answer is to be dropped because the server stops.
    pub(crate) async fn overdue(&self, stopping: &CancellationToken) {
        stopping.cancelled().await;
        tokio::time::sleep(STREAM_DRAIN).await;
        if *self.activity.borrow() != Activity::Streams {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Connection {
    /// Of a request that came on no connection: its client is there.
    fn default() -> Self {
        Self::new(None, Exchange::default())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.activity.send_modify(|activity| {
            if *activity != Activity::Streams {
                *activity = Activity::Transfers;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use hexkv_raft_net::transport::{AcceptedStream, Listener, TcpAcceptor, TcpTransport, Transport};
    use tokio::{
        io::AsyncWriteExt as _,
        net::TcpStream,
        time::{Instant, timeout},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn pair() -> (TcpStream, AcceptedStream, Connection) {
        let mut listener: TcpAcceptor = TcpTransport.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let far = far.unwrap();
        (near.unwrap(), far.stream, Connection::new(far.close, Exchange::default()))
    }

    #[tokio::test]
    async fn a_half_closed_client_gets_short_answers_but_does_not_wait() {
        let (mut near, _far, connection) = pair().await;
        near.write_all(b"GET / HTTP/1.1\r\n\r\nbehind").await.unwrap();
        near.shutdown().await.unwrap();
        assert!(timeout(Duration::from_millis(50), connection.gone()).await.is_err(), "nothing waits");
        let working = connection.works();
        assert!(!connection.client_is_gone(), "a short answer is sent");
        connection.waits();
        timeout(PATIENCE, connection.gone()).await.expect("waiting is pointless");
        assert!(connection.client_is_gone());
        drop(working);
        assert!(timeout(Duration::from_millis(50), connection.gone()).await.is_err(), "the answer is being sent");
        connection.streams();
        timeout(PATIENCE, connection.gone()).await.expect("a stream is pointless");
    }

    #[tokio::test]
    async fn a_half_closed_client_does_not_get_long_answers() {
        let (mut near, _far, connection) = pair().await;
        near.shutdown().await.unwrap();
        let (began, _working) = (Instant::now(), connection.works());
        timeout(PATIENCE, connection.gone()).await.expect("it took too long");
        assert!(began.elapsed() >= HALF_CLOSED_MAX);
    }

    #[tokio::test]
    async fn a_reset_ends_everything() {
        let (near, _far, connection) = pair().await;
        let _working = connection.works();
        near.set_zero_linger().unwrap();
        drop(near);
        timeout(PATIENCE, connection.gone()).await.expect("it is gone");
        assert!(connection.client_is_gone());
    }
}
