//! A saved history, line by line; every error names the line and, where there is one, the field.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

use super::recorder::EVENTS_MAX;
use super::{Disorder, Event, HISTORY_VERSION, Header, Kind, Mode, Order, Process};

/// Longest line that is read, in bytes: a set's final read of some hundred thousand numbers fits.
pub const LINE_BYTES_MAX: u64 = 16 << 20;

/// Why a saved history cannot be read.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The file cannot be opened or read.
    #[error("line {line}: {source}")]
    Io {
        /// From 1; 0 = the file could not be opened.
        line: u64,
        /// The system's word.
        source: io::Error,
    },
    /// Nothing in it.
    #[error("line 1: the file is empty; a history begins with {{\"history_version\":{HISTORY_VERSION}}}")]
    Empty,
    /// Written by a suite with another form of history, or not a history.
    #[error("line 1, field `history_version`: {found}, but this suite reads version {HISTORY_VERSION}")]
    Version {
        /// What the line says.
        found: String,
    },
    /// The last line has no end: the run was cut off while it wrote.
    #[error("line {line}: truncated, the line has no end; delete it to judge what is before it")]
    Truncated {
        /// From 1.
        line: u64,
    },
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("line {line}: longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong {
        /// From 1.
        line: u64,
    },
    /// There are more than [`EVENTS_MAX`] events.
    #[error("line {line}: a history has {EVENTS_MAX} events at most")]
    TooManyEvents {
        /// From 1.
        line: u64,
    },
    /// Not JSON, or not an event.
    #[error("line {line}: not an event: {why}")]
    Syntax {
        /// From 1.
        line: u64,
        /// The parser's word.
        why: String,
    },
    /// A field is missing, unknown or of the wrong type.
    #[error("line {line}, field `{field}`: {why}")]
    Field {
        /// From 1.
        line: u64,
        /// Which one.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The event does not fit those before it.
    #[error("line {line}, field `{}`: {disorder}", .disorder.field())]
    Disorder {
        /// From 1.
        line: u64,
        /// How.
        disorder: Disorder,
    },
}

/// Reads a whole file. Errors: the first line that is wrong.
pub fn read_file(path: &Path) -> Result<Vec<Event>, HistoryError> {
    let file = File::open(path).map_err(|source| HistoryError::Io { line: 0, source })?;
    Reader::new(BufReader::new(file)).collect()
}

/// The events of a saved history, one by one; after an error it ends.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: u64,
    order: Order,
    buffer: Vec<u8>,
    over: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads from `input`, which begins with the header.
    pub fn new(input: R) -> Self {
        Reader { input, line: 0, order: Order::default(), buffer: Vec::new(), over: false }
    }

    /// The next line without its end into `buffer`; false at the end of the file.
    fn advance(&mut self) -> Result<bool, HistoryError> {
        self.line += 1;
        self.buffer.clear();
        let line = self.line;
        let read = io::Read::take(&mut self.input, LINE_BYTES_MAX)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|source| HistoryError::Io { line, source })?;
        if read == 0 {
            return Ok(false);
        }
        if self.buffer.pop() != Some(b'\n') {
            let full = read as u64 == LINE_BYTES_MAX;
            return Err(if full { HistoryError::LineTooLong { line } } else { HistoryError::Truncated { line } });
        }
        Ok(true)
    }

    fn header(&mut self) -> Result<(), HistoryError> {
        if !self.advance()? {
            return Err(HistoryError::Empty);
        }
        match serde_json::from_slice::<Header>(&self.buffer) {
            Ok(Header { history_version: HISTORY_VERSION }) => Ok(()),
            Ok(header) => Err(HistoryError::Version { found: header.history_version.to_string() }),
            Err(why) => Err(HistoryError::Version { found: format!("not a header ({why})") }),
        }
    }

    fn event(&mut self) -> Result<Option<Event>, HistoryError> {
        if self.line == 0 {
            self.header()?;
        }
        if !self.advance()? {
            return Ok(None);
        }
        let line = self.line;
        if self.order.next_index() >= EVENTS_MAX as u64 {
            return Err(HistoryError::TooManyEvents { line });
        }
        let event: Event = serde_json::from_slice(&self.buffer).map_err(|error| explain(line, &self.buffer, &error))?;
        self.order.admit(&event).map_err(|disorder| HistoryError::Disorder { line, disorder })?;
        Ok(Some(event))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let item = self.event().transpose();
        self.over = !matches!(item, Some(Ok(_)));
        item
    }
}

/// Finds the field that a line failed on: serde_json tells a wrong type's column, not its name.
fn explain(line: u64, text: &[u8], error: &serde_json::Error) -> HistoryError {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(text) else {
        return HistoryError::Syntax { line, why: error.to_string() };
    };
    let wrong = [
        required::<u64>(&fields, "index"),
        required::<u64>(&fields, "time_ns"),
        required::<Process>(&fields, "process"),
        required::<Kind>(&fields, "type"),
        required::<String>(&fields, "f"),
        optional::<String>(&fields, "key"),
        optional::<String>(&fields, "node"),
        optional::<Mode>(&fields, "mode"),
        optional::<u64>(&fields, "revision"),
        optional::<String>(&fields, "error"),
        unknown(&fields),
    ];
    match wrong.into_iter().flatten().next() {
        Some((field, why)) => HistoryError::Field { line, field, why },
        None => HistoryError::Syntax { line, why: error.to_string() },
    }
}

fn required<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Option<(String, String)> {
    match fields.get(name) {
        None => Some((name.into(), "missing".into())),
        Some(value) => T::deserialize(value).err().map(|why| (name.into(), why.to_string())),
    }
}

fn optional<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Option<(String, String)> {
    fields.get(name).and_then(|value| Option::<T>::deserialize(value).err()).map(|why| (name.into(), why.to_string()))
}

fn unknown(fields: &Map<String, Value>) -> Option<(String, String)> {
    const KNOWN: [&str; 11] =
        ["index", "time_ns", "process", "type", "f", "key", "value", "node", "mode", "revision", "error"];
    fields.keys().find(|name| !KNOWN.contains(&name.as_str())).map(|name| (name.clone(), "unknown field".into()))
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
