//! HTTP by hand, so that tests can say exactly what goes over the wire, and see what comes back.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Request {
    /// With one more header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// An answer.
#[derive(Clone)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// The problem code, with the checks that every problem must pass.
    pub fn problem(&self) -> String {
        assert_eq!(self.headers.get("content-type").map(String::as_str), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"].as_u64(), Some(u64::from(self.status)), "{self:?}");
        assert!(problem["detail"].as_str().is_some_and(|d| d.len() > 10), "{self:?}");
        problem["code"].as_str().expect("a code").to_string()
    }

    /// The revision in the ETag.
    pub fn etag(&self) -> u64 {
        let etag = self.headers.get("etag").unwrap_or_else(|| panic!("no ETag: {self:?}"));
        etag.trim_matches('"').parse().expect("a revision in quotes")
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(400)]).into_owned();
        write!(f, "{} {:?} {text}", self.status, self.headers)
    }
}

/// GET.
pub fn get(target: &str) -> Request {
    Request { method: "GET".into(), target: target.into(), headers: Vec::new(), body: Vec::new() }
}

/// PUT.
pub fn put(target: &str, body: impl Into<Vec<u8>>) -> Request {
    Request { method: "PUT".into(), target: target.into(), headers: Vec::new(), body: body.into() }
}

/// DELETE.
pub fn delete(target: &str) -> Request {
    Request { method: "DELETE".into(), target: target.into(), headers: Vec::new(), body: Vec::new() }
}

/// A JSON body.
pub fn json(method: &str, target: &str, body: &serde_json::Value) -> Request {
    let request = Request {
        method: method.into(),
        target: target.into(),
        headers: Vec::new(),
        body: body.to_string().into_bytes(),
    };
    request.with("Content-Type", "application/json")
}

/// Sends `request` to `address` on a connection of its own. An error means that no whole answer came.
pub fn request(address: &str, request: &Request) -> Result<Answer, String> {
    exchange(address, &on_the_wire(address, request), request.method == "HEAD")
}

/// Sends `request` without waiting for an answer. The connection closes when it is dropped.
pub fn begin(address: &str, request: &Request) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("it connects");
    stream.write_all(&on_the_wire(address, request)).expect("it is sent");
    stream
}

fn on_the_wire(address: &str, request: &Request) -> Vec<u8> {
    let mut head =
        format!("{} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n", request.method, request.target);
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", request.body.len()).as_bytes());
    bytes.extend_from_slice(&request.body);
    bytes
}

/// Sends `bytes` as they are and reads one answer.
pub fn exchange(address: &str, bytes: &[u8], head: bool) -> Result<Answer, String> {
    let at = |e: std::io::Error| format!("{address}: {e}");
    let mut stream = TcpStream::connect(address).map_err(at)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(at)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(at)?;
    // A server that refuses early may close before all is sent; what it answered counts.
    let sent = stream.write_all(bytes);
    let mut received = Vec::new();
    if let Err(e) = stream.read_to_end(&mut received)
        && received.is_empty()
    {
        return Err(sent.err().map_or_else(|| at(e), at));
    }
    parse(&received, head)
        .ok_or_else(|| format!("{address}: no whole answer: {:?}", String::from_utf8_lossy(&received)))
}

fn parse(received: &[u8], head: bool) -> Option<Answer> {
    let end = received.windows(4).position(|w| w == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&received[..end]).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: BTreeMap<String, String> =
        lines.filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_string())).collect();
    let body = received[end + 4..].to_vec();
    let announced: Option<usize> = headers.get("content-length").and_then(|v| v.parse().ok());
    if !head && announced.is_some_and(|n| n != body.len()) {
        return None;
    }
    Some(Answer { status, headers, body })
}
