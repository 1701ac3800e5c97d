//! What watchers asked and were told.

use serde_json::Value;

use crate::history::Operation;

/// A key's record as it was before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) value: i64,
    pub(super) create: u64,
    pub(super) modified: u64,
    pub(super) version: u64,
}

/// One key of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change<'a> {
    pub(super) key: &'a str,
    /// None = it was deleted.
    pub(super) value: Option<i64>,
    /// Revision that created the key, and changes since; only of a key that was written.
    pub(super) created: Option<(u64, u64)>,
    pub(super) before: Option<Record>,
}

/// One thing that a watcher was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told<'a> {
    Batch { revision: u64, changes: Vec<Change<'a>> },
    Progress(u64),
}

/// One look of a watcher at its stream.
#[derive(Debug)]
pub(super) struct Poll<'a> {
    pub(super) operation: Operation<'a>,
    pub(super) watcher: &'a str,
    pub(super) prefix: &'a str,
    /// Everything up to it was told before; None = the watcher has not begun yet.
    pub(super) after: Option<u64>,
    /// Whether it begins a new stream there, as against going on with the old one.
    pub(super) opens: bool,
    /// Empty where the look failed.
    pub(super) told: Vec<Told<'a>>,
    /// Why the client could not go on with what the node sent.
    pub(super) broken: Option<&'a str>,
}

impl<'a> Poll<'a> {
    /// None when it makes no sense.
    pub(super) fn parse(operation: &Operation<'a>) -> Option<Self> {
        let asked = &operation.invoke.value;
        let answer = operation.answer();
        let told = match answer {
            Some(answer) => answer.get("told")?.as_array()?.iter().map(parse_told).collect::<Option<_>>()?,
            None => Vec::new(),
        };
        let after = match asked.get("after")? {
            Value::Null => None,
            number => Some(number.as_u64()?),
        };
        Some(Self {
            operation: *operation,
            watcher: operation.key()?,
            prefix: asked.get("prefix")?.as_str()?,
            after,
            opens: asked.get("opens")?.as_bool()?,
            told,
            broken: answer.and_then(|answer| answer.get("broken")).and_then(Value::as_str),
        })
    }

    pub(super) fn batches(&self) -> impl Iterator<Item = (u64, &[Change<'a>])> {
        self.told.iter().filter_map(|told| match told {
            Told::Batch { revision, changes } => Some((*revision, changes.as_slice())),
            Told::Progress(_) => None,
        })
    }

    pub(super) fn marks(&self) -> usize {
        self.told.len() - self.batches().count()
    }
}

fn parse_told(told: &Value) -> Option<Told<'_>> {
    if let Some(progress) = told.get("progress") {
        return Some(Told::Progress(progress.as_u64()?));
    }
    let changes: Vec<Change<'_>> = told.get("changes")?.as_array()?.iter().map(parse_change).collect::<Option<_>>()?;
    if changes.is_empty() {
        return None;
    }
    Some(Told::Batch { revision: told.get("revision")?.as_u64()?, changes })
}

fn parse_change(change: &Value) -> Option<Change<'_>> {
    let value = match change.get("value")? {
        Value::Null => None,
        number => Some(number.as_i64()?),
    };
    let created = match value {
        Some(_) => Some((change.get("create")?.as_u64()?, change.get("version")?.as_u64()?)),
        None => None,
    };
    let before = match change.get("prev") {
        None | Some(Value::Null) => None,
        Some(prev) => Some(Record {
            value: prev.get("value")?.as_i64()?,
            create: prev.get("create")?.as_u64()?,
            modified: prev.get("mod")?.as_u64()?,
            version: prev.get("version")?.as_u64()?,
        }),
    };
    Some(Change { key: change.get("key")?.as_str()?, value, created, before })
}

/// One step of a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Put(&'a str, i64),
    /// Whether there was something to delete; None where that is not known.
    Delete(&'a str, Option<bool>),
}

/// What a writer asked, or was answered where there is an answer; None when it makes no sense.
pub(super) fn steps<'a>(operation: &Operation<'a>) -> Option<Vec<Step<'a>>> {
    let steps = operation.answer().unwrap_or(&operation.invoke.value).as_array()?;
    let step = |step: &'a Value| match step.get(0)?.as_str()? {
        "put" => Some(Step::Put(step.get(1)?.as_str()?, step.get(2)?.as_i64()?)),
        "delete" => Some(Step::Delete(step.get(1)?.as_str()?, step.get(2).and_then(Value::as_bool))),
        _ => None,
    };
    steps.iter().map(step).collect()
}
