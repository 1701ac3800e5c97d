//! The engine without a disk: for simulation, and as the reference that the other one is compared with.

use std::{collections::BTreeMap, ops::ControlFlow};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Batch, Engine, Span, Visit};
use crate::StoreError;

/// An ordered map in memory.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    map: RwLock<BTreeMap<Bytes, Bytes>>,
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.map.read().get(key).cloned())
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if span.is_empty() {
            return Ok(());
        }
        let map = self.map.read();
        let mut range = map.range::<[u8], _>(span.bounds());
        while let Some((key, value)) = if span.descending { range.next_back() } else { range.next() } {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut map = self.map.write();
        for (key, value) in batch.iter() {
            match value {
                Some(value) => map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)),
                None => map.remove(key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.map.read().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}
