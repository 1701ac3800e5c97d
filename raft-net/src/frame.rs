//! Frames: `[length u32][CRC-32 u32][request id u64][kind u8][body]`, little endian. The length counts what follows
//! the CRC; the CRC covers the length and what follows it.

use bytes::{Buf, Bytes, BytesMut};
use hexkv_store::codec;
use serde::Serialize;

/// Longest frame after the handshake, in bytes from the request id on: above the largest command with its keys.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest frame of the handshake, in bytes: what an unknown peer can make this node hold.
pub(crate) const HANDSHAKE_FRAME_BYTES_MAX: usize = 4096;

const PREFIX_BYTES: usize = 8;
const HEAD_BYTES: usize = 9;
/// Most bytes of room made ahead of a frame that is announced but has not arrived.
const READ_AHEAD_BYTES_MAX: usize = 256 * 1024;
/// Room for small frames, of which many come in one read.
const READ_AHEAD_BYTES_MIN: usize = 16 * 1024;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Handshake: who connects, a nonce.
    Hello = 1,
    /// Handshake: who listens, a nonce.
    Challenge = 2,
    /// Handshake: the connecting side's proof.
    Proof = 3,
    /// Handshake: the listening side's proof.
    Welcome = 4,
    /// A [`crate::error::Refusal`]; the connection ends.
    Refused = 5,
    /// AppendEntries.
    Append = 16,
    /// RequestVote.
    Vote = 17,
    /// Pre-vote.
    PreVote = 18,
    /// Leadership transfer.
    TransferLeader = 19,
    /// A [`crate::rpc::PeerRequest`].
    Peer = 20,
    /// A snapshot is offered.
    SnapshotOffer = 21,
    /// Part of a snapshot.
    SnapshotChunk = 22,
    /// The snapshot is complete: install it.
    SnapshotFinish = 23,
    /// The answer to the request with this id.
    Answer = 32,
    /// The request with this id failed.
    Failure = 33,
    /// The node is alive and still at work on some request.
    Alive = 34,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Hello,
        Self::Challenge,
        Self::Proof,
        Self::Welcome,
        Self::Refused,
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::TransferLeader,
        Self::Peer,
        Self::SnapshotOffer,
        Self::SnapshotChunk,
        Self::SnapshotFinish,
        Self::Answer,
        Self::Failure,
        Self::Alive,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame. Two frames are equal when all of id, kind and body are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Pairs an answer with its request; 0 where there is no request.
    pub(crate) id: u64,
    /// What the body is.
    pub(crate) kind: Kind,
    /// The content.
    pub(crate) body: Bytes,
}

