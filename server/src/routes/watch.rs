//! `/api/watch`: what changed, as server-sent events.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use hexkv_store::record::KeyRange;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use utoipa::IntoParams;

use super::{
    openapi::{
        parameters::LastEventId,
        problems::{Busy, NotServing, Refused, TooLarge},
        schemas,
    },
    request::{check_key, duration, query, range},
};
use crate::{
    error::Error,
    http_server::Connection,
    node::Node,
    watch::{Batch, Event, Watcher, ending_event, progress_event},
};

/// Between two `progress` events, unless a request says otherwise.
const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
/// Shortest interval of `progress` events.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Events that are there already are written together up to this size, in bytes; a single revision may be larger.
const WRITE_BYTES: usize = 32 * 1024;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WatchQuery {
    /// Keys that begin with it.
    #[param(value_type = Option<schemas::Bound>)]
    prefix: Option<String>,
    /// One key.
    #[param(value_type = Option<schemas::Key>)]
    key: Option<String>,
    /// First key.
    #[param(value_type = Option<schemas::Bound>)]
    start: Option<String>,
    /// First key beyond.
    #[param(value_type = Option<schemas::Bound>)]
    end: Option<String>,
    /// First revision that is told, from history where it is past; from now on when left out.
    #[param(value_type = Option<schemas::FirstRevision>)]
    from_revision: Option<u64>,
    /// With the record that was replaced or removed.
    #[serde(default)]
    #[param(value_type = schemas::Flag)]
    prev: bool,
    /// Time between two `progress` events where nothing else is told; 100 ms at least, 10 s when left out.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Interval>)]
    progress: Option<Duration>,
    /// How long the watch may take to begin; without it `REQUEST_TIMEOUT`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<schemas::Time>)]
    timeout: Option<Duration>,
}

impl WatchQuery {
    fn range(&self) -> Result<KeyRange, Error> {
        let Some(key) = &self.key else {
            return range(self.prefix.as_deref(), self.start.as_deref(), self.end.as_deref());
        };
        if self.prefix.is_some() || self.start.is_some() || self.end.is_some() {
            return Err(Error::invalid("give key, or prefix, or start and end, only one of them"));
        }
        check_key(key.as_bytes())?;
        Ok(only(key.as_bytes()))
    }
}

/// The range that holds just `key`.
pub(crate) fn only(key: &[u8]) -> KeyRange {
    let mut end = key.to_vec();
    end.push(0);
    KeyRange { start: Bytes::copy_from_slice(key), end: Some(end.into()) }
}

/// Watches a key, a prefix, a range, or all keys.
///
/// Server-sent events without an end: `put` and `delete` (data: a `WatchChange`; all of one revision together, the last with
/// `id:` = its revision), `progress` (all up to there was told), and before the stream ends `compacted`, `overflow` (this client
/// reads too slowly) or `closed`. A client resumes with `Last-Event-ID`, or `from_revision` = the last id plus one.
#[utoipa::path(get, path = "/api/watch", operation_id = "watch", tag = "watch",
    params(WatchQuery, LastEventId),
    responses(
        (status = 200, description = "Events", body = String, content_type = "text/event-stream",
            headers(("Cache-Control" = String, description = "`no-cache`")),
            example = json!("event: put\ndata: {\"revision\":18,\"key\":\"greeting\",\"value\":\"aGVsbG8=\",\"create_revision\":17,\"mod_revision\":18,\"version\":2}\nid: 18\n\n")),
        Refused, TooLarge, Busy, NotServing,
    ))]
