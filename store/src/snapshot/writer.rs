//! Builds a snapshot file, item by item.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    SnapshotFile,
    format::{
        self, CHUNK_BYTES_MAX, CHUNK_HEAD_BYTES, ContentHasher, FOOTER_BYTES_MAX, Footer, HEADER_BYTES, ITEM_BYTES_MAX,
        ITEM_CHANGE_PART, ITEM_DEDUPE, ITEM_HEAD_BYTES, ITEM_KEY, ITEM_LEASE, SnapshotCounts, SnapshotItem, Trailer,
    },
};
use crate::{
    StoreError,
    change_log::ChangeRecord,
    codec, entropy,
    fs::{File, SharedFs, require_space},
    mutants::{self, Mutant},
};

/// Extension of a file that is being built.
pub(super) const BUILDING_EXTENSION: &str = "building";
/// Written bytes are synced this often, so that the last sync has little left to write and delays the log little.
const SYNC_BYTES: u64 = 16 * 1024 * 1024;

/// Free space that a snapshot leaves to the log and the state, in bytes.
pub(super) const KEPT_FREE_BYTES: u64 = 16 * 1024 * 1024;

/// Builds one snapshot file under a temporary name. Dropped before [`SnapshotWriter::finish`], it removes the file.
///
/// Invariants:
/// - the file holds the header and whole chunks, `offset` bytes in all, and nothing else;
/// - `chunk` is room for a chunk's head and fewer than [`CHUNK_BYTES_MAX`] bytes of items;
/// - keys come before leases, these before changes, these before kept outcomes; change revisions are consecutive.
#[derive(Debug)]
pub struct SnapshotWriter {
    fs: SharedFs,
    dir: PathBuf,
    file: Box<dyn File>,
    temporary: TemporaryName,
    hasher: ContentHasher,
    offset: u64,
    synced: u64,
    chunk: Vec<u8>,
    item: Vec<u8>,
    counts: SnapshotCounts,
    /// (first, last) revision of the changes so far.
    changes: Option<(u64, u64)>,
    /// Log index of the last kept outcome so far.
    last_dedupe: Option<u64>,
}

impl SnapshotWriter {
    /// Begins a snapshot in `dir`, which is created where it does not exist.
    pub fn create(fs: &SharedFs, dir: &Path) -> Result<Self, StoreError> {
        let at = |e| StoreError::io(format!("create snapshot in {}", dir.display()), e);
        fs.create_dir_all(dir).map_err(at)?;
        let path = dir.join(format!("{:016x}.{BUILDING_EXTENSION}", entropy::random::<u64>()));
        let file = fs.create_new(&path).map_err(at)?;
        let mut writer = Self {
            fs: fs.clone(),
            dir: dir.to_path_buf(),
            file,
            temporary: TemporaryName { fs: fs.clone(), path: Some(path) },
            hasher: ContentHasher::new(),
            offset: 0,
            synced: 0,
            chunk: vec![0; CHUNK_HEAD_BYTES],
            item: Vec::new(),
            counts: SnapshotCounts::default(),
            changes: None,
            last_dedupe: None,
        };
        let header = format::encode_header();
        assert_eq!(header.len(), HEADER_BYTES, "the header's length is part of the format");
        writer.write(&header)?;
        Ok(writer)
    }

    /// Adds `item`. After an error the snapshot must be dropped.
    ///
    /// # Panics
    /// When an item comes out of its order.
    pub fn push(&mut self, item: &SnapshotItem) -> Result<(), StoreError> {
        match item {
            SnapshotItem::Key(record) => {
                assert!(self.changes.is_none(), "key {:?} after changes {:?}", record.key, self.changes);
                assert_eq!(self.counts.leases, 0, "key {:?} after leases", record.key);
                self.item.clear();
                codec::encode_into(record, &mut self.item);
                self.push_item(ITEM_KEY)?;
                self.counts.keys += 1;
            }
            SnapshotItem::Lease(record) => {
                assert!(self.changes.is_none(), "lease {} after changes {:?}", record.id, self.changes);
                self.item.clear();
                codec::encode_into(record, &mut self.item);
                self.push_item(ITEM_LEASE)?;
                self.counts.leases += 1;
            }
            SnapshotItem::Change(record) => self.push_change(record)?,
            SnapshotItem::Dedupe(entry) => {
                assert!(self.last_dedupe < Some(entry.index), "entry {} after {:?}", entry.index, self.last_dedupe);
                self.last_dedupe = Some(entry.index);
                self.item.clear();
                codec::encode_into(entry, &mut self.item);
                self.push_item(ITEM_DEDUPE)?;
                self.counts.dedupe += 1;
            }
        }
        Ok(())
    }

