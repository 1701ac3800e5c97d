//! The streamed snapshot file: the whole state and the kept history, written and read in constant memory.
//!
//! A snapshot is taken while the state moves, and nobody waits for it:
//!
//! 1. note the revision, `scan_start_revision`;
//! 2. push the current record of every key, as a scan of the moving state finds them;
//! 3. push all leases, as of exactly the newest `revision` and its log id, then *all* kept change records, from the one
//!    after `compacted_revision` up to that revision;
//! 4. finish with the log id, membership, state hash and directory of exactly that revision.
//!
//! The scan alone is consistent with no revision: each of its records is from somewhere between
//! `scan_start_revision` and `revision`, and a key created or deleted in between may be there or not. Changes
//! hold absolute records, so doing those with a revision above `scan_start_revision` once more, in order, gives
//! every touched key its record of `revision`, whatever the scan saw of it. So a loader puts the records of the
//! scan, does these changes over them ([`SnapshotReader::load`] says which), keeps all change records as its
//! change log, and compares the state hash of what it got with the footer's.
//!
//! | part | what |
//! |---|---|
//! | [`SnapshotWriter`], [`SnapshotReader`] | a file, and the checks on it; the format is described in `format.rs` |
//! | [`SnapshotDir`] | which file counts, adoption of received ones, removal of old ones |
//! | [`SnapshotFile`], [`SnapshotReceiver`] | a complete file as raft-net sends it, a partial one as it receives it |
//!
//! All calls block.

mod dir;
mod format;
mod reader;
#[cfg(test)]
mod tests;
mod transfer;
mod writer;

pub use dir::SnapshotDir;
pub use format::{CHUNK_BYTES_MAX, Footer, SNAPSHOT_FORMAT_VERSION, SnapshotCounts, SnapshotItem};
pub use reader::{SnapshotItems, SnapshotReader, SnapshotSink};
pub use transfer::{SnapshotFile, SnapshotReceiver, check_received};
pub use writer::SnapshotWriter;
