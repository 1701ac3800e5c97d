//! Server-sent events by hand, off a chunked answer.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Instant,
};

use super::PATIENCE;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `put`, `delete`, `progress`, ...
    pub name: String,
    /// Its data.
    pub data: serde_json::Value,
    /// Its id, where it has one.
    pub id: Option<u64>,
}

impl Event {
    /// The revision in its data.
    pub fn revision(&self) -> u64 {
        self.data["revision"].as_u64().unwrap_or_else(|| panic!("no revision: {self:?}"))
    }

    /// The key in its data.
    pub fn key(&self) -> &str {
        self.data["key"].as_str().unwrap_or_else(|| panic!("no key: {self:?}"))
    }

    /// Whether it is a `put` or `delete`.
    pub fn is_change(&self) -> bool {
        self.name == "put" || self.name == "delete"
    }
}

/// A stream of events.
pub struct Events {
    lines: BufReader<Chunks>,
    /// Status of the answer.
    pub status: u16,
    /// Content type of the answer.
    pub content_type: String,
}

impl Events {
    /// Sends a GET of `target`, with `last` as `Last-Event-ID`, and reads the answer's head.
    pub fn open(address: &str, target: &str, last: Option<u64>) -> Result<Self, String> {
        let at = |e: std::io::Error| format!("{address}: {e}");
        let mut stream = TcpStream::connect(address).map_err(at)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(at)?;
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n{last}\r\n").as_bytes()).map_err(at)?;
        let mut reader = BufReader::new(stream);
        let (mut status, mut content_type) = (0, String::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).map_err(at)? == 0 {
                return Err(format!("{address}: closed before the answer"));
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if status == 0 {
                status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| line.to_string())?;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-type")
            {
                content_type = value.trim().to_string();
            }
        }
        Ok(Self { lines: BufReader::new(Chunks { reader, left: 0, ended: false }), status, content_type })
    }

    /// As [`Events::open`], and the stream must begin.
    pub fn begin(address: &str, target: &str, last: Option<u64>) -> Self {
        let events = Self::open(address, target, last).expect("an answer");
        assert_eq!((events.status, events.content_type.as_str()), (200, "text/event-stream"), "{target}");
        events
    }

    /// The next event; None when the stream ended in order. An error is a lost connection.
    pub fn next(&mut self) -> Result<Option<Event>, String> {
        let (mut name, mut data, mut id) = (String::new(), None, None);
        let (mut comment, began) = (false, Instant::now());
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).map_err(|e| e.to_string())?;
            if read == 0 {
                return Ok(None);
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some(("event", value)) => name = value.to_string(),
                Some(("data", value)) => data = Some(serde_json::from_str(value).map_err(|e| e.to_string())?),
                Some(("id", value)) => id = Some(value.parse().map_err(|_| line.clone())?),
                // A comment, which ends like an event.
                Some(("", _)) => comment = true,
                Some(_) => return Err(format!("unknown field: {line}")),
                None if comment && data.is_none() => {
                    comment = false;
                    // Comments show that the stream lives, and keep a read from giving up.
                    if began.elapsed() > PATIENCE {
                        return Err(format!("nothing but comments within {PATIENCE:?}"));
                    }
                }
                None => match data.take() {
                    Some(data) => return Ok(Some(Event { name, data, id })),
                    None => return Err(format!("an event without data: {line:?}")),
                },
            }
        }
    }

    /// The next event, which must come.
    pub fn must(&mut self) -> Event {
        self.next().expect("the connection holds").expect("the stream goes on")
    }

    /// The next event that is a change.
    pub fn change(&mut self) -> Event {
        loop {
            let event = self.must();
            if event.is_change() {
                return event;
            }
            assert_eq!(event.name, "progress", "{event:?}");
        }
    }

    /// The changes up to the end of `revision`, or up to a progress that says that there are none more.
    pub fn changes_up_to(&mut self, revision: u64) -> Vec<Event> {
        let mut changes = Vec::new();
        loop {
            let event = self.must();
            let id = event.id;
            if event.is_change() {
                changes.push(event);
            } else {
                let last = changes.last().map_or(0, Event::revision);
                assert!(id.expect("progress has an id") >= last, "{event:?} after {last}");
            }
            if id.is_some_and(|id| id >= revision) {
                return changes;
            }
        }
    }
}

/// The content of a chunked body.
struct Chunks {
    reader: BufReader<TcpStream>,
    left: usize,
    ended: bool,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let broken = |what: &str| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what.to_string());
        while self.left == 0 && !self.ended {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(broken("closed within a body"));
            }
            if line.trim_end().is_empty() {
                continue;
            }
            self.left = usize::from_str_radix(line.trim_end(), 16).map_err(|_| broken(&line))?;
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let wanted = buffer.len().min(self.left);
        let read = self.reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(broken("closed within a chunk"));
        }
        self.left -= read;
        Ok(read)
    }
}
