//! Records and listings as JSON.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use hexkv_client::api::{Item, ListAnswer};
use hexkv_store::{
    codec,
    record::{KeyRange, ListPage, ListRequest, Record},
};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Longest cursor, in bytes of its decoded form.
const CURSOR_BYTES_MAX: usize = 8192;

/// Where the next page begins, and at which revision.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cursor {
    /// Revision that all pages show.
    pub revision: u64,
    /// Last key of the page before.
    pub after: Bytes,
    /// Range of the listing.
    pub range: KeyRange,
    /// Order of the listing.
    pub descending: bool,
}

impl Cursor {
    /// Reads what [`list_answer`] gave as `next`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid("the cursor is not one that this API gave; take it from \"next\" as it is");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        codec::decode("cursor", &bytes, CURSOR_BYTES_MAX).map_err(|_| invalid())
    }
}

/// A page of the listing `wanted`, with the cursor of the next one.
pub fn list_answer(wanted: &ListRequest, page: &ListPage) -> ListAnswer {
    let items = page.items.iter().map(|i| item(&i.key, &i.record, !wanted.keys_only)).collect();
    ListAnswer { items, count: page.count, next: next_cursor(wanted, page), revision: page.revision }
}

/// Where the page after `page` begins; None after the last.
pub fn next_cursor(wanted: &ListRequest, page: &ListPage) -> Option<String> {
    page.items.last().filter(|_| page.more).map(|last| {
        let cursor = Cursor {
            revision: page.revision,
            after: last.key.clone(),
            range: wanted.range.clone(),
            descending: wanted.descending,
        };
        URL_SAFE_NO_PAD.encode(codec::encode(&cursor))
    })
}

/// A key as `key`, or where it is not UTF-8 as `key_base64`.
pub fn key_in_json(key: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(key) {
        Ok(text) => (Some(text.to_string()), None),
        Err(_) => (None, Some(BASE64.encode(key))),
    }
}

/// One record.
pub fn item(key: &Bytes, record: &Record, with_value: bool) -> Item {
    let (key, key_base64) = key_in_json(key);
    Item {
        key,
        key_base64,
        value: with_value.then(|| BASE64.encode(&record.value)),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        lease: (record.lease != 0).then_some(record.lease),
        content_type: record.content_type.clone(),
    }
}
