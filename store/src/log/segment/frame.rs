//! How a segment's header and its records' frames are encoded and checked.

use std::path::Path;

use bytes::{BufMut, Bytes};

use super::{FRAME_BYTES, HEADER_BYTES, Mode};
use crate::StoreError;

/// Largest payload of a header, in bytes.
pub const HEADER_PAYLOAD_BYTES_MAX: usize = HEADER_BYTES as usize - HEADER_FIXED_BYTES - CRC_BYTES;

/// Records begin at multiples of this, in bytes.
pub(super) const ALIGNMENT: u64 = 8;
/// Bytes of the header in front of its payload.
pub(super) const HEADER_FIXED_BYTES: usize = 44;

pub(super) const FORMAT_VERSION: u32 = 3;
const MAGIC: [u8; 8] = *b"hexkvseg";
const CRC_BYTES: usize = 4;

#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) mode: Mode,
    pub(super) id: u64,
    pub(super) salt: u64,
    pub(super) capacity: u64,
    pub(super) payload: Bytes,
}

pub(super) struct Frame {
    pub(super) body_len: usize,
    pub(super) floor: u64,
    pub(super) kind: u8,
    pub(super) crc: u32,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(&MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u32_le(match self.mode {
            Mode::Durable => 0,
            Mode::Rebuildable => 1,
        });
        out.put_u64_le(self.id);
        out.put_u64_le(self.salt);
        out.put_u64_le(self.capacity);
        let payload_len = u32::try_from(self.payload.len()).expect("create checked the payload's length");
        out.put_u32_le(payload_len);
        out.extend_from_slice(&self.payload);
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out.resize(HEADER_BYTES as usize, 0);
        out
    }

    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt =
            |offset, reason: &str| StoreError::Corrupt { path: path.to_owned(), offset, reason: reason.into() };
        if bytes[..8] != MAGIC {
            return Err(corrupt(0, "this is no segment: the magic does not match"));
        }
        let payload_len = u32_at(bytes, 40) as usize;
        if payload_len > HEADER_PAYLOAD_BYTES_MAX {
            return Err(corrupt(40, "the header's payload is longer than a header"));
        }
        let (checked, rest) = bytes.split_at(HEADER_FIXED_BYTES + payload_len);
        if crc32fast::hash(checked) != u32_at(rest, 0) || rest[CRC_BYTES..].iter().any(|b| *b != 0) {
            return Err(corrupt(0, "the header's checksum does not match"));
        }
        let found = u32_at(bytes, 8);
        if found != FORMAT_VERSION {
            return Err(StoreError::FormatVersion { path: path.to_owned(), found, supported: FORMAT_VERSION });
        }
        let mode = match u32_at(bytes, 12) {
            0 => Mode::Durable,
            1 => Mode::Rebuildable,
            _ => return Err(corrupt(12, "unknown mode")),
        };
        Ok(Self {
            mode,
            id: u64_at(bytes, 16),
            salt: u64_at(bytes, 24),
            capacity: u64_at(bytes, 32),
            payload: Bytes::copy_from_slice(&checked[HEADER_FIXED_BYTES..]),
        })
    }

    /// Checksums of the frame (24 bits), and of frame and body.
    pub(super) fn checksums(&self, offset: u64, len: u32, floor: u32, kind: u8, body: &[u8]) -> (u32, u32) {
        let mut head = [0; 25];
        head[..8].copy_from_slice(&self.salt.to_le_bytes());
        head[8..16].copy_from_slice(&offset.to_le_bytes());
        head[16..20].copy_from_slice(&len.to_le_bytes());
        head[20..24].copy_from_slice(&floor.to_le_bytes());
        head[24] = kind;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head);
        let check = hasher.clone().finalize() & 0x00ff_ffff;
        hasher.update(body);
        (check, hasher.finalize())
    }

    /// The frame at the beginning of `bytes`, which lie at `offset`; None when it is no frame of this place.
    pub(super) fn frame(&self, offset: u64, bytes: &[u8]) -> Option<Frame> {
        if bytes.len() < FRAME_BYTES as usize {
            return None;
        }
        let (len, floor, kind_and_check, crc) =
            (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8), u32_at(bytes, 12));
        let body_len = len.checked_sub(1)? as usize;
        if offset + record_bytes(body_len) > self.capacity || u64::from(floor) > offset {
            return None;
        }
        let kind = (kind_and_check & 0xff) as u8;
        let (check, _) = self.checksums(offset, len, floor, kind, &[]);
        (check == kind_and_check >> 8).then_some(Frame { body_len, floor: u64::from(floor), kind, crc })
    }

    /// The intact record at the beginning of `bytes`, which lie at `offset`.
    pub(super) fn record<'b>(&self, offset: u64, bytes: &'b [u8]) -> Option<(Frame, &'b [u8])> {
        let frame = self.frame(offset, bytes)?;
        let body = bytes.get(FRAME_BYTES as usize..FRAME_BYTES as usize + frame.body_len)?;
        let floor = u32::try_from(frame.floor).expect("it was read from 32 bits");
        let len = u32::try_from(frame.body_len + 1).expect("it was read from 32 bits");
        let (_, crc) = self.checksums(offset, len, floor, frame.kind, body);
        (crc == frame.crc).then_some((frame, body))
    }
}

/// Bytes that a record with a body of `body_len` bytes takes in a segment.
pub const fn record_bytes(body_len: usize) -> u64 {
    (FRAME_BYTES + body_len as u64).next_multiple_of(ALIGNMENT)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has 8 bytes"))
}
