//! Builds a snapshot while the state moves: nobody waits for it. What it holds is bounded; pages that the
//! engine reads in on the way are not, as long as sled is slow to look at the size of its cache.

use std::{
    io,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use openraft::storage::RaftSnapshotBuilder;

use super::{
    Shared, dedupe::read_rows, generation::Generation, keys, leases, live::CHUNK_KEYS_MAX, merge::decode_record,
};
use crate::{
    StoreError, TypeConfig,
    engine::Span,
    mutants::{self, Mutant},
    record::{KeyRange, KeyRecord},
    snapshot::{Footer, SnapshotFile, SnapshotItem, SnapshotWriter},
};

/// Bytes of records after which a look at the engine ends.
const SCAN_BYTES_MAX: usize = 1024 * 1024;

/// Builds one snapshot.
#[derive(Debug)]
pub struct SnapshotBuilder {
    shared: Arc<Shared>,
    /// History that the snapshot needs is not dropped while this lives.
    history_hold: Option<Arc<()>>,
}

impl SnapshotBuilder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let history_hold = Some(shared.history_hold.clone());
        Self { shared, history_hold }
    }

    /// Waits until the disk has the room that `error` asks for, or the state is closed.
    async fn wait_until_fits(&self, error: &StoreError) {
        loop {
            self.shared.wait_for_room(error, "no snapshot is made, and the log grows").await;
            if self.shared.fits_now(error) || self.shared.stop.load(Ordering::Acquire) {
                self.shared.has_room();
                return;
            }
        }
    }

    /// Builds a snapshot that covers at least what is applied now. When another snapshot is installed meanwhile, that
    /// one is the answer.
    async fn build(&self) -> Result<(SnapshotFile, Footer), StoreError> {
        let shared = &self.shared;
        let next_index = shared.live.read().meta.next_index();
        let scanned = shared.run_blocking(|shared| scan(shared, &shared.snapshots_dir)).await?;
        if let Some(scanned) = scanned {
            shared.wait_persisted(next_index).await?;
            if let Some(file) = shared.run_blocking(move |shared| finish(shared, scanned)).await? {
                return shared.run_blocking(move |shared| shared.adopt(&file)).await;
            }
        }
        let installed = shared.snapshot.read().clone();
        Ok(installed.expect("a generation is replaced only after a snapshot was adopted"))
    }
}

/// A snapshot with all keys in it.
pub(super) struct Scanned {
    pub(super) generation: Arc<Generation>,
    start_revision: u64,
    pub(super) writer: SnapshotWriter,
}

/// Writes the records of all keys into a new file in `dir`, as a scan of the moving engine finds them. None when the
/// generation was replaced.
pub(super) fn scan(shared: &Shared, dir: &Path) -> Result<Option<Scanned>, StoreError> {
    let (generation, start_revision) = {
        let persisted = shared.persisted.lock();
        (shared.live.read().generation.clone(), persisted.revision)
    };
    let mut writer = SnapshotWriter::create(&shared.fs, dir)?;
    let mut span = Span::new(&KeyRange::default(), false);
    loop {
        if shared.live.read().generation.number != generation.number {
            return Ok(None);
        }
        let records = read_some(&generation, &span)?;
        let Some(last) = records.last().map(|record| record.key.clone()) else { break };
        for record in records {
            writer.push(&SnapshotItem::Key(record))?;
        }
        span = span.after(last);
    }
    Ok(Some(Scanned { generation, start_revision, writer }))
}

/// The first records of `span`; none when there are no more.
fn read_some(generation: &Generation, span: &Span) -> Result<Vec<KeyRecord>, StoreError> {
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut failure = None;
    generation.engine.scan(&span.prefixed(keys::CURRENT), &mut |key, encoded| {
        if records.len() == CHUNK_KEYS_MAX || bytes >= SCAN_BYTES_MAX {
            return ControlFlow::Break(());
        }
        match decode_record(encoded) {
            Ok(record) => {
                bytes += key.len() + encoded.len();
                records.push(KeyRecord { key: Bytes::copy_from_slice(&key[1..]), record });
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(records), Err)
}

/// Appends the leases and the kept history, and completes the file. None when the generation was replaced.
pub(super) fn finish(shared: &Shared, scanned: Scanned) -> Result<Option<SnapshotFile>, StoreError> {
    let Scanned { generation, start_revision, mut writer } = scanned;
    // Nearly all of it here, so that the writer behind apply does not wait for the disk below.
    generation.engine.flush()?;
    let (mut meta, leases, outcomes) = {
        let persisted = shared.persisted.lock();
        if shared.live.read().generation.number != generation.number {
            return Ok(None);
        }
        // The log may be purged up to the snapshot: what the engine then loses with the process is in neither.
        generation.engine.flush()?;
        // Under the lock, because these rows have no history from which the moment could be made again. At most some
        // 24 MB of leases.
        (persisted.clone(), leases::records(&*generation.engine)?, read_rows(&*generation.engine)?)
    };
    if mutants::active(Mutant::DoubleApply)
        && let Some(applied) = &mut meta.applied
    {
        applied.index = applied.index.saturating_sub(1);
    }
    if mutants::active(Mutant::SnapshotWithoutMembership) {
        meta.membership = Arc::default();
    }
    for record in leases.into_iter().filter(|_| !mutants::active(Mutant::SnapshotWithoutLeases)) {
        writer.push(&SnapshotItem::Lease(record))?;
    }
    let first = meta.compacted_revision.min(start_revision) + 1;
    for record in generation.history.iter_from(first) {
        let mut record = record?;
        if record.revision > meta.revision {
            break;
        }
        if record.revision == meta.revision && mutants::active(Mutant::SnapshotMissesLastChange) {
            record.changes.clear();
        }
        writer.push(&SnapshotItem::Change(record))?;
    }
    for entry in outcomes.into_iter().filter(|_| !mutants::active(Mutant::SnapshotWithoutDedupe)) {
        writer.push(&SnapshotItem::Dedupe(entry))?;
    }
    writer.finish(&meta.footer(start_revision)).map(Some)
}

impl Shared {
    /// Makes a complete snapshot the current one, unless there is a newer one.
    pub(super) fn adopt(&self, file: &SnapshotFile) -> Result<(SnapshotFile, Footer), StoreError> {
        let mut snapshots = self.snapshots.lock();
        let current = snapshots.adopt(file)?;
        *self.snapshot.write() = Some(current.clone());
        Ok(current)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<super::raft::Snapshot, io::Error> {
        let began = Instant::now();
        let built = loop {
            match self.build().await {
                Err(error @ StoreError::NoRoom { .. }) if !self.shared.stop.load(Ordering::Acquire) => {
                    // What is compacted meanwhile makes room.
                    self.history_hold = None;
                    self.wait_until_fits(&error).await;
                    self.history_hold = Some(self.shared.history_hold.clone());
                }
                built => break built,
            }
        };
        let (file, footer) = self.shared.noted(built)?;
        self.shared.snapshot_counts.built.inc();
        self.shared.snapshot_counts.build_seconds.observe(began.elapsed().as_secs_f64());
        Ok(super::raft::Snapshot { meta: footer.meta, snapshot: file })
    }
}
