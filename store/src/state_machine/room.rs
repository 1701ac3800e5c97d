//! Waiting for a disk that is full. What is refused before anything was written can be done later: the state stays in memory
//! and in the log, a snapshot is begun again. So a full disk delays a node and does not stop it.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    EngineKind, Shared, State,
    generation::StateDirs,
    overlay::{Overlay, Pending},
    persist::{BATCH_BYTES_MAX, BATCH_KEYS_MAX},
};
use crate::{StoreError, fs::require_space};

/// How often it is checked whether there is room again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Disk that sled may take for each byte of a batch: it writes whole pages, and large values again when it collects garbage.
const WRITE_FACTOR: u64 = 3;
/// What sled may take besides: segments that it begins, and its own bookkeeping, in bytes.
const ENGINE_ROOM_BYTES: u64 = 4 * 1024 * 1024;

impl StateDirs {
    /// Refuses a batch of `bytes` bytes of keys and values when it may not fit the disk: an engine or a change log that meets
    /// a full disk while it writes has to be rebuilt.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`].
    pub(super) fn require_room(&self, bytes: u64) -> Result<(), StoreError> {
        let engine = if self.engine == EngineKind::Memory { 0 } else { ENGINE_ROOM_BYTES };
        let needed = engine + WRITE_FACTOR * bytes;
        require_space(&*self.fs, self.path(), needed, || format!("write the state in {}", self.path().display()))
    }
}

impl Shared {
    /// The oldest entries of `overlay` that may be persisted, and for which the disk has room: a batch of them, or only the
    /// first one.
    pub(super) fn fitting(&self, overlay: &Overlay) -> Result<Vec<Pending>, StoreError> {
        let below = self.persistable();
        let room = |pending: &[Pending]| self.dirs.require_room(pending.iter().map(Pending::bytes).sum());
        let batch = overlay.oldest(BATCH_KEYS_MAX, BATCH_BYTES_MAX, below);
        if batch.is_empty() || room(&batch).is_ok() {
            return Ok(batch);
        }
        let first = overlay.oldest(1, 0, below);
        room(&first).map(|()| first)
    }

    /// Waits a moment for room after `error`, or until the state is closed. `what` says what that means for the node.
    pub(super) async fn wait_for_room(&self, error: &StoreError, what: &str) {
        let first = self.waits_for_room.lock().replace(format!("{what}: {error}")).is_none();
        if first {
            tracing::warn!(%error, "the disk is full: {what} until there is room");
        }
        let deadline = tokio::time::Instant::now() + RETRY_INTERVAL;
        while !self.stop.load(Ordering::Acquire) {
            if tokio::time::timeout_at(deadline, self.work.notified()).await.is_err() {
                break;
            }
        }
    }

    /// What waited for room has it.
    pub(super) fn has_room(&self) {
        if self.waits_for_room.lock().take().is_some() {
            tracing::info!("the disk has room again");
        }
    }

    /// Whether the disk has the room that `error` asks for.
    pub(super) fn fits_now(&self, error: &StoreError) -> bool {
        let StoreError::NoRoom { needed_bytes, .. } = error else { return true };
        self.fs.space(self.dirs.path()).map_or(true, |space| space.free_bytes >= *needed_bytes)
    }
}

impl State {
    /// What waits for room on the disk, if something does.
    pub fn waits_for_room(&self) -> Option<String> {
        self.shared.waits_for_room.lock().clone()
    }
}
