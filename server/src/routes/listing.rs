//! A page of a listing as JSON, encoded piece by piece while the client takes it: of a page in memory there is then
//! one copy, not three. Pieces have about [`PIECE_BYTES`]; a larger item is one piece.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_store::record::{KeyRecord, ListPage, ListRequest};
use serde_json::json;

use super::{
    held::{self, PIECE_BYTES},
    record::{item, next_cursor},
};
use crate::{admission::Admitted, error::Error, node::Node, transfers::Pieces};

/// The rest of an answer. Invariant: the pieces together are one JSON object of the length that was announced.
struct Rest {
    page: Arc<Page>,
    /// Items before it are encoded.
    at: usize,
    ended: bool,
}

struct Page {
    items: Vec<KeyRecord>,
    with_values: bool,
    tail: Vec<u8>,
    _room: Admitted,
}

impl Page {
    fn encode(&self, at: usize, with_value: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(if at == 0 { b"" } else { b"," });
        let KeyRecord { key, record } = &self.items[at];
        serde_json::to_writer(out, &item(key, record, with_value)).expect("an item is plain data");
    }
}

/// Items whose encoding is measured at once; more take too long for a thread that serves all connections.
const MEASURED_AT_ONCE_MAX: usize = 256;
const HEAD: &[u8] = b"{\"items\":[";
/// What a value adds to an item besides itself in base64.
const VALUE_FIELD: &[u8] = b"\"value\":\"\",";

/// Answers `page` of the listing `wanted`.
///
/// # Errors
/// 429 while other pages that are being sent take all the room there is.
pub async fn answer(node: &Node, wanted: &ListRequest, page: ListPage) -> Result<Response<Body>, Error> {
    let bytes = page.items.iter().map(|i| i.key.len() + i.record.value.len() + 64).sum();
    let room = held::room(node, bytes)?;
    let next = json!(next_cursor(wanted, &page));
    let tail = format!("],\"count\":{},\"next\":{next},\"revision\":{}}}", page.count, page.revision).into_bytes();
    let page = Arc::new(Page { items: page.items, with_values: !wanted.keys_only, tail, _room: room });
    let length = if page.items.len() <= MEASURED_AT_ONCE_MAX {
        length(&page)
    } else {
        let measured = page.clone();
        let measured = node.environment.driver.run(move || length(&measured)).await;
        measured.map_err(|e| Error::new(Code::Unavailable, format!("the listing broke off: {e}")))?
    };
    let rest = Rest { page, at: 0, ended: false };
    let mut response = Response::new(held::body(node, rest));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// Length of the whole answer, in bytes: each item is encoded to be measured, without its value, whose length is known.
fn length(page: &Page) -> u64 {
    let mut scratch = Vec::new();
    let mut length = (HEAD.len() + page.tail.len()) as u64;
    for at in 0..page.items.len() {
        scratch.clear();
        page.encode(at, false, &mut scratch);
        length += scratch.len() as u64;
        if page.with_values {
            let base64 = page.items[at].record.value.len().div_ceil(3) * 4;
            length += (VALUE_FIELD.len() + base64) as u64;
        }
    }
    length
}

impl Pieces for Rest {
    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut piece = Vec::new();
        if self.at == 0 {
            piece.extend_from_slice(HEAD);
        }
        while self.at < self.page.items.len() && piece.len() < PIECE_BYTES {
            self.page.encode(self.at, self.page.with_values, &mut piece);
            self.at += 1;
        }
        if self.at == self.page.items.len() {
            piece.extend_from_slice(&self.page.tail);
            self.ended = true;
        }
        Some(piece.into())
    }
}

#[cfg(test)]
mod tests {
    use hexkv_client::api::ListAnswer;
    use hexkv_store::record::Record;

    use super::*;
    use crate::admission::Admission;

    fn page(items: usize, value_bytes: usize, tail: &str) -> Arc<Page> {
        let record = |i: usize| Record {
            create_revision: 1,
            mod_revision: i as u64,
            version: 1,
            lease: 0,
            content_type: None,
            value: vec![i as u8; value_bytes].into(),
        };
        let items = (0..items).map(|i| KeyRecord { key: format!("\"key\"-{i}").into(), record: record(i) }).collect();
        let room = Admission::new(1, 1024).admit(1).expect("room");
        Arc::new(Page { items, with_values: true, tail: tail.as_bytes().to_vec(), _room: room })
    }

    #[test]
    fn the_pieces_are_one_answer_of_the_announced_length() {
        let tail = "],\"count\":3,\"next\":null,\"revision\":9}";
        for (items, value_bytes) in [(0, 0), (1, 10), (1_000, 300), (3, 3 * PIECE_BYTES)] {
            let page = page(items, value_bytes, tail);
            let mut rest = Rest { page: page.clone(), at: 0, ended: false };
            let mut all = Vec::new();
            while let Some(piece) = rest.next() {
                assert!(piece.len() <= PIECE_BYTES + 4 * value_bytes / 3 + 500, "{}", piece.len());
                all.extend_from_slice(&piece);
            }
            assert_eq!(all.len() as u64, length(&page));
            let answer: ListAnswer = serde_json::from_slice(&all).expect("JSON");
            assert_eq!((answer.items.len(), answer.count, answer.revision), (items, 3, 9));
        }
    }
}
