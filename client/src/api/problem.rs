//! Problem documents (RFC 9457): what every error answer has.

use serde::{Deserialize, Serialize};

/// RFC 9457 problem details.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI reference that names the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for people.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// This occurrence, and what to do next.
    pub detail: String,
    /// The kind, for programs.
    pub code: Code,
}

/// Kinds of problems.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// 400: the request is invalid.
    InvalidArgument,
    /// 404: no such key.
    KeyNotFound,
    /// 404: no such lease: it ended, or was never granted.
    LeaseNotFound,
    /// 404: no such route, member or resource.
    NotFound,
    /// 403: a page of another site sent the request; nothing was changed.
    CrossSite,
    /// 405.
    MethodNotAllowed,
    /// 412: a condition did not hold; nothing was changed.
    PreconditionFailed,
    /// 415: a body of this type or encoding is not taken; nothing was changed.
    UnsupportedMediaType,
    /// 421: the node is not known by the host that was asked for; nothing was changed.
    MisdirectedRequest,
    /// 422: the idempotency key was used for another request; nothing was changed.
    IdempotencyMismatch,
    /// 410: the revision was compacted.
    Compacted,
    /// 413.
    KeyTooLarge,
    /// 413.
    ValueTooLarge,
    /// 408: the body did not arrive in time, or too slowly; nothing was changed.
    RequestTimeout,
    /// 409: another member has the name.
    NameTaken,
    /// 409: the joining node has data of its own.
    HasData,
    /// 409: the last member cannot leave.
    LastMember,
    /// 409: the nodes belong to different clusters, or are in this one already.
    ClusterMismatch,
    /// 409: the lock is held.
    LockHeld,
    /// 409: the token does not hold the lock, or does not lead; nothing was changed.
    NotHolder,
    /// 429: too much in flight; nothing was changed.
    Overloaded,
    /// 503: no leader is known or reachable; nothing was changed.
    NoLeader,
    /// 503: this node belongs to no cluster; nothing was changed.
    NotInCluster,
    /// 503: the state is older than asked for.
    Stale,
    /// 503: the node cannot do it now, for another reason; nothing was changed.
    Unavailable,
    /// 504: the change may or may not have happened.
    OutcomeUnknown,
    /// 500: a bug.
    Internal,
    /// 501: a transfer coding that the node does not know; nothing was changed.
    NotImplemented,
}

impl Code {
    /// The HTTP status of this kind of problem.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::KeyNotFound | Self::LeaseNotFound | Self::NotFound => 404,
            Self::CrossSite => 403,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::NameTaken
            | Self::HasData
            | Self::LastMember
            | Self::ClusterMismatch
            | Self::LockHeld
            | Self::NotHolder => 409,
            Self::Compacted => 410,
            Self::UnsupportedMediaType => 415,
            Self::MisdirectedRequest => 421,
            Self::IdempotencyMismatch => 422,
            Self::PreconditionFailed => 412,
            Self::KeyTooLarge | Self::ValueTooLarge => 413,
            Self::Overloaded => 429,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::NoLeader | Self::NotInCluster | Self::Stale | Self::Unavailable => 503,
            Self::OutcomeUnknown => 504,
        }
    }

    /// The kind for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidArgument => "Invalid argument",
            Self::KeyNotFound => "Key not found",
            Self::LeaseNotFound => "Lease not found",
            Self::NotFound => "Not found",
            Self::CrossSite => "Cross-site request",
            Self::MethodNotAllowed => "Method not allowed",
            Self::RequestTimeout => "Request timeout",
            Self::PreconditionFailed => "Precondition failed",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::MisdirectedRequest => "Misdirected request",
            Self::IdempotencyMismatch => "Idempotency key used for another request",
            Self::Compacted => "Revision compacted",
            Self::KeyTooLarge => "Key too large",
            Self::ValueTooLarge => "Value too large",
            Self::NameTaken => "Name taken",
            Self::HasData => "Node has data",
            Self::LastMember => "Last member",
            Self::ClusterMismatch => "Cluster mismatch",
            Self::LockHeld => "Lock held",
            Self::NotHolder => "Not the holder",
            Self::Overloaded => "Overloaded",
            Self::NoLeader => "No leader",
            Self::NotInCluster => "Not in a cluster",
            Self::Stale => "Stale",
            Self::Unavailable => "Unavailable",
            Self::OutcomeUnknown => "Outcome unknown",
            Self::Internal => "Internal error",
            Self::NotImplemented => "Not implemented",
        }
    }
}
