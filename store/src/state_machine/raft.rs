//! openraft's side of the state machine.

use std::io;

use futures_util::{Stream, TryStreamExt};
use openraft::{
    OptionalSend,
    storage::{EntryResponder, RaftStateMachine},
};

use super::{SnapshotBuilder, StateMachine};
use crate::{
    LogId, StoreError, TypeConfig,
    raft_types::{SnapshotMeta, StoredMembership},
    snapshot::SnapshotFile,
};

/// What was applied is told at the latest after so many entries.
const ANNOUNCE_ENTRIES_MAX: usize = 64;

/// A snapshot as openraft hands it around.
pub(super) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;

impl StateMachine {
    /// Waits until an entry may be applied: the overlay has room. It need not be durable in the local log: it is committed,
    /// so a majority has it on disk, and a node whose own disk stalls goes on serving.
    async fn wait_until_ready(&mut self) -> Result<(), StoreError> {
        if self.shared.live.read().overlay.is_full() {
            self.shared.announce();
            self.shared.wait_room().await?;
        }
        if self.shared.stop.load(std::sync::atomic::Ordering::Acquire) {
            return Err(self.shared.closed());
        }
        Ok(())
    }

    pub(super) async fn apply_all<S>(&mut self, entries: &mut S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut unannounced = 0;
        while let Some((entry, responder)) = entries.try_next().await? {
            self.wait_until_ready().await?;
            let outcome = self.shared.noted(self.shared.apply_entry(entry))?;
            if let Some(responder) = responder {
                responder.send(outcome);
            }
            unannounced += 1;
            if unannounced == ANNOUNCE_ENTRIES_MAX {
                self.shared.announce();
                unannounced = 0;
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let live = self.shared.live.read();
        Ok((live.meta.applied, (*live.meta.membership).clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let result = self.apply_all(&mut entries).await;
        self.shared.announce();
        result
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder::new(self.shared.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        self.shared.install(meta.clone(), snapshot).await?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.shared.snapshot.read().clone();
        Ok(current.map(|(file, footer)| Snapshot { meta: footer.meta, snapshot: file }))
    }
}
