//! The types that openraft is instantiated with. openraft is an alpha whose traits move: its names
//! enter the project here, in `log`, in `state_machine`, and in raft-net, and nowhere else.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{StoreError, codec, command::Command, dedupe::Idempotency, outcome::Outcome, runtime::Runtime};

openraft::declare_raft_types!(
    /// How openraft is instantiated: leader ids are (term, node), so two candidates of one term cannot tie.
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = NodeAddress,
        AsyncRuntime = Runtime,
);

/// A node's id: random, never reused, also not by the same machine after it lost its disk.
pub type NodeId = u64;
/// (term, leader, index) of a log entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A vote: the term and candidate that this node last voted for.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// The Raft membership with the log id that set it.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// Where a Raft member is reached; part of the Raft membership.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Full name, `hex_hub1@127.0.0.1`.
    pub name: String,
    /// `host:port` of the raft port.
    pub raft: String,
}

/// A [`Command`] in its one encoding, shared by log, network and apply. Cloning copies no bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Wall clock of the leader that proposed it, in milliseconds since the Unix epoch. Stamped by the
    /// leader, so that apply needs no clock.
    pub time_ms: u64,
    /// For how long that leader has run, in milliseconds, by its monotonic clock: apply counts time by it, because wall
    /// clocks jump.
    pub uptime_ms: u64,
    /// For a change that its client may send again.
    pub idempotency: Option<Idempotency>,
    /// The encoded [`Command`].
    pub body: Bytes,
}

impl Proposal {
    /// Encodes `command`; the leader stamps its times later.
    pub fn new(command: &Command) -> Self {
        Self { time_ms: 0, uptime_ms: 0, idempotency: None, body: codec::encode(command).into() }
    }

    /// The same proposal, done once however often it is proposed.
    pub fn once(self, idempotency: Option<Idempotency>) -> Self {
        Self { idempotency, ..self }
    }

    /// Decodes the command.
    pub fn command(&self) -> Result<Command, StoreError> {
        codec::decode("command", &self.body, codec::COMMAND_BYTES_MAX)
    }

    /// Approximate size in the log, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.body.len() + self.idempotency.as_ref().map_or(0, Idempotency::size_bytes) + 56
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes at {} ms)", self.body.len(), self.time_ms)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
