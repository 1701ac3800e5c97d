//! What a node answers when it cannot do what was asked: one type, from the core to the HTTP body.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use hexkv_client::api::{Code, Problem};
use hexkv_raft_net::rpc::PeerError;
use hexkv_store::{StoreError, outcome::Refusal};

use crate::{
    bodies::NoRoom,
    routes::{
        idempotency::IDEMPOTENT_REPLAY,
        preconditions::{Representation, etag},
    },
};

/// Seconds that `Retry-After` names: an election is over by then, and a burst has drained.
const RETRY_AFTER_SECONDS: u32 = 1;

/// An error answer. A code of status 503 or 429 promises that nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct Error {
    /// The kind.
    pub code: Code,
    /// This occurrence, and what to do next.
    pub detail: String,
    /// Current revision of the key, for a failed condition.
    pub current_revision: Option<u64>,
    /// It is what came of an earlier attempt with the same idempotency key.
    pub replayed: bool,
}

impl Error {
    /// An error of kind `code`.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), current_revision: None, replayed: false }
    }

    /// 400.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, detail)
    }

    /// 503: nobody leads.
    pub fn no_leader() -> Self {
        Self::new(
            Code::NoLeader,
            "no leader could be reached in time; nothing was changed. Retry, and if it lasts, see whether a majority of the voters is up (`client status`)",
        )
    }

    /// 504: a change that may or may not happen.
    pub fn outcome_unknown(why: impl std::fmt::Display) -> Self {
        Self::new(
            Code::OutcomeUnknown,
            format!(
                "{why}; the change may or may not have happened. Send it again with the same Idempotency-Key to learn the outcome; without one, read the key before you write it again, or write with If-Match"
            ),
        )
    }

    /// 408: a body that stalled, or did not arrive in time.
    pub fn body_too_slow(why: impl std::fmt::Display) -> Self {
        let detail =
            format!("{why}; nothing was changed. Send it again, at once and with more time (timeout=), or in parts");
        Self::new(Code::RequestTimeout, detail)
    }

    /// 404: a lease that ended, or never was.
    pub fn no_such_lease(id: u64) -> Self {
        Self::new(
            Code::LeaseNotFound,
            format!("there is no lease {id}: it ended, or was never granted; grant a new one"),
        )
    }

    /// 429.
    pub fn overloaded() -> Self {
        Self::new(
            Code::Overloaded,
            "too many changes are in flight; nothing was changed. Retry after the time in Retry-After",
        )
    }

    /// 429: for bodies.
    pub fn bodies_overloaded(why: NoRoom) -> Self {
        let detail = match why {
            NoRoom::Full => {
                "too many bodies are being received; nothing was changed. Retry after the time in Retry-After"
            }
            NoRoom::Outpaced => {
                "too many bodies are being received, and this one came more slowly than the others; nothing was changed. Retry after the time in Retry-After, or send less at a time"
            }
        };
        Self::new(Code::Overloaded, detail)
    }

    /// 429: for listings.
    pub fn answers_overloaded() -> Self {
        Self::new(
            Code::Overloaded,
            "too many listings are being sent; retry after the time in Retry-After, or ask for smaller pages (limit=)",
        )
    }

    /// 429: for checks that found no turn in their time.
    pub fn checks_overloaded() -> Self {
        Self::new(Code::Overloaded, "too many checks of this node are running; retry after the time in Retry-After")
    }

    /// 429: for listings that found no room in their time.
    pub fn scans_overloaded() -> Self {
        Self::new(
            Code::Overloaded,
            "too many listings are being read; retry after the time in Retry-After, or give this one more time (timeout=)",
        )
    }

    /// The problem document.
    pub fn problem(&self) -> Problem {
        Problem {
            kind: "about:blank".into(),
            title: self.code.title().into(),
            status: self.code.status(),
            detail: self.detail.clone(),
            code: self.code,
        }
    }
}

