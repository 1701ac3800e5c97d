//! The page: its head, the headline, the facts of the run, and the order of its parts.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::RunInfo;
use super::faults::{self, faults};
use super::finding::{EVENTS_MAX, Evidence, section};
use super::frame::{Frame, LEADER_MARKS_MAX};
use super::operations::{Operation, operations};
use super::series::{BUCKETS_MAX, LINES_MAX, Series};
use super::{cycle, latency, text, throughput, timeline};
use crate::checker::Verdict;
use crate::history::{Event, Process};

/// Findings whose timelines are drawn, over all checkers; the others are in words.
const TIMELINES_MAX: usize = 6;
/// Entries shown of a list of the run (nodes, faults that were asked for) or of a verdict's stats.
const ENTRIES_MAX: usize = 100;

/// Nothing is ever loaded or run: whatever a value in the history contains, it is text.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("style.css");

/// What a run says, all in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Headline {
    Valid,
    NotValid,
    Vacuous,
}

impl Headline {
    /// The worst of what is known. No verdict at all proves nothing.
    fn of(run: &RunInfo, verdicts: &[Verdict]) -> Self {
        if !run.valid || verdicts.iter().any(|verdict| !verdict.valid) {
            Self::NotValid
        } else if !run.vacuous.is_empty() || verdicts.is_empty() {
            Self::Vacuous
        } else {
            Self::Valid
        }
    }

    /// Class in the style sheet, sign, words.
    fn shown(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Valid => ("valid", "✓", "Valid"),
            Self::NotValid => ("invalid", "✗", "NOT valid"),
            Self::Vacuous => ("vacuous", "∅", "Vacuous"),
        }
    }
}

/// The whole document.
pub(super) fn render(run: &RunInfo, history: &[Event], verdicts: &[Verdict]) -> Markup {
    let operations = operations(history);
    let faults = faults(history);
    let last_ns = history.last().map_or(0, |event| event.time_ns);
    let series = Series::new(&operations, last_ns.max(run.duration_ms.saturating_mul(1_000_000)));
    let frame = Frame::new(series.buckets.span_ns, &faults, &run.leader_changes);
    let evidence = Evidence { history, operations: &operations };
    let workload = text::bounded(&run.workload, 60);
    let (class, sign, words) = Headline::of(run, verdicts).shown();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (sign) " " (words) ": " (workload) ", seed " (run.seed) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header.(class) {
                    p.eyebrow { "hexkv fault run: " (workload) }
                    h1 { span aria-hidden="true" { (sign) } " " (words) }
                    p { (reason(run, verdicts, operations.len())) }
                }
                nav aria-label="Parts of the report" {
                    a href="#run" { "Run" } a href="#verdicts" { "Verdicts" }
                    @if verdicts.iter().any(|verdict| !verdict.findings.is_empty()) { a href="#findings" { "Findings" } }
                    a href="#throughput" { "Throughput" } a href="#latency" { "Latency" } a href="#faults" { "Faults" }
                }
                main {
                    section #run { h2 { "Run" } (facts(run, history, &operations)) }
                    section #verdicts { h2 { "Verdicts" } (verdict_table(verdicts)) }
                    (findings(verdicts, &evidence))
                    section #throughput { h2 { "Throughput" } (throughput::chart(&series, &frame)) }
                    section #latency { h2 { "Latency" } (latency::chart(&operations, &series, &frame)) }
                    section #faults { h2 { "Faults" } (faults::table(&faults, &run.vacuous)) }
                }
                footer { p.quiet { (limits()) } }
            }
        }
    }
}

/// The headline in a sentence.
fn reason(run: &RunInfo, verdicts: &[Verdict], operations: usize) -> Markup {
    let failed: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.valid).collect();
    html! {
        @if !failed.is_empty() {
            @for (position, verdict) in failed.iter().enumerate() {
                @if position > 0 { "; " }
                (text::clean(&verdict.checker)) ": " (text::clean(&verdict.summary))
            }
        } @else if !run.valid { "The run itself failed: " (sentences(&run.problems)) ". No checker objects to the history." }
        @else if !run.vacuous.is_empty() {
            "No checker objects, but these faults had no effect that could be shown: " (list(&run.vacuous)) "."
        } @else if verdicts.is_empty() { "No checker judged this history." }
        @else { "All " (verdicts.len()) " checkers accept " (text::count(operations as u64)) " operations." }
        @if !failed.is_empty() && !run.vacuous.is_empty() { ". Faults without effect: " (list(&run.vacuous)) "." }
    }
}

/// Names in a row, bounded.
fn list(names: &[String]) -> String {
    joined(names, ", ")
}

fn sentences(problems: &[String]) -> String {
    joined(problems, "; ")
}

