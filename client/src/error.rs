//! What a failed call says about the store.

use crate::api::{Code, Problem};

/// Why a call failed. The variants differ in what the caller may conclude.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A node decided against it: nothing was changed, and the same request would be refused again.
    #[error("{}: {}", problem.title, problem.detail)]
    Rejected {
        /// The kind of refusal.
        code: Code,
        /// All that the node said.
        problem: Box<Problem>,
        /// With [`Code::PreconditionFailed`]: the key's revision, when the key exists.
        current_revision: Option<u64>,
        /// With [`Code::KeyNotFound`]: the store's revision at which the key was missing.
        store_revision: Option<u64>,
    },
    /// Nobody could do it in time: nothing was changed, a later attempt may succeed.
    #[error("{detail}")]
    Unavailable {
        /// Whom was asked and what came back, last attempt.
        detail: String,
        /// The kind of refusal, when a node gave one.
        code: Option<Code>,
    },
    /// A change was sent and no answer settles it: it may or may not have happened, now or a little later.
    #[error("{detail}")]
    Indeterminate {
        /// What became of the request.
        detail: String,
    },
    /// The call makes no sense; nothing was sent.
    #[error("{0}")]
    Invalid(String),
    /// Something answered a read that is not a hexkv node, or of another version.
    #[error("{0}")]
    Unexpected(String),
}

impl Error {
    /// The kind of refusal, when a node gave one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Rejected { code, .. } => Some(*code),
            Self::Unavailable { code, .. } => *code,
            Self::Indeterminate { .. } | Self::Invalid(_) | Self::Unexpected(_) => None,
        }
    }
}
