//! A segment: one append-only file of checked records. The write-ahead log and the change log are made of them.
//!
//! ```text
//! header, 4096 bytes   magic, format version, mode, id, salt, capacity, payload, CRC; zeros up to 4096
//! record, 8-aligned    len u32 | floor u32 | kind u8, check u24 | crc u32 | body | zeros up to a multiple of 8
//! ...
//! end                  len = 0
//! ```
//!
//! `len` counts kind and body, so that no record has the length 0. Checksums cover the segment's random
//! salt and the record's offset as well: a record of another segment, or one inside a stored value, is never
//! taken for a record of this one. `check` covers the frame alone, so that a search rejects
//! a false frame without reading the body that it promises.
//!
//! # Torn or damaged
//! `floor` is the offset below which everything was complete when the record was written: synced
//! ([`Mode::Durable`]) or handed to the operating system ([`Mode::Rebuildable`]). All records of one batch share
//! their floor, which is where the batch begins. A crash may keep any subset of the sectors of the last batch, also its
//! end without its beginning, but it cannot touch what lies below a floor. So a bad record is a **torn tail**, and
//! is cut, unless an intact record follows whose floor lies beyond it: then bytes that were complete
//! have changed, and that is [`StoreError::Corrupt`].
//!
//! The one thing that cannot be told apart is damage within the last batch of a file: it looks like a torn write.

mod frame;
mod reader;

use std::{path::Path, sync::Arc};

use bytes::Bytes;

use self::frame::Header;
pub use self::{
    frame::{HEADER_PAYLOAD_BYTES_MAX, record_bytes},
    reader::SegmentReader,
};
use crate::{
    StoreError, entropy,
    fs::{File, Fs},
    mutants::{self, Mutant},
};

/// Bytes of the header, which shares no sector with a record.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes in front of each record's body.
pub const FRAME_BYTES: u64 = 16;
/// Largest capacity of a segment, in bytes: offsets are kept in 32 bits.
pub const CAPACITY_BYTES_MAX: u64 = 1 << 31;
/// Extension of a segment that is being created; whoever opens the directory removes such files.
pub const TEMPORARY_EXTENSION: &str = "new";

/// Zeros written at once when a file is preallocated, in bytes.
const ZERO_FILL_BYTES: usize = 1024 * 1024;
/// Memory that the write buffer keeps from one batch to the next, in bytes.
const BUFFER_KEEP_BYTES: usize = 1024 * 1024;

/// What a segment promises about its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Preallocated with written zeros, so that a sync never has to journal a change of length or extents. A record
    /// is complete when [`Segment::sync`] returned after it.
    Durable,
    /// Grows as it is written, never synced: its content can be made again from elsewhere. A record is complete when
    /// [`Segment::write`] returned after it.
    Rebuildable,
}

/// Where the records of a scanned segment end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Offset of the first byte after the last intact record.
    pub end_offset: u64,
    /// Bytes of a torn batch after it, 0 = none. [`Segment::adopt`] cuts them.
    pub torn_bytes: u64,
}

/// The write side of a segment.
///
/// Invariants:
/// - `HEADER_BYTES <= floor <= written`, all multiples of 8; `written + buffer.len() <= capacity`.
/// - Bytes below `floor` are complete in the sense of the segment's [`Mode`], and never written again.
/// - Nothing is appended before [`Segment::adopt`] made the bytes after `written` zero (a new segment is born so).
///
/// After an error of [`Segment::write`] or [`Segment::sync`] the content is unknown: drop the segment, do not retry.
#[derive(Debug)]
pub struct Segment {
    reader: Arc<SegmentReader>,
    buffer: Vec<u8>,
    written: u64,
    floor: u64,
    torn_bytes: u64,
    adopted: bool,
}

