//! A snapshot as raft-net sends and receives it: an immutable file with an id, read and written in chunks.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{SnapshotReader, reader::corrupt, writer::KEPT_FREE_BYTES};
use crate::{
    StoreError,
    fs::{File, SharedFs, require_space},
    member::MEMBERS_MAX,
    raft_types::SnapshotMeta,
};

/// A complete snapshot file, open for reading. Stays readable after a newer snapshot replaced its name.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    file: Arc<dyn File>,
    path: PathBuf,
    id: String,
    len_bytes: u64,
}

impl SnapshotFile {
    /// Opens the complete snapshot at `path`; `id` is unique for its content.
    pub fn open(fs: &SharedFs, path: &Path, id: impl Into<String>) -> Result<Self, StoreError> {
        let at = |e| StoreError::io(format!("open snapshot {}", path.display()), e);
        let file: Arc<dyn File> = Arc::from(fs.open(path, false).map_err(at)?);
        let len_bytes = file.len().map_err(at)?;
        Ok(Self { file, path: path.to_path_buf(), id: id.into(), len_bytes })
    }

    /// Names the content: two files with one id have the same bytes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// At most `bytes_max` bytes at `offset`; empty at the end.
    pub fn read_chunk(&self, offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        let left = self.len_bytes.saturating_sub(offset);
        let mut chunk = vec![0; left.min(bytes_max as u64) as usize];
        self.file.read_exact_at(&mut chunk, offset)?;
        Ok(chunk.into())
    }
}

/// Reads all of `file`, and checks that it is whole, covers what `meta` says, and is of the cluster `cluster_id`. At its installation
/// any of this would stop the node.
///
/// # Errors
/// [`StoreError::Corrupt`], [`StoreError::FormatVersion`], [`StoreError::Io`].
pub fn check_received(meta: &SnapshotMeta, file: &SnapshotFile, cluster_id: Option<u64>) -> Result<(), StoreError> {
    let reader = SnapshotReader::open(file)?;
    let footer = reader.footer();
    let differs = |what: &str| Err(corrupt(file, 0, format!("{what} differs from what was announced")));
    if footer.meta != *meta {
        return differs("what it covers");
    }
    if footer.cluster_id != cluster_id {
        return differs("its cluster");
    }
    if footer.members.len() > MEMBERS_MAX {
        return Err(corrupt(file, 0, format!("it has {} members", footer.members.len())));
    }
    for item in reader.items() {
        item?;
    }
    Ok(())
}

/// A snapshot that is being received: `DIR/incoming-ID.part`, resumable at the length it has.
#[derive(Debug)]
pub struct SnapshotReceiver {
    fs: SharedFs,
    file: Box<dyn File>,
    path: PathBuf,
    id: String,
    offset: u64,
    total_bytes: u64,
    /// Some of it was there before, and may be damaged: a power cut can leave the length of a file without its content.
    resumed: bool,
}

impl SnapshotReceiver {
    /// Starts to receive snapshot `id` of `total_bytes` into `dir`, or goes on where an earlier transfer of the
    /// same id stopped. Parts of other snapshots are removed: one transfer at a time.
    pub fn open(fs: &SharedFs, dir: &Path, id: &str, total_bytes: u64) -> Result<Self, StoreError> {
        let context = |e| StoreError::io(format!("receive snapshot into {}", dir.display()), e);
        if id.is_empty() || id.len() > 128 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(context(io::Error::new(io::ErrorKind::InvalidInput, format!("bad snapshot id {id:?}"))));
        }
        fs.create_dir_all(dir).map_err(context)?;
        let path = dir.join(format!("incoming-{id}.part"));
        for other in fs.list(dir).map_err(context)? {
            if other != path && other.extension().is_some_and(|e| e == "part") {
                fs.remove_file(&other).map_err(context)?;
            }
        }
        let (file, mut offset) = if fs.exists(&path) {
            let file = fs.open(&path, true).map_err(context)?;
            let len = file.len().map_err(context)?;
            (file, len)
        } else {
            (fs.create_new(&path).map_err(context)?, 0)
        };
        if offset > total_bytes {
            file.set_len(0).map_err(context)?;
            offset = 0;
        }
        let resumed = offset > 0;
        Ok(Self { fs: fs.clone(), file, path, id: id.to_string(), offset, total_bytes, resumed })
    }

    /// Whether [`Self::finish`] verifies the content, because some of it was there before.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// What was there before was written by this process, since whose start no power cut can have damaged it.
    pub fn trust_what_was_there(&mut self) {
        self.resumed = false;
    }

    /// Bytes received so far: where the sender goes on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends `chunk`, which must begin at [`Self::offset`] and not exceed the announced length.
    pub fn write(&mut self, offset: u64, chunk: &[u8]) -> Result<(), StoreError> {
        let context = |e| StoreError::io(format!("write snapshot {}", self.path.display()), e);
        if offset != self.offset || self.offset + chunk.len() as u64 > self.total_bytes {
            let reason = format!(
                "chunk of {} bytes at {offset}, expected at {}, of {}",
                chunk.len(),
                self.offset,
                self.total_bytes
            );
            return Err(context(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        let needed = chunk.len() as u64 + KEPT_FREE_BYTES;
        require_space(&*self.fs, &self.path, needed, || format!("write snapshot {}", self.path.display()))?;
        self.file.write_all_at(chunk, offset).map_err(context)?;
        self.offset += chunk.len() as u64;
        Ok(())
    }

    /// Makes the complete file durable. The state machine verifies its content and renames it at install, where damage
    /// stops the node; so what was resumed is verified here already.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when what was resumed is damaged: the file is removed, so that its transfer begins afresh.
    /// [`StoreError::Io`].
    pub fn finish(self) -> Result<SnapshotFile, StoreError> {
        let context = |e| StoreError::io(format!("finish snapshot {}", self.path.display()), e);
        if self.offset != self.total_bytes {
            let reason = format!("{} of {} bytes received", self.offset, self.total_bytes);
            return Err(context(io::Error::new(io::ErrorKind::UnexpectedEof, reason)));
        }
        self.file.sync_data().map_err(context)?;
        let file = SnapshotFile::open(&self.fs, &self.path, self.id)?;
        if self.resumed
            && let Err(e) = SnapshotReader::open(&file).and_then(|reader| reader.verify())
        {
            if matches!(e, StoreError::Corrupt { .. }) {
                self.fs.remove_file(&self.path).map_err(context)?;
            }
            return Err(e);
        }
        Ok(file)
    }
}
