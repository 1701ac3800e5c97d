//! The state of one cluster as the beginning of another one: what a restore and a recovery write.
//!
//! Keys, leases and kept outcomes stay. Members, Raft membership and cluster id are the founder's. History is dropped,
//! and the revision is raised, so that nothing in the new cluster is mistaken for what the old one did after the state
//! was taken: whoever asks for a revision of the old cluster is told that it is compacted, and a fencing token that the
//! old cluster gave is smaller than any that the new one gives.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use openraft::{Membership, RaftLogReader as _};

use super::{
    State, StateMachine,
    build::{Scanned, scan},
    dedupe::read_rows,
    leases,
};
use crate::{
    LogId, NodeAddress, StoreError,
    log::LogStore,
    member::Member,
    raft_types::{SnapshotMeta, StoredMembership},
    snapshot::{Footer, SnapshotItem, SnapshotReader},
};

/// Largest revision that a store is raised to: it stays exact in every JSON reader for as long as anyone writes.
pub const REVISION_RAISED_MAX: u64 = 1 << 52;

/// Who begins the new cluster.
#[derive(Debug, Clone)]
pub struct Founder {
    /// The new cluster's id.
    pub cluster_id: u64,
    /// Its only member and voter.
    pub member: Member,
    /// By how much the revision is raised.
    pub bump_revision: u64,
}

impl Founder {
    fn footer(&self, mut footer: Footer, last: LogId) -> Result<Footer, StoreError> {
        let raised = footer.revision.checked_add(self.bump_revision).filter(|r| *r <= REVISION_RAISED_MAX);
        let Some(revision) = raised else {
            let reason = format!(
                "revision {} cannot be raised by {}: {REVISION_RAISED_MAX} is the limit",
                footer.revision, self.bump_revision
            );
            return Err(StoreError::io("begin a cluster", io::Error::new(io::ErrorKind::InvalidInput, reason)));
        };
        let Member { name, node_id, raft, .. } = &self.member;
        let node = NodeAddress { name: name.clone(), raft: raft.clone() };
        let membership = Membership::new(vec![BTreeSet::from([*node_id])], BTreeMap::from([(*node_id, node)]));
        let membership = membership.expect("the only voter is a node of it");
        footer.meta =
            SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::new(Some(last), membership) };
        (footer.revision, footer.compacted_revision, footer.scan_start_revision) = (revision, revision, revision);
        footer.members = vec![self.member.clone()];
        footer.cluster_id = Some(self.cluster_id);
        Ok(footer)
    }
}

impl State {
    /// Writes the state into `dir` as the snapshot that `founder`'s cluster begins with. Nothing may be applied meanwhile.
    ///
    /// # Errors
    /// Those of the disk; [`StoreError::Unrecoverable`] where no entry is applied; [`StoreError::Io`] when the revision
    /// cannot be raised so far.
    pub async fn found(&self, dir: &Path, founder: &Founder) -> Result<SnapshotReader, StoreError> {
        let shared = &self.shared;
        let next_index = shared.live.read().meta.next_index();
        shared.wait_persisted(next_index).await?;
        let (dir, founder) = (dir.to_path_buf(), founder.clone());
        shared
            .run_blocking(move |shared| {
                let meta = shared.persisted.lock().clone();
                let Some(last) = meta.applied else {
                    let reason = "it holds no entry".to_string();
                    return Err(StoreError::Unrecoverable { path: shared.dirs.path().to_path_buf(), reason });
                };
                let footer = founder.footer(meta.footer(meta.revision), last)?;
                let Some(Scanned { generation, mut writer, .. }) = scan(shared, &dir)? else {
                    unreachable!("nothing is installed while a cluster is founded")
                };
                for record in leases::records(&*generation.engine)? {
                    writer.push(&SnapshotItem::Lease(record))?;
                }
                for entry in read_rows(&*generation.engine)? {
                    writer.push(&SnapshotItem::Dedupe(entry))?;
                }
                let reader = SnapshotReader::open(&writer.finish(&footer)?)?;
                reader.verify()?;
                Ok(reader)
            })
            .await
    }
}

impl StateMachine {
    /// Applies all entries that `log` has and the state lacks, committed or not, without Raft: nobody may use the
    /// directory afterwards but to read it.
    ///
    /// # Errors
    /// [`StoreError::Unrecoverable`] when the log does not reach back to the state; those of the disk.
    pub async fn replay(&mut self, log: &LogStore) -> Result<(), StoreError> {
        let start = self.shared.live.read().meta.next_index();
        let stats = log.stats();
        let end = stats.last_index.map_or(0, |last| last + 1);
        if start >= end {
            return Ok(());
        }
        if stats.first_index > start {
            let reason = format!("the log begins with entry {}, the state ends before {start}", stats.first_index);
            return Err(StoreError::Unrecoverable { path: self.shared.dirs.path().to_path_buf(), reason });
        }
        let failed = |e| StoreError::io("apply the log", e);
        let mut reader = log.clone();
        let entries = reader.entries_stream(start..end).await;
        let mut entries = entries.map_ok(|entry| (entry, None)).boxed();
        self.applier().apply(&mut entries).await.map_err(failed)
    }
}
