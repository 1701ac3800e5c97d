//! The applied state as a command under evaluation sees it. It is locked for one step at a time, so that readers and the
//! writer behind apply do not wait for a long command.
//!
//! Only apply changes what the state says, so nothing moves under a command; the writer moves it between layers alone.

use std::{cell::Cell, ops::ControlFlow, sync::Arc};

use super::{
    Shared,
    dedupe::DedupeTable,
    directory::Directory,
    evaluate::View,
    generation::Generation,
    leases::Leases,
    live::Live,
    merge::{Entry, EntryVisit},
};
use crate::{StoreError, engine::Span, record::Record};

/// Keys that scans of one command find hidden by the overlay, after which the overlay is persisted: they cost as much as
/// records, and which they are differs from node to node, so they cannot count against the limits of a transaction.
pub(super) const HIDDEN_KEYS_MAX: u64 = 20_000;

/// The applied state, for one command.
pub(super) struct SteppedView<'a> {
    shared: &'a Shared,
    generation: Arc<Generation>,
    leases: Arc<Leases>,
    directory: Arc<Directory>,
    revision: u64,
    compacted_revision: u64,
    /// Hidden keys that were met since the overlay was last persisted.
    hidden: Cell<u64>,
}

impl<'a> SteppedView<'a> {
    /// The state `live` of `shared`, and the outcomes that are kept with it.
    pub(super) fn new(shared: &'a Shared, live: &Live) -> (Self, Arc<DedupeTable>) {
        let view = Self {
            shared,
            generation: live.generation.clone(),
            leases: live.leases.clone(),
            directory: live.meta.directory.clone(),
            revision: live.meta.revision,
            compacted_revision: live.meta.compacted_revision,
            hidden: Cell::new(0),
        };
        (view, live.dedupe.clone())
    }
}

impl SteppedView<'_> {
    /// Persists what may be persisted now. Without room on the disk the overlay stays, and the scan takes longer.
    fn persist(&self) -> Result<(), StoreError> {
        loop {
            match self.shared.persist_batch() {
                Ok(true) => {}
                Ok(false) | Err(StoreError::NoRoom { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl View for SteppedView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        let known = self.shared.live.read().known(key);
        match known {
            Some(record) => Ok(record),
            // What the overlay does not have the engine has, and no entry is applied meanwhile.
            None => self.generation.get(key),
        }
    }

    fn scan(&self, span: &Span, visit: &mut EntryVisit<'_>) -> Result<(), StoreError> {
        let mut span = span.clone();
        let mut shown = |key: &[u8], entry: Entry<'_>| match entry {
            Entry::Hidden => {
                self.hidden.set(self.hidden.get() + 1);
                ControlFlow::Continue(())
            }
            Entry::Record(_) | Entry::Encoded(_) | Entry::Deleted(_) => visit(key, entry),
        };
        loop {
            // The guard must not live on: what follows may persist.
            let resume = self.shared.live.read().step(&span, &mut shown)?;
            let Some(last) = resume else { return Ok(()) };
            span = span.after(last);
            if self.hidden.get() > HIDDEN_KEYS_MAX {
                self.persist()?;
                self.hidden.set(0);
            }
        }
    }

    fn deleted_at(&self, key: &[u8]) -> u64 {
        self.shared.live.read().deleted_at(key)
    }

    fn revision(&self) -> u64 {
        self.revision
    }

    fn compacted_revision(&self) -> u64 {
        self.compacted_revision
    }

    fn directory(&self) -> &Directory {
        &self.directory
    }

    fn leases(&self) -> &Leases {
        &self.leases
    }
}
