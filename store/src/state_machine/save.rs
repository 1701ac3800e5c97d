//! Snapshots for backups. They are made like those that the log relies on, and are none of them: they lie in a directory
//! of their own, and their names are gone before the first byte is read, so that whatever becomes of the reader, no file
//! stays behind.

use std::{io, path::Path, time::Duration};

use super::{
    State,
    build::{finish, scan},
};
use crate::{
    StoreError,
    fs::SharedFs,
    snapshot::{SnapshotFile, SnapshotReader},
};

/// Longest wait for the disk to take what a snapshot holds. A save that waits longer keeps others and the history from going on.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Removes what a killed process left of its saves.
pub(super) fn clear(fs: &SharedFs, dir: &Path) -> Result<(), StoreError> {
    if !fs.exists(dir) {
        return Ok(());
    }
    let at = |e| StoreError::io(format!("clear {}", dir.display()), e);
    for path in fs.list(dir).map_err(at)? {
        fs.remove_file(&path).map_err(at)?;
    }
    Ok(())
}

impl State {
    /// A snapshot of what is applied now, or a little more, verified byte by byte. Its file has no name any more: it goes
    /// with the last reader. Takes as much disk as the state until then.
    ///
    /// # Errors
    /// Those of the disk; [`StoreError::Corrupt`] when what was written does not read back.
    pub async fn save(&self) -> Result<SnapshotReader, StoreError> {
        let shared = &self.shared;
        // History that the snapshot needs is not dropped meanwhile.
        let _history_hold = shared.history_hold.clone();
        loop {
            let next_index = shared.live.read().meta.next_index();
            let Some(scanned) = shared.run_blocking(|shared| scan(shared, &shared.saves_dir)).await? else { continue };
            let persisted = tokio::time::timeout(PERSIST_TIMEOUT, shared.wait_persisted(next_index)).await;
            persisted.unwrap_or_else(|_| {
                let why = format!("the disk did not take the state within {PERSIST_TIMEOUT:?}");
                Err(StoreError::io("save a snapshot", io::Error::new(io::ErrorKind::TimedOut, why)))
            })?;
            let saved = shared.run_blocking(move |shared| {
                let Some(file) = finish(shared, scanned)? else { return Ok(None) };
                unlinked(&shared.fs, &file).map(Some)
            });
            if let Some(reader) = saved.await? {
                return Ok(reader);
            }
        }
    }
}

/// Verifies `file` after its name is gone.
fn unlinked(fs: &SharedFs, file: &SnapshotFile) -> Result<SnapshotReader, StoreError> {
    fs.remove_file(file.path()).map_err(|e| StoreError::io(format!("remove {}", file.path().display()), e))?;
    let reader = SnapshotReader::open(file)?;
    reader.verify()?;
    Ok(reader)
}
