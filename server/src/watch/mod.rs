//! Watches: what changed, in order, each revision once and whole.
//!
//! | part | what |
//! |---|---|
//! | [`Watcher`] | one watch: reads the history at its own pace, then joins the live stream |
//! | [`Hub`] | the live stream: turns each revision into one shared [`Revision`] and hands it to whom it concerns |
//! | `index` | which watchers a key concerns, without asking the others |
//! | `slot` | the bounded queue between the hub and one watcher |
//! | `source` | where changes come from: this node's state, or the leader for a node that holds no data |
//! | `encode` | server-sent events, encoded once for all watchers |
//!
//! ```text
//! state ── changes_after ──> dispatcher ── index ──> slot ──> Watcher ──> server-sent events, locks, elections
//!   └───────────── history, at the watcher's own pace ────────────^
//! ```
//!
//! Others in the server use it like this:
//!
//! ```no_run
//! # use std::{sync::Arc, time::Duration};
//! # use hexkv_server::{error::Error, node::Node, watch::End};
//! # use hexkv_store::record::KeyRange;
//! # async fn example(node: Arc<Node>) -> Result<(), Error> {
//! let range = KeyRange::prefix(b"locks/");
//! // None = from now on: everything acknowledged before the call is already in the state.
//! let mut watcher = node.watch(range, None, Duration::from_secs(5)).await?;
//! let end = loop {
//!     match watcher.next().await {
//!         Ok(batch) => batch.changes().for_each(|change| drop((batch.revision(), &change.key, &change.new))),
//!         Err(end) => break end,
//!     }
//! };
//! match end {
//!     End::Compacted { .. } => { /* read the range, and watch from the revision after the read */ }
//!     End::Overflow | End::Closed(_) => { /* watch again from watcher.position() + 1 */ }
//! }
//! # Ok(())
//! # }
//! ```

mod encode;
mod hub;
mod index;
mod revision;
mod slot;
mod source;
mod start;
#[cfg(test)]
mod tests;
mod watcher;

pub(crate) use encode::lines as event_lines;
pub use encode::{ending_event, progress_event};
pub use hub::{CATCH_UP_READS_MAX, Hub, STREAM_BYTES_MAX, WATCHERS_MAX};
pub use revision::{Batch, Revision};
pub use slot::{WATCHER_QUEUE_BYTES_MAX, WATCHER_QUEUE_REVISIONS_MAX};
pub use source::{PEER_WAIT_MAX, answer_changes};
pub use start::Watches;
pub use watcher::{Event, Watcher};

/// Why a watch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// What it wants next is compacted: it has to read the present state and watch from there.
    Compacted {
        /// First revision that was wanted.
        from: u64,
        /// The compacted revision: a watch may begin with the one after it.
        compacted: u64,
        /// Newest revision of the node.
        newest: u64,
    },
    /// It was too slow: its queue was full. It may be resumed where it stands.
    Overflow,
    /// This node cannot go on: it stops, changes clusters, or no longer holds the data. It may be resumed elsewhere.
    Closed(String),
}
