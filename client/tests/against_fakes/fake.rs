//! A server that does with each request what the test says, connection handling included.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Highest port: a node's raft port is 5100 higher and has to exist.
const PORT_MAX: u16 = 60_000;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    /// A header; names are in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What the server does with a request.
#[derive(Debug, Clone)]
pub enum Reaction {
    /// Answers.
    Reply { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// Takes the request and closes the connection without a word.
    Break,
    /// Takes the request and never answers.
    Silence,
}

impl Reaction {
    /// A JSON answer.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Reply { status, headers: Vec::new(), body: body.to_string().into_bytes() }
    }

    /// Problem details.
    pub fn problem(status: u16, code: &str) -> Self {
        let body = json!({"type": "about:blank", "title": code, "status": status, "detail": "as told", "code": code});
        Self::json(status, &body)
    }

    /// The same answer with another header.
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        if let Self::Reply { headers, .. } = &mut self {
            headers.push((name, value.to_string()));
        }
        self
    }

    /// Answer to a put.
    pub fn put() -> Self {
        Self::json(200, &json!({"revision": 7, "create_revision": 7, "version": 1}))
    }

    /// Answer to a get.
    pub fn record(value: &str) -> Self {
        let reply = Self::Reply { status: 200, headers: Vec::new(), body: value.as_bytes().to_vec() };
        reply
            .with("ETag", "\"6\"")
            .with("X-Hexkv-Revision", 9)
            .with("X-Hexkv-Create-Revision", 5)
            .with("X-Hexkv-Version", 2)
            .with("Content-Type", "text/plain")
    }
}

/// A server on a port of its own; it ends when it is dropped.
#[derive(Debug)]
pub struct Fake {
    pub endpoint: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Fake {
    /// Answers the nth request (from 0) with `react(n, request)`.
    pub async fn start(react: impl Fn(usize, &Seen) -> Reaction + Send + Sync + 'static) -> Self {
        let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        while listener.local_addr().unwrap().port() > PORT_MAX {
            listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        }
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (react, log) = (Arc::new(react), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&react), Arc::clone(&log)));
            }
        });
        Self { endpoint, seen, task }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// An address that nobody listens on.
    pub async fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        // A child that another test is just starting holds a copy of the socket until it runs its program.
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).await.is_ok() {
            assert!(Instant::now() < deadline, "somebody listens on {address}");
        }
        address.to_string()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, react: Arc<impl Fn(usize, &Seen) -> Reaction>, log: Arc<Mutex<Vec<Seen>>>) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let reaction = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            react(log.len() - 1, &request)
        };
        match reaction {
            Reaction::Reply { status, headers, body } => {
                let mut head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n", body.len());
                for (name, value) in headers {
                    write!(head, "{name}: {value}\r\n").unwrap();
                }
                head.push_str("\r\n");
                let answer = [head.as_bytes(), &body].concat();
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
            Reaction::Break => return,
            Reaction::Silence => std::future::pending().await,
        }
    }
}

/// The next request of a connection; `None` when the client closed it.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, text)| text.parse().unwrap());
    while buffer.len() < head_end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[head_end..head_end + length].to_vec();
    buffer.drain(..head_end + length);
    Some(Seen { method, target, headers, body })
}