impl From<PeerError> for Error {
    fn from(e: PeerError) -> Self {
        match e {
            PeerError::NotLeader { .. } => Self::no_leader(),
            PeerError::Unavailable(why) | PeerError::Refused(why) => Self::new(Code::Unavailable, why),
            PeerError::Overloaded => Self::overloaded(),
            PeerError::OutcomeUnknown(why) => Self::outcome_unknown(why),
            PeerError::Invalid(why) => Self::invalid(why),
            PeerError::NoSuchLease(id) => Self::no_such_lease(id),
            PeerError::Compacted { requested, oldest } => StoreError::Compacted { requested, oldest }.into(),
        }
    }
}

impl From<StoreError> for Error {
    fn from(e: StoreError) -> Self {
        match &e {
            StoreError::Compacted { .. } => Self::new(Code::Compacted, e.to_string()),
            StoreError::FutureRevision { .. } => Self::invalid(e.to_string()),
            StoreError::NoRoom { .. } => Self::new(
                Code::Unavailable,
                format!("this node's disk has no room for it ({e}); free some, or ask another node"),
            ),
            StoreError::Io { .. }
            | StoreError::Corrupt { .. }
            | StoreError::FormatVersion { .. }
            | StoreError::Locked { .. }
            | StoreError::Foreign { .. }
            | StoreError::NotEmpty { .. }
            | StoreError::Decode { .. }
            | StoreError::Engine(_)
            | StoreError::Unrecoverable { .. } => {
                tracing::error!(error = %e, "the store failed");
                Self::new(Code::Unavailable, format!("this node's storage failed ({e}); ask another node"))
            }
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::NameTaken(_) => Self::new(
                Code::NameTaken,
                format!("{detail}; choose another NODE_NAME, or remove the old member first (`client remove NAME`)"),
            ),
            Refusal::LastMember => Self::new(Code::LastMember, format!("{detail}; stop the node instead")),
            Refusal::NoSuchMember => Self::new(Code::NotFound, format!("{detail}; `client members` lists them")),
            Refusal::Compacted(_) => Self::new(Code::Compacted, detail),
            Refusal::NoSuchLease { .. } => Self::new(Code::LeaseNotFound, format!("{detail}; nothing was changed")),
            // An id is chosen at random: a retry chooses another one.
            Refusal::LeaseTaken(_) => Self::new(Code::Unavailable, format!("{detail}; nothing was changed. Retry")),
            Refusal::TooManyLeases => Self::new(
                Code::Overloaded,
                format!(
                    "{detail}; nothing was changed. Revoke some, or wait until some end; those that there are can be renewed"
                ),
            ),
            Refusal::OtherTerm { .. } => Self::no_leader(),
            Refusal::Undecodable(_) => {
                Self::new(Code::Unavailable, format!("{detail}; upgrade the nodes to one version"))
            }
            Refusal::IdempotencyMismatch => Self::new(
                Code::IdempotencyMismatch,
                format!(
                    "{detail}; nothing was changed. Take a new key for each change, and send a retry exactly as the first attempt"
                ),
            ),
            Refusal::IdempotencyFull => Self::new(
                Code::Overloaded,
                format!("{detail}; nothing was changed. Retry later, or send fewer changes with an Idempotency-Key"),
            ),
            Refusal::AnswerForgotten => Self::new(
                Code::OutcomeUnknown,
                format!(
                    "{detail}, because younger ones took its room. Nothing was changed now; read what it was to change"
                ),
            ),
            Refusal::AnswerTooLarge { .. } => Self::invalid(format!(
                "{detail}; nothing was changed. Ask again under a new key, without prev and with fewer reads in the transaction"
            )),
            Refusal::Limit { .. } | Refusal::TooManyMembers | Refusal::InvalidArgument(_) => Self::invalid(detail),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.code.status()).expect("codes have valid HTTP statuses");
        let body = serde_json::to_vec(&self.problem()).expect("a problem document is plain data");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if self.replayed {
            headers.insert(IDEMPOTENT_REPLAY, HeaderValue::from_static("true"));
        }
        if let Some(revision) = self.current_revision {
            headers.insert(header::ETAG, etag(revision, Representation::Raw));
        }
        response
    }
}
