//! The request that a connection carries at this moment: where its head and its body end in the stream of bytes, and whether its
//! handler has read the body.
//!
//! hyper drops the fragment of a request target (`/api/kv/a#b` becomes `/api/kv/a`, another key), so the request line is scanned
//! before hyper reads it. Only one request is in progress on a connection, and the stream delivers no byte behind a head before hyper
//! has parsed it: the length of the body is what hyper says, so both always agree on where the next head begins.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use parking_lot::{Mutex, MutexGuard};

/// What is left of a body that its handler did not read, up to this many bytes, is read so that the connection can be kept.
const UNREAD_BODY_BYTES_MAX: u64 = 64 * 1024;
/// Longest wait for the rest of one.
const UNREAD_BODY_TIMEOUT: Duration = Duration::from_millis(200);

/// Where the next byte of the stream belongs.
#[derive(Debug)]
enum Position {
    /// To the head of a request.
    Head(HeadScan),
    /// To the body, of which this many bytes are to come. [`UNTIL_CLOSE`]: nothing follows it.
    Body(u64),
    /// A whole head was delivered, and hyper has not parsed it yet.
    Parsing,
}

/// Length of a body that is sent in chunks: it is the last one on its connection.
const UNTIL_CLOSE: u64 = u64::MAX;

/// The request in progress, shared by the stream of a connection, its service, and the body that the handler reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    position: Position,
    /// The last head's request line contains `#`.
    has_fragment: bool,
    body: BodyState,
}

#[derive(Debug)]
enum BodyState {
    /// All of it was read.
    Read,
    /// The handler has it.
    InHandler,
    /// The handler dropped it before its end.
    Dropped(Incoming),
    /// It will not be read.
    Abandoned,
}

impl Default for State {
    fn default() -> Self {
        Self { position: Position::Head(HeadScan::default()), has_fragment: false, body: BodyState::Read }
    }
}

impl Exchange {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Accounts for `bytes`, the next ones of the stream. Returns how many of them may be delivered now: at least one.
    pub(super) fn advance(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        match &mut state.position {
            Position::Parsing => bytes.len(),
            Position::Head(scan) => match scan.end(bytes) {
                None => bytes.len(),
                Some(end) => {
                    state.has_fragment = scan.has_fragment;
                    state.position = Position::Parsing;
                    end
                }
            },
            Position::Body(UNTIL_CLOSE) => bytes.len(),
            Position::Body(left) => {
                let delivered = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= delivered as u64;
                if *left == 0 {
                    state.position = Position::Head(HeadScan::default());
                }
                delivered
            }
        }
    }

    /// hyper has parsed a head, which announces `body`: the next bytes of the stream belong to it.
    pub(super) fn begin(&self, body: Incoming) -> RequestBody {
        let mut state = self.state();
        let length = body.size_hint().exact().unwrap_or(UNTIL_CLOSE);
        state.position = if length == 0 { Position::Head(HeadScan::default()) } else { Position::Body(length) };
        if body.is_end_stream() {
            state.body = BodyState::Read;
            return RequestBody { rest: None, exchange: self.clone() };
        }
        state.body = BodyState::InHandler;
        RequestBody { rest: Some(body), exchange: self.clone() }
    }

    /// The handler has answered. Reads what it left of a short body, and returns whether another request may follow. A client that
    /// waits for `100 Continue` has not sent its body, and does not have to.
    pub(super) async fn finish(&self, waits_for_continue: bool) -> bool {
        let left = match std::mem::replace(&mut self.state().body, BodyState::Abandoned) {
            BodyState::Read => None,
            BodyState::Dropped(body) if !waits_for_continue => Some(body),
            BodyState::Dropped(_) | BodyState::InHandler | BodyState::Abandoned => return false,
        };
        if let Some(body) = left {
            let short = body.size_hint().exact().is_some_and(|bytes| bytes <= UNREAD_BODY_BYTES_MAX);
            if !short || !matches!(tokio::time::timeout(UNREAD_BODY_TIMEOUT, discard(body)).await, Ok(true)) {
                return false;
            }
        }
        self.state().body = BodyState::Read;
        true
    }

