//! A history in Jepsen's EDN: one map a line, as in a Jepsen store's `history.edn`.
//!
//! - An operation on a key has the value `[key value]`, as `jepsen.independent` writes it.
//! - Stale reads are `:stale-read`: a checker of linearizability must not take them for `:read`.
//! - A transaction is Elle's: `[[:r "x" nil] [:append "x" 1]]`.
//! - Names of accounts that are whole numbers become numbers, as in Jepsen's bank.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::{Event, Kind, Mode, Process};

/// Name of the file in a run's directory.
pub const EDN_FILE: &str = "history.edn";

/// The whole history.
pub fn export(history: &[Event]) -> String {
    let mut out = String::new();
    for event in history {
        line(&mut out, event);
        out.push('\n');
    }
    out
}

fn line(out: &mut String, event: &Event) {
    let kind = match event.kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    };
    let process = match event.process {
        Process::Client(id) => id.to_string(),
        Process::Nemesis(_) => ":nemesis".into(),
    };
    let stale = event.f == "read" && event.mode == Some(Mode::Stale);
    let f = if stale { "stale-read".into() } else { keyword(&event.f) };
    let Event { index, time_ns, .. } = event;
    push(out, format_args!("{{:index {index}, :time {time_ns}, :type :{kind}, :process {process}, :f :{f}, :value "));
    if let Some(key) = &event.key {
        push(out, format_args!("[{} ", string(key)));
        value(out, &event.f, &event.value);
        out.push(']');
    } else {
        value(out, &event.f, &event.value);
    }
    if let Some(node) = &event.node {
        push(out, format_args!(", :node {}", string(node)));
    }
    if let Some(revision) = event.revision {
        push(out, format_args!(", :revision {revision}"));
    }
    if let Some(error) = &event.error {
        push(out, format_args!(", :error {}", string(error)));
    }
    out.push('}');
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

fn value(out: &mut String, f: &str, json: &Value) {
    match (f, json) {
        ("txn", Value::Array(operations)) => sequence(out, operations, micro_operation),
        ("transfer", Value::Object(fields)) => map(out, fields, |name| format!(":{}", keyword(name)), account),
        ("read", Value::Object(balances)) => map(out, balances, number_or_string, plain),
        _ => plain(out, json),
    }
}

fn micro_operation(out: &mut String, json: &Value) {
    match json {
        Value::Array(parts) => match parts.split_first() {
            Some((Value::String(name), rest)) => {
                push(out, format_args!("[:{}", keyword(name)));
                for part in rest {
                    out.push(' ');
                    plain(out, part);
                }
                out.push(']');
            }
            _ => plain(out, json),
        },
        _ => plain(out, json),
    }
}

fn account(out: &mut String, json: &Value) {
    match json {
        Value::String(name) => out.push_str(&number_or_string(name)),
        other => plain(out, other),
    }
}

fn plain(out: &mut String, json: &Value) {
    match json {
        Value::Null => out.push_str("nil"),
        Value::Bool(yes) => push(out, format_args!("{yes}")),
        Value::Number(number) => push(out, format_args!("{number}")),
        Value::String(text) => out.push_str(&string(text)),
        Value::Array(items) => sequence(out, items, plain),
        Value::Object(fields) => map(out, fields, |name| format!(":{}", keyword(name)), plain),
    }
}

fn sequence(out: &mut String, items: &[Value], each: fn(&mut String, &Value)) {
    out.push('[');
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            out.push(' ');
        }
        each(out, item);
    }
    out.push(']');
}

fn map(out: &mut String, fields: &Map<String, Value>, name: fn(&str) -> String, each: fn(&mut String, &Value)) {
    out.push('{');
    for (position, (key, json)) in fields.iter().enumerate() {
        if position > 0 {
            out.push_str(", ");
        }
        push(out, format_args!("{} ", name(key)));
        each(out, json);
    }
    out.push('}');
}

fn number_or_string(name: &str) -> String {
    // "007" would come back as octal and "+1" as 1: only the canonical form is a number.
    match name.parse::<i64>() {
        Ok(number) if number.to_string() == name => name.into(),
        _ => string(name),
    }
}

/// The rest of a keyword after its colon: what EDN does not allow becomes `-`.
fn keyword(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._*+!?$%&=<>-".contains(c) { c } else { '-' }).collect()
}

fn string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
#[path = "edn_tests.rs"]
mod tests;
