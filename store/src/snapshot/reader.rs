//! Reads and verifies a snapshot file.

use std::path::Path;

use bytes::Bytes;

use super::{
    SnapshotFile,
    format::{
        self, CHUNK_BYTES_MAX, CHUNK_HEAD_BYTES, ContentHasher, FOOTER_BYTES_MAX, Footer, HEADER_BYTES, HeaderFault,
        ITEM_BYTES_MAX, ITEM_CHANGE_PART, ITEM_DEDUPE, ITEM_HEAD_BYTES, ITEM_KEY, ITEM_LEASE, SNAPSHOT_FORMAT_VERSION,
        SnapshotCounts, SnapshotItem, TRAILER_BYTES, Trailer,
    },
};
use crate::{
    StoreError,
    change_log::{ChangeRecord, PartAssembler},
    codec,
    dedupe::DedupeEntry,
    fs::SharedFs,
    lease::LeaseRecord,
    record::KeyRecord,
};

/// What a snapshot is loaded into. Whatever it was given is to be thrown away when [`SnapshotReader::load`] fails.
/// A change log takes all the changes, once it is cleared to begin with [`SnapshotReader::first_change_revision`].
pub trait SnapshotSink {
    /// Puts a record of the scan. A change of the same key may follow.
    fn key(&mut self, record: KeyRecord) -> Result<(), StoreError>;

    /// Puts a lease. What is attached to it follows from the records.
    fn lease(&mut self, lease: LeaseRecord) -> Result<(), StoreError>;

    /// Adds `record` to the history; with `redo` its changes are also to be done over the records of the scan.
    fn change(&mut self, record: ChangeRecord, redo: bool) -> Result<(), StoreError>;

    /// Adds a kept outcome; their log indexes ascend.
    fn dedupe(&mut self, entry: DedupeEntry) -> Result<(), StoreError>;
}

/// A snapshot whose header, footer and trailer are whole. Its items are verified as they are read.
#[derive(Debug, Clone)]
pub struct SnapshotReader {
    file: SnapshotFile,
    footer: Footer,
    counts: SnapshotCounts,
    trailer: Trailer,
    footer_encoded: Bytes,
}

impl SnapshotReader {
    /// Opens `file`, and checks its ends and that its id is the one of this content.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::FormatVersion`], [`StoreError::Io`].
    pub fn open(file: &SnapshotFile) -> Result<Self, StoreError> {
        let reader = Self::open_any_id(file)?;
        let id = reader.content_id();
        if id != file.id() {
            return Err(corrupt(file, 0, format!("it is {id}, not {}", file.id())));
        }
        Ok(reader)
    }

    /// Opens the snapshot at `path`, whatever it is called: a backup that was copied from elsewhere.
    ///
    /// # Errors
    /// As [`SnapshotReader::open`].
    pub fn open_path(fs: &SharedFs, path: &Path) -> Result<Self, StoreError> {
        let mut reader = Self::open_any_id(&SnapshotFile::open(fs, path, "")?)?;
        reader.file = SnapshotFile::open(fs, path, reader.content_id())?;
        Ok(reader)
    }

