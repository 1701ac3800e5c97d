//! What the doctor says.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or will not after the next restart.
    Error,
    /// It works, and is worth a look.
    Warning,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was checked, in a word that stays the same.
    pub check: &'static str,
    /// The node or endpoint that it is about; absent = the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What was found.
    pub what: String,
    /// What to do next.
    pub next: String,
}

impl Finding {
    /// Something that does not work.
    pub fn error(check: &'static str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { severity: Severity::Error, check, node: None, what: what.into(), next: next.into() }
    }

    /// Something that is worth a look.
    pub fn warning(check: &'static str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(check, what, next) }
    }

    /// It is about `node`.
    pub fn of(self, node: &str) -> Self {
        Self { node: Some(node.to_owned()), ..self }
    }
}

impl Finding {
    /// It for people: what was found, and what to do.
    pub fn lines(&self) -> [String; 2] {
        let severity = match self.severity {
            Severity::Error => "ERROR  ",
            Severity::Warning => "WARNING",
        };
        let node = self.node.as_ref().map(|node| format!("{node}: ")).unwrap_or_default();
        [format!("{severity} [{}] {node}{}", self.check, self.what), format!("        {}", self.next)]
    }
}