fn joined(names: &[String], between: &str) -> String {
    let mut shown = names.iter().take(ENTRIES_MAX).map(|name| text::clean(name)).collect::<Vec<_>>().join(between);
    if names.len() > ENTRIES_MAX {
        shown += &format!(" and {} more", names.len() - ENTRIES_MAX);
    }
    shown
}

/// Who ran, when, and how to repeat it.
fn facts(run: &RunInfo, history: &[Event], operations: &[Operation<'_>]) -> Markup {
    let by_clients = history.iter().filter(|event| matches!(event.process, Process::Client(_))).count();
    let paired: usize = operations.iter().map(|operation| 1 + usize::from(operation.completion.is_some())).sum();
    html! {
        dl.facts {
            dt { "seed" } dd { code.copy { (run.seed) } }
            dt { "repeat it" } dd { code.copy.command { (text::bounded(&run.command, 2_000)) } span.quiet { "a click selects all of it" } }
            dt { "started" } dd { (text::clean(&run.started)) ", for " (text::duration(run.duration_ms.saturating_mul(1_000_000))) }
            dt { "operations" } dd {
                (text::count(operations.len() as u64)) " in " (text::count(history.len() as u64)) " events: "
                a href="history.jsonl" { "history.jsonl" }
                @if by_clients > paired { ". " (by_clients - paired) " completions belong to no operation" }
            }
            dt { "faults" } dd { @if run.faults.is_empty() { "none" } @else { (list(&run.faults)) } }
            dt { "wrote again" } dd {
                @if let Some(heal_ms) = run.heal_ms { (text::duration(heal_ms.saturating_mul(1_000_000))) " after the last heal" }
                @else { "nothing was healed" }
            }
            dt { "leaders" } dd { (run.leader_changes.len()) " seen" @if run.leader_changes.len() > LEADER_MARKS_MAX { ", the first " (LEADER_MARKS_MAX) " are drawn" } }
            dt { "server" } dd { (text::clean(&run.server_version)) }
            dt { "logs" } dd {
                @for node in run.nodes.iter().take(ENTRIES_MAX) { a.log href=(text::href(&node.log)) { (text::clean(&node.name)) } " " }
                @if run.nodes.is_empty() { "none" }
            }
        }
    }
}

/// What each checker says.
fn verdict_table(verdicts: &[Verdict]) -> Markup {
    html! {
        @if verdicts.is_empty() { p { "No checker judged this history." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Verdicts" {
                table {
                    thead { tr { th { "verdict" } th { "checker" } th { "summary" } th { "counts" } } }
                    tbody {
                        @for verdict in verdicts {
                            tr {
                                td { @if verdict.valid { strong.mark.valid { "✓ valid" } } @else { strong.mark.invalid { "✗ NOT valid" } } }
                                th scope="row" { (text::clean(&verdict.checker)) }
                                td.words { (text::clean(&verdict.summary)) }
                                td.stats { (stats(&verdict.stats)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A verdict's counts.
fn stats(stats: &Value) -> Markup {
    html! {
        @match stats {
            Value::Null => {}
            Value::Object(fields) => {
                @for (name, field) in fields.iter().take(ENTRIES_MAX) {
                    span.stat { span.quiet { (text::clean(name)) } " "
                        @if let Some(number) = field.as_u64() { (text::count(number)) } @else { (text::value(field)) }
                    } " "
                }
            }
            other => (text::value(other)),
        }
    }
}

/// Everything that is wrong, checker by checker.
fn findings(verdicts: &[Verdict], evidence: &Evidence<'_>) -> Markup {
    let all = verdicts.iter().flat_map(|verdict| verdict.findings.iter().map(move |finding| (verdict, finding)));
    let all: Vec<_> = all.collect();
    html! {
        @if !all.is_empty() {
            section #findings {
                h2 { "Findings" }
                @for (position, (verdict, finding)) in all.iter().enumerate() {
                    @if position == 0 || !std::ptr::eq(all[position - 1].0, *verdict) { h3 { (text::clean(&verdict.checker)) } }
                    (section(finding, evidence, &format!("finding-{}", position + 1), position < TIMELINES_MAX))
                }
                @if all.len() > TIMELINES_MAX { p.quiet { "Timelines are drawn of the first " (TIMELINES_MAX) " findings." } }
            }
        }
    }
}

/// What the report leaves out, whatever the length of the run.
fn limits() -> String {
    format!(
        "Bounded: charts have at most {BUCKETS_MAX} steps of time, {LINES_MAX} kinds of operations, {} points an outcome \
         and {} faults; a timeline has {} operations, a finding {EVENTS_MAX} events, a cycle {} transactions; texts are cut \
         at {} characters. history.jsonl has everything.",
        latency::POINTS_MAX,
        faults::FAULTS_SHOWN_MAX,
        timeline::OPERATIONS_MAX,
        cycle::NODES_MAX,
        text::TEXT_CHARS_MAX,
    )
}
