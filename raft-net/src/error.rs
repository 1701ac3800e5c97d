//! What can go wrong between nodes, and why one node refuses another.

use std::{io, sync::Arc};

use hexkv_store::NodeId;

use crate::{handshake::Spoken, peer_text};
use serde::{Deserialize, Serialize};

/// Why a request to another node got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    /// One side refuses the other; trying again changes nothing until someone changes the configuration.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// `host:port` that was tried.
        address: String,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// No answer in time.
    #[error("no answer in time (request {})", if *.sent { "was sent" } else { "was not sent" })]
    Timeout {
        /// Whether any byte of the request may have left this node.
        sent: bool,
    },
    /// The connection ended before the answer came.
    #[error("connection closed (request {})", if *.sent { "was sent" } else { "was not sent" })]
    Closed {
        /// Whether any byte of the request may have left this node.
        sent: bool,
    },
    /// The request does not fit into a frame; nothing was sent.
    #[error("{bytes} bytes do not fit into a frame of {} bytes", crate::frame::FRAME_BYTES_MAX)]
    TooLarge {
        /// Size of the request, in bytes.
        bytes: usize,
    },
    /// The other side sent what makes no sense.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// Too many requests, or too many bytes, wait for this peer already; nothing was sent.
    #[error("too many requests to this peer are in flight")]
    Overloaded,
    /// The other side cannot serve it now; nothing was done.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The other side tried and failed.
    #[error("the peer failed: {0}")]
    Failed(String),
}

impl NetError {
    /// Whether the other side may have carried out the request.
    pub fn maybe_delivered(&self) -> bool {
        match self {
            Self::Timeout { sent } | Self::Closed { sent } => *sent,
            // Both are said of a request that had arrived, or of an answer to it.
            Self::Protocol(_) | Self::Failed(_) => true,
            Self::Refused(_)
            | Self::Connect { .. }
            | Self::TooLarge { .. }
            | Self::Overloaded
            | Self::Unavailable(_) => false,
        }
    }

    pub(crate) fn connect(address: &str, source: io::Error) -> Self {
        Self::Connect { address: address.to_string(), source: Arc::new(source) }
    }
}

/// Why one node refuses another. Sent to the other side before the connection is closed, so that both can say it;
/// `ours` is what the refusing side has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The other side did not prove that it knows the cookie.
    #[error("the cookies differ; give both nodes the same COOKIE")]
    WrongCookie,
    /// The wire protocols differ.
    #[error("protocol {} against {}; run versions of the binary that understand each other: upgrade release by release", spoken(*.ours), spoken(*.theirs))]
    WrongVersion {
        /// Of the refusing side, as the handshake announces a range.
        ours: u32,
        /// Of the other side.
        theirs: u32,
    },
    /// Members of different clusters, or of none.
    #[error("cluster {} against {}; a node has to join a cluster first", cluster(*.ours), cluster(*.theirs))]
    WrongCluster {
        /// Of the refusing side.
        ours: Option<u64>,
        /// Of the other side.
        theirs: Option<u64>,
    },
    /// Another node than the expected one listens there, for example one that lost its disk and has a new id.
    #[error("this is node {ours:016x}, not node {expected:016x}")]
    WrongNode {
        /// Node that listens there.
        ours: NodeId,
        /// Node that was looked for.
        expected: NodeId,
    },
    /// The node called itself.
    #[error("this is the node's own address")]
    OwnAddress,
    /// Only members of the cluster that the receiver knows may request this.
    #[error("only members of the cluster may request this")]
    NotAMember,
    /// The node joined or left a cluster since the connection was made; the next connection learns its new identity.
    #[error("the node's identity has changed since the connection was made")]
    IdentityChanged,
    /// What arrived is no handshake of a hexkv node.
    #[error("this is no hexkv node: {0}")]
    NoHandshake(#[serde(deserialize_with = "peer_text::decode")] String),
    /// The node serves as many connections as it can.
    #[error("the node serves as many connections as it can")]
    TooManyConnections,
    /// What arrived after the handshake is no message, or none that belongs there: too long, damaged, or senseless.
    #[error("what came makes no sense here: {0}")]
    Senseless(#[serde(deserialize_with = "peer_text::decode")] String),
    /// Another process runs as the same node, and answers: the refused one uses a copy of its data directory.
    #[error(
        "another process runs as this node at {first}, and the one at {second} uses a copy of its data directory (a cloned disk or machine); start the copy with an empty DATA_DIR, as a new node, or stop the other one first"
    )]
    CopiedNode {
        /// Where the accepted process answers.
        #[serde(deserialize_with = "peer_text::decode")]
        first: String,
        /// Where the refused process connected from, or listens.
        #[serde(deserialize_with = "peer_text::decode")]
        second: String,
    },
    /// The data directory of the refused node is older than one that the same node used before.
    #[error(
        "the data directory is an old one: start {has} of this node, and start {had} was seen before; what it acknowledged since is lost, so it must come back as a new member"
    )]
    RolledBack {
        /// The highest start that was seen, counted from 1.
        had: u64,
        /// The start of the refused process.
        has: u64,
    },
    /// The request contradicts itself, its sender, or what the receiver has: nothing was done. The connection goes on.
    #[error("the request is not plausible: {0}")]
    Implausible(#[serde(deserialize_with = "peer_text::decode")] String),
    /// A term so far ahead that no number of elections explains it; see `TERM_LEAP_MAX`.
    #[error("term {theirs} is not plausible, the node has seen term {ours}")]
    TermLeap {
        /// Of the refusing side.
        ours: u64,
        /// Of the message.
        theirs: u64,
    },
}

impl Refusal {
    /// One word for a log line and for counting.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::WrongCookie => "wrong_cookie",
            Self::WrongVersion { .. } => "wrong_version",
            Self::WrongCluster { .. } => "wrong_cluster",
            Self::WrongNode { .. } => "wrong_node",
            Self::OwnAddress => "own_address",
            Self::NotAMember => "not_a_member",
            Self::IdentityChanged => "identity_changed",
            Self::NoHandshake(_) => "no_handshake",
            Self::TooManyConnections => "too_many_connections",
            Self::Senseless(_) => "senseless",
            Self::CopiedNode { .. } => "copied_node",
            Self::RolledBack { .. } => "rolled_back",
            Self::Implausible(_) => "implausible",
            Self::TermLeap { .. } => "term_leap",
        }
    }
}

fn spoken(wire: u32) -> String {
    match Spoken::from_wire(wire) {
        Some(Spoken { oldest, newest }) if oldest == newest => format!("version {newest}"),
        Some(Spoken { oldest, newest }) => format!("versions {oldest} to {newest}"),
        None => format!("version {wire:#x}"),
    }
}

fn cluster(id: Option<u64>) -> String {
    id.map_or_else(|| "none".to_string(), |id| format!("{id:016x}"))
}
