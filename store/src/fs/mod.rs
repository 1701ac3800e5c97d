//! The seam below which files are real or simulated. All files of the log, the change log, snapshots and
//! identity go through it; sled does not, because nothing relies on sled's durability.
//!
//! Calls block. `real` is the operating system; `faulty` is an in-memory disk that loses un-synced writes,
//! tears them, runs full and flips bits, on request.

pub mod faulty;
mod real;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::StoreError;
pub use faulty::FaultyFs;
pub use real::RealFs;
use tokio::sync::watch;

/// A shared file system.
pub type SharedFs = Arc<dyn Fs>;

/// Operations on names. A created, renamed or removed name is durable only after [`Fs::sync_dir`] of its directory.
pub trait Fs: Send + Sync + fmt::Debug + 'static {
    /// Creates a file that must not exist, open for reading and writing.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for reading, and for writing if `write`.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>>;
    /// Renames a file or directory, replacing a file that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory and its parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Takes all access to a directory from other users. Answers the mode that it had when that gave some.
    fn close_to_others(&self, _path: &Path) -> io::Result<Option<u32>> {
        Ok(None)
    }
    /// Names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Whether a name exists.
    fn exists(&self, path: &Path) -> bool;
    /// Whether a name is that of a directory. A symbolic link is none.
    fn is_dir(&self, path: &Path) -> bool;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Locks the file `path` against other processes, and against other holders in this one, until the lock is dropped or the
    /// process ends. A `holder` is noted in the file, created where missing, for those who find it locked; without one the
    /// file is there and stays as it is.
    fn lock(&self, path: &Path, holder: Option<&str>) -> io::Result<LockOutcome>;
    /// Differs after every loss of power: whoever noted it can tell whether what was not synced may be gone.
    fn boot_id(&self) -> io::Result<String>;
    /// The room on the file system that holds `path`, which exists.
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// Of a simulated disk: whether it is stalled. Work that runs in a task waits until it is not, as a thread waits in a call
    /// to a disk that hangs. None = calls wait by themselves.
    fn stalled(&self) -> Option<watch::Receiver<bool>> {
        None
    }
}

/// The room on a file system, as a process without privileges sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What can still be written, in bytes.
    pub free_bytes: u64,
    /// Its size, in bytes.
    pub total_bytes: u64,
}

/// Refuses work for which the disk has no room, before it begins: a write that fails half way costs more. `context` says
/// what was to be done, with the path.
///
/// # Errors
/// [`StoreError::NoRoom`] when fewer than `bytes` bytes are free where `path` lies. A file system that does not say how much
/// is free is taken for one that has room.
pub fn require_space(fs: &dyn Fs, path: &Path, bytes: u64, context: impl FnOnce() -> String) -> Result<(), StoreError> {
    match fs.space(path) {
        Ok(Space { free_bytes, .. }) if free_bytes < bytes => {
            Err(StoreError::NoRoom { context: context(), free_bytes, needed_bytes: bytes })
        }
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "the free space is not known");
            Ok(())
        }
    }
}

/// Whether `error` is about room on the disk or a quota: it goes away when something else is deleted.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Largest piece that [`copy_file`] holds in memory, in bytes.
const COPY_BYTES_MAX: u64 = 1024 * 1024;

/// Copies a file to where there is none. Not synced.
///
/// # Errors
/// Those of both files.
pub fn copy_file(from: (&dyn Fs, &Path), to: (&dyn Fs, &Path)) -> io::Result<()> {
    let source = from.0.open(from.1, false)?;
    let target = to.0.create_new(to.1)?;
    let len = source.len()?;
    let mut piece = vec![0; len.min(COPY_BYTES_MAX) as usize];
    let mut at = 0;
    while at < len {
        let piece = &mut piece[..(len - at).min(COPY_BYTES_MAX) as usize];
        source.read_exact_at(piece, at)?;
        target.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Removes a file, or a directory with all that is in it, where there is one.
///
/// # Errors
/// What cannot be removed; the rest of it may be gone then.
pub fn remove_tree(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    let removed = if fs.is_dir(path) {
        for inside in fs.list(path)? {
            remove_tree(fs, &inside)?;
        }
        fs.remove_dir(path)
    } else {
        fs.remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Answer of [`Fs::lock`].
#[derive(Debug)]
pub enum LockOutcome {
    /// The caller holds the lock.
    Held(Box<dyn FileLock>),
    /// Someone else does.
    Busy {
        /// What the holder noted; empty when it cannot be read.
        holder: String,
    },
}

/// A lock; dropping it releases it.
pub trait FileLock: Send + Sync + fmt::Debug {}

/// Operations on an open file, by absolute position.
#[expect(clippy::len_without_is_empty, reason = "asking for the length is an operation that can fail")]
pub trait File: Send + Sync + fmt::Debug {
    /// Reads exactly `buf.len()` bytes at `offset`; [`io::ErrorKind::UnexpectedEof`] beyond the end.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`, growing the file where needed.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the length; a longer file reads as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Takes room on the disk for the first `len` bytes, which read as zeros where nothing was written.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Makes written bytes (and the length needed to read them) durable.
    fn sync_data(&self) -> io::Result<()>;
}
