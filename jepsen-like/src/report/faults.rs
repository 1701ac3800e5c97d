//! What the nemesis did: its events in pairs, and the table of them.
//!
//! A fault is an event whose value has the phase `begin` (or `start`), and a later one with the phase `end` (or `stop`):
//! with the same `id` where they have one, else with the same name. An event of the nemesis without a phase stands for
//! itself. What proves that the fault bit is in the fields [`EFFECT_FIELDS`] of any of its events.

use maud::{Markup, html};
use serde_json::Value;

use super::text;
use crate::history::{Event, LEADER, Process};

/// Most faults in the table and in the charts; the rest are counted.
pub(super) const FAULTS_SHOWN_MAX: usize = 400;

/// Fields of a nemesis event that say which effect was seen.
const EFFECT_FIELDS: [&str; 4] = ["bit", "effect", "evidence", "facts"];
/// Fields that only pair the events.
const PAIRING_FIELDS: [&str; 2] = ["phase", "id"];

/// One thing that was broken.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    /// From 1, in the order of time: the charts and the table share it.
    pub(super) number: usize,
    /// Which fault.
    pub(super) name: String,
    /// When it began.
    pub(super) start_ns: u64,
    /// When it was healed; None = it has no length, or was never healed.
    pub(super) stop_ns: Option<u64>,
    /// Which effect was seen; empty when nothing was recorded.
    effect: Vec<String>,
    /// What else its events say: the nodes it struck.
    about: Vec<String>,
    /// How its events pair; None = never.
    id: Option<Value>,
}

impl Fault {
    /// Everything a hover or a screen reader should say.
    pub(super) fn description(&self) -> String {
        let until = self.stop_ns.map_or(String::new(), |stop| format!(" to {}", text::moment(stop)));
        let mut said = format!("fault {}: {}, {}{until}", self.number, self.name, text::moment(self.start_ns));
        for part in self.about.iter().chain(&self.effect) {
            said += &format!("; {part}");
        }
        said
    }

    /// Takes what `event` says about this fault.
    fn learn(&mut self, event: &Event) {
        let mut parts = Vec::new();
        if let Some(node) = &event.node {
            parts.push(format!("node {}", text::clean(node)));
        }
        match &event.value {
            Value::Null => {}
            Value::Object(fields) => {
                for (name, field) in fields.iter().filter(|(name, _)| !PAIRING_FIELDS.contains(&name.as_str())) {
                    if EFFECT_FIELDS.contains(&name.as_str()) {
                        self.effect.extend(effect(field));
                    } else if !field.is_null() {
                        parts.push(text::clean(&format!("{name} {}", text::value(field))));
                    }
                }
            }
            other => parts.push(text::value(other)),
        }
        parts.extend(event.error.as_ref().map(|error| format!("error: {}", text::clean(error))));
        for part in parts {
            if !self.about.contains(&part) {
                self.about.push(part);
            }
        }
    }
}

/// An effect as recorded: words, a number of something, or yes and no.
fn effect(field: &Value) -> Vec<String> {
    match field {
        Value::Null => Vec::new(),
        Value::Bool(true) => vec!["seen".to_owned()],
        Value::Bool(false) => vec!["none seen".to_owned()],
        Value::Array(parts) => parts.iter().map(text::value).collect(),
        Value::Object(fields) => fields.iter().map(|(name, field)| format!("{name} {}", text::value(field))).collect(),
        Value::Number(_) | Value::String(_) => vec![text::value(field)],
    }
}

/// The faults of a history, in the order in which they began.
pub(super) fn faults(history: &[Event]) -> Vec<Fault> {
    let mut found: Vec<Fault> = Vec::new();
    for event in history.iter().filter(|event| matches!(event.process, Process::Nemesis(_)) && event.f != LEADER) {
        let phase = event.value.get("phase").and_then(Value::as_str);
        let id = event.value.get("id");
        let begins = matches!(phase, None | Some("begin" | "start"));
        let known = match (begins, id) {
            (false, Some(_)) => found.iter_mut().rev().find(|fault| fault.stop_ns.is_none() && fault.id.as_ref() == id),
            (false, None) => found.iter_mut().rev().find(|fault| fault.stop_ns.is_none() && fault.name == event.f),
            (true, _) => None,
        };
        if let Some(fault) = known {
            fault.learn(event);
            if matches!(phase, Some("end" | "stop")) {
                fault.stop_ns = Some(event.time_ns);
            }
            continue;
        }
        let mut fault = Fault {
            number: found.len() + 1,
            name: text::clean(&event.f),
            start_ns: event.time_ns,
            stop_ns: None,
            effect: Vec::new(),
            about: Vec::new(),
            id: id.cloned(),
        };
        fault.learn(event);
        found.push(fault);
    }
    found
}

/// Whether a list of faults without effect has this one: by its name, or by its name and words after a colon.
fn names(vacuous: &[String], name: &str) -> bool {
    vacuous.iter().any(|entry| text::clean(entry) == name || entry.split(':').next() == Some(name))
}

/// The table of faults: which, when, on whom, and what it did.
pub(super) fn table(faults: &[Fault], vacuous: &[String]) -> Markup {
    html! {
        @if faults.is_empty() { p { "The nemesis did nothing in this run." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Faults" {
                table {
                    thead { tr { th.number { "#" } th { "fault" } th { "from" } th { "for" } th { "effect seen" } th { "details" } } }
                    tbody {
                        @for fault in faults.iter().take(FAULTS_SHOWN_MAX) {
                            tr {
                                td.number { (fault.number) }
                                th scope="row" { (fault.name) }
                                td.number { (text::moment(fault.start_ns)) }
                                td.number {
                                    @if let Some(stop) = fault.stop_ns { (text::duration(stop.saturating_sub(fault.start_ns))) }
                                    @else { "—" }
                                }
                                td {
                                    @if names(vacuous, &fault.name) { strong.mark.vacuous { "∅ vacuous" } " " }
                                    (text::clean(&fault.effect.join(", ")))
                                }
                                td.quiet { (text::clean(&fault.about.join(", "))) }
                            }
                        }
                    }
                }
            }
            @if faults.len() > FAULTS_SHOWN_MAX {
                p.quiet { "The first " (FAULTS_SHOWN_MAX) " of " (faults.len()) " faults; history.jsonl has all." }
            }
        }
    }
}
