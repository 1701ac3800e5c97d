//! What an answer says about the request.

use std::time::Duration;

use http::{StatusCode, header};
use serde::de::DeserializeOwned;

use crate::api::{Code, Problem};
use crate::client::{Effect, STORE_REVISION};
use crate::transport::Reply;
use crate::{Endpoint, Error};

/// Why an attempt failed, and what may be done about it.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Settled, or too dangerous to repeat.
    Final(Error),
    /// It may have happened, and can be repeated to find out.
    Unknown { error: Error },
    /// Another endpoint may do better at once; this one rests, for as long as it asked.
    Elsewhere { error: Error, rest: Option<Duration> },
    /// The cluster is overloaded: asking another node at once would not help it.
    Everywhere { error: Error, rest: Option<Duration> },
}

/// A change whose outcome is unknown: one with an idempotency key is sent again.
pub(crate) fn in_the_dark(error: Error, effect: Effect) -> Failed {
    match effect {
        Effect::Once => Failed::Unknown { error },
        Effect::Read | Effect::Change => Failed::Final(error),
    }
}

/// Sorts an answer by what it says about the request.
pub(crate) fn judge(reply: Reply, endpoint: &Endpoint, effect: Effect) -> Result<Reply, Failed> {
    let status = reply.status;
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(reply);
    }
    let rest = reply.retry_after();
    let problem = problem(&reply);
    let unavailable = || Error::Unavailable {
        detail: format!("{endpoint} refused: {}: {}", problem.title, problem.detail),
        code: Some(problem.code),
    };
    let indeterminate = || Error::Indeterminate {
        detail: format!("{endpoint} does not know what became of the change: {}: {}", problem.title, problem.detail),
    };
    Err(match (status, effect) {
        (StatusCode::TOO_MANY_REQUESTS, _) => Failed::Everywhere { error: unavailable(), rest },
        (StatusCode::SERVICE_UNAVAILABLE, _) => Failed::Elsewhere { error: unavailable(), rest },
        (StatusCode::GATEWAY_TIMEOUT, Effect::Read) => Failed::Elsewhere { error: unavailable(), rest },
        (status, Effect::Change | Effect::Once) if status.is_server_error() => in_the_dark(indeterminate(), effect),
        _ => {
            let current_revision = reply.number(header::ETAG.as_str());
            let store_revision = reply.number(STORE_REVISION);
            Failed::Final(Error::Rejected {
                code: problem.code,
                problem: Box::new(problem),
                current_revision,
                store_revision,
            })
        }
    })
}

/// The answer's problem details; made up from the status when there are none that this version understands.
fn problem(reply: &Reply) -> Problem {
    serde_json::from_slice(&reply.body).unwrap_or_else(|_| {
        let code = code_of(reply.status);
        let said: Option<serde_json::Value> = serde_json::from_slice(&reply.body).ok();
        // A health answer gives a reason where problem details give a detail.
        let words = said.as_ref().and_then(|said| said.get("detail").or_else(|| said.get("reason"))?.as_str());
        let detail = words.map(str::to_owned);
        Problem {
            kind: "about:blank".to_owned(),
            title: code.title().to_owned(),
            status: reply.status.as_u16(),
            detail: detail.unwrap_or_else(|| format!("the answer was {}", reply.status)),
            code,
        }
    })
}

/// The kind of problem that a bare status stands for.
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        403 => Code::CrossSite,
        404 => Code::NotFound,
        405 => Code::MethodNotAllowed,
        408 => Code::RequestTimeout,
        410 => Code::Compacted,
        415 => Code::UnsupportedMediaType,
        421 => Code::MisdirectedRequest,
        422 => Code::IdempotencyMismatch,
        412 => Code::PreconditionFailed,
        413 => Code::ValueTooLarge,
        429 => Code::Overloaded,
        503 => Code::Unavailable,
        504 => Code::OutcomeUnknown,
        501 => Code::NotImplemented,
        400..=499 => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

/// Reads the JSON body of a successful answer. An unreadable one leaves a change in the dark.
pub(crate) fn decode<T: DeserializeOwned>(reply: &Reply, effect: Effect) -> Result<T, Error> {
    serde_json::from_slice(&reply.body).map_err(|error| {
        let detail = format!("the answer ({}) is not what a hexkv node of this version says: {error}", reply.status);
        match effect {
            Effect::Read => Error::Unexpected(detail),
            Effect::Change | Effect::Once => Error::Indeterminate { detail },
        }
    })
}
