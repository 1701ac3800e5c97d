//! Two engines side by side: every answer of the one is compared with the other's.

use std::ops::ControlFlow;

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Batch, Engine, MemoryEngine, Span, Visit};
use crate::StoreError;

/// Asserts on every call that the engine under test agrees with a [`MemoryEngine`].
#[derive(Debug)]
pub(crate) struct MirrorEngine<E> {
    subject: E,
    /// Locked across each call, so that a reader never sees a batch in one engine only.
    reference: RwLock<MemoryEngine>,
}

impl<E: Engine> MirrorEngine<E> {
    pub(crate) fn new(subject: E) -> Self {
        Self { subject, reference: RwLock::default() }
    }
}

impl<E: Engine> Engine for MirrorEngine<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let reference = self.reference.read();
        let value = self.subject.get(key)?;
        assert_eq!(value, reference.get(key)?, "value of {key:?}");
        Ok(value)
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let reference = self.reference.read();
        let mut seen = Vec::new();
        let mut complete = true;
        self.subject.scan(span, &mut |key, value| {
            seen.push((key.to_vec(), value.to_vec()));
            let flow = visit(key, value);
            complete = flow.is_continue();
            flow
        })?;
        let mut expected = Vec::new();
        reference.scan(span, &mut |key, value| {
            if !complete && expected.len() == seen.len() {
                return ControlFlow::Break(());
            }
            expected.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        assert_eq!(seen, expected, "scan of {span:?}");
        Ok(())
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let reference = self.reference.write();
        reference.write(batch)?;
        self.subject.write(batch)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.subject.flush()
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.subject.sync()
    }

    fn size_bytes(&self) -> Result<u64, StoreError> {
        self.subject.size_bytes()
    }
}
