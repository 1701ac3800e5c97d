//! Server-sent events.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::Error;

/// A stream that is silent for so long is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Between two attempts to go on when the last one came to nothing.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest event, in bytes: a record of two largest values in base64.
const EVENT_BYTES_MAX: usize = 32 << 20;

/// An answer that has no end.
#[derive(Debug)]
pub(crate) struct EventStream {
    body: Incoming,
    /// Not yet read as events.
    buffer: BytesMut,
    /// So much of the buffer holds no end of an event.
    searched_bytes: usize,
}

/// What a stream tells.
#[derive(Debug)]
pub(crate) enum Next {
    Event(Event),
    /// It is over, and why.
    Ended(String),
}

impl EventStream {
    /// The events of this answer.
    pub fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), buffer: BytesMut::new(), searched_bytes: 0 }
    }

    /// Cancel-safe: what was received stays in the buffer until the event that it belongs to is whole.
    ///
    /// # Errors
    /// [`Error::Unexpected`] when it is no stream of events.
    pub async fn next(&mut self) -> Result<Next, Error> {
        loop {
            if let Some(event) = self.buffered_event()? {
                return Ok(Next::Event(event));
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(Error::Unexpected("an event is larger than a node sends".to_owned()));
            }
            match timeout(SILENCE_MAX, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Ok(Some(Err(error))) => return Ok(Next::Ended(error.to_string())),
                Ok(None) => return Ok(Next::Ended("the node ended it".to_owned())),
                Err(_) => return Ok(Next::Ended("it is silent".to_owned())),
            }
        }
    }

    /// The next event whose blank line has come.
    fn buffered_event(&mut self) -> Result<Option<Event>, Error> {
        let unsearched = &self.buffer[self.searched_bytes..];
        let Some(end) = unsearched.windows(2).position(|two| two == b"\n\n") else {
            self.searched_bytes = self.buffer.len().saturating_sub(1);
            return Ok(None);
        };
        let end = self.searched_bytes + end;
        self.searched_bytes = 0;
        let text = self.buffer.split_to(end).freeze();
        self.buffer.advance(2);
        Event::parse(&text).map(Some)
    }
}

/// One server-sent event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub name: String,
    pub data: Bytes,
    pub id: Option<u64>,
    /// All of it, as it was sent.
    pub bytes: usize,
}

impl Event {
    fn parse(text: &Bytes) -> Result<Self, Error> {
        let mut event = Self { bytes: text.len(), ..Self::default() };
        for line in text.split(|byte| *byte == b'\n') {
            let (field, value) = match line.iter().position(|byte| *byte == b':') {
                // A comment.
                Some(0) => continue,
                Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..])),
                None => (line, &b""[..]),
            };
            match field {
                b"event" => event.name = String::from_utf8_lossy(value).into_owned(),
                b"data" => event.data = text.slice_ref(value),
                b"id" => {
                    let id = std::str::from_utf8(value).ok().and_then(|id| id.parse().ok());
                    event.id = Some(id.ok_or_else(|| Error::Unexpected("an event's id is no revision".to_owned()))?);
                }
                _ => {}
            }
        }
        Ok(event)
    }

    /// Its data, read as JSON.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.data)
            .map_err(|error| Error::Unexpected(format!("the event {:?} is not of this version: {error}", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_field_by_field() {
        let event = Event::parse(&Bytes::from_static(b": hi\nevent: put\ndata:{\"a\": 1}\nid: 7\nother: x")).unwrap();
        assert_eq!((event.name.as_str(), &event.data[..], event.id), ("put", &b"{\"a\": 1}"[..], Some(7)));
        assert!(Event::parse(&Bytes::from_static(b"id: seven")).is_err());
        assert_eq!(Event::parse(&Bytes::new()).unwrap(), Event::default());
    }
}
