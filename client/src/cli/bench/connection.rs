//! One keep-alive connection, without pool or retries.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use hexkv_client::Endpoint;
use hexkv_client::api::Problem;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
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

/// What is sent.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: Method,
    pub target: Uri,
    pub body: Bytes,
    /// Whether the body is JSON; otherwise it has no type.
    pub json: bool,
    /// Whether the body of an answer of success is wanted, too.
    pub keep: bool,
}

/// An answer; the body only when the status is none of success, or when it was wanted.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Why a request did not succeed, as it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

/// A connection that is opened again after it broke.
#[derive(Debug)]
pub struct Caller {
    endpoint: Endpoint,
    limit: Duration,
    connection: Option<Connection>,
}

impl Caller {
    /// Connects with its first request; each one fails after `limit`.
    pub fn new(endpoint: Endpoint, limit: Duration) -> Self {
        Self { endpoint, limit, connection: None }
    }

    /// Whom it asks.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a request; the body of its answer, when it was wanted.
    ///
    /// # Errors
    /// When it is not answered with success.
    pub async fn ask(&mut self, ask: Ask) -> Result<Bytes, Refused> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                Connection::open(&self.endpoint, self.limit).await.map_err(|_| Refused("not connected".to_owned()))?
            }
        };
        let answer = match timeout(self.limit, connection.exchange(ask)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Err(Refused("connection broke".to_owned())),
            Err(_) => return Err(Refused("timed out".to_owned())),
        };
        self.connection = Some(connection);
        if answer.status.is_success() { Ok(answer.body) } else { Err(Refused(reason(&answer))) }
    }
}

/// The problem's code, or the status of an answer that has none.
fn reason(answer: &Answer) -> String {
    let problem: Option<Problem> = serde_json::from_slice(&answer.body).ok();
    let code = problem.and_then(|problem| serde_json::to_value(problem.code).ok()?.as_str().map(str::to_owned));
    code.unwrap_or_else(|| answer.status.as_u16().to_string())
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
    pub async fn exchange(&mut self, ask: Ask) -> hyper::Result<Answer> {
        let keep = ask.keep;
        let response = self.begin(ask).await?;
        let status = response.status();
        let mut incoming = response.into_body();
        if keep || !status.is_success() {
            let body = incoming.collect().await?.to_bytes();
            return Ok(Answer { status, body });
        }
        while let Some(frame) = incoming.frame().await {
            frame?;
        }
        Ok(Answer { status, body: Bytes::new() })
    }

    /// Sends a request, and gives the answer before its body has come.
    ///
    /// # Errors
    /// When the connection breaks; it is of no use then.
    pub async fn begin(&mut self, ask: Ask) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(ask.body));
        *request.method_mut() = ask.method;
        *request.uri_mut() = ask.target;
        request.headers_mut().insert(header::HOST, self.host.clone());
        if ask.json {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
