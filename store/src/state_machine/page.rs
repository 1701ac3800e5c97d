//! One page of a listing, filled until a limit is met.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::record::{KeyRecord, ListPage, ListRequest, Record};

/// Most items of one page, whatever limit a request names.
pub const LIST_PAGE_ITEMS_MAX: u32 = 10_000;
/// A page ends with the first item that reaches this size, in bytes of keys and values.
pub const LIST_PAGE_BYTES_MAX: u64 = 7 * 1024 * 1024;

/// A page that is being filled.
#[derive(Debug)]
pub(super) struct PageBuilder {
    page: ListPage,
    items_max: usize,
    bytes: u64,
    bytes_max: u64,
    keys_only: bool,
    count_only: bool,
}

impl PageBuilder {
    /// A page for `request` that shows `revision`, of about `bytes_max` bytes.
    pub(super) fn new(request: &ListRequest, revision: u64, bytes_max: u64) -> Self {
        Self {
            page: ListPage { revision, ..ListPage::default() },
            items_max: request.limit.min(LIST_PAGE_ITEMS_MAX) as usize,
            bytes: 0,
            bytes_max: bytes_max.min(LIST_PAGE_BYTES_MAX),
            keys_only: request.keys_only,
            count_only: request.count_only,
        }
    }

    /// Whether only the number of keys is wanted, so that no record needs to be decoded.
    pub(super) fn counts_only(&self) -> bool {
        self.count_only
    }

    /// Counts a key without its record.
    pub(super) fn count(&mut self) {
        self.page.count += 1;
    }

    /// Adds a key, or breaks when the page has no room for it.
    pub(super) fn push(&mut self, key: &[u8], mut record: Record) -> ControlFlow<()> {
        if self.count_only {
            self.count();
            return ControlFlow::Continue(());
        }
        if self.page.items.len() >= self.items_max || self.bytes >= self.bytes_max {
            self.page.more = true;
            return ControlFlow::Break(());
        }
        if self.keys_only {
            record.value = Bytes::new();
        }
        self.bytes += size_bytes(key, &record);
        self.page.items.push(KeyRecord { key: Bytes::copy_from_slice(key), record });
        self.page.count += 1;
        ControlFlow::Continue(())
    }

    /// The page, and its size in bytes of keys and values.
    pub(super) fn finish(self) -> (ListPage, u64) {
        (self.page, self.bytes)
    }
}

/// What the numbers of a record count for, in bytes.
pub(super) const NUMBERS_BYTES: usize = 32;

/// What a record takes in answers, overlay and history, in bytes: key, value, content type and the numbers.
pub(super) fn size_bytes(key: &[u8], record: &Record) -> u64 {
    (key.len() + record.value.len() + record.content_type.as_ref().map_or(0, String::len) + NUMBERS_BYTES) as u64
}