    fn open_any_id(file: &SnapshotFile) -> Result<Self, StoreError> {
        let len = file.len_bytes();
        if len < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Err(corrupt(file, len, "too short for a snapshot"));
        }
        format::check_header(&read(file, 0, HEADER_BYTES)?).map_err(|fault| match fault {
            HeaderFault::Version(found) => {
                StoreError::FormatVersion { path: file.path().to_path_buf(), found, supported: SNAPSHOT_FORMAT_VERSION }
            }
            HeaderFault::Damaged(reason) => corrupt(file, 0, reason),
        })?;
        let trailer_offset = len - TRAILER_BYTES as u64;
        let trailer = Trailer::decode(&read(file, trailer_offset, TRAILER_BYTES)?)
            .map_err(|reason| corrupt(file, trailer_offset, reason))?;
        let footer_bytes = trailer.footer_bytes as usize;
        if trailer.footer_offset < HEADER_BYTES as u64
            || footer_bytes > FOOTER_BYTES_MAX
            || trailer.footer_offset.checked_add(footer_bytes as u64) != Some(trailer_offset)
        {
            return Err(corrupt(file, trailer_offset, format!("{trailer:?} does not fit {len} bytes")));
        }
        let footer_encoded = read(file, trailer.footer_offset, footer_bytes)?;
        if crc32fast::hash(&footer_encoded) != trailer.footer_crc {
            return Err(corrupt(file, trailer.footer_offset, "checksum of the footer"));
        }
        let (footer, counts): (Footer, SnapshotCounts) =
            codec::decode("snapshot footer", &footer_encoded, FOOTER_BYTES_MAX)
                .map_err(|e| corrupt(file, trailer.footer_offset, e.to_string()))?;
        if counts.changes > footer.revision {
            let reason = format!("{} changes up to revision {}", counts.changes, footer.revision);
            return Err(corrupt(file, trailer.footer_offset, reason));
        }
        Ok(Self { file: file.clone(), footer, counts, trailer, footer_encoded })
    }

    /// The file, under the id of its content.
    pub fn file(&self) -> &SnapshotFile {
        &self.file
    }

    /// What the snapshot covers.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// How much it holds.
    pub fn counts(&self) -> SnapshotCounts {
        self.counts
    }

    /// Revision of the first change record; the one after the footer's revision when there is none. It may lie before
    /// the history that can still be asked for, when that was compacted while the snapshot was built.
    pub fn first_change_revision(&self) -> u64 {
        self.footer.revision + 1 - self.counts.changes
    }

    /// All items in order: keys, leases, changes, kept outcomes. The last element is an error unless the whole file is as
    /// it was written; nothing follows an error.
    pub fn items(&self) -> SnapshotItems {
        SnapshotItems {
            chunks: self.chunks(),
            counts: self.counts,
            footer: self.footer.clone(),
            buffer: Vec::new(),
            consumed: 0,
            assembler: PartAssembler::default(),
            seen: SnapshotCounts::default(),
            changes: None,
            last_dedupe: None,
            ended: false,
        }
    }

    /// Reads the whole file once, and checks every byte against its checksums.
    pub fn verify(&self) -> Result<(), StoreError> {
        let mut chunks = self.chunks();
        while chunks.next_chunk()?.is_some() {}
        Ok(())
    }

    /// Hands all items to `sink`.
    pub fn load(&self, sink: &mut dyn SnapshotSink) -> Result<(), StoreError> {
        for item in self.items() {
            match item? {
                SnapshotItem::Key(record) => sink.key(record)?,
                SnapshotItem::Lease(lease) => sink.lease(lease)?,
                SnapshotItem::Change(record) => {
                    let redo = record.revision > self.footer.scan_start_revision;
                    sink.change(record, redo)?;
                }
                SnapshotItem::Dedupe(entry) => sink.dedupe(entry)?,
            }
        }
        Ok(())
    }

    /// How many keys its scan found.
    pub fn keys(&self) -> u64 {
        self.counts.keys
    }

    fn content_id(&self) -> String {
        format::snapshot_id(self.footer.meta.last_log_id.as_ref(), self.trailer.content_hash)
    }

    fn chunks(&self) -> ChunkReader {
        ChunkReader {
            file: self.file.clone(),
            trailer: self.trailer,
            footer_encoded: self.footer_encoded.clone(),
            chunks_expected: self.counts.chunks,
            offset: 0,
            number: 0,
            hasher: ContentHasher::new(),
        }
    }
}

/// Reads chunks in order. Invariant: `hasher` has seen the file up to `offset`.
#[derive(Debug)]
struct ChunkReader {
    file: SnapshotFile,
    trailer: Trailer,
    footer_encoded: Bytes,
    chunks_expected: u64,
    offset: u64,
    /// Number of the next chunk.
    number: u64,
    hasher: ContentHasher,
}