    fn push_change(&mut self, record: &ChangeRecord) -> Result<(), StoreError> {
        assert!(self.last_dedupe.is_none(), "revision {} after kept outcomes", record.revision);
        let first = match self.changes {
            Some((first, last)) => {
                assert_eq!(record.revision, last + 1, "revisions of changes are consecutive");
                first
            }
            None => record.revision,
        };
        self.changes = Some((first, record.revision));
        for part in record.parts() {
            self.item.clear();
            record.encode_part(part, &mut self.item);
            self.push_item(ITEM_CHANGE_PART)?;
        }
        self.counts.changes += 1;
        Ok(())
    }

    /// Completes the file, makes it durable, and gives it its final name. Older snapshots stay.
    ///
    /// # Panics
    /// When the changes pushed are not those that `footer` promises: up to its revision, from its compacted
    /// revision at the latest.
    pub fn finish(mut self, footer: &Footer) -> Result<SnapshotFile, StoreError> {
        assert!(
            footer.covers(self.changes),
            "changes {:?} of a snapshot of revision {}, compacted {}, scanned from {}",
            self.changes,
            footer.revision,
            footer.compacted_revision,
            footer.scan_start_revision
        );
        self.flush_chunk()?;
        let encoded = codec::encode(&(footer, self.counts));
        assert!(encoded.len() <= FOOTER_BYTES_MAX, "a footer of {} bytes", encoded.len());
        let footer_offset = self.offset;
        self.write(&encoded)?;
        let content_hash = self.hasher.finish();
        let trailer = Trailer {
            footer_offset,
            footer_bytes: encoded.len() as u32,
            footer_crc: crc32fast::hash(&encoded),
            content_hash,
        };
        self.write(&trailer.encode())?;
        let id = format::snapshot_id(footer.meta.last_log_id.as_ref(), content_hash);
        let path = self.dir.join(super::dir::file_name(&id));
        let at = |e| StoreError::io(format!("finish snapshot {}", path.display()), e);
        self.file.sync_data().map_err(at)?;
        self.temporary.rename(&path).map_err(at)?;
        if !mutants::active(Mutant::DirectoryNotSynced) {
            self.fs.sync_dir(&self.dir).map_err(at)?;
        }
        SnapshotFile::open(&self.fs, &path, id)
    }

    /// Adds the encoded `self.item` to the stream, and writes the chunks that it completes.
    fn push_item(&mut self, kind: u8) -> Result<(), StoreError> {
        let item = std::mem::take(&mut self.item);
        assert!(item.len() <= ITEM_BYTES_MAX, "an item of {} bytes", item.len());
        let [l0, l1, l2, l3] = (item.len() as u32).to_le_bytes();
        let head: [u8; ITEM_HEAD_BYTES] = [kind, l0, l1, l2, l3];
        for mut bytes in [&head[..], &item[..]] {
            while !bytes.is_empty() {
                let room = CHUNK_HEAD_BYTES + CHUNK_BYTES_MAX - self.chunk.len();
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                self.chunk.extend_from_slice(now);
                bytes = later;
                if self.chunk.len() == CHUNK_HEAD_BYTES + CHUNK_BYTES_MAX {
                    self.flush_chunk()?;
                }
            }
        }
        self.counts.item_bytes += (head.len() + item.len()) as u64;
        self.item = item;
        Ok(())
    }

    fn flush_chunk(&mut self) -> Result<(), StoreError> {
        if self.chunk.len() == CHUNK_HEAD_BYTES {
            return Ok(());
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let head = format::encode_chunk_head(self.counts.chunks, &chunk[CHUNK_HEAD_BYTES..]);
        chunk[..CHUNK_HEAD_BYTES].copy_from_slice(&head);
        self.write(&chunk)?;
        self.counts.chunks += 1;
        chunk.truncate(CHUNK_HEAD_BYTES);
        self.chunk = chunk;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let needed = bytes.len() as u64 + KEPT_FREE_BYTES;
        let room = require_space(&*self.fs, &self.dir, needed, || format!("write snapshot in {}", self.dir.display()));
        room.map_err(|e| e.taken_already(self.offset))?;
        let at = |e| StoreError::io(format!("write snapshot in {}", self.dir.display()), e);
        self.file.write_all_at(bytes, self.offset).map_err(at)?;
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        if self.offset - self.synced >= SYNC_BYTES {
            self.file.sync_data().map_err(at)?;
            self.synced = self.offset;
        }
        Ok(())
    }
}

/// A name to be removed unless the file is renamed.
#[derive(Debug)]
struct TemporaryName {
    fs: SharedFs,
    path: Option<PathBuf>,
}

impl TemporaryName {
    fn rename(&mut self, to: &Path) -> io::Result<()> {
        let path = self.path.take().expect("renamed once, by a method that consumes the writer");
        self.fs.rename(&path, to).inspect_err(|_| self.path = Some(path))
    }
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        if let Err(e) = self.fs.remove_file(path) {
            // Not lost: `SnapshotDir::open` removes it.
            tracing::warn!(path = %path.display(), error = %e, "cannot remove an unfinished snapshot");
        }
    }
}
