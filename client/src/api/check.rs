//! What a node finds out about itself and its way to the others, for `client doctor`.

use serde::{Deserialize, Serialize};

/// Answer of `/api/cluster/check`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCheck {
    /// Full name.
    pub node: String,
    /// Version that runs.
    pub version: String,
    /// The node's wall clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Where its data is.
    pub data_dir: DataDirCheck,
    /// Where its cookie is; the cookie itself is not told.
    pub cookie: CookieCheck,
    /// Files that it has open, connections included; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Most files that it may have open; absent = no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files_max: Option<u64>,
    /// What the port mapper of its host says of it: `ok`, `off`, or what is wrong.
    pub port_mapper: String,
    /// Why its state is known to differ from the majority's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergent: Option<String>,
    /// Copies of members that this node refused in the last minute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyCheck>,
    /// Members that lost entries which they acknowledged to this node as the leader, by the signs of the last minute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_entries: Vec<LostEntriesCheck>,
    /// Each other member, as it is reached from here.
    pub peers: Vec<PeerCheck>,
}

/// Two processes that use copies of one data directory.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyCheck {
    /// Full name of the member that both claim to be.
    pub name: String,
    /// Where the accepted process answers.
    pub first: String,
    /// Where the refused process connected from, or listens.
    pub second: String,
    /// Attempts of the refused process.
    pub attempts: u64,
}

/// A member whose disk lost entries of the log.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostEntriesCheck {
    /// Full name, or the id of a node that is no member any more.
    pub name: String,
    /// Index of the last entry that it acknowledged.
    pub acknowledged: u64,
    /// Index of an entry that it acknowledged and does not hold.
    pub missing: u64,
}

/// A data directory.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDirCheck {
    /// Its path.
    pub path: String,
    /// Permission bits, octal: `755`.
    pub mode: String,
    /// Why no files can be made in it, or in which part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_writable: Option<String>,
    /// What is wrong with its disk, and what to do: it runs full, is full or read-only, fails or does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether the node refuses writes for that when it leads.
    #[serde(default)]
    pub refuses_writes: bool,
    /// What the node may still write there, in bytes.
    pub free_bytes: u64,
    /// Size of its file system, in bytes.
    pub total_bytes: u64,
}

/// Where a cookie comes from.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookieCheck {
    /// The file; absent = it was given by `COOKIE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Why the next start of this node would fail, or bring another cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What to do about a cookie that is so short that it can be guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Another member, as it is reached from a node.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCheck {
    /// Full name.
    pub name: String,
    /// `host:port` of its raft port, by the member directory.
    pub raft: String,
    /// How it went: both sides prove that they know the cookie, neither sends it.
    pub result: PeerResult,
    /// What was said, unless all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// `host:port` that its bare name leads to; absent when it leads nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<String>,
    /// What is at `resolved`, where that is not this member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
    /// Why its name leads nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unresolved: Option<String>,
}

/// How a member was reached.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerResult {
    /// It answered.
    Ok,
    /// It has another cookie.
    CookieDiffers,
    /// It refuses this node for another reason, or is another node.
    Refused,
    /// Nothing answers there.
    Unreachable,
}
