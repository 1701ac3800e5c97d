//! What the checkers say of a simulated history.

use crate::{checker, history::Event};

/// Lets every checker that applies judge `history`.
///
/// # Errors
/// The findings of those that it does not satisfy.
pub fn judge(history: &[Event]) -> Result<(), String> {
    let invalid: Vec<String> = checker::judge(history)
        .into_iter()
        .filter(|verdict| !verdict.valid)
        .map(|verdict| {
            let first = verdict.findings.first().map_or(String::new(), |f| {
                format!("; {} of {}: {}", f.class, f.key.as_deref().unwrap_or("all"), f.message)
            });
            format!("{}: {}{first}", verdict.checker, verdict.summary)
        })
        .collect();
    if invalid.is_empty() { Ok(()) } else { Err(invalid.join("; ")) }
}
