//! A cycle of transactions: a ring of labelled nodes with typed edges, and the same in words.

use std::collections::HashMap;
use std::f64::consts::TAU;

use maud::{Markup, html};

use super::detail::Edge;
use super::operations::Operation;
use super::text::px;

/// Transactions of a cycle that are drawn and listed; a checker reports a shortest one, so it is rarely longer.
pub(super) const NODES_MAX: usize = 12;

/// Radius of a node and of the arrow's head.
const NODE: f64 = 22.0;
const HEAD: f64 = 9.0;
/// Half the drawing's width beyond the ring, for the edges' names.
const MARGIN: f64 = 96.0;

/// The cycle; `operation_of` finds an operation by one of its events. `id` is unique on the page.
pub(super) fn cycle(edges: &[Edge], operation_of: &HashMap<u64, &Operation<'_>>, id: &str) -> Markup {
    let edges = &edges[..edges.len().min(NODES_MAX)];
    let mut nodes: Vec<u64> = Vec::new();
    for index in edges.iter().flat_map(|edge| [edge.from, edge.to]) {
        if !nodes.contains(&index) && nodes.len() < NODES_MAX {
            nodes.push(index);
        }
    }
    let name =
        |index: u64| nodes.iter().position(|node| *node == index).map_or("…".to_owned(), |at| format!("T{}", at + 1));
    html! {
        div.cycle {
            div.scroll tabindex="0" role="region" aria-label="The cycle" { (ring(&nodes, edges, id)) }
            div {
                ol.plain {
                    @for node in &nodes {
                        li { strong { (name(*node)) } " " span.quiet { "event " (node) } " "
                            @if let Some(operation) = operation_of.get(node) {
                                code { (operation.text()) } " " span.quiet { "process " (operation.process) ", " (operation.outcome().name()) }
                            }
                        }
                    }
                }
                ol.plain {
                    @for edge in edges {
                        li { strong { (name(edge.from)) " → " (name(edge.to)) }
                            @if !edge.kind.is_empty() { " " strong.edge { (edge.kind) } }
                            @if let Some(says) = meaning(&edge.kind) { " " span.quiet { (says) } }
                            @if !edge.why.is_empty() { " " (edge.why) }
                        }
                    }
                }
            }
        }
    }
}

/// What a type of edge means.
fn meaning(kind: &str) -> Option<&'static str> {
    match kind {
        "ww" => Some("overwrote what the first wrote."),
        "wr" => Some("read what the first wrote."),
        "rw" => Some("wrote what the first did not see."),
        "process" => Some("came later in the same process."),
        "real-time" | "realtime" | "rt" => Some("began after the first had ended."),
        _ => None,
    }
}

/// The drawing.
fn ring(nodes: &[u64], edges: &[Edge], id: &str) -> Markup {
    let radius = 60.0 + 14.0 * nodes.len() as f64;
    let (width, height) = (2.0 * (radius + MARGIN), 2.0 * (radius + NODE + 14.0));
    let centre = (width / 2.0, height / 2.0);
    let place = |index: u64| {
        let at = nodes.iter().position(|node| *node == index)?;
        let angle = TAU * at as f64 / nodes.len() as f64 - TAU / 4.0;
        Some((centre.0 + radius * angle.cos(), centre.1 + radius * angle.sin()))
    };
    let arrows: Vec<(&Edge, Arrow)> =
        edges.iter().filter_map(|edge| Some((edge, Arrow::new(place(edge.from)?, place(edge.to)?)))).collect();
    html! {
        svg.ring width=(px(width)) height=(px(height)) viewBox=(format!("0 0 {} {}", px(width), px(height))) role="img" aria-labelledby=(id) {
            title id=(id) { "The transactions of the cycle and the edges between them; the lists say the same" }
            @for (edge, arrow) in &arrows {
                g {
                    @if !edge.why.is_empty() { title { (edge.why) } }
                    path.arrow d=(arrow.line) {}
                    path.head d=(arrow.head) {}
                }
            }
            @for (edge, arrow) in &arrows {
                text.edge x=(px(arrow.label.0)) y=(px(arrow.label.1 + 4.0)) text-anchor="middle" { (edge.kind) }
            }
            @for (at, node) in nodes.iter().enumerate() {
                @if let Some((x, y)) = place(*node) {
                    circle.node cx=(px(x)) cy=(px(y)) r=(NODE) {}
                    text.node x=(px(x)) y=(px(y + 4.5)) text-anchor="middle" { "T" (at + 1) }
                }
            }
        }
    }
}

/// A bent arrow between two nodes: bent, so that two transactions may have one in each direction.
struct Arrow {
    line: String,
    head: String,
    label: (f64, f64),
}

impl Arrow {
    fn new(from: (f64, f64), to: (f64, f64)) -> Self {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy).max(1.0);
        let bend = (length * 0.22).min(40.0);
        let control = ((from.0 + to.0) / 2.0 + dy / length * bend, (from.1 + to.1) / 2.0 - dx / length * bend);
        let towards = |a: (f64, f64), b: (f64, f64), distance: f64| {
            let all = (b.0 - a.0).hypot(b.1 - a.1).max(1.0);
            (a.0 + (b.0 - a.0) / all * distance, a.1 + (b.1 - a.1) / all * distance)
        };
        let start = towards(from, control, NODE);
        let tip = towards(to, control, NODE + 2.0);
        let base = towards(to, control, NODE + 2.0 + HEAD);
        let (wx, wy) = ((tip.1 - base.1) / 2.0, (base.0 - tip.0) / 2.0);
        let point = |(x, y): (f64, f64)| format!("{} {}", px(x), px(y));
        Self {
            line: format!("M{}Q{} {}", point(start), point(control), point(base)),
            head: format!(
                "M{}L{}L{}z",
                point(tip),
                point((base.0 + wx, base.1 + wy)),
                point((base.0 - wx, base.1 - wy))
            ),
            label: (control.0 + dy / length * 8.0, control.1 - dx / length * 8.0),
        }
    }
}
