//! Ends a request that waits, and still reads the answer that may be there already.
//!
//! A request for a lock may be granted at the moment when its caller gives up. Closing the connection would leave the lock held by
//! nothing. So the sending side is closed: a node ends a wait then, and gives back what it granted, unless its answer is out
//! already, which is still read.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower_service::Service;

/// Closes the sending side of all connections that were opened under it, once, and lets no further one be opened.
#[derive(Debug, Clone)]
pub(crate) struct HangUp {
    done: Arc<watch::Sender<bool>>,
    /// Copies of the sockets' descriptors. They keep the sockets open as long as this lives.
    sockets: Arc<Mutex<Vec<OwnedFd>>>,
}

impl HangUp {
    /// Nothing is opened yet.
    pub fn new() -> Self {
        Self { done: Arc::new(watch::Sender::new(false)), sockets: Arc::default() }
    }

    /// Closes the sending sides.
    pub fn now(&self) {
        let mut sockets = self.sockets();
        self.done.send_replace(true);
        for socket in sockets.drain(..) {
            match shutdown(&socket, Shutdown::Write) {
                // The other side was faster.
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(error) => tracing::debug!(%error, "a connection's sending side was not closed"),
            }
        }
    }

    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        *self.done.borrow()
    }

    /// Completes once it is done.
    pub async fn done(&self) {
        let mut done = self.done.subscribe();
        done.wait_for(|done| *done).await.expect("this holds the sender");
    }

    fn add(&self, stream: &TcpStream) -> io::Result<()> {
        let mut sockets = self.sockets();
        if self.is_done() {
            return Err(hung_up());
        }
        sockets.push(stream.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hung_up() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the caller gave up")
}

/// Opens connections, under a [`HangUp`] where there is one.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    hang_up: Option<HangUp>,
}

impl Connector {
    pub fn new(tcp: HttpConnector, hang_up: Option<HangUp>) -> Self {
        Self { tcp, hang_up }
    }
}

type ConnectFailed = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectFailed;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectFailed>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectFailed>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.tcp.call(uri);
        let Some(hang_up) = self.hang_up.clone() else {
            return Box::pin(async move { Ok(connecting.await?) });
        };
        Box::pin(async move {
            let connected = tokio::select! {
                connected = connecting => connected?,
                () = hang_up.done() => return Err(hung_up().into()),
            };
            hang_up.add(connected.inner())?;
            Ok(connected)
        })
    }
}
