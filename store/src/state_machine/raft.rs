//! openraft's side of the state machine.

use std::io;

use futures_util::Stream;
use openraft::{
    OptionalSend,
    storage::{EntryResponder, RaftStateMachine},
};

use super::{SnapshotBuilder, StateMachine};
use crate::{
    LogId, TypeConfig,
    raft_types::{SnapshotMeta, StoredMembership},
    snapshot::SnapshotFile,
};

/// A snapshot as openraft hands it around.
pub(super) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;

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
        self.applier().apply(&mut entries).await
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