/// Bytes that are no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Longer than the limit, by its own account.
    #[error("a frame of {bytes} bytes, the limit is {limit}")]
    TooLong {
        /// Announced length, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Shorter than its own head.
    #[error("a frame of {0} bytes is shorter than its head")]
    TooShort(usize),
    /// Damaged on the way.
    #[error("checksum mismatch")]
    Checksum,
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The connection ended inside a frame.
    #[error("the connection ended inside a frame")]
    Cut,
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl FrameError {
    /// Whether the other side sent what it must not send; otherwise the connection ended or broke.
    pub(crate) fn is_senseless(&self) -> bool {
        match self {
            Self::TooLong { .. } | Self::TooShort(_) | Self::Checksum | Self::UnknownKind(_) => true,
            Self::Cut | Self::Io(_) => false,
        }
    }
}

/// Encodes a frame with `body`.
///
/// # Errors
/// The size in bytes, when it is above [`FRAME_BYTES_MAX`].
pub(crate) fn encode<T: Serialize>(id: u64, kind: Kind, body: &T) -> Result<Vec<u8>, usize> {
    encode_with(id, kind, |out| codec::encode_into(body, out))
}

/// Encodes a frame whose body is written by `write_body`.
///
/// # Errors
/// As [`encode`].
pub(crate) fn encode_with(id: u64, kind: Kind, write_body: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<u8>, usize> {
    let mut frame = vec![0; PREFIX_BYTES];
    frame.extend_from_slice(&id.to_le_bytes());
    frame.push(kind as u8);
    write_body(&mut frame);
    let content_bytes = frame.len() - PREFIX_BYTES;
    if content_bytes > FRAME_BYTES_MAX {
        return Err(content_bytes);
    }
    let length = (content_bytes as u32).to_le_bytes();
    let checksum = checksum(length, &frame[PREFIX_BYTES..]);
    frame[..4].copy_from_slice(&length);
    frame[4..PREFIX_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(frame)
}

fn checksum(length: [u8; 4], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(content);
    hasher.finalize()
}

/// Takes the first frame off `input`; None when it has not arrived completely.
pub(crate) fn decode(input: &mut BytesMut, limit_bytes: usize) -> Result<Option<Frame>, FrameError> {
    let Some((length, expected)) = prefix(input) else { return Ok(None) };
    let content_bytes = u32::from_le_bytes(length) as usize;
    if content_bytes > limit_bytes {
        return Err(FrameError::TooLong { bytes: content_bytes, limit: limit_bytes });
    }
    if content_bytes < HEAD_BYTES {
        return Err(FrameError::TooShort(content_bytes));
    }
    if input.len() < PREFIX_BYTES + content_bytes {
        return Ok(None);
    }
    if checksum(length, &input[PREFIX_BYTES..PREFIX_BYTES + content_bytes]) != expected {
        return Err(FrameError::Checksum);
    }
    input.advance(PREFIX_BYTES);
    let mut content = input.split_to(content_bytes).freeze();
    let id = content.get_u64_le();
    let byte = content.get_u8();
    let kind = Kind::from_byte(byte).ok_or(FrameError::UnknownKind(byte))?;
    Ok(Some(Frame { id, kind, body: content }))
}

/// How much room to make before the next read: for the rest of the frame that has begun, but never much more than
/// has arrived, whatever length it claims.
pub(crate) fn read_ahead_bytes(input: &BytesMut) -> usize {
    let announced = prefix(input).map_or(0, |(length, _)| PREFIX_BYTES + u32::from_le_bytes(length) as usize);
    announced.saturating_sub(input.len()).clamp(READ_AHEAD_BYTES_MIN, READ_AHEAD_BYTES_MAX)
}

fn prefix(input: &BytesMut) -> Option<([u8; 4], u32)> {
    let prefix = input.first_chunk::<PREFIX_BYTES>()?;
    let [a, b, c, d, e, f, g, h] = *prefix;
    Some(([a, b, c, d], u32::from_le_bytes([e, f, g, h])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(id: u64, kind: Kind, body: &[u8]) -> Vec<u8> {
        encode_with(id, kind, |out| out.extend_from_slice(body)).unwrap()
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        (0..Kind::ALL.len()).prop_map(|i| Kind::ALL[i])
    }

    proptest! {
        #[test]
        fn frames_round_trip_however_they_are_cut(
            frames in prop::collection::vec((any::<u64>(), any_kind(), prop::collection::vec(any::<u8>(), 0..300)), 1..8),
            cut in 1usize..64,
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(id, kind, body)| raw(*id, *kind, body)).collect();
            let mut input = BytesMut::new();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                input.extend_from_slice(part);
                while let Some(frame) = decode(&mut input, FRAME_BYTES_MAX).unwrap() {
                    seen.push((frame.id, frame.kind, frame.body.to_vec()));
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn no_flipped_bit_passes(
            id in any::<u64>(), kind in any_kind(), body in prop::collection::vec(any::<u8>(), 0..64), bit in 0u8..8,
        ) {
            let good = raw(id, kind, &body);
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // A longer length is only found out once that much has arrived.
                bad.resize(good.len() + 512, 0);
                let mut input = BytesMut::from(&bad[..]);
                prop_assert!(!matches!(decode(&mut input, FRAME_BYTES_MAX), Ok(Some(_))), "byte {} flipped", at);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut input, HANDSHAKE_FRAME_BYTES_MAX) {}
        }
    }

    #[test]
    fn the_limit_is_checked_before_the_frame_arrives() {
        let mut input = BytesMut::from(&[0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0][..]);
        assert!(matches!(decode(&mut input, FRAME_BYTES_MAX), Err(FrameError::TooLong { .. })));
        let limit = HANDSHAKE_FRAME_BYTES_MAX;
        let mut input = BytesMut::from(&raw(1, Kind::Hello, &vec![0; limit - HEAD_BYTES])[..]);
        assert!(decode(&mut input, limit).unwrap().is_some());
        let mut input = BytesMut::from(&raw(1, Kind::Hello, &vec![0; limit - HEAD_BYTES + 1])[..]);
        assert!(matches!(decode(&mut input, limit), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn what_does_not_fit_is_not_encoded() {
        let body = vec![0; FRAME_BYTES_MAX];
        let bytes = encode_with(1, Kind::Peer, |out| out.extend_from_slice(&body)).unwrap_err();
        assert_eq!(bytes, FRAME_BYTES_MAX + HEAD_BYTES);
    }

    #[test]
    fn room_is_made_for_what_arrives_not_for_what_is_claimed() {
        let mut input = BytesMut::from(&(FRAME_BYTES_MAX as u32).to_le_bytes()[..]);
        input.extend_from_slice(&[0; 4]);
        assert_eq!(read_ahead_bytes(&input), READ_AHEAD_BYTES_MAX);
        assert_eq!(read_ahead_bytes(&BytesMut::new()), READ_AHEAD_BYTES_MIN);
    }
}
