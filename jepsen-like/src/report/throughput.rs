//! The chart of throughput: operations a second, a plot for each outcome, a line for each kind of operation.

use maud::{Markup, html};

use super::frame::{Frame, LEFT, RIGHT, WIDTH, readable};
use super::operations::{OUTCOMES, Outcome};
use super::series::Series;
use super::text::{self, px};

/// Space above each plot for its name.
const CAPTION: f64 = 22.0;
/// Below the lowest plot, for the axis of time.
const FOOT: f64 = 22.0;

/// Outcomes are apart by orders of magnitude, so each has a scale of its own.
fn height(outcome: Outcome) -> f64 {
    match outcome {
        Outcome::Ok => 170.0,
        Outcome::Fail | Outcome::Info => 70.0,
    }
}

/// The chart.
pub(super) fn chart(series: &Series, frame: &Frame<'_>) -> Markup {
    let tops: Vec<f64> = OUTCOMES
        .iter()
        .scan(frame.strips_height(), |top, outcome| {
            let own = *top + CAPTION;
            *top = own + height(*outcome);
            Some(own)
        })
        .collect();
    let bottom = tops[OUTCOMES.len() - 1] + height(Outcome::Info);
    html! {
        (legend(series))
        div.scroll tabindex="0" role="region" aria-label="Throughput over time" {
            svg.chart viewBox=(format!("0 0 {WIDTH} {}", px(bottom + FOOT))) role="img" aria-labelledby="throughput-name" {
                title #throughput-name { "Operations a second over time, by outcome and kind, with faults and leader changes" }
                (frame.strips())
                @for (outcome, top) in OUTCOMES.into_iter().zip(&tops) { (plot(series, frame, outcome, *top)) }
                (frame.time_axis(bottom))
                (hovers(series, frame, tops[0], bottom))
            }
        }
    }
}

/// Which line is which, with totals: the same facts as a table.
fn legend(series: &Series) -> Markup {
    html! {
        ul.legend {
            @for (position, line) in series.lines.iter().enumerate() {
                li {
                    svg.key viewBox="0 0 28 10" aria-hidden="true" { path class=(format!("line f{position}")) d="M1 5h26" {} }
                    (line.name)
                    span.quiet {
                        @for outcome in OUTCOMES { " " (text::count(line.total(outcome))) " " (outcome.name()) }
                    }
                }
            }
        }
    }
}

/// The plot of one outcome.
fn plot(series: &Series, frame: &Frame<'_>, outcome: Outcome, top: f64) -> Markup {
    let buckets = &series.buckets;
    let rates: Vec<Vec<f64>> = series
        .lines
        .iter()
        .map(|line| (0..buckets.count).map(|position| line.rate(buckets, outcome, position)).collect())
        .collect();
    let most = rates.iter().flatten().copied().fold(0.0, f64::max);
    let scale = if most > 0.0 { readable(most / 2.0) * 2.0 } else { 1.0 };
    let bottom = top + height(outcome);
    let y = |rate: f64| bottom - height(outcome) * rate / scale;
    html! {
        text.caption x=(LEFT) y=(px(top - 6.0)) {
            (outcome.name()) " a second" @if most == 0.0 { ": none" }
        }
        (frame.backdrop(top, bottom))
        @for rate in [0.0, scale / 2.0, scale] {
            @if rate == 0.0 || most > 0.0 {
                line.grid x1=(LEFT) x2=(RIGHT) y1=(px(y(rate))) y2=(px(y(rate))) {}
                text.axis x=(LEFT - 6.0) y=(px(y(rate) + 4.0)) text-anchor="end" { (short(rate)) }
            }
        }
        @for (position, line) in rates.iter().enumerate() {
            @if line.iter().any(|rate| *rate > 0.0) {
                path class=(format!("line f{position}")) d=(steps(series, frame, line, y)) {}
            }
        }
    }
}

/// A line through the middle of each step of time.
fn steps(series: &Series, frame: &Frame<'_>, rates: &[f64], y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    for (position, rate) in rates.iter().enumerate() {
        let middle = series.buckets.start_ns(position) / 2 + series.buckets.end_ns(position) / 2;
        path.push(if position == 0 { 'M' } else { 'L' });
        path += &format!("{} {}", px(frame.x(middle)), px(y(*rate)));
    }
    if rates.len() == 1 {
        path.push_str("h1");
    }
    path
}

/// Invisible columns that tell the numbers of a step of time.
fn hovers(series: &Series, frame: &Frame<'_>, top: f64, bottom: f64) -> Markup {
    let buckets = &series.buckets;
    html! {
        @for position in 0..buckets.count {
            @let (start, end) = (buckets.start_ns(position), buckets.end_ns(position));
            rect.hover x=(px(frame.x(start))) y=(px(top)) width=(px(frame.x(end) - frame.x(start))) height=(px(bottom - top)) {
                title {
                    (text::moment(start)) " to " (text::moment(end)) "\n"
                    @for line in &series.lines {
                        (line.name) ":"
                        @for outcome in OUTCOMES { " " (short(line.rate(buckets, outcome, position))) " " (outcome.name()) }
                        "\n"
                    }
                    "a second"
                }
            }
        }
    }
}

/// A rate in few characters.
fn short(rate: f64) -> String {
    match rate {
        _ if rate >= 100_000.0 => format!("{:.0}k", rate / 1e3),
        _ if rate >= 10_000.0 => format!("{:.1}k", rate / 1e3),
        _ if rate >= 10.0 || rate.fract() == 0.0 => format!("{rate:.0}"),
        _ => format!("{rate:.1}"),
    }
}
