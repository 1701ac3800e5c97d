//! What the server-sent events of a watch hold.

use serde::{Deserialize, Serialize};

use super::Item;

/// `put` and `delete`: one changed key.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchChange {
    /// The revision that changed it; the same for all events of one revision.
    pub revision: u64,
    /// The key, when it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The value in base64; absent for a deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Revision that created the key; absent for a deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_revision: Option<u64>,
    /// Revision of the change.
    pub mod_revision: u64,
    /// Changes since creation; absent for a deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Lease, when attached to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// Stored content type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// With `prev=true`: the record that was replaced or deleted, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Item>,
}

/// `progress`: everything up to `revision` was sent. `overflow` has the same form: the watch may be resumed after it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchProgress {
    /// The revision.
    pub revision: u64,
}

/// `compacted`: what was wanted is gone.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchCompacted {
    /// First revision that was wanted.
    pub from_revision: u64,
    /// The compacted revision: a watch may begin with the one after it.
    pub compacted_revision: u64,
    /// Newest revision of the answering node.
    pub revision: u64,
}

/// `closed`: the node cannot go on with the watch; another one can.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchClosed {
    /// The watch may be resumed after this revision.
    pub revision: u64,
    /// Why, for people.
    pub reason: String,
}

/// `POST /api/compact`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompactRequest {
    /// The oldest revision that stays readable.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, example = 1))]
    pub revision: u64,
}

/// Answer to a compaction.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactAnswer {
    /// The oldest revision that can be read from now on.
    pub compacted_revision: u64,
}