impl Segment {
    /// Creates the segment file `path`: under a temporary name first, so that a file with the right name is
    /// always whole. A [`Mode::Durable`] segment is durable, name included, when this returns.
    ///
    /// # Errors
    /// [`StoreError::Io`], also when the disk is full.
    ///
    /// # Panics
    /// When `capacity` (bytes, header included) exceeds [`CAPACITY_BYTES_MAX`] or leaves no room for a record, or
    /// `header_payload` exceeds [`HEADER_PAYLOAD_BYTES_MAX`].
    pub fn create(
        fs: &dyn Fs,
        path: &Path,
        id: u64,
        capacity: u64,
        header_payload: &[u8],
        mode: Mode,
    ) -> Result<Self, StoreError> {
        assert!(capacity > HEADER_BYTES + FRAME_BYTES && capacity <= CAPACITY_BYTES_MAX, "capacity {capacity}");
        assert!(header_payload.len() <= HEADER_PAYLOAD_BYTES_MAX, "header payload of {}", header_payload.len());
        let payload = Bytes::copy_from_slice(header_payload);
        let header = Header { mode, id, salt: entropy::random(), capacity, payload };
        let temporary = path.with_extension(TEMPORARY_EXTENSION);
        let file = Self::create_file(fs, path, &temporary, &header).map_err(|e| {
            // A full disk must get back what half a segment took.
            if fs.exists(&temporary)
                && let Err(also) = fs.remove_file(&temporary)
            {
                tracing::warn!(path = %temporary.display(), error = %also, "cannot remove an unfinished segment");
            }
            StoreError::io(format!("create segment {} of {capacity} bytes", path.display()), e)
        })?;
        let reader = Arc::new(SegmentReader { file, path: path.to_owned(), header });
        let (written, floor) = (HEADER_BYTES, HEADER_BYTES);
        Ok(Self { reader, buffer: Vec::new(), written, floor, torn_bytes: 0, adopted: true })
    }

