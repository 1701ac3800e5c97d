//! `GET /api/kv/{key}?after=REV&wait=30s`: answers when the key changes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hexkv_client::api::Code;
use tokio::time::{Instant, timeout_at};

use super::watch::only;
use crate::{
    error::Error,
    http_server::Connection,
    kv::{Found, ReadOptions},
    node::Node,
    watch::End,
};

/// How long to wait when a request does not say.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// What a long poll ends with.
pub enum Polled {
    /// The key was changed after the revision: what a GET answers now.
    Changed(Found),
    /// Nothing happened in time: what the first look found.
    Unchanged(Found),
}

/// Waits, at most `wait`, until `key` is changed by a revision beyond `after`, or the client of `connection` is gone.
pub async fn poll(
    node: &Arc<Node>,
    key: &Bytes,
    after: u64,
    wait: Duration,
    options: &ReadOptions,
    connection: &Connection,
) -> Result<Polled, Error> {
    let deadline = Instant::now() + wait;
    loop {
        let found = node.read_key(key.clone(), 0, options).await?;
        if after > found.revision {
            return Err(Error::invalid(format!("revision {after} is in the future: the newest is {}", found.revision)));
        }
        if found.record.as_ref().is_some_and(|record| record.mod_revision > after) {
            return Ok(Polled::Changed(found));
        }
        // A record that is unchanged up to the read needs no look at the history. A missing key may have been deleted: this
        // node's state knows when, and where there is none the history does.
        let unchanged_up_to = match (&found.record, node.own_state()) {
            (Some(_), _) => found.revision,
            (None, Some(core)) if core.state.deleted_since(key, after) => return Ok(Polled::Changed(found)),
            (None, Some(_)) => found.revision,
            (None, None) => after,
        };
        let mut watcher = node.watch(only(key), Some(unchanged_up_to + 1), options.timeout).await?;
        // What was read first is answered at once where it can be; from here on the request waits.
        connection.waits();
        match timeout_at(deadline, watcher.next()).await {
            // Nothing came up to the watch's position either: the next poll may begin there.
            Err(_) => {
                let revision = watcher.position().max(found.revision);
                return Ok(Polled::Unchanged(Found { revision, ..found }));
            }
            Ok(Ok(_)) => return node.read_key(key.clone(), 0, options).await.map(Polled::Changed),
            // When it was deleted is forgotten: better once too often than never.
            Ok(Err(End::Compacted { .. })) if found.record.is_none() => return Ok(Polled::Changed(found)),
            Ok(Err(End::Compacted { .. } | End::Overflow)) => {}
            Ok(Err(End::Closed(why))) => {
                return Err(Error::new(Code::Unavailable, format!("{why}; ask another node")));
            }
        }
    }
}
