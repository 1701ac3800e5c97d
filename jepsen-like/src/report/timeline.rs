//! A failing key's timeline: a lane for each process, a bar for each operation, the longest partial linearization as a
//! numbered path.
//!
//! The axis keeps the order of events, not their distances: every bar has room for its text, and a point of the path
//! lies in its operation's bar.

use std::collections::{HashMap, HashSet};

use maud::{Markup, html};

use super::detail::Step;
use super::operations::{Operation, Outcome};
use super::text::{self, px};

/// Operations drawn: those nearest to the end of the finding.
pub(super) const OPERATIONS_MAX: usize = 240;

/// Height of a lane, of the bar in it, and of the axis at the top.
const LANE: f64 = 46.0;
const BAR: f64 = 40.0;
const AXIS: f64 = 24.0;
/// Width of a character in a bar, the space around its text, and most characters of it.
const CHARACTER: f64 = 6.7;
const PADDING: f64 = 14.0;
const CHARACTERS_MAX: usize = 64;
/// Steps of the axis: from an event to the next, and to a point of the path.
const EVENT_STEP: f64 = 10.0;
const POINT_STEP: f64 = 24.0;
/// Radius of a point of the path.
const RADIUS: f64 = 9.0;
/// Width of the column of process names.
const NAMES: f64 = 84.0;
/// Space between the times on the axis, at least.
const TICK_SPACE: f64 = 90.0;

/// An operation in its place.
struct Bar<'a> {
    operation: &'a Operation<'a>,
    lane: usize,
    text: String,
    left: f64,
    /// Where its answer came; the end of the chart when its outcome stays open.
    right: f64,
}

/// A point of the path.
struct Point<'a> {
    step: &'a Step,
    bar: usize,
    x: f64,
}

/// Everything in its place.
struct Layout<'a> {
    bars: Vec<Bar<'a>>,
    points: Vec<Point<'a>>,
    /// Times on the axis: where, and when in nanoseconds.
    ticks: Vec<(f64, u64)>,
    processes: Vec<u64>,
    width: f64,
}

/// What the axis passes from left to right.
enum Mark {
    Start(usize),
    End(usize),
    Point(usize),
}

/// The operations to draw: of `all` (in the order of their invocations), those around the last one of `events`.
/// Those of `events` are always among them, up to [`OPERATIONS_MAX`].
fn window<'a>(all: Vec<&'a Operation<'a>>, events: &HashSet<u64>) -> Vec<&'a Operation<'a>> {
    if all.len() <= OPERATIONS_MAX {
        return all;
    }
    let told = |operation: &Operation<'_>| {
        events.contains(&operation.invoke.index)
            || operation.completion.is_some_and(|event| events.contains(&event.index))
    };
    let last = all.iter().rposition(|operation| told(operation)).unwrap_or(all.len() - 1);
    let end = (last + OPERATIONS_MAX / 8).min(all.len());
    let named = all[..end].iter().filter(|operation| told(operation)).count().min(OPERATIONS_MAX);
    let mut others = OPERATIONS_MAX - named;
    let mut kept = Vec::with_capacity(OPERATIONS_MAX);
    for operation in all[..end].iter().rev() {
        if kept.len() < OPERATIONS_MAX && (told(operation) || others > 0) {
            others -= usize::from(!told(operation));
            kept.push(*operation);
        }
    }
    kept.reverse();
    kept
}