pub async fn watch(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    let q = query::<WatchQuery>(request.uri())?;
    let range = q.range()?;
    let from = first_revision(q.from_revision, request.headers())?;
    let interval = q.progress.unwrap_or(PROGRESS_INTERVAL_DEFAULT);
    if interval < PROGRESS_INTERVAL_MIN {
        return Err(Error::invalid(format!("progress is at least {} ms", PROGRESS_INTERVAL_MIN.as_millis())));
    }
    let timeout = q.timeout.unwrap_or(node.config.request_timeout);
    let watcher = node.watch(range, from, timeout).await?;
    if let Some(connection) = request.extensions().get::<Connection>() {
        connection.streams();
    }
    let events = EventStream {
        watcher,
        prev: q.prev,
        interval,
        next_progress: Instant::now() + interval,
        ready: VecDeque::new(),
        ended: false,
    };
    let mut response = Response::new(Body::from_stream(events.chunks()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A client that reconnects by itself repeats its URL, and tells by `Last-Event-ID` what it has: that wins.
fn first_revision(from_revision: Option<u64>, headers: &HeaderMap) -> Result<Option<u64>, Error> {
    if from_revision == Some(0) {
        return Err(Error::invalid(
            "from_revision is the first revision wanted, 1 or more; leave it out for from now on",
        ));
    }
    let Some(last) = headers.get("last-event-id") else { return Ok(from_revision) };
    let last = last.to_str().ok().map(str::trim).filter(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let last: Option<u64> = last.and_then(|last| last.parse().ok());
    let next = last.and_then(|last| last.checked_add(1));
    next.map(Some).ok_or_else(|| Error::invalid("Last-Event-ID is the id of an event of a watch: a revision"))
}

/// The events of one watch as chunks of bytes.
struct EventStream {
    watcher: Watcher,
    prev: bool,
    interval: Duration,
    next_progress: Instant,
    /// Chunks to be written before the watch is asked again.
    ready: VecDeque<Bytes>,
    ended: bool,
}

impl EventStream {
    fn chunks(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut events| async move {
            let chunk = events.next_chunk().await?;
            Some((Ok(chunk), events))
        })
    }

    async fn next_chunk(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                biased;
                event = self.watcher.next_event() => match event {
                    Ok(Event::Revision(batch)) => self.encode(batch),
                    Ok(Event::CaughtUp(_)) => self.tell_progress(),
                    Err(end) => {
                        self.ready.push_back(ending_event(&end, self.watcher.position()));
                        self.ended = true;
                    }
                },
                () = sleep_until(self.next_progress) => self.tell_progress(),
            }
        }
    }

    /// Tells how far everything was sent: all that the watcher gave was written before.
    fn tell_progress(&mut self) {
        self.next_progress = Instant::now() + self.interval;
        self.ready.push_back(progress_event(self.watcher.position()));
    }

    /// Encodes `first` and what is there behind it. Large events are not copied.
    fn encode(&mut self, first: Batch) {
        self.next_progress = Instant::now() + self.interval;
        let mut small = BytesMut::new();
        let (ready, prev) = (&mut self.ready, self.prev);
        let mut bytes = 0;
        let mut batch = Some(first);
        while let Some(current) = batch {
            current.events(prev, |event| {
                bytes += event.len();
                if event.len() < WRITE_BYTES {
                    small.extend_from_slice(&event);
                } else {
                    if !small.is_empty() {
                        ready.push_back(small.split().freeze());
                    }
                    ready.push_back(event);
                }
            });
            batch = if bytes < WRITE_BYTES { self.watcher.try_next() } else { None };
        }
        if !small.is_empty() {
            ready.push_back(small.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconnect_goes_on_where_it_was_cut_off() {
        let with = |id: &str| HeaderMap::from_iter([("last-event-id".parse().unwrap(), id.parse().unwrap())]);
        assert_eq!(first_revision(None, &HeaderMap::new()).expect("fine"), None);
        assert_eq!(first_revision(Some(3), &HeaderMap::new()).expect("fine"), Some(3));
        assert_eq!(first_revision(Some(3), &with("7")).expect("fine"), Some(8), "the header wins");
        assert_eq!(first_revision(None, &with("0")).expect("fine"), Some(1), "an empty store");
        for bad in ["", "-1", "+1", "x", "1.5", "18446744073709551615", "99999999999999999999"] {
            assert!(first_revision(None, &with(bad)).is_err(), "{bad}");
        }
        assert!(first_revision(Some(0), &HeaderMap::new()).is_err());
    }
}
