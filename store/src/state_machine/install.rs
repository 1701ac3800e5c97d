//! Takes over the state of a snapshot.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{Shared, recovery::load_generation};
use crate::{
    StoreError,
    raft_types::SnapshotMeta,
    snapshot::{SnapshotFile, SnapshotReader},
};

impl Shared {
    /// Verifies `file`, keeps it as the current snapshot, loads it into a new generation, and lets that one replace
    /// the state. Readers see the old state or the new one, nothing between.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the file is damaged; nothing has changed then, and it is gone, so that it is
    /// transferred again. Any other error leaves the old state, too.
    pub(super) async fn install(self: &Arc<Self>, meta: SnapshotMeta, file: SnapshotFile) -> Result<(), StoreError> {
        let current = self.run_blocking(move |shared| shared.keep(&meta, &file)).await?;
        loop {
            let file = current.clone();
            match self.run_blocking(move |shared| shared.load(&file)).await {
                Err(error @ StoreError::NoRoom { .. }) if !self.stop.load(Ordering::Acquire) => {
                    self.wait_for_room(&error, "a snapshot is not loaded").await;
                }
                loaded => break loaded?,
            }
        }
        self.has_room();
        self.snapshot_counts.installed.inc();
        self.announce();
        Ok(())
    }

    /// Makes `file` the current snapshot, if it is the one that `meta` describes.
    fn keep(&self, meta: &SnapshotMeta, file: &SnapshotFile) -> Result<SnapshotFile, StoreError> {
        let (current, footer) = self.adopt(file)?;
        if footer.meta != *meta {
            let reason = format!("asked to install {meta}, the newest snapshot is {}", footer.meta);
            return Err(StoreError::io("install snapshot", io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        Ok(current)
    }

    /// Loads the snapshot `current` into a new generation, and lets that one replace the state.
    fn load(&self, current: &SnapshotFile) -> Result<(), StoreError> {
        let live = load_generation(&self.dirs, &SnapshotReader::open(current)?)?;
        let mut persisted = self.persisted.lock();
        self.dirs.set_current(live.generation.number)?;
        let meta = live.meta.clone();
        let old = std::mem::replace(&mut *self.live.write(), live);
        old.generation.retire();
        self.persisted_watch.send_replace(meta.next_index());
        *persisted = meta;
        tracing::info!(snapshot = current.id(), bytes = current.len_bytes(), "snapshot installed");
        Ok(())
    }
}