impl<'a> Layout<'a> {
    fn new(operations: &[&'a Operation<'a>], path: &'a [Step]) -> Self {
        let mut processes: Vec<u64> = operations.iter().map(|operation| operation.process).collect();
        processes.sort_unstable();
        processes.dedup();
        let mut bars: Vec<Bar<'a>> = operations
            .iter()
            .map(|operation| Bar {
                lane: processes.binary_search(&operation.process).expect("every operation's process is listed"),
                text: text::bounded(&operation.text(), CHARACTERS_MAX),
                operation,
                left: 0.0,
                right: 0.0,
            })
            .collect();
        let mut points = points(&bars, path);
        let marks = marks(&bars, &points);
        let mut x = 0.0;
        let mut ticks: Vec<(f64, u64)> = Vec::new();
        let mut open_from = Vec::new();
        for mark in marks {
            let time_ns = match mark {
                Mark::Start(bar) => {
                    x += EVENT_STEP;
                    bars[bar].left = x;
                    open_from.push(bar);
                    bars[bar].operation.invoke.time_ns
                }
                Mark::End(bar) => {
                    let room = bars[bar].text.chars().count() as f64 * CHARACTER + PADDING;
                    x = f64::max(x + EVENT_STEP, bars[bar].left + room);
                    bars[bar].right = x;
                    open_from.retain(|open| *open != bar);
                    bars[bar].operation.completion.unwrap_or(bars[bar].operation.invoke).time_ns
                }
                Mark::Point(point) => {
                    x += POINT_STEP;
                    points[point].x = x - POINT_STEP / 2.0;
                    continue;
                }
            };
            if ticks.last().is_none_or(|(last, _)| x - last >= TICK_SPACE) {
                ticks.push((x, time_ns));
            }
        }
        let room = |bar: &Bar<'_>| bar.left + bar.text.chars().count() as f64 * CHARACTER + PADDING;
        let width = open_from.iter().map(|bar| room(&bars[*bar])).fold(x, f64::max) + 2.0 * EVENT_STEP;
        for bar in open_from {
            bars[bar].right = width;
        }
        Self { bars, points, ticks, processes, width }
    }
}

/// The steps of the path whose operations are drawn.
fn points<'a>(bars: &[Bar<'_>], path: &'a [Step]) -> Vec<Point<'a>> {
    let mut bar_of: HashMap<u64, usize> = HashMap::new();
    for (bar, Bar { operation, .. }) in bars.iter().enumerate() {
        bar_of.insert(operation.invoke.index, bar);
        bar_of.extend(operation.completion.map(|event| (event.index, bar)));
    }
    path.iter().filter_map(|step| bar_of.get(&step.index).map(|bar| Point { step, bar: *bar, x: 0.0 })).collect()
}

/// Everything on the axis in order: a point comes after its operation's invocation and after the point before it,
/// which in a linearization is before its operation's answer.
fn marks(bars: &[Bar<'_>], points: &[Point<'_>]) -> Vec<Mark> {
    let mut marks: Vec<((u64, usize), Mark)> = Vec::with_capacity(bars.len() * 2 + points.len());
    for (bar, Bar { operation, .. }) in bars.iter().enumerate() {
        marks.push(((operation.invoke.index, 0), Mark::Start(bar)));
        if let (Some(event), Outcome::Ok | Outcome::Fail) = (operation.completion, operation.outcome()) {
            marks.push(((event.index, 0), Mark::End(bar)));
        }
    }
    let mut latest = 0;
    for (position, point) in points.iter().enumerate() {
        latest = bars[point.bar].operation.invoke.index.max(latest);
        marks.push(((latest, position + 1), Mark::Point(position)));
    }
    marks.sort_by_key(|(place, _)| *place);
    marks.into_iter().map(|(_, mark)| mark).collect()
}

/// The timeline of `all` the operations of a key (in the order of their invocations), with the finding's `events`
/// framed. `id` is unique on the page.
pub(super) fn timeline(all: Vec<&Operation<'_>>, path: &[Step], events: &[u64], id: &str) -> Markup {
    let events: HashSet<u64> = events.iter().copied().collect();
    let total = all.len();
    let operations = window(all, &events);
    let layout = Layout::new(&operations, path);
    let height = AXIS + layout.processes.len() as f64 * LANE;
    html! {
        (legend(!layout.points.is_empty()))
        div.scroll.timeline tabindex="0" role="region" aria-label="Timeline, a lane for each process" {
            svg.names width=(NAMES) height=(px(height)) aria-hidden="true" {
                rect.ground width=(NAMES) height=(px(height)) {}
                @for (lane, process) in layout.processes.iter().enumerate() {
                    text.axis x="4" y=(px(AXIS + lane as f64 * LANE + 24.0)) { "process " (process) }
                }
            }
            svg width=(px(layout.width)) height=(px(height)) role="img" aria-labelledby=(id) {
                title id=(id) { "Operations from invocation to answer in the order of events; the table of events says the same" }
                (axis(&layout, height))
                @for bar in &layout.bars { (draw(bar, &events, layout.width)) }
                (route(&layout))
            }
        }
        p.quiet {
            "The axis keeps the order of events, not their distances."
            @if operations.len() < total { " " (operations.len()) " of " (text::count(total as u64)) " operations are drawn: those of the finding and the ones before them." }
            @if layout.points.len() < path.len() { " " (layout.points.len()) " of " (path.len()) " steps of the linearization fall among them." }
        }
    }
}

