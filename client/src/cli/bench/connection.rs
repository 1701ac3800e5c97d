//! One keep-alive connection, without pool or retries.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use hexkv_client::Endpoint;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A connection that is ready for a request.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    host: HeaderValue,
}

/// An answer; the body only when the status is none of success.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When the node cannot be reached within `limit`.
    pub async fn open(endpoint: &Endpoint, limit: Duration) -> io::Result<Self> {
        let stream = timeout(limit, TcpStream::connect(endpoint.authority())).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            // The request in flight reports the same error to whoever waits for its answer.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        let host = HeaderValue::from_str(endpoint.authority()).expect("an authority is plain ASCII");
        Ok(Self { sender, driver, host })
    }

    /// Sends a request and reads its answer to the end.
    ///
    /// # Errors
    /// When the connection breaks; it is of no use then.
    pub async fn exchange(&mut self, method: Method, target: Uri, body: Bytes) -> hyper::Result<Answer> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = target;
        request.headers_mut().insert(header::HOST, self.host.clone());
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let mut incoming = response.into_body();
        if !status.is_success() {
            let body = incoming.collect().await?.to_bytes();
            return Ok(Answer { status, body });
        }
        while let Some(frame) = incoming.frame().await {
            frame?;
        }
        Ok(Answer { status, body: Bytes::new() })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
