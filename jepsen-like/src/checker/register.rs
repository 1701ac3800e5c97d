//! The register workload's operations, taken out of the JSON once for all checkers that judge registers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Finding;
use crate::history::{Event, Mode, Operation, Outcome};

/// A register's content; None = the key is missing.
pub(super) type Content = Option<i64>;

/// What an operation does. A read has what it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read(Content),
    Write(i64),
    Cas(Content, i64),
}

impl Action {
    /// What it demands to be there.
    pub(super) fn needs(self) -> Option<Content> {
        match self {
            Action::Read(content) | Action::Cas(content, _) => Some(content),
            Action::Write(_) => None,
        }
    }

    /// What it leaves there, when it changes something.
    pub(super) fn makes(self) -> Option<i64> {
        match self {
            Action::Read(_) => None,
            Action::Write(new) | Action::Cas(_, new) => Some(new),
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |content: Content| content.map_or("nothing".to_owned(), |value| value.to_string());
        match *self {
            Action::Read(content) => write!(f, "read of {}", show(content)),
            Action::Write(new) => write!(f, "write of {new}"),
            Action::Cas(old, new) => write!(f, "cas from {} to {new}", show(old)),
        }
    }
}

/// An operation that happened or may have happened. Refused operations, and reads without an answer, are left out:
/// they demand nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct RegisterOp {
    pub(super) action: Action,
    /// Index of the invocation.
    pub(super) began: u64,
    /// Index of the completion; None = of unknown outcome.
    pub(super) ended: Option<u64>,
    pub(super) mode: Mode,
    pub(super) revision: Option<u64>,
}

impl RegisterOp {
    /// Indices of its events, for findings.
    pub(super) fn events(&self) -> Vec<u64> {
        std::iter::once(self.began).chain(self.ended).collect()
    }

    /// For the detail of findings.
    pub(super) fn to_json(self) -> Value {
        json!({ "events": self.events(), "op": self.action.to_string(), "revision": self.revision })
    }
}

/// Whether the event is of this workload.
pub(super) fn is_register(event: &Event) -> bool {
    event.key.is_some() && matches!(event.f.as_str(), "read" | "write" | "cas")
}

/// Key -> its operations in the order of their invocations; and what makes no sense, as findings of the class
/// `malformed`.
pub(super) fn by_key<'a>(operations: &[Operation<'a>]) -> (BTreeMap<&'a str, Vec<RegisterOp>>, Vec<Finding>) {
    let mut keys: BTreeMap<&str, Vec<RegisterOp>> = BTreeMap::new();
    let mut malformed = Vec::new();
    for operation in operations.iter().filter(|operation| is_register(operation.invoke)) {
        let key = operation.key().expect("is_register asks for a key");
        // A key of which nothing is judged still counts as one.
        let ops = keys.entry(key).or_default();
        match action(operation) {
            Ok(None) => {}
            Ok(Some(action)) => ops.push(RegisterOp {
                action,
                began: operation.began(),
                ended: operation.ended(),
                mode: operation.mode(),
                revision: operation.revision(),
            }),
            Err(message) => malformed.push(Finding {
                class: "malformed".into(),
                message,
                key: Some(key.into()),
                events: operation.events(),
                detail: Value::Null,
            }),
        }
    }
    (keys, malformed)
}

fn action(operation: &Operation<'_>) -> Result<Option<Action>, String> {
    // What a change was asked to do is in its invocation; a read's content is in its answer.
    let action = match operation.f() {
        "write" => Action::Write(value(&operation.invoke.value)?),
        "cas" => match operation.invoke.value.as_array().map(Vec::as_slice) {
            Some([old, new]) => Action::Cas(content(old)?, value(new)?),
            _ => return Err(format!("the value {} of a cas is not [old, new]", operation.invoke.value)),
        },
        _ => match operation.answer() {
            Some(answer) => Action::Read(content(answer)?),
            None => return Ok(None),
        },
    };
    if let (Some(answer), false) = (operation.answer(), matches!(action, Action::Read(_)))
        && *answer != operation.invoke.value
    {
        return Err(format!("`{}` of {} was answered with {answer}", operation.f(), operation.invoke.value));
    }
    Ok((operation.outcome() != Outcome::Fail).then_some(action))
}

fn content(json: &Value) -> Result<Content, String> {
    if json.is_null() { Ok(None) } else { value(json).map(Some) }
}

fn value(json: &Value) -> Result<i64, String> {
    json.as_i64().ok_or_else(|| format!("{json} is not a number that a register holds"))
}
