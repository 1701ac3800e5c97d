//! Bodies of locks, elections and the registry. A wait is a text such as `10s`, a time to live one or a number of seconds.

use serde::{Deserialize, Serialize};

use super::Ttl;

/// `POST /api/locks/{name}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockRequest {
    /// Time to live of the lock unless it is renewed; 30 s unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// How long to wait for those who came before; not at all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = r"^[0-9]{1,3}(ms|s)$", example = "10s"))]
    pub wait: Option<String>,
    /// Who asks, for others to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1024, example = "host-1"))]
    pub owner: Option<String>,
}

/// Answer to taking and renewing a lock.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockAnswer {
    /// Renews and releases it.
    pub token: String,
    /// Greater than that of every holder before: what the lock protects refuses smaller ones.
    pub fencing_token: u64,
    /// It is held so long from now on, in milliseconds.
    pub ttl_ms: u64,
}

/// `POST /api/locks/{name}/renew`, `POST /api/elections/{name}/renew`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// As it was given.
    #[cfg_attr(feature = "openapi", schema(pattern = r"^[1-9][0-9]{0,18}$", example = "5912837465018273"))]
    pub token: String,
}

/// Who holds a lock.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// As it said.
    pub owner: String,
    /// Its fencing token.
    pub fencing_token: u64,
}

/// `GET /api/locks/{name}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockStatus {
    /// The holder; null when it is free.
    pub holder: Option<LockHolder>,
    /// Owners of those who wait, in their order.
    pub waiters: Vec<String>,
    /// Revision of the store at the read.
    pub revision: u64,
}

/// `DELETE /api/locks/{name}?token=` and `DELETE /api/elections/{name}?token=`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseAnswer {
    /// Always true: what was not held is an error.
    pub released: bool,
}

/// `POST /api/elections/{name}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CampaignRequest {
    /// Who stands for election.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 1024, example = "host-1"))]
    pub candidate: String,
    /// What it tells everyone once it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1024, example = "10.0.0.1:9000"))]
    pub value: Option<String>,
    /// Time to live of its leadership unless it is renewed; 30 s unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// How long to wait for leadership; not at all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = r"^[0-9]{1,3}(ms|s)$", example = "10s"))]
    pub wait: Option<String>,
}

/// Answer to winning an election, and to renewing it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CampaignAnswer {
    /// Renews and resigns.
    pub token: String,
    /// Who leads now.
    #[serde(flatten)]
    pub leader: Leader,
    /// It leads so long from now on, in milliseconds.
    pub ttl_ms: u64,
}

/// Who leads.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// As it said.
    pub candidate: String,
    /// As it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Greater than that of every leader before.
    pub fencing_token: u64,
}

/// `GET /api/elections/{name}`, and the data of each event of `GET /api/elections/{name}?watch`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectionStatus {
    /// Null when nobody leads.
    pub leader: Option<Leader>,
    /// Candidates that wait, in their order.
    pub candidates: Vec<String>,
    /// Revision of the store at the read.
    pub revision: u64,
}

/// `PUT /api/registry/{name}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Who has the name: only it can change or renew it.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 1024, example = "host-1"))]
    pub owner: String,
    /// Where it is.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 1024, example = "10.0.0.1:5432"))]
    pub address: String,
    /// Time to live unless it is registered again; 30 s unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
}

/// A registered name.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The name.
    pub name: String,
    /// Who has it.
    pub owner: String,
    /// Where it is.
    pub address: String,
    /// Time to live, in milliseconds.
    pub ttl_ms: u64,
    /// Revision of its last change.
    pub revision: u64,
}

/// `GET /api/registry`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAnswer {
    /// In the order of names.
    pub items: Vec<Registration>,
    /// Give it as `after` for the next page; null on the last.
    pub next: Option<String>,
}

/// `DELETE /api/registry/{name}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnregisterAnswer {
    /// Always true: what was not there is an error.
    pub removed: bool,
}