impl ChunkReader {
    /// The next payload; at the end None, when the hash of all bytes is right.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.offset == 0 {
            self.hasher.update(&read(&self.file, 0, HEADER_BYTES)?);
            self.offset = HEADER_BYTES as u64;
        }
        let left = self.trailer.footer_offset - self.offset;
        if left == 0 {
            self.check_end()?;
            return Ok(None);
        }
        let at_most = left.min((CHUNK_HEAD_BYTES + CHUNK_BYTES_MAX) as u64) as usize;
        let chunk = read(&self.file, self.offset, at_most)?;
        if chunk.len() <= CHUNK_HEAD_BYTES {
            return Err(corrupt(&self.file, self.offset, "no room for a chunk"));
        }
        let (len, crc) = format::decode_chunk_head(&chunk);
        if len == 0 || len > chunk.len() - CHUNK_HEAD_BYTES {
            return Err(corrupt(&self.file, self.offset, format!("a chunk of {len} bytes")));
        }
        let payload = chunk.slice(CHUNK_HEAD_BYTES..CHUNK_HEAD_BYTES + len);
        if format::chunk_crc(self.number, &payload) != crc {
            return Err(corrupt(&self.file, self.offset, format!("checksum of chunk {}", self.number)));
        }
        self.hasher.update(&chunk[..CHUNK_HEAD_BYTES + len]);
        self.offset += (CHUNK_HEAD_BYTES + len) as u64;
        self.number += 1;
        Ok(Some(payload))
    }

    fn check_end(&self) -> Result<(), StoreError> {
        if self.number != self.chunks_expected {
            let reason = format!("{} chunks, {} were written", self.number, self.chunks_expected);
            return Err(corrupt(&self.file, self.offset, reason));
        }
        let mut hasher = self.hasher.clone();
        hasher.update(&self.footer_encoded);
        if hasher.finish() != self.trailer.content_hash {
            return Err(corrupt(&self.file, self.offset, "hash of the content"));
        }
        Ok(())
    }
}

/// Iterator of [`SnapshotReader::items`]. Holds one item and one chunk in memory.
#[derive(Debug)]
pub struct SnapshotItems {
    chunks: ChunkReader,
    counts: SnapshotCounts,
    footer: Footer,
    /// Bytes of the stream; those before `consumed` are done with.
    buffer: Vec<u8>,
    consumed: usize,
    assembler: PartAssembler,
    seen: SnapshotCounts,
    /// (first, last) revision of the changes so far.
    changes: Option<(u64, u64)>,
    /// Log index of the last kept outcome so far.
    last_dedupe: Option<u64>,
    ended: bool,
}

impl Iterator for SnapshotItems {
    type Item = Result<SnapshotItem, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_item();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

impl SnapshotItems {
    /// Whether something came that follows keys and leases.
    fn past_the_leases(&self) -> bool {
        self.changes.is_some() || self.last_dedupe.is_some() || self.assembler.is_incomplete()
    }

    fn next_item(&mut self) -> Result<Option<SnapshotItem>, StoreError> {
        loop {
            let head_bytes = self.fill(ITEM_HEAD_BYTES)?;
            if head_bytes == 0 {
                return self.check_end().map(|()| None);
            }
            let head = &self.buffer[self.consumed..self.consumed + head_bytes];
            let &[kind, l0, l1, l2, l3] = head else {
                return Err(self.corrupt("an item is cut off"));
            };
            let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            if len > ITEM_BYTES_MAX {
                return Err(self.corrupt(format!("an item of {len} bytes")));
            }
            let item_bytes = ITEM_HEAD_BYTES + len;
            if self.fill(item_bytes)? < item_bytes {
                return Err(self.corrupt("an item is cut off"));
            }
            let start = self.consumed + ITEM_HEAD_BYTES;
            self.consumed += item_bytes;
            self.seen.item_bytes += item_bytes as u64;
            if let Some(item) = self.decode(kind, start..start + len)? {
                return Ok(Some(item));
            }
        }
    }

