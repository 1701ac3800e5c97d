//! `jepsen-like list`: a line each.

use std::fmt::Write as _;

use crate::{checker, fault, workload};

/// All workloads, faults and checkers.
pub(super) fn text() -> String {
    let mut text = String::new();
    section(&mut text, "workloads", workload::ALL.iter().map(|workload| (workload.name(), workload.about())));
    section(&mut text, "faults", fault::ALL.iter().map(|fault| (fault.name(), fault.about())));
    section(&mut text, "checkers", checker::all().iter().map(|checker| (checker.name(), checker.about())));
    text
}

fn section<'a>(text: &mut String, title: &str, rows: impl Iterator<Item = (&'a str, &'a str)>) {
    writeln!(text, "{title}:").expect("a String takes all");
    for (name, about) in rows {
        writeln!(text, "  {name:<18} {about}").expect("a String takes all");
    }
}