    /// Whether the client may still be sending what no one will read.
    pub(super) fn is_unfinished(&self) -> bool {
        let state = self.state();
        let head_begun = match &state.position {
            Position::Head(scan) => scan.begun,
            Position::Parsing => true,
            Position::Body(_) => false,
        };
        head_begun || !matches!(state.body, BodyState::Read)
    }

    /// Whether the target of the request in progress has a fragment (`#...`), which hyper has dropped.
    pub(crate) fn has_fragment(&self) -> bool {
        self.state().has_fragment
    }
}

/// Reads all of `body`; whether it arrived whole.
async fn discard(mut body: Incoming) -> bool {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

/// The body of a request. One that is dropped before its end goes back to its [`Exchange`].
#[derive(Debug)]
pub(super) struct RequestBody {
    /// None once all was read.
    rest: Option<Incoming>,
    exchange: Exchange,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *rest).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || rest.is_end_stream() {
            self.rest = None;
            self.exchange.state().body = BodyState::Read;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            self.exchange.state().body = BodyState::Dropped(rest);
        }
    }
}

/// Finds the end of a head as hyper's parser does: empty lines before it are skipped, a line may end in LF alone.
#[derive(Debug)]
struct HeadScan {
    /// A byte of the request line arrived.
    begun: bool,
    in_request_line: bool,
    /// The line so far is empty.
    line_is_empty: bool,
    has_fragment: bool,
}

impl Default for HeadScan {
    fn default() -> Self {
        Self { begun: false, in_request_line: true, line_is_empty: true, has_fragment: false }
    }
}

impl HeadScan {
    /// Index behind the last byte of the head, where it ends in `bytes`.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let newline = memchr::memchr(b'\n', &bytes[at..]).map(|found| at + found);
            let line = &bytes[at..newline.unwrap_or(bytes.len())];
            self.line_is_empty &= line.iter().all(|byte| *byte == b'\r');
            self.begun |= !self.line_is_empty;
            self.has_fragment |= self.in_request_line && line.contains(&b'#');
            let end = newline? + 1;
            if self.line_is_empty && self.begun {
                return Some(end);
            }
            self.in_request_line &= !self.begun;
            self.line_is_empty = true;
            at = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where heads end when `bytes` arrive in pieces of `size`, and which of them have a fragment.
    fn heads(bytes: &[u8], size: usize) -> Vec<(usize, bool)> {
        let (mut found, mut scan) = (Vec::new(), HeadScan::default());
        let mut at = 0;
        while at < bytes.len() {
            let piece = &bytes[at..bytes.len().min(at + size)];
            match scan.end(piece) {
                None => at += piece.len(),
                Some(end) => {
                    at += end;
                    found.push((at, std::mem::take(&mut scan).has_fragment));
                }
            }
        }
        found
    }

    #[test]
    fn heads_end_at_the_first_empty_line_in_pieces_of_any_size() {
        let heads_of_each = [
            ("\r\n\nGET /a HTTP/1.1\r\nHost: #x\r\n\r\n", false),
            ("GET /a#b HTTP/1.1\nHost: x\n\n", true),
            ("GET /c HTTP/1.1\r\nX: a\n\r\n", false),
            ("GET # HTTP/1.1\r\n\r\n", true),
        ];
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (head, has_fragment) in heads_of_each {
            bytes.extend_from_slice(head.as_bytes());
            expected.push((bytes.len(), has_fragment));
        }
        bytes.extend_from_slice(b"GET /not-complete HTTP/1.1\r\n");
        for size in 1..=bytes.len() {
            assert_eq!(heads(&bytes, size), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn bytes_behind_a_head_wait_until_it_is_parsed() {
        let exchange = Exchange::default();
        let head = b"PUT /k HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
        let stream = [head.as_slice(), b"abcGET /"].concat();
        assert_eq!(exchange.advance(&stream), head.len());
        assert!(exchange.is_unfinished(), "not parsed yet");
        exchange.state().position = Position::Body(3);
        assert_eq!(exchange.advance(b"abcGET /"), 3);
        assert!(!exchange.is_unfinished());
        assert_eq!(exchange.advance(b"GET /"), 5);
        assert!(exchange.is_unfinished(), "the next head has begun");
    }
}