    fn create_file(fs: &dyn Fs, path: &Path, temporary: &Path, header: &Header) -> std::io::Result<Box<dyn File>> {
        if fs.exists(path) {
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        if fs.exists(temporary) {
            fs.remove_file(temporary)?;
        }
        let file = fs.create_new(temporary)?;
        file.write_all_at(&header.encode(), 0)?;
        if header.mode == Mode::Durable {
            let zeros = vec![0; ZERO_FILL_BYTES.min((header.capacity - HEADER_BYTES) as usize)];
            let mut offset = HEADER_BYTES;
            while offset < header.capacity {
                let n = zeros.len().min((header.capacity - offset) as usize);
                file.write_all_at(&zeros[..n], offset)?;
                offset += n as u64;
            }
            file.sync_data()?;
        }
        fs.rename(temporary, path)?;
        if header.mode == Mode::Durable && !mutants::active(Mutant::DirectoryNotSynced) {
            fs.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(file)
    }

    /// Opens a segment and visits all intact records (offset, kind, body) in order. Changes nothing on disk; call
    /// [`Segment::adopt`] before appending. Holds the whole file in memory while it scans.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Corrupt`] for damage that no crash explains; [`StoreError::FormatVersion`];
    /// what `visit` returns.
    pub fn open(
        fs: &dyn Fs,
        path: &Path,
        visit: impl FnMut(u64, u8, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(Self, Tail), StoreError> {
        let io = |e| StoreError::io(format!("open segment {}", path.display()), e);
        let corrupt = |offset, reason| StoreError::Corrupt { path: path.to_owned(), offset, reason };
        let file = fs.open(path, true).map_err(io)?;
        let file_len = file.len().map_err(io)?;
        if file_len < HEADER_BYTES {
            return Err(corrupt(file_len, format!("{file_len} bytes are too short for a segment's header")));
        }
        if file_len > CAPACITY_BYTES_MAX {
            return Err(corrupt(CAPACITY_BYTES_MAX, format!("{file_len} bytes are too long for a segment")));
        }
        let mut bytes = vec![0; file_len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let header = Header::decode(path, &bytes[..HEADER_BYTES as usize])?;
        let fits = match header.mode {
            Mode::Durable => file_len == header.capacity,
            Mode::Rebuildable => file_len <= header.capacity,
        };
        if !fits {
            let reason = format!("the file has {file_len} bytes, its header says {}", header.capacity);
            return Err(corrupt(file_len.min(header.capacity), reason));
        }
        let reader = Arc::new(SegmentReader { file, path: path.to_owned(), header });
        let (tail, floor) = reader.scan(&bytes, visit)?;
        let torn_bytes = if mutants::active(Mutant::TornTailNotCut) { 0 } else { tail.torn_bytes };
        let written = tail.end_offset;
        Ok((Self { reader, buffer: Vec::new(), written, floor, torn_bytes, adopted: false }, tail))
    }

    /// Takes over an opened segment for appending: cuts the torn tail and, in [`Mode::Durable`], makes sure that all
    /// that was read is durable. A process that died before its sync leaves bytes that only the page cache
    /// has, and after a failed sync the kernel may even hold them for clean, so the last batch is written again.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn adopt(&mut self) -> Result<(), StoreError> {
        let file = &self.reader.file;
        let io = |e| StoreError::io(format!("repair the end of segment {}", self.reader.path.display()), e);
        match self.reader.header.mode {
            Mode::Durable => {
                file.write_all_at(&vec![0; self.torn_bytes as usize], self.written).map_err(io)?;
                let mut last_batch = vec![0; (self.written - self.floor) as usize];
                self.reader.read_exact(&mut last_batch, self.floor)?;
                file.write_all_at(&last_batch, self.floor).map_err(io)?;
                file.sync_data().map_err(io)?;
            }
            Mode::Rebuildable => file.set_len(self.written).map_err(io)?,
        }
        self.floor = self.written;
        self.torn_bytes = 0;
        self.adopted = true;
        Ok(())
    }

    /// The read side.
    pub fn reader(&self) -> &Arc<SegmentReader> {
        &self.reader
    }

    /// Bytes that can still be appended, frames and padding included.
    pub fn remaining(&self) -> u64 {
        self.reader.header.capacity - self.end()
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.end() == HEADER_BYTES
    }

    /// Offset of the next record.
    pub fn end(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Appends a record to the buffer and answers its offset; None when it does not fit: time for the next segment.
    pub fn append(&mut self, kind: u8, body: &[u8]) -> Option<u64> {
        self.append_with(kind, 0, |out| out.extend_from_slice(body))
    }

    /// Like [`Segment::append`], with a body that `encode` appends to the buffer itself, and only if `reserve` bytes
    /// remain after it.
    pub fn append_with(&mut self, kind: u8, reserve: u64, encode: impl FnOnce(&mut Vec<u8>)) -> Option<u64> {
        assert!(self.adopted, "append to {} before it was adopted", self.reader.path.display());
        let offset = self.end();
        let start = self.buffer.len();
        let body_start = start + FRAME_BYTES as usize;
        self.buffer.resize(body_start, 0);
        encode(&mut self.buffer);
        let body_len = self.buffer.len() - body_start;
        if offset + record_bytes(body_len) + reserve > self.reader.header.capacity {
            self.buffer.truncate(start);
            return None;
        }
        let len = u32::try_from(body_len + 1).expect("a record fits the capacity, which fits 32 bits");
        let floor = u32::try_from(self.floor).expect("offsets fit the capacity, which fits 32 bits");
        let body = &self.buffer[body_start..];
        let (check, crc) = self.reader.header.checksums(offset, len, floor, kind, body);
        let frame = &mut self.buffer[start..body_start];
        frame[..4].copy_from_slice(&len.to_le_bytes());
        frame[4..8].copy_from_slice(&floor.to_le_bytes());
        frame[8..12].copy_from_slice(&(u32::from(kind) | check << 8).to_le_bytes());
        frame[12..].copy_from_slice(&crc.to_le_bytes());
        self.buffer.resize(start + record_bytes(body_len) as usize, 0);
        Some(offset)
    }

    /// Writes the buffer with one call; answers whether there was anything to write.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the segment must not be used any more.
    pub fn write(&mut self) -> Result<bool, StoreError> {
        if self.buffer.is_empty() {
            return Ok(false);
        }
        self.reader
            .file
            .write_all_at(&self.buffer, self.written)
            .map_err(|e| StoreError::io(format!("write {}", self.reader.path.display()), e))?;
        self.written = self.end();
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEEP_BYTES);
        if self.reader.header.mode == Mode::Rebuildable {
            self.floor = self.written;
        }
        Ok(true)
    }

    /// Makes all written records durable.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the segment must not be used any more.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.reader.file.sync_data().map_err(|e| StoreError::io(format!("sync {}", self.reader.path.display()), e))?;
        self.floor = self.written;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::{frame::HEADER_FIXED_BYTES, *};
    use crate::fs::RealFs;

    type Records = Vec<(u64, u8, Vec<u8>)>;

    const CAPACITY: u64 = HEADER_BYTES + 4096;

    fn open(path: &Path) -> Result<(Segment, Tail, Records), StoreError> {
        let mut records = Vec::new();
        let (segment, tail) = Segment::open(&RealFs, path, |offset, kind, body| {
            records.push((offset, kind, body.to_vec()));
            Ok(())
        })?;
        Ok((segment, tail, records))
    }

    fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
        RealFs.open(path, true).unwrap().write_all_at(bytes, offset).unwrap();
    }

    fn two_batches(path: &Path, mode: Mode) -> Records {
        let mut segment = Segment::create(&RealFs, path, 7, CAPACITY, b"payload", mode).unwrap();
        let mut records = Vec::new();
        for batch in [[1u8, 2, 3], [4, 5, 6]] {
            for kind in batch {
                let body = vec![kind; usize::from(kind) * 5];
                records.push((segment.append(kind, &body).unwrap(), kind, body));
            }
            segment.write().unwrap();
            if mode == Mode::Durable {
                segment.sync().unwrap();
            }
        }
        records
    }

    #[test]
    fn records_are_read_back_and_appending_continues() {
        for mode in [Mode::Durable, Mode::Rebuildable] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("1.seg");
            let written = two_batches(&path, mode);
            let (mut segment, tail, read) = open(&path).unwrap();
            assert_eq!(read, written);
            assert_eq!(tail.torn_bytes, 0);
            assert_eq!(segment.reader().id(), 7);
            assert_eq!(&segment.reader().header_payload()[..], b"payload");
            segment.adopt().unwrap();
            let offset = segment.append(9, b"").unwrap();
            assert_eq!(offset, tail.end_offset);
            segment.write().unwrap();
            assert_eq!(segment.reader().read_at(offset).unwrap(), (9, Bytes::new()));
            for (offset, kind, body) in &written {
                assert_eq!(segment.reader().read_at(*offset).unwrap(), (*kind, Bytes::from(body.clone())));
            }
            let mut kinds = Vec::new();
            let range = (written[1].0, segment.end());
            segment
                .reader()
                .read_range(range.0, range.1, |_, kind, _| {
                    kinds.push(kind);
                    Ok(())
                })
                .unwrap();
            assert_eq!(kinds, [2, 3, 4, 5, 6, 9]);
            assert_eq!(open(&path).unwrap().2.len(), 7);
        }
    }

    #[test]
    fn a_record_that_does_not_fit_is_refused_and_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        let mut segment = Segment::create(&RealFs, &path, 1, CAPACITY, b"", Mode::Durable).unwrap();
        assert_eq!(segment.remaining(), 4096);
        assert_eq!(segment.append(1, &[7; 4081]), None);
        assert_eq!(segment.append_with(1, 8, |out| out.extend_from_slice(&[7; 4080])), None);
        assert_eq!(segment.append(1, &[7; 4080]), Some(HEADER_BYTES));
        assert_eq!(segment.remaining(), 0);
        assert_eq!(segment.append(1, b""), None);
        segment.write().unwrap();
        assert_eq!(open(&path).unwrap().2.len(), 1);
    }

    #[test]
    fn damage_below_a_floor_is_corrupt_and_damage_in_the_last_batch_is_torn() {
        for mode in [Mode::Durable, Mode::Rebuildable] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("1.seg");
            let written = two_batches(&path, mode);
            let whole = std::fs::read(&path).unwrap();
            for (n, (offset, _, body)) in written.iter().enumerate() {
                for at in *offset..offset + FRAME_BYTES + body.len() as u64 {
                    for bit in 0..8 {
                        overwrite(&path, at, &[whole[at as usize] ^ 1 << bit]);
                        match open(&path) {
                            Err(StoreError::Corrupt { offset: found, .. }) => {
                                assert!(n < 3, "record {n} is of the last batch");
                                assert_eq!(found, *offset);
                            }
                            Err(e) => panic!("{e}"),
                            Ok((_, tail, read)) => {
                                assert!(n >= 3, "record {n} is below the floor of the second batch");
                                assert_eq!(read, written[..n]);
                                assert_eq!(tail.end_offset, *offset);
                                assert!(tail.torn_bytes > 0);
                            }
                        }
                        overwrite(&path, at, &[whole[at as usize]]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_cut_tail_never_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        let written = two_batches(&path, Mode::Durable);
        // The first record of the last batch is lost as a whole sector would be; the two after it stay.
        overwrite(&path, written[3].0, &[0; 24]);
        let (mut segment, tail, read) = open(&path).unwrap();
        assert_eq!((read.len(), tail.end_offset), (3, written[3].0));
        segment.adopt().unwrap();
        // A record of the same size leads exactly to where the old fifth record was.
        assert_eq!(segment.append(4, &[0; 20]), Some(written[3].0));
        segment.write().unwrap();
        segment.sync().unwrap();
        let (_, tail, read) = open(&path).unwrap();
        assert_eq!((read.len(), tail.torn_bytes), (4, 0));
        // What was adopted was complete when the fourth record was written.
        overwrite(&path, written[2].0, &[0; 4]);
        assert!(matches!(open(&path), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn a_damaged_header_or_length_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        two_batches(&path, Mode::Durable);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..HEADER_BYTES {
            overwrite(&path, at, &[whole[at as usize] ^ 0x10]);
            assert!(matches!(open(&path), Err(StoreError::Corrupt { .. })), "byte {at}");
            overwrite(&path, at, &[whole[at as usize]]);
        }
        for len in [0, HEADER_BYTES - 1, CAPACITY - 1, CAPACITY + 1] {
            RealFs.open(&path, true).unwrap().set_len(len).unwrap();
            assert!(matches!(open(&path), Err(StoreError::Corrupt { .. })), "{len} bytes");
        }
    }

    #[test]
    fn a_newer_format_is_refused_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        Segment::create(&RealFs, &path, 1, CAPACITY, b"", Mode::Durable).unwrap();
        let mut header = std::fs::read(&path).unwrap()[..HEADER_FIXED_BYTES].to_vec();
        let newer = frame::FORMAT_VERSION + 1;
        header[8..12].copy_from_slice(&newer.to_le_bytes());
        let crc = crc32fast::hash(&header);
        header.put_u32_le(crc);
        overwrite(&path, 0, &header);
        assert!(matches!(open(&path), Err(StoreError::FormatVersion { found, .. }) if found == newer));
    }

    #[test]
    fn a_record_inside_a_value_is_not_taken_for_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        let written = two_batches(&path, Mode::Durable);
        let bytes = std::fs::read(&path).unwrap();
        let stolen = &bytes[written[5].0 as usize..][..48];
        let path = dir.path().join("2.seg");
        let mut segment = Segment::create(&RealFs, &path, 8, CAPACITY, b"", Mode::Rebuildable).unwrap();
        let first = segment.append(1, &[0; 8]).unwrap();
        segment.write().unwrap();
        segment.append(2, &stolen.repeat(20)).unwrap();
        segment.write().unwrap();
        overwrite(&path, first, &[0xff; 24]);
        overwrite(&path, first + 24, &[0xff; 16]);
        let (_, _, read) = open(&path).unwrap();
        assert!(read.is_empty(), "the second record's own frame is gone, and no copy in its body counts");
    }

    #[test]
    fn an_unfinished_segment_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        std::fs::write(path.with_extension(TEMPORARY_EXTENSION), b"half").unwrap();
        Segment::create(&RealFs, &path, 1, CAPACITY, b"", Mode::Durable).unwrap();
        assert!(!path.with_extension(TEMPORARY_EXTENSION).exists());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), CAPACITY);
    }
}
