//! What is printed at the end of a run and of a check.

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use super::Outcome;
use crate::checker::Verdict;

/// Findings shown of each verdict; all are in `verdicts.json`.
const FINDINGS_SHOWN: usize = 3;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    table
}

/// The verdicts, and the first findings of those that are not valid.
pub fn verdicts(verdicts: &[Verdict]) -> String {
    let mut shown = table(&["checker", "verdict", "summary"]);
    for verdict in verdicts {
        let word = if verdict.valid { "valid" } else { "INVALID" };
        shown.add_row([verdict.checker.as_str(), word, verdict.summary.as_str()]);
    }
    let mut text = shown.to_string();
    for verdict in verdicts.iter().filter(|verdict| !verdict.valid) {
        for finding in verdict.findings.iter().take(FINDINGS_SHOWN) {
            text.push_str(&format!("\n{}: {}: {}", verdict.checker, finding.class, finding.message));
            text.push_str(&format!(" (events {:?})", finding.events));
        }
    }
    text
}

/// A whole run.
pub fn outcome(outcome: &Outcome) -> String {
    let record = &outcome.record;
    let mut operations = table(&["operation", "ok", "fail", "unknown"]);
    for (f, tally) in &record.operations {
        operations.add_row([f.clone(), tally.ok.to_string(), tally.fail.to_string(), tally.info.to_string()]);
    }
    let mut text = format!("{operations}\n");
    if !record.strikes.is_empty() {
        let mut faults = table(&["at", "fault", "bit", "writes again", "evidence"]);
        for strike in &record.strikes {
            faults.add_row([
                format!("{:.1} s", strike.at_ms as f64 / 1000.0),
                strike.fault.clone(),
                if strike.effect.bit { "yes" } else { "NO" }.to_owned(),
                strike.recovery_ms.map_or_else(|| "NEVER".to_owned(), |ms| format!("{ms} ms")),
                strike.effect.evidence.clone(),
            ]);
        }
        text.push_str(&format!("{faults}\n"));
    }
    text.push_str(&format!("{}\n", verdicts(&outcome.verdicts)));
    for problem in record.failures() {
        text.push_str(&format!("problem: {problem}\n"));
    }
    let word = if record.passed { "passed" } else { "FAILED" };
    let leaders = record.info.leader_changes.len();
    text.push_str(&format!(
        "{word}: {} strikes, {} leaders, writes again within {} ms at most (budget {} ms kept {} of {} times)\n",
        record.strikes.len(),
        leaders,
        record.recovery.longest_ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string()),
        record.recovery.budget_ms,
        record.recovery.within_budget,
        record.recovery.strikes,
    ));
    text.push_str(&format!("directory: {}\nagain:     {}\n", outcome.dir.display(), record.info.command));
    text
}