    fn decode(&mut self, kind: u8, at: std::ops::Range<usize>) -> Result<Option<SnapshotItem>, StoreError> {
        let body = &self.buffer[at];
        match kind {
            ITEM_KEY => {
                let record = codec::decode("key record", body, ITEM_BYTES_MAX);
                let record = record.map_err(|e| self.corrupt(e.to_string()))?;
                if self.seen.leases > 0 || self.past_the_leases() {
                    return Err(self.corrupt("a key after what follows the keys"));
                }
                self.seen.keys += 1;
                Ok(Some(SnapshotItem::Key(record)))
            }
            ITEM_LEASE => {
                let lease = codec::decode("lease", body, ITEM_BYTES_MAX);
                let lease = lease.map_err(|e| self.corrupt(e.to_string()))?;
                if self.past_the_leases() {
                    return Err(self.corrupt("a lease after what follows the leases"));
                }
                self.seen.leases += 1;
                Ok(Some(SnapshotItem::Lease(lease)))
            }
            ITEM_CHANGE_PART => {
                if self.last_dedupe.is_some() {
                    return Err(self.corrupt("a change after the kept outcomes"));
                }
                let record = self.assembler.push(body);
                let Some(record) = record.map_err(|e| self.corrupt(e.to_string()))? else {
                    return Ok(None);
                };
                let first = match self.changes {
                    Some((_, last)) if last.checked_add(1) != Some(record.revision) => {
                        return Err(self.corrupt(format!("revision {} after {last}", record.revision)));
                    }
                    Some((first, _)) => first,
                    None => record.revision,
                };
                self.changes = Some((first, record.revision));
                self.seen.changes += 1;
                Ok(Some(SnapshotItem::Change(record)))
            }
            ITEM_DEDUPE => {
                let entry: Result<DedupeEntry, _> = codec::decode("kept outcome", body, ITEM_BYTES_MAX);
                let entry = entry.map_err(|e| self.corrupt(e.to_string()))?;
                let covered = self.footer.meta.last_log_id.is_some_and(|last| entry.index <= last.index);
                if self.assembler.is_incomplete() || self.last_dedupe >= Some(entry.index) || !covered {
                    return Err(self.corrupt(format!("the kept outcome of entry {} is out of place", entry.index)));
                }
                self.last_dedupe = Some(entry.index);
                self.seen.dedupe += 1;
                Ok(Some(SnapshotItem::Dedupe(entry)))
            }
            kind => Err(self.corrupt(format!("an item of unknown kind {kind}"))),
        }
    }

    /// Reads chunks until `wanted` bytes are there or the file ends; the number of bytes there, at most `wanted`.
    fn fill(&mut self, wanted: usize) -> Result<usize, StoreError> {
        while self.buffer.len() - self.consumed < wanted {
            let Some(chunk) = self.chunks.next_chunk()? else { break };
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            self.buffer.extend_from_slice(&chunk);
        }
        Ok((self.buffer.len() - self.consumed).min(wanted))
    }

    fn check_end(&self) -> Result<(), StoreError> {
        if self.assembler.is_incomplete() {
            return Err(self.corrupt("the last revision is cut off"));
        }
        let seen = SnapshotCounts { chunks: self.chunks.number, ..self.seen };
        if seen != self.counts {
            return Err(self.corrupt(format!("{seen:?}, {:?} were written", self.counts)));
        }
        if !self.footer.covers(self.changes) {
            return Err(self.corrupt(format!("changes {:?} of revision {}", self.changes, self.footer.revision)));
        }
        Ok(())
    }

    fn corrupt(&self, reason: impl Into<String>) -> StoreError {
        corrupt(&self.chunks.file, self.chunks.offset, reason)
    }
}

fn read(file: &SnapshotFile, offset: u64, bytes: usize) -> Result<Bytes, StoreError> {
    file.read_chunk(offset, bytes).map_err(|e| StoreError::io(format!("read snapshot {}", file.path().display()), e))
}

pub(super) fn corrupt(file: &SnapshotFile, offset: u64, reason: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: file.path().to_path_buf(), offset, reason: reason.into() }
}
