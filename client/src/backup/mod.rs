//! The file that `client snapshot save` writes and `server restore` reads.
//!
//! | part | bytes |
//! |---|---|
//! | magic `HEXKVBAK` | 8 |
//! | format version | u32, little endian |
//! | length of the header | u32, little endian |
//! | [`Header`] as JSON | at most [`HEADER_BYTES_MAX`] |
//! | the node's snapshot, in the store's own format | as the header says |
//! | SHA-256 of everything before | 32 |
//!
//! Who checks such a file needs no node and no key of the cluster: every byte is covered by the sum. What the snapshot
//! means, down to its state hash, is checked by `server restore --check`.

mod check;
mod save;

use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use check::{Checked, Checker, check};
pub use save::SaveError;

/// Version of the file that is written and read.
pub const FORMAT_VERSION: u32 = 1;
/// Largest header, in bytes.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Length of the sum at the end, in bytes.
pub const SUM_BYTES: usize = 32;
/// Magic, version, length of the header.
const FIXED_BYTES: usize = 16;
const MAGIC: &[u8; 8] = b"HEXKVBAK";

/// What the file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Revision of the state.
    pub revision: u64,
    /// Revision up to which history was forgotten.
    pub compacted_revision: u64,
    /// Index of the last log entry in it.
    pub applied_index: u64,
    /// The cluster's id, in hexadecimal.
    pub cluster_id: String,
    /// State hash at the revision, in hexadecimal: what `client hash` shows of a node that applied as much.
    pub state_hash: String,
    /// Records of keys in it. A key that was created or deleted while it was made may be counted or not.
    pub keys: u64,
    /// Leases in it.
    pub leases: u64,
    /// Kept outcomes of idempotency keys in it.
    pub outcomes: u64,
    /// Length of the snapshot, in bytes.
    pub snapshot_bytes: u64,
    /// Version of the snapshot's own format.
    pub snapshot_format: u32,
    /// When it was made, by the node's wall clock, as RFC 3339.
    pub made_at: String,
    /// Full name of the node that made it.
    pub made_by: String,
    /// Version of that node's binary.
    pub version: String,
}

impl Header {
    /// The file's bytes before the snapshot.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("a header has string keys and becomes JSON");
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        let length = u32::try_from(json.len()).expect("a header is short");
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&json);
        head
    }
}

/// Sums a file up while it is written.
#[derive(Debug, Default)]
pub struct Sealer(Sha256);

impl Sealer {
    /// The file's next bytes.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Its last bytes.
    pub fn seal(self) -> [u8; SUM_BYTES] {
        self.0.finalize().into()
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no backup of hexkv: it does not begin as one")]
    Foreign,
    /// It was written by a later version.
    #[error("it has backup format version {found}, this binary reads version {FORMAT_VERSION}; use a newer binary")]
    FormatVersion {
        /// The version found.
        found: u32,
    },
    /// It ends too early: it was cut.
    #[error("it is cut: {bytes} bytes, {wanted} are needed; save it again, or use another one")]
    Cut {
        /// Its length, in bytes.
        bytes: u64,
        /// What it would have to be at least, in bytes.
        wanted: u64,
    },
    /// It is not what was written.
    #[error("it is altered or damaged ({0}); save it again, or use another one")]
    Altered(String),
}
