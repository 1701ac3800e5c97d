//! What a client may conclude from an answer.

use hexkv_client::Error;
use hexkv_client::api::Code;
use serde_json::Value;

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It happened.
    Ok {
        /// The result, as in the history.
        value: Value,
        /// The revision in the answer.
        revision: Option<u64>,
    },
    /// It certainly did not happen.
    Fail(String),
    /// Nobody knows.
    Info(String),
}

impl Outcome {
    /// What the error of a change says. Refusals, overload, no leader, a connection that was never made: nothing was
    /// changed. Everything else may have happened, or may yet.
    pub fn of_change(error: &Error) -> Self {
        match error {
            Error::Rejected { .. } | Error::Unavailable { .. } => Self::Fail(short(error)),
            Error::Indeterminate { .. } | Error::Unexpected(_) => Self::Info(short(error)),
            Error::Invalid(why) => unreachable!("the suite sends only what makes sense: {why}"),
        }
    }

    /// What the error of a read says: it changes nothing, so one without an answer might as well not have happened.
    pub fn of_read(error: &Error) -> Self {
        match error {
            Error::Invalid(why) => unreachable!("the suite sends only what makes sense: {why}"),
            Error::Rejected { .. } | Error::Unavailable { .. } | Error::Unexpected(_) | Error::Indeterminate { .. } => {
                Self::Fail(short(error))
            }
        }
    }

    /// A transaction whose comparisons did not hold.
    pub fn conflict() -> Self {
        Self::Fail(CONDITION_FAILED.to_owned())
    }

    /// Whether it failed because the cluster could not do it, and not by its own condition.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Fail(why) if why != CONDITION_FAILED && why != INSUFFICIENT_FUNDS)
    }

    /// A transfer that was not sent, because there is not enough to move.
    pub fn insufficient_funds() -> Self {
        Self::Fail(INSUFFICIENT_FUNDS.to_owned())
    }

    /// An acknowledged change.
    pub fn changed(value: &Value, revision: u64) -> Self {
        Self::Ok { value: value.clone(), revision: Some(revision) }
    }
}

/// The error of a change whose condition did not hold: nothing is wrong.
const CONDITION_FAILED: &str = "precondition_failed";
/// The error of a transfer that was not sent.
const INSUFFICIENT_FUNDS: &str = "insufficient_funds";
/// Longest error text in a history, in characters: there are many of them.
const ERROR_CHARS_MAX: usize = 160;

/// The error, with its code in front when the node gave one.
fn short(error: &Error) -> String {
    let code = match error.code() {
        Some(Code::PreconditionFailed) => return CONDITION_FAILED.to_owned(),
        Some(code) => format!("{code:?}: "),
        None => String::new(),
    };
    format!("{code}{error}").chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_did_nothing_is_a_failure() {
        let unavailable = Error::Unavailable { detail: "refused".into(), code: None };
        let unknown = Error::Indeterminate { detail: "reset".into() };
        assert!(matches!(Outcome::of_change(&unavailable), Outcome::Fail(_)));
        assert!(matches!(Outcome::of_change(&unknown), Outcome::Info(_)));
        assert!(matches!(Outcome::of_change(&Error::Unexpected("?".into())), Outcome::Info(_)));
        assert!(matches!(Outcome::of_read(&unknown), Outcome::Fail(_)));
    }

    #[test]
    fn long_errors_are_cut() {
        let long = Error::Indeterminate { detail: "ä".repeat(1000) };
        assert!(matches!(Outcome::of_change(&long), Outcome::Info(why) if why.chars().count() == ERROR_CHARS_MAX));
    }
}
