//! What changes, as it happens.

use std::time::Duration;

use http::HeaderName;
use tokio::time::{Instant, timeout_at};

use crate::api::{Code, Problem, WatchChange, WatchCompacted};
use crate::client::Call;
use crate::encoding::Query;
use crate::kv::KeyRange;
use crate::sse::{Event, EventStream, Next, RETRY_PAUSE};
use crate::{Client, Error};

/// How often a node is asked to show progress, unless the caller says so.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Most that one revision may take, in bytes of its events.
const REVISION_BYTES_MAX: usize = 256 << 20;

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// One key.
    Key(String),
    /// A range of keys.
    Range(KeyRange),
}

/// How to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// First revision wanted; otherwise from now on.
    pub from_revision: Option<u64>,
    /// Tell with each change the record that was there before, too.
    pub prev: bool,
    /// How often to tell progress when nothing changes: 100 ms at least, 5 s unless given.
    pub progress: Option<Duration>,
}

/// One key that a revision changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It was written.
    Put(WatchChange),
    /// It was deleted.
    Deleted(WatchChange),
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watch {
    /// All that one revision changed of what is watched: never less.
    Revision {
        /// The revision.
        revision: u64,
        /// The changes, by key.
        changes: Vec<Changed>,
    },
    /// Everything up to this revision was told.
    Progress(u64),
}

/// A watch that goes on by itself: through another endpoint when one fails, and after it was cut off for being slow.
/// Each revision is told once and whole, in order.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    watched: Watched,
    prev: bool,
    progress: Duration,
    /// Everything up to it was told; None before it is known.
    position: Option<u64>,
    stream: Option<Stream>,
}

impl Client {
    /// Watches. Nothing is sent before the first [`Watcher::next`]. A watch from now on begins when a node first answers;
    /// [`Watch::Progress`] is then the first that it tells.
    pub fn watch(&self, watched: Watched, options: &WatchOptions) -> Watcher {
        let position = options.from_revision.map(|from| from.saturating_sub(1));
        let progress = options.progress.unwrap_or(PROGRESS_INTERVAL);
        Watcher { client: self.clone(), watched, prev: options.prev, progress, position, stream: None }
    }
}

impl Watcher {
    /// Everything up to this revision was told.
    pub fn position(&self) -> Option<u64> {
        self.position
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`Code::Compacted`]: what comes next is forgotten; read the present state, and watch from there.
    /// [`Error::Unavailable`] when no node could be watched for [`crate::Options::timeout`]; a further call tries on.
    /// Others as [`Error`] says; never [`Error::Indeterminate`].
    pub async fn next(&mut self) -> Result<Watch, Error> {
        let patience = self.client.options().timeout;
        let mut deadline = Instant::now() + patience;
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => match self.open().await {
                    Ok(stream) => self.stream.insert(stream),
                    Err(error @ Error::Unavailable { .. }) if Instant::now() < deadline => {
                        tracing::debug!(%error, "the watch does not go on yet");
                        tokio::time::sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            match stream.next().await {
                Ok(Told::Watch(told)) => {
                    let (Watch::Revision { revision, .. } | Watch::Progress(revision)) = &told;
                    if self.position.is_some_and(|position| *revision < position) {
                        self.stream = None;
                        return Err(Error::Unexpected(format!("a watch went back to revision {revision}")));
                    }
                    self.position = Some(*revision);
                    return Ok(told);
                }
                Ok(Told::Compacted(compacted)) => {
                    self.stream = None;
                    return Err(rejected(&compacted));
                }
                Ok(Told::Ended(why)) => {
                    tracing::debug!(why, "the watch goes on elsewhere");
                    self.stream = None;
                    // Each stream that began earns a new attempt.
                    deadline = Instant::now() + patience;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => {
                    self.stream = None;
                    return Err(error);
                }
            }
        }
    }

    async fn open(&self) -> Result<Stream, Error> {
        let mut query = Query::default();
        match &self.watched {
            Watched::Key(key) => query.add("key", key),
            Watched::Range(range) => range.add_to(&mut query),
        }
        if self.prev {
            query.add("prev", "true");
        }
        query.add("progress", &format!("{}ms", self.progress.as_millis()));
        let mut call = Call::read(query.append_to("/api/watch"));
        if let Some(position) = self.position {
            call.header(HeaderName::from_static("last-event-id"), &position.to_string())?;
        }
        let response = self.client.open(&call).await?;
        Ok(Stream { events: EventStream::new(response), changes: Vec::new(), held_bytes: 0 })
    }
}

fn rejected(compacted: &WatchCompacted) -> Error {
    let WatchCompacted { from_revision, compacted_revision, revision } = compacted;
    let problem = Problem {
        kind: "about:blank".to_owned(),
        title: Code::Compacted.title().to_owned(),
        status: Code::Compacted.status(),
        detail: format!(
            "revision {from_revision} was compacted; read the present state (revision {revision}) and watch from there. \
             The oldest readable revision is {compacted_revision}"
        ),
        code: Code::Compacted,
    };
    Error::Rejected {
        code: Code::Compacted,
        problem: Box::new(problem),
        current_revision: None,
        store_revision: Some(*revision),
    }
}

/// One answer of one node.
#[derive(Debug)]
struct Stream {
    events: EventStream,
    /// Of a revision whose last event has not come.
    changes: Vec<Changed>,
    held_bytes: usize,
}

#[derive(Debug)]
enum Told {
    Watch(Watch),
    Compacted(WatchCompacted),
    /// The stream is over; the watch may go on elsewhere.
    Ended(String),
}

impl Stream {
    /// Cancel-safe: what was received is kept until the event that it belongs to is whole.
    async fn next(&mut self) -> Result<Told, Error> {
        loop {
            let event = match self.events.next().await? {
                Next::Event(event) => event,
                Next::Ended(why) => return Ok(Told::Ended(why)),
            };
            self.held_bytes += event.bytes;
            if self.held_bytes > REVISION_BYTES_MAX {
                return Err(Error::Unexpected("a revision of a watch is larger than a node sends".to_owned()));
            }
            if let Some(told) = self.take(&event)? {
                return Ok(told);
            }
        }
    }

    fn take(&mut self, event: &Event) -> Result<Option<Told>, Error> {
        let mut end = None;
        match event.name.as_str() {
            "put" => self.changes.push(Changed::Put(event.body()?)),
            "delete" => self.changes.push(Changed::Deleted(event.body()?)),
            "progress" => {}
            "compacted" => return Ok(Some(Told::Compacted(event.body()?))),
            // `overflow`, `closed`, and what later versions may say: the position is known without.
            other => end = Some(Told::Ended(other.to_owned())),
        }
        let Some(revision) = event.id else { return Ok(end) };
        self.held_bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        Ok(Some(Told::Watch(match event.name.as_str() {
            "progress" => Watch::Progress(revision),
            _ => Watch::Revision { revision, changes },
        })))
    }
}

impl Watcher {
    /// As [`Watcher::next`], at most until `deadline`; None when nothing came.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub async fn next_before(&mut self, deadline: Instant) -> Result<Option<Watch>, Error> {
        timeout_at(deadline, self.next()).await.map_or(Ok(None), |told| told.map(Some))
    }
}