/// Which sign is which.
fn legend(path: bool) -> Markup {
    html! {
        ul.legend {
            @for (outcome, says) in [(Outcome::Ok, "ok"), (Outcome::Fail, "fail: did not happen"), (Outcome::Info, "info: unknown, stays open")] {
                li { svg.key viewBox="0 0 28 12" aria-hidden="true" {
                    rect class=(format!("bar {}", outcome.name())) x="1" y="1" width="26" height="10" rx="3" {}
                } (says) }
            }
            li { svg.key viewBox="0 0 28 12" aria-hidden="true" { rect.told x="2" y="2" width="24" height="8" rx="3" {} } "named by the finding" }
            @if path {
                li { svg.key viewBox="0 0 28 12" aria-hidden="true" { path.route d="M0 6h28" {} circle.point cx="14" cy="6" r="5" {} }
                    "longest partial linearization, numbered" }
            }
        }
    }
}

fn axis(layout: &Layout<'_>, height: f64) -> Markup {
    html! {
        @for (x, time_ns) in &layout.ticks {
            line.grid x1=(px(*x)) x2=(px(*x)) y1=(AXIS - 4.0) y2=(px(height)) {}
            text.axis x=(px(*x)) y="13" { (text::moment(*time_ns)) }
        }
        @for lane in 0..=layout.processes.len() {
            @let y = px(AXIS + lane as f64 * LANE);
            line.grid x1="0" x2=(px(layout.width)) y1=(y) y2=(y) {}
        }
    }
}

fn draw(bar: &Bar<'_>, events: &HashSet<u64>, width: f64) -> Markup {
    let operation = bar.operation;
    let named = |index: &u64| events.contains(index);
    let told = named(&operation.invoke.index) || operation.completion.is_some_and(|event| named(&event.index));
    let y = AXIS + bar.lane as f64 * LANE + (LANE - BAR) / 2.0;
    let right = if operation.outcome() == Outcome::Info { width + 8.0 } else { bar.right };
    html! {
        g {
            title { (operation.description()) }
            rect class=(format!("bar {}", operation.outcome().name())) x=(px(bar.left)) y=(px(y)) rx="4"
                width=(px(right - bar.left)) height=(BAR) {}
            @if told { rect.told x=(px(bar.left)) y=(px(y)) rx="4" width=(px(right - bar.left)) height=(BAR) {} }
            text.what x=(px(bar.left + PADDING / 2.0)) y=(px(y + 14.0)) { (bar.text) }
        }
    }
}

/// The path through the points, and the points with their numbers.
fn route(layout: &Layout<'_>) -> Markup {
    let y = |point: &Point<'_>| AXIS + layout.bars[point.bar].lane as f64 * LANE + LANE - RADIUS - 6.0;
    let mut path = String::new();
    for point in &layout.points {
        path.push(if path.is_empty() { 'M' } else { 'L' });
        path += &format!("{} {}", px(point.x), px(y(point)));
    }
    html! {
        @if !path.is_empty() { path.route d=(path) {} }
        @for point in &layout.points {
            g {
                title {
                    "step " (point.step.number) ": " (layout.bars[point.bar].operation.text())
                    @if let Some(state) = &point.step.state { ", then the state is " (state) }
                }
                circle.point cx=(px(point.x)) cy=(px(y(point))) r=(RADIUS) {}
                text.order x=(px(point.x)) y=(px(y(point) + 3.5)) text-anchor="middle" { (point.step.number) }
            }
        }
    }
}
