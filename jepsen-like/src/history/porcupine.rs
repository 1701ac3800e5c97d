//! A register history in the form of Porcupine's etcd test data: lines of tab-separated fields such as
//! `INFO  jepsen.util - 0<tab>:invoke<tab>:read<tab>nil`, one file a key.
//!
//! That form knows one register, values from 0, and no CAS from a missing key; and its `:fail :cas` claims that the
//! register had another value, which a refusal does not. So:
//! - failed operations and reads that are not linearizable are left out;
//! - where a CAS expects a missing key, missing becomes a number of its own, written by a first operation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;
use thiserror::Error;

use super::{Disorder, Event, Operation, Outcome, Process, pair};

/// Why a history has no such form.
#[derive(Debug, Error)]
pub enum ExportError {
    /// It is not a history.
    #[error("event {0}: {1}")]
    Disorder(u64, Disorder),
    /// The value of an event is not one of the register workload, or is negative.
    #[error("event {index}: the value {value} of `{f}` cannot be written: a number from 0 or null is")]
    Value {
        /// Which event.
        index: u64,
        /// Its operation.
        f: String,
        /// Its value.
        value: Value,
    },
}

/// Key -> the lines of its operations. Empty for a history without registers.
pub fn export(history: &[Event]) -> Result<BTreeMap<String, String>, ExportError> {
    let operations = pair(history).map_err(|(at, disorder)| ExportError::Disorder(at, disorder))?;
    let mut keys: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for operation in operations {
        let of_register = matches!(operation.f(), "read" | "write" | "cas");
        let judged = operation.outcome() != Outcome::Fail && (operation.f() != "read" || operation.mode().is_newest());
        if let (Some(key), true) = (operation.key(), of_register && judged) {
            keys.entry(key).or_default().push(operation);
        }
    }
    keys.into_iter().map(|(key, operations)| Ok((key.to_owned(), register(&operations)?))).collect()
}

/// The name of a key's file: letters, digits, `-` and `.` stay, the rest becomes `_` and two hexadecimal digits a byte.
pub fn file_name(key: &str) -> String {
    let mut name = String::new();
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => name.push(char::from(byte)),
            other => name.write_fmt(format_args!("_{other:02x}")).expect("a String takes everything"),
        }
    }
    name + ".log"
}

/// One number in place of a register's value; `missing` in place of null.
fn number(event: &Event, value: &Value, missing: Option<u64>) -> Result<Option<u64>, ExportError> {
    let refuse = || ExportError::Value { index: event.index, f: event.f.clone(), value: event.value.clone() };
    match value {
        Value::Null => Ok(missing),
        other => Ok(Some(other.as_u64().ok_or_else(refuse)?)),
    }
}

/// The two numbers of a CAS.
fn pair_of(event: &Event, missing: Option<u64>) -> Result<(Option<u64>, u64), ExportError> {
    let refuse = || ExportError::Value { index: event.index, f: event.f.clone(), value: event.value.clone() };
    let Some([old, new]) = event.value.as_array().map(Vec::as_slice) else { return Err(refuse()) };
    Ok((number(event, old, missing)?, new.as_u64().ok_or_else(refuse)?))
}

/// The number that stands for a missing key, when one is needed: the smallest that no operation knows.
fn missing(operations: &[Operation<'_>]) -> Result<Option<u64>, ExportError> {
    let mut known = BTreeSet::new();
    let mut needed = false;
    for operation in operations {
        // The completion of an operation of unknown outcome has no result.
        let answered = operation.completion.filter(|_| operation.is_ok());
        for event in std::iter::once(operation.invoke).chain(answered) {
            if event.f == "cas" {
                let (old, new) = pair_of(event, None)?;
                needed |= old.is_none();
                known.extend(old);
                known.insert(new);
            } else {
                known.extend(number(event, &event.value, None)?);
            }
        }
    }
    Ok(needed.then(|| (0..).find(|candidate| !known.contains(candidate)).expect("a history is finite")))
}

fn register(operations: &[Operation<'_>]) -> Result<String, ExportError> {
    let missing = missing(operations)?;
    let mut lines: BTreeMap<u64, String> = BTreeMap::new();
    for operation in operations {
        let process = operation.process();
        let f = operation.f();
        lines.insert(operation.began(), line(process, "invoke", f, &argument(operation.invoke, missing)?));
        if let Some(event) = operation.completion {
            let text = match operation.outcome() {
                Outcome::Info => line(process, "info", f, ":timed-out"),
                _ => line(process, "ok", f, &result(event, missing)?),
            };
            lines.insert(event.index, text);
        }
    }
    let mut out = String::new();
    if let Some(missing) = missing {
        // No operation of the history is by this process: it begins and ends before all others.
        let first = Process::Client(0);
        out.push_str(&line(first, "invoke", "write", &missing.to_string()));
        out.push_str(&line(first, "ok", "write", &missing.to_string()));
    }
    out.extend(lines.into_values());
    Ok(out)
}

fn argument(event: &Event, missing: Option<u64>) -> Result<String, ExportError> {
    if event.f == "read" { Ok("nil".into()) } else { result(event, missing) }
}

fn result(event: &Event, missing: Option<u64>) -> Result<String, ExportError> {
    let text = |number: Option<u64>| number.map_or("nil".into(), |number| number.to_string());
    if event.f == "write" && event.value.is_null() {
        return Err(ExportError::Value { index: event.index, f: event.f.clone(), value: Value::Null });
    }
    if event.f == "cas" {
        let (old, new) = pair_of(event, missing)?;
        return Ok(format!("[{} {new}]", text(old)));
    }
    Ok(text(number(event, &event.value, missing)?))
}

fn line(process: Process, kind: &str, f: &str, value: &str) -> String {
    format!("INFO  jepsen.util - {process}\t:{kind}\t:{f}\t{value}\n")
}

#[cfg(test)]
#[path = "porcupine_tests.rs"]
mod tests;
