//! Collects what a checker finds and makes the verdict of it.

use serde_json::Value;

use super::{FINDINGS_MAX, Finding, Verdict};
use crate::history::{Event, Operation, pair};

/// Findings of one checker. Keeps the first [`FINDINGS_MAX`], counts them all.
#[derive(Debug)]
pub(super) struct Tally {
    checker: &'static str,
    findings: Vec<Finding>,
    total: usize,
}

impl Tally {
    /// None yet.
    pub(super) fn new(checker: &'static str) -> Self {
        Tally { checker, findings: Vec::new(), total: 0 }
    }

    /// The operations of a history; for a list of events that is none, a tally that says so.
    pub(super) fn operations<'a>(checker: &'static str, history: &'a [Event]) -> Result<Vec<Operation<'a>>, Tally> {
        pair(history).map_err(|(index, disorder)| {
            let mut tally = Tally::new(checker);
            tally.add("malformed-history", None, disorder.to_string(), vec![index], Value::Null);
            tally
        })
    }

    /// One more.
    pub(super) fn add(&mut self, class: &str, key: Option<&str>, message: String, events: Vec<u64>, detail: Value) {
        self.total += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { class: class.into(), message, key: key.map(Into::into), events, detail });
        }
    }

    /// One more that is complete already.
    pub(super) fn take(&mut self, finding: Finding) {
        self.total += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// The verdict: valid with the summary `good` when nothing was found.
    pub(super) fn verdict(self, good: &str, stats: Value) -> Verdict {
        let summary = match self.findings.first() {
            None => good.into(),
            Some(Finding { class, message, .. }) if self.total == 1 => format!("{class}: {message}"),
            Some(Finding { class, message, .. }) => format!("{class}: {message} (and {} more)", self.total - 1),
        };
        let valid = self.total == 0;
        Verdict { checker: self.checker.into(), valid, summary, findings: self.findings, stats }
    }
}
