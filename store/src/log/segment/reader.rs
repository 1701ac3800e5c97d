//! The read side of a segment, and the scan that tells a torn tail from damage.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{
    FRAME_BYTES, HEADER_BYTES, Tail,
    frame::{ALIGNMENT, Header, record_bytes},
};
use crate::{StoreError, fs::File};

/// The read side of a segment; shared with readers while the [`Segment`](super::Segment) is appended to.
#[derive(Debug)]
pub struct SegmentReader {
    pub(super) file: Box<dyn File>,
    pub(super) path: PathBuf,
    pub(super) header: Header,
}

impl SegmentReader {
    /// Number of the segment, given at creation.
    pub fn id(&self) -> u64 {
        self.header.id
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free payload of the header, given at creation.
    pub fn header_payload(&self) -> &Bytes {
        &self.header.payload
    }

    /// Reads the written record at `offset`: its kind and body.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Corrupt`] when no intact record is there.
    pub fn read_at(&self, offset: u64) -> Result<(u8, Bytes), StoreError> {
        let mut bytes = [0; FRAME_BYTES as usize];
        self.read_exact(&mut bytes, offset)?;
        let frame = self.header.frame(offset, &bytes).ok_or_else(|| self.no_record(offset))?;
        let mut record = vec![0; FRAME_BYTES as usize + frame.body_len];
        self.read_exact(&mut record, offset)?;
        let (frame, _) = self.header.record(offset, &record).ok_or_else(|| self.no_record(offset))?;
        Ok((frame.kind, Bytes::from(record).slice(FRAME_BYTES as usize..)))
    }

    /// Reads all written records from the one at `start` to the one that ends at `end`, in one read.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Corrupt`] when the range is not made of intact records; what `visit` returns.
    pub fn read_range(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, u8, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        assert!(start <= end && end <= self.header.capacity, "range {start}..{end} of {}", self.header.capacity);
        let mut bytes = vec![0; (end - start) as usize];
        self.read_exact(&mut bytes, start)?;
        let mut offset = start;
        while offset < end {
            let rest = &bytes[(offset - start) as usize..];
            let (frame, body) = self.header.record(offset, rest).ok_or_else(|| self.no_record(offset))?;
            visit(offset, frame.kind, body)?;
            offset += record_bytes(frame.body_len);
        }
        Ok(())
    }

    pub(super) fn read_exact(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| StoreError::io(format!("read {} at byte {offset}", self.path.display()), e))
    }

    fn no_record(&self, offset: u64) -> StoreError {
        self.corrupt(offset, "a record that was written here is not intact")
    }

    fn corrupt(&self, offset: u64, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), offset, reason: reason.into() }
    }

    /// Visits the intact records of `bytes` (the whole file); answers where they end and the floor of the last.
    pub(super) fn scan(
        &self,
        bytes: &[u8],
        mut visit: impl FnMut(u64, u8, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(Tail, u64), StoreError> {
        let mut offset = HEADER_BYTES;
        let mut floor = HEADER_BYTES;
        while let Some((frame, body)) = self.header.record(offset, bytes.get(offset as usize..).unwrap_or_default()) {
            visit(offset, frame.kind, body)?;
            floor = frame.floor;
            // The last record of a file that grows may lack its padding.
            offset += record_bytes(frame.body_len);
        }
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let torn_bytes = rest.iter().rposition(|b| *b != 0).map_or(0, |last| last as u64 + 1);
        if torn_bytes > 0 {
            self.refuse_complete_records(offset, rest)?;
        }
        Ok((Tail { end_offset: offset, torn_bytes }, floor))
    }

    /// Fails when `rest`, which begins at the bad `offset`, holds a record written when `offset` was complete.
    fn refuse_complete_records(&self, offset: u64, rest: &[u8]) -> Result<(), StoreError> {
        for at in (ALIGNMENT as usize..rest.len()).step_by(ALIGNMENT as usize) {
            let there = offset + at as u64;
            if self.header.frame(there, &rest[at..]).is_some_and(|frame| frame.floor > offset)
                && self.header.record(there, &rest[at..]).is_some()
            {
                return Err(self.corrupt(offset, format!("the record is not intact, a later one at byte {there} is")));
            }
        }
        Ok(())
    }
}
