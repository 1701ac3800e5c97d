//! Exports: [`Client::export`], and the file that holds one.
//!
//! | module | holds |
//! |---|---|
//! | [`mod@line`] | what a line of the file says |
//! | [`writer`] | records to lines, with the sum at the end |
//! | [`reader`] | lines to records; refuses what was cut or altered |
//!
//! The file is JSON Lines. Each record is a line `{"key":"a","value":"aGk=","content_type":"text/plain"}`: the key as text, the
//! value in base64 always, the content type where the key has one. Keys are in bytewise order. The last line is
//! `{"end":{"count":1,"revision":7,"leased_left_out":0,"sha256":"..."}}`. The sum is over every byte of the file before
//! `,"sha256"` in that line.

pub mod line;
pub mod reader;
pub mod writer;

use std::time::Duration;

use futures_util::stream::{self, Stream, TryStreamExt as _};

use crate::api::Item;
use crate::kv::{KeyRange, ListOptions, ReadOptions};
use crate::patience::persist;
use crate::{Client, Error};
use line::{End, Record};

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The state at this revision; at the newest unless given.
    pub revision: Option<u64>,
    /// Export keys under leases as well, as keys without a lease: they would go when it ends, the import stays.
    pub with_leased: bool,
    /// How long each page is asked for again while no node can answer.
    pub patience: Duration,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { revision: None, with_leased: false, patience: Duration::from_secs(60) }
    }
}

/// What an export tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exported {
    /// A record, in the order of keys.
    Record(Record),
    /// There are no more.
    End(End),
}

/// How far an export is.
struct Position {
    range: KeyRange,
    list: ListOptions,
    count: u64,
    leased_left_out: u64,
}

impl Client {
    /// All records of `range` at one revision, page by page, whatever is written meanwhile; then [`Exported::End`]. At most
    /// one page (16 MiB) is in memory.
    ///
    /// The stream ends after its first error: see [`Error`]; never [`Error::Indeterminate`].
    /// [`Code::Compacted`](crate::api::Code::Compacted) when the revision is forgotten before the export is done.
    pub fn export(&self, range: KeyRange, options: ExportOptions) -> impl Stream<Item = Result<Exported, Error>> + '_ {
        let read = ReadOptions { revision: options.revision, ..ReadOptions::default() };
        let list = ListOptions { read, ..ListOptions::default() };
        let begin = Position { range, list, count: 0, leased_left_out: 0 };
        let pages = stream::try_unfold(Some(begin), move |position| {
            let (patience, with_leased) = (options.patience, options.with_leased);
            async move {
                let Some(mut position) = position else { return Ok(None) };
                let page = persist(patience, || self.list(&position.range, &position.list)).await?;
                let mut told = Vec::with_capacity(page.items.len() + 1);
                for item in page.items {
                    if item.lease.is_some() && !with_leased {
                        position.leased_left_out += 1;
                    } else {
                        position.count += 1;
                        told.push(Ok(Exported::Record(record(item)?)));
                    }
                }
                position.list.cursor = page.next;
                if position.list.cursor.is_some() {
                    return Ok(Some((stream::iter(told), Some(position))));
                }
                let Position { count, leased_left_out, .. } = position;
                told.push(Ok(Exported::End(End { count, revision: page.revision, leased_left_out })));
                Ok(Some((stream::iter(told), None)))
            }
        });
        pages.try_flatten()
    }
}

fn record(item: Item) -> Result<Record, Error> {
    let unexpected = |what: String| Error::Unexpected(format!("an item of a listing cannot be exported: {what}"));
    let value = item.value_bytes().map_err(|error| unexpected(error.to_string()))?;
    let value = value.ok_or_else(|| unexpected("it has no value".to_owned()))?;
    // Nodes take UTF-8 keys alone, so it could not be imported either.
    let key = item.key.ok_or_else(|| unexpected("its key is not UTF-8".to_owned()))?;
    Ok(Record { key, value, content_type: item.content_type })
}
