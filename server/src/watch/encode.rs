//! Server-sent events (HTML Living Standard, 9.2).

use bytes::Bytes;
use hexkv_client::api::{WatchChange, WatchClosed, WatchCompacted, WatchProgress};
use hexkv_store::change_log::{Change, Replaced};
use serde::Serialize;

use super::End;
use crate::routes::record::{item, key_in_json};

/// The event of one change, without the blank line that ends it.
pub(super) fn change_event(revision: u64, change: &Change, prev: bool) -> Bytes {
    let (key, key_base64) = key_in_json(&change.key);
    let prev = match &change.old {
        Replaced::Record(record) if prev => Some(item(&change.key, record, true)),
        Replaced::Record(_) | Replaced::Absent { .. } => None,
    };
    let new = change.new.as_ref().map(|record| item(&change.key, record, true));
    let name = if new.is_some() { "put" } else { "delete" };
    let body = match new {
        Some(new) => WatchChange {
            revision,
            key,
            key_base64,
            value: new.value,
            create_revision: Some(new.create_revision),
            mod_revision: new.mod_revision,
            version: Some(new.version),
            lease: new.lease,
            content_type: new.content_type,
            prev,
        },
        None => WatchChange {
            revision,
            key,
            key_base64,
            value: None,
            create_revision: None,
            mod_revision: revision,
            version: None,
            lease: None,
            content_type: None,
            prev,
        },
    };
    lines(name, &body, b"")
}

/// Everything up to `revision` was sent.
pub fn progress_event(revision: u64) -> Bytes {
    lines("progress", &WatchProgress { revision }, format!("id: {revision}\n\n").as_bytes())
}

/// The last event of a watch, which stands at `position`.
pub fn ending_event(end: &End, position: u64) -> Bytes {
    match end {
        End::Compacted { from, compacted, newest } => {
            let body = WatchCompacted { from_revision: *from, compacted_revision: *compacted, revision: *newest };
            lines("compacted", &body, b"\n")
        }
        End::Overflow => lines("overflow", &WatchProgress { revision: position }, b"\n"),
        End::Closed(reason) => lines("closed", &WatchClosed { revision: position, reason: reason.clone() }, b"\n"),
    }
}

/// The event `name` with `body` as its data, and `end` behind it: its id, if it has one, and the blank line.
/// JSON has no line breaks of its own, so one data line holds it.
pub fn lines(name: &str, body: &impl Serialize, end: &[u8]) -> Bytes {
    let mut out = format!("event: {name}\ndata: ").into_bytes();
    serde_json::to_writer(&mut out, body).expect("bodies are plain data");
    out.push(b'\n');
    out.extend_from_slice(end);
    out.into()
}
