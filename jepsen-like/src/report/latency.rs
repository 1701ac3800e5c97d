//! The chart of latencies on a logarithmic scale: every outcome as points, percentiles as lines, and a table.

use std::collections::HashSet;

use maud::{Markup, html};

use super::frame::{Frame, LEFT, RIGHT, WIDTH};
use super::operations::{OUTCOMES, Operation, Outcome};
use super::series::{Quantiles, Series};
use super::text::{self, px};

/// Points drawn of each outcome: those that would lie on one another are drawn once, then every n-th.
pub(super) const POINTS_MAX: usize = 4_000;

const HEIGHT: f64 = 240.0;
/// Space above the plot for its name.
const CAPTION: f64 = 22.0;
/// Below the plot, for the axis of time.
const FOOT: f64 = 22.0;
/// Points closer than this are one, in both directions.
const CELL: f64 = 2.0;

/// A percentile's line: its name, its class in the style sheet, and its number.
type Percentile = (&'static str, &'static str, fn(&Quantiles) -> u64);

const PERCENTILES: [Percentile; 3] =
    [("p50", "line p50", |q| q.p50_ns), ("p95", "line p95", |q| q.p95_ns), ("p99", "line p99", |q| q.p99_ns)];

/// The logarithmic axis, in whole decades.
struct Decades {
    /// Exponents of nanoseconds.
    low: i32,
    high: i32,
    top: f64,
}

