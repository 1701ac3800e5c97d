//! Taking events down while the run goes on: one lock gives each event its index and its time.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::Value;
use thiserror::Error;

use super::{Disorder, Event, HISTORY_VERSION, Header, Kind, Mode, Nemesis, Order, Process};

/// Most events of a history: about 300 MB of memory. Places are kept for the completions of what is open.
pub const EVENTS_MAX: usize = 1_000_000;

/// Why an event was not taken.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file cannot be written.
    #[error("the history cannot be written: {0}")]
    Io(#[from] io::Error),
    /// [`EVENTS_MAX`] is reached: stop the workload.
    #[error("the history is full: {EVENTS_MAX} events at most, those still to come of open operations included")]
    Full,
    /// [`Recorder::finish`] was called.
    #[error("the history is finished")]
    Finished,
    /// The event does not fit, a mistake of the workload.
    #[error("not a history: {0}")]
    Disorder(#[from] Disorder),
}

/// An event to be, without index and time.
#[derive(Debug, Clone)]
pub struct Entry(Event);

impl Entry {
    /// An event of a client.
    pub fn new(process: u64, kind: Kind, f: impl Into<String>) -> Self {
        Entry(Event {
            index: 0,
            time_ns: 0,
            process: Process::Client(process),
            kind,
            f: f.into(),
            key: None,
            value: Value::Null,
            node: None,
            mode: None,
            revision: None,
            error: None,
        })
    }

    /// An event of the nemesis.
    pub fn nemesis(f: impl Into<String>) -> Self {
        let mut entry = Entry::new(0, Kind::Info, f);
        entry.0.process = Process::Nemesis(Nemesis::Nemesis);
        entry
    }

    /// The beginning of an operation.
    pub fn invoke(process: u64, f: impl Into<String>) -> Self {
        Entry::new(process, Kind::Invoke, f)
    }

    /// The end of the operation that `self` began, with the same key, value, node and mode.
    pub fn completed(&self, kind: Kind) -> Self {
        let mut entry = self.clone();
        entry.0.kind = kind;
        entry
    }

    /// Sets the key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.0.key = Some(key.into());
        self
    }

    /// Sets the argument or result.
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.0.value = value.into();
        self
    }

    /// Sets the node.
    pub fn node(mut self, node: impl Into<String>) -> Self {
        self.0.node = Some(node.into());
        self
    }

    /// Sets how a read is asked for.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.0.mode = Some(mode);
        self
    }

    /// Sets the revision of the answer.
    pub fn revision(mut self, revision: u64) -> Self {
        self.0.revision = Some(revision);
        self
    }

    /// Sets why it failed or is unknown.
    pub fn error(mut self, error: impl Into<String>) -> Self {
        self.0.error = Some(error.into());
        self
    }
}

/// Takes down a history, from any number of threads.
///
/// Invariants: what is in memory and what is in the file are the same events in the same order; both are a history
/// in the sense of [`Order`].
pub struct Recorder {
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    order: Order,
    events: Vec<Event>,
    file: Option<BufWriter<File>>,
    events_max: usize,
    finished: bool,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("events", &self.state.lock().events.len()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Writes to a new file at `path` and keeps the events, too. Times count from now.
    ///
    /// Errors: the file cannot be made.
    pub fn create(path: &Path) -> Result<Self, RecordError> {
        let began = Instant::now();
        Self::with_clock(Some(path), move || u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Like [`Recorder::create`] with another clock (nanoseconds since the run began), and a file only if asked for.
    /// A clock that falls back stands still.
    pub fn with_clock(
        path: Option<&Path>,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, RecordError> {
        let file = match path {
            None => None,
            Some(path) => {
                let mut file = BufWriter::new(File::create(path)?);
                write_line(&mut file, &Header { history_version: HISTORY_VERSION })?;
                Some(file)
            }
        };
        let state =
            State { order: Order::default(), events: Vec::new(), file, events_max: EVENTS_MAX, finished: false };
        Ok(Recorder { clock: Box::new(clock), state: Mutex::new(state) })
    }

    /// Takes the event down and gives its index.
    ///
    /// Errors: see [`RecordError`]; the event is then not in the history.
    pub fn record(&self, entry: Entry) -> Result<u64, RecordError> {
        let Entry(mut event) = entry;
        let mut state = self.state.lock();
        if state.finished {
            return Err(RecordError::Finished);
        }
        event.index = state.order.next_index();
        event.time_ns = (self.clock)().max(state.order.time_ns());
        // An invocation needs two places. One that is refused stays out, so that no operation lacks its end.
        let needs = match (event.process, event.kind) {
            (Process::Client(_), Kind::Invoke) => state.order.open() + 2,
            (Process::Client(_), _) => 1,
            (Process::Nemesis(_), _) => state.order.open() + 1,
        };
        if state.events.len() + needs > state.events_max {
            return Err(RecordError::Full);
        }
        state.order.admit(&event)?;
        if let Some(file) = &mut state.file
            && let Err(error) = write_line(file, &event)
        {
            // A part of the line may be in the file: nothing may follow it.
            state.finished = true;
            return Err(error);
        }
        let index = event.index;
        state.events.push(event);
        Ok(index)
    }

    /// Writes out what is buffered and hands over the events; nothing is taken down after this.
    ///
    /// Errors: the file cannot be written, or it was called before.
    pub fn finish(&self) -> Result<Vec<Event>, RecordError> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.finished, true) {
            return Err(RecordError::Finished);
        }
        if let Some(mut file) = state.file.take() {
            file.flush()?;
        }
        Ok(std::mem::take(&mut state.events))
    }

    /// Events so far.
    pub fn len(&self) -> usize {
        self.state.lock().events.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn write_line(file: &mut impl Write, line: &impl serde::Serialize) -> Result<(), RecordError> {
    serde_json::to_writer(&mut *file, line).map_err(io::Error::from)?;
    file.write_all(b"\n")?;
    Ok(())
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
