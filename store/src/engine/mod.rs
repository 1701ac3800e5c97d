//! Where the current records lie: an ordered map of bytes with atomic batches.
//!
//! Nothing relies on an engine's durability. A batch is seen by readers whole or not at all; after a killed
//! process an engine holds every batch up to some point and none after it.

mod memory;
#[cfg(test)]
pub(crate) mod mirror;
#[cfg(test)]
mod script;
mod sled;
mod span;
#[cfg(test)]
mod tests;

use std::{fmt, ops::ControlFlow};

use bytes::Bytes;

pub use memory::MemoryEngine;
pub use sled::SledEngine;
pub use span::Span;

use crate::StoreError;

/// Called with each key and value of a scan, until it breaks.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An ordered map of bytes. Calls block.
///
/// Errors are [`StoreError::Engine`]: the state is damaged or the disk failed, and has to be rebuilt.
pub trait Engine: Send + Sync + fmt::Debug {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// Visits the keys of `span` in its order. Batches written meanwhile may be seen in part; the caller
    /// resumes, or starts again, by giving another span.
    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError>;
    /// Writes all of `batch`, atomically.
    fn write(&self, batch: &Batch) -> Result<(), StoreError>;
    /// Hands everything written so far to the operating system: it survives the end of the process.
    fn flush(&self) -> Result<(), StoreError>;
    /// Makes everything written so far durable: it survives a power cut.
    fn sync(&self) -> Result<(), StoreError>;
    /// Space taken, in bytes: on disk, or in memory where there is no disk.
    fn size_bytes(&self) -> Result<u64, StoreError>;
}

/// Writes that an engine carries out together. A later write of a key replaces an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.push((key, Some(value)));
    }

    /// Removes `key`.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.writes.push((key, None));
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.writes.iter().map(|(key, value)| (&key[..], value.as_deref()))
    }
}
