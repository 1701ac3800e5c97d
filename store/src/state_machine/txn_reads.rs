//! What a transaction reads, and the limits of that: every node has to read it while nothing else is applied.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::{
    evaluate::{At, Stop, Transaction, View, limit},
    merge::{Entry, EntryVisit, merge},
    page::{LIST_PAGE_BYTES_MAX, PageBuilder, size_bytes},
};
use crate::{
    StoreError,
    command::{RANGE_DELETE_KEYS_MAX, REPLACED_BYTES_MAX, TXN_READ_BYTES_MAX, TXN_READ_KEYS_MAX},
    engine::Span,
    outcome::OpResult,
    record::{ListRequest, Record},
};

/// Once the answers of a transaction have this size, in bytes of keys and values, one more answer with a record
/// refuses it; a listing ends here with `more` set.
pub const TXN_ANSWER_BYTES_MAX: u64 = LIST_PAGE_BYTES_MAX;

/// Why a transaction is refused that reads beyond [`TXN_READ_KEYS_MAX`] or [`TXN_READ_BYTES_MAX`], and what to do.
pub fn read_too_much() -> String {
    format!(
        "a transaction reads at most {TXN_READ_KEYS_MAX} keys with records of {TXN_READ_BYTES_MAX} bytes, those that it counts or deletes included; take smaller ranges, or several requests"
    )
}

/// Why a transaction is refused that removes beyond [`RANGE_DELETE_KEYS_MAX`] or [`REPLACED_BYTES_MAX`], and what to do.
pub fn removed_too_much() -> String {
    format!(
        "a transaction removes at most {RANGE_DELETE_KEYS_MAX} keys of {REPLACED_BYTES_MAX} bytes; delete smaller ranges, one after the other (start and end)"
    )
}

/// What a transaction has read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    keys: u64,
    bytes: u64,
}

impl Work {
    pub(super) fn is_too_much(self) -> bool {
        self.keys > TXN_READ_KEYS_MAX || self.bytes > TXN_READ_BYTES_MAX
    }
}

impl<V: View> Transaction<'_, V> {
    pub(super) fn list(&mut self, at: At, request: &ListRequest) -> Result<OpResult, Stop> {
        if request.revision != 0 {
            return Err(limit(at, "a list inside a transaction reads the newest revision"));
        }
        let room = self.answer_room(at)?;
        let mut page = PageBuilder::new(request, self.revision(), room);
        let mut failure = None;
        self.scan(&request.span(), &mut |key, entry| {
            if page.counts_only() {
                page.count();
                return ControlFlow::Continue(());
            }
            match entry.record() {
                Ok(Some(record)) => page.push(key, record),
                Ok(None) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        self.check_work(at)?;
        let (page, bytes) = page.finish();
        self.answer_bytes += bytes;
        Ok(OpResult::List(page))
    }

    pub(super) fn read(&self, key: &Bytes) -> Result<Option<Record>, StoreError> {
        let record = self.current(key)?;
        self.note_read(key, record.as_ref(), true);
        Ok(record)
    }

    pub(super) fn current(&self, key: &Bytes) -> Result<Option<Record>, StoreError> {
        match self.touched.get(key) {
            Some(touched) => Ok(touched.new.clone()),
            None => self.view.get(key),
        }
    }

    pub(super) fn note_read(&self, key: &[u8], record: Option<&Record>, with_value: bool) {
        let bytes = record.filter(|_| with_value).map_or(key.len() as u64, |record| size_bytes(key, record));
        self.note_work(bytes);
    }

    pub(super) fn note_work(&self, bytes: u64) -> Work {
        let Work { keys, bytes: before } = self.work.get();
        let work = Work { keys: keys + 1, bytes: before + bytes };
        self.work.set(work);
        work
    }

    pub(super) fn check_work(&self, at: At) -> Result<(), Stop> {
        if self.work.get().is_too_much() { Err(limit(at, read_too_much())) } else { Ok(()) }
    }

    /// Visits the records of `span` as the transaction has left them, until it has read too much. What the layers of the
    /// view hide does not count: that differs from node to node.
    pub(super) fn scan(&self, span: &Span, visit: &mut EntryVisit<'_>) -> Result<(), StoreError> {
        if span.is_empty() {
            return Ok(());
        }
        let mut failure = None;
        let mut counted = |key: &[u8], entry: Entry<'_>| {
            match entry.size_bytes(key) {
                Ok(bytes) if self.note_work(bytes).is_too_much() => return ControlFlow::Break(()),
                Ok(_) => {}
                Err(error) => {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            match entry {
                Entry::Hidden | Entry::Deleted(_) => ControlFlow::Continue(()),
                Entry::Record(_) | Entry::Encoded(_) => visit(key, entry),
            }
        };
        let over = self.touched.range::<[u8], _>(span.bounds());
        let over = over.map(|(key, touched)| (key, touched.new.as_ref().map(Entry::Record)));
        let over: Box<dyn Iterator<Item = _>> = if span.descending { Box::new(over.rev()) } else { Box::new(over) };
        merge(over, span.descending, |visit| self.view.scan(span, visit), &mut counted)?;
        failure.map_or(Ok(()), Err)
    }

    /// Counts `record` as part of the answer.
    pub(super) fn answer_record(&mut self, at: At, key: &[u8], record: Option<Record>) -> Result<Option<Record>, Stop> {
        if let Some(record) = &record {
            self.answer_room(at)?;
            self.answer_bytes += size_bytes(key, record);
        }
        Ok(record)
    }

    pub(super) fn answer_room(&self, at: At) -> Result<u64, Stop> {
        match TXN_ANSWER_BYTES_MAX.saturating_sub(self.answer_bytes) {
            0 => Err(limit(
                at,
                format!("a transaction answers at most {TXN_ANSWER_BYTES_MAX} bytes; read in several requests"),
            )),
            room => Ok(room),
        }
    }
}

impl ListRequest {
    /// The keys that the request still has before it.
    pub(super) fn span(&self) -> Span {
        let span = Span::new(&self.range, self.descending);
        match &self.after {
            Some(after) => span.after(after.clone()),
            None => span,
        }
    }
}