impl Decades {
    /// Decades that hold every latency of a run.
    fn of(operations: &[Operation<'_>], top: f64) -> Self {
        let known = || operations.iter().filter_map(Operation::latency_ns).map(|ns| ns.max(1) as f64);
        let least = known().fold(f64::INFINITY, f64::min);
        let most = known().fold(1.0, f64::max);
        let low = if least.is_finite() { least.log10().floor() as i32 } else { 5 };
        Self { low, high: (most.log10().ceil() as i32).max(low + 1), top }
    }

    fn y(&self, ns: u64) -> f64 {
        let share = ((ns.max(1) as f64).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.top + HEIGHT * (1.0 - share)
    }
}

/// The chart and its table.
pub(super) fn chart(operations: &[Operation<'_>], series: &Series, frame: &Frame<'_>) -> Markup {
    let decades = Decades::of(operations, frame.strips_height() + CAPTION);
    let bottom = decades.top + HEIGHT;
    html! {
        (legend())
        div.scroll tabindex="0" role="region" aria-label="Latency over time" {
            svg.chart viewBox=(format!("0 0 {WIDTH} {}", px(bottom + FOOT))) role="img" aria-labelledby="latency-name" {
                title #latency-name { "Latency over time, logarithmic, with faults and leader changes" }
                (frame.strips())
                text.caption x=(LEFT) y=(px(decades.top - 6.0)) { "latency, logarithmic" }
                (frame.backdrop(decades.top, bottom))
                @for exponent in decades.low..=decades.high {
                    @let ns = 10_f64.powi(exponent) as u64;
                    line.grid x1=(LEFT) x2=(RIGHT) y1=(px(decades.y(ns))) y2=(px(decades.y(ns))) {}
                    text.axis x=(LEFT - 6.0) y=(px(decades.y(ns) + 4.0)) text-anchor="end" { (text::duration(ns)) }
                }
                @for outcome in OUTCOMES { (points(operations, frame, &decades, outcome)) }
                @for (name, class, of) in PERCENTILES {
                    path class=(class) d=(percentile(series, frame, &decades, of)) { title { (name) } }
                }
                (frame.time_axis(bottom))
                (hovers(series, frame, decades.top))
            }
        }
        (table(series))
    }
}

/// Which sign is which.
fn legend() -> Markup {
    html! {
        ul.legend {
            @for outcome in OUTCOMES {
                li { svg.key viewBox="0 0 12 10" aria-hidden="true" {
                    path class=(format!("points {}", outcome.name())) d=(format!("M6 5{}", sign(outcome))) {}
                } (outcome.name()) }
            }
            @for (name, class, _) in PERCENTILES {
                li { svg.key viewBox="0 0 28 10" aria-hidden="true" { path class=(class) d="M1 5h26" {} } (name) " of ok" }
            }
        }
    }
}

/// The sign of an outcome, drawn from its middle: a dot, a triangle, a cross. Not colour alone.
fn sign(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "h0",
        Outcome::Fail => "m-3 2.5h6l-3-5z",
        Outcome::Info => "m-3-3l6 6m0-6l-6 6",
    }
}

/// All points of an outcome as one path.
fn points(operations: &[Operation<'_>], frame: &Frame<'_>, decades: &Decades, outcome: Outcome) -> Markup {
    let mut cells = HashSet::new();
    let mut places = Vec::new();
    for operation in operations.iter().filter(|operation| operation.outcome() == outcome) {
        let Some(latency_ns) = operation.latency_ns() else { continue };
        let (x, y) = (frame.x(operation.invoke.time_ns), decades.y(latency_ns));
        if cells.insert(((x / CELL) as i32, (y / CELL) as i32)) {
            places.push((x, y));
        }
    }
    let every = places.len().div_ceil(POINTS_MAX).max(1);
    let path: String =
        places.iter().step_by(every).map(|(x, y)| format!("M{} {}{}", px(*x), px(*y), sign(outcome))).collect();
    html! { @if !path.is_empty() { path class=(format!("points {}", outcome.name())) d=(path) {} } }
}

/// A percentile through the steps of time; steps in which nothing was acknowledged interrupt it.
fn percentile(series: &Series, frame: &Frame<'_>, decades: &Decades, of: fn(&Quantiles) -> u64) -> String {
    let mut path = String::new();
    let mut connected = false;
    for (position, quantiles) in series.latency.iter().enumerate() {
        if let Some(quantiles) = quantiles {
            let middle = series.buckets.start_ns(position) / 2 + series.buckets.end_ns(position) / 2;
            let (x, y) = (px(frame.x(middle)), px(decades.y(of(quantiles))));
            path += &if connected { format!("L{x} {y}") } else { format!("M{x} {y}h.5") };
        }
        connected = quantiles.is_some();
    }
    path
}

/// Invisible columns that tell the numbers of a step of time.
fn hovers(series: &Series, frame: &Frame<'_>, top: f64) -> Markup {
    let buckets = &series.buckets;
    html! {
        @for (position, quantiles) in series.latency.iter().enumerate() {
            @let (start, end) = (buckets.start_ns(position), buckets.end_ns(position));
            rect.hover x=(px(frame.x(start))) y=(px(top)) width=(px(frame.x(end) - frame.x(start))) height=(HEIGHT) {
                title {
                    (text::moment(start)) " to " (text::moment(end)) ": "
                    @if let Some(quantiles) = quantiles {
                        @for (name, _, of) in PERCENTILES { (name) " " (text::duration(of(quantiles))) ", " }
                        "max " (text::duration(quantiles.max_ns))
                    } @else { "nothing acknowledged" }
                }
            }
        }
    }
}

/// The whole run in numbers, a line for each kind of operation.
fn table(series: &Series) -> Markup {
    html! {
        @if !series.lines.is_empty() {
            div.scroll tabindex="0" role="region" aria-label="Latencies of acknowledged operations" {
                table {
                    thead { tr { th { "latency of ok" } th.number { "count" } th.number { "p50" } th.number { "p95" } th.number { "p99" } th.number { "max" } } }
                    tbody {
                        @for line in &series.lines {
                            tr {
                                th scope="row" { (line.name) }
                                td.number { (text::count(line.total(Outcome::Ok))) }
                                @if let Some(quantiles) = &line.latency {
                                    @for (_, _, of) in PERCENTILES { td.number { (text::duration(of(quantiles))) } }
                                    td.number { (text::duration(quantiles.max_ns)) }
                                } @else { td.number colspan="4" { "—" } }
                            }
                        }
                    }
                }
            }
        }
    }
}
