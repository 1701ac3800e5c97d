//! The engine on disk.
//!
//! sled answers some damage with an error and some with a panic. Both come out of here as
//! [`StoreError::Engine`], so that a damaged file ends in a rebuild of the state and not in a crash.

use std::{
    any::Any,
    fmt,
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Batch, Engine, Span, Visit};
use crate::StoreError;

/// sled's own threads may hold a dropped database for a moment longer, as long as one write to disk takes.
const CLOSING_TIME_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether they let it go.
const CLOSING_LOOK: Duration = Duration::from_millis(5);

/// One sled tree in a directory of its own.
pub struct SledEngine {
    db: ::sled::Db,
    path: PathBuf,
}

impl SledEngine {
    /// Opens the database in `path`, or makes one. `cache_bytes` bounds the pages that it keeps in memory. Waits up to
    /// 5 s for one of this process that was dropped and is not closed yet.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let deadline = Instant::now() + CLOSING_TIME_MAX;
        loop {
            let opened = guard(|| {
                // No flusher thread: what a killed process loses, the log gives back.
                ::sled::Config::new().path(path).cache_capacity(cache_bytes).flush_every_ms(None).open()
            });
            match opened {
                Ok(db) => return Ok(Self { db, path: path.to_path_buf() }),
                Err(error) if is_locked(&error) && Instant::now() < deadline => thread::sleep(CLOSING_LOOK),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Engine for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        guard(|| Ok(self.db.get(key)?.map(|value| Bytes::copy_from_slice(&value))))
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if span.is_empty() {
            return Ok(());
        }
        guard(|| {
            let mut range = self.db.range::<&[u8], _>(span.bounds());
            while let Some(item) = if span.descending { range.next_back() } else { range.next() } {
                let (key, value) = item?;
                if let ControlFlow::Break(()) = visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut writes = ::sled::Batch::default();
        for (key, value) in batch.iter() {
            match value {
                Some(value) => writes.insert(key, value),
                None => writes.remove(key),
            }
        }
        guard(|| self.db.apply_batch(writes))
    }

    fn flush(&self) -> Result<(), StoreError> {
        guard(|| self.db.flush().map(|_bytes| ()))
    }

    // sled's own flush is `sync_file_range`, which a power cut undoes.
    fn sync(&self) -> Result<(), StoreError> {
        self.flush()?;
        let at = |e| StoreError::io(format!("sync {}", self.path.display()), e);
        for entry in std::fs::read_dir(&self.path).map_err(at)? {
            let path = entry.map_err(at)?.path();
            std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(at)?;
        }
        std::fs::File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(at)
    }

    fn size_bytes(&self) -> Result<u64, StoreError> {
        guard(|| self.db.size_on_disk())
    }
}

impl fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SledEngine({})", self.path.display())
    }
}

/// Turns a panic inside sled into an error. What it may leave half done is never used again: an engine that
/// failed once is rebuilt.
fn guard<T>(call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, StoreError> {
    panic::catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|cause| Err(::sled::Error::ReportableBug(format!("panic: {}", message(&*cause)))))
        .map_err(StoreError::Engine)
}

/// The data directory has a lock of its own, so it is this process that holds the database.
fn is_locked(error: &StoreError) -> bool {
    matches!(error, StoreError::Engine(::sled::Error::Io(e)) if e.to_string().contains("could not acquire lock"))
}

fn message(cause: &(dyn Any + Send)) -> String {
    cause
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_string()))
        .unwrap_or_else(|| "of unknown cause".to_string())
}
