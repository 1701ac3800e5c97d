//! One thing that is wrong: in words, as its events, and as a timeline or a cycle.

use std::collections::HashMap;

use maud::{Markup, html};
use serde_json::Value;

use super::cycle::cycle;
use super::detail;
use super::operations::Operation;
use super::text;
use super::timeline::timeline;
use crate::checker::Finding;
use crate::history::Event;

/// Events listed of a finding.
pub(super) const EVENTS_MAX: usize = 40;
/// Characters shown of a detail whose form is unknown.
pub(super) const DETAIL_CHARS_MAX: usize = 4_000;

/// A history with its operations, so that findings find their events.
pub(super) struct Evidence<'a> {
    /// Everything.
    pub(super) history: &'a [Event],
    /// Its operations, in the order of their invocations.
    pub(super) operations: &'a [Operation<'a>],
}

impl<'a> Evidence<'a> {
    /// The event of an index: at that place, unless the history is a part of one.
    fn event(&self, index: u64) -> Option<&'a Event> {
        let place = usize::try_from(index).ok().and_then(|place| self.history.get(place));
        place.filter(|event| event.index == index).or_else(|| {
            self.history.binary_search_by_key(&index, |event| event.index).ok().map(|place| &self.history[place])
        })
    }

    /// The operation an event belongs to.
    fn operation(&self, index: u64) -> Option<&'a Operation<'a>> {
        let process = self.event(index)?.process;
        let after = self.operations.partition_point(|operation| operation.invoke.index <= index);
        self.operations[..after].iter().rev().find(|operation| operation.invoke.process == process)
    }

    /// What to draw of a finding: the operations of its key; where operations have none (transactions do not),
    /// those of its own events.
    fn operations_of(&self, finding: &Finding) -> Vec<&'a Operation<'a>> {
        let key = finding.key.as_ref();
        let of_key = self.operations.iter().filter(|operation| key.is_some() && operation.invoke.key.as_ref() == key);
        let of_key: Vec<&Operation<'_>> = of_key.collect();
        if !of_key.is_empty() {
            return of_key;
        }
        let mut own: Vec<&Operation<'_>> = finding.events.iter().filter_map(|index| self.operation(*index)).collect();
        own.sort_unstable_by_key(|operation| operation.invoke.index);
        own.dedup_by_key(|operation| operation.invoke.index);
        own
    }
}

/// The finding; `id` is unique on the page. `drawn` = also its timeline, which is the larger part of it.
pub(super) fn section(finding: &Finding, evidence: &Evidence<'_>, id: &str, drawn: bool) -> Markup {
    let linearization = detail::linearization(&finding.detail);
    let edges = detail::cycle(&finding.detail);
    let known = linearization.is_some() || edges.is_some() || finding.detail.is_null();
    html! {
        details.finding id=(id) open[drawn] {
            summary {
                strong.class { (text::clean(&finding.class)) }
                @if let Some(key) = &finding.key { " key " code { (text::clean(key)) } }
                span.message { (text::bounded(&finding.message, 2 * text::TEXT_CHARS_MAX)) }
            }
            @if let Some(edges) = edges.filter(|edges| !edges.is_empty()) {
                @let nodes = edges.iter().flat_map(|edge| [edge.from, edge.to]);
                @let operation_of: HashMap<u64, &Operation<'_>> =
                    nodes.filter_map(|index| evidence.operation(index).map(|operation| (index, operation))).collect();
                h4 { "Cycle" }
                (cycle(&edges, &operation_of, &format!("{id}-cycle")))
            }
            @let shown = if drawn { evidence.operations_of(finding) } else { Vec::new() };
            @if !shown.is_empty() {
                h4 { "Timeline" }
                (timeline(shown, linearization.as_deref().unwrap_or_default(), &finding.events, &format!("{id}-timeline")))
            }
            @if !finding.events.is_empty() { h4 { "Events" } (events(&finding.events, evidence)) }
            @if !known {
                h4 { "Detail" }
                pre.scroll tabindex="0" { (detail_text(&finding.detail)) }
            }
        }
    }
}

/// A detail of unknown form, as JSON; line ends stay.
fn detail_text(detail: &Value) -> String {
    format!("{detail:#}")
        .lines()
        .scan(0, |shown, line| {
            (*shown < DETAIL_CHARS_MAX).then(|| {
                let line = text::bounded(line, DETAIL_CHARS_MAX - *shown);
                *shown += line.chars().count() + 1;
                line + "\n"
            })
        })
        .collect()
}

/// The events of a finding as a table.
fn events(indices: &[u64], evidence: &Evidence<'_>) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Events of the finding" {
            table {
                thead { tr {
                    th.number { "event" } th.number { "time" } th.number { "process" } th { "type" } th { "f" } th { "key" }
                    th { "value" } th { "node" } th.number { "revision" } th { "error" }
                } }
                tbody {
                    @for index in indices.iter().take(EVENTS_MAX) {
                        @if let Some(event) = evidence.event(*index) { (row(event)) }
                        @else { tr { th.number scope="row" { (index) } td colspan="9" { "not in the history" } } }
                    }
                }
            }
        }
        @if indices.len() > EVENTS_MAX {
            p.quiet { "The first " (EVENTS_MAX) " of " (text::count(indices.len() as u64)) " events." }
        }
    }
}

fn row(event: &Event) -> Markup {
    let optional = |field: &Option<String>| field.as_deref().map(text::clean);
    html! {
        tr {
            th.number scope="row" { (event.index) }
            td.number { (text::moment(event.time_ns)) }
            td.number { (text::process(event.process)) }
            td { (text::kind(event.kind)) }
            td { (text::clean(&event.f)) }
            td { (optional(&event.key).unwrap_or_default()) }
            td { code { (text::value(&event.value)) } }
            td { (optional(&event.node).unwrap_or_default()) }
            td.number { @if let Some(revision) = event.revision { (revision) } }
            td { (optional(&event.error).unwrap_or_default()) }
        }
    }
}
