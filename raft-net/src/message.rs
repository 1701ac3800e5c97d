//! Bodies of requests and answers that are not openraft's own, and how an answer becomes a value or an error.

use bytes::Bytes;
use hexkv_store::{
    TypeConfig, codec,
    raft_types::{LogId, SnapshotMeta, Vote},
};
use openraft::raft::{SnapshotResponse, StreamAppendResult};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{NetError, Refusal},
    frame::{self, FRAME_BYTES_MAX, Frame, Kind},
    handshake, peer_text,
};

/// Why a request failed, as the serving side says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// See [`Refusal`].
    Refused(Refusal),
    /// Nothing was done.
    Unavailable(#[serde(deserialize_with = "peer_text::decode")] String),
    /// It was tried.
    Failed(#[serde(deserialize_with = "peer_text::decode")] String),
}

/// Offers a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotOffer {
    /// The sending leader's vote.
    pub(crate) vote: Vote,
    /// What the snapshot covers.
    pub(crate) last_log_id: Option<LogId>,
    /// Names the content.
    pub(crate) id: String,
    /// Length of the file.
    pub(crate) total_bytes: u64,
}

/// The answer to a [`SnapshotOffer`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SnapshotReply {
    /// Send from `offset` on, under this token.
    Send {
        /// Names this transfer; a later offer ends it.
        token: u64,
        /// Bytes that are there already.
        offset: u64,
    },
    /// Nothing to send: a newer leader is known, or the receiver has all of it.
    Done(SnapshotResponse<TypeConfig>),
}

/// Part of a snapshot; answered by `()`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotChunk {
    /// From [`SnapshotReply::Send`].
    pub(crate) token: u64,
    /// Where it belongs.
    pub(crate) offset: u64,
    /// The bytes.
    pub(crate) bytes: Bytes,
}

/// Everything was sent; answered by a [`SnapshotResponse`] once it is installed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotFinish {
    /// From [`SnapshotReply::Send`].
    pub(crate) token: u64,
    /// The sending leader's vote.
    pub(crate) vote: Vote,
    /// What openraft installs it under.
    pub(crate) meta: SnapshotMeta,
}

/// The answer to AppendEntries.
pub(crate) type AppendAnswer = StreamAppendResult<TypeConfig>;

/// Encodes the answer to request `id`, or the failure that it is too large.
pub(crate) fn encode_answer<T: Serialize>(id: u64, answer: &T) -> Vec<u8> {
    frame::encode(id, Kind::Answer, answer).unwrap_or_else(|bytes| {
        encode_failure(id, &Failure::Failed(format!("the answer of {bytes} bytes does not fit into a frame")))
    })
}

/// Encodes that request `id` failed.
pub(crate) fn encode_failure(id: u64, failure: &Failure) -> Vec<u8> {
    frame::encode(id, Kind::Failure, failure).expect("a failure is a short text")
}

/// Decodes the body of a request.
pub(crate) fn decode_body<T: DeserializeOwned>(what: &'static str, frame: &Frame) -> Result<T, NetError> {
    codec::decode(what, &frame.body, FRAME_BYTES_MAX).map_err(|e| NetError::Protocol(e.to_string()))
}

/// What `frame` answers: a value, or the error that the other side reports.
pub(crate) fn decode_answer<T: DeserializeOwned>(what: &'static str, frame: &Frame) -> Result<T, NetError> {
    match frame.kind {
        Kind::Answer => decode_body(what, frame),
        Kind::Failure => Err(match decode_body("failure", frame)? {
            Failure::Refused(refusal) => NetError::Refused(refusal),
            Failure::Unavailable(reason) => NetError::Unavailable(reason),
            Failure::Failed(reason) => NetError::Failed(reason),
        }),
        other => Err(handshake::refusal(frame)
            .map_or_else(|| NetError::Protocol(format!("{other:?} in place of an answer")), NetError::Refused)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_fit_becomes_a_failure() {
        let mut input = bytes::BytesMut::from(&encode_answer(7, &vec![0u8; FRAME_BYTES_MAX + 1])[..]);
        let frame = frame::decode(&mut input, FRAME_BYTES_MAX).unwrap().unwrap();
        assert_eq!(frame.id, 7);
        let error = decode_answer::<Vec<u8>>("bytes", &frame).unwrap_err();
        assert!(matches!(&error, NetError::Failed(reason) if reason.contains("does not fit")), "{error}");
    }
}
