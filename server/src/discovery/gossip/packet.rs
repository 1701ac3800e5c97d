//! One packet: `magic, version, announcement, HMAC-SHA256 of all that with the cookie`.

use hexkv_raft_net::{Cookie, is_address};
use hexkv_store::codec;
use serde::{Deserialize, Serialize};

use crate::config::NodeName;

/// Longest packet, in bytes: two names of the longest kind, and room.
pub(super) const PACKET_BYTES_MAX: usize = 1024;
const MAGIC: [u8; 8] = *b"hexkv/go";
/// Version of the packets. Others are ignored.
const VERSION: u8 = 1;
const HEAD_BYTES: usize = MAGIC.len() + 1;
const SIGNATURE_BYTES: usize = 32;
/// What the signature is for, so that it is worth nothing elsewhere.
const CONTEXT: &str = "hexkv gossip";

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announcement {
    /// Random, one for each start of a node.
    pub(super) session: u64,
    /// Counts the packets of the session, from 1.
    pub(super) sequence: u64,
    /// When it was sent, in milliseconds since the Unix epoch.
    pub(super) time_ms: u64,
    /// Full name of the node.
    pub(super) name: String,
    /// `host:port` of its raft port.
    pub(super) raft: String,
}

/// Why a packet is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It does not have the form of one, or not of this version.
    Malformed,
    /// Its sender has another cookie, or none.
    Forged,
}

impl Announcement {
    pub(super) fn sign(&self, cookie: &Cookie) -> Vec<u8> {
        let mut packet = MAGIC.to_vec();
        packet.push(VERSION);
        codec::encode_into(self, &mut packet);
        let signature = cookie.sign(CONTEXT, &packet);
        packet.extend_from_slice(&signature);
        packet
    }

    /// Reads a packet. Nothing but its length and version is looked at before its signature.
    pub(super) fn open(packet: &[u8], cookie: &Cookie) -> Result<Self, Flaw> {
        if !(HEAD_BYTES + SIGNATURE_BYTES..=PACKET_BYTES_MAX).contains(&packet.len()) {
            return Err(Flaw::Malformed);
        }
        let (signed, signature) = packet.split_at(packet.len() - SIGNATURE_BYTES);
        if signed[..MAGIC.len()] != MAGIC || signed[MAGIC.len()] != VERSION {
            return Err(Flaw::Malformed);
        }
        if !cookie.is_signature(CONTEXT, signed, signature) {
            return Err(Flaw::Forged);
        }
        let announced = codec::decode::<Self>("announcement", &signed[HEAD_BYTES..], PACKET_BYTES_MAX);
        // Both reach the log.
        let valid = |a: &Self| a.name.parse::<NodeName>().is_ok() && is_address(&a.raft);
        announced.ok().filter(valid).ok_or(Flaw::Malformed)
    }
}
