//! Requests whose every byte the test chooses.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use crate::harness::Answer;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request head and body, as they are sent. Without more it is a valid request.
pub struct RawRequest {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl RawRequest {
    pub fn new(method: &str, target: &str, body: impl AsRef<[u8]>) -> Self {
        let headers = vec![("Host".into(), "127.0.0.1".into())];
        Self { line: format!("{method} {target} HTTP/1.1"), headers, body: body.as_ref().to_vec() }
    }

    /// Sets a header, in place of those of the same name.
    pub fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.add(name, value);
    }

    /// Adds a header line.
    pub fn add(&mut self, name: &str, value: &str) {
        self.headers.push((name.into(), value.into()));
    }

    /// Leaves a header out.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    /// The bytes: with its length, or in one chunk where that is the transfer coding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.line).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        let is_chunked = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
        let length = self.body.len();
        if !is_chunked {
            bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
            bytes.extend_from_slice(&self.body);
            return bytes;
        }
        bytes.extend_from_slice(b"\r\n");
        if length > 0 {
            bytes.extend_from_slice(format!("{length:x}\r\n").as_bytes());
            bytes.extend_from_slice(&self.body);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }
}

/// A connection with a buffer, for several requests.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        Self { stream: BufReader::new(stream) }
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Closes the sending side.
    pub fn finish(&mut self) {
        self.stream.get_mut().shutdown(Shutdown::Write).expect("it is open");
    }

    /// The next answer, to a request with `method`; the bytes behind it stay.
    pub fn answer(&mut self, method: &str) -> std::io::Result<Answer> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
        let headers: std::collections::BTreeMap<_, _> =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let has_body = method != "HEAD" && status != 304 && status >= 200;
        let length = headers.get("content-length").filter(|_| has_body);
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, headers, body })
    }

    /// What comes up to the end of the connection.
    pub fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).map(|_| rest)
    }
}

/// Sends `request` on a connection of its own, and reads its answer.
pub fn exchange(address: &str, request: &RawRequest) -> Answer {
    let method = request.line.split(' ').next().expect("a method").to_owned();
    let mut connection = Connection::open(address);
    connection.send(&request.bytes()).expect("it is sent");
    let mut answer = connection.answer(&method).expect("an answer");
    while answer.status == 100 {
        answer = connection.answer(&method).expect("an answer behind 100 Continue");
    }
    answer
}
