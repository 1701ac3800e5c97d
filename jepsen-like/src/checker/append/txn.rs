//! Transactions of the append workload, taken out of the JSON, and what must hold within one of them.

use std::collections::HashMap;

use serde_json::Value;

use crate::history::{Operation, Outcome};

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Micro {
    /// What it saw; None unless the transaction is known to have happened.
    Read {
        key: String,
        seen: Option<Vec<i64>>,
    },
    Append {
        key: String,
        element: i64,
    },
}

/// A transaction.
#[derive(Debug, Clone)]
pub(crate) struct Txn<'a> {
    pub(crate) operation: Operation<'a>,
    pub(crate) outcome: Outcome,
    pub(crate) micros: Vec<Micro>,
}

/// Errors: why it makes no sense.
pub(crate) fn parse<'a>(operation: &Operation<'a>) -> Result<Txn<'a>, String> {
    let asked = micros(&operation.invoke.value, false)?;
    let micros = match operation.answer() {
        None => asked,
        Some(answer) => {
            let answered = micros(answer, true)?;
            let same = |(a, b): (&Micro, &Micro)| match (a, b) {
                (Micro::Read { key: a, .. }, Micro::Read { key: b, .. }) => a == b,
                (Micro::Append { .. }, Micro::Append { .. }) => a == b,
                (Micro::Read { .. }, Micro::Append { .. }) | (Micro::Append { .. }, Micro::Read { .. }) => false,
            };
            if asked.len() != answered.len() || !asked.iter().zip(&answered).all(same) {
                return Err(format!("{} was answered with other operations: {answer}", operation.invoke.value));
            }
            answered
        }
    };
    Ok(Txn { operation: *operation, outcome: operation.outcome(), micros })
}

fn micros(value: &Value, answered: bool) -> Result<Vec<Micro>, String> {
    let refuse = || format!("{value} is not a list of [\"r\", key, list] and [\"append\", key, number]");
    let one = |item: &Value| -> Option<Micro> {
        let [name, key, argument] = item.as_array()?.as_slice() else { return None };
        let key = match key {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        match name.as_str()? {
            "r" if !answered => Some(Micro::Read { key, seen: None }),
            "r" => {
                let seen = argument.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>()?;
                Some(Micro::Read { key, seen: Some(seen) })
            }
            "append" => Some(Micro::Append { key, element: argument.as_i64()? }),
            _ => None,
        }
    };
    value.as_array().ok_or_else(refuse)?.iter().map(|item| one(item).ok_or_else(refuse)).collect()
}

impl Txn<'_> {
    /// Whether it changes something.
    pub(crate) fn appends(&self) -> bool {
        self.micros.iter().any(|micro| matches!(micro, Micro::Append { .. }))
    }

    /// Every list that it saw, its own appends included.
    pub(crate) fn reads(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.micros.iter().filter_map(|micro| match micro {
            Micro::Read { key, seen: Some(seen) } => Some((key.as_str(), seen.as_slice())),
            Micro::Read { .. } | Micro::Append { .. } => None,
        })
    }

    /// What others had written to the keys that it read: each key once, without its own appends.
    pub(crate) fn external_reads(&self) -> Vec<(&str, &[i64])> {
        let mut own: HashMap<&str, usize> = HashMap::new();
        let mut reads: Vec<(&str, &[i64])> = Vec::new();
        for micro in &self.micros {
            match micro {
                Micro::Append { key, .. } => *own.entry(key).or_default() += 1,
                Micro::Read { key, seen: Some(seen) } if !reads.iter().any(|(known, _)| known == key) => {
                    let others = seen.len().saturating_sub(own.get(key.as_str()).copied().unwrap_or(0));
                    reads.push((key, &seen[..others]));
                }
                Micro::Read { .. } => {}
            }
        }
        reads
    }

    /// The first read that contradicts what the transaction itself did or read before.
    pub(crate) fn internal_contradiction(&self) -> Option<String> {
        // What it knows of each key: the whole list, or, before it read the key, only how the list must end.
        let mut knows: HashMap<&str, (bool, Vec<i64>)> = HashMap::new();
        for micro in &self.micros {
            match micro {
                Micro::Append { key, element } => knows.entry(key).or_default().1.push(*element),
                Micro::Read { key, seen: Some(seen) } => {
                    let (whole, list) = knows.entry(key).or_default();
                    if (*whole && list != seen) || !seen.ends_with(list) {
                        let how = if *whole { "is" } else { "ends with" };
                        return Some(format!(
                            "it read {seen:?} of {key}, where by its own acts the list {how} {list:?}"
                        ));
                    }
                    (*whole, *list) = (true, seen.clone());
                }
                Micro::Read { .. } => {}
            }
        }
        None
    }
}
