//! What can go wrong in the store. An operating error is typed; a broken invariant panics with its values.

use std::{io, path::PathBuf};

/// An operating error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused a file operation. Fatal when it was a sync: see [`crate::log`].
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The disk has no room for what is to be done. Nothing was written: it can be done when there is.
    #[error("{context}: No space left on device: {free_bytes} bytes are free, {needed_bytes} are needed")]
    NoRoom {
        /// What was to be done, with the path.
        context: String,
        /// What is free, in bytes.
        free_bytes: u64,
        /// What has to be free, in bytes.
        needed_bytes: u64,
    },
    /// Bytes on disk are not what was written there.
    #[error("{path} is damaged at byte {offset}: {reason}")]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// The data directory was written by another format version.
    #[error(
        "{path} has format version {found}, this binary reads version {supported}; use the binary that wrote it, or start with an empty DATA_DIR"
    )]
    FormatVersion {
        /// The file that says so.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The version this binary writes and reads.
        supported: u32,
    },
    /// Another process holds the data directory.
    #[error("data directory {path} is in use by another process{holder}; stop it, or choose another DATA_DIR")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// ` (pid N)` where it is known, else empty.
        holder: String,
    },
    /// The directory holds something else.
    #[error("{path} is not a hexkv data directory ({reason}); choose an empty DATA_DIR")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What was found there.
        reason: String,
    },
    /// A directory that was to be new holds something.
    #[error("{path} is not empty ({holds}); choose another DATA_DIR, or move it away first; nothing was changed")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What was found there.
        holds: String,
    },
    /// Bytes do not decode.
    #[error("cannot decode {what}: {reason}")]
    Decode {
        /// What was being decoded.
        what: &'static str,
        /// Why it does not decode.
        reason: String,
    },
    /// sled failed.
    #[error("state database: {0}")]
    Engine(#[from] sled::Error),
    /// The state can neither be read nor rebuilt.
    #[error(
        "the state of {path} can neither be read nor rebuilt ({reason}); remove this node from the cluster (`client remove NAME`), move the directory away and start the node afresh"
    )]
    Unrecoverable {
        /// The data directory.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A read asked for a revision that was compacted away.
    #[error("revision {requested} was compacted; the oldest readable revision is {oldest}")]
    Compacted {
        /// The revision asked for.
        requested: u64,
        /// The oldest revision that can be read.
        oldest: u64,
    },
    /// A read asked for a revision that does not exist yet.
    #[error("revision {requested} is in the future; the newest is {newest}")]
    FutureRevision {
        /// The revision asked for.
        requested: u64,
        /// The newest revision of this node.
        newest: u64,
    },
}

impl StoreError {
    /// Whether the disk, or a quota, has no room for it.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Io { source, .. } => crate::fs::is_full(source),
            _ => false,
        }
    }

    /// The same, of work that had taken `bytes` bytes before it met the end of the disk, and has given them back.
    pub(crate) fn taken_already(self, bytes: u64) -> Self {
        match self {
            Self::NoRoom { context, free_bytes, needed_bytes } => {
                Self::NoRoom { context, free_bytes: free_bytes + bytes, needed_bytes: needed_bytes + bytes }
            }
            other => other,
        }
    }

    /// An [`io::Error`] with what was being done.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::Io { context: context.into(), source }
    }
}

impl From<StoreError> for io::Error {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Io { context, source } => io::Error::new(source.kind(), format!("{context}: {source}")),
            StoreError::NoRoom { .. } => io::Error::new(io::ErrorKind::StorageFull, e),
            other => io::Error::other(other),
        }
    }
}
